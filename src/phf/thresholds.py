"""Where good ends: the rule for a threshold, and thresholds found from a share of the training tokens."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.records import BAD, GOOD, MAX_SCORE, NO_LABEL

Unit = Literal["segment", "document"]

TIE_TOLERANCE = 0.1
"""Relative distance of the share found from the share asked for, above which the message says so."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where good ends: a score at or below `value` is good, one above it is bad, a missing one (NaN) is neither.

    Attributes:
        value: rounded to float32, like the scores: a float64 threshold would call its own float32 score bad.

    Raises:
        PHFError: `value` lies beyond every score, or is NaN.
    """

    value: float

    def __post_init__(self) -> None:
        if not abs(self.value) <= MAX_SCORE:
            raise PHFError(f"threshold {self.value:g} lies beyond every score (±{MAX_SCORE:g})")
        object.__setattr__(self, "value", float(np.float32(self.value)))

    def is_good(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which scores are good, compared as float32: bool, of their shape."""
        return np.asarray(np.asarray(scores, np.float32) <= np.float32(self.value))

    def is_bad(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which scores are bad, compared as float32: bool, of their shape."""
        return np.asarray(np.asarray(scores, np.float32) > np.float32(self.value))

    def label(self, scores: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """GOOD, BAD or NO_LABEL for each score: uint8, of their shape."""
        labels = np.where(self.is_good(scores), GOOD, np.where(self.is_bad(scores), BAD, NO_LABEL))
        return labels.astype(np.uint8)


@dataclass(frozen=True, slots=True)
class ResolvedThreshold(Threshold):
    """A threshold and what it does to a training split.

    Attributes:
        segment_share: share of the training segments (for Filtering: documents) at or below it.
        token_share: share of the training tokens at or below it.
        message: one line that says all this.
    """

    segment_share: float
    token_share: float
    message: str


def mean_document_scores(
    scores: npt.NDArray[np.float32], document_segments: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Each document's mean segment score, every segment counting the same (the paper's `avg_score`).

    Args:
        scores: [num_segments].
        document_segments: segments of each document [num_documents].

    Returns:
        float32 [num_documents]; NaN for a document without segments or with an unscored one.
    """
    documents = np.repeat(np.arange(len(document_segments)), document_segments)
    sums = np.bincount(documents, weights=scores, minlength=len(document_segments))
    means = np.full(len(document_segments), np.nan)
    np.divide(sums, document_segments, out=means, where=document_segments > 0)
    return means.astype(np.float32)


def resolve_threshold(
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    threshold: float,
    *,
    unit: Unit = "segment",
) -> ResolvedThreshold:
    """An absolute threshold, checked against the training split.

    Args:
        scores: of the training segments (or documents), without NaN.
        tokens: of the same segments (or documents).
        threshold: a score at or below it is good; compared as float32, like the scores.
        unit: what the scores are of.

    Raises:
        PHFError: it marks everything or nothing good, or a score is NaN.
    """
    _check(scores, tokens, unit)
    value = Threshold(threshold).value
    other = "good_fraction" if unit == "segment" else "keep_fraction"
    verb = "good" if unit == "segment" else "kept"
    lowest, highest = scores.min(), scores.max()
    hint = f"give {other}, or see 'phf corpus stats DIR'"
    if highest <= value:
        raise PHFError(
            f"threshold {threshold:g} marks every {unit} {verb} (highest score is {highest:.4g}); {hint}"
        )
    if not lowest <= value:
        raise PHFError(
            f"threshold {threshold:g} marks no {unit} {verb} (lowest score is {lowest:.4g}); {hint}"
        )
    return _describe(scores, tokens, value, unit)


def resolve_good_fraction(
    scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], fraction: float
) -> ResolvedThreshold:
    """The threshold below which the best `fraction` of the training tokens lie.

    Equal scores stay together, so the share found is the nearest one that the scores allow, and neither nothing nor
    (unless `fraction` is 1) everything.

    Args:
        scores: of the training segments, without NaN.
        tokens: of the training segments.
        fraction: in (0, 1].

    Raises:
        PHFError: `fraction` is below 1 and all scores are equal, or a score is NaN.
    """
    return _resolve_fraction(scores, tokens, fraction, "segment")


def resolve_report_threshold(
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    threshold: float | None,
    fraction: float | None,
) -> ResolvedThreshold:
    """Where reports end good text, for an objective that needs no such line: there may be nothing on one side of it.

    Args:
        scores: of the training segments, without NaN.
        tokens: of the training segments.
        threshold, fraction: one of the two; see `resolve_threshold` and `resolve_good_fraction`.

    Raises:
        PHFError: there are no tokens, or a score is NaN.
    """
    _check(scores, tokens, "segment")
    if threshold is not None:
        return _describe(scores, tokens, threshold, "segment")
    assert fraction is not None, "config validation lets exactly one through"
    if scores.min() == scores.max():
        return _describe(scores, tokens, float(scores.max()), "segment", fraction)
    return resolve_good_fraction(scores, tokens, fraction)


def resolve_levels(
    scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], num_levels: int
) -> list[ResolvedThreshold]:
    """The thresholds that cut the training tokens into equal shares, best first: Quark's quantiles, by tokens.

    Equal scores stay together.

    Returns:
        `num_levels - 1` thresholds, increasing.

    Raises:
        PHFError: the scores have too many ties for so many levels; names how many they allow. See `resolve_good_fraction`.
    """
    found = [resolve_good_fraction(scores, tokens, level / num_levels) for level in range(1, num_levels)]
    num_different = len({threshold.value for threshold in found}) + 1
    if num_different < num_levels:
        raise PHFError(
            f"{num_levels} levels do not fit scores with so many ties; give objective.levels={num_different} or fewer, "
            "or see 'phf corpus stats DIR'"
        )
    return found


def resolve_keep_fraction(
    mean_scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], fraction: float
) -> ResolvedThreshold:
    """The mean score below which the best documents with `fraction` of the training tokens lie.

    As `resolve_good_fraction`, over documents (see `mean_document_scores`).
    """
    return _resolve_fraction(mean_scores, tokens, fraction, "document")


def find_nearest_threshold(
    ranked: npt.NDArray[np.float32], sums: npt.NDArray[np.int64], fraction: float
) -> float:
    """The score up to which the share of the tokens is nearest to `fraction`, and neither nothing nor everything.

    Equal scores stay together. Of two shares that are as near, the smaller one is taken.

    Args:
        ranked: scores in ascending order, of which at least two differ.
        sums: tokens of each score and of those before it.
        fraction: in (0, 1).
    """
    reached = int(np.searchsorted(sums, fraction * sums[-1]))  # the first place with so many tokens
    below = int(np.searchsorted(ranked, ranked[reached])) - 1  # the last place with a lower score
    places = [int(np.searchsorted(sums, sums[below]))] if below >= 0 else []
    if ranked[reached] < ranked[-1]:
        places.append(reached)
    ends = [int(np.searchsorted(ranked, ranked[place], side="right")) - 1 for place in places]
    return float(ranked[min(ends, key=lambda end: abs(sums[end] / sums[-1] - fraction))])


def describe_epochs(token_share: float, num_tokens: int, budget: int) -> str:
    """How often a budget goes through the kept data: 'the best 25 % make 4.0 epochs of 3.0M tokens'.

    Args:
        token_share: share of the training tokens that is kept.
        num_tokens: model inputs of one epoch over them.
        budget: model inputs of the run.
    """
    what = "all tokens" if token_share == 1 else f"the best {_percent(token_share)}"
    return f"{what} make {budget / num_tokens:.1f} epochs of {_count(num_tokens)} tokens"


def _resolve_fraction(
    scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], fraction: float, unit: Unit
) -> ResolvedThreshold:
    if not 0 < fraction <= 1:
        raise PHFError(f"fraction {fraction:g} must be above 0 and at most 1")
    _check(scores, tokens, unit)
    if fraction == 1:
        return _describe(scores, tokens, float(scores.max()), unit, fraction)
    order = np.argsort(scores)
    ranked = scores[order]
    if ranked[0] == ranked[-1]:
        raise PHFError(
            f"every {unit} has the score {ranked[0]:.4g}, so no {_percent(fraction)} of the tokens are the best; "
            "choose another reward model, or see 'phf corpus stats DIR'"
        )
    value = find_nearest_threshold(ranked, np.cumsum(tokens[order]), fraction)
    return _describe(scores, tokens, value, unit, fraction)


def _check(scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], unit: Unit) -> None:
    assert len(scores) == len(tokens), f"{len(scores)} scores for {len(tokens)} token counts"
    if tokens.sum() == 0:
        raise PHFError("the training split has no tokens; build a corpus with more documents")
    if num_missing := int(np.isnan(scores).sum()):
        raise PHFError(
            f"{num_missing} of {len(scores)} training {unit}s have no score; annotate them, or give data.missing=drop"
        )


def _describe(
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    value: float,
    unit: Unit,
    fraction: float | None = None,
) -> ResolvedThreshold:
    is_good = Threshold(value).is_good(scores)
    segment_share = float(is_good.mean())
    token_share = float(tokens[is_good].sum() / tokens.sum())
    verb = "are good" if unit == "segment" else "are kept"
    message = f"threshold {value:.6g}: {_percent(segment_share)} of the {unit}s, {_percent(token_share)} of the tokens {verb}"
    if fraction is not None and abs(token_share - fraction) > TIE_TOLERANCE * fraction:
        num_tied = int((scores == np.float32(value)).sum())
        message += f" (asked for {_percent(fraction)}; {num_tied:,} {unit}s share the score at the threshold)"
    return ResolvedThreshold(value, segment_share, token_share, message)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _count(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
