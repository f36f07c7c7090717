"""A corpus on disk: immutable documents in Parquet shards and the manifest that vouches for them (docs/format.md)."""

import hashlib
import json
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from phf.config.train import SegmentKind
from phf.corpus.digests import DigestSet
from phf.corpus.rows import BadRow, Row, SourceCounts, find_fault
from phf.corpus.segment import segment_ends
from phf.corpus.sources import iterate_source, name_sources
from phf.errors import PHFError
from phf.files import (
    Place,
    as_list,
    check_hash,
    explain_storage,
    find_local,
    hash_file,
    hash_json,
    read_checked,
    read_sealed,
    to_path,
    upload,
    write_sealed,
)
from phf.folders import create_folder, is_filled, refuse_difference, refuse_filled
from phf.records import FORMAT_VERSION, Document, Progress, Split

DOCUMENT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "text_hash", "source", "split")])
IMPORTED_SCHEMA = DOCUMENT_SCHEMA.append(pa.field("ends", pa.list_(pa.int32())))
"""Of documents that came with segments: where each of them ends, in code points."""
_BYTES_PER_SHARD = 64 << 20
_MAX_BAD_ROWS = 1_000_000  # after which a source without a good one is given up: it may have no end
# One row group is read, scored and held at a time: it bounds memory, and it is one worker's turn in annotate.
BYTES_PER_GROUP = 1 << 20


def write_manifest(path: Path, value: Mapping[str, object]) -> None:
    """Write a manifest atomically, with the format version and a hash of its own content."""
    write_sealed(path, {"format_version": FORMAT_VERSION, **value}, "manifest_hash")


def read_manifest(path: Path, remedy: str) -> Any:
    """Read what `write_manifest` wrote; the caller names its shape (`phf.corpus.manifests`).

    Raises:
        PHFError: it is missing, damaged (any changed value counts) or of another format version.
    """
    content = read_sealed(path, remedy, key="manifest_hash")
    if content.get("format_version") != FORMAT_VERSION:
        raise PHFError(
            f"{path} has format version {content.get('format_version')}, this phf reads {FORMAT_VERSION}; "
            "use the phf that wrote it, or make it again"
        )
    return content


def open_parquet_writer(path: Path | BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer whose bytes depend on nothing but the rows, their groups and the version of pyarrow."""
    return pq.ParquetWriter(
        path, schema, version="2.6", data_page_version="1.0", compression="zstd", compression_level=3,
        use_dictionary=["source", "split"] if "split" in schema.names else False, write_statistics=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A document shard as the manifest describes it. `file` is relative to the corpus."""

    file: str
    sha256: str
    num_documents: int
    num_characters: int
    num_bytes: int


class Corpus:
    """A corpus that was built before.

    Attributes:
        path: its folder.
        manifest: `manifest.json`, its own hash checked.
        shards: the document shards in order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.shards = [ShardEntry(**entry) for entry in manifest["shards"]]
        self._checked: set[int] = set()
        self._fetched: tuple[int, bytes] | None = None  # the shard that was last read from object storage

    @classmethod
    def open(cls, place: "Corpus | Place") -> "Corpus":
        """Open a corpus by its folder or its URL (`s3://bucket/corpus`); no shard is read yet. One that is open stays as it is.

        Raises:
            PHFError: the folder holds no corpus, or its manifest is damaged; the storage cannot be reached.
        """
        if isinstance(place, Corpus):
            return place
        path = to_path(place)
        with explain_storage(path):
            exists = (path / "manifest.json").is_file()
        if not exists:
            raise PHFError(
                f"{path} holds no corpus; make one with: phf corpus build SOURCE... -o {shlex.quote(str(path))}"
            )
        return cls(path, read_manifest(path / "manifest.json", "build the corpus again"))

    @property
    def id(self) -> str:
        """A hash that changes with any document."""
        return str(self.manifest["id"])

    @property
    def num_documents(self) -> int:
        """Documents of all splits."""
        return sum(shard.num_documents for shard in self.shards)

    def open_shard(self, index: int) -> pq.ParquetFile:
        """A shard, its SHA-256 checked once per process and Corpus; its row groups hold about 1 MB of text each.

        Raises:
            PHFError: the shard is missing or damaged.
        """
        shard = self.shards[index]
        path = self.path / shard.file
        if not isinstance(path, Path):  # a URL: fetched whole, once
            if self._fetched is None or self._fetched[0] != index:
                self._fetched = index, read_checked(path, shard.sha256, "build the corpus again")
            return pq.ParquetFile(pa.BufferReader(self._fetched[1]))
        if index not in self._checked:
            check_hash(path, shard.sha256, "build the corpus again")
            self._checked.add(index)
        return pq.ParquetFile(path)

    def read_shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard as a table: all columns of `DOCUMENT_SCHEMA`, or those named. Raises as `open_shard`."""
        with self.open_shard(index) as file:
            return file.read(columns=list(columns) if columns is not None else None)

    def read_segments(
        self, index: int, group: int, columns: Sequence[str], segments: SegmentKind
    ) -> tuple[pa.Table, list[list[int]]]:
        """The documents of a row group with some columns (`text` among them), and the ends of their segments.

        Raises:
            PHFError: `segments` is `imported` and none came with the documents, or they do not make up the texts; as
                `open_shard`.
        """
        with self.open_shard(index) as file:
            if segments != "imported":
                rows = file.read_row_group(group, columns=list(columns))
                return rows, [segment_ends(text, segments) for text in rows["text"].to_pylist()]
            if "ends" not in file.schema_arrow.names:
                raise PHFError(
                    f"{self.path} has no imported segments, only a corpus made by 'phf corpus import' has; choose "
                    "--segments lines, sentences, paragraphs or document"
                )
            rows = file.read_row_group(group, columns=[*columns, "ends"])
            texts, ends = rows["text"].to_pylist(), rows["ends"].to_pylist()
            if any(not stops or stops[-1] != len(text) for text, stops in zip(texts, ends, strict=True)):
                raise PHFError(
                    f"{self.path / self.shards[index].file} has imported segments that do not make up its texts; import "
                    "the corpus again"
                )
            return rows, ends

    def iterate_documents(self, split: Split | None = None) -> Iterator[Document]:
        """Documents in corpus order, of one split or of both."""
        for index in range(len(self.shards)):
            with self.open_shard(index) as file:
                for group in range(file.num_row_groups):
                    for row in file.read_row_group(group, columns=DOCUMENT_SCHEMA.names).to_pylist():
                        if split is None or row["split"] == split:
                            yield Document(**row)


def build_corpus(
    sources: Place | Sequence[Place],
    out: Place,
    *,
    text_field: str | None = None,
    validation_fraction: float = 0.05,
    bytes_per_shard: int = _BYTES_PER_SHARD,
    bytes_per_group: int = BYTES_PER_GROUP,
    max_documents: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Build a corpus from sources (see `iterate_source`), whole or not at all. The same input gives the same bytes, and may be built again.

    Exact duplicates are dropped by the text's hash, which alone decides the split, so that a text keeps its split
    in every corpus. Needs about 90 bytes of memory per document for the digests of texts and ids.

    Args:
        bytes_per_shard: UTF-8 bytes of text after which a shard is closed; `bytes_per_group` likewise, of a row group.
        max_documents: stop after so many documents.

    Raises:
        PHFError: a source that is unknown, damaged, yields nothing or is half bad; a value out of range; `out` holds something else.
    """
    specs = [os.fspath(source) for source in as_list(sources)]
    if not specs:
        raise PHFError("no source is given; see 'phf corpus build --help'")
    opened = [  # all mistakes before any work
        (name, iterate_source(spec, text_field, name))
        for spec, name in zip(specs, name_sources(specs), strict=True)
    ]
    return write_corpus(
        opened,
        out,
        text_field=text_field,
        validation_fraction=validation_fraction,
        bytes_per_shard=bytes_per_shard,
        bytes_per_group=bytes_per_group,
        max_documents=max_documents,
        remedy="leave out what is no document, or name the field that holds the text with --text-field",
        progress=progress,
    )


def write_corpus(
    opened: Sequence[tuple[str, Iterator[Row | BadRow]]],
    out: Place,
    *,
    text_field: str | None = None,
    validation_fraction: float = 0.05,
    bytes_per_shard: int = _BYTES_PER_SHARD,
    bytes_per_group: int = BYTES_PER_GROUP,
    imported_ends: bool = False,
    provenance: Sequence[pa.Field] = (),
    max_documents: int | None = None,
    remedy: str | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """As `build_corpus`, from rows: pairs of a source's name, for the manifest, and its rows.

    Args:
        imported_ends: keep each row's `ends`: the segments `imported` of the new corpus.
        provenance: columns that documents have beside the usual ones, from each row's `provenance`.
        remedy: what to do about a source that is empty or half bad, which is then an error.
    """
    out = to_path(out)
    if not 0 <= validation_fraction < 1:
        raise PHFError(f"validation_fraction {validation_fraction} must be at least 0 and below 1")
    if max_documents is not None and max_documents < 1:
        raise PHFError(f"max_documents {max_documents} must be at least 1")
    settings = {
        "text_field": text_field,
        "validation_fraction": validation_fraction,
        "max_documents": max_documents,
    }
    with _create_place(out, lambda: is_built_with(out, len(opened), settings)) as folder:
        (folder / "documents").mkdir()
        schema = pa.schema([*(IMPORTED_SCHEMA if imported_ends else DOCUMENT_SCHEMA), *provenance])
        builder = _Builder(
            folder, validation_fraction, bytes_per_shard, bytes_per_group, schema, max_documents, progress
        )
        for spec, rows in opened:
            builder.add_source(spec, rows, remedy)
        builder.finish(text_field)
    return Corpus.open(out)


def is_built_with(out: Path, num_sources: int, settings: Mapping[str, object]) -> bool:
    """Whether a corpus was built with some settings, so that it may be the one that the same command made before."""
    try:
        manifest = Corpus.open(out).manifest
    except PHFError:
        return False
    return len(manifest["sources"]) == num_sources and settings.items() <= manifest.items()


@contextmanager
def _create_place(out: Path, is_own: Callable[[], bool]) -> Iterator[Path]:
    """The folder to build a corpus in. What goes to object storage is built on the local disk, then copied: its manifest last,
    which makes it a corpus there.
    """
    if (local := find_local(out)) is not None:
        with create_folder(local, "building", is_own=is_own) as folder:
            yield folder
        return
    if not is_own():
        refuse_filled(out)  # before any work
    with tempfile.TemporaryDirectory(prefix="phf-") as temporary:
        built = Path(temporary)
        yield built
        if is_filled(out):
            refuse_difference(built, out)
            return
        files = [path for path in sorted(built.rglob("*")) if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "manifest.json"):
            upload(path, out / path.relative_to(built).as_posix())


def _no_sizes() -> Counter[str]:
    return Counter(documents=0, characters=0, bytes=0)


@dataclass
class _Builder:
    """Writes documents to shards as they come and keeps the counts for the manifest."""

    folder: Path
    validation_fraction: float
    bytes_per_shard: int
    bytes_per_group: int
    schema: pa.Schema
    max_documents: int | None
    progress: Progress | None
    sources: list[SourceCounts] = field(default_factory=list)
    shards: list[ShardEntry] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {"train": _no_sizes(), "validation": _no_sizes()}
    )
    texts: DigestSet = field(default_factory=DigestSet)
    ids: DigestSet = field(default_factory=DigestSet)
    bad_rows: list[str] = field(default_factory=list)
    num_documents: int = 0
    writer: pq.ParquetWriter | None = None
    group: list[dict[str, object]] = field(default_factory=list)
    group_bytes: int = 0
    shard_counts: Counter[str] = field(default_factory=_no_sizes)

    def add_source(self, spec: str, rows: Iterator[Row | BadRow], remedy: str | None) -> None:
        source = SourceCounts(spec)
        self.sources.append(source)
        for row in rows:
            if self.max_documents is not None and self.num_documents >= self.max_documents:
                break
            if isinstance(row, BadRow):
                self._add_bad_row(source, row)
            else:
                source.num_rows += 1
                self._add_row(source, row)
            if source.num_bad_rows == _MAX_BAD_ROWS == source.num_rows:
                break
        num_good = source.num_rows - source.num_bad_rows
        if remedy is not None and (fault := find_fault(num_good, source.bad_row_reasons)) is not None:
            first = next((f", the first at {row['place']}" for row in source.first_bad_rows), "")
            raise PHFError(
                f"source '{spec}' {fault}{first}; {remedy if first else 'give one that holds text'}"
            )

    def _add_bad_row(self, source: SourceCounts, row: BadRow) -> None:
        source.add(row)
        entry = {"source": source.spec, "place": row.place, "reason": row.reason}
        self.bad_rows.append(json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n")
        if len(self.bad_rows) == 1000:  # to open the file now and then
            self._write_bad_rows()

    def _write_bad_rows(self) -> None:
        with (self.folder / "bad_rows.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(self.bad_rows)
        self.bad_rows.clear()

    def _add_row(self, source: SourceCounts, row: Row) -> None:
        data = row.text.encode()
        digest = hashlib.sha256(data)
        if not self.texts.add(digest.digest()):
            source.num_duplicates += 1
            return
        source.num_documents += 1
        self.num_documents += 1
        # The text's hash as a number in [0, 1).
        fraction = int.from_bytes(digest.digest()[-6:], "big") / 2**48
        split = "validation" if fraction < self.validation_fraction else "train"
        document: dict[str, object] = {
            "id": self._choose_id(source, row),
            "text": row.text,
            "text_hash": digest.hexdigest(),
            "source": source.spec,
            "split": split,
            "ends": row.ends,  # stored in an imported corpus alone
            **(row.provenance or {}),
        }
        sizes = {"documents": 1, "characters": len(row.text), "bytes": len(data)}
        self.counts[split].update(sizes)
        self._write(document, sizes)
        if self.progress and self.num_documents % 1000 == 0:
            self.progress("reading documents", self.num_documents, self.max_documents or 0)

    def _choose_id(self, source: SourceCounts, row: Row) -> str:
        """The row's own id if it can be used and no document has it yet, else its place."""
        for candidate in (row.own_id, row.place):
            if candidate is None:
                continue
            if candidate and self.ids.add(hashlib.sha256(candidate.encode()).digest()):
                return candidate
            if candidate == row.own_id:
                source.num_replaced_ids += 1
        raise PHFError(
            f"two documents would have the id '{row.place}'; rename the ids in the source that look like places"
        )

    def _write(self, document: dict[str, object], sizes: dict[str, int]) -> None:
        self.group.append(document)
        self.group_bytes += sizes["bytes"]
        self.shard_counts.update(sizes)
        if self.group_bytes >= self.bytes_per_group:
            self._write_group()
        if self.shard_counts["bytes"] >= self.bytes_per_shard:
            self._close_shard()

    @property
    def _shard_file(self) -> str:
        return f"documents/{len(self.shards):05d}.parquet"

    def _write_group(self) -> None:
        if self.writer is None:
            self.writer = open_parquet_writer(self.folder / self._shard_file, self.schema)
        self.writer.write_table(pa.Table.from_pylist(self.group, schema=self.schema))
        self.group.clear()
        self.group_bytes = 0

    def _close_shard(self) -> None:
        if self.group:
            self._write_group()
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        sizes = {f"num_{name}": count for name, count in self.shard_counts.items()}
        self.shards.append(ShardEntry(self._shard_file, hash_file(self.folder / self._shard_file), **sizes))
        self.shard_counts = _no_sizes()

    def finish(self, text_field: str | None) -> None:
        """Close the last shard and write the manifest, which makes the folder a corpus."""
        self._close_shard()
        if self.bad_rows:
            self._write_bad_rows()
        manifest = {
            "kind": "corpus",
            "id": hash_json([shard.sha256 for shard in self.shards])[:16],
            "sources": [asdict(source) for source in self.sources],
            "text_field": text_field,
            "validation_fraction": self.validation_fraction,
            "max_documents": self.max_documents,
            "counts": self.counts,
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_manifest(self.folder / "manifest.json", manifest)
        if self.progress:
            self.progress("reading documents", self.num_documents, self.num_documents)
