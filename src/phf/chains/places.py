"""Does one chain of its order fit all pages? Tests of alike places and of a longer memory, and how fast a rate drifts (docs/dynamics.md)."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from phf.chains.chain import draw_weights
from phf.chains.ergodicity import simulate_like
from phf.chains.orders import choose_order, count_contexts, describe_fit, fit_best, shorten_contexts
from phf.chains.pages import AFTER, Pages
from phf.intervals import percentile_estimate
from phf.records import Estimate
from phf.results import MISSING

_Values = npt.NDArray[np.float64]

_LEAST_STEPS = 20
"""Steps of a kind without which its drift is not known."""


def compare_places(pages: Pages, num_bootstrap: int, seed: int) -> float:
    """p that a chain with one kernel for all places gives pages whose steps differ as much between places.

    The likelihood ratio of rates of their own for the 1st segment, the 2nd, the 3rd and 4th, the 5th to 8th, and so on.
    """
    return _test_fit(pages, _measure_places, num_bootstrap, seed)


def compare_orders(pages: Pages, num_bootstrap: int, seed: int) -> float:
    """p that the chain of least BIC gives pages which one of the next order fits as much better, by the likelihood ratio."""
    order = int(choose_order(count_contexts(pages).sum(axis=0)))

    def measure(some: Pages, per_group: int) -> _Values:
        counts = count_contexts(some, order + 1, per_group)
        return np.asarray(describe_fit(counts)[0] - describe_fit(shorten_contexts(counts, order))[0])

    return _test_fit(pages, measure, num_bootstrap, seed)


def _test_fit(pages: Pages, measure: Callable[[Pages, int], _Values], num_bootstrap: int, seed: int) -> float:
    """p of a likelihood ratio, whose law is that of pages which the fitted chain (order by BIC) writes, cut as these are.

    Chi-square would be no law of it: where a state is rare it rejects 4 in 10 chains that are what they are said to be.

    Args:
        measure: (pages, how many are a group) -> the ratio of each group.
    """
    (kernel,), _ = fit_best(count_contexts(pages).sum(axis=0)[None])
    simulated = simulate_like(pages, kernel, num_bootstrap, np.random.default_rng([seed, 2]))
    null = np.concatenate([measure(some, len(pages)) for some in simulated])
    return float((1 + (null >= measure(pages, len(pages))).sum()) / (1 + num_bootstrap))


def _measure_places(pages: Pages, per_group: int) -> _Values:
    """Log-likelihood of steps by place, less that of all places alike, of each group of so many pages."""
    size, following = pages.num_states + 1, pages.following[:, 1:]
    known = following != AFTER
    places = np.log2(np.arange(1, following.shape[1] + 1)).astype(int)
    groups, kinds = len(pages) // per_group, places.max() + 1
    cells = np.repeat(np.arange(len(pages)) // per_group, known.sum(axis=1)) * kinds
    cells += np.broadcast_to(places, known.shape)[known]
    cells = (cells * size + pages.states[known]) * size + following[known]
    counts = (
        np.bincount(cells, minlength=groups * kinds * size**2)
        .reshape(groups, kinds, size, size)
        .astype(np.float64)
    )
    apart, together = describe_fit(counts)[0].sum(axis=1), describe_fit(counts.sum(axis=1))[0]
    return np.asarray(apart - together)


def estimate_drift(pages: Pages, first: int, second: int, num_bootstrap: int, seed: int) -> Estimate:
    """By how much P(second follows | first) rises with each segment further on, by least squares, with an interval over pages.

    Unknown where too few steps are of that kind, or too few are not.
    """
    following, here = pages.following[:, 1:], pages.states == first
    here = here & (following != AFTER)
    hits = here & (following == second)
    if not _LEAST_STEPS <= hits.sum() <= here.sum() - _LEAST_STEPS:
        return MISSING
    place = np.arange(here.shape[1], dtype=np.float64)
    sums = np.stack([here @ place**0, here @ place, here @ place**2, hits @ place**0, hits @ place], axis=1)
    weights = np.vstack([np.ones(len(pages)), draw_weights(len(pages), num_bootstrap, seed)])
    num, total, squares, turned, both = (weights @ sums).T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, *resampled = (num * both - total * turned) / (num * squares - total**2)
    return percentile_estimate(float(mean), resampled, len(pages))
