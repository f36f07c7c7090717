"""What is in a corpus and in its annotations, in numbers: `phf corpus stats`."""

import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation import Annotation, propose_annotations
from phf.corpus.store import DOCUMENT_SCHEMA, Corpus, read_manifest
from phf.curate.spread import Parts, Ranked, Summary, join_columns, summarize
from phf.errors import PHFError
from phf.files import check_hash
from phf.records import Document, IdentityRecord, Progress
from phf.reward_models.protocol import FROM_0_TO_1
from phf.thresholds import Threshold, find_nearest_threshold, mean_document_scores
from phf.tokens import tokens as token_cache
from phf.tokens.tokens import TokenCache

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
CHARACTERS_PER_TOKEN = 4.0
"""What tokens are estimated by in a corpus that was never tokenized (byte-level BPE with 4k to 50k ids on English)."""

_NUM_EXAMPLES = 5
_EXAMPLE_CHARACTERS = 300
_EXTREME_SHARDS = 8  # half a gigabyte of text: seconds

_Floats = npt.NDArray[np.float32]
_Counts = npt.NDArray[np.int64]


class Candidate(TypedDict):
    """A rule as a recipe names it, its threshold, and the shares that are good, or kept, under it."""

    rule: str
    threshold: float
    segments: float
    tokens: float
    num_tokens: int
    documents: float
    epochs: NotRequired[float]


class Example(TypedDict):
    """A segment at one end of the scores."""

    score: float
    document: str
    text: str


class TokenStats(TypedDict):
    """Tokens of the training split; `basis` is the token cache that counted, or that an estimate goes by."""

    is_estimate: bool
    basis: str | None
    characters_per_token: float | None
    train: int
    train_documents: int


class AnnotationStats(Summary):
    """One annotation in numbers; see `corpus_stats`."""

    slug: str
    reward_model: IdentityRecord
    unit: str
    segments: str
    num_segments: int
    num_unscored: int
    unscored_reasons: dict[str, int]
    best: list[Example]
    worst: list[Example]
    tokens: TokenStats
    epochs: float | None
    good: list[Candidate]
    keep: list[Candidate]


class Stats(TypedDict):
    """A corpus in numbers; see `corpus_stats`."""

    path: str
    id: str
    num_documents: int
    num_shards: int
    counts: dict[str, dict[str, int]]
    sources: list[dict[str, object]]
    budget: int | None
    annotations: list[AnnotationStats]


def corpus_stats(
    corpus: Corpus,
    *,
    reward_model: str | None = None,
    tokenizer: str | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Stats:
    """Counts of a corpus and, for each finished annotation, its scores and what candidate rules keep; JSON values only.

    An annotation's `good` lists candidates for a threshold on segments (`good_fraction`, or absolute), `keep` for one on
    documents by their mean segment score (`keep_fraction`, or absolute): shares of what an objective resolves them
    against, the *training* documents without an unscored segment, by tokens, ties together. Its quantiles, histogram and
    examples are of all scored segments of both splits. `tokens` says what counted: a token cache with the same segment
    ends, or an estimate from characters.
    Holds a float and an integer per segment (8 bytes), and 30 more while it sorts; of more than `WINDOW_ROWS` segments and
    documents these lie in files of the temporary folder (8 bytes a segment, 20 a document), and memory does not grow.

    Args:
        reward_model: only annotations by this model (its spec, its name, or a slug).
        tokenizer: which tokens to count (a spec or a slug); by default the first that fits.
        budget: model inputs of a run; adds `epochs` over what each rule keeps (a document's `<|endoftext|>` counted).

    Raises:
        PHFError: no such annotation or tokens; a shard or a join fails.
    """
    if budget is not None and budget < 1:
        raise PHFError(f"budget {budget} must be at least 1 token")
    caches = find_token_caches(corpus, tokenizer)
    return {
        "path": str(corpus.path),
        "id": corpus.id,
        "num_documents": corpus.num_documents,
        "num_shards": len(corpus.shards),
        "counts": corpus.manifest["counts"],
        "sources": corpus.manifest["sources"],
        "budget": budget,
        "annotations": [
            _annotation_stats(annotation, caches, budget, progress)
            for annotation in _choose_annotations(corpus, reward_model)
        ],
    }


def _choose_annotations(corpus: Corpus, reward_model: str | None) -> list[Annotation]:
    annotations = Annotation.list(corpus)
    if reward_model is None:
        return annotations
    chosen = [
        annotation
        for annotation in annotations
        if reward_model
        in (annotation.slug, annotation.manifest["reward_model_spec"], annotation.identity.name)
    ]
    if not chosen:
        raise PHFError(
            f"{corpus.path} has no finished annotation by {reward_model} {propose_annotations(corpus)}make it with: "
            f"phf annotate {shlex.quote(str(corpus.path))} --reward-model {shlex.quote(reward_model)}"
        )
    return chosen


def find_token_caches(corpus: Corpus, tokenizer: str | None = None) -> list[TokenCache]:
    """The corpus's finished tokens, by slug; those of one tokenizer if it is named."""
    found = []
    inputs = [shard.sha256 for shard in corpus.shards]
    for path in sorted((corpus.path / "tokens").glob("*/manifest.json")):
        if not read_manifest(path, f"delete {path.parent} and run 'phf tokenize' again")["complete"]:
            continue
        cache = TokenCache.open(path.parent, verify=False)
        is_named = tokenizer in (None, cache.slug, cache.manifest["tokenizer_spec"])
        if is_named and [entry["input_sha256"] for entry in cache.shards] == inputs:
            found.append(cache)
    if tokenizer is not None and not found:
        raise PHFError(
            f"{corpus.path} has no tokens by {tokenizer}; make them with: "
            f"phf tokenize {shlex.quote(str(corpus.path))} --tokenizer {shlex.quote(tokenizer)}, or leave --tokenizer away for an estimate"
        )
    return found


class TokenCounter:
    """Tokens of each segment: counted, where a token cache has the same segment ends, else estimated."""

    def __init__(self, annotation: Annotation, caches: Sequence[TokenCache]) -> None:
        same = [cache for cache in caches if cache.segment_ends_hash == annotation.segment_ends_hash]
        self.cache = same[0] if same else None
        self.basis: str | None = None
        self.characters_per_token = CHARACTERS_PER_TOKEN
        if self.cache is not None:
            for index, entry in enumerate(self.cache.shards):
                name = f"{index:05d}.segment_ends"
                check_hash(self.cache.path / name, entry["files"][name], "run 'phf tokenize' again")
            self.basis = self.cache.slug
        elif caches:
            num_characters = sum(shard.num_characters for shard in annotation.corpus.shards)
            self.characters_per_token = num_characters / max(1, caches[0].num_tokens)
            self.basis = caches[0].slug

    def count(self, shard: int, characters: _Counts) -> _Counts:
        """Tokens of a shard's segments, which have so many characters; an estimate counts characters."""
        if self.cache is None:
            return characters
        counts: _Counts = np.diff(self.cache.map_shard(shard, "segment_ends"), prepend=0)
        return counts

    def to_tokens(self, count: float) -> int:
        """A sum of counts in tokens."""
        return round(count if self.cache is not None else count / self.characters_per_token)

    def to_json(self, num_tokens: int, num_documents: int) -> TokenStats:
        return {
            "is_estimate": self.cache is None,
            "basis": self.basis,
            "characters_per_token": None if self.cache is not None else self.characters_per_token,
            "train": num_tokens,
            "train_documents": num_documents,
        }


def _annotation_stats(
    annotation: Annotation, caches: Sequence[TokenCache], budget: int | None, progress: Progress | None
) -> AnnotationStats:
    num_rows = sum(entry["num_segments"] + entry["num_documents"] for entry in annotation.shards)
    if num_rows <= token_cache.WINDOW_ROWS:
        return _measure(annotation, caches, budget, progress, Parts(None))
    with tempfile.TemporaryDirectory(prefix="phf-stats-") as folder:
        return _measure(annotation, caches, budget, progress, Parts(Path(folder)))


def _measure(
    annotation: Annotation,
    caches: Sequence[TokenCache],
    budget: int | None,
    progress: Progress | None,
    parts: Parts,
) -> AnnotationStats:
    counter = TokenCounter(annotation, caches)
    best: list[_Example] = []
    worst: list[_Example] = []
    reasons: Counter[str] = Counter()
    num_done = 0
    for index, entry in enumerate(annotation.shards):
        num_segments, ends, scores = annotation.join_shard(index)
        lengths = find_lengths(num_segments, ends)
        _add_shard(parts, annotation.corpus, index, num_segments, counter.count(index, lengths), scores)
        found = _find_examples(index, num_segments, ends, lengths, scores)
        best, worst = _keep_extremes([*best, *found], [*worst, *found])
        reasons.update(entry["reasons"])
        num_done += len(num_segments)
        if progress is not None:
            progress(f"reading {annotation.slug}", num_done, annotation.corpus.num_documents)
    used_scores = parts.take("scores")
    summary = summarize(join_columns(used_scores, parts.take("other_scores")))
    # Where people draw the line by habit: a count at 0, a probability at 0.5.
    thresholds = [0.0, 0.5] if annotation.unit in FROM_0_TO_1 else [0.0]
    means, worst_scores, sizes = (parts.take(name) for name in ("means", "worst", "num_segments"))
    good = Ranked.of(used_scores, parts.take("counts"), FRACTIONS, thresholds)
    keep = Ranked.of(means, parts.take("document_counts"), FRACTIONS, thresholds)
    num_train_tokens = counter.to_tokens(parts.train_count)
    num_used = sum(map(len, means))

    def describe_good(rule: str, threshold: float) -> Candidate:
        num_good, count = good.at_or_below(threshold)
        num_clean = sum(int(Threshold(threshold).is_good(own).sum()) for own in worst_scores)
        return {
            "rule": rule,
            "threshold": threshold,
            "segments": num_good / good.num_scores,
            "tokens": count / good.total,
            "num_tokens": counter.to_tokens(count),
            "documents": num_clean / num_used,
        }

    def describe_kept(rule: str, threshold: float) -> Candidate:
        num_kept, count = keep.at_or_below(threshold)
        num_segments = sum(
            int(own[Threshold(threshold).is_good(of)].sum()) for own, of in zip(sizes, means, strict=True)
        )
        num_tokens = counter.to_tokens(count)
        kept: Candidate = {
            "rule": rule,
            "threshold": threshold,
            "segments": num_segments / good.num_scores,
            "tokens": count / keep.total,
            "num_tokens": num_tokens,
            "documents": num_kept / num_used,
        }
        return kept if budget is None else {**kept, "epochs": budget / max(1, num_tokens + num_kept)}

    return {
        "slug": annotation.slug,
        "reward_model": annotation.identity.to_json(),
        "unit": annotation.unit,
        "segments": annotation.segments,
        "num_segments": sum(entry["num_segments"] for entry in annotation.shards),
        "num_unscored": sum(entry["num_unscored"] for entry in annotation.shards),
        "unscored_reasons": dict(reasons),
        **summary,
        "best": _read_examples(annotation.corpus, best),
        "worst": _read_examples(annotation.corpus, worst),
        "tokens": counter.to_json(num_train_tokens, parts.num_train_documents),
        "epochs": None if budget is None else budget / max(1, num_train_tokens + parts.num_train_documents),
        "good": _list_candidates(good, "good_fraction", thresholds, describe_good),
        "keep": _list_candidates(keep, "keep_fraction", thresholds, describe_kept),
    }


def _add_shard(
    parts: Parts, corpus: Corpus, index: int, num_segments: _Counts, counts: _Counts, scores: _Floats
) -> None:
    is_train = np.array(corpus.read_shard(index, ["split"])["split"].to_pylist()) == "train"
    means = mean_document_scores(scores, num_segments)
    is_used = is_train & ~np.isnan(means)
    in_used = np.repeat(is_used, num_segments)
    starts = np.cumsum(num_segments) - num_segments
    document_counts = np.add.reduceat(counts, starts)
    parts.add(
        {
            "scores": scores[in_used],
            "counts": counts[in_used].astype(np.int32),
            "other_scores": scores[~in_used & ~np.isnan(scores)],
            "means": means[is_used],
            "worst": np.maximum.reduceat(scores, starts)[is_used],
            "document_counts": document_counts[is_used],
            "num_segments": num_segments[is_used].astype(np.int32),
        }
    )
    parts.num_train_documents += int(is_train.sum())
    parts.train_count += int(document_counts[is_train].sum())


def _list_candidates(
    ranked: Ranked, name: str, thresholds: Sequence[float], describe: Callable[[str, float], Candidate]
) -> list[Candidate]:
    """Rules in order of their thresholds, without those that keep nothing or everything."""
    if len(ranked.scores) == 0 or ranked.scores[0] == ranked.scores[-1]:  # nothing to choose between
        return []
    rules = [
        (f"{name}={fraction:g}", find_nearest_threshold(ranked.scores, ranked.sums, fraction))
        for fraction in FRACTIONS
    ] + [
        (f"threshold={value:g}", value)
        for value in thresholds
        if Threshold(value).is_good(ranked.scores[[0, -1]]).tolist() == [True, False]
    ]
    rules.sort(key=lambda rule: rule[1])
    return [describe(rule, value) for rule, value in rules]


def find_lengths(num_segments: _Counts, ends: npt.NDArray[np.int32]) -> _Counts:
    """Characters of each segment."""
    lengths: _Counts = ends.astype(np.int64)
    lengths[1:] -= ends[:-1]
    starts = np.cumsum(num_segments) - num_segments
    lengths[starts] = ends[starts]
    return lengths


@dataclass(frozen=True, slots=True)
class _Example:
    """A segment, named by its place: document `row` of a shard, code points `start` to `end`."""

    score: float
    shard: int
    row: int
    start: int
    end: int


def _find_examples(
    index: int, num_segments: _Counts, ends: npt.NDArray[np.int32], lengths: _Counts, scores: _Floats
) -> list[_Example]:
    """The best and the worst segments of a shard; among equals the longest."""
    chosen = list(dict.fromkeys([*_find_first(scores, lengths), *_find_first(-scores, lengths)]))
    rows = np.searchsorted(np.cumsum(num_segments), chosen, side="right").tolist()
    return [
        _Example(float(scores[i]), index, row, int(ends[i] - lengths[i]), int(ends[i]))
        for i, row in zip(chosen, rows, strict=True)
    ]


def _keep_extremes(
    best: Sequence[_Example], worst: Sequence[_Example]
) -> tuple[list[_Example], list[_Example]]:
    """The best and the worst of each; among equals the longest: a short segment shows little."""
    return (
        sorted(best, key=lambda one: (one.score, one.start - one.end))[:_NUM_EXAMPLES],
        sorted(worst, key=lambda one: (-one.score, one.start - one.end))[:_NUM_EXAMPLES],
    )


def find_extremes(annotation: Annotation, number: int) -> tuple[list[Example], list[Example]]:
    """The worst and the best segments of an annotation, at most five each; of a large one, among its first shards alone.

    Raises:
        PHFError: a shard or a join fails.
    """
    best: list[_Example] = []
    worst: list[_Example] = []
    for index in range(min(_EXTREME_SHARDS, len(annotation.shards))):
        num_segments, ends, scores = annotation.join_shard(index)
        found = _find_examples(index, num_segments, ends, find_lengths(num_segments, ends), scores)
        best, worst = _keep_extremes([*best, *found], [*worst, *found])
    corpus = annotation.corpus
    return _read_examples(corpus, worst[:number]), _read_examples(corpus, best[:number])


def _find_first(keys: _Floats, lengths: _Counts) -> list[int]:
    """Where the smallest keys are, without NaN; among equals the longest."""
    number = min(_NUM_EXAMPLES, int((~np.isnan(keys)).sum()))
    if number == 0:
        return []
    candidates = np.flatnonzero(keys <= np.partition(keys, number - 1)[number - 1])  # NaN comes last
    order = np.lexsort((-lengths[candidates], keys[candidates]))[:number]
    found: list[int] = candidates[order].tolist()
    return found


def _read_examples(corpus: Corpus, examples: Sequence[_Example]) -> list[Example]:
    """The text of each, read only for those that were the extremes of all shards."""
    found: list[Example] = []
    for example in examples:
        document = read_document(corpus, example.shard, example.row)
        text = document.text[example.start : min(example.end, example.start + _EXAMPLE_CHARACTERS)]
        found.append({"score": example.score, "document": document.id, "text": text})
    return found


def read_document(corpus: Corpus, shard: int, row: int) -> Document:
    """A document by its place; reads its row group alone (about 1 MB)."""
    with corpus.open_shard(shard) as file:
        group = 0
        while row >= (num_rows := file.metadata.row_group(group).num_rows):
            row -= num_rows
            group += 1
        table = file.read_row_group(group, columns=DOCUMENT_SCHEMA.names)
    return Document(**table.slice(row, 1).to_pylist()[0])
