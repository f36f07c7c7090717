"""How well scores agree with what people, or a teacher, say: each number with a 95 % bootstrap interval.

Resampling draws whole clusters (documents, or pairs that share a text): what hangs together is no independent evidence.
Shapes: N values, R resamples.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from phf.calibration import estimate_error, find_bins
from phf.intervals import wilson
from phf.records import Estimate

NUM_BOOTSTRAP = 1000
NUM_DRAWS = 300
"""Simulated errors of each size."""

_Values = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]
Statistic = Callable[[_Values], float]
"""A number from how often each value counts [N]; NaN where it is not defined."""


def measure_auroc(
    scores: npt.ArrayLike, bad: npt.ArrayLike, *, seed: int, clusters: npt.ArrayLike | None = None
) -> Estimate:
    """Area under the ROC curve: the probability that a bad text's score is above a good one's (ties count half).

    NaN with one class alone.
    """
    is_bad = np.asarray(bad, np.bool_)
    values, places = np.unique(np.asarray(scores, np.float64), return_inverse=True)

    def auroc(weights: _Values) -> float:
        bads = np.bincount(places, weights * is_bad, len(values))
        goods = np.bincount(places, weights * ~is_bad, len(values))
        below = np.cumsum(goods) - goods / 2
        pairs = bads.sum() * goods.sum()
        return float(bads @ below / pairs) if pairs > 0 else np.nan

    return estimate(auroc, len(places), seed=seed, clusters=clusters)


def measure_spearman(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int, clusters: npt.ArrayLike | None = None
) -> Estimate:
    """Rank correlation. NaN where either is constant."""
    uniques = [np.unique(np.asarray(values, np.float64), return_inverse=True) for values in (a, b)]
    (first, first_places), (second, second_places) = uniques

    def spearman(weights: _Values) -> float:
        ranks = [
            _rank(weights, places, len(values))
            for values, places in ((first, first_places), (second, second_places))
        ]
        x, y = (rank - np.average(rank, weights=weights) for rank in ranks)
        spread = np.sqrt((weights @ x**2) * (weights @ y**2))
        return float(weights @ (x * y) / spread) if spread > 0 else np.nan

    return estimate(spearman, len(first_places), seed=seed, clusters=clusters)


def _rank(weights: _Values, places: _Integers, num: int) -> _Values:
    """Mid-ranks of weighted values."""
    counts = np.bincount(places, weights, num)
    ranks: _Values = (np.cumsum(counts) - counts / 2)[places]
    return ranks


def measure_calibration_error(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, seed: int, clusters: npt.ArrayLike | None = None
) -> Estimate:
    """Calibration error over ten equal bins of score, freed of what chance adds (`phf.calibration`). NaN without values."""
    predicted, actual = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    if len(predicted) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    is_verdict = np.isin(actual, (0, 1)).all()
    error, _, _ = estimate_error(
        predicted, actual.astype(bool) if is_verdict else actual, NUM_DRAWS, seed, clusters
    )
    return error


def measure_share(flags: npt.ArrayLike, *, seed: int, clusters: npt.ArrayLike | None = None) -> Estimate:
    """The share of true values: Wilson's interval, or by bootstrap where values come in clusters."""
    values = np.asarray(flags, np.bool_)
    if clusters is None:
        return wilson(int(values.sum()), len(values))
    return estimate(
        lambda weights: float(weights @ values / weights.sum()), len(values), seed=seed, clusters=clusters
    )


def list_reliability(scores: npt.ArrayLike, targets: npt.ArrayLike) -> list[tuple[float, Estimate]]:
    """For each bin of scores that is not empty: the mean score, and the mean target with its interval.

    The interval is Wilson's, which for targets that are probabilities themselves is too wide.
    """
    predicted, actual = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    places = find_bins(predicted)
    bins = []
    for place in np.unique(places):
        inside = places == place
        share, num = float(actual[inside].mean()), int(inside.sum())
        interval = wilson(round(share * num), num)
        target = Estimate(share, min(interval.low, share), max(interval.high, share), num)
        bins.append((float(predicted[inside].mean()), target))
    return bins


def estimate(
    statistic: Statistic,
    num: int,
    *,
    seed: int,
    clusters: npt.ArrayLike | None = None,
    num_bootstrap: int = NUM_BOOTSTRAP,
) -> Estimate:
    """A statistic of weighted values with its percentile bootstrap interval.

    Args:
        num: N; 0 gives NaN.
        clusters: the cluster of each value [N], any integers; by default each value is one.
        num_bootstrap: R. Resamples in which the statistic is not defined are left out.
    """
    if num == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    point = statistic(np.ones(num))
    of = np.arange(num) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    num_clusters = int(of.max()) + 1
    if num_clusters == 1:
        return Estimate(point, np.nan, np.nan, num)
    rng = np.random.default_rng(seed)
    drawn = np.empty(num_bootstrap)
    for index in range(num_bootstrap):
        counts = np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        weights = counts[of].astype(np.float64)
        drawn[index] = statistic(weights) if weights.any() else np.nan
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) == 0:
        return Estimate(point, np.nan, np.nan, num)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(point, float(low), float(high), num)


def measure_alpha(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int, clusters: npt.ArrayLike | None = None
) -> Estimate:
    """Krippendorff's alpha of two raters of the same scale, by squared differences: 1 = the same values, 0 = as by chance.

    Unlike a correlation it is lowered by a rater who is always higher. NaN where all values are one. Krippendorff, Content
    Analysis (2004), chapter 11.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def alpha(weights: _Values) -> float:
        num = 2 * weights.sum()
        mean = weights @ (first + second) / num
        spread = (weights @ ((first - mean) ** 2 + (second - mean) ** 2)) / num
        expected = 2 * num / (num - 1) * spread if num > 1 else 0.0
        observed = weights @ (first - second) ** 2 / weights.sum()
        return float(1 - observed / expected) if expected > 0 else np.nan

    return estimate(alpha, len(first), seed=seed, clusters=clusters)
