"""Two curves fitted to what finetuning measured: how far a score can be trusted from the start, and how many reward calls meet a rival.

Both are sums of columns times factors once a coefficient or two is given, so that is looked for on a grid, and least squares do the rest.
Intervals are parametric: every measured number is drawn again within its own standard error, and all is fitted again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from phf.errors import PHFError
from phf.intervals import CONFIDENCE
from phf.records import Estimate

_Values = npt.NDArray[np.float64]
Curve = Callable[..., _Values]

_LEAST_POINTS = 4
_NUM_SCALES, _NUM_POWERS = 400, 40
"""Of a grid's scales alone, and of powers beside a fifth of them."""
_TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
_Z = float(ndtri(_TAILS[1]))


def _bend(d: _Values, a: npt.ArrayLike, b: npt.ArrayLike) -> _Values:
    return np.asarray(d * (a - b * d))


def _bend_log(d: _Values, a: npt.ArrayLike, b: npt.ArrayLike) -> _Values:
    return np.asarray(d * (a - b * np.log(d)))


def _saturate(d: _Values, a: npt.ArrayLike, b: npt.ArrayLike) -> _Values:
    return np.asarray(a * -np.expm1(-d / b))


FORMS: Mapping[str, Curve] = {"d(a - b d)": _bend, "d(a - b log d)": _bend_log, "a(1 - exp(-d/b))": _saturate}
"""Gain in gold score against d = sqrt(KL): Gao et al. (2022, arXiv 2210.10760) for best of n and for RL, and one that only levels off."""


@dataclass(frozen=True, slots=True)
class FittedForm:
    """A form, fitted to smaller d.

    Attributes:
        a, b: its coefficients, with intervals.
        error: root of the mean squared error on the larger d that were held out, in units of the score.
        wins: share of the draws in which no other form has a smaller one.
    """

    form: str
    a: Estimate
    b: Estimate
    error: float
    wins: float


def fit_forms(
    d: _Values, gains: _Values, errors: _Values, *, held_out: float = 0.4, num_draws: int = 200, seed: int = 0
) -> list[FittedForm]:
    """Fit each form to the smaller d and judge it on the larger ones: the best first, its rival second.

    Args:
        d: sqrt(KL) in nats a text, above 0.
        gains: by how much the gold score is better than the start's, [N].
        errors: standard errors of the gains. They are enlarged where the points scatter more about the form that fits all of them best,
            as those of several seeds do (Birge 1932).
        held_out: the share of the points, those of the largest d, by which the forms are judged.

    Raises:
        PHFError: too few points for two coefficients and a judgement.
    """
    order = np.argsort(d)
    d, gains, errors = d[order], gains[order], np.maximum(errors[order], 1e-12)
    num_fitted = len(d) - math.ceil(held_out * len(d))
    if num_fitted < _LEAST_POINTS - 1 or (d <= 0).any():
        raise PHFError(
            f"{len(d)} points with d > 0 are too few to fit forms of over-optimisation and to hold some out; measure at least six"
        )
    misfits = [
        float((((form(d, *_fit_form(form, d, gains[None], errors)[0]) - gains) / errors) ** 2).sum())
        for form in FORMS.values()
    ]
    errors = errors * max(1.0, math.sqrt(min(misfits) / (len(d) - 2)))
    noise = np.random.default_rng(seed).standard_normal((1 + num_draws, len(d)))
    noise[0] = 0
    draws = gains + errors * noise
    fits = {
        name: _fit_form(form, d[:num_fitted], draws[:, :num_fitted], errors[:num_fitted])
        for name, form in FORMS.items()
    }
    far, seen = d[num_fitted:], draws[:, num_fitted:]
    gaps = [
        np.sqrt(((FORMS[name](far, *own.T[..., None]) - seen) ** 2).mean(1)) for name, own in fits.items()
    ]
    best = np.argmin(gaps, axis=0)[1:]
    forms = [
        FittedForm(
            name,
            *(_summarise(values, len(d)) for values in own.T),
            float(gap[0]),
            float(np.mean(best == number)),
        )
        for number, ((name, own), gap) in enumerate(zip(fits.items(), gaps, strict=True))
    ]
    return sorted(forms, key=lambda form: form.error)


def _fit_form(form: Curve, d: _Values, gains: _Values, errors: _Values) -> _Values:
    """a and b of a form for each row of gains [R, N]: [R, 2]."""
    if form is not _saturate:
        return _solve(np.stack([form(d, 1, 0), form(d, 0, 1)], -1)[None], gains, errors)[0]
    scales = np.geomspace(d.min() / 10, d.max() * 10, _NUM_SCALES)
    factors, best = _solve(form(d, 1, scales[:, None])[..., None], gains, errors)
    return np.stack([factors[:, 0], scales[best]], 1)


def _solve(columns: _Values, values: _Values, errors: _Values) -> tuple[_Values, npt.NDArray[np.int64]]:
    """Weighted least squares for each row of values [R, N], by the columns [G, N, K] of the grid's place that fits it best: factors [R, K],
    and the place [R].
    """
    scaled, wanted = columns / errors[:, None], (values / errors).T
    factors = np.linalg.pinv(scaled) @ wanted
    best = ((scaled @ factors - wanted) ** 2).sum(1).argmin(0)
    return factors[best, :, np.arange(len(values))], best


def _summarise(values: npt.ArrayLike, count: int) -> Estimate:
    """The first, with the percentiles of the others."""
    first, *others = np.asarray(values, np.float64)
    low, high = np.quantile(others, _TAILS, method="nearest")
    return Estimate(float(first), float(low), float(high), count)


@dataclass(frozen=True, slots=True)
class Learning:
    """A point of a learning curve: after so many reward calls, what the policy scores, and what it has kept.

    Attributes:
        bits: per byte of held-out text.
        distinct: distinct-2 of its samples.
    """

    calls: float
    score: Estimate
    bits: float
    distinct: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a learning curve meets a rival.

    Attributes:
        calls: reward calls; infinite where the curve's limit does not reach the rival, 0 where its start is as good.
        half, limit: calls to half of all that is ever gained, and the score that is reached in the end.
        fair_calls: up to so many calls the policy keeps bits per byte and variety (`find_fair_calls`).
        fair_share: share of the draws that cross within `fair_calls`.
        shape: what `fall` takes to draw the curve.
    """

    calls: Estimate
    half: Estimate
    limit: Estimate
    fair_calls: float
    fair_share: float
    shape: tuple[float, ...]

    @property
    def is_fair(self) -> bool:
        """Whether it crosses before it has paid for its score with what is held equal."""
        return self.calls.mean <= self.fair_calls


def fall(
    calls: _Values, start: float, limit: float, log_half: npt.ArrayLike, log_power: npt.ArrayLike
) -> _Values:
    """s(n) = limit + (start - limit) / (1 + (n / half)^power)."""
    return np.asarray(limit + (start - limit) / (1 + (calls / np.exp(log_half)) ** np.exp(log_power)))


def find_crossing(
    curve: Sequence[Learning],
    rival: Estimate,
    *,
    rival_bits: float,
    start_distinct: float,
    num_draws: int = 500,
    seed: int = 0,
) -> Crossing:
    """The reward calls at which a learning curve meets a rival's score, with its interval; scores are lower = better.

    Args:
        curve: with a point at 0 calls.
        rival: its score, by the same judge, on as many samples.
        rival_bits, start_distinct: see `find_fair_calls`.

    Raises:
        PHFError: fewer than `_LEAST_POINTS` points.
    """
    points = sorted(curve, key=lambda point: point.calls)
    if len(points) < _LEAST_POINTS:
        raise PHFError(
            f"{len(points)} points are too few for a learning curve; measure at least {_LEAST_POINTS}"
        )
    calls = np.array([point.calls for point in points])
    scores = np.array([point.score.mean for point in points])
    errors = np.maximum([_find_error(point.score) for point in points], 1e-12)
    fair_calls = find_fair_calls(points, rival_bits=rival_bits, start_distinct=start_distinct)
    noise = np.random.default_rng(seed).standard_normal((1 + num_draws, len(points) + 1))
    noise[0] = 0
    fits = _fit_falls(calls, scores + errors * noise[:, :-1], errors)
    wanted = rival.mean + _find_error(rival) * noise[:, -1]
    crossings = [_find_calls(goal, *fit) for goal, fit in zip(wanted.tolist(), fits.tolist(), strict=True)]
    within = float(np.mean(np.array(crossings[1:]) <= fair_calls))
    found = (crossings, np.exp(fits[:, 2]).tolist(), fits[:, 1].tolist())
    calls_found, half, limit = (_summarise(own, len(points)) for own in found)
    return Crossing(calls_found, half, limit, fair_calls, within, tuple(fits[0].tolist()))


def _fit_falls(calls: _Values, scores: _Values, errors: _Values) -> _Values:
    """Start, limit, log half and log power of `fall` for each row of scores [R, N]: [R, 4]."""
    halves = np.linspace(
        math.log(max(calls[calls > 0].min() / 4, 1e-3)), math.log(4 * calls.max()), _NUM_SCALES // 5
    )
    powers = np.linspace(math.log(0.25), math.log(6), _NUM_POWERS)
    grid = np.stack(np.meshgrid(halves, powers, indexing="ij"), -1).reshape(-1, 2)
    start, limit = (fall(calls, *ends, *grid.T[..., None]) for ends in ((1, 0), (0, 1)))
    factors, best = _solve(np.stack([start, limit], -1), scores, errors)
    return np.concatenate([factors, grid[best]], 1)


def _find_error(estimate: Estimate) -> float:
    half = (estimate.high - estimate.low) / 2
    return half / _Z if math.isfinite(half) else 0.0


def _find_calls(wanted: float, start: float, limit: float, log_half: float, log_power: float) -> float:
    """The calls at which `fall` has a score."""
    if wanted >= start:
        return 0.0
    if wanted <= limit:
        return math.inf
    return float(math.exp(log_half) * ((start - limit) / (wanted - limit) - 1) ** math.exp(-log_power))


def find_fair_calls(
    points: Sequence[Learning],
    *,
    rival_bits: float,
    start_distinct: float,
    most_bits: float = 0.01,
    least_distinct: float = 0.9,
) -> float:
    """Up to so many calls the policy has bits per byte within a hundredth of the rival's, or fewer, and at least nine tenths of the
    start's distinct-2; between points a line. Infinite if it has them at all points, 0 if it never has.
    """
    # Below 0 is unfair, by whichever is worse.
    slack = [
        min(rival_bits * (1 + most_bits) - point.bits, point.distinct - least_distinct * start_distinct)
        for point in points
    ]
    for place, own in enumerate(slack):
        if own < 0:
            if place == 0:
                return 0.0
            before = slack[place - 1]
            share = before / (before - own)
            return points[place - 1].calls + share * (points[place].calls - points[place - 1].calls)
    return math.inf
