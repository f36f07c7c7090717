"""The chain behind a judge that errs: a hidden Markov model whose emissions are the judge's known confusion, held fixed.

A judge's error looks like a switch and back, so that judged pages switch more often than the text does. With *free* emissions the
model finds another truth (.82 and .58 for .92 and .85): what the judge confuses must be measured beside (docs/dynamics.md).
"""

from collections.abc import Callable, Mapping

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
"""Largest change of a rate at which the fit ends."""


def fit_hidden(pages: Pages, confusion: _Values, weights: _Values | None = None) -> Chain:
    """The chain of true states that makes the judged ones likeliest, by expectation maximisation (Baum and Welch).

    Args:
        pages: of judged states.
        confusion: P(judged state | true state), float64 [true, judged]; it is held fixed.
        weights: how often each page counts, [pages].
    """
    counts = np.tensordot(np.ones(len(pages)) if weights is None else weights, count_steps(pages), axes=1)
    weights = np.ones(len(pages)) if weights is None else weights
    chain = _begin(fit_chain(counts), len(confusion))
    likelihood = _spread(pages, confusion)
    rates = np.concatenate([chain.initial[None], chain.steps])
    for _ in range(_MAX_ROUNDS):
        once = _improve(pages, likelihood, weights, rates)
        twice = _improve(pages, likelihood, weights, once)
        new = _improve(pages, likelihood, weights, _leap(rates, once, twice))
        change, rates = np.abs(new - twice).max(), new
        if change < _TOLERANCE:
            break
    return Chain(rates[0], rates[1:])


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
    counts = np.asarray(table, np.float64)
    confusion = _to_shares(counts)
    whole = fit_hidden(pages, confusion)
    rng = np.random.default_rng([seed, 1])
    chains = []
    for weights in draw_weights(len(pages), num_bootstrap, seed):
        drawn = np.stack([rng.multinomial(int(row.sum()), row / row.sum()) for row in counts])
        chains.append(fit_hidden(pages, _to_shares(drawn), weights))
    resampled = Chain(
        np.stack([chain.initial for chain in chains]), np.stack([chain.steps for chain in chains])
    )
    return {
        name: percentile_estimate(float(measure(whole)), measure(resampled), len(pages))
        for name, measure in statistics.items()
    }


def _to_shares(table: npt.NDArray[np.floating] | npt.NDArray[np.int64]) -> _Values:
    """Shares of each row, with half a segment in every cell: an error that was never seen is not impossible."""
    smooth = table + 0.5
    result: _Values = smooth / smooth.sum(axis=1, keepdims=True)
    return result


def _begin(judged: Chain, num_states: int) -> Chain:
    """Where the fit begins: the judged chain, off the border, which it could not leave."""
    even = 1 / (num_states + 1)
    return Chain(0.9 * judged.initial + 0.1 / num_states, 0.9 * judged.steps + 0.1 * even)


def _spread(pages: Pages, confusion: _Values) -> _Values:
    """P(what the judge said | true state) of each segment, [T, pages, S]; 1 beyond the end."""
    table = np.concatenate([confusion, np.ones((len(confusion), 1))], axis=1)  # AFTER, -1, is the last column
    return np.ascontiguousarray(np.moveaxis(table[:, pages.states], 0, -1).swapaxes(0, 1))


def _improve(pages: Pages, likelihood: _Values, weights: _Values, rates: _Values) -> _Values:
    """One round of expectation maximisation: rates [1 + S, S], the first row initial, to likelier ones."""
    initial, steps = rates[0], rates[1:]
    there, longest = pages.is_there.T, len(likelihood)
    forward = np.empty_like(likelihood)
    law = np.broadcast_to(initial, likelihood.shape[1:])
    for place in range(longest):
        forward[place] = _normalise(law * likelihood[place])
        law = forward[place] @ steps
    behind_last = np.where(pages.ended[:, None], 1 - steps.sum(axis=1), 1.0)
    backward, flows = behind_last, np.zeros_like(steps)
    for place in range(longest - 2, -1, -1):
        ahead = likelihood[place + 1] * backward
        carried = ahead @ steps.T
        inside = there[place + 1]
        share = np.where(inside, weights / (forward[place] * carried).sum(axis=1), 0.0)
        flows += (forward[place] * share[:, None]).T @ ahead
        backward = np.where(inside[:, None], _normalise(carried), behind_last)
    flows *= steps
    first = weights @ _normalise(forward[0] * backward)
    last = forward[pages.lengths - 1, np.arange(len(pages))] * behind_last
    ends = (weights * pages.ended) @ _normalise(last)
    return np.concatenate([first[None] / first.sum(), flows / (flows.sum(axis=1) + ends)[:, None]])


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


def _normalise(rows: _Values) -> _Values:
    """To a sum of 1 each."""
    result: _Values = rows / rows.sum(axis=1, keepdims=True)
    return result
