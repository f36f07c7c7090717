"""How often good text turns bad, and comes back: rates of a model's pages beside those of the data, matched for length."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from phf.chains.chain import (
    Chain,
    count_steps,
    draw_weights,
    estimate_share,
    resample_chain,
    subtract_shares,
)
from phf.chains.hidden import Confusion, estimate_hidden
from phf.chains.pages import Pages
from phf.chains.written import BAD, GOOD, STATES, match_lengths
from phf.intervals import difference_of_shares, percentile_estimate
from phf.records import Estimate

_Values = npt.NDArray[np.float64]
_Statistic = Callable[[Chain], _Values]
Compared = Iterator[tuple[str, Estimate, Estimate, Estimate]]
"""Name of a number, the pages', the data's, the difference."""


def compare_rates(pages: Pages, data: Pages, num_bootstrap: int, seed: int) -> Compared:
    """Each step from a state to another, or to the page's end: see `compare_chains`; NaN from a state that never comes.

    Where none or all of the steps are of that kind, resamples say the same: the interval is Wilson's, for as many as pages have
    the state, and the difference's is Newcombe's.
    """
    own, theirs = count_steps(pages), count_steps(data) * match_lengths(data, pages)[:, None, None]
    drawn, drawn_data = (
        draw_weights(len(pages), num_bootstrap, seed),
        draw_weights(len(data), num_bootstrap, seed + 1),
    )
    for first, name in enumerate(STATES):
        for second, other in enumerate((*STATES, "end")):
            if first == second:
                continue
            number, beside = (
                estimate_share(counts[:, first, second], counts[:, first].sum(axis=1), weights)
                for counts, weights in ((own, drawn), (theirs, drawn_data))
            )
            excess = subtract_shares(number, beside, len(pages))
            yield f"{name} -> {other}", number[0], beside[0], excess


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
        resample_chain(pages, np.ones(len(pages)), num_bootstrap, seed),
        resample_chain(data, weights, num_bootstrap, seed + 1),
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


def compare_hidden(
    own: tuple[Pages, Confusion], data: tuple[Pages, Confusion], num_bootstrap: int, seed: int
) -> Compared:
    """Rates and what follows from them without the judge's errors (`estimate_hidden`), as `compare_chains`: of pages and of the data,
    each with the confusion that was measured on its own segments."""
    statistics: dict[str, _Statistic] = {
        "good -> bad": lambda chain: chain.steps[..., GOOD, BAD],
        "bad -> good": lambda chain: chain.steps[..., BAD, GOOD],
        **LAWS,
    }
    (pages, judge), (others, beside) = own, data
    number = estimate_hidden(pages, judge, statistics, num_bootstrap, seed)
    weights = match_lengths(others, pages)
    other = estimate_hidden(others, beside, statistics, num_bootstrap, seed + 1, weights)
    for name in statistics:
        yield name, number[name], other[name], difference_of_shares(number[name], other[name])
