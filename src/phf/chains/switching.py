"""How often good text turns bad, and comes back: rates of a model's pages beside those of the data, matched for length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.chains.chain import Chain, count_steps, draw_weights, fit_chain
from phf.chains.hidden import Table, estimate_hidden
from phf.chains.pages import Pages
from phf.chains.written import BAD, GOOD, STATES, match_lengths
from phf.intervals import difference_of_shares, percentile_estimate, wilson
from phf.records import Estimate
from phf.results import MISSING

_Values = npt.NDArray[np.float64]
_Statistic = Callable[[Chain], _Values]
Compared = Iterator[tuple[str, Estimate, Estimate, Estimate]]
"""Name of a number, the pages', the data's, the difference."""


def compare_rates(pages: Pages, data: Pages, num_bootstrap: int, seed: int) -> Compared:
    """Each step from a state to another, or to the page's end: see `compare_chains`; NaN from a state that never comes.

    Where none or all of the steps are of that kind, resamples say the same: the interval is Wilson's, for as many as pages have
    the state, and the difference's is Newcombe's.
    """
    weights = match_lengths(data, pages)
    own, theirs = (
        _Steps.draw(pages, np.ones(len(pages)), num_bootstrap, seed),
        _Steps.draw(data, weights, num_bootstrap, seed + 1),
    )
    for first, name in enumerate(STATES):
        for second, other in enumerate((*STATES, "end")):
            if first == second:
                continue
            number, resampled = own.estimate(first, second)
            beside, beside_resampled = theirs.estimate(first, second)
            if resampled is None or beside_resampled is None:
                excess = difference_of_shares(number, beside)
            else:
                excess = percentile_estimate(
                    number.mean - beside.mean, resampled - beside_resampled, len(pages)
                )
            yield f"{name} -> {other}", number, beside, excess


@dataclass(frozen=True)
class _Steps:
    """Counted steps of pages, [S + 1, S + 1], of their resamples, [B, S + 1, S + 1], and how many pages have each state, [S]."""

    whole: _Values
    again: _Values
    num_pages: _Values

    @classmethod
    def draw(cls, pages: Pages, weights: _Values, num_bootstrap: int, seed: int) -> "_Steps":
        counts = count_steps(pages) * weights[:, None, None]
        drawn = draw_weights(len(pages), num_bootstrap, seed)
        has = (counts[:, :-1].sum(axis=2) > 0).sum(axis=0)
        return cls(counts.sum(axis=0), np.tensordot(drawn, counts, axes=1), has.astype(np.float64))

    def estimate(self, first: int, second: int) -> tuple[Estimate, _Values | None]:
        """A rate, and its resamples; None where these would say nothing."""
        total = self.whole[first].sum()
        if total == 0:
            return MISSING, None
        share = float(self.whole[first, second] / total)
        num = int(self.num_pages[first])
        if share in (0.0, 1.0):
            bound = wilson(share * num, num)  # whose own end is exact up to rounding alone
            low, high = (share, bound.high) if share == 0 else (bound.low, share)
            return Estimate(share, low, high, num), None
        with np.errstate(invalid="ignore"):
            resampled = self.again[:, first, second] / self.again[:, first].sum(axis=1)
        return percentile_estimate(share, resampled, num), resampled


LAWS: dict[str, _Statistic] = {
    "the page ends before it turns bad": lambda chain: chain.end_before(BAD)[..., GOOD],
    "segments until bad, from good": lambda chain: chain.hitting_time(BAD)[..., GOOD],
    "segments until good, from bad": lambda chain: chain.hitting_time(GOOD)[..., BAD],
    "share bad in a stream of pages": lambda chain: chain.stationary[..., BAD],
    "share bad far into a page": lambda chain: chain.quasi_stationary[..., BAD],
    "segments of memory": lambda chain: chain.timescale,
}
"""What follows from the rates."""


def compare_chains(
    pages: Pages, data: Pages, statistics: dict[str, _Statistic], num_bootstrap: int, seed: int
) -> Compared:
    """For each number: of the model's pages, of the data's matched to their lengths, and the difference, which alone is the model's.

    Intervals are percentiles over resamples of pages, the model's and the data's drawn apart.
    """
    weights = match_lengths(data, pages)
    (own, again), (theirs, theirs_again) = (
        _resample(pages, np.ones(len(pages)), num_bootstrap, seed),
        _resample(data, weights, num_bootstrap, seed + 1),
    )
    for name, measure in statistics.items():
        number, resampled = float(measure(own)), measure(again)
        beside, beside_resampled = float(measure(theirs)), measure(theirs_again)
        yield (
            name,
            percentile_estimate(number, resampled, len(pages)),
            percentile_estimate(beside, beside_resampled, int((weights > 0).sum())),
            percentile_estimate(number - beside, resampled - beside_resampled, len(pages)),
        )


def _resample(pages: Pages, weights: _Values, num_bootstrap: int, seed: int) -> tuple[Chain, Chain]:
    """The chain of weighted pages, and those of its resamples."""
    counts = count_steps(pages) * weights[:, None, None]
    drawn = draw_weights(len(pages), num_bootstrap, seed)
    return fit_chain(counts.sum(axis=0)), fit_chain(np.tensordot(drawn, counts, axes=1))


def compare_hidden(
    own: tuple[Pages, Table], data: tuple[Pages, Table], num_bootstrap: int, seed: int
) -> Compared:
    """Rates and what follows from them without the judge's errors (`estimate_hidden`), as `compare_chains`: of pages and of the data,
    each with the confusion that was measured on its own segments."""
    statistics: dict[str, _Statistic] = {
        "good -> bad": lambda chain: chain.steps[..., GOOD, BAD],
        "bad -> good": lambda chain: chain.steps[..., BAD, GOOD],
        **LAWS,
    }
    (pages, table), (others, beside) = own, data
    number = estimate_hidden(pages, table, statistics, num_bootstrap, seed)
    weights = match_lengths(others, pages)
    other = estimate_hidden(others, beside, statistics, num_bootstrap, seed + 1, weights)
    for name in statistics:
        yield name, number[name], other[name], difference_of_shares(number[name], other[name])
