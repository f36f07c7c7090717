"""The blocks that a run would read, written for another engine: `phf tokens export`."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.annotate.ray_pool import RayPool, WriteShard
from phf.config.train import TrainConfig, parse
from phf.errors import PHFError
from phf.files import Place, hash_file, hash_json, read_sealed, write_sealed
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
    ray: RayPool | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the training blocks of a run in the order in which `phf train` reads them, or go on with what was begun.

    The same config gives the same bytes, here and on Ray. A shard's files appear whole, its entry in manifest.json after
    them; a shard whose files are not those of its entry is written again.

    Args:
        out: the folder to make.
        epochs: so many passes over what the objective keeps, instead of the config's `tokens`.
        shard_tokens: inputs in a shard, rounded to whole blocks; None: `SHARD_TOKENS`.
        ray: write shards there, not in this process; all its machines must see the corpus and `out` at the same paths.

    Returns:
        the manifest (`read_export`); its `lost` says what the engine's own loss does not see.

    Raises:
        PHFError: `out` holds something else, or an export of another config; the format cannot hold the objective; see also
            `open_data`.
    """
    data = open_data(config, to_train=True)
    if epochs is not None:
        data = replace(data, config=_set_epochs(data, epochs))
    shards = _plan(data, out, kind, SHARD_TOKENS if shard_tokens is None else shard_tokens)
    shards.layout.check()
    manifest = shards.manifest
    if not (out / _MANIFEST).exists() and is_filled(out):
        others = [path.name for path in out.iterdir() if path.name != LOCK_FILE]
        raise PHFError(f"{out} holds {sorted(others)[0]} and no export; {_REMEDY}")
    with lock_folder(out, "exporting to"):
        if (out / _MANIFEST).exists():
            manifest["shards"] = _take_over(out, manifest)
        else:
            write_sealed(out / _MANIFEST, manifest)
        data.tokens.tokenizer.save(out / "tokenizer")
        _remove_left_overs(out)
        if ray is None:
            shards.write(progress)
        elif shards.pending:
            _write_with_ray(ray, data.config, shards, progress)
            _remove_left_overs(out)
        indices = [shard["index"] for shard in manifest["shards"]]
        names = write_index(shards.layout, out, indices)
        manifest["index_files"] = {name: hash_file(out / name) for name in names}
        num_padding = sum(shard["num_padding"] for shard in manifest["shards"])
        manifest["lost"] = shards.layout.describe_loss(num_padding)
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


def _remove_left_overs(out: Path) -> None:
    """Remove what killed processes have left half-written; the caller holds the folder."""
    for folder in out.glob(".*.partial"):
        shutil.rmtree(folder)


def _set_epochs(data: TrainingData, epochs: float) -> TrainConfig:
    """The config with a budget of so many epochs of its active blocks."""
    if not math.isfinite(epochs):
        raise PHFError(f"--epochs {epochs:g} is no number of passes; give one such as 1")
    context, num_blocks = data.config.data.context, data.active_blocks.num_blocks
    budget = round(epochs * num_blocks * context)
    if budget < 1:
        raise PHFError(f"--epochs {epochs:g} is no token; give a larger number")
    return data.config.model_copy(update={"tokens": budget})


def _plan(data: TrainingData, out: Path, kind: ExportFormat, shard_tokens: int) -> "Shards":
    """The shards of the training blocks, none of them written."""
    layout = Layout(
        kind=kind,
        loss=TokenLoss.of(data),
        context=data.config.data.context,
        vocab_size=data.tokens.tokenizer.padded_vocab_size(),
        isolated=data.config.data.isolate_documents,
    )
    manifest = _describe(data, layout, max(1, shard_tokens // layout.context))
    return Shards(out, manifest, layout, data.training_blocks())


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


@dataclass
class Shards:
    """The shards of an export: each a function of the blocks and its number.

    Attributes:
        out: the folder.
        manifest: what they are; an entry is None until its shard is written.
    """

    out: Path
    manifest: Manifest
    layout: Layout
    blocks: TrainingBlocks

    @property
    def pending(self) -> list[int]:
        """The shards that have no entry."""
        return [shard for shard, entry in enumerate(self.manifest["shards"]) if entry is None]

    def bounds(self, shard: int) -> tuple[int, int]:
        """The first block of a shard, and the one behind its last."""
        size = self.manifest["shard_blocks"]
        return shard * size, min((shard + 1) * size, self.manifest["num_blocks"])

    def write(self, progress: Progress | None = None) -> None:
        """Write the shards that have no entry, and their entries."""
        for shard in self.pending:
            self.add_entry(shard, self.write_shard(shard, progress))

    def add_entry(self, shard: int, entry: Manifest) -> None:
        """Record a shard whose files lie in their place."""
        self.manifest["shards"][shard] = entry
        write_sealed(self.out / _MANIFEST, self.manifest)

    def write_shard(self, shard: int, progress: Progress | None = None) -> Manifest:
        """Write the files of a shard, each whole; gives its entry."""
        first, stop = self.bounds(shard)
        size = max(1, BATCH_TOKENS // self.layout.context)
        counted = _Counted(self.blocks, first, stop, size, progress, self.manifest["num_blocks"])
        names = name_files(self.layout.kind, shard)
        with tempfile.TemporaryDirectory(prefix=".shard-", suffix=".partial", dir=self.out) as folder:
            scratch = Path(folder)
            index: Index = write_shard(self.layout, [scratch / name for name in names], stop - first, counted)
            files = {name: hash_file(scratch / name) for name in names}
            for name in names:
                (scratch / name).replace(self.out / name)
        return {
            "files": files,
            "num_blocks": stop - first,
            "num_padding": counted.num_padding,
            "index": index,
        }


def _write_with_ray(pool: RayPool, config: TrainConfig, shards: Shards, progress: Progress | None) -> None:
    """Write the shards that have no entry by a pool of Ray actors."""
    manifest = shards.manifest
    # Workers may have another current folder.
    paths: dict[str, object] = {"corpus": str(Path(config.corpus).absolute())}
    if config.mix is not None:
        corpora = [str(Path(place).absolute()) for place in config.mix.corpora]
        paths["mix"] = config.mix.model_copy(update={"corpora": corpora})
    work = _Work(
        config.model_copy(update=paths).model_dump(mode="json"),
        str(shards.out.absolute()),
        manifest["format"],
        manifest["shard_blocks"],
        _hash_plan(manifest),
    )
    num_done = manifest["num_blocks"] - sum(
        stop - first for first, stop in map(shards.bounds, shards.pending)
    )
    written = pool.map(_open_writer, [work], shards.pending)
    with closing(written):
        for shard, entry in written:
            shards.add_entry(shard, entry)
            num_done += entry["num_blocks"]
            if progress is not None:
                progress("exporting blocks", num_done, manifest["num_blocks"])


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker elsewhere needs to write the same shards; `plan` is `_hash_plan`."""

    config: dict[str, Any]
    out: str
    kind: ExportFormat
    shard_blocks: int
    plan: str


def _open_writer(work: _Work) -> WriteShard:
    """In a worker."""
    data = open_data(parse(TrainConfig, work.config, "the config of the export"), to_train=True)
    shards = _plan(data, Path(work.out), work.kind, work.shard_blocks * data.config.data.context)
    if _hash_plan(shards.manifest) != work.plan:
        raise PHFError(
            f"{data.corpus.path} gives other blocks to this worker; all must see the same files, and have the same phf"
        )
    return shards.write_shard


def _hash_plan(manifest: Manifest) -> str:
    """Equal for two processes that would write the same shards."""
    return hash_json({key: item for key, item in manifest.items() if key != "shards"})


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
