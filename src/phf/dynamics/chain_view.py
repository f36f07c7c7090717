"""What judged pages say, as measurements: rates beside the data's, ergodicity, places, returns (docs/dynamics.md)."""

from collections.abc import Iterator, Mapping

import numpy as np

from phf.chains.absorbing import estimate_returns
from phf.chains.chain import draw_weights, estimate_share
from phf.chains.ergodicity import intraclass_correlation, measure_ergodicity
from phf.chains.hidden import Confusion
from phf.chains.orders import choose_order, count_contexts
from phf.chains.pages import AFTER, Pages
from phf.chains.places import compare_orders, compare_places, estimate_drift
from phf.chains.switching import LAWS, Compared, compare_chains, compare_hidden, compare_rates
from phf.chains.written import BAD, GOOD, LOOPING, STATES
from phf.config.dynamics import DynamicsConfig
from phf.dynamics import measures
from phf.evaluate.metric import bare
from phf.intervals import bootstrap_mean, wilson
from phf.records import Mode
from phf.results import Measure, Measurement

_TURNS = ((GOOD, BAD, "good -> bad"), (BAD, GOOD, "bad -> good"))
_LEAST_AT_RISK = 20
"""Segments without which a place on the page has no hazard."""
_MOST_SIMULATED, _MOST_FITS = 500, 200
"""Resamples of what takes long: all pages simulated anew; hidden chains, each fitted in some rounds."""


def describe_pages(
    mode: Mode, pages: Pages, data: Pages | None, config: DynamicsConfig
) -> Iterator[Measurement]:
    """All but what needs a second judge, or pages that are written otherwise.

    Args:
        data: beside which the pages stand; without it their own numbers are given alone.
    """
    num, seed = config.num_bootstrap, config.sampling.seed
    other = pages if data is None else data
    rates, laws = compare_rates(pages, other, num, seed), compare_chains(pages, other, LAWS, num, seed)
    yield from _list(
        mode, (measures.RATE, measures.RATE_OF_DATA, measures.RATE_EXCESS), rates, data is not None
    )
    yield from _list(mode, (measures.LAW, measures.LAW_OF_DATA, measures.LAW_EXCESS), laws, data is not None)
    yield Measurement(
        measures.ORDER.name, bare(float(choose_order(count_contexts(pages).sum(axis=0))), len(pages)), mode
    )
    values, bad = np.eye(pages.num_states)[BAD], pages.states == BAD
    yield Measurement(measures.SHARE_BETWEEN.name, intraclass_correlation(pages, values, num, seed), mode)
    by_page = bootstrap_mean(bad.sum(axis=1) / pages.lengths, num, seed)
    drawn = draw_weights(len(pages), num, seed)
    in_all, _ = estimate_share(bad.sum(axis=1).astype(np.float64), pages.lengths.astype(np.float64), drawn)
    yield Measurement(measures.AVERAGE.name, by_page, mode, of="over pages")
    yield Measurement(measures.AVERAGE.name, in_all, mode, of="over segments")
    far = measure_ergodicity(pages, values, min(num, _MOST_SIMULATED), seed, config.far)
    if far is not None:
        yield Measurement(measures.FAR_EXCESS.name, far.excess, mode)
        yield Measurement(measures.FAR_P.name, bare(far.p, far.num_pairs), mode)
    for measure, compare in ((measures.ORDER_P, compare_orders), (measures.PLACES_P, compare_places)):
        p = compare(pages, min(num, _MOST_SIMULATED), seed)
        yield Measurement(measure.name, bare(p, len(pages)), mode)
    for first, second, name in _TURNS:
        yield Measurement(measures.DRIFT.name, estimate_drift(pages, first, second, num, seed), mode, of=name)
        here, following = pages.states == first, pages.following[:, 1:]
        for place in range(config.longest - 1):
            at_risk = here[:, place] & (following[:, place] != AFTER)
            if at_risk.sum() < _LEAST_AT_RISK:
                break
            hazard = bootstrap_mean(following[at_risk, place] == second, num, seed)
            yield Measurement(measures.HAZARD.name, hazard, mode, of=name, at=float(place + 1))


def describe_errors(
    mode: Mode, own: tuple[Pages, Confusion], data: tuple[Pages, Confusion] | None, config: DynamicsConfig
) -> Iterator[Measurement]:
    """How often the judge errs, and rates without its errors, given what it confuses on either's segments."""
    judge, num = own[1], min(config.num_bootstrap, _MOST_FITS)
    for true, name in ((GOOD, "good"), (BAD, "bad")):
        errors, segments = judge.counts[:, true, 1 - true], judge.counts[:, true].sum(axis=1)
        if judge.is_own:
            drawn = draw_weights(len(segments), num, config.sampling.seed)
            share, _ = estimate_share(errors, segments, drawn)
        else:  # labelled texts are no pages
            share = wilson(errors.sum(), segments.sum())
        yield Measurement(measures.JUDGE_ERROR.name, share, mode, of=name)
    compared = compare_hidden(own, data or own, num, config.sampling.seed)
    yield from _list(
        mode, (measures.HIDDEN, measures.HIDDEN_OF_DATA, measures.HIDDEN_EXCESS), compared, data is not None
    )


def describe_returns(
    mode: Mode, written: Mapping[str, Pages], config: DynamicsConfig
) -> Iterator[Measurement]:
    """Whether pages come back from a state: of those of all tokens, within 1, 2, ... segments; of truncated ones, within the most.

    Args:
        written: pages by how their tokens were drawn.
    """
    for name, pages in written.items():
        for state in (BAD, LOOPING):
            returned, stays = estimate_returns(pages, state, GOOD, config.within)
            of, last = f"{STATES[state]}, {name}", float(config.within)
            if stays.count:
                yield Measurement(measures.STAY.name, stays, mode, of=of, at=last)
                for segments, number in enumerate(returned, start=1):
                    if name == "all tokens" or segments == last:
                        yield Measurement(measures.RETURN.name, number, mode, of=of, at=float(segments))


def _list(
    mode: Mode, shown: tuple[Measure, ...], compared: Compared, has_data: bool
) -> Iterator[Measurement]:
    for name, *numbers in compared:
        for measure, number in list(zip(shown, numbers, strict=True))[: 3 if has_data else 1]:
            yield Measurement(measure.name, number, mode, of=name)
