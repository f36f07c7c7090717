"""Chains whose truth is known, and what each estimator makes of them: none may meet a model before (docs/dynamics.md)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.dynamics.chain import Chain, count_steps, estimate_chain, fit_chain
from phf.dynamics.ergodicity import intraclass_correlation, measure_ergodicity
from phf.dynamics.hidden import estimate_hidden
from phf.dynamics.pages import AFTER, Pages
from phf.intervals import bootstrap_mean, bootstrap_ratio
from phf.records import Estimate, Progress

_Values = npt.NDArray[np.float64]
_Write = Callable[[int, np.random.Generator], Pages]

GOOD, BAD = 0, 1
LONGEST = 20
"""Segments at which pages are cut."""
CONFUSION = np.array([[0.95, 0.05], [0.15, 0.85]])
"""P(judged | true) of the judge that errs."""
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
    states, ended = (
        np.concatenate([own.states for own in parts]),
        np.concatenate([own.ended for own in parts]),
    )
    return Pages(states, ended, 2)


def judge_pages(pages: Pages, rng: np.random.Generator) -> Pages:
    """The same pages as a judge sees them that errs as `CONFUSION` says."""
    judged, there = np.full(pages.states.shape, AFTER), pages.is_there
    judged[there] = rng.random(int(there.sum())) < CONFUSION[pages.states[there], BAD]
    return Pages(judged, pages.ended, 2)


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


def validate(
    trials: int, num_pages: int = 500, num_bootstrap: int = 200, progress: Progress | None = None
) -> Iterator[Coverage]:
    """Hold each estimator against chains whose truth is known."""
    sources: dict[str, tuple[_Write, Chain | None]] = {
        "independent segments": (lambda num, rng: IID.simulate(num, LONGEST, rng), IID),
        "slow chain": (lambda num, rng: SLOW.simulate(num, LONGEST, rng), SLOW),
        "two kinds of page": (write_mixture, None),
    }
    for source, (write, chain) in sources.items():
        yield from _validate_chain(source, write, chain, trials, num_pages, num_bootstrap, progress)
    yield from _validate_judge(trials, num_pages, num_bootstrap // 2, progress)
    yield from _validate_tails(trials, num_pages, num_bootstrap, progress)


def _validate_chain(
    source: str,
    write: _Write,
    chain: Chain | None,
    trials: int,
    num_pages: int,
    num_bootstrap: int,
    progress: Progress | None,
) -> Iterator[Coverage]:
    many = write(_MANY if chain is None else 1000, np.random.default_rng(0))
    law = chain or fit_chain(count_steps(many).sum(axis=0))
    truths = {name: float(measure(law)) for name, measure in STATISTICS.items()}
    if source != "slow chain":
        truths |= {"share between pages": 0.0 if chain else 0.1}
    truths |= {"far excess": 0.0 if chain else 0.1}
    found: dict[str, list[Estimate]] = {name: [] for name in truths}
    rejected = 0
    for trial in range(trials):
        pages = write(num_pages, np.random.default_rng([trial, num_pages]))
        own = estimate_chain(pages, STATISTICS, num_bootstrap, trial)
        if "share between pages" in truths:
            own["share between pages"] = intraclass_correlation(pages, [0, 1], num_bootstrap, trial)
        far = measure_ergodicity(pages, [0, 1], num_bootstrap, trial)
        assert far is not None
        own["far excess"], rejected = far.excess, rejected + (far.p <= 0.05)
        for name in truths:
            found[name].append(own[name])
        if progress is not None:
            progress(f"validating: {source}", trial + 1, trials)
    yield from (_cover(source, name, truths[name], found[name]) for name in truths)
    yield Coverage(
        source, "rejected as not ergodic", 0.0 if chain else 1.0, 0.0, rejected / trials, trials, True
    )


def _validate_judge(
    trials: int, num_pages: int, num_bootstrap: int, progress: Progress | None
) -> Iterator[Coverage]:
    chain = make_chain(0.92, 0.85)
    names = ("good -> bad", "bad -> good", "end before bad")
    statistics = {name: STATISTICS[name] for name in names}
    found: dict[str, list[Estimate]] = {name: [] for name in names}
    for trial in range(trials):
        rng = np.random.default_rng([trial, num_pages])
        judged = judge_pages(chain.simulate(num_pages, LONGEST, rng), rng)
        table = np.stack([rng.multinomial(1000, row) for row in CONFUSION])
        own = estimate_hidden(judged, table, statistics, num_bootstrap, trial)
        for name in names:
            found[name].append(own[name])
        if progress is not None:
            progress("validating: a judge that errs", trial + 1, trials)
    for name in names:
        yield _cover("a judge that errs", name, float(statistics[name](chain)), found[name])


def _validate_tails(
    trials: int, num_pages: int, num_bootstrap: int, progress: Progress | None
) -> Iterator[Coverage]:
    many, lengths = write_tails(_MANY, np.random.default_rng(0))
    truths = {
        name: float(np.mean(top) / np.mean(bottom))
        for name, (top, bottom) in _list_ratios(many, lengths).items()
    }
    found: dict[str, list[Estimate]] = {name: [] for name in truths}
    for trial in range(trials):
        own = _list_ratios(*write_tails(num_pages, np.random.default_rng([trial, num_pages])))
        for name, (top, bottom) in own.items():
            if np.all(bottom == 1):
                found[name].append(bootstrap_mean(top, num_bootstrap, trial))
            else:
                found[name].append(bootstrap_ratio(top, bottom, num_bootstrap, trial))
        if progress is not None:
            progress("validating: heavy tails", trial + 1, trials)
    yield from (_cover("heavy tails, cut", name, truths[name], found[name]) for name in truths)


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


def _cover(source: str, name: str, truth: float, found: list[Estimate]) -> Coverage:
    holds = [own.low <= truth <= own.high for own in found]
    bias = float(np.mean([own.mean for own in found])) - truth
    return Coverage(source, name, truth, bias, float(np.mean(holds)), len(found))
