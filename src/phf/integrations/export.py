"""The blocks that a run would read, written for another engine: `phf tokens export`."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.config.train import TrainConfig
from phf.errors import PHFError
from phf.files import Place, hash_file, read_sealed, write_sealed
from phf.folders import LOCK_FILE, is_filled, lock_folder
from phf.integrations.formats import ExportFormat, Index, Layout, name_files, write_index, write_shard
from phf.integrations.loss import TokenLoss
from phf.records import FORMAT_VERSION, PAD, Batch, Progress
from phf.results import check_version
from phf.tokens.phases import TrainingBlocks
from phf.train.data import TrainingData, open_data
from phf.train.folder import count_steps
from phf.train.run import CHANGEABLE

SHARD_TOKENS = 1 << 24
"""Inputs in a shard: 0.4 GB of rows, 32 or 64 MB of tokens."""
BATCH_TOKENS = 1 << 19
"""Inputs that are laid out at a time."""
_MANIFEST = "manifest.json"
_REMEDY = "export again with -o another folder"

Manifest = dict[str, Any]


def export_blocks(
    config: TrainConfig,
    out: Path,
    kind: ExportFormat,
    *,
    epochs: float | None = None,
    shard_tokens: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the training blocks of a run in the order in which `phf train` reads them, or go on with what was begun.

    The same config gives the same bytes. A shard's files appear whole, its entry in manifest.json after them; a shard whose
    files are not those of its entry is written again.

    Args:
        out: the folder to make.
        epochs: so many passes over what the objective keeps, instead of the config's `tokens`.
        shard_tokens: inputs in a shard, rounded to whole blocks; None: `SHARD_TOKENS`.

    Returns:
        the manifest (`read_export`); its `lost` says what the engine's own loss does not see.

    Raises:
        PHFError: `out` holds something else, or an export of another config; the format cannot hold the objective; see also
            `open_data`.
    """
    data = open_data(config, to_train=True)
    if epochs is not None:
        data = replace(data, config=_set_epochs(data, epochs))
    layout = _make_layout(data, kind)
    layout.check()
    num_shard_blocks = max(1, (SHARD_TOKENS if shard_tokens is None else shard_tokens) // layout.context)
    manifest = _describe(data, layout, num_shard_blocks)
    blocks = data.training_blocks()
    if not (out / _MANIFEST).exists() and is_filled(out):
        others = [path.name for path in out.iterdir() if path.name != LOCK_FILE]
        raise PHFError(f"{out} holds {sorted(others)[0]} and no export; {_REMEDY}")
    with lock_folder(out, "exporting to"):
        if (out / _MANIFEST).exists():
            manifest["shards"] = _take_over(out, manifest)
        else:
            write_sealed(out / _MANIFEST, manifest)
        data.tokens.tokenizer.save(out / "tokenizer")
        write_shards(out, manifest, layout, blocks, progress)
        indices = [shard["index"] for shard in manifest["shards"]]
        manifest["index_files"] = {name: hash_file(out / name) for name in write_index(layout, out, indices)}
        num_padding = sum(shard["num_padding"] for shard in manifest["shards"])
        manifest["lost"] = layout.describe_loss(num_padding)
        manifest["is_complete"] = True
        write_sealed(out / _MANIFEST, manifest)
    return manifest


def read_export(folder: Place, *, verify: bool = False) -> Manifest:
    """What manifest.json says of an export: `format`, `config`, `context`, `num_blocks`, `vocab_size`, `isolate_documents`, `loss` (of
    `TokenLoss.from_json`), `lost`, and the hash of every file.

    Args:
        verify: also read every file.

    Raises:
        PHFError: there is none, it is damaged or was not finished.
    """
    path = Path(folder) / _MANIFEST
    if not path.is_file():
        raise PHFError(f"{folder} is no export: it has no {_MANIFEST}; make one with 'phf tokens export'")
    manifest = _read_manifest(path)
    if not manifest["is_complete"]:
        raise PHFError(f"{folder} is not finished; the 'phf tokens export' that began it goes on with it")
    if verify:
        files = dict(manifest["index_files"])
        for shard in manifest["shards"]:
            files |= shard["files"]
        for name, expected in files.items():
            if not _is_whole(Path(folder) / name, expected):
                raise PHFError(
                    f"{folder}/{name} is missing or damaged; the 'phf tokens export' that made it makes it again"
                )
    return manifest


def _set_epochs(data: TrainingData, epochs: float) -> TrainConfig:
    """The config with a budget of so many epochs of its active blocks."""
    if not math.isfinite(epochs):
        raise PHFError(f"--epochs {epochs:g} is no number of passes; give one such as 1")
    context, num_blocks = data.config.data.context, data.active_blocks.num_blocks
    budget = round(epochs * num_blocks * context)
    if budget < 1:
        raise PHFError(f"--epochs {epochs:g} is no token; give a larger number")
    return data.config.model_copy(update={"tokens": budget})


def _make_layout(data: TrainingData, kind: ExportFormat) -> Layout:
    tokenizer = data.tokens.tokenizer
    return Layout(
        kind=kind,
        loss=TokenLoss.of(data),
        context=data.config.data.context,
        vocab_size=tokenizer.padded_vocab_size(),
        isolated=data.config.data.isolate_documents,
    )


def _describe(data: TrainingData, layout: Layout, num_shard_blocks: int) -> Manifest:
    """The manifest before the first shard. It names no folder of this machine, and nothing that leaves the blocks alone."""
    config, corpus = data.config, data.corpus.id
    elsewhere = {"corpus", "reward_model", "tokenizer"}  # in `data`, without folders of this machine
    settings = config.model_dump(mode="json", exclude={*elsewhere, "model", "precision", "start", "good"})
    settings = {key: value for key, value in settings.items() if key not in CHANGEABLE}
    settings["optim"] = {"batch_blocks": config.optim.batch_blocks}
    if config.mix is not None:
        settings["mix"]["corpora"] = [other.corpus.id for other in data.mixed]
    num_steps = count_steps(config.tokens, config.optim.batch_blocks, layout.context)
    num_blocks = num_steps * config.optim.batch_blocks
    return {
        "kind": "export",
        "format_version": FORMAT_VERSION,
        "format": layout.kind,
        "config": settings,
        "data": {**data.provenance(), "corpus": corpus},
        "context": layout.context,
        "isolate_documents": layout.isolated,
        "num_blocks": num_blocks,
        "shard_blocks": num_shard_blocks,
        "vocab_size": layout.vocab_size,
        "token_type": layout.token_type,
        "loss": layout.loss.to_json(),
        "shards": [None] * -(-num_blocks // num_shard_blocks),
        "index_files": {},
        "lost": [],
        "is_complete": False,
    }


def _read_manifest(path: Path) -> Manifest:
    manifest = read_sealed(path, _REMEDY)
    check_version(path, manifest.get("format_version"), FORMAT_VERSION, "phf tokens export")
    if manifest.get("kind") != "export":
        raise PHFError(f"{path} belongs to no export; {_REMEDY}")
    return manifest


def _take_over(out: Path, manifest: Manifest) -> list[Any]:
    """The entries of shards that are whole, None for the others.

    Raises:
        PHFError: the folder holds an export of something else; names what differs.
    """
    found = _read_manifest(out / _MANIFEST)
    for key in ("format", "config", "data", "shard_blocks", "vocab_size", "loss"):
        if (difference := _find_difference(found[key], manifest[key], key)) is not None:
            raise PHFError(f"{out} was exported with another {difference}; {_REMEDY}, or delete it")
    return [
        shard
        if shard is not None
        and all(_is_whole(out / name, expected) for name, expected in shard["files"].items())
        else None
        for shard in found["shards"]
    ]


def _find_difference(found: Any, expected: Any, key: str) -> str | None:
    """The dotted key at which two JSON values differ first, with what is there and what was asked for."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted({*found, *expected}):
            if (below := _find_difference(found.get(name), expected.get(name), f"{key}.{name}")) is not None:
                return below
        return None
    return None if found == expected else f"{key} ({found!s:.60}, not {expected!s:.60})"


def _is_whole(path: Path, expected: str) -> bool:
    return path.is_file() and hash_file(path) == expected


def write_shards(
    out: Path,
    manifest: Manifest,
    layout: Layout,
    blocks: TrainingBlocks,
    progress: Progress | None = None,
) -> None:
    """Write the shards of a manifest that have no entry, and their entries."""
    num_blocks, size = manifest["num_blocks"], manifest["shard_blocks"]
    scratch = out / ".shard.partial"
    for shard, entry in enumerate(manifest["shards"]):
        first, stop = shard * size, min((shard + 1) * size, num_blocks)
        if entry is None:
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            scratch.mkdir()
            counted = _Counted(
                blocks, first, stop, max(1, BATCH_TOKENS // layout.context), progress, num_blocks
            )
            names = name_files(layout.kind, shard)
            index: Index = write_shard(layout, [scratch / name for name in names], stop - first, counted)
            files = {name: hash_file(scratch / name) for name in names}
            for name in names:
                (scratch / name).replace(out / name)
            scratch.rmdir()
            manifest["shards"][shard] = {
                "files": files,
                "num_blocks": stop - first,
                "num_padding": counted.num_padding,
                "index": index,
            }
            write_sealed(out / _MANIFEST, manifest)
        elif progress is not None:
            progress("exporting blocks", stop, num_blocks)


class _Counted:
    """The batches of a shard, and how many of their targets were padding."""

    def __init__(
        self, blocks: TrainingBlocks, first: int, stop: int, size: int, progress: Progress | None, total: int
    ) -> None:
        self._blocks, self._first, self._stop, self._size = blocks, first, stop, size
        self._progress, self._total = progress, total
        self.num_padding = 0

    def __iter__(self) -> Iterator[Batch]:
        for start in range(self._first, self._stop, self._size):
            rows: npt.NDArray[np.int64] = np.arange(start, min(start + self._size, self._stop))
            batch = self._blocks.rows(rows)
            self.num_padding += int(np.count_nonzero(batch.kinds == PAD))
            yield batch
            if self._progress is not None:
                self._progress("exporting blocks", int(rows[-1]) + 1, self._total)
