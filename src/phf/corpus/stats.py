"""What is in a corpus and in its annotations, in numbers: `phf corpus stats`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.corpus.annotation import Annotation
from phf.corpus.store import Corpus
from phf.thresholds import Threshold, mean_document_scores, resolve_good_fraction, resolve_keep_fraction

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_NUM_BINS = 20
_NUM_EXAMPLES = 5
_EXAMPLE_CHARACTERS = 300

_Scores = npt.NDArray[np.float32]


def corpus_stats(corpus: Corpus) -> dict[str, Any]:
    """Counts of a corpus and, for each finished annotation, the distribution of its scores; JSON values only.

    An annotation's `good_fraction` and `keep_fraction` say what such fractions of the training split would keep, as
    shares of *characters* (an objective resolves them by tokens): `threshold`, and the shares with ties together.
    Its quantiles, histogram and examples are of all scored segments of both splits.

    Raises:
        PHFError: a shard or a join fails.
    """
    return {
        "path": str(corpus.path),
        "id": corpus.id,
        "num_documents": corpus.num_documents,
        "num_shards": len(corpus.shards),
        "counts": corpus.manifest["counts"],
        "sources": corpus.manifest["sources"],
        "annotations": [_annotation_stats(annotation) for annotation in Annotation.list(corpus)],
    }


def _annotation_stats(annotation: Annotation) -> dict[str, Any]:
    corpus = annotation.corpus
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    examples: list[dict[str, Any]] = []
    reasons: dict[str, int] = {}
    for index, entry in enumerate(annotation.manifest["shards"]):
        num_segments, ends, scores = annotation.join_shard(index)
        lengths = _find_lengths(num_segments, ends)
        is_train = np.array(corpus.read_shard(index, ["split"])["split"].to_pylist()) == "train"
        parts.append((num_segments, lengths, scores, is_train))
        examples += _find_examples(corpus, index, num_segments, ends, lengths, scores)
        for reason, count in entry["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    num_segments, lengths, scores, is_train = map(np.concatenate, zip(*parts, strict=True))
    found = scores[~np.isnan(scores)]
    counts, edges = np.histogram(found, _NUM_BINS) if len(found) > 0 else (np.empty(0), np.empty(0))
    by_score = sorted(examples, key=lambda example: (example["score"], -len(example["text"])))
    return {
        "slug": annotation.slug,
        "reward_model": annotation.identity.to_json(),
        "unit": annotation.unit,
        "segments": annotation.segments,
        "num_segments": len(scores),
        "num_unscored": len(scores) - len(found),
        "unscored_reasons": reasons,
        "mean": float(found.mean(dtype=np.float64)) if len(found) > 0 else None,
        "quantiles": [
            {"quantile": quantile, "score": float(np.quantile(found, quantile))}
            for quantile in QUANTILES
            if len(found) > 0
        ],
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "best": by_score[:_NUM_EXAMPLES],
        "worst": by_score[::-1][:_NUM_EXAMPLES],
        **_find_kept_shares(num_segments, lengths, scores, is_train),
    }


def _find_lengths(num_segments: npt.NDArray[np.int64], ends: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Characters of each segment."""
    lengths: npt.NDArray[np.int64] = ends.astype(np.int64)
    lengths[1:] -= ends[:-1]
    starts = np.cumsum(num_segments) - num_segments
    lengths[starts] = ends[starts]
    return lengths


def _find_examples(
    corpus: Corpus,
    index: int,
    num_segments: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int64],
    scores: _Scores,
) -> list[dict[str, Any]]:
    """The best and the worst segments of a shard; among equals the longest."""
    order = np.lexsort((-lengths, scores))  # NaN comes last
    order = order[: int((~np.isnan(scores)).sum())]
    chosen = dict.fromkeys([*order[:_NUM_EXAMPLES].tolist(), *order[-_NUM_EXAMPLES:].tolist()])
    documents = np.searchsorted(np.cumsum(num_segments), list(chosen), side="right").tolist()
    table = corpus.read_shard(index, ["id", "text"])
    return [
        {
            "score": float(scores[segment]),
            "document": table["id"][document].as_py(),
            "text": table["text"][document].as_py()[ends[segment] - lengths[segment] : ends[segment]][
                :_EXAMPLE_CHARACTERS
            ],
        }
        for segment, document in zip(chosen, documents, strict=True)
    ]


def _find_kept_shares(
    num_segments: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    scores: _Scores,
    is_train: npt.NDArray[np.bool_],
) -> dict[str, list[dict[str, float]]]:
    documents = np.repeat(np.arange(len(num_segments)), num_segments)
    document_lengths = np.bincount(documents, weights=lengths, minlength=len(num_segments)).astype(np.int64)
    in_train = np.repeat(is_train, num_segments)
    means = mean_document_scores(scores, num_segments)[is_train]
    return {
        "good_fraction": _resolve_fractions(
            resolve_good_fraction, scores[in_train], lengths[in_train], "segments"
        ),
        "keep_fraction": _resolve_fractions(
            resolve_keep_fraction, means, document_lengths[is_train], "documents"
        ),
    }


def _resolve_fractions(
    resolve: Callable[[_Scores, npt.NDArray[np.int64], float], Threshold],
    scores: _Scores,
    lengths: npt.NDArray[np.int64],
    unit: str,
) -> list[dict[str, float]]:
    """For each of `FRACTIONS`, the threshold that an objective would resolve, were characters tokens."""
    is_scored = ~np.isnan(scores)
    scores, lengths = scores[is_scored], lengths[is_scored]
    if len(np.unique(scores)) < 2:  # nothing to choose between
        return []
    found = [(fraction, resolve(scores, lengths, fraction)) for fraction in FRACTIONS]
    return [
        {"fraction": fraction, "threshold": t.value, "characters": t.token_share, unit: t.segment_share}
        for fraction, t in found
    ]
