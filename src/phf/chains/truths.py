"""Chains whose truth is known, and what each estimator makes of them: none may meet a model before (docs/dynamics.md)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.chains.absorbing import estimate_returns
from phf.chains.chain import Chain, count_steps, estimate_chain, fit_chain
from phf.chains.ergodicity import intraclass_correlation, measure_ergodicity
from phf.chains.hidden import Confusion, count_confusion, estimate_hidden
from phf.chains.pages import AFTER, Pages
from phf.chains.places import compare_orders, compare_places, estimate_drift
from phf.intervals import bootstrap_mean, bootstrap_ratio
from phf.records import Estimate, Progress

_Values = npt.NDArray[np.float64]

NOT_ERGODIC, NOT_HOMOGENEOUS = "rejected as not ergodic", "rejected as not alike in all places"
LONGER = "rejected as of longer memory"

GOOD, BAD = 0, 1
LONGEST = 20
"""Segments at which pages are cut."""
DRIFT = 0.01
"""Of the rate of turning bad, a segment, on pages that drift."""
WITHIN = 5
"""Segments within which a page comes back."""
CONFUSION = np.array([[0.95, 0.05], [0.15, 0.85]])
"""P(judged | true) of the judge that errs."""
MOODS = 10.0
"""How alike the rates of error of a moody judge are between pages: each page's are drawn of beta laws of this sum."""
_MANY = 400_000
"""Pages from which a truth is read that has no closed form."""

STATISTICS: dict[str, Callable[[Chain], _Values]] = {
    "good -> bad": lambda chain: chain.steps[..., GOOD, BAD],
    "bad -> good": lambda chain: chain.steps[..., BAD, GOOD],
    "end after good": lambda chain: chain.ends[..., GOOD],
    "end before bad": lambda chain: chain.end_before(BAD)[..., GOOD],
    "segments until bad": lambda chain: chain.hitting_time(BAD)[..., GOOD],
    "bad, stream": lambda chain: chain.stationary[..., BAD],
    "bad, far into a page": lambda chain: chain.quasi_stationary[..., BAD],
    "memory": lambda chain: chain.memory,
}


def make_chain(stay_good: float, stay_bad: float, end: float = 0.04, bad: float = 0.2) -> Chain:
    """A chain of two states whose pages end at one rate."""
    stays = np.array([[stay_good, 1 - stay_good], [1 - stay_bad, stay_bad]])
    return Chain(np.array([1 - bad, bad]), (1 - end) * stays)


IID, SLOW = make_chain(0.8, 0.2), make_chain(0.95, 0.88)
KINDS = make_chain(1 - 0.0735, 0.0735, bad=0.0735), make_chain(1 - 0.3265, 0.3265, bad=0.3265)
"""Two kinds of page, segments independent within a page: .1 of the variance lies between them."""


def write_mixture(num: int, rng: np.random.Generator) -> Pages:
    """Pages of two kinds, even odds."""
    first = int(rng.binomial(num, 0.5))
    parts = [
        chain.simulate(count, LONGEST, rng) for chain, count in zip(KINDS, (first, num - first), strict=True)
    ]
    return Pages(np.vstack([own.states for own in parts]), np.hstack([own.ended for own in parts]), 2)


def write_drifting(num: int, rng: np.random.Generator) -> Pages:
    """Pages that turn bad the more easily the longer they are: by `DRIFT` with each segment; they do not end."""
    states = np.zeros((num, LONGEST), np.int64)
    for place in range(1, LONGEST):
        turned = rng.random(num) < np.where(states[:, place - 1] == GOOD, 0.05 + DRIFT * place, 0.6)
        states[:, place] = turned
    return Pages(states, np.zeros(num, np.bool_), 2)


def judge_pages(pages: Pages, rng: np.random.Generator, moods: float = np.inf) -> Pages:
    """The same pages as a judge sees them that errs as `CONFUSION` says; a moody one on some pages more than on others."""
    rates = np.broadcast_to(CONFUSION[:, BAD], (len(pages), 2))
    if np.isfinite(moods):
        rates = rng.beta(moods * rates, moods * (1 - rates))
    page, place = np.nonzero(pages.is_there)
    judged = np.full(pages.states.shape, AFTER)
    judged[page, place] = rng.random(len(page)) < rates[page, pages.states[page, place]]
    return Pages(judged, pages.ended, 2)


def measure_confusion(pages: Pages, judged: Pages, *, is_own: bool) -> Confusion:
    """What pages whose states are known say of a judge."""
    there = pages.is_there
    scores = (own.states[there].astype(np.float64) for own in (pages, judged))
    truth, called = ((own, 0.5) for own in scores)
    return Confusion(count_confusion(truth, called, np.nonzero(there)[0]), is_own)


def write_tails(num: int, rng: np.random.Generator) -> tuple[Pages, _Values]:
    """Pages of heavy-tailed numbers of segments, cut at the horizon, and how long each segment is, [num, LONGEST]: bad ones longer."""
    ends = rng.beta(0.8, 6, num)  # of each page its own: a mixture of geometric lengths
    last = np.minimum(rng.geometric(np.maximum(ends, 1e-3)), LONGEST)
    pages = make_chain(0.9, 0.7, end=0).simulate(num, LONGEST, rng, last)
    pages = Pages(pages.states, last < LONGEST, 2)
    lengths = rng.pareto(3.0, pages.states.shape) * np.where(pages.states == BAD, 30, 15) + 5
    return pages, np.where(pages.is_there, lengths, 0.0)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an estimator made of a truth over repeats.

    Attributes:
        source, name: the chain and the number.
        truth: of the number.
        bias: mean of the estimates - truth.
        share: of intervals that hold it, of nominal 95 % ones; or of tests that reject.
        is_test: whether `share` is of rejections at p <= .05.
    """

    source: str
    name: str
    truth: float
    bias: float
    share: float
    trials: int
    is_test: bool = False


_Found = dict[str, Estimate | float]
"""Of one repeat: estimates, and p of tests."""


@dataclass(frozen=True)
class _Source:
    """Chains of one kind.

    Attributes:
        truths: of each number; of a test, whether it should reject.
        measure: (seed, pages, resamples) -> what the estimators make of one repeat.
    """

    name: str
    truths: dict[str, float]
    measure: Callable[[int, int, int], _Found]


def validate(
    trials: int, num_pages: int = 500, num_bootstrap: int = 200, progress: Progress | None = None
) -> Iterator[Coverage]:
    """Hold each estimator against chains whose truth is known."""
    sources = [
        _describe_chain("independent segments", IID, {"share between pages": 0.0}),
        _describe_chain("slow chain", SLOW, {}),
        _describe_mixture(),
        _describe_drift(),
        _describe_judge("a judge that errs", np.inf, None),
        _describe_judge("a moody judge, few labels", MOODS, 50),
        _describe_tails(),
    ]
    for source in sources:
        found: list[_Found] = []
        for trial in range(trials):
            found.append(source.measure(trial, num_pages, num_bootstrap))
            if progress is not None:
                progress(f"validating: {source.name}", trial + 1, trials)
        for name, truth in source.truths.items():
            yield _cover(source.name, name, truth, [own[name] for own in found])


def _cover(source: str, name: str, truth: float, found: list[Estimate | float]) -> Coverage:
    known = [own for own in found if isinstance(own, Estimate)]
    tests = [own <= 0.05 for own in found if not isinstance(own, Estimate)]
    holds = [own.low <= truth <= own.high for own in known]
    bias = float(np.mean([own.mean for own in known])) - truth if known else 0.0
    return Coverage(source, name, truth, bias, float(np.mean(holds + tests)), len(found), not known)


def _measure_pages(pages: Pages, num_bootstrap: int, seed: int) -> _Found:
    """All that is estimated of any pages."""
    values = np.array([0.0, 1.0])
    far = measure_ergodicity(pages, values, num_bootstrap, seed)
    assert far is not None
    returned, stays = estimate_returns(pages, BAD, GOOD, WITHIN)
    return {
        **estimate_chain(pages, STATISTICS, num_bootstrap, seed),
        "share between pages": intraclass_correlation(pages, values, num_bootstrap, seed),
        "far excess": far.excess,
        NOT_ERGODIC: far.p,
        "good -> bad, drift": estimate_drift(pages, GOOD, BAD, num_bootstrap, seed),
        NOT_HOMOGENEOUS: compare_places(pages, num_bootstrap, seed),
        LONGER: compare_orders(pages, num_bootstrap, seed),
        f"good again within {WITHIN}": returned[-1],
        f"still bad after {WITHIN}": stays,
    }


def _describe_chain(name: str, chain: Chain, more: dict[str, float]) -> _Source:
    stay, back = float(chain.steps[BAD, BAD]), float(chain.steps[BAD, GOOD])
    truths = {
        **{key: float(measure(chain)) for key, measure in STATISTICS.items()},
        **more,
        "far excess": 0.0,
        NOT_ERGODIC: 0.0,
        "good -> bad, drift": 0.0,
        NOT_HOMOGENEOUS: 0.0,
        LONGER: 0.0,
        f"good again within {WITHIN}": back * (1 - stay**WITHIN) / (1 - stay),
        f"still bad after {WITHIN}": stay**WITHIN,
    }

    def measure(seed: int, num: int, num_bootstrap: int) -> _Found:
        pages = chain.simulate(num, LONGEST, np.random.default_rng([seed, num]))
        return _measure_pages(pages, num_bootstrap, seed)

    return _Source(name, truths, measure)


def _describe_mixture() -> _Source:
    many = fit_chain(count_steps(write_mixture(_MANY, np.random.default_rng(0))).sum(axis=0))
    truths = {key: float(measure(many)) for key, measure in STATISTICS.items()}
    truths |= {"share between pages": 0.1, "far excess": 0.1, NOT_ERGODIC: 1.0}

    def measure(seed: int, num: int, num_bootstrap: int) -> _Found:
        return _measure_pages(write_mixture(num, np.random.default_rng([seed, num])), num_bootstrap, seed)

    return _Source("two kinds of page", truths, measure)


def _describe_drift() -> _Source:
    def measure(seed: int, num: int, num_bootstrap: int) -> _Found:
        pages = write_drifting(num, np.random.default_rng([seed, num]))
        return {
            "good -> bad, drift": estimate_drift(pages, GOOD, BAD, num_bootstrap, seed),
            NOT_HOMOGENEOUS: compare_places(pages, num_bootstrap, seed),
        }

    return _Source("a rate that drifts", {"good -> bad, drift": DRIFT, NOT_HOMOGENEOUS: 1.0}, measure)


def _describe_judge(name: str, moods: float, num_labelled: int | None) -> _Source:
    """A judge whose errors are known from the same pages, as those of a second judge are, or from so many that people labelled."""
    chain, names = make_chain(0.92, 0.85), ("good -> bad", "bad -> good", "end before bad")
    statistics = {name: STATISTICS[name] for name in names}

    def measure(seed: int, num: int, num_bootstrap: int) -> _Found:
        rng = np.random.default_rng([seed, num])
        pages = chain.simulate(num, LONGEST, rng)
        judged = judge_pages(pages, rng, moods)
        judge = measure_confusion(pages, judged, is_own=True)
        if num_labelled is not None:
            labelled = chain.simulate(num_labelled, LONGEST, rng)
            judge = measure_confusion(labelled, judge_pages(labelled, rng, moods), is_own=False)
        return {**estimate_hidden(judged, judge, statistics, num_bootstrap // 2, seed)}

    return _Source(name, {name: float(statistics[name](chain)) for name in names}, measure)


def _describe_tails() -> _Source:
    many = _list_ratios(*write_tails(_MANY, np.random.default_rng(0)))

    def measure(seed: int, num: int, num_bootstrap: int) -> _Found:
        own = _list_ratios(*write_tails(num, np.random.default_rng([seed, num])))
        return {
            name: bootstrap_mean(top, num_bootstrap, seed)
            if np.all(bottom == 1)
            else bootstrap_ratio(top, bottom, num_bootstrap, seed)
            for name, (top, bottom) in own.items()
        }

    truths = {name: float(np.mean(top) / np.mean(bottom)) for name, (top, bottom) in many.items()}
    return _Source("heavy tails, cut", truths, measure)


def _list_ratios(pages: Pages, lengths: _Values) -> dict[str, tuple[_Values, _Values]]:
    """Averages over pages and over the stream of tokens, and the hazard of an end at two places: numerators and denominators by page."""
    bad = pages.states == BAD
    ones = np.ones(len(pages))
    averages = {
        "bad, page average": (bad.sum(axis=1) / pages.lengths, ones),
        "bad, token stream": ((bad * lengths).sum(axis=1), lengths.sum(axis=1)),
    }
    hazards = {
        f"end at segment {place}": (
            (pages.ended & (pages.lengths == place)).astype(np.float64),
            (pages.lengths >= place).astype(np.float64),
        )
        for place in (1, 10)
    }
    return averages | hazards
