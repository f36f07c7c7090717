"""Two sets of samples with the same random numbers, one after something that may lead the model astray."""

from collections.abc import Iterator, Sequence

import numpy as np

from phf.evaluate.judges import LoadedJudge
from phf.intervals import bootstrap_mean
from phf.records import Sample
from phf.results import Measurement
from phf.reward_models import score_samples

Ids = Sequence[int]


def compare_samples(
    names: tuple[str, str, str],
    judges: Sequence[LoadedJudge],
    before: Sequence[Sample],
    after: Sequence[Sample],
    num_bootstrap: int,
    seed: int,
    *,
    of: str | None = None,
    at: float | None = None,
) -> Iterator[Measurement]:
    """The score before, the score after and their difference (the measures `names`), by each judge.

    The bootstrap is over pairs; a pair that lacks a score (NaN) is left out of the difference.
    """
    for judge in judges:
        low, high = (
            np.array(score_samples(judge.model, [sample.text for sample in samples]))
            for samples in (before, after)
        )
        for name, scores in zip(names, (low, high, high - low), strict=True):
            estimate = bootstrap_mean(scores, num_bootstrap, seed)
            yield Measurement(name, estimate, before[0].mode, judge.slug, of, at)


def cut_twin(segments: Sequence[list[int]], length: int, place: int) -> list[int]:
    """One of the segments that are long enough, cut to a length; the longest of all if none is."""
    long_enough = [segment for segment in segments if len(segment) >= length] or [max(segments, key=len)]
    return long_enough[place % len(long_enough)][:length]
