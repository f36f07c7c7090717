"""Chains of segments of higher order: the next segment depends on the last few. Their fit, their order, and what they would write."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from phf.dynamics.chain import simulate_pages
from phf.dynamics.pages import AFTER, Pages

_Values = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.int64]

MAX_ORDER = 3
_SMOOTHING = 0.5
"""Steps that a context is given in all beside those counted, in the proportions of all contexts together."""


@dataclass(frozen=True)
class OrderChain:
    """A killed chain whose next segment depends on the last `order`, one or more.

    Attributes:
        kernel: P(next state or, last, the page's end | context), float64 [contexts, S + 1]; a context is the last `order` states as
            digits of base S + 1, the latest the lowest; the digit S stands before a page's first segment.
    """

    kernel: _Values
    order: int

    @property
    def num_states(self) -> int:
        """Of a segment."""
        return int(self.kernel.shape[1]) - 1

    @property
    def start(self) -> int:
        """The context at the beginning of a page."""
        return int(self.kernel.shape[0]) - 1

    def simulate(self, num: int, longest: int, cut: _Codes, rng: np.random.Generator) -> Pages:
        """Draw pages, each cut at its number of segments `cut` [num]."""

        def follow(states: _Codes, _: int) -> _Values:
            return self.kernel[_read_contexts(states[:, -self.order :], self.order, self.num_states)[:, -1]]

        return simulate_pages(self.kernel[self.start], follow, num, longest, rng, cut)


def count_contexts(pages: Pages, weights: _Values | None = None, order: int = MAX_ORDER) -> _Values:
    """How often what followed which context: float64 [contexts, S + 1], see `OrderChain`.

    Args:
        weights: how often each page counts, [pages].
    """
    size = pages.num_states + 1
    num = len(pages)
    after = np.concatenate([pages.states, np.full((num, 1), AFTER)], axis=1)
    after[np.arange(num), pages.lengths] = np.where(pages.ended, pages.num_states, AFTER)
    known = after != AFTER
    places = _read_contexts(pages.states, order, pages.num_states)[known] * size + after[known]
    own = None if weights is None else np.repeat(weights, known.sum(axis=1))
    return np.bincount(places, own, minlength=size ** (order + 1)).astype(np.float64).reshape(-1, size)


def shorten_contexts(counts: _Values, order: int) -> _Values:
    """The counts of contexts of a lower order: [(S + 1)^order, S + 1]."""
    size = counts.shape[1]
    return np.asarray(counts.reshape(-1, size**order, size).sum(axis=0))


def fit_order(counts: _Values, order: int) -> OrderChain:
    """The chain of an order, 1 or more, that fits counts of that order or a higher one; a page's first segment does not end it."""
    own = shorten_contexts(counts, order)
    smooth = own + _SMOOTHING * own.sum(axis=0) / own.sum()
    smooth[-1, -1] = 0
    return OrderChain(smooth / smooth.sum(axis=1, keepdims=True), order)


def choose_order(counts: _Values) -> int:
    """The order from 1 to `MAX_ORDER` of the least BIC: the logarithm of the number of steps for each free rate that was seen."""
    costs = []
    for order in range(1, MAX_ORDER + 1):
        likelihood, free = _describe(shorten_contexts(counts, order))
        costs.append(free * np.log(counts.sum()) - 2 * likelihood)
    return 1 + int(np.argmin(costs))


def compare_orders(counts: _Values, order: int) -> float:
    """p of the likelihood ratio test of this order against the next."""
    (small, few), (large, many) = (_describe(shorten_contexts(counts, own)) for own in (order, order + 1))
    return float(chdtrc(max(many - few, 1), max(2 * (large - small), 0.0)))


def _describe(counts: _Values) -> tuple[float, int]:
    """The largest log-likelihood of counted steps, and how many rates are free: those that were seen."""
    known = counts > 0
    totals = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    likelihood = float((counts[known] * np.log(counts[known] / totals[known])).sum())
    return likelihood, int(known.sum() - known.any(axis=1).sum())


def _read_contexts(states: _Codes, order: int, num_states: int) -> _Codes:
    """The context before each place and behind the last: [num, T] -> [num, T + 1]; what stands beyond a page's end is not read."""
    num, longest = states.shape
    padded = np.concatenate([np.full((num, order), num_states), states], axis=1)
    contexts = np.zeros((num, longest + 1), np.int64)
    for back in range(order):
        contexts += padded[:, order - 1 - back : order + longest - back] * (num_states + 1) ** back
    return contexts
