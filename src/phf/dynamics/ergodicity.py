"""Is a page's own average that of all pages? Far segments of one page, against the chain that near ones fit (docs/dynamics.md).

Far segments of an ergodic chain of some order hang together as much as its steps say; those of a mixture of kinds of page more.
To shuffle segments across pages is no test of it (it rejects every chain with memory), nor is R-hat (a slow chain has a larger one
than a mixture).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.dynamics.chain import draw_weights
from phf.dynamics.orders import OrderChain, choose_order, count_contexts, fit_order
from phf.dynamics.pages import Pages, find_cuts
from phf.intervals import percentile_estimate
from phf.records import Estimate

_Values = npt.NDArray[np.float64]

FAR = 10
"""Segments from which on two of one page are far from each other."""
_LEAST_PAGES = 30
"""Pages with far segments without which nothing is said."""


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
    values, longest = np.asarray(values, np.float64), pages.states.shape[1]
    sums = _PageSums.create(pages, values, far)
    found = sums.find_excess()
    if found is None:
        return None
    rng = np.random.default_rng(seed)
    null, again = [], []
    for weights in draw_weights(len(pages), num_bootstrap, seed):
        simulated = found.chain.simulate(len(pages), longest, draw_cuts(pages, len(pages), rng), rng)
        own = _PageSums.create(simulated, values, far).find_excess()
        null.append(own.excess if own else -np.inf)
        own = sums.find_excess(weights)
        again.append((own.covariance, own.excess) if own else (np.nan, np.nan))
    covariances, excesses = np.transpose(again)
    return Ergodicity(
        percentile_estimate(found.covariance, covariances, len(pages)),
        found.covariance - found.excess,
        percentile_estimate(found.excess, excesses, len(pages)),
        float((1 + (np.array(null) >= found.excess).sum()) / (1 + num_bootstrap)),
        found.chain.order,
        round(sums.pairs[:, 0].sum()),
    )


def draw_cuts(pages: Pages, num: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Segments at which pages like these would be cut, [num]."""
    chances = find_cuts(pages)
    return np.asarray((rng.random((num, 1)) < chances).sum(axis=1))


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


@dataclass(frozen=True)
class _Excess:
    """Covariance of far pairs and its excess over the fitted chain's, both as shares of the variance of a segment."""

    chain: OrderChain
    covariance: float
    excess: float


@dataclass(frozen=True)
class _PageSums:
    """What is summed over each page.

    Attributes:
        moments: segments, values, their squares, [pages, 3].
        pairs: far pairs, the first's values, the second's, their products, [pages, 4].
    """

    pages: Pages
    values: _Values
    far: int
    moments: _Values
    pairs: _Values

    @classmethod
    def create(cls, pages: Pages, values: _Values, far: int) -> "_PageSums":
        there = pages.is_there.astype(np.float64)
        found = np.where(pages.is_there, values[pages.states], 0.0)
        # All that stand at least `far` before a place.
        num, total = there.cumsum(1)[:, :-far], found.cumsum(1)[:, :-far]
        here, value = there[:, far:], found[:, far:]
        pairs = [num * here, total * here, num * value, total * value]
        return cls(
            pages,
            values,
            far,
            np.stack([there.sum(1), found.sum(1), (found**2).sum(1)], 1),
            np.stack([own.sum(1) for own in pairs], 1),
        )

    def find_excess(self, weights: _Values | None = None) -> _Excess | None:
        """Of the pages, each counted as often as `weights` [pages] says; None without variance or enough pages with far pairs."""
        own = np.ones(len(self.pages)) if weights is None else weights
        num, total, squares = own @ self.moments
        variance = float(squares / num - (total / num) ** 2)
        pairs = own @ self.pairs
        if ((self.pairs[:, 0] > 0) @ own < _LEAST_PAGES) or variance <= 0:
            return None
        counts = count_contexts(self.pages, weights)
        chain = fit_order(counts, choose_order(counts))
        expected = _expect_pairs(chain, self.values, find_cuts(self.pages, weights), self.far)
        covariance = _to_covariance(pairs) / variance
        return _Excess(chain, covariance, covariance - _to_covariance(expected) / variance)


def _to_covariance(sums: _Values) -> float:
    """Of sums over pairs: 1, x, y, xy."""
    num, first, second, both = sums
    return float(both / num - first / num * second / num)


def _expect_pairs(chain: OrderChain, values: _Values, cuts: _Values, far: int) -> _Values:
    """What `_sum_pairs` is of a page that the chain writes, [4].

    Args:
        cuts: P(a page is not cut before segment t), [longest + 1].
    """
    size, contexts = chain.num_states + 1, len(chain.kernel)
    follow = (np.arange(contexts)[:, None] * size + np.arange(size - 1)) % contexts
    steps = np.zeros((contexts, contexts))
    np.add.at(steps, (np.arange(contexts)[:, None], follow), chain.kernel[:, :-1])
    value = np.append(values, 0.0)[np.arange(contexts) % size]
    law = np.zeros(contexts)
    law[chain.start] = 1
    longest = len(cuts) - 1
    recent = np.zeros((far + 1, 2, contexts))  # the laws of the last places, alone and times the value there
    before = np.zeros((2, contexts))  # of all that stand at least `far` before, carried to this place
    sums = np.zeros(4)
    for place in range(longest):
        law = law @ steps
        recent, before = recent @ steps, before @ steps
        recent[place % (far + 1)] = law, law * value
        if place >= far:
            before += recent[(place - far) % (far + 1)]
            seen = cuts[place]
            sums += seen * np.array([before[0].sum(), before[1].sum(), before[0] @ value, before[1] @ value])
    return sums
