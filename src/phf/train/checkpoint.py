"""Checkpoints: whole or absent, and refused by name when damaged.

A checkpoint is a plain Hugging Face folder (config.json, model.safetensors, tokenizer) with what resuming needs beside
it: optimizer.safetensors, value_head.safetensors (AWR) and checkpoint.json, which holds the state and every file's hash.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from transformers import PreTrainedModel

from phf import lm
from phf.corpus.tokenizer import Tokenizer
from phf.errors import PHFError
from phf.files import check_hash, hash_file, hash_json, read_json, write_json
from phf.records import FORMAT_VERSION
from phf.train.optim import pack_state, unpack_state

MANIFEST = "checkpoint.json"


@dataclass
class TrainState:
    """All that training carries from step to step beside weights: the data order follows from the step alone.

    Attributes:
        step: steps taken.
        num_skipped: steps skipped because loss or gradient was not finite.
        num_bad_in_row: how many of them were the latest steps.
    """

    step: int = 0
    num_skipped: int = 0
    num_bad_in_row: int = 0


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a step's checkpoint lies."""
    return run / "checkpoints" / f"step-{step:06d}"


def list_checkpoints(run: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    folders = (run / "checkpoints").glob("step-*/" + MANIFEST)
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folders)


def save_checkpoint(
    run: Path,
    state: TrainState,
    model: PreTrainedModel,
    value_head: lm.ValueHead | None,
    optimizers: list[Optimizer],
    tokenizer: Tokenizer,
    *,
    keep: int,
) -> None:
    """Write a checkpoint beside its final place, rename it into place, then delete all but the last `keep`."""
    final = checkpoint_folder(run, state.step)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    lm.save_model(model, temporary)
    tokenizer.save(temporary)
    save_file(pack_state(optimizers), temporary / "optimizer.safetensors")
    if value_head is not None:
        save_file(value_head.state_dict(), temporary / "value_head.safetensors")
    hashes = {path.name: hash_file(path) for path in sorted(temporary.iterdir())}
    for name in hashes:
        with (temporary / name).open("rb") as file:
            os.fsync(file.fileno())
    content = {"format_version": FORMAT_VERSION, "state": asdict(state), "files": hashes}
    write_json(temporary / MANIFEST, {**content, "manifest_hash": hash_json(content)})
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    for step in list_checkpoints(run)[:-keep]:
        shutil.rmtree(checkpoint_folder(run, step))


def check_checkpoint(run: Path, step: int) -> TrainState:
    """The state of a checkpoint whose files are all what its manifest says.

    Raises:
        PHFError: a file is missing or damaged; names it and the checkpoint before.
    """
    folder = checkpoint_folder(run, step)
    earlier = [other for other in list_checkpoints(run) if other < step]
    remedy = f"delete {folder}" + (
        f" to go on from step {earlier[-1]}" if earlier else "; no earlier checkpoint is left, so train again"
    )
    manifest = read_json(folder / MANIFEST)
    content = {key: value for key, value in manifest.items() if key != "manifest_hash"}
    if hash_json(content) != manifest.get("manifest_hash"):
        raise PHFError(f"{folder / MANIFEST} is damaged: its content is not what its hash says; {remedy}")
    for name, expected in manifest["files"].items():
        check_hash(folder / name, expected, remedy)
    return TrainState(**manifest["state"])


def load_checkpoint(
    run: Path, step: int, model: PreTrainedModel, value_head: lm.ValueHead | None, optimizers: list[Optimizer]
) -> TrainState:
    """Put a checkpoint's weights and optimizer states into freshly made objects.

    Raises:
        PHFError: see `check_checkpoint`.
    """
    state = check_checkpoint(run, step)
    folder = checkpoint_folder(run, step)
    device = str(model.device)
    weights = load_file(folder / "model.safetensors", device=device)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.state_dict()) - set(weights)
    if unexpected or set(missing) - tied:
        raise PHFError(
            f"{folder}/model.safetensors does not fit the model of run.json: {[*missing, *unexpected][:3]}"
        )
    if value_head is not None:
        value_head.load_state_dict(load_file(folder / "value_head.safetensors", device=device))
    unpack_state(optimizers, load_file(folder / "optimizer.safetensors", device=device))
    return state
