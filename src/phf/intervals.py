"""95 % intervals: bootstrap over samples, Wilson for shares, Student's t over seeds.

A missing score is NaN: it is left out, and `Estimate.count` says how many were used. Where there is nothing to
estimate from, the numbers are NaN and the count is 0.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, gammaln, ndtri, stdtrit  # scipy.stats takes a second to import

from phf.records import Estimate

CONFIDENCE = 0.95
_TAILS = (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2)
_CHUNK = 1 << 21
"""Numbers drawn at a time, which bounds memory."""
_REPEATS = 4
"""Values that are drawn from a continuum do not repeat: both of two that come so often are the only ones."""

_Values = npt.NDArray[np.float64]


def bootstrap_mean(values: npt.ArrayLike, num_bootstrap: int, seed: int) -> Estimate:
    """The mean, with a bootstrap-t interval over the values (Efron and Tibshirani 1993, chapter 12).

    Each resample's distance from the mean is taken in its own standard errors. Scores are skewed, many of them 0 and few
    large: where 1 % of 512 values are not 0, the percentile interval holds the truth 86 times in 100, this one 96. An
    end that so few values cannot bound (none, or fewer than about four, differ from the rest) is NaN.
    """
    kept = _drop_missing(values)
    if len(kept) < 2:
        return Estimate(float(kept.mean()) if len(kept) else np.nan, np.nan, np.nan, len(kept))
    return studentize_mean(kept, num_bootstrap, seed).estimate


@dataclass(frozen=True, slots=True)
class Studentized:
    """A statistic and what resamples say of its error.

    Attributes:
        error: its standard error.
        distances: of the resamples' statistics from the centre, each in its own standard errors; infinite where a resample has no
            spread.
        can_bound: whether the values differ at all.
    """

    statistic: float
    error: float
    distances: _Values
    count: int
    can_bound: bool

    @property
    def estimate(self) -> Estimate:
        """With its bootstrap-t interval; an end that the values cannot bound is NaN."""
        tails = np.percentile(self.distances, _TAILS, method="nearest")
        low, high = self.statistic - tails[1] * self.error, self.statistic - tails[0] * self.error
        bounded = [float(end) if self.can_bound and np.isfinite(end) else np.nan for end in (low, high)]
        return Estimate(self.statistic, bounded[0], bounded[1], self.count)


def studentize(
    values: _Values,
    centre: float,
    measure: Callable[[_Values], tuple[_Values, _Values]],
    num_bootstrap: int,
    seed: int,
) -> Studentized:
    """Resample a statistic in its own standard errors.

    Args:
        values: [items] or [items, columns], of which the first must differ for an interval.
        centre: the statistic of the distribution that resamples are drawn from.
        measure: the statistic and its standard error of each row: [rows, *values.shape] -> two of [rows].
    """
    (statistic,), (error,) = measure(values[None])
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [measure(values[rows]) for rows in _resample(len(values), num_bootstrap, seed)]
        distances = np.concatenate([(found - centre) / errors for found, errors in parts])
    # A resample without any spread lies infinitely far off, on the side of its statistic; 0 / 0 is one that repeats it.
    distances = np.nan_to_num(distances, nan=0.0, posinf=np.inf, neginf=-np.inf)
    can_bound = bool(np.ptp(values.reshape(len(values), -1)[:, 0]) > 0)
    return Studentized(float(statistic), float(error), distances, len(values), can_bound)


def studentize_mean(values: _Values, num_bootstrap: int, seed: int) -> Studentized:
    """Resample a mean in its own standard errors."""
    return studentize(
        values,
        float(values.mean()),
        lambda rows: (rows.mean(axis=1), _standard_error(rows)),
        num_bootstrap,
        seed,
    )


def _standard_error(rows: npt.NDArray[np.float64]) -> _Values:
    """Of each row's mean: [rows, values] -> [rows]."""
    errors: _Values = rows.std(axis=1, ddof=1) / np.sqrt(rows.shape[1])
    return errors


def bootstrap_ratio(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, num_bootstrap: int, seed: int
) -> Estimate:
    """sum(numerators) / sum(denominators), with a percentile bootstrap interval over the pairs.

    Pairs whose denominator is 0 (a document without such text) are left out.
    """
    tops, bottoms = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    used = bottoms > 0
    tops, bottoms = tops[used], bottoms[used]
    return _bootstrap(
        lambda: tops.sum() / bottoms.sum(),
        lambda rows: tops[rows].sum(axis=1) / bottoms[rows].sum(axis=1),
        len(tops),
        num_bootstrap,
        seed,
    )


def expected_max(values: npt.ArrayLike, k: int, num_bootstrap: int, seed: int) -> Estimate:
    """The expected maximum of `k` of the values, drawn without replacement (paper section 3: k = 25).

    Exact, by order statistics: the i-th smallest of n is the maximum of C(i-1, k-1) of the C(n, k) choices. (The mean
    over fixed groups of k, as often reported, is a noisy estimate of the same number.) NaN with fewer than k values.

    The interval is the bootstrap-t with the jackknife's standard errors: a few values carry the number, and the percentile
    interval holds the truth 78 to 92 times in 100 where 1 to 5 % of 512 values are not 0. Of two values it is Wilson's, of how
    often the higher one comes. An end that the values cannot bound (fewer than about four differ from the rest; no more than
    k values) is NaN.
    """
    kept = np.sort(_drop_missing(values))
    if len(kept) < k:
        return Estimate(np.nan, np.nan, np.nan, len(kept))
    mean = float(kept @ _maximum_weights(len(kept), k))
    two, counts = np.unique(kept, return_counts=True)
    if len(two) == 2 and counts.min() >= _REPEATS:
        share = wilson(int(counts[1]), len(kept))
        low, high = (float(two[1] - np.ptp(two) * (1 - end) ** k) for end in (share.low, share.high))
        return Estimate(mean, low, high, len(kept))
    if len(kept) <= k:
        return Estimate(mean, np.nan, np.nan, len(kept))
    # Resamples are drawn with replacement, so that theirs is the maximum of k that are.
    centre = float(kept @ np.diff((np.arange(len(kept) + 1) / len(kept)) ** k))
    return studentize(kept, centre, lambda rows: _measure_maxima(rows, k), num_bootstrap, seed).estimate


def _measure_maxima(rows: _Values, k: int) -> tuple[_Values, _Values]:
    """The expected maximum of k of each row, and its standard error by the jackknife: [rows, values] -> two of [rows]."""
    rows = np.sort(rows, axis=1)
    num = rows.shape[1]
    weights = _maximum_weights(num - 1, k)  # of what is left when one value is taken out
    below, above = np.zeros_like(rows), np.zeros_like(rows)
    np.cumsum(rows[:, :-1] * weights, axis=1, out=below[:, 1:])
    np.cumsum((rows[:, 1:] * weights)[:, ::-1], axis=1, out=above[:, -2::-1])
    errors: _Values = np.sqrt(num - 1) * (below + above).std(axis=1)
    maxima: _Values = rows @ _maximum_weights(num, k)
    return maxima, errors


def percentile_estimate(mean: float, resampled: Sequence[float] | _Values, count: int) -> Estimate:
    """A number with percentiles of what resamples of its data gave; no interval for fewer than two data, or where more resamples
    than a tail holds gave NaN: these may lie anywhere."""
    known = _drop_missing(resampled)
    if count < 2 or len(known) <= (1 + CONFIDENCE) / 2 * np.size(resampled):
        return Estimate(mean, np.nan, np.nan, count)
    low, high = np.percentile(known, _TAILS)
    return Estimate(mean, float(low), float(high), count)


def best_of(keys: npt.ArrayLike, values: npt.ArrayLike, k: int, num_bootstrap: int, seed: int) -> Estimate:
    """The expected value where the key is smallest among `k` pairs drawn without replacement; equal keys share evenly.

    Exact, by order statistics, as `expected_max`. Pairs with a missing key or value are left out; NaN with fewer than k.
    """
    pairs = np.stack([np.asarray(keys, np.float64), np.asarray(values, np.float64)])
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    num = pairs.shape[1]
    if num < k:
        return Estimate(np.nan, np.nan, np.nan, num)
    order, weights, shared = _share_ties(pairs[0], k)

    def average(rows: npt.NDArray[np.int64]) -> _Values:
        """[resamples, num] -> [resamples]; resampled rows come in random order, which settles ties."""
        order = np.argsort(pairs[0][rows], axis=1, kind="stable")
        result: _Values = np.take_along_axis(pairs[1][rows], order, axis=1) @ weights
        return result

    return _bootstrap(lambda: float(pairs[1][order] @ shared), average, num, num_bootstrap, seed)


def best_weights(keys: npt.ArrayLike, k: int) -> _Values:
    """The chance of each key to be the smallest of `k` drawn without replacement; equal keys share evenly: float64 [num], num >= k."""
    order, _, shared = _share_ties(np.asarray(keys, np.float64), k)
    weights = np.empty(len(order))
    weights[order] = shared
    return weights


def _share_ties(keys: _Values, k: int) -> tuple[npt.NDArray[np.int64], _Values, _Values]:
    """Keys in order, smallest first; the chance of each place in it to be the best of k; and that shared among equal keys."""
    weights = _maximum_weights(len(keys), k)[::-1]
    order = np.argsort(keys, kind="stable")
    _, ties, sizes = np.unique(keys[order], return_inverse=True, return_counts=True)
    return order, weights, (np.bincount(ties, weights) / sizes)[ties]


def wilson(hits: float, num: float, z: float = float(ndtri((1 + CONFIDENCE) / 2))) -> Estimate:
    """A share with Wilson's score interval, which stays within [0, 1] and is not empty at 0 hits."""
    if num == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    share = hits / num
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    return Estimate(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)), round(num))


def clopper_pearson(hits: int, num: int) -> Estimate:
    """A share with the exact interval of Clopper and Pearson, which holds the truth in at least 95 of 100, however rare hits are."""
    if num == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, num - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, num - hits, 1 - tail)) if hits < num else 1.0
    return Estimate(hits / num, low, high, num)


def crossed_share(hits: npt.ArrayLike) -> Estimate:
    """The share of hits in a table [terms, templates] whose rows and columns both stand for more of their kind; NaN = missing.

    A row's hits hang together, and so do a column's, so they count as fewer: Wilson's interval takes as many as would have the
    variance of two-way clusters (Cameron, Gelbach and Miller 2011), and Student's t for the shorter side. Without any
    variance (no hit, or nothing but hits) the longer side counts.
    """
    table = np.asarray(hits, np.float64)
    table = table[~np.isnan(table).all(axis=1)][:, ~np.isnan(table).all(axis=0)]
    known = ~np.isnan(table)
    num = int(known.sum())
    if min(table.shape) < 2:
        return wilson(float(np.nansum(table)), num)
    share = float(np.nanmean(table))
    away = np.where(known, table - share, 0.0)
    sides = [len(sums) / (len(sums) - 1) * (sums @ sums) for sums in (away.sum(axis=1), away.sum(axis=0))]
    alone = float((away**2).sum())
    variance = max(sum(sides) - alone, alone) / num**2
    if variance == 0:
        found = wilson(share * max(table.shape), max(table.shape))
    else:
        effective = share * (1 - share) / variance
        found = wilson(
            share * effective, effective, float(stdtrit(min(table.shape) - 1, (1 + CONFIDENCE) / 2))
        )
    return Estimate(share, found.low, found.high, num)


def difference_of_shares(first: Estimate, second: Estimate) -> Estimate:
    """First minus second, with Newcombe's interval (1998, method 10) from theirs; it is too wide if they rise and fall together."""
    mean = first.mean - second.mean
    down = math.hypot(first.mean - first.low, second.high - second.mean)
    up = math.hypot(first.high - first.mean, second.mean - second.low)
    return Estimate(mean, mean - down, mean + up, first.count + second.count)


def pooled_t(means: Sequence[float]) -> Estimate:
    """The mean of one number per seed, with Student's t interval over seeds; one seed has no interval (NaN)."""
    kept = _drop_missing(means)
    if len(kept) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(kept.mean())
    if len(kept) == 1:
        return Estimate(mean, np.nan, np.nan, 1)
    half = float(stdtrit(len(kept) - 1, (1 + CONFIDENCE) / 2) * kept.std(ddof=1) / np.sqrt(len(kept)))
    return Estimate(mean, mean - half, mean + half, len(kept))


def _drop_missing(values: npt.ArrayLike) -> _Values:
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def _bootstrap(
    point: Callable[[], float],
    statistic: Callable[[npt.NDArray[np.int64]], _Values],
    num_values: int,
    num_bootstrap: int,
    seed: int,
) -> Estimate:
    """The statistic of all values and the percentiles of the statistic of resampled rows [resamples, num_values]."""
    if num_values == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    if num_values == 1:  # a resample would repeat the one value, which says nothing about its error
        return Estimate(float(point()), np.nan, np.nan, 1)
    resampled = np.concatenate([statistic(rows) for rows in _resample(num_values, num_bootstrap, seed)])
    return percentile_estimate(float(point()), resampled, num_values)


def _resample(num_values: int, num_bootstrap: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // num_values)
    for start in range(0, num_bootstrap, chunk):
        yield rng.integers(num_values, size=(min(chunk, num_bootstrap - start), num_values))


def _maximum_weights(num: int, k: int) -> _Values:
    """P(the i-th smallest of `num` is the maximum of k of them), float64 [num]."""
    rank = np.arange(1, num + 1)
    possible = rank >= k
    logs = _log_binomial(rank[possible] - 1, k - 1) - _log_binomial(np.array(num), k)
    weights = np.zeros(num)
    weights[possible] = np.exp(logs)
    return weights


def _log_binomial(n: npt.NDArray[np.int64], k: int) -> _Values:
    result: _Values = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return result


def rank_correlation(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> Estimate:
    """Spearman's rho, with Fisher's interval in Bonett and Wright's width (2000); NaN where one of both does not vary."""
    from scipy.stats import spearmanr  # it takes a second to import

    num = len(first)
    if num < 4 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Estimate(np.nan, np.nan, np.nan, num)
    rho = float(spearmanr(first, second).statistic)
    half = 1.96 * np.sqrt((1 + rho**2 / 2) / (num - 3))
    with np.errstate(divide="ignore"):
        low, high = (float(np.tanh(np.arctanh(rho) + end)) for end in (-half, half))
    return Estimate(rho, low, high, num)
