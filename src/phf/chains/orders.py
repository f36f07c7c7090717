"""Chains of segments of higher order: the next segment depends on the last few. Their counts, fit and order.

A *context* is the last few states as digits of base S + 1, the latest the lowest; the digit S stands before a page's first segment.
A *kernel* is P(next state or, last, the page's end | context), float64 [contexts, S + 1]; its last row begins a page.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from phf.chains.pages import AFTER, Pages

_Values = npt.NDArray[np.float64]

MAX_ORDER = 3
_SMOOTHING = 0.5
"""Steps that a context is given in all beside those counted, in the proportions of all contexts together: one that a resample never
visits is followed by what follows the others, and adds no memory."""


def count_contexts(pages: Pages, order: int = MAX_ORDER, per_group: int = 1) -> _Values:
    """How often what followed which context in each group of so many pages: float64 [groups, contexts, S + 1]."""
    (num, longest), size = pages.states.shape, pages.num_states + 1
    padded = np.pad(pages.states, ((0, 0), (order, 0)), constant_values=pages.num_states)
    following, groups = pages.following, np.arange(num) // per_group
    known = following != AFTER
    cells = np.repeat(groups, known.sum(axis=1))
    for back in range(order - 1, -1, -1):
        cells = cells * size + padded[:, order - 1 - back : order + longest - back][known]
    cells = cells * size + following[known]
    shape = (-(-num // per_group), size**order, size)
    return np.bincount(cells, minlength=int(np.prod(shape))).astype(np.float64).reshape(shape)


def shorten_contexts(counts: _Values, order: int) -> _Values:
    """The counts of contexts of a lower order: [..., (S + 1)^order, S + 1]."""
    *groups, _, size = counts.shape
    return np.asarray(counts.reshape(*groups, -1, size**order, size).sum(axis=-3))


def fit_kernel(counts: _Values) -> _Values:
    """The kernel of counted steps [..., contexts, S + 1]; a page's first segment does not end it."""
    pooled = counts.sum(axis=-2, keepdims=True)
    smooth = counts + _SMOOTHING * pooled / np.maximum(pooled.sum(axis=-1, keepdims=True), 1)
    smooth[..., -1, -1] = 0
    kernel: _Values = smooth / smooth.sum(axis=-1, keepdims=True)
    return kernel


def fit_best(counts: _Values) -> tuple[_Values, npt.NDArray[np.int64]]:
    """Kernels of the order of least BIC, written over the contexts of `counts` [..., contexts, S + 1], and that order [...]."""
    size = counts.shape[-1]
    orders = np.asarray(choose_order(counts))
    kernels = [
        np.tile(fit_kernel(shorten_contexts(counts, order)), (size ** (MAX_ORDER - order), 1))
        for order in range(1, MAX_ORDER + 1)
    ]
    return np.choose(orders[..., None, None] - 1, kernels), orders


def choose_order(counts: _Values) -> npt.NDArray[np.int64]:
    """The order from 1 to `MAX_ORDER` of the least BIC, [...]: the logarithm of the number of steps for each free rate that was seen."""
    steps = np.log(counts.sum(axis=(-2, -1)))
    costs = []
    for order in range(1, MAX_ORDER + 1):
        likelihood, free = describe_fit(shorten_contexts(counts, order))
        costs.append(free * steps - 2 * likelihood)
    return np.asarray(1 + np.argmin(costs, axis=0))


def describe_fit(counts: _Values) -> tuple[_Values, _Values]:
    """The largest log-likelihood of counted steps [..., contexts, S + 1], and how many rates are free: those that were seen."""
    totals = counts.sum(axis=-1)
    likelihood = xlogy(counts, counts).sum(axis=(-2, -1)) - xlogy(totals, totals).sum(axis=-1)
    return likelihood, (counts > 0).sum(axis=(-2, -1)) - (totals > 0).sum(axis=-1)
