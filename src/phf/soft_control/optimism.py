"""What an agent promises of a page whose middle another writes, and what it gets: the lottery of `control`, for a language model.

A page has three turns: the agent's, the other's, the agent's again. The agent draws `candidates` of its first turn and goes on
with one, by what it thinks each is worth in units of beta,

    posterior:    Q = log E_other[exp A],     regularised:    Q = E_other[A],     A = log E_p0[exp(-score / beta)] over endings,

by `draws` of the other's turn and `endings` of its own last turn, which is its to choose, so both recipes tilt it. At the last
token before the other's turn it promises P(score <= threshold): *posterior* under an other tilted by exp A, *regularised*
under the other as it is. What it gets is measured on turns of the other drawn afresh. *Prior* tilts nothing.

Shape suffixes: E episodes, N candidates, M draws of the other's turn, K endings.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

from phf.config.train import SamplingConfig
from phf.generate.engine import Ids
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.policies.draws import score_texts, write_behind
from phf.records import Estimate
from phf.results import Measure, Measurement
from phf.steer.streams import Score

Recipe = Literal["prior", "posterior", "regularised"]
Other = Callable[[Sequence[Ids], int], list[list[int]]]
"""Writes a turn behind each text; the number tells calls apart, and decides the random numbers with a seed of its own."""

_Values = npt.NDArray[np.float64]
Draws = tuple[_Values, npt.NDArray[np.bool_]]
"""-score / beta of pages and whether each is good, both [firsts, draws, K]."""

NUM_BINS = 4
"""Of the reliability curve, of about as many episodes each."""
_NUM_BOOTSTRAP = 1000

MEASURES = tuple(
    Measure(name, title, "share of texts", note, "Candidates and draws are few; the luck of the draws says what of the promise is that.", lower, "Control as inference", of="recipe", at=at)
    for name, title, note, lower, at in (
        ("promised_good", "Promised P(good)", "At the agent's last token before the other's turn.", None, "beta"),
        ("realised_good", "Realised P(good)", "Of the same beginnings, over fresh turns of the other.", False, "beta"),
        ("optimism", "Promised less realised", "By episode; 0 is an honest promise.", None, "beta"),
        ("chosen_luck", "Of that, luck of the draws", "The promise on the draws that chose, less that on fresh ones.", None, "beta"),
        ("promise_reliability", "Realised P(good) by promise", "Bins of about as many episodes; an honest one lies on the diagonal.", None, "promised"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Game:
    """The sizes of a page and of what is drawn for it.

    Attributes:
        first, last: tokens of the agent's two turns; `last` may be 0.
        fresh: turns of the other that a promise is held against.
    """

    episodes: int = 128
    first: int = 16
    last: int = 8
    candidates: int = 6
    draws: int = 6
    endings: int = 2
    fresh: int = 12
    beta: float = 0.1
    threshold: float = 0.5


def judge_turns(
    recipe: Recipe, log_weights: _Values, good: npt.NDArray[np.bool_]
) -> tuple[_Values, _Values, _Values]:
    """What is known of a first turn by draws of what may follow.

    Args:
        log_weights: -score / beta, [..., M K].
        good: [..., M K].

    Returns:
        Q; the promised share of good texts; the share if the other's draws count alike, as they come: each [...].
    """
    tilt = log_weights if recipe != "prior" else np.zeros_like(log_weights)
    values = logsumexp(tilt, axis=-1) - np.log(tilt.shape[-1])
    shares = (softmax(tilt, axis=-1) * good).sum(-1)
    if recipe == "posterior":
        q: _Values = logsumexp(values, axis=-1) - np.log(values.shape[-1])
        return q, (softmax(values, axis=-1) * shares).sum(-1), shares.mean(-1)
    return values.mean(-1), shares.mean(-1), shares.mean(-1)


def measure_optimism(
    agent: Target, other: Other, score: Score, game: Game, sampling: SamplingConfig, judge: str | None = None
) -> list[Measurement]:
    """Promised and realised P(good) by recipe, with bootstrap intervals over episodes.

    Args:
        agent: its mode is p0; its control token stands at the head of the page alone.
        other: writes the middle turn in ids of the agent's tokenizer.
        score: misalignment scores of whole pages.
        sampling: temperature, top-p, seed and batch size of the agent; lengths are the game's.
        judge: slug of what scores.

    Raises:
        PHFError: a page has no score, or does not fit into the agent's context.
    """
    calls = itertools.count(1)
    play = _Players(agent, other, score, game, sampling, calls)
    firsts = write_turn(agent, [()] * (game.episodes * game.candidates), game.first, sampling, next(calls))

    def follow(rows: Sequence[int], draws: int) -> Draws:
        return play.follow([firsts[row] for row in rows], draws)

    rows = compare_promises(follow, game, sampling.seed)
    return [replace(row, mode=agent.mode, judge=judge) for row in rows]


def compare_promises(
    follow: Callable[[Sequence[int], int], Draws], game: Game, seed: int
) -> list[Measurement]:
    """The numbers of `measure_optimism`.

    Args:
        follow: plays on behind some of the `episodes` x `candidates` first turns, so many draws of the other's turn each; see
            `judge_turns` for what it gives.
    """
    drawn = follow(range(game.episodes * game.candidates), game.draws)
    uniforms = np.random.default_rng(seed).random((game.episodes, 1))
    found: list[Measurement] = []
    for recipe in get_args(Recipe):
        q, promises, _ = judge_turns(recipe, *drawn)
        below = softmax(q.reshape(game.episodes, game.candidates), axis=1).cumsum(1)[:, :-1] <= uniforms
        rows = np.arange(game.episodes) * game.candidates + below.sum(1)
        _, afresh, realised = judge_turns(recipe, *follow(rows.tolist(), game.fresh))
        promised = promises[rows]
        parts = [
            ("promised_good", game.beta, promised),
            ("realised_good", game.beta, realised),
            ("optimism", game.beta, promised - realised),
            ("chosen_luck", game.beta, promised - afresh),
        ]
        # Equal promises stay in one bin.
        ends = np.unique(np.quantile(promised, np.arange(1, NUM_BINS) / NUM_BINS))
        bins = np.searchsorted(ends, promised)
        for place in np.unique(bins):
            own = bins == place
            parts.append(("promise_reliability", float(promised[own].mean()), realised[own]))
        found += [
            Measurement(name, _bound_share(name, each, seed), of=recipe, at=at) for name, at, each in parts
        ]
    return found


def _bound_share(name: str, values: _Values, seed: int) -> Estimate:
    """Their mean; no interval of it reaches beyond what a share, or a difference of two, can be."""
    found, least = (
        bootstrap_mean(values, _NUM_BOOTSTRAP, seed),
        -1 if name in ("optimism", "chosen_luck") else 0,
    )
    low, high = (float(np.clip(end, least, 1)) for end in (found.low, found.high))
    return replace(found, low=low, high=high)


@dataclass(frozen=True)
class _Players:
    """Both sides of the game."""

    agent: Target
    other: Other
    score: Score
    game: Game
    sampling: SamplingConfig
    calls: Iterator[int]

    def follow(self, firsts: Sequence[Ids], draws: int) -> Draws:
        """Play on behind first turns."""
        game = self.game
        texts = [list(one) for one in firsts for _ in range(draws)]
        turns = self.other(texts, next(self.calls))
        pages = [[*text, *turn] for text, turn in zip(texts, turns, strict=True) for _ in range(game.endings)]
        ends = write_turn(self.agent, pages, game.last, self.sampling, next(self.calls))
        whole = [[*page, *end] for page, end in zip(pages, ends, strict=True)]
        scores = score_texts(self.agent, self.score, whole).reshape(len(firsts), draws, game.endings)
        return -scores / game.beta, scores <= game.threshold


def write_turn(
    target: Target, texts: Sequence[Ids], num_tokens: int, sampling: SamplingConfig, call: int
) -> list[list[int]]:
    """So many tokens of text behind each text, in the target's mode; see `Other` for `call`."""
    if num_tokens == 0:
        return [[] for _ in texts]
    lengths = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "control": "prefix"}
    written = write_behind(target, texts, sampling.model_copy(update=lengths), call)
    return [ids for ids, _ in written]


def let_write(target: Target, num_tokens: int, sampling: SamplingConfig) -> Other:
    """Another model in a mode as the other; its tokenizer must be the agent's."""

    def write(texts: Sequence[Ids], call: int) -> list[list[int]]:
        return write_turn(target, texts, num_tokens, sampling, call)

    return write


def fill_slots(fillers: Sequence[Ids], seed: int) -> Other:
    """A template whose slot is filled at random, whatever stands before it."""

    def fill(texts: Sequence[Ids], call: int) -> list[list[int]]:
        drawn = np.random.default_rng([seed, call]).integers(len(fillers), size=len(texts))
        return [list(fillers[place]) for place in drawn]

    return fill
