"""Writing an annotation: shards that appear whole, each marked as done by its manifest entry (docs/format.md)."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from phf.annotate.annotation import ANNOTATION_SCHEMA, annotation_folder, read_annotation_manifest
from phf.config.train import SegmentKind
from phf.corpus.manifests import AnnotationManifest, AnnotationShard
from phf.corpus.segment import hash_segment_ends, segmentation_identity
from phf.corpus.store import Corpus, open_parquet_writer, write_manifest
from phf.errors import PHFError
from phf.files import find_local, hash_file, hash_json, replace_atomically
from phf.folders import lock_folder
from phf.records import Identity

# The manifest is written again after a shard, unless that took more than this share of the time: it grows with the
# corpus, and after each of 160,000 shards (10 TB) it would cost terabytes of writing.
_MANIFEST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class ScoredDocuments:
    """Consecutive documents of a shard with their scores: a row group of the sidecar.

    Attributes:
        table: rows of `ANNOTATION_SCHEMA`; see `make_annotation_table`.
        reasons: how many segments have no score, for each reason.
    """

    table: pa.Table
    reasons: dict[str, int]

    @property
    def num_segments(self) -> int:
        """Of all documents."""
        return len(self.table["ends"].combine_chunks().flatten())


def make_annotation_table(
    ids: pa.Array | pa.ChunkedArray,
    text_hashes: pa.Array | pa.ChunkedArray,
    num_segments: npt.NDArray[np.integer],
    ends: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
) -> pa.Table:
    """Rows of an annotation.

    Args:
        ids, text_hashes: strings [num_documents].
        num_segments: segments of each document [num_documents].
        ends: code points, restarting with each document [num_segments.sum()].
        scores: higher = worse, NaN = unscored [num_segments.sum()].
    """
    offsets = pa.array(np.concatenate([[0], np.cumsum(num_segments)]).astype(np.int32))
    return pa.Table.from_arrays(
        [
            ids,
            text_hashes,
            pa.ListArray.from_arrays(offsets, pa.array(ends.astype(np.int32, copy=False))),
            pa.ListArray.from_arrays(offsets, pa.array(scores.astype(np.float32, copy=False))),
        ],
        schema=ANNOTATION_SCHEMA,
    )


def count_reasons(scores: Iterable[float]) -> dict[str, int]:
    """How many of some scores are NaN, for each reason that an `Unscored` gives."""
    return dict(
        Counter(str(getattr(score, "reason", "no reason given")) for score in scores if math.isnan(score))
    )


def write_annotation_shard(
    file: Path, input_sha256: str, scored: Iterable[ScoredDocuments]
) -> AnnotationShard:
    """Write one shard of an annotation, whole or not at all.

    Args:
        file: where; an existing file is replaced.
        input_sha256: of the document shard.
        scored: all documents of the shard, in order.

    Returns:
        Its manifest entry.
    """
    num_segments, ends, reasons = [np.empty(0, np.int64)], [np.empty(0, np.int32)], Counter[str]()
    with replace_atomically(file) as temporary:
        with open_parquet_writer(temporary, ANNOTATION_SCHEMA) as writer:
            for documents in scored:
                writer.write_table(documents.table)
                column = documents.table["ends"].combine_chunks()
                num_segments.append(column.value_lengths().to_numpy())
                ends.append(column.flatten().to_numpy())
                reasons.update(documents.reasons)
        sha256 = hash_file(temporary)
    counts, all_ends = np.concatenate(num_segments), np.concatenate(ends)
    return {
        "file": file.name,
        "sha256": sha256,
        "input_sha256": input_sha256,
        "num_documents": len(counts),
        "num_segments": len(all_ends),
        "num_unscored": sum(reasons.values()),
        "reasons": dict(reasons),
        "segment_ends_hash": hash_segment_ends(counts, all_ends),
    }


class AnnotationWriter:
    """An annotation that is being written; see `write_annotation`.

    Attributes:
        corpus: what is scored.
        path: the annotation's folder.
        pending: indices of the shards that were not done when it was opened, ascending.
        num_segments: segments of the shards that were added since.
    """

    def __init__(
        self, corpus: Corpus, path: Path, manifest: AnnotationManifest, stored: AnnotationManifest | None
    ) -> None:
        self.corpus = corpus
        self.path = path
        self.pending = [index for index, entry in enumerate(manifest["shards"]) if entry is None]
        self.num_segments = 0
        self._manifest = manifest
        # The manifest that is on disk, as `write_state` makes it.
        self._stored: dict[str, object] | None = stored and {
            key: item for key, item in stored.items() if key != "format_version"
        }
        self._next_write = 0.0

    def write_shard(self, index: int, scored: Iterable[ScoredDocuments]) -> None:
        """Write a shard and its entry."""
        file, sha256 = self.path / f"{index:05d}.parquet", self.corpus.shards[index].sha256
        self.add_entry(index, write_annotation_shard(file, sha256, scored))

    def add_entry(self, index: int, entry: AnnotationShard) -> None:
        """Record a shard that lies in its place, as `write_annotation_shard` described it."""
        self._manifest["shards"][index] = entry
        self.num_segments += entry["num_segments"]
        if monotonic() >= self._next_write:
            self.write_state()

    def write_state(self) -> None:
        """Write the manifest, unless it is there; it is complete when every shard has an entry."""
        start = monotonic()
        entries = list(self._manifest["shards"])
        complete = all(entry is not None for entry in entries)
        hashes = [entry["segment_ends_hash"] for entry in entries if entry is not None]
        content = {
            **self._manifest,
            "shards": entries,
            "complete": complete,
            "segment_ends_hash": hash_json(hashes) if complete else None,
        }
        if content == self._stored:
            return
        write_manifest(self.path / "manifest.json", content)
        self._stored = content
        if len(entries) > 1000:
            self._next_write = monotonic() + (monotonic() - start) / _MANIFEST_SHARE


@contextmanager
def write_annotation(
    corpus: Corpus,
    *,
    identity: Identity,
    spec: str,
    unit: str,
    segments: SegmentKind,
    components: Sequence[dict[str, object]] = (),
    verify: bool = False,
    wait: bool = False,
) -> Iterator[AnnotationWriter]:
    """Hold the folder of an annotation, find what an earlier process has done, and write what is added.

    Args:
        identity, spec: the reward model, and how the user named it.
        unit: what a score counts.
        segments: what gets one score.
        components: of a combination: `weight`, `reward_model` (identity) and `annotation` (slug) of each.
        verify: check the bytes of what was done before; by default only that the files are there.
        wait: for another process that writes the same annotation, instead of an error.

    Raises:
        PHFError: another process writes it; the manifest of an earlier one is damaged; the disk is full or read-only.
    """
    path = annotation_folder(corpus, identity, segments)
    with _explain_disk(path):
        path.mkdir(parents=True, exist_ok=True)  # also in object storage
    with _explain_disk(path), lock_folder(path, "writing", wait=wait):
        stored = read_annotation_manifest(path) if (path / "manifest.json").exists() else None
        manifest: AnnotationManifest = {
            "kind": "annotation",
            "reward_model": identity.to_json(),
            "reward_model_spec": spec,
            "unit": unit,
            "segments": segments,
            "segmentation": segmentation_identity(segments),
            "shards": _find_done(corpus, path, stored, verify),
        }
        if components:
            manifest["components"] = list(components)
        writer = AnnotationWriter(corpus, path, manifest, stored)
        writer.write_state()
        try:
            yield writer
        finally:
            writer.write_state()
            _remove_left_overs(path)


@contextmanager
def _explain_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PHFError(
            f"{path}: {error.strerror or error}; what is done is kept: check the space on the disk and the permissions, "
            "then run the same command again"
        ) from error


def _remove_left_overs(path: Path) -> None:
    """Remove what a failure has left half-written; the caller holds the folder."""
    if local := find_local(path):
        for file in local.glob(".*.tmp"):
            file.unlink()


def _find_done(
    corpus: Corpus, path: Path, stored: AnnotationManifest | None, verify: bool
) -> list[AnnotationShard | None]:
    """For each shard the entry of an earlier process, if it still holds."""
    if stored is None or len(stored["shards"]) != len(corpus.shards):
        return [None] * len(corpus.shards)
    files = {file.name for file in path.iterdir()}
    return [
        entry
        if entry is not None
        and entry["input_sha256"] == shard.sha256
        and entry["file"] in files
        and (not verify or hash_file(path / entry["file"]) == entry["sha256"])
        else None
        for entry, shard in zip(stored["shards"], corpus.shards, strict=True)
    ]
