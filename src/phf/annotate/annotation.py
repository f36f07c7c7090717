"""Scores beside the text: reading an annotation, and the join that fails closed (docs/format.md)."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from phf.config.train import SegmentKind
from phf.corpus.manifests import AnnotationManifest
from phf.corpus.segment import hash_segment_ends, segmentation_identity
from phf.corpus.store import Corpus, read_manifest
from phf.errors import PHFError
from phf.files import Place, check_hash, hash_json, read_checked
from phf.records import MAX_SCORE, Identity
from phf.reward_models import load_reward_model
from phf.reward_models.catalogue import name_reward_model
from phf.reward_models.protocol import RewardSpec

ANNOTATION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text_hash", pa.string()),
        ("ends", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
    ]
)


def annotation_folder(corpus: Corpus, identity: Identity, segments: SegmentKind) -> Path:
    """Where the scores of a reward model on a segmentation lie: the id hashes both."""
    key = {"reward_model": identity.to_json(), "segmentation": segmentation_identity(segments)}
    name = re.sub(r"[^\w.-]+", "-", identity.name)
    return corpus.path / "annotations" / f"{name}@{hash_json(key)[:8]}"


def read_annotation_manifest(path: Path) -> AnnotationManifest:
    """The manifest of an annotation, finished or not, its own hash checked."""
    manifest: AnnotationManifest = read_manifest(
        path / "manifest.json", f"delete {path} and run phf annotate again"
    )
    return manifest


class Annotation:
    """The scores of one reward model on one segmentation of a corpus.

    Attributes:
        corpus: what was scored.
        path: the folder; its name is the slug `<reward model>@<id>`.
        manifest: `manifest.json`, its own hash checked.
        shards: the manifest's entries, in order.
        num_scored_now: segments that the call of `annotate` which returned this has scored; 0 if it was finished.
    """

    def __init__(self, corpus: Corpus, path: Path, num_scored_now: int = 0) -> None:
        """Open a finished annotation by its folder.

        Raises:
            PHFError: it is not finished, damaged, or belongs to another corpus.
        """
        self.corpus = corpus
        self.path = path
        self.manifest = read_annotation_manifest(path)
        self.num_scored_now = num_scored_now
        self._checked: set[int] = set()
        entries = self.manifest["shards"]
        if len(entries) != len(corpus.shards):
            raise PHFError(
                f"{path} has {len(entries)} shards, its corpus {len(corpus.shards)}: it belongs to another corpus; "
                f"delete it and run: {self._command}"
            )
        if not self.manifest["complete"]:
            num_done = sum(entry is not None for entry in entries)
            raise PHFError(
                f"{path} is not finished ({num_done} of {len(entries)} shards); go on with: {self._command}"
            )
        self.shards = [entry for entry in entries if entry is not None]

    @classmethod
    def open(cls, corpus: Corpus | Place, reward_model: RewardSpec, segments: SegmentKind) -> "Annotation":
        """Open a finished annotation.

        Args:
            reward_model: the spec it was made with (or the function), the reward model's name, or the slug of the folder.

        Raises:
            PHFError: there is none; names those there are.
        """
        corpus, reward_model = Corpus.open(corpus), name_reward_model(reward_model)
        found = [
            path
            for path, manifest in _list_manifests(corpus)
            if manifest["segments"] == segments
            and reward_model in (path.name, manifest["reward_model_spec"], manifest["reward_model"]["name"])
        ]
        if len(found) == 1:
            return cls(corpus, found[0])
        if found:  # made by several versions: today's is meant
            path = annotation_folder(corpus, load_reward_model(reward_model).identity, segments)
            if path in found:
                return cls(corpus, path)
            raise PHFError(
                f"{corpus.path} has {len(found)} annotations by other versions of {reward_model}; name one of "
                f"{', '.join(path.name for path in found)}"
            )
        raise PHFError(
            f"{corpus.path} has no annotation by {reward_model} on {segments} {propose_annotations(corpus, segments)}make it "
            f"with: phf annotate {shlex.quote(str(corpus.path))} --reward-model {shlex.quote(reward_model)} --segments {segments}"
        )

    @classmethod
    def list(cls, corpus: Corpus) -> "list[Annotation]":
        """All finished annotations of a corpus, sorted by slug."""
        return [cls(corpus, path) for path, manifest in _list_manifests(corpus) if manifest["complete"]]

    @property
    def slug(self) -> str:
        """`<reward model>@<id>`; the id changes with the reward model's identity and with the segmentation."""
        return self.path.name

    @property
    def identity(self) -> Identity:
        """The reward model that scored."""
        return Identity.from_json(self.manifest["reward_model"])

    @property
    def unit(self) -> str:
        """What a score counts."""
        return str(self.manifest["unit"])

    @property
    def segments(self) -> SegmentKind:
        """The kind of segment that has one score each."""
        return self.manifest["segments"]

    @property
    def segment_ends_hash(self) -> str:
        """Equal for two annotations, or a token cache, if and only if all their segment ends are."""
        return str(self.manifest["segment_ends_hash"])

    def read_shard(self, index: int) -> pa.Table:
        """A shard as a table (`ANNOTATION_SCHEMA`), its SHA-256 checked once per process and Annotation.

        Raises:
            PHFError: the shard is missing, damaged, or was made from another document shard.
        """
        entry = self.shards[index]
        path = self.path / entry["file"]
        if entry["input_sha256"] != self.corpus.shards[index].sha256:
            raise PHFError(
                f"{path} is stale: it was made from another {self.corpus.shards[index].file}; run: {self._command}"
            )
        remedy = f"run: {self._command} --verify"
        if not isinstance(path, Path):  # a URL
            return pq.read_table(pa.BufferReader(read_checked(path, entry["sha256"], remedy)))
        if index not in self._checked:
            check_hash(path, entry["sha256"], remedy)
            self._checked.add(index)
        return pq.read_table(path)

    def join_shard(
        self, index: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The scores of a document shard, checked against its documents.

        Returns:
            segments of each document [num_documents]; their ends, in code points, restarting with each document
            [num_segments]; their scores, NaN = unscored [num_segments].

        Raises:
            PHFError: any document has no, too few, huge, or another document's scores; names the file and the document.
        """
        table = self.read_shard(index)
        documents = self.corpus.read_shard(index, ["id", "text_hash"])
        entry = self.shards[index]
        path = self.path / entry["file"]
        remedy = f"delete {path} and run: {self._command}"
        if not table.schema.equals(ANNOTATION_SCHEMA):
            raise PHFError(f"{path} has other columns than {', '.join(ANNOTATION_SCHEMA.names)}; {remedy}")
        if len(table) != len(documents):
            raise PHFError(
                f"{path} has scores of {len(table)} documents, its corpus has {len(documents)}; {remedy}"
            )
        num_segments, ends = _flatten(table["ends"])
        num_scores, scores = _flatten(table["scores"])
        for wrong, problem in (
            (pc.not_equal(table["id"], documents["id"]).to_numpy(), "is out of order at"),
            (pc.not_equal(table["text_hash"], documents["text_hash"]).to_numpy(), "is of another text at"),
            (num_scores != num_segments, "does not have one score per segment at"),
            (num_segments < 1, "has segments that do not make up the text of"),
        ):
            if wrong.any():
                raise PHFError(f"{path} {problem} document {documents['id'][int(wrong.argmax())]}; {remedy}")
        if (huge := scores[np.abs(scores) > MAX_SCORE]).size:
            raise PHFError(f"{path} has the score {huge[0]:g}, beyond ±{MAX_SCORE:g}; {remedy}")
        if hash_segment_ends(num_segments, ends) != entry["segment_ends_hash"]:
            # The texts, of which reading takes longest, are only read to say where the segments are wrong.
            wrong = ~_are_ends_valid(num_segments, ends, self._read_text_lengths(index))
            problem = (
                f"do not make up the text of document {documents['id'][int(wrong.argmax())]}"
                if wrong.any()
                else "are not those that were scored"
            )
            raise PHFError(f"{path} has segments that {problem}; {remedy}")
        return num_segments, ends, scores

    def _read_text_lengths(self, index: int) -> npt.NDArray[np.int64]:
        """Code points of each document of a shard; reads a row group at a time, to bound memory."""
        with self.corpus.open_shard(index) as file:
            lengths = [
                pc.utf8_length(file.read_row_group(group, columns=["text"])["text"]).to_numpy()
                for group in range(file.num_row_groups)
            ]
        return np.concatenate(lengths).astype(np.int64)

    def count_unscored(self) -> Counter[str]:
        """How many segments have no score, by why."""
        return sum((Counter(entry["reasons"]) for entry in self.shards), Counter[str]())

    def describe_unscored(self) -> str:
        """The same in words."""
        return ", ".join(f"{count:,} x {reason}" for reason, count in self.count_unscored().most_common())

    def summarize(self) -> dict[str, JsonValue]:
        """What was scored, for scripts."""
        entries = self.shards
        return {
            "path": str(self.path),
            "reward_model": dict(self.manifest["reward_model"]),
            "segments": self.segments,
            "unit": self.unit,
            "num_documents": sum(entry["num_documents"] for entry in entries),
            "num_segments": sum(entry["num_segments"] for entry in entries),
            "num_scored_now": self.num_scored_now,
            "unscored": dict(self.count_unscored()),
        }

    @property
    def _command(self) -> str:
        spec = self.manifest["reward_model_spec"]
        return f"phf annotate {shlex.quote(str(self.corpus.path))} --reward-model {shlex.quote(spec)} --segments {self.segments}"


def propose_annotations(corpus: Corpus, segments: str | None = None) -> str:
    """What a corpus without the wanted annotation has, for the middle of an error: each as a recipe or an option names it.

    Args:
        segments: what is wanted; another kind of an annotation is named with it.
    """
    found = {
        annotation.slug: " ".join(
            [shlex.quote(f"reward_model={annotation.manifest['reward_model_spec']}")]
            + ([f"segments={annotation.segments}"] if annotation.segments != segments else [])
        )
        for annotation in Annotation.list(corpus)
    }
    if not found:
        return "(it has none at all); "
    listed = ", ".join(f"{slug}, which is {choice}" for slug, choice in found.items())
    return f"(it has {listed}); give {'that' if len(found) == 1 else 'one of these'}, or "


def load_scores(
    corpus: Corpus, annotation: Annotation, missing: Literal["error", "drop"] = "error"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All scores of a corpus, in its order, joined fail-closed (`Annotation.join_shard`).

    Args:
        missing: `error` refuses a corpus with unscored segments; `drop` leaves their NaN in the array, and the
            caller drops the whole documents.

    Returns:
        scores, higher = worse [num_segments]; segments of each document [num_documents].

    Raises:
        PHFError: the join fails, or `missing` is `error` and a score is NaN; names the file.
    """
    parts = list(iterate_scores(corpus, annotation, missing))
    counts, scores = ([part[place] for part in parts] for place in (0, 1))
    return np.concatenate([np.empty(0, np.float32), *scores]), np.concatenate(
        [np.empty(0, np.int64), *counts]
    )


def iterate_scores(
    corpus: Corpus,
    annotation: Annotation,
    missing: Literal["error", "drop"] = "error",
    shards: Iterable[int] | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """The segments of each document, and their scores, of one shard after the other: see `load_scores`."""
    if annotation.corpus.id != corpus.id:
        raise PHFError(f"{annotation.path} belongs to another corpus than {corpus.path}; annotate this one")
    for index in range(len(annotation.shards)) if shards is None else shards:
        entry = annotation.shards[index]
        num_segments, _, scores = annotation.join_shard(index)
        num_unscored = int(np.isnan(scores).sum())
        if num_unscored > 0 and missing == "error":
            reasons = ", ".join(f"{count} x {reason}" for reason, count in entry["reasons"].items())
            num_lost = np.count_nonzero(find_unscored_documents(scores, num_segments))
            raise PHFError(
                f"{annotation.path / entry['file']} has no score for {num_unscored} of {len(scores)} segments "
                f"({reasons}); give data.missing=drop to leave their documents out ({num_lost} of {len(num_segments)})"
            )
        yield num_segments, scores


def find_unscored_documents(
    scores: npt.NDArray[np.float32], num_segments: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """The documents that have a segment without a score [num_documents]."""
    found = np.zeros(len(num_segments), np.bool_)
    found[np.repeat(np.arange(len(num_segments)), num_segments)[np.isnan(scores)]] = True
    return found


def refuse_unscored(annotation: Annotation, is_unscored: npt.NDArray[np.bool_], what: str) -> None:
    """Refuse documents none of which has all its scores: no rule or threshold can keep any of them.

    Raises:
        PHFError: names why their segments have no score.
    """
    if len(is_unscored) > 0 and is_unscored.all():
        raise PHFError(
            f"{what} is dropped: each of its {len(is_unscored):,} documents has a segment without a score (in all "
            f"{annotation.describe_unscored()}); score them by another reward model, or if no tag means a score of 0, import "
            "them with --uncovered 0"
        )


def _list_manifests(corpus: Corpus) -> list[tuple[Path, AnnotationManifest]]:
    paths = sorted((corpus.path / "annotations").glob("*/manifest.json"))
    return [(path.parent, read_annotation_manifest(path.parent)) for path in paths]


def _flatten(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Lengths and values of a column of lists; a null list has the length -1, which matches nothing."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy().astype(np.int64)
    return lengths, pc.list_flatten(column).to_numpy()


def _are_ends_valid(
    num_segments: npt.NDArray[np.int64], ends: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """For each document, which has segments: is none of them empty, and do they end where its text ends?"""
    stops = np.cumsum(num_segments)
    starts = stops - num_segments
    previous = np.concatenate([np.zeros(1, ends.dtype), ends[:-1]])
    previous[starts] = 0
    num_wrong = np.concatenate([[0], np.cumsum(ends <= previous)])
    valid: npt.NDArray[np.bool_] = (num_wrong[stops] == num_wrong[starts]) & (ends[stops - 1] == lengths)
    return valid
