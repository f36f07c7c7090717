"""A killed Markov chain of segments: rates, hazards, hitting times, and the chain closed by renewal (docs/dynamics.md).

Every number of a chain is a function of the counts of its steps, so that a bootstrap over pages weighs the counts of pages.
Shape suffixes: S states; any leading axes, such as resamples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from phf.chains.orders import count_contexts, fit_kernel
from phf.chains.pages import Pages, simulate_pages
from phf.intervals import difference_of_shares, percentile_estimate, wilson
from phf.records import Estimate

_Values = npt.NDArray[np.float64]
_NEVER = 1e-12
"""A rate so low that it is none."""


@dataclass(frozen=True)
class Chain:
    """A chain of segments of order 1 that ends.

    Attributes:
        initial: P(first segment's state), float64 [..., S].
        steps: P(next segment's state | this one's), [..., S, S]; a row adds up to 1 - P(end).
    """

    initial: _Values
    steps: _Values

    @property
    def ends(self) -> _Values:
        """P(the page ends behind a segment of this state), [..., S]."""
        result: _Values = 1 - self.steps.sum(axis=-1)
        return result

    @cached_property
    def closed(self) -> _Values:
        """Steps where the next page begins behind each end, [..., S, S]: an ergodic chain, one page after the other."""
        result: _Values = self.steps + self.ends[..., :, None] * self.initial[..., None, :]
        return result

    @property
    def stationary(self) -> _Values:
        """The share of segments in each state in an endless stream of pages, [..., S]."""
        return _find_law(self.closed)

    @property
    def quasi_stationary(self) -> _Values:
        """The law of the state far into pages that have not ended, [..., S]."""
        return _find_law(self.steps)

    @property
    def memory(self) -> _Values:
        """The second eigenvalue of the closed chain (its real part), [...]: what is left of a deviation after one segment."""
        values = np.linalg.eigvals(self.closed)
        second = np.argsort(np.abs(values), axis=-1)[..., -2, None]
        return np.asarray(np.take_along_axis(values.real, second, axis=-1)[..., 0], np.float64)

    @property
    def timescale(self) -> _Values:
        """Segments in which a deviation falls to 1/e, [...]: -1 / log memory; 0 without memory."""
        memory = np.clip(self.memory, 0, 1 - 1e-12)
        return np.where(memory > 0, -1 / np.log(np.maximum(memory, 1e-300)), 0.0)

    def end_before(self, state: int) -> _Values:
        """P(the page ends before a segment of this state comes | a segment's state now), [..., S]; 0 from the state itself."""
        others = np.arange(self.steps.shape[-1]) != state
        inner = self.steps[..., others, :][..., others]
        found = np.zeros(self.initial.shape)
        found[..., others] = _solve(np.eye(others.sum()) - inner, self.ends[..., others])
        return found

    def hitting_time(self, state: int) -> _Values:
        """Expected segments until one of this state comes, over the ends of pages, [..., S]; 0 from the state itself."""
        others = np.arange(self.steps.shape[-1]) != state
        inner = self.closed[..., others, :][..., others]
        found = np.zeros(self.initial.shape)
        found[..., others] = _solve(np.eye(others.sum()) - inner, np.ones((*inner.shape[:-1],)))
        return found

    @property
    def kernel(self) -> _Values:
        """Of order 1, see `phf.chains.orders`."""
        first = np.append(self.initial, 0.0)
        return np.vstack([np.column_stack([self.steps, self.ends]), first])

    def simulate(
        self, num: int, longest: int, rng: np.random.Generator, cut: npt.NDArray[np.int64] | None = None
    ) -> Pages:
        """Draw pages, cut at `longest` segments, or each at its own number of them: `cut` [num]."""
        return simulate_pages(self.kernel, num, longest, rng, cut)


def count_steps(pages: Pages) -> _Values:
    """Steps of each page, float64 [pages, S + 1, S + 1]: from a state or the page's start (last row) to a state or its end (last)."""
    return count_contexts(pages, 1)


def fit_chain(counts: _Values) -> Chain:
    """The chain of counted steps [..., S + 1, S + 1], see `count_steps`."""
    kernel = fit_kernel(counts)
    return Chain(kernel[..., -1, :-1], kernel[..., :-1, :-1])


def draw_weights(num: int, num_bootstrap: int, seed: int) -> _Values:
    """How often each of `num` pages comes in each resample, float64 [num_bootstrap, num]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num, np.full(num, 1 / num), size=num_bootstrap).astype(np.float64)


def estimate_share(tops: _Values, bottoms: _Values, drawn: _Values) -> tuple[Estimate, _Values | None]:
    """A share of pages' segments, and that of each resample of pages [B].

    Where none or all of the segments are of that kind, resamples say the same: there are none, and the interval is Wilson's, for as
    many as pages have such segments.

    Args:
        tops, bottoms: of each page, [pages].
        drawn: see `draw_weights`.
    """
    total, num = float(bottoms.sum()), int((bottoms > 0).sum())
    if total == 0:
        return Estimate(np.nan, np.nan, np.nan, 0), None
    share = float(tops.sum() / total)
    if share in (0.0, 1.0):
        bound = wilson(share * num, num)  # whose own end is exact up to rounding alone
        low, high = (share, bound.high) if share == 0 else (bound.low, share)
        return Estimate(share, low, high, num), None
    with np.errstate(invalid="ignore"):
        resampled = (drawn @ tops) / (drawn @ bottoms)
    return percentile_estimate(share, resampled, num), resampled


def subtract_shares(
    first: tuple[Estimate, _Values | None], second: tuple[Estimate, _Values | None], count: int
) -> Estimate:
    """The first less the second, see `estimate_share`: percentiles of what resamples differ in, Newcombe's interval where there are
    none."""
    (one, again), (other, other_again) = first, second
    if again is None or other_again is None:
        return difference_of_shares(one, other)
    return percentile_estimate(one.mean - other.mean, again - other_again, count)


def resample_chain(pages: Pages, weights: _Values, num_bootstrap: int, seed: int) -> tuple[Chain, Chain]:
    """The chain of weighted pages, and those of their resamples, [num_bootstrap] of them in one."""
    counts = count_steps(pages) * weights[:, None, None]
    drawn = draw_weights(len(pages), num_bootstrap, seed)
    return fit_chain(counts.sum(axis=0)), fit_chain(np.tensordot(drawn, counts, axes=1))


def estimate_chain(
    pages: Pages, statistics: Mapping[str, Callable[[Chain], _Values]], num_bootstrap: int, seed: int
) -> dict[str, Estimate]:
    """Numbers of the pages' chain, each with a percentile bootstrap interval over pages.

    Pages are what is resampled: a mixture of kinds of page makes segments of one page alike, and intervals that take each
    step as a draw of its own are too narrow (a Dirichlet posterior's hold the truth 80 to 85 times in 100 there).
    """
    whole, resampled = resample_chain(pages, np.ones(len(pages)), num_bootstrap, seed)
    return {
        name: percentile_estimate(float(measure(whole)), measure(resampled), len(pages))
        for name, measure in statistics.items()
    }


def _find_law(steps: _Values) -> _Values:
    """The left eigenvector of the largest eigenvalue, as a distribution: [..., S, S] -> [..., S]."""
    values, vectors = np.linalg.eig(np.swapaxes(steps, -1, -2))
    largest = np.argmax(values.real, axis=-1)
    sizes = np.abs(np.take_along_axis(vectors, largest[..., None, None], axis=-1)[..., 0])
    return np.asarray(sizes / sizes.sum(axis=-1, keepdims=True), np.float64)


def _solve(matrix: _Values, right: _Values) -> _Values:
    """Of each of many systems, [..., n, n], [..., n] -> [..., n]; NaN where what is asked for never comes."""
    least = _NEVER * np.eye(matrix.shape[-1])
    found = np.asarray(np.linalg.solve(matrix + least, right[..., None])[..., 0], np.float64)
    return np.where(found * _NEVER > 1e-3, np.nan, found)
