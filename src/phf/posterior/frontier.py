"""The frontier of a base model: the least KL from it at which a mean score can be had (docs/posterior.md).

Among all policies with one mean score, p*_beta(x) = p0(x) exp(-score(x) / beta) / Z is nearest to p0; over all beta these make
the frontier. Scores have a lower bound, so draws of p0 that are kept with probability exp(-(score - bound) / beta) are exact draws
of p*, and every number of p* is a weighted mean over draws of p0. Lambda is 1 / beta.

A text without a score has no place in p*: everything here is given that a text is scored, p0 too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from phf.intervals import CONFIDENCE
from phf.records import Estimate

_Values = npt.NDArray[np.float64]

LEAST_DRAWS = 30
"""Effective draws (sum w)^2 / sum w^2 below which a weighted mean says nothing, and the frontier is not known."""
_GRID = 80
_LEFT_OUT = 512
"""Distinct scores of which the jackknife leaves a draw out."""
_BLOCK = 2048
"""Draws that are weighed at a time, which bounds memory."""


class Resamples:
    """A sample and its bootstrap resamples, as counts.

    Attributes:
        counts: uint8 [1 + num_bootstrap, num], how often each draw comes in each; the first row is the sample itself.
    """

    def __init__(self, num: int, num_bootstrap: int, seed: int) -> None:
        rng = np.random.default_rng([seed, num])
        self.counts = np.ones((1 + num_bootstrap, num), np.uint8)
        for row in self.counts[1:]:
            row[:] = np.bincount(rng.integers(num, size=num), minlength=num)

    def sum(self, columns: Callable[[slice], _Values]) -> _Values:
        """Sums over each resample: [1 + num_bootstrap, columns].

        Args:
            columns: gives those of some draws, [draws, columns]; not all are held at a time.
        """
        parts = (slice(start, start + _BLOCK) for start in range(0, self.counts.shape[1], _BLOCK))
        return np.asarray(sum(self.counts[:, part].astype(np.float64) @ columns(part) for part in parts))


def estimate(values: _Values, count: int) -> Estimate:
    """The first value, with the percentile interval of the others. A NaN among these is one that lies below what is known:
    where there are too many of them, the lower end is unknown."""
    tail = (1 - CONFIDENCE) / 2
    others = np.sort(np.where(np.isnan(values[1:]), -np.inf, values[1:]))
    if np.isnan(values[0]) or len(others) == 0:
        return Estimate(float(values[0]), np.nan, np.nan, count)
    ends = (float(end) for end in np.quantile(others, [tail, 1 - tail], method="nearest"))
    low, high = (end if np.isfinite(end) else np.nan for end in ends)
    return Estimate(float(values[0]), low, high, count)


@dataclass(frozen=True)
class Route:
    """p* along lambda, by the draws and by each resample of them.

    Attributes:
        lambdas: [L] 1 / beta.
        log_z: [R, L] log E[exp(-lambda (score - bound))].
        kl: [R, L] KL(p* || p0), nats a text.
        scores: [judges, R, L] mean score under p*, the annotator's first.
        ess: [R, L] effective draws as a share of all that are scored.
        base_share: [R] of p0's draws that are scored.
    """

    lambdas: _Values
    log_z: _Values
    kl: _Values
    scores: _Values
    ess: _Values
    base_share: _Values

    def find_kl(self, score: _Values, judge: int = 0) -> _Values:
        """The least KL on the route at which a judge's mean score is as low, resample by resample; 0 where p0's is, NaN where it is
        lower than the route is known for: [R] -> [R]."""
        # KL grows with the square of what the score falls by, at first: its root is nearly straight.
        return self._interpolate(score, judge, np.sqrt(self.kl)) ** 2

    def find_lambda(self, score: _Values) -> _Values:
        """Where the annotator's mean score is as low: [R] -> [R]; see `find_kl`."""
        return self._interpolate(score, 0, np.broadcast_to(self.lambdas, self.kl.shape))

    def _interpolate(self, score: _Values, judge: int, of: _Values) -> _Values:
        found = np.empty(len(score))
        for row, wanted in enumerate(score):
            reached = np.minimum.accumulate(self.scores[judge, row])
            # np.interp wants ascending places, and gives the ends of what lies beyond.
            found[row] = np.interp(-wanted, -reached, of[row], right=np.nan)
        return found


class Frontier:
    """p* of a base model, by draws of it.

    Attributes:
        scores: [judges, N] of the draws, the annotator's first; NaN = unscored.
        bound: what no score lies below.
    """

    def __init__(self, scores: _Values, *, num_bootstrap: int, seed: int) -> None:
        self.scores = np.atleast_2d(scores)
        self._seed, self._num_bootstrap = seed, num_bootstrap
        self.bound = min(0.0, float(np.nanmin(self.scores[0])))
        self.is_scored = ~np.isnan(self.scores[0])

    @cached_property
    def resamples(self) -> Resamples:
        """Of the draws: the same ones for all that is estimated from them."""
        return Resamples(len(self.is_scored), self._num_bootstrap, self._seed)

    @property
    def num_scored(self) -> int:
        """Draws with the annotator's score."""
        return int(self.is_scored.sum())

    def weigh(self, lambdas: npt.ArrayLike, part: slice = slice(None)) -> _Values:
        """exp(-lambda (score - bound)) of each draw, in [0, 1]; 0 of one without a score: [L] -> [draws, L]."""
        is_scored = self.is_scored[part]
        above = np.where(is_scored, self.scores[0, part] - self.bound, 0.0)
        weights = np.exp(-np.multiply.outer(above, np.asarray(lambdas, np.float64)))
        return np.where(is_scored[:, None], weights, 0.0)

    def follow(self, lambdas: npt.ArrayLike) -> Route:
        """p* at some lambdas."""
        lambdas = np.asarray(lambdas, np.float64)
        size = len(lambdas)

        def list_columns(part: slice) -> _Values:
            weights = self.weigh(lambdas, part)
            columns = [weights, weights**2, self.is_scored[part, None].astype(np.float64)]
            for score in self.scores[:, part]:
                known = ~np.isnan(score)
                columns += [weights * np.where(known, score, 0.0)[:, None], weights * known[:, None]]
            return np.concatenate(columns, 1)

        sums = self.resamples.sum(list_columns)
        total, squares, num = sums[:, :size], sums[:, size : 2 * size], sums[:, 2 * size, None]
        rest = sums[:, 2 * size + 1 :].reshape(len(sums), len(self.scores), 2, size)
        scores = (rest[:, :, 0] / rest[:, :, 1]).transpose(1, 0, 2)
        log_z = np.log(total / num)
        kl = np.maximum(-lambdas * (scores[0] - self.bound) - log_z, 0.0)
        return Route(lambdas, log_z, kl, scores, total**2 / squares / num, num[:, 0] / len(self.is_scored))

    def follow_whole(self) -> Route:
        """p* from p0 itself to where fewer than `LEAST_DRAWS` draws carry the weight."""
        return self.follow(np.concatenate([[0.0], self._grid()]))

    def _grid(self) -> _Values:
        """Lambdas whose mean scores are close together."""
        longest = 1.0
        spread = float(np.nanstd(self.scores[0]))
        spread = spread if spread > 1e-9 else 1.0  # equal scores differ by rounding
        for exponent in range(40):
            weights = self.weigh([2.0**exponent / spread])
            if weights.sum() ** 2 / max((weights**2).sum(), 1e-300) < LEAST_DRAWS:
                break
            longest = 2.0**exponent
        return np.geomspace(1e-2, longest, _GRID) / spread

    def keep(self, chances: _Values, beta: float) -> npt.NDArray[np.bool_]:
        """Which draws are exact draws of p*: [N].

        Args:
            chances: [N] uniform numbers in [0, 1), one for each draw at every beta.
        """
        kept: npt.NDArray[np.bool_] = chances < self.weigh([1 / beta])[:, 0]
        return kept

    def correct_log_z(self, route: Route) -> _Values:
        """The estimates of log Z, less their bias -(1 / ess - 1) / 2N to first order (the logarithm of a mean lies too low): [R, L]."""
        result: _Values = route.log_z + (1 / route.ess - 1) / (2 * self.num_scored)
        return result


@dataclass(frozen=True)
class Chosen:
    """A policy that chooses among draws of p0 by their scores, by the draws and by each resample of them.

    Attributes:
        kl: [R] KL(policy || p0), nats a text.
        scores: [judges, R].
        cost: draws per text kept.
    """

    kl: _Values
    scores: _Values
    cost: float


def best_of(frontier: Frontier, n: int) -> Chosen:
    """The best of n draws by the annotator, ties at random: exact, by order statistics of the distribution of the draws.

    Its KL is that of the density n-th power differences over the scores' distribution, with ties counted: log n - (n - 1) / n where no
    two draws have one score, and less where they do (an upper bound: Beirami et al. 2024, arXiv 2401.01879).
    """
    scored = frontier.scores[:, frontier.is_scored]
    order = np.argsort(scored[0], kind="stable")
    _, first, repeats = np.unique(scored[0][order], return_index=True, return_counts=True)
    known = ~np.isnan(scored[:, order])
    values = np.where(known, scored[:, order], 0.0)
    found, kls = [], []
    pseudo = _find_pseudo_values(repeats.astype(float), n)
    for counts in np.array_split(frontier.resamples.counts, len(frontier.resamples.counts) // 50 + 1):
        sorted_counts = counts[:, np.flatnonzero(frontier.is_scored)[order]].astype(np.float64)
        together = np.add.reduceat(sorted_counts, first, axis=1)
        share = _find_best(together / together.sum(1, keepdims=True), n) / np.maximum(together, 1e-300)
        own = np.repeat(share, repeats, axis=1) * sorted_counts
        found.append((values @ own.T) / (known @ own.T))
        kls.append(sorted_counts @ pseudo / sorted_counts.sum(1))
    return Chosen(np.concatenate(kls), np.concatenate(found, 1), float(n))


def find_bound(n: int) -> float:
    """The upper bound of KL(best of n || p0) that is often given for it, log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def _find_best(shares: _Values, n: int) -> _Values:
    """Probability that the best of n has each distinct score, from the scores' own, best first: [R, distinct] -> the same."""
    # Raised once: one number to a power may round otherwise in another place of an array, and a difference of such is below 0.
    powers = shares[:, ::-1].cumsum(1)[:, ::-1] ** n
    result: _Values = np.maximum(-np.diff(powers, axis=1, append=0.0), 0.0)
    return result


def _find_pseudo_values(counts: _Values, n: int) -> _Values:
    """What each draw stands for in KL(best of n || p0), by the jackknife, from how often each distinct score came, worst last: [num].

    Their mean is the KL less its bias, and their mean over a resample that of the resample, to first order. Draws that are alone with their score stand for a continuum, where it does not depend on the scores at all.
    """

    def plug_in(rows: _Values) -> _Values:
        shares = rows / rows.sum(1, keepdims=True)
        chosen = _find_best(shares, n)
        result: _Values = (xlogy(chosen, chosen) - xlogy(chosen, np.where(shares > 0, shares, 1))).sum(1)
        return result

    num = int(counts.sum())
    # Of scores that nearly nobody shares those between are as these are; of a score that many share no other one is.
    even = np.linspace(0, len(counts) - 1, _LEFT_OUT // 2).astype(np.int64)
    places = np.unique(np.concatenate([np.argsort(-counts)[: _LEFT_OUT // 2], even]))
    left_out = []
    for place in places:
        row = counts.copy()
        row[place] -= 1
        left_out.append(float(plug_in(row[None])[0]))
    values = num * plug_in(counts[None])[0] - (num - 1) * np.array(left_out)
    return np.repeat(np.interp(np.arange(len(counts)), places, values), counts.astype(np.int64))


def reject(frontier: Frontier, threshold: float) -> Chosen:
    """Draws until a score is at most the threshold: p0 given that it is; KL = -log P(score <= threshold)."""
    kept = frontier.is_scored & (np.nan_to_num(frontier.scores[0], nan=np.inf) <= threshold)
    known = ~np.isnan(frontier.scores) & kept
    rows = np.stack([kept, frontier.is_scored, *known, *np.where(known, frontier.scores, 0.0)], 1)
    sums = frontier.resamples.sum(lambda part: rows[part].astype(np.float64))
    num = len(frontier.scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (sums[:, 2 + num :] / sums[:, 2 : 2 + num]).T
        kl = np.log(sums[:, 1] / sums[:, 0])
        cost = float(len(kept) / sums[0, 0])
    return Chosen(kl, scores, cost)


@dataclass(frozen=True)
class Standing:
    """Where a policy stands beside the frontier, by the draws and by each resample of them; [R] each.

    Attributes:
        kl: KL(policy || p0), nats a text.
        scores: [judges, R] mean scores.
        excess: [judges, R] KL beyond the frontier's at the same score by each judge; NaN where the frontier is not known so far down.
        beta: at which KL(policy || p*) is least: where the frontier has the policy's score; NaN where that is p0's own or worse.
        to_target: [betas, R] KL(policy || p*).
    """

    kl: _Values
    scores: _Values
    excess: _Values
    beta: _Values
    to_target: _Values


def place(frontier: Frontier, whole: Route, kl: _Values, scores: _Values, betas: Sequence[float]) -> Standing:
    """Where a policy with a KL [R] and scores [judges, R] stands; resamples of it and of the draws of p0 go row by row.

    For every beta KL(policy || p*) = KL(policy || p0) + lambda (score - bound) + log Z. It is least where p* has the policy's own score,
    and there it is the excess: p* is the projection of p0 (Csiszár 1975).
    """
    lambdas = 1 / np.array(betas)
    log_z = frontier.correct_log_z(frontier.follow(lambdas))
    above = scores[0] - frontier.bound
    to_target = kl + np.multiply.outer(lambdas, above) + log_z.T
    excess = np.stack([kl - whole.find_kl(score, judge) for judge, score in enumerate(scores)])
    found = whole.find_lambda(scores[0])
    beta = 1 / np.where(found > 0, found, np.nan)
    return Standing(kl, scores, excess, beta, to_target)


def measure_draws(
    scores: _Values, gaps: _Values, base_share: _Values, *, num_bootstrap: int, seed: int
) -> tuple[_Values, _Values]:
    """KL(policy || p0) given that texts are scored, [R], and mean scores, [judges, R], by draws of the policy.

    Args:
        scores: [judges, M], the annotator's first; NaN = unscored.
        gaps: [M] log p(policy) - log p0 of each draw.
        base_share: [R], of p0's draws that are scored.
    """
    known = ~np.isnan(scores)
    priced = np.where(known[0], gaps, 0.0)
    rows = np.stack([known[0], priced, np.ones(len(gaps)), *known, *np.where(known, scores, 0.0)], 1)
    sums = Resamples(len(gaps), num_bootstrap, seed + 1).sum(lambda part: rows[part].astype(np.float64))
    num = len(scores)
    own_share = sums[:, 0] / sums[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample in which none is scored
        kl = sums[:, 1] / sums[:, 0] - np.log(own_share) + np.log(base_share)
        return kl, (sums[:, 3 + num :] / sums[:, 3 : 3 + num]).T
