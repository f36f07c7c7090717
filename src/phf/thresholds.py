"""Where good ends: the rule for a threshold, and thresholds found from a share of the training tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.records import BAD, GOOD, MAX_SCORE, NO_LABEL

Unit = Literal["segment", "document"]

ScoredTokens = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Scores, and the tokens of each."""

_LOW_BITS = (
    12  # of a score, counted in the second pass of `condense` alone: 8 MB a table, and 128 kB a threshold
)
_NUM_BINS = 1 << (32 - _LOW_BITS)

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
    counts: npt.NDArray[np.int64] | None = None,
) -> ResolvedThreshold:
    """An absolute threshold, checked against the training split.

    Args:
        scores: of the training segments (or documents), without NaN.
        tokens: of the same segments (or documents).
        threshold: a score at or below it is good; compared as float32, like the scores.
        unit: what the scores are of.
        counts: how many of them each score stands for (`condense`); None: one.

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
    return _describe(scores, tokens, value, unit, counts=counts)


def resolve_good_fraction(
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    fraction: float,
    *,
    counts: npt.NDArray[np.int64] | None = None,
) -> ResolvedThreshold:
    """The threshold below which the best `fraction` of the training tokens lie.

    Equal scores stay together, so the share found is the nearest one that the scores allow, and neither nothing nor
    (unless `fraction` is 1) everything.

    Args:
        scores: of the training segments, without NaN.
        tokens: of the training segments.
        fraction: in (0, 1].
        counts: see `resolve_threshold`.

    Raises:
        PHFError: `fraction` is below 1 and all scores are equal, or a score is NaN.
    """
    return _resolve_fraction(scores, tokens, fraction, "segment", counts)


def resolve_report_threshold(
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    threshold: float | None,
    fraction: float | None,
    *,
    counts: npt.NDArray[np.int64] | None = None,
) -> ResolvedThreshold:
    """Where reports end good text, for an objective that needs no such line: there may be nothing on one side of it.

    Args:
        scores: of the training segments, without NaN.
        tokens: of the training segments.
        threshold, fraction: one of the two; see `resolve_threshold` and `resolve_good_fraction`.
        counts: see `resolve_threshold`.

    Raises:
        PHFError: there are no tokens, or a score is NaN.
    """
    _check(scores, tokens, "segment")
    if threshold is not None:
        return _describe(scores, tokens, threshold, "segment", counts=counts)
    assert fraction is not None, "config validation lets exactly one through"
    if scores.min() == scores.max():
        return _describe(scores, tokens, float(scores.max()), "segment", fraction, counts)
    return resolve_good_fraction(scores, tokens, fraction, counts=counts)


def resolve_levels(
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    num_levels: int,
    *,
    counts: npt.NDArray[np.int64] | None = None,
) -> list[ResolvedThreshold]:
    """The thresholds that cut the training tokens into equal shares, best first: Quark's quantiles, by tokens.

    Equal scores stay together.

    Returns:
        `num_levels - 1` thresholds, increasing.

    Raises:
        PHFError: the scores have too many ties for so many levels; names how many they allow. See `resolve_good_fraction`.
    """
    found = [
        resolve_good_fraction(scores, tokens, level / num_levels, counts=counts)
        for level in range(1, num_levels)
    ]
    num_different = len({threshold.value for threshold in found}) + 1
    if num_different < num_levels:
        raise PHFError(
            f"{num_levels} levels do not fit scores with so many ties; give objective.levels={num_different} or fewer, "
            "or see 'phf corpus stats DIR'"
        )
    return found


def resolve_keep_fraction(
    mean_scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    fraction: float,
    *,
    counts: npt.NDArray[np.int64] | None = None,
) -> ResolvedThreshold:
    """The mean score below which the best documents with `fraction` of the training tokens lie.

    As `resolve_good_fraction`, over documents (see `mean_document_scores`).
    """
    return _resolve_fraction(mean_scores, tokens, fraction, "document", counts)


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


def condense(
    parts: Iterable[ScoredTokens], fractions: Sequence[float] = (), values: Sequence[float] = ()
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A short table in the place of scores that do not fit into memory: every threshold is what it is of all scores.

    Scores are counted by the upper bits of their order; those around what is asked for, in a second pass, one by one. Of the
    others the highest of each bin stands for the bin, so that sums up to it are exact.

    Args:
        parts: scores without NaN, and the tokens of each; gone through twice.
        fractions: shares of the tokens that thresholds are looked for at.
        values: scores that are counted from below exactly.

    Returns:
        scores, ascending and each once; the tokens of each; how many scores there are of each.
    """
    tokens, counts = np.zeros((2, _NUM_BINS), np.int64)
    highest = np.zeros(_NUM_BINS, np.uint32)
    for scores, own in parts:
        keys = _rank_bits(scores)
        bins = keys >> _LOW_BITS
        tokens += np.bincount(bins, own, _NUM_BINS).astype(np.int64)
        counts += np.bincount(bins, minlength=_NUM_BINS)
        np.maximum.at(highest, bins, keys)
    there = np.flatnonzero(counts)
    if len(there) == 0:
        return np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
    sums = np.cumsum(tokens[there])
    reached = np.searchsorted(sums, np.asarray(fractions, np.float64) * sums[-1]).clip(max=len(there) - 1)
    asked = _rank_bits(np.asarray(values, np.float32)) >> _LOW_BITS
    # A share may be nearest to its threshold at the end of the bin before: the ties there are counted, too.
    around = np.concatenate([[0], reached, reached - 1]).clip(min=0)
    chosen = np.intersect1d(np.concatenate([there[around], asked]), there)
    slots = np.full(_NUM_BINS, -1)
    slots[chosen] = np.arange(len(chosen)) << _LOW_BITS
    fine_tokens, fine_counts = np.zeros((2, len(chosen) << _LOW_BITS), np.int64)
    for scores, own in parts:
        keys = _rank_bits(scores)
        places = slots[keys >> _LOW_BITS]
        is_chosen = places >= 0
        places = places[is_chosen] + (keys[is_chosen] & ((1 << _LOW_BITS) - 1))
        fine_tokens += np.bincount(places, own[is_chosen], len(fine_tokens)).astype(np.int64)
        fine_counts += np.bincount(places, minlength=len(fine_counts))
    fine = np.flatnonzero(fine_counts)
    fine_keys = (chosen[fine >> _LOW_BITS] << _LOW_BITS) | (fine & ((1 << _LOW_BITS) - 1))
    coarse = np.setdiff1d(there, chosen)
    keys = np.concatenate([highest[coarse], fine_keys.astype(np.uint32)])
    order = np.argsort(keys)
    is_negative = keys < 1 << 31
    values_of = np.where(is_negative, ~keys, keys ^ np.uint32(1 << 31)).view(np.float32)
    return (
        values_of[order],
        np.concatenate([tokens[coarse], fine_tokens[fine]])[order],
        np.concatenate([counts[coarse], fine_counts[fine]])[order],
    )


def _rank_bits(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Numbers in the order of the scores; equal ones, such as 0 and -0, have one."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


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
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    fraction: float,
    unit: Unit,
    counts: npt.NDArray[np.int64] | None,
) -> ResolvedThreshold:
    if not 0 < fraction <= 1:
        raise PHFError(f"fraction {fraction:g} must be above 0 and at most 1")
    _check(scores, tokens, unit)
    if fraction == 1:
        return _describe(scores, tokens, float(scores.max()), unit, fraction, counts)
    order = np.argsort(scores)
    ranked = scores[order]
    if ranked[0] == ranked[-1]:
        raise PHFError(
            f"every {unit} has the score {ranked[0]:.4g}, so no {_percent(fraction)} of the tokens are the best; "
            "choose another reward model, or see 'phf corpus stats DIR'"
        )
    value = find_nearest_threshold(ranked, np.cumsum(tokens[order]), fraction)
    return _describe(scores, tokens, value, unit, fraction, counts)


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
    counts: npt.NDArray[np.int64] | None = None,
) -> ResolvedThreshold:
    counts = np.ones(len(scores), np.int64) if counts is None else counts
    is_good = Threshold(value).is_good(scores)
    segment_share = float(counts[is_good].sum() / counts.sum())
    token_share = float(tokens[is_good].sum() / tokens.sum())
    verb = "are good" if unit == "segment" else "are kept"
    message = f"threshold {value:.6g}: {_percent(segment_share)} of the {unit}s, {_percent(token_share)} of the tokens {verb}"
    if fraction is not None and abs(token_share - fraction) > TIE_TOLERANCE * fraction:
        num_tied = int(counts[scores == np.float32(value)].sum())
        message += f" (asked for {_percent(fraction)}; {num_tied:,} {unit}s share the score at the threshold)"
    return ResolvedThreshold(value, segment_share, token_share, message)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _count(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
