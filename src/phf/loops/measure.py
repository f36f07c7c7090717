"""What is measured of a round: scores, drift of the judges, distance from the start, held-out text, variety."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from phf.evaluate.judges import LoadedJudge
from phf.evaluate.measures.bits_per_byte import bits_per_byte
from phf.evaluate.measures.degeneracy import distinct_ngrams, repetition
from phf.evaluate.pages import Page, mode_labels, segment_nll
from phf.evaluate.pieces import NGRAMS_PER_SAMPLE, split_pieces
from phf.intervals import CONFIDENCE, bootstrap_mean, difference_of_shares, wilson
from phf.loops.results import (
    BITS_CHANGE,
    BITS_PER_BYTE,
    DISTINCT_2,
    DISTINCT_TEXTS,
    ENDED_SHARE,
    JUDGE_DRIFT,
    KL_FROM_START,
    MEAN_TOKENS,
    REPETITION,
    SCORE,
)
from phf.policies.draws import Draws
from phf.policies.policy import Policy
from phf.records import Estimate, Progress
from phf.results import Measurement

_Values = npt.NDArray[np.float64]
_GROUPS = 16
"""Of texts, one of which at a time is left out."""


def measure_texts(
    draws: Draws, first: Draws, gaps: _Values, judges: Sequence[LoadedJudge], at: int, num_bootstrap: int
) -> list[Measurement]:
    """What the texts of a round say.

    Args:
        draws: the round's texts.
        first: those of round 0.
        gaps: log p(text) of the model that wrote it, minus that of the start model: [N].
        judges: the annotator first.
        at: the round.
    """

    def mean(values: npt.ArrayLike) -> Estimate:
        return bootstrap_mean(values, num_bootstrap, at)

    rows = [
        Measurement(SCORE.name, mean(scores), judge=judge.slug, at=at)
        for judge, scores in zip(judges, draws.scores, strict=True)
    ]
    for judge, scores, before in zip(judges[1:], draws.scores[1:], first.scores[1:], strict=True):
        if at > 0 and judge.model.unit == judges[0].model.unit:
            gaps_now, gaps_before = mean(scores - draws.scores[0]), mean(before - first.scores[0])
            # Texts of two rounds are independent: their intervals are joined, whatever the numbers are of.
            drift = difference_of_shares(gaps_now, gaps_before)
            rows.append(Measurement(JUDGE_DRIFT.name, drift, judge=judge.slug, at=at))
    texts = [text.text for text in draws.texts]
    pieces = [split_pieces(text) for text in texts]
    distinct = jackknife(pieces, lambda kept: distinct_ngrams(kept, 2, NGRAMS_PER_SAMPLE * len(kept)))
    return [
        *rows,
        Measurement(KL_FROM_START.name, mean(gaps), at=at),
        Measurement(DISTINCT_2.name, distinct, at=at),
        Measurement(REPETITION.name, jackknife(pieces, repetition), at=at),
        Measurement(MEAN_TOKENS.name, mean([len(text.ids) for text in draws.texts]), at=at),
        Measurement(ENDED_SHARE.name, wilson(sum(text.ended for text in draws.texts), len(texts)), at=at),
        Measurement(DISTINCT_TEXTS.name, wilson(len(set(texts)), len(texts)), at=at),
    ]


def jackknife(
    pieces: Sequence[Sequence[str]], statistic: Callable[[Sequence[Sequence[str]]], float]
) -> Estimate:
    """A statistic of texts, with the interval of a jackknife over groups of them and Student's t (Efron and Tibshirani 1993)."""
    whole, num = statistic(pieces), min(_GROUPS, len(pieces))
    if num < 3 or np.isnan(whole):
        return Estimate(whole, np.nan, np.nan, len(pieces))
    left = [
        statistic([own for index, own in enumerate(pieces) if index % num != group]) for group in range(num)
    ]
    error = np.sqrt((num - 1) * np.var(left))
    half = float(stdtrit(num - 1, (1 + CONFIDENCE) / 2) * error)
    return Estimate(whole, whole - half, whole + half, len(pieces))


def read_pages(policy: Policy, pages: Sequence[Page], progress: Progress | None) -> list[list[float]]:
    """What each segment of held-out pages costs in the policy's mode, in nats."""
    target = policy.target
    control, size = target.tokenizer.control, target.tokenizer.vocab_size
    nll = segment_nll(target.model, control, size, pages, mode_labels(pages, target.page_mode), progress)
    return [own.tolist() for own in nll]


def list_bits(
    pages: Sequence[Page],
    costs: Sequence[Sequence[float]],
    before: Sequence[Sequence[float]],
    threshold: float,
    at: int,
    num_bootstrap: int,
) -> list[Measurement]:
    """Bits per byte of good, bad and all held-out text, by what `read_pages` gave of a round and of round 0."""
    now, first = ([np.array(own) for own in each] for each in (costs, before))
    measured = {BITS_PER_BYTE: now}
    if at > 0:
        measured[BITS_CHANGE] = [later - earlier for later, earlier in zip(now, first, strict=True)]
    return [
        Measurement(measure.name, estimate, of=text, at=at)
        for measure, nll in measured.items()
        for text, estimate in bits_per_byte(pages, nll, threshold, num_bootstrap, at).items()
    ]
