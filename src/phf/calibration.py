"""The calibration error of probabilities: how far they lie from what comes true, freed of what chance adds.

Probabilities fall into ten bins of equal width (Guo et al. 2017); the error is the root of the mean over values of the squared mean gap of
their bin, for chance enters the root mean square alike wherever the gaps lie, and the mean distance not.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from phf.intervals import CONFIDENCE
from phf.records import Estimate

NUM_BINS = 10
_NUM_DISTANCES = 17
"""Known errors that are simulated; what lies between them is interpolated."""

_Floats = npt.NDArray[np.float64]
_Simulate = Callable[[float], tuple[float, _Floats]]


def estimate_error(
    predicted: _Floats,
    actual: npt.NDArray[np.bool_] | _Floats,
    num_draws: int,
    seed: int,
    clusters: npt.ArrayLike | None = None,
) -> tuple[Estimate, float, tuple[float, float]]:
    """The calibration error, debiased; as it is found; and between which two 95 % of those of exactly right probabilities lie.

    The plain error is that of chance and of the model together, and a bootstrap doubles chance instead of removing it. So
    probabilities of known errors are made, on the line from exactly right through the found gaps of the bins, and what comes
    true is simulated for each. The estimate is the error whose median plain error is the one found; its interval holds the errors
    under which it would lie as near to them as 95 of 100 such estimates do (0 where chance alone would do it).

    Args:
        predicted: probabilities [N], N > 0.
        actual: what came true [N]: yes or no, drawn by coin; or a number in [0, 1] (a rating, a teacher's score), whose
            residuals about the mean of its bin are drawn again.
        clusters: what hangs together [N], any integers: drawn together, with its residuals.
    """
    rng, plain = np.random.default_rng(seed), find_error(predicted, actual)
    gaps = _sum_bins(predicted, predicted - actual) / np.maximum(_sum_bins(predicted), 1)
    direction = gaps[find_bins(predicted)] / max(plain, 1e-12)
    if clusters is None and actual.dtype == np.bool_:
        simulate = _toss_coins(predicted, direction, num_draws, rng)
    else:
        residuals = actual - predicted + gaps[find_bins(predicted)]
        of = np.arange(len(predicted)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        simulate = _draw_residuals(predicted, direction, residuals, of, num_draws, rng)

    _, by_chance = simulate(0.0)
    simulated = [simulate(distance) for distance in np.linspace(0, plain + by_chance.max(), _NUM_DISTANCES)]
    truths, found = np.array([truth for truth, _ in simulated]), np.array([errors for _, errors in simulated])
    medians = np.maximum.accumulate(np.median(found, axis=1))
    reach = np.quantile(np.abs(np.interp(found, medians, truths) - truths[:, None]), CONFIDENCE, axis=1)
    mean = float(np.interp(plain, medians, truths))
    errors = np.linspace(0, truths[-1], 1001)
    held = np.append(errors[np.abs(errors - mean) <= np.interp(errors, truths, reach)], mean)
    high = float(held.max()) if held.max() < truths[-1] else np.nan  # nothing so far off was ruled out
    least, most = np.quantile(by_chance, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(held.min()), high, len(predicted)), plain, (float(least), float(most))


def find_error(predicted: _Floats, actual: npt.NDArray[np.bool_] | _Floats) -> float:
    """The plain calibration error, chance included; of the true shares in the place of what came true, the true one."""
    return float(_root_mean_square(_sum_bins(predicted, predicted - actual), _sum_bins(predicted)))


def find_bins(predicted: _Floats) -> npt.NDArray[np.int64]:
    """The bin of each probability: int64 [N]."""
    places: npt.NDArray[np.int64] = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return places


def _toss_coins(
    predicted: _Floats, direction: _Floats, num_draws: int, rng: np.random.Generator
) -> _Simulate:
    """Values are drawn again, and each comes true by the coin of its probability."""
    num = len(predicted)
    rows, uniforms = rng.integers(num, size=(num_draws, num)), rng.random((num_draws, num))
    bins = find_bins(predicted)[rows] + NUM_BINS * np.arange(num_draws)[:, None]
    counts = _count(bins, num_draws)
    promised = _count(bins, num_draws, predicted[rows])

    def simulate(distance: float) -> tuple[float, _Floats]:
        """The true error of probabilities that are so far off, and plain errors that would be found."""
        shares = np.clip(predicted - distance * direction, 0, 1)
        num_true = _count(bins[uniforms < shares[rows]], num_draws)
        return find_error(predicted, shares), _root_mean_square(promised - num_true, counts)

    return simulate


def _draw_residuals(
    predicted: _Floats,
    direction: _Floats,
    residuals: _Floats,
    of: npt.NDArray[np.int64],
    num_draws: int,
    rng: np.random.Generator,
) -> _Simulate:
    """Clusters are drawn again, each with its residuals."""
    num_clusters = int(of.max()) + 1
    drawn = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_draws)
    cells = of * NUM_BINS + find_bins(predicted)
    # The residuals of a bin are about its own mean, and so vary less than about the true one.
    clusters_of = _count(cells, num_clusters).astype(bool).sum(axis=0)
    residuals = residuals * np.sqrt(clusters_of / np.maximum(clusters_of - 1, 1))[find_bins(predicted)]
    counts = drawn @ _count(cells, num_clusters)

    def simulate(distance: float) -> tuple[float, _Floats]:
        """See `_toss_coins`."""
        shares = np.clip(predicted - distance * direction, 0, 1)
        off = _count(cells, num_clusters, predicted - shares - residuals)
        return find_error(predicted, shares), _root_mean_square(drawn @ off, counts)

    return simulate


def _sum_bins(predicted: _Floats, values: _Floats | None = None) -> _Floats:
    """The sum of values in each bin, or how many there are: float64 [bins]."""
    return np.bincount(find_bins(predicted), values, NUM_BINS).astype(np.float64)


def _count(bins: npt.NDArray[np.int64], num_rows: int, values: _Floats | None = None) -> _Floats:
    """The sum of values in each bin of each row, or how many there are: float64 [rows, bins]; the bins of a row follow those before."""
    weights = None if values is None else values.ravel()
    sums = np.bincount(bins.ravel(), weights, minlength=num_rows * NUM_BINS)
    return sums.reshape(num_rows, NUM_BINS).astype(np.float64)


def _root_mean_square(gaps: _Floats, counts: _Floats) -> _Floats:
    """Root of the mean over values of the squared mean gap of their bin: sums of gaps, counts [... bins] -> [...]."""
    squares = gaps**2 / np.maximum(counts, 1)
    root: _Floats = np.sqrt(squares.sum(axis=-1) / counts.sum(axis=-1))
    return root
