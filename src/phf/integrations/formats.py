"""The files of exported blocks, format by format, each as its engine reads it (docs/own_trainer.md).

`datasets` and `mds` hold rows of columns. The others hold the tokens of each block and the target of its last input, T + 1 in all,
one block after the other: what an engine reads T + 1 at a time gives it the blocks again. Formats were read from the source of
datasets 5.2, ai2-olmo-core 3.0, megatron-core 0.16, litdata 0.2.76 and mosaicml-streaming 0.13.
"""

import json
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from phf.curate.exchange_export import find_datasets, write_datasets_manifest
from phf.errors import PHFError
from phf.files import write_json
from phf.integrations.columns import Columns, make_columns, make_labels, make_loss_weights, make_tokens
from phf.integrations.loss import TokenLoss
from phf.records import Batch

ExportFormat = Literal["datasets", "olmo", "megatron", "litdata", "mds"]

_MEGATRON_TYPES = {"<i4": 4, "<u2": 8}
"""Codes of the types in a Megatron index."""
_LITDATA_INT32 = "no_header_tensor:16"

Index = dict[str, Any]
"""What the index of a whole export says of one shard, in its engine's own words."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides an export's bytes, beside its blocks.

    Attributes:
        loss: the objective's.
        context: inputs in a block.
        vocab_size: ids there are, which decides the type of token files.
        isolated: whether documents of a block must not see each other.
    """

    kind: ExportFormat
    loss: TokenLoss
    context: int
    vocab_size: int
    isolated: bool

    @property
    def holds_rows(self) -> bool:
        """Whether a row has columns beside its tokens."""
        return self.kind in ("datasets", "mds")

    @property
    def has_weights(self) -> bool:
        """Whether the loss is the NLL times a number that is known now."""
        return self.loss.objective.loss_reads != "scores"

    @property
    def token_type(self) -> str:
        """The type of ids in token files, little-endian."""
        if self.kind == "olmo":
            return "<u2" if self.vocab_size <= 1 << 16 else "<u4"
        # Megatron's own rule; the others have no unsigned type that torch computes with.
        return "<u2" if self.kind == "megatron" and self.vocab_size < 65_500 else "<i4"

    def check(self) -> None:
        """Refuse an objective that another one would be made of.

        Raises:
            PHFError: the format cannot hold what its loss reads; or a package that writes it is not installed.
        """
        reads, kind = self.loss.objective.loss_reads, self.loss.objective.config.kind
        if self.kind == "datasets":
            find_datasets()
        if self.holds_rows or reads == "nothing" or (self.kind == "olmo" and reads == "mask"):
            return
        what = {
            "mask": "which tokens are not learned",
            "weight": "weights",
            "inputs": "what is added to the inputs",
            "scores": "scores",
        }[reads]
        others = "datasets, mds or olmo" if reads == "mask" else "datasets or mds"
        raise PHFError(
            f"format {self.kind} holds tokens and not {what}, and objective.kind={kind} without them is MLE; give --format {others}"
        )

    def describe_loss(self, num_padding: int) -> list[str]:
        """Lines for the user: what an engine loses that reads this with its own loss.

        Args:
            num_padding: targets of the export that are padding.
        """
        lines, kind = [], self.loss.objective.config.kind
        if self.isolated and not self.holds_rows:
            lines.append(
                f"isolation is lost: {self.kind} holds no positions, so documents of a block see each other; engines that begin a "
                "document anew do so one token later, after <|endoftext|>"
            )
        if num_padding and not self.holds_rows and self.kind != "olmo":
            lines.append(
                f"padding is learned: {num_padding:,} targets behind the last text of an epoch are <|endoftext|>"
            )
        if self.holds_rows and self.loss.objective.loss_reads in ("weight", "inputs"):
            lines.append(
                f"an engine that reads the tokens alone trains MLE and not {kind}: its loss must read "
                f"{'loss_weights' if self.loss.objective.loss_reads == 'weight' else 'segment_labels and scores'}, or be "
                "phf.integrations'"
            )
        if not self.has_weights:
            lines.append(
                f"{kind} has no static weights, so there are no loss_weights and no labels: its loss reads scores and kinds "
                "(phf.integrations.loss.TokenLoss)"
            )
        return lines


def name_files(kind: ExportFormat, shard: int) -> list[str]:
    """The files of a shard."""
    number = f"{shard:05d}"
    match kind:
        case "datasets":
            return [f"data-{number}.arrow"]
        case "olmo":
            return [f"{number}.npy", f"{number}.label_mask.npy"]
        case "megatron":
            return [f"{number}.bin", f"{number}.idx"]
        case "litdata":
            return [f"chunk-0-{shard}.bin"]
        case "mds":
            return [f"shard.{number}.mds"]
        case _:
            assert_never(kind)


def write_shard(layout: Layout, paths: list[Path], num_blocks: int, batches: Iterable[Batch]) -> Index:
    """Write the blocks of one shard to the files of `name_files`."""
    match layout.kind:
        case "datasets":
            return _write_arrow(layout, paths[0], batches)
        case "mds":
            return _write_mds(layout, paths[0], num_blocks, batches)
        case "litdata":
            return _write_litdata(layout, paths[0], num_blocks, batches)
        case "megatron":
            with paths[0].open("wb") as file:
                _write_tokens(layout, file, batches)
            _write_megatron_index(layout, paths[1], num_blocks)
            return {}
        case "olmo":
            return _write_olmo(layout, paths, batches)
        case _:
            assert_never(layout.kind)


def write_index(layout: Layout, folder: Path, shards: list[Index]) -> list[str]:
    """Write what names all shards, where the engine wants that; gives the names of the files."""
    match layout.kind:
        case "datasets":
            write_datasets_manifest(folder, _arrow_schema(layout))
            return ["dataset_info.json", "state.json"]
        case "mds":
            write_json(folder / "index.json", {"version": 2, "shards": shards})
            return ["index.json"]
        case "litdata":
            write_json(folder / "index.json", {"chunks": shards, "config": _litdata_config()})
            return ["index.json"]
        case "olmo" | "megatron":
            return []
        case _:
            assert_never(layout.kind)


def make_rows(layout: Layout, batch: Batch) -> Columns:
    """The columns of a row format."""
    columns = make_columns(batch)
    if layout.has_weights:
        weights = make_loss_weights(layout.loss, batch)
        columns["loss_weights"] = weights
        columns["labels"] = make_labels(batch, weights)
    return columns


def _arrow_schema(layout: Layout) -> pa.Schema:
    lists = {
        "input_ids": pa.int32(),
        "position_ids": pa.int32(),
        "targets": pa.int32(),
        "scores": pa.float32(),
        "kinds": pa.uint8(),
        "segment_labels": pa.uint8(),
        **({"loss_weights": pa.float32(), "labels": pa.int32()} if layout.has_weights else {}),
    }
    fields = [(name, pa.list_(kind)) for name, kind in lists.items()]
    return pa.schema([*fields, ("is_active", pa.bool_())])


def _write_arrow(layout: Layout, path: Path, batches: Iterable[Batch]) -> Index:
    schema = _arrow_schema(layout)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            columns = make_rows(layout, batch)
            offsets = pa.array(np.arange(len(batch.ids) + 1, dtype=np.int32) * layout.context)
            arrays = [
                pa.array(columns[name])
                if columns[name].ndim == 1
                else pa.ListArray.from_arrays(offsets, pa.array(columns[name].reshape(-1)))
                for name in schema.names
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return {}


def _write_tokens(layout: Layout, file: Any, batches: Iterable[Batch]) -> None:
    for batch in batches:
        file.write(make_tokens(batch).astype(layout.token_type).tobytes())


def _write_olmo(layout: Layout, paths: list[Path], batches: Iterable[Batch]) -> Index:
    """Raw ids, without numpy's header in spite of the name, and a byte for each that says whether it is learned."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for batch in batches:
            _write_tokens(layout, files[0], [batch])
            # A token's own place: OLMo-core shifts ids and mask alike. The first of a block is nobody's target.
            is_learned = np.zeros((len(batch.ids), layout.context + 1), np.bool_)
            is_learned[:, 1:] = make_loss_weights(layout.loss, batch) != 0
            files[1].write(is_learned.tobytes())
    return {}


def _write_megatron_index(layout: Layout, path: Path, num_blocks: int) -> None:
    """Each block is a sequence and a document of its own."""
    width, size = layout.context + 1, np.dtype(layout.token_type).itemsize
    with path.open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, _MEGATRON_TYPES[layout.token_type]))
        file.write(struct.pack("<QQ", num_blocks, num_blocks + 1))
        file.write(np.full(num_blocks, width, "<i4").tobytes())
        file.write((np.arange(num_blocks, dtype="<i8") * width * size).tobytes())
        file.write(np.arange(num_blocks + 1, dtype="<i8").tobytes())


def _write_litdata(layout: Layout, path: Path, num_blocks: int, batches: Iterable[Batch]) -> Index:
    """A chunk of one item: `TokensLoader` counts tokens and not items."""
    num_tokens = num_blocks * (layout.context + 1)
    num_bytes, header = num_tokens * 4, 12
    if header + num_bytes >= 1 << 32:
        raise PHFError(
            f"a chunk of {num_tokens:,} tokens is too large for litdata; give fewer --shard-tokens"
        )
    with path.open("wb") as file:
        file.write(np.array([1, header, header + num_bytes], "<u4").tobytes())
        _write_tokens(layout, file, batches)
    return {
        "chunk_bytes": header + num_bytes,
        "chunk_size": 1,
        "dim": num_tokens,
        "filename": path.name,
    }


def _litdata_config() -> Index:
    return {
        "chunk_bytes": None,
        "chunk_size": None,
        "compression": None,
        "data_format": [_LITDATA_INT32],
        "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
        "encryption": None,
        "item_loader": "TokensLoader",
    }


def _mds_columns(layout: Layout) -> dict[str, tuple[str, int]]:
    """Type and numbers of each column, in the order of the records: that of the names."""
    context = layout.context
    columns = {
        "tokens": ("int32", context + 1),
        "position_ids": ("int32", context),
        "scores": ("float32", context),
        "kinds": ("uint8", context),
        "segment_labels": ("uint8", context),
        "is_active": ("uint8", 1),
        **({"loss_weights": ("float32", context)} if layout.has_weights else {}),
    }
    return dict(sorted(columns.items()))


def _write_mds(layout: Layout, path: Path, num_blocks: int, batches: Iterable[Batch]) -> Index:
    """Records of one size: the number of them, their offsets, the shard's own description, then one after the other."""
    columns = _mds_columns(layout)
    record = np.dtype(
        [(name, f"<{np.dtype(kind).str[1:]}", (count,)) for name, (kind, count) in columns.items()]
    )
    settings = {
        "column_encodings": [f"ndarray:{kind}:{count}" for kind, count in columns.values()],
        "column_names": list(columns),
        "column_sizes": [np.dtype(kind).itemsize * count for kind, count in columns.values()],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": 2,
    }
    description = json.dumps(settings, sort_keys=True).encode()
    first = 4 + 4 * (num_blocks + 1) + len(description)
    num_bytes = first + num_blocks * record.itemsize
    if num_bytes >= 1 << 32:
        raise PHFError(f"a shard of {num_bytes:,} bytes is too large for MDS; give fewer --shard-tokens")
    with path.open("wb") as file:
        file.write(np.uint32(num_blocks).tobytes())
        file.write((first + np.arange(num_blocks + 1) * record.itemsize).astype("<u4").tobytes())
        file.write(description)
        for batch in batches:
            file.write(_make_records(layout, record, batch).tobytes())
    raw = {"basename": path.name, "bytes": num_bytes, "hashes": {}}
    return {**settings, "samples": num_blocks, "raw_data": raw, "zip_data": None}


def _make_records(layout: Layout, record: np.dtype[Any], batch: Batch) -> npt.NDArray[Any]:
    rows = make_rows(layout, batch)
    rows["tokens"] = make_tokens(batch)
    rows["is_active"] = batch.is_active[:, None]
    records = np.empty(len(batch.ids), record)
    for name in record.names or ():
        records[name] = rows[name]
    return records
