"""Scores beside the tokens, shard by shard: what training reads of an annotation that does not fit into memory.

tokens/<tokenizer>@<id>/scores/<reward model>@<id>/00000.scores  float32 [num_segments], NaN = unscored; manifest.json
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation import Annotation, find_unscored_documents, iterate_scores, refuse_unscored
from phf.errors import PHFError
from phf.files import check_hash, hash_bytes, hash_json, read_sealed, write_bytes, write_sealed
from phf.records import Progress, Split
from phf.tokens.tokens import TokenCache

_VERSION = 1


@dataclass(frozen=True)
class ShardScores:
    """The scores of a corpus as raw arrays, one a shard.

    Attributes:
        folder: where they lie.
        record: the manifest: what they were copied from, the SHA-256 of each file and of all scores in one.
    """

    folder: Path
    record: dict[str, Any]
    _checked: set[int] = field(default_factory=set)

    @property
    def sha256(self) -> str:
        """Of the bytes of all scores, in corpus order."""
        return str(self.record["scores_sha256"])

    @property
    def num_unscored_documents(self) -> int:
        """Documents that no objective uses because a segment of theirs is unscored."""
        return int(sum(self.record["unscored_documents"].values()))

    def read(self, shard: int) -> npt.NDArray[np.float32]:
        """A shard's scores, memory-mapped; its SHA-256 is checked when it is first read.

        Raises:
            PHFError: the file is missing or damaged.
        """
        path = self.folder / f"{shard:05d}.scores"
        if shard not in self._checked:
            check_hash(path, self.record["files"][shard], f"delete {self.folder} and start again")
            self._checked.add(shard)
        if path.stat().st_size == 0:  # cannot be mapped
            return np.empty(0, np.float32)
        return np.memmap(path, "<f4", mode="r")

    def join(self, shards: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The scores of some shards, one after the other."""
        return np.concatenate([np.empty(0, np.float32), *map(self.read, shards.tolist())])

    def keep(self, name: str, key: object, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was once computed of the scores and `key`, or `make()`, which is kept for the next time."""
        path = self.folder / f"{name}-{hash_json([key, self.record])[:16]}.json"
        if path.exists():
            return read_sealed(path, "delete it and start again")
        made = make()
        write_sealed(path, made)
        return made


def copy_scores(
    tokens: TokenCache,
    annotation: Annotation,
    missing: Literal["error", "drop"],
    progress: Progress | None = None,
) -> ShardScores:
    """The scores of an annotation beside the tokens, copied once (`iterate_scores` checks them).

    Raises:
        PHFError: see `load_scores`; a split has no document with all its scores.
    """
    folder = tokens.path / "scores" / annotation.slug
    source = {
        "version": _VERSION,
        "annotation": annotation.manifest,
        "tokens": [entry["files"] for entry in tokens.shards],
    }
    path, source_hash = folder / "manifest.json", hash_json(source)
    record = read_sealed(path, f"delete {folder} and start again") if path.exists() else {}
    if record.get("source") != source_hash:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"source": source_hash, **_write_scores(folder, tokens, annotation, progress)}
        write_sealed(path, record)
    unscored: list[int] = record["unscored_shards"]
    if unscored and missing == "error":
        next(iterate_scores(annotation.corpus, annotation, missing, unscored))  # raises
    for split, num_lost in record["unscored_documents"].items():
        is_unscored = np.ones(num_lost, np.bool_)
        if num_lost == record["documents"][split]:
            refuse_unscored(annotation, is_unscored, f"the {split} split of {annotation.corpus.path}")
    return ShardScores(folder, record)


def _write_scores(
    folder: Path, tokens: TokenCache, annotation: Annotation, progress: Progress | None
) -> dict[str, Any]:
    files, unscored_shards, whole = [], [], hashlib.sha256()
    documents: dict[Split, int] = {"train": 0, "validation": 0}
    unscored_documents = documents.copy()
    for shard, (num_segments, scores) in enumerate(iterate_scores(annotation.corpus, annotation, "drop")):
        own = tokens.select([shard])
        if not np.array_equal(num_segments, own.document_segments):
            raise PHFError(
                f"{annotation.path} and {tokens.path} do not have the same segments in shard {shard}; delete the older of "
                "the two and make it again"
            )
        data = np.ascontiguousarray(scores, "<f4").tobytes()
        write_bytes(folder / f"{shard:05d}.scores", data)
        files.append(hash_bytes(data))
        whole.update(data)
        is_unscored = find_unscored_documents(scores, num_segments)
        if is_unscored.any():
            unscored_shards.append(shard)
        for split in documents:
            documents[split] += int(own.split_mask(split).sum())
            unscored_documents[split] += int((is_unscored & own.split_mask(split)).sum())
        if progress is not None:
            progress("joining scores and tokens of shards", shard + 1, len(tokens.shards))
    return {
        "files": files,
        "scores_sha256": whole.hexdigest(),
        "documents": documents,
        "unscored_documents": unscored_documents,
        "unscored_shards": unscored_shards,
    }
