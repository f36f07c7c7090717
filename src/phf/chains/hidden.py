"""The chain behind a judge that errs: a hidden Markov model whose emissions are the judge's known confusion, held fixed.

A judge's error looks like a switch and back, so that judged pages switch more often than the text does. With *free* emissions the
model finds another truth (.82 and .58 for .92 and .85): what the judge confuses must be measured beside (docs/dynamics.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.chains.chain import Chain, count_steps, draw_weights, fit_chain
from phf.chains.pages import Pages
from phf.intervals import percentile_estimate
from phf.records import Estimate

_Values = npt.NDArray[np.float64]

_MAX_ROUNDS = 300
_LEAST = 1e-9
"""Rates do not leap to 0, from which they would not come back."""
_TOLERANCE = 1e-6
"""Largest change of a rate in a round at which the fit ends."""
_ROUGH = 1e-4
"""The same for a resample's, which stands in a percentile."""


@dataclass(frozen=True)
class Confusion:
    """What is known of a judge's errors.

    Attributes:
        counts: how many segments of each page are of a state and judged how, float64 [pages, true, judged].
        is_own: whether these are the judged pages themselves, which are resampled with them; others are resampled on their own.
    """

    counts: _Values
    is_own: bool

    def redraw(self, drawn: _Values, rng: np.random.Generator) -> _Values:
        """The table [true, judged] of a resample: segments of one page may share their errors, so pages are what is drawn.

        Args:
            drawn: how often each judged page comes in it.
        """
        num = len(self.counts)
        weights = drawn if self.is_own else rng.multinomial(num, np.full(num, 1 / num))
        return np.tensordot(weights, self.counts, axes=1)


def count_confusion(
    truth: tuple[_Values, float], judged: tuple[_Values, float], owners: npt.NDArray[np.int64]
) -> _Values:
    """How many segments of each page are good (0) or bad (1), and judged so, float64 [pages, true, judged].

    Args:
        truth, judged: scores of the same segments, and the threshold above which they are bad; NaN = unscored, left out.
        owners: the page of each segment, from 0.
    """
    known = ~np.isnan(truth[0] + judged[0])
    is_bad, is_called = (scores[known] > threshold for scores, threshold in (truth, judged))
    num = int(owners.max(initial=-1)) + 1
    cells = 4 * owners[known] + 2 * is_bad + is_called
    return np.bincount(cells, minlength=4 * num).astype(np.float64).reshape(-1, 2, 2)


def fit_hidden(pages: Pages, confusion: _Values, weights: _Values | None = None) -> Chain:
    """The chain of true states that makes the judged ones likeliest, by expectation maximisation (Baum and Welch).

    Args:
        pages: of judged states.
        confusion: P(judged state | true state), float64 [true, judged]; it is held fixed.
        weights: how often each page counts, [pages].
    """
    seen = _Seen.create(pages)
    counts = seen.count(np.ones(len(pages)) if weights is None else weights)
    return _fit(seen, confusion, counts, seen.begin(counts), _TOLERANCE)


def estimate_hidden(
    pages: Pages,
    judge: Confusion,
    statistics: Mapping[str, Callable[[Chain], _Values]],
    num_bootstrap: int,
    seed: int,
    weights: _Values | None = None,
) -> dict[str, Estimate]:
    """Numbers of the hidden chain, with intervals over pages *and* over the judge's confusion.

    Args:
        judge: each resample draws its confusion anew. States behind those that it knows are seen without error.
        weights: how much each page counts, [pages].
    """
    rng, seen = np.random.default_rng([seed, 1]), _Seen.create(pages)
    weights = np.ones(len(pages)) if weights is None else weights
    whole = fit_hidden(pages, _find_confusion(judge.counts.sum(axis=0), pages.num_states), weights)
    chains = []
    for drawn in draw_weights(len(pages), num_bootstrap, seed):
        confusion = _find_confusion(judge.redraw(drawn, rng), pages.num_states)
        chains.append(_fit(seen, confusion, seen.count(weights * drawn), _step_inside(whole), _ROUGH))
    resampled = Chain(np.stack([own.initial for own in chains]), np.stack([own.steps for own in chains]))
    return {
        name: percentile_estimate(float(measure(whole)), measure(resampled), len(pages))
        for name, measure in statistics.items()
    }


@dataclass(frozen=True)
class _Seen:
    """The different ones among pages, the longest first.

    Attributes:
        number: which of them each page is.
    """

    pages: Pages
    number: npt.NDArray[np.int64]

    @classmethod
    def create(cls, pages: Pages) -> "_Seen":
        rows = np.column_stack([-pages.lengths, pages.ended, pages.states])
        kinds, number = np.unique(rows, axis=0, return_inverse=True)
        return cls(Pages(kinds[:, 2:], kinds[:, 1] == 1, pages.num_states), number)

    def count(self, weights: _Values) -> _Values:
        """How often each comes among pages of these weights."""
        return np.bincount(self.number, weights, minlength=len(self.pages)).astype(np.float64)

    def begin(self, counts: _Values) -> Chain:
        """The judged chain, well off the border."""
        return _step_inside(fit_chain(np.tensordot(counts, count_steps(self.pages), axes=1)), 0.1)


def _find_confusion(table: _Values, num_states: int) -> _Values:
    """P(judged | true), [num_states, num_states], with half a segment in every cell of the table: an error that was never seen is not
    impossible."""
    confusion, smooth = np.eye(num_states), table + 0.5
    confusion[: len(table), : len(table)] = smooth / smooth.sum(axis=1, keepdims=True)
    return confusion


def _step_inside(chain: Chain, share: float = 0.01) -> Chain:
    """A chain off the border, which a fit that begins there could not leave."""
    num = len(chain.initial)
    return Chain((1 - share) * chain.initial + share / num, (1 - share) * chain.steps + share / (num + 1))


def _fit(seen: _Seen, confusion: _Values, counts: _Values, chain: Chain, tolerance: float) -> Chain:
    kept = np.flatnonzero(counts)  # a page that does not count may have become impossible
    pages, counts = seen.pages.take(kept), counts[kept]
    table = np.column_stack([confusion, np.ones(len(confusion))])  # AFTER, -1, is the last column
    likelihood = np.ascontiguousarray(np.moveaxis(table[:, pages.states], -1, 0))
    rates = np.vstack([chain.initial, chain.steps])
    for _ in range(_MAX_ROUNDS):
        once = _improve(pages, likelihood, counts, rates)
        if np.abs(once - rates).max() < tolerance:
            break
        twice = _improve(pages, likelihood, counts, once)
        rates = _improve(pages, likelihood, counts, _leap(rates, once, twice))
    return Chain(rates[0], rates[1:])


def _improve(pages: Pages, likelihood: _Values, counts: _Values, rates: _Values) -> _Values:
    """One round of expectation maximisation: rates [1 + S, S], the first row initial, to likelier ones.

    Args:
        pages: the longest first.
        likelihood: P(what the judge said | true state) of each segment, [T, S, pages].
    """
    initial, steps = rates[0], rates[1:]
    forward = np.empty_like(likelihood)  # P(state | what was judged up to here)
    law = initial[:, None]
    alive = pages.is_there.sum(axis=0)
    for place, num in enumerate(alive):
        own = law[:, :num] * likelihood[place, :, :num]
        forward[place, :, :num] = own / own.sum(axis=0)
        law = steps.T @ forward[place, :, :num]
    last = forward[pages.lengths - 1, :, np.arange(len(pages))].T
    # P(what comes | state), scaled so that forward * backward is P(state | the whole page).
    backward = np.where(pages.ended, (1 - steps.sum(axis=1))[:, None], 1.0)
    backward /= (last * backward).sum(axis=0)
    ends = (last * backward) @ (counts * pages.ended)
    flows = np.zeros_like(steps)
    for place in range(len(likelihood) - 2, -1, -1):
        num = alive[place + 1]
        here, ahead = forward[place, :, :num], likelihood[place + 1, :, :num] * backward[:, :num]
        carried = steps @ ahead
        scale = 1 / np.einsum("sn,sn->n", here, carried)
        flows += (here * (counts[:num] * scale)) @ ahead.T
        backward[:, :num] = carried * scale
    flows *= steps
    first = (forward[0] * backward) @ counts
    left = flows.sum(axis=1) + ends
    flows = np.divide(flows, left[:, None], out=steps.copy(), where=left[:, None] > 0)
    return np.vstack([first / first.sum(), flows])


def _leap(rates: _Values, once: _Values, twice: _Values) -> _Values:
    """Where two rounds point to, kept inside the simplex (SQUAREM: Varadhan and Roland 2008)."""
    first, second = once - rates, twice - 2 * once + rates
    bend = float(np.linalg.norm(second))
    if bend == 0:
        return twice
    length = max(float(np.linalg.norm(first)) / bend, 1.0)
    far = np.maximum(rates + 2 * length * first + length**2 * second, _LEAST)
    far[0] /= far[0].sum()
    far[1:] /= np.maximum(far[1:].sum(axis=1, keepdims=True) + _LEAST, 1.0)
    return far
