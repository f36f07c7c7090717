"""Do pages move alike in all places? A chain of one kernel says yes: a test of that, and how fast a rate drifts (docs/dynamics.md)."""

import numpy as np
import numpy.typing as npt

from phf.chains.chain import draw_weights
from phf.chains.ergodicity import simulate_like
from phf.chains.orders import count_contexts, describe_fit, fit_best
from phf.chains.pages import AFTER, Pages
from phf.intervals import percentile_estimate
from phf.records import Estimate
from phf.results import MISSING

_Values = npt.NDArray[np.float64]

_LEAST_STEPS = 20
"""Steps of a kind without which its drift is not known."""


def compare_places(pages: Pages, num_bootstrap: int, seed: int) -> float:
    """p that a chain with one kernel for all places gives pages whose steps differ as much between places.

    The likelihood ratio of rates of their own for the 1st segment, the 2nd, the 3rd and 4th, the 5th to 8th, and so on; its law is
    that of pages which the fitted chain (order by BIC) writes, cut as these are.
    """
    (kernel,), _ = fit_best(count_contexts(pages).sum(axis=0)[None])
    found = _find_ratio(pages, len(pages))
    null = [
        _find_ratio(some, len(pages))
        for some in simulate_like(pages, kernel, num_bootstrap, np.random.default_rng([seed, 2]))
    ]
    return float((1 + (np.concatenate(null) >= found).sum()) / (1 + num_bootstrap))


def _find_ratio(pages: Pages, per_group: int) -> _Values:
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
