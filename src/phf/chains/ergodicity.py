"""Is a page's own average that of all pages? Far segments of one page, against the chain that near ones fit (docs/dynamics.md).

Far segments of an ergodic chain of some order hang together as much as its steps say; those of a mixture of kinds of page more.
To shuffle segments across pages is no test of it (it rejects every chain with memory), nor is R-hat (a slow chain has a larger one
than a mixture).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phf.chains.chain import draw_weights
from phf.chains.orders import count_contexts, fit_best
from phf.chains.pages import Pages, count_lengths, draw_cuts, find_cuts, simulate_pages
from phf.intervals import percentile_estimate
from phf.records import Estimate

_Values = npt.NDArray[np.float64]

FAR = 10
"""Segments from which on two of one page are far from each other."""
_LEAST_PAGES = 30
"""Pages with far segments without which nothing is said."""
_AT_ONCE = 10_000
"""Pages that are simulated side by side."""


@dataclass(frozen=True)
class Ergodicity:
    """What far segments of pages say.

    Attributes:
        covariance: of far pairs, as a share of the variance of a segment; with an interval over pages.
        expected: the same of the fitted chain, of the same cuts.
        excess: covariance - expected: 0 for an ergodic chain, the share of the variance between kinds of page for a mixture.
        p: of an excess as large where the fitted chain is the truth, one-sided.
        order: of the fitted chain.
        num_pairs: of far segments.
    """

    covariance: Estimate
    expected: float
    excess: Estimate
    p: float
    order: int
    num_pairs: int


def measure_ergodicity(
    pages: Pages, values: npt.ArrayLike, num_bootstrap: int, seed: int, far: int = FAR
) -> Ergodicity | None:
    """Compare far pairs with the chain of the pages; None where hardly a page is long enough.

    The null is a parametric bootstrap: pages of the fitted chain, cut as these are, to which order and rates are fitted again: what
    is compared is the excess over the *own* fit, so that the error of the rates is in the null too.

    Args:
        values: of each state, [S].
    """
    values = np.asarray(values, np.float64)
    own = _sum_pages(pages, values, far)
    found = _find_excess(_weigh(own, np.ones((1, len(pages)))), values, far)
    if np.isnan(found.excess[0]):
        return None
    again = _find_excess(_weigh(own, draw_weights(len(pages), num_bootstrap, seed)), values, far)
    simulated = list(simulate_like(pages, found.kernel[0], num_bootstrap, np.random.default_rng(seed)))
    null = [_find_excess(_sum_pages(some, values, far, len(pages)), values, far).excess for some in simulated]
    return Ergodicity(
        percentile_estimate(float(found.covariance[0]), again.covariance, len(pages)),
        float(found.covariance[0] - found.excess[0]),
        percentile_estimate(float(found.excess[0]), again.excess, len(pages)),
        float((1 + (np.concatenate(null) >= found.excess[0]).sum()) / (1 + num_bootstrap)),
        int(found.order[0]),
        round(own.pairs[:, 1].sum()),
    )


def simulate_like(pages: Pages, kernel: _Values, num_times: int, rng: np.random.Generator) -> Iterator[Pages]:
    """As many pages of a kernel, cut like these, so many times; several times in one, as many as fit into memory."""
    at_once = max(_AT_ONCE // len(pages), 1)
    for start in range(0, num_times, at_once):
        num = len(pages) * min(at_once, num_times - start)
        yield simulate_pages(kernel, num, pages.states.shape[1], rng, draw_cuts(pages, num, rng))


def intraclass_correlation(pages: Pages, values: npt.ArrayLike, num_bootstrap: int, seed: int) -> Estimate:
    """The share of a segment's variance that lies between pages (one-way analysis of variance), with an interval over pages.

    A slow chain has one, too: `measure_ergodicity` tells the two apart.
    """
    found = np.where(pages.is_there, np.asarray(values, np.float64)[pages.states], 0)
    sums = np.stack(
        [
            np.ones(len(pages)),
            pages.lengths,
            pages.lengths**2,
            found.sum(1),
            (found**2).sum(1),
            found.sum(1) ** 2 / np.maximum(pages.lengths, 1),
        ]
    )
    weights = draw_weights(len(pages), num_bootstrap, seed)
    mean, *resampled = _find_share(np.concatenate([np.ones((1, len(pages))), weights]) @ sums.T)
    return percentile_estimate(float(mean), resampled, len(pages))


def _find_share(sums: _Values) -> _Values:
    """The intraclass correlation of sums over pages [..., 6]: 1, n, n^2, sum x, sum x^2, (sum x)^2 / n."""
    num, segments, squares, total, power, between = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (power - between) / (segments - num)
        outside = (between - total**2 / segments) / (num - 1)
        size = (segments - squares / segments) / (num - 1)
        result: _Values = (outside - inside) / (outside + (size - 1) * inside)
    return result


class _Excess(NamedTuple):
    """Covariance of far pairs and its excess over the fitted chain's, as shares of the variance of a segment, and that chain: [G]
    each; NaN without variance or enough pages with far pairs."""

    covariance: _Values
    excess: _Values
    kernel: _Values
    order: npt.NDArray[np.int64]


class _Sums(NamedTuple):
    """What is summed over the pages of each group.

    Attributes:
        contexts, lengths: see `count_contexts`, `count_lengths`.
        moments: segments, values, their squares, [G, 3].
        pairs: pages that have far pairs, the pairs, the first's values, the second's, their products, [G, 5].
    """

    contexts: _Values
    lengths: _Values
    moments: _Values
    pairs: _Values


def _weigh(sums: _Sums, weights: _Values) -> _Sums:
    """Groups weighed, [weighings, G]."""
    return _Sums(*(np.tensordot(weights, own, axes=1) for own in sums))


def _sum_pages(pages: Pages, values: _Values, far: int, per_group: int = 1) -> _Sums:
    there = pages.is_there.astype(np.float64)
    found = np.where(pages.is_there, values[pages.states], 0.0)
    # All that stand at least `far` before a place.
    num, total = there.cumsum(axis=1)[:, :-far], found.cumsum(axis=1)[:, :-far]
    here, value = there[:, far:], found[:, far:]

    groups = len(pages) // per_group

    def add_up(*parts: tuple[_Values, _Values]) -> _Values:
        """Sums of products, [groups, parts]."""
        rows = [[own.reshape(groups, per_group, own.shape[1]) for own in both] for both in parts]
        return np.stack([np.einsum("gpt,gpt->g", *both) for both in rows], axis=1)

    lengths = count_lengths(pages)
    return _Sums(
        count_contexts(pages, per_group=per_group),
        lengths.reshape(groups, per_group, *lengths.shape[1:]).sum(axis=1),
        add_up((there, there), (there, found), (found, found)),
        add_up((here[:, :1], here[:, :1]), (num, here), (total, here), (num, value), (total, value)),
    )


def _find_excess(sums: _Sums, values: _Values, far: int) -> _Excess:
    kernel, order = fit_best(sums.contexts)
    with np.errstate(divide="ignore", invalid="ignore"):
        num, total, squares = sums.moments.T
        variance = squares / num - (total / num) ** 2
        is_known = (sums.pairs[:, 0] >= _LEAST_PAGES) & (variance > 0)
        covariance = np.where(is_known, _to_covariance(sums.pairs[:, 1:]) / variance, np.nan)
        expected = _to_covariance(expect_pairs(kernel, values, find_cuts(sums.lengths), far)) / variance
    return _Excess(covariance, covariance - expected, kernel, order)


def _to_covariance(sums: _Values) -> _Values:
    """Of sums over pairs [G, 4]: 1, x, y, xy."""
    num, first, second, both = sums.T
    return np.asarray(both / num - first / num * second / num)


def expect_pairs(kernel: _Values, values: _Values, cuts: _Values, far: int) -> _Values:
    """What the sums over far pairs (1, x, y, xy) are of a page that a chain writes, [G, 4].

    Args:
        kernel: [G, contexts, S + 1].
        cuts: P(a page is not cut before segment t), [G, longest + 1].
    """
    groups, contexts, size = kernel.shape
    every = np.arange(contexts)
    steps = np.zeros((groups, contexts, contexts))
    for state in range(size - 1):
        steps[:, every, (every * size + state) % contexts] += kernel[:, :, state]
    leap = np.linalg.matrix_power(steps, far)
    value = np.append(values, 0.0)[every % size]
    weigh = np.stack([np.ones(contexts), value])  # a place counted, and its value
    law = np.zeros((groups, 1, contexts))
    law[:, 0, -1] = 1
    laws, before, sums = [], np.zeros((groups, 2, contexts)), np.zeros((groups, 2, 2))
    for place in range(cuts.shape[1] - 1):
        law = law @ steps
        laws.append(law)
        if place >= far:  # `before`: of all that stand at least `far` before, carried to this place
            before = before @ steps + (laws[place - far] * weigh) @ leap
            sums += cuts[:, place, None, None] * (before @ weigh.T)
    return sums.swapaxes(1, 2).reshape(groups, 4)
