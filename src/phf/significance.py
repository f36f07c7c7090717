"""Is one number larger than another? Tests of a difference, what they could have seen, and corrections for many at once.

Where both numbers were measured on the same items, the items' gaps are tested: what makes one item harder than another falls
out (Miller 2024). A difference that is not seen is not a difference of 0: `Difference.detectable` says how large it would
have had to be (Card et al. 2020). docs/significance.md has the equations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, nctdtrinc, ndtr, ndtri, stdtr, stdtrit

from phf.intervals import Studentized, difference_of_shares, studentize, studentize_mean
from phf.records import Estimate, Number

ALPHA, POWER = 0.05, 0.8
NUM_BOOTSTRAP = 2000
_EDGE = 0.01
"""p-values below this are too rare among resamples to be counted."""
_FEWEST_PAIRS = 6
"""That disagree: fewer show nothing, even if all agree on the side (2 x 0.5^5 > `ALPHA`)."""
_MANY = 2000
"""Degrees of freedom from which Student's t is the normal."""

_Values = npt.NDArray[np.float64]

Test = Literal["paired", "McNemar", "paired seeds", "seeds", "unpaired", "none"]
"""`paired`: bootstrap over items; `McNemar`: exact, of hits; `paired seeds`, `seeds`: Student's t, Welch's t; `unpaired`: of two
intervals; `none`: there is nothing to test by."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One number minus another.

    Attributes:
        estimate: with its 95 % interval; `count` is of pairs, or of the smaller side where nothing is paired.
        p: two-sided p-value; NaN where there is no test.
        q: the same after Benjamini-Hochberg over all that was tested with it (`correct`); NaN before.
        error: its standard error.
        spread: the standard error that one pair (unpaired: one item a side) would give; of McNemar's test the share of pairs that
            disagree.
        degrees: of freedom, of t-tests over seeds.
    """

    estimate: Estimate
    test: Test = "none"
    p: Number = math.nan
    q: Number = math.nan
    error: Number = math.nan
    spread: Number = math.nan
    degrees: Number = math.inf

    @property
    def is_paired(self) -> bool:
        """Whether the same items, or seeds, were compared with each other."""
        return self.test in ("paired", "McNemar", "paired seeds")

    @property
    def sign(self) -> int:
        """1 or -1 where the numbers are told apart (q, or p where nothing was corrected, at most `ALPHA`), else 0."""
        level = self.p if math.isnan(self.q) else self.q
        return int(np.sign(self.estimate.mean)) if level <= ALPHA else 0

    @property
    def detectable(self) -> float:
        """The smallest true difference that this comparison sees with a probability of `POWER`, at `ALPHA`; NaN if unknown."""
        if self.test == "McNemar":
            return _find_detectable(self.estimate.count, self.spread)
        return noncentrality(self.degrees) * self.error if self.error > 0 else math.nan

    def needed(self, size: float) -> int | None:
        """Pairs (unpaired: items of each side; seeds) that would show a true difference of `size`; None if unknown."""
        size = abs(size)
        if not size > 0 or math.isnan(self.spread):
            return None
        if self.test == "McNemar":
            return math.ceil(_need_pairs(size, self.spread)) if size <= 1 else None
        sides = {"paired seeds": 1, "seeds": 2}.get(self.test, math.inf)
        ratio = self.spread / size
        start = max(math.ceil((noncentrality(math.inf) * ratio) ** 2), 2)
        counts = range(start, start + _MANY)
        return next(n for n in counts if noncentrality(sides * (n - 1)) * ratio <= math.sqrt(n))


def noncentrality(degrees: float) -> float:
    """How many standard errors a true difference must be to be seen, by a t-test of so many degrees of freedom."""
    if degrees > _MANY:
        return float(ndtri(1 - ALPHA / 2) + ndtri(POWER))
    return float(nctdtrinc(degrees, 1 - POWER, stdtrit(degrees, 1 - ALPHA / 2)))


def _need_pairs(size: float, discordant: float) -> float:
    """Pairs for McNemar's test (Connor 1987), of whom so large a share disagrees; with 1 / size for its being exact."""
    share = max(discordant, size)
    normal = ndtri(1 - ALPHA / 2) * math.sqrt(share) + ndtri(POWER) * math.sqrt(share - size**2)
    return max((normal / size) ** 2 + 1 / size, _FEWEST_PAIRS) if size > 0 else math.inf


def _find_detectable(count: int, discordant: float) -> float:
    """The smallest difference that so many pairs show by McNemar's test; NaN where they are too few for any."""
    if _need_pairs(1.0, discordant) > count:
        return math.nan
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _need_pairs(middle, discordant) <= count else (middle, high)
    return high


def compare_paired(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    clusters: npt.ArrayLike | None = None,
    *,
    num_bootstrap: int = NUM_BOOTSTRAP,
    seed: int = 0,
) -> Difference:
    """sum(first) / sum(weights) minus sum(second) / sum(weights), of the same items in the same order.

    Hits (0 or 1, nothing weighted or clustered) by McNemar's exact test, all else by the bootstrap over items or clusters.

    Args:
        first, second: float [num_items]; an item that lacks one (NaN) is left out.
        weights: float [num_items], such as bytes; None = 1 each.
        clusters: [num_items]; items of one cluster (continuations of a prompt) hang together, and are drawn together.
    """
    own, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = ~np.isnan(own - other)
    own, other = own[known], other[known]
    sizes = np.ones(len(own)) if weights is None else np.asarray(weights, np.float64)[known]
    if clusters is None and np.all(sizes == 1) and np.isin(np.append(own, other), (0, 1)).all():
        return compare_hits(own, other)
    gaps = own - other
    if clusters is not None:
        _, places = np.unique(np.asarray(clusters)[known], return_inverse=True)
        gaps = np.bincount(places, gaps).astype(np.float64)
        sizes = np.bincount(places, sizes).astype(np.float64)
    gaps, sizes = gaps[sizes > 0], sizes[sizes > 0]
    mean = float(gaps.sum() / sizes.sum()) if len(gaps) else math.nan
    if len(gaps) < 2:
        return Difference(Estimate(mean, math.nan, math.nan, len(gaps)))
    if np.all(sizes == 1):
        return _widen(studentize_mean(gaps, num_bootstrap, seed))
    both = np.stack([gaps, sizes], axis=1)
    return _widen(studentize(both, mean, _measure_ratio, num_bootstrap, seed))


def _widen(found: Studentized) -> Difference:
    """The bootstrap-t or Student's t, whichever says less.

    Gaps of scores are skewed or, where few are not 0, symmetric with long tails. In simulations with 60 to 512 items at level .05
    the bootstrap-t alone gave .10 to .15 false alarms for the latter and Student's t alone .09 to .13 for the former; both
    together .01 to .06 (tests/test_significance.py).
    """
    num, error, estimate = found.count, found.error, found.estimate
    if not found.can_bound or not error > 0:
        return Difference(estimate, "paired", 1.0) if found.statistic == 0 else Difference(estimate)
    half = float(stdtrit(num - 1, 1 - ALPHA / 2)) * error
    mean = found.statistic
    # An end that the bootstrap cannot bound stays unknown.
    low = estimate.low if math.isnan(estimate.low) else min(estimate.low, mean - half)
    high = estimate.high if math.isnan(estimate.high) else max(estimate.high, mean + half)
    p = max(_invert_bootstrap(found), float(2 * stdtr(num - 1, -abs(mean) / error)))
    return Difference(Estimate(mean, low, high, num), "paired", p, error=error, spread=error * math.sqrt(num))


def _measure_ratio(rows: _Values) -> tuple[_Values, _Values]:
    """Ratio of sums, and its standard error by linearisation, of each row: [rows, items, 2] -> two of [rows]."""
    tops, bottoms = rows[..., 0], rows[..., 1]
    ratios = tops.sum(axis=1) / bottoms.sum(axis=1)
    pulls = tops - ratios[:, None] * bottoms
    errors: _Values = pulls.std(axis=1, ddof=1) / np.sqrt(rows.shape[1]) / bottoms.mean(axis=1)
    return ratios, errors


def _invert_bootstrap(found: Studentized) -> float:
    """The p-value that the bootstrap-t interval inverts: how often resamples lie as far off as 0 does.

    Below `_EDGE` resamples are too few to be counted: there the tail is Student's, stretched to meet them at the edge.
    """
    distances, num = found.distances, len(found.distances)
    t = found.statistic / found.error
    above, below = ((1 + int(far.sum())) / (num + 1) for far in (distances >= t, distances <= t))
    p = 2 * min(above, below)
    edge = float(np.quantile(distances, 1 - _EDGE / 2 if above < below else _EDGE / 2, method="nearest"))
    if p >= _EDGE or not math.isfinite(edge) or edge * t <= 0:
        return min(p, 1.0)
    degrees = found.count - 1
    return min(p, float(2 * stdtr(degrees, -stdtrit(degrees, 1 - _EDGE / 2) * t / edge)))


def compare_hits(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Share of hits minus share of hits, of the same items: McNemar's exact test, and Bonett and Price's interval (2012).

    Args:
        first, second: 0 or 1 [num_items].
    """
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    num, gained, lost = len(gaps), int((gaps > 0).sum()), int((gaps < 0).sum())
    if num == 0:
        return Difference(Estimate(math.nan, math.nan, math.nan, 0))
    centre = (gained - lost) / (num + 2)
    half = ndtri(1 - ALPHA / 2) * math.sqrt(((gained + lost + 2) / (num + 2) - centre**2) / (num + 2))
    p = min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))) if gained + lost else 1.0
    ends = max(-1.0, float(centre - half)), min(1.0, float(centre + half))
    return Difference(Estimate((gained - lost) / num, *ends, num), "McNemar", p, spread=(gained + lost) / num)


def compare_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Mean over seeds minus mean over seeds: Student's t over the gaps of seeds that both have, else Welch's.

    Where one side has a single seed it is taken to vary as much as the other (Crawford and Howell 1998).

    Args:
        first, second: a number of each training seed; NaN = missing.
    """
    own, other = (
        {seed: value for seed, value in side.items() if not math.isnan(value)} for side in (first, second)
    )
    both = sorted(own.keys() & other.keys())
    if len(both) >= 2:
        gaps = [own[seed] - other[seed] for seed in both]
        spread = float(np.std(gaps, ddof=1))
        mean = float(np.mean(gaps))
        return _by_t(mean, len(both), "paired seeds", spread / math.sqrt(len(both)), len(both) - 1, spread)
    mean = float(np.mean(list(own.values())) - np.mean(list(other.values()))) if own and other else math.nan
    sizes = [len(side) for side in (own, other)]
    variances = [float(np.var(list(side.values()), ddof=1)) for side in (own, other) if len(side) > 1]
    if min(sizes) == 0 or not variances:
        return Difference(Estimate(mean, math.nan, math.nan, min(sizes)))
    parts = [variance / size for variance, size in zip([*variances, *variances][:2], sizes, strict=True)]
    if min(sizes) == 1:
        degrees = float(max(sizes) - 1)
    else:
        down = sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
        degrees = sum(parts) ** 2 / down if down > 0 else math.nan
    spread = math.sqrt(sum(variances) * 2 / len(variances))
    return _by_t(mean, min(sizes), "seeds", math.sqrt(sum(parts)), degrees, spread)


def _by_t(mean: float, count: int, test: Test, error: float, degrees: float, spread: float) -> Difference:
    if not error > 0:  # equal to the last digit: such seeds say nothing about others
        return Difference(Estimate(mean, math.nan, math.nan, count))
    half = float(stdtrit(degrees, 1 - ALPHA / 2)) * error
    p = float(2 * stdtr(degrees, -abs(mean) / error))
    return Difference(
        Estimate(mean, mean - half, mean + half, count), test, p, error=error, spread=spread, degrees=degrees
    )


def compare_apart(first: Estimate, second: Estimate) -> Difference:
    """Of two numbers whose items are not paired: by their own intervals (`difference_of_shares`), as if nothing linked them."""
    found = difference_of_shares(first, second)
    found = replace(found, count=min(first.count, second.count))
    z = float(ndtri(1 - ALPHA / 2))
    near = (found.mean - found.low if found.mean > 0 else found.high - found.mean) / z
    if not near > 0:
        return Difference(found)
    error = (found.high - found.low) / (2 * z)
    p = float(2 * ndtr(-abs(found.mean) / near))
    return Difference(found, "unpaired", p, error=error, spread=error * math.sqrt(found.count))


def benjamini_hochberg(p_values: npt.ArrayLike) -> _Values:
    """q-values (Benjamini and Hochberg 1995): of the tests with q <= x, a share of x is expected to be false alarms. NaN is no test."""
    return _adjust(
        p_values,
        lambda ordered, num: np.minimum.accumulate((ordered * num / np.arange(1, num + 1))[::-1])[::-1],
    )


def holm(p_values: npt.ArrayLike) -> _Values:
    """Adjusted p-values (Holm 1979): with x as the level, one false alarm or more comes with probability x at most. NaN is no test."""
    return _adjust(p_values, lambda ordered, num: np.maximum.accumulate(ordered * np.arange(num, 0, -1)))


def _adjust(p_values: npt.ArrayLike, step: Callable[[_Values, int], _Values]) -> _Values:
    """Apply a step-wise correction to the p-values in ascending order."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN sorts last
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(step(values[order], len(order)), 1.0)
    return adjusted


def correct(differences: Sequence[Difference]) -> list[Difference]:
    """Differences that one page shows, each with its q-value among them."""
    levels = benjamini_hochberg([found.p for found in differences])
    return [replace(found, q=float(level)) for found, level in zip(differences, levels, strict=True)]
