"""The chain behind a judge that errs: a hidden Markov model whose emissions are the judge's known confusion, held fixed.

A judge's error looks like a switch and back, so that judged pages switch more often than the text does. With *free* emissions the
model finds another truth (.82 and .58 for .92 and .85): what the judge confuses must be measured beside (docs/dynamics.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.dynamics.chain import Chain, count_steps, draw_weights, fit_chain
from phf.dynamics.pages import Pages
from phf.intervals import percentile_estimate
from phf.records import Estimate

_Values = npt.NDArray[np.float64]

_MAX_ROUNDS = 2000
_LEAST = 1e-9
"""Rates do not leap to 0, from which they would not come back."""
_TOLERANCE = 1e-6
"""Largest change of a rate in a round at which the fit ends."""
_ROUGH = 1e-4
"""The same for a resample's, which stands in a percentile."""


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
    table: npt.ArrayLike,
    statistics: Mapping[str, Callable[[Chain], _Values]],
    num_bootstrap: int,
    seed: int,
) -> dict[str, Estimate]:
    """Numbers of the hidden chain, with intervals over pages *and* over the judge's confusion.

    Args:
        table: how many segments of a true state were judged how, [true, judged]: what the confusion was measured on. Each resample
            draws it anew.
    """
    counts, rng, seen = np.asarray(table, np.float64), np.random.default_rng([seed, 1]), _Seen.create(pages)
    all_of = seen.count(np.ones(len(pages)))
    whole = _fit(seen, _to_shares(counts), all_of, seen.begin(all_of), _TOLERANCE)
    chains = []
    for weights in draw_weights(len(pages), num_bootstrap, seed):
        drawn = np.stack([rng.multinomial(int(row.sum()), row / row.sum()) for row in counts])
        chains.append(_fit(seen, _to_shares(drawn), seen.count(weights), _step_inside(whole), _ROUGH))
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
        alive: how many have a segment in each place, [T].
    """

    pages: Pages
    number: npt.NDArray[np.int64]
    alive: npt.NDArray[np.int64]

    @classmethod
    def create(cls, pages: Pages) -> "_Seen":
        rows = np.column_stack([-pages.lengths, pages.ended, pages.states])
        kinds, number = np.unique(rows, axis=0, return_inverse=True)
        different = Pages(kinds[:, 2:], kinds[:, 1] == 1, pages.num_states)
        return cls(different, number, different.is_there.sum(axis=0))

    def count(self, weights: _Values) -> _Values:
        """How often each comes among pages of these weights."""
        return np.bincount(self.number, weights, minlength=len(self.pages)).astype(np.float64)

    def begin(self, counts: _Values) -> Chain:
        """The judged chain, well off the border."""
        return _step_inside(fit_chain(np.tensordot(counts, count_steps(self.pages), axes=1)), 0.1)


def _to_shares(table: npt.NDArray[np.floating] | npt.NDArray[np.int64]) -> _Values:
    """Shares of each row, with half a segment in every cell: an error that was never seen is not impossible."""
    smooth = table + 0.5
    result: _Values = smooth / smooth.sum(axis=1, keepdims=True)
    return result


def _step_inside(chain: Chain, share: float = 0.01) -> Chain:
    """A chain off the border, which a fit that begins there could not leave."""
    num = len(chain.initial)
    return Chain((1 - share) * chain.initial + share / num, (1 - share) * chain.steps + share / (num + 1))


def _fit(seen: _Seen, confusion: _Values, counts: _Values, chain: Chain, tolerance: float) -> Chain:
    table = np.column_stack([confusion, np.ones(len(confusion))])  # AFTER, -1, is the last column
    likelihood = np.ascontiguousarray(np.moveaxis(table[:, seen.pages.states], -1, 0))
    rates = np.vstack([chain.initial, chain.steps])
    for _ in range(_MAX_ROUNDS):
        once = _improve(seen, likelihood, counts, rates)
        if np.abs(once - rates).max() < tolerance:
            break
        twice = _improve(seen, likelihood, counts, once)
        rates = _improve(seen, likelihood, counts, _leap(rates, once, twice))
    return Chain(rates[0], rates[1:])


def _improve(seen: _Seen, likelihood: _Values, counts: _Values, rates: _Values) -> _Values:
    """One round of expectation maximisation: rates [1 + S, S], the first row initial, to likelier ones.

    Args:
        likelihood: P(what the judge said | true state) of each segment, [T, S, pages].
    """
    initial, steps = rates[0], rates[1:]
    forward = np.empty_like(likelihood)  # P(state | what was judged up to here)
    law = initial[:, None]
    for place, num in enumerate(seen.alive):
        own = law[:, :num] * likelihood[place, :, :num]
        forward[place, :, :num] = own / own.sum(axis=0)
        law = steps.T @ forward[place, :, :num]
    pages = seen.pages
    last = forward[pages.lengths - 1, :, np.arange(len(pages))].T
    # P(what comes | state), scaled so that forward * backward is P(state | the whole page).
    backward = np.where(pages.ended, (1 - steps.sum(axis=1))[:, None], 1.0)
    backward /= (last * backward).sum(axis=0)
    ends = (last * backward) @ (counts * pages.ended)
    flows = np.zeros_like(steps)
    for place in range(len(likelihood) - 2, -1, -1):
        num = seen.alive[place + 1]
        here, ahead = forward[place, :, :num], likelihood[place + 1, :, :num] * backward[:, :num]
        carried = steps @ ahead
        scale = 1 / np.einsum("sn,sn->n", here, carried)
        flows += (here * (counts[:num] * scale)) @ ahead.T
        backward[:, :num] = carried * scale
    flows *= steps
    first = (forward[0] * backward) @ counts
    return np.vstack([first / first.sum(), flows / (flows.sum(axis=1) + ends)[:, None]])


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
