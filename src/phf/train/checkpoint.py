"""Checkpoints: whole or absent, written while training goes on, and refused by name when damaged.

A checkpoint is a plain Hugging Face folder (config.json, model*.safetensors, tokenizer) with what resuming needs beside
it: optimizer*.safetensors, value_head*.safetensors (AWR) and checkpoint.json, which holds the state and every file's hash.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from phf.errors import PHFError
from phf.files import check_hash, hash_file, read_sealed, write_json, write_sealed
from phf.records import FORMAT_VERSION
from phf.results import check_owner
from phf.tokens.tokenizer import Tokenizer
from phf.train.distributed import TIMEOUT, Ranks, Trained
from phf.train.folder import CHECKPOINT_MANIFEST, list_checkpoints, read_run_id
from phf.train.optim import create_state, list_state, load_state
from phf.train.sharded import HostMemory, Part, TensorFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
WEIGHTS, OPTIMIZER, VALUE_HEAD = "model", "optimizer", "value_head"
"""What the files of tensors are called: `model.safetensors`, or `model-00001-of-00002.safetensors` of the first rank."""


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

    def count(self, *, is_finite: bool) -> None:
        """One step more that was taken, or skipped."""
        self.num_bad_in_row = 0 if is_finite else self.num_bad_in_row + 1
        self.num_skipped += not is_finite


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a step's checkpoint lies."""
    return run / "checkpoints" / f"step-{step:06d}"


def remove_checkpoint(run: Path, step: int) -> None:
    """Remove a checkpoint; it is absent at once, even if this process is killed before its files are."""
    folder = checkpoint_folder(run, step)
    shutil.rmtree(folder.replace(_temporary(folder)))


def remove_leftovers(run: Path) -> None:
    """Remove what a process that was killed left half written or half removed."""
    for folder in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class _Written:
    """What one rank wrote: the hash of each file, and where the weights are, with their bytes."""

    hashes: dict[str, str]
    weights_file: str
    weights: dict[str, int]


class Checkpointer:
    """Saves a run's checkpoints: `save` copies everything to CPU memory, then a thread writes while training goes on.

    Every rank calls every method at the same step, and writes its share: whole tensors of the weights, and of the
    optimizer states its slices if they are sharded, else whole tensors. There is one write at a time.
    """

    def __init__(
        self,
        run: Path,
        trained: Trained,
        optimizers: list[Optimizer],
        tokenizer: Tokenizer,
        ranks: Ranks,
        *,
        keep: int | None,
    ) -> None:
        self._run, self._keep, self._ranks = run, keep, ranks
        self._run_id = read_run_id(run)
        self._trained, self._optimizers, self._tokenizer = trained, optimizers, tokenizer
        self._dtype = str(trained.model.dtype).removeprefix("torch.")
        self._memory = {kind: HostMemory() for kind in (WEIGHTS, OPTIMIZER, VALUE_HEAD)}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        # A group of its own: the thread's exchanges must not come between those of the steps.
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if ranks.size > 1 else None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Whatever ended the run, a write that has begun is finished, unless it may wait for a rank that is gone."""
        self._thread.shutdown(wait=self._ranks.size == 1 or kind is None or issubclass(kind, PHFError))

    @property
    def has_failed(self) -> bool:
        """Whether the latest write has failed; `wait` raises why."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            PHFError: the latest checkpoint could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def save(self, state: TrainState) -> None:
        """Copy this step's state and begin to write it; then all checkpoints but the last `keep` are removed (None keeps all).

        Raises:
            PHFError: the checkpoint before could not be written.
        """
        self.wait()
        head = self._trained.value_head
        parts = {
            WEIGHTS: self._take_part(WEIGHTS, _list_weights(self._trained.model)),
            OPTIMIZER: self._take_part(OPTIMIZER, list_state(self._optimizers, self._trained)),
            VALUE_HEAD: self._take_part(VALUE_HEAD, head.state_dict() if head is not None else {}),
        }
        copied = None
        if self._ranks.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._writing = self._thread.submit(self._write, replace(state), parts, copied)

    def _take_part(self, kind: str, tensors: dict[str, Tensor]) -> Part:
        return self._memory[kind].take_part(tensors, self._ranks, is_whole=kind != OPTIMIZER)

    def _write(self, state: TrainState, parts: dict[str, Part], copied: torch.cuda.Event | None) -> None:
        """What happens in the thread: each rank writes its part beside the final place, then the first one renames.

        The modules are not looked at: FSDP's hooks (of `state_dict` too) move parameters, which a step may be using.
        """
        if copied is not None:
            copied.synchronize()
        final = checkpoint_folder(self._run, state.step)

        def write_parts() -> _Written:
            with self._explain(final):
                return self._write_parts(_temporary(final), parts)

        def publish() -> None:
            if self._ranks.is_first:
                with self._explain(final):
                    self._publish(final, state, written)

        written = self._ranks.share(write_parts, self._group)
        self._ranks.share(publish, self._group)

    def _write_parts(self, temporary: Path, parts: dict[str, Part]) -> _Written:
        temporary.mkdir(parents=True, exist_ok=True)
        hashes = {}
        for kind, part in parts.items():
            if part.tensors:
                path = temporary / self._file_name(kind, self._ranks.rank)
                part.write(path)
                hashes[path.name] = _sync_and_hash(path)
        sizes = {name: tensor.nbytes for name, tensor in parts[WEIGHTS].tensors.items()}
        return _Written(hashes, self._file_name(WEIGHTS, self._ranks.rank), sizes)

    def _publish(self, final: Path, state: TrainState, written: list[_Written]) -> None:
        temporary = _temporary(final)
        _save_config(self._trained.model, self._dtype, temporary)
        self._tokenizer.save(temporary)
        if self._ranks.size > 1:
            num_bytes = sum(sum(part.weights.values()) for part in written)
            places = {name: part.weights_file for part in written for name in part.weights}
            write_json(temporary / INDEX, {"metadata": {"total_size": num_bytes}, "weight_map": places})
        hashes = {path.name: _sync_and_hash(path) for path in temporary.glob("*.json")}
        for part in written:
            hashes |= part.hashes
        content = {
            "format_version": FORMAT_VERSION,
            "run_id": self._run_id,
            "state": asdict(state),
            "files": hashes,
        }
        write_sealed(temporary / CHECKPOINT_MANIFEST, content, "manifest_hash")
        shutil.rmtree(final, ignore_errors=True)  # it has no manifest, or this step would not be saved
        # Folders are synced as well: after a power cut a name is there only if its files are.
        _sync(temporary)
        temporary.replace(final)
        _sync(final.parent)
        # Old ones go last: at every moment as many whole checkpoints as before are on the disk.
        for step in list_checkpoints(self._run)[: -self._keep] if self._keep is not None else ():
            remove_checkpoint(self._run, step)

    def _file_name(self, kind: str, rank: int) -> str:
        size = self._ranks.size
        return f"{kind}.safetensors" if size == 1 else f"{kind}-{rank + 1:05}-of-{size:05}.safetensors"

    @contextmanager
    def _explain(self, final: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PHFError(
                f"{final} could not be written: {reason}; the checkpoints before it are whole: see to the disk, "
                f"then go on with 'phf train --resume {self._run}'"
            ) from None


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_and_hash(path: Path) -> str:
    _sync(path)
    return hash_file(path)


def _list_weights(model: "PreTrainedModel") -> dict[str, Tensor]:
    """Parameters and buffers that belong into a file, tied ones once, under the first of their names."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def _save_config(model: "PreTrainedModel", dtype: str, folder: Path) -> None:
    """What `save_pretrained` writes beside the weights."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def check_checkpoint(run: Path, step: int, ranks: Ranks | None = None) -> TrainState:
    """The state of a checkpoint whose files are all what its manifest says.

    Args:
        ranks: they share the work, and all must call this; by default one process does it alone.

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
    manifest = read_sealed(folder / CHECKPOINT_MANIFEST, remedy, key="manifest_hash")
    check_owner(folder, manifest.get("run_id"), read_run_id(run), remedy)
    ranks = ranks or Ranks()

    def check_share() -> None:
        for name in sorted(manifest["files"])[ranks.rank :: ranks.size]:
            check_hash(folder / name, manifest["files"][name], remedy)

    ranks.share(check_share)
    state = TrainState(**manifest["state"])
    if state.step != step:
        raise PHFError(f"{folder} is of step {state.step}: it was renamed; {remedy}")
    return state


def load_weights(folder: Path, trained: Trained) -> None:
    """Put a checkpoint's weights in place, of a sharded model each rank its own: the model's, and the value head's where
    both have one.

    Raises:
        PHFError: they are those of another architecture.
    """
    files, own = TensorFiles(folder, f"{WEIGHTS}*.safetensors"), _list_weights(trained.model)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    wrong = [name for name in {**shapes, **files.shapes} if shapes.get(name) != files.shapes.get(name)]
    if wrong:
        raise PHFError(f"the weights in {folder} do not fit the model of run.json: {', '.join(wrong[:3])}")
    files.read_into(own)
    head = TensorFiles(folder, f"{VALUE_HEAD}*.safetensors")
    if trained.value_head is not None and head.shapes:
        head.read_into(trained.value_head.state_dict())


def load_optimizers(
    folder: Path, trained: Trained, optimizers: list[Optimizer], *, strict: bool = True
) -> None:
    """Put a checkpoint's optimizer states in place; parameters that it does not know start afresh.

    Raises:
        PHFError: (strict) it holds states of parameters or optimizers that are not there.
    """
    files = TensorFiles(folder, f"{OPTIMIZER}*.safetensors")
    tensors = create_state(optimizers, trained, files.shapes)
    if len(tensors) < len(files.shapes) and strict:
        raise PHFError(f"the optimizer states in {folder} do not fit the optimizer of run.json; train again")
    files.read_into(tensors)
    load_state(optimizers, trained, tensors)
