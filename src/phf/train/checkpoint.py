"""Checkpoints: whole or absent, and refused by name when damaged.

A checkpoint is a plain Hugging Face folder (config.json, model.safetensors, tokenizer) with what resuming needs beside
it: optimizer.safetensors, value_head.safetensors (AWR) and checkpoint.json, which holds the state and every file's hash.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from phf import lm
from phf.corpus.tokenizer import Tokenizer
from phf.errors import PHFError
from phf.files import check_hash, hash_file, hash_json, read_json, write_json
from phf.records import FORMAT_VERSION
from phf.train.distributed import Trained
from phf.train.optim import gather, pack_state, unpack_state

MANIFEST = "checkpoint.json"
WEIGHTS, OPTIMIZER, VALUE_HEAD = "model.safetensors", "optimizer.safetensors", "value_head.safetensors"


@dataclass
class TrainState:
    """All that training carries from step to step beside weights: the data order follows from the step alone.

    Attributes:
        step: steps taken.
        num_skipped: steps skipped because loss or gradient was not finite.
        num_bad_in_row: how many of them were the latest steps.
        micro_blocks: blocks of a micro-batch, where memory ran out and it had to shrink; its size decides the rounding.
    """

    step: int = 0
    num_skipped: int = 0
    num_bad_in_row: int = 0
    micro_blocks: int | None = None


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
    trained: Trained,
    optimizers: list[Optimizer],
    tokenizer: Tokenizer,
    *,
    keep: int,
    is_first: bool = True,
) -> None:
    """Write a checkpoint beside its final place, rename it into place, then delete all but the last `keep`.

    All ranks call this, for what they share must be gathered; the first one writes.
    """
    is_sharded = any(isinstance(parameter, DTensor) for parameter in trained.parameters())
    weights = {name: gather(tensor) for name, tensor in trained.named_parameters()} if is_sharded else {}
    optimizer_state = pack_state(optimizers, trained) if is_sharded or is_first else {}
    if not is_first:
        return
    final = checkpoint_folder(run, state.step)
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if is_sharded:
        trained.model.save_pretrained(temporary, state_dict=_under("model.", weights))
    else:
        lm.save_model(trained.model, temporary)
    tokenizer.save(temporary)
    save_file(optimizer_state, temporary / OPTIMIZER)
    if trained.value_head is not None:
        head = _under("value_head.", weights) if is_sharded else trained.value_head.state_dict()
        save_file(head, temporary / VALUE_HEAD)
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


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor.contiguous()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def check_checkpoint(run: Path, step: int) -> TrainState:
    """The state of a checkpoint whose files are all what its manifest says.

    Raises:
        PHFError: a file is missing or damaged; names it and the checkpoint before.
    """
    folder = checkpoint_folder(run, step)
    earlier = [other for other in list_checkpoints(run) if other < step]
    remedy = (
        f"go on from step {earlier[-1]} with 'phf train --resume {run}@{earlier[-1]}'"
        if earlier
        else "no earlier checkpoint is left, so train again"
    )
    manifest = read_json(folder / MANIFEST)
    content = {key: value for key, value in manifest.items() if key != "manifest_hash"}
    if hash_json(content) != manifest.get("manifest_hash"):
        raise PHFError(f"{folder / MANIFEST} is damaged: its content is not what its hash says; {remedy}")
    for name, expected in manifest["files"].items():
        check_hash(folder / name, expected, remedy)
    return TrainState(**manifest["state"])


def load_weights(folder: Path, trained: Trained) -> None:
    """Put a checkpoint's weights in place: the model's, and the value head's where both have one.

    Raises:
        PHFError: they are those of another architecture.
    """
    model = trained.model
    weights = load_file(folder / WEIGHTS, device=str(model.device))
    own = model.state_dict()
    wrong = [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
    tied = {own[name].data_ptr() for name in weights if name in own}
    wrong += [name for name in own if name not in weights and own[name].data_ptr() not in tied]
    if wrong:
        raise PHFError(f"{folder / WEIGHTS} does not fit the model of run.json: {', '.join(wrong[:3])}")
    model.load_state_dict(weights, strict=False)
    if trained.value_head is not None and (folder / VALUE_HEAD).exists():
        trained.value_head.load_state_dict(load_file(folder / VALUE_HEAD, device=str(model.device)))


def load_optimizers(
    folder: Path, trained: Trained, optimizers: list[Optimizer], *, strict: bool = True
) -> None:
    """Put a checkpoint's optimizer states in place; parameters that it does not know start afresh.

    Raises:
        PHFError: (strict) it holds states of parameters or optimizers that are not there.
    """
    tensors = load_file(folder / OPTIMIZER, device=str(trained.model.device))
    if unpack_state(optimizers, trained, tensors) > 0 and strict:
        raise PHFError(f"{folder / OPTIMIZER} does not fit the optimizer of run.json; train again")
