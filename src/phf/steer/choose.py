"""Steering by choice: several draws of each sample, of which a reward model picks one.

Draw 0 of sample i is sample i of plain sampling; draw j has random numbers that no other sample has (`REDRAW`). So
what a sample becomes depends on its index alone, not on the batch or on how many samples are asked for.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from phf.config.steer import BestOfN, Rejection
from phf.config.train import SamplingConfig
from phf.generate.engine import Ids
from phf.generate.target import REDRAW, Target
from phf.records import Progress, Sample
from phf.steer.streams import Score, Steered, count_passes
from phf.thresholds import Threshold


def generate_best_of_n(
    target: Target,
    sampling: SamplingConfig,
    config: BestOfN,
    score: Score,
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Of `n` draws of each sample the one with the lowest score, the first of several (about `n` passes per token).

    An unscored draw is chosen only where all are, and then it is the plain sample.
    """
    indices = range(sampling.num_samples)
    with count_passes(target.model) as passes:
        draws = [index + draw * REDRAW for index in indices for draw in range(config.n)]
        drawn = target.write(prompts, sampling, progress, draws)
    scores = score([sample.text for sample in drawn]).reshape(-1, config.n)
    chosen = choose_lowest(scores)
    samples = [
        replace(drawn[index * config.n + draw], index=index)
        for index, draw in zip(indices, chosen.tolist(), strict=True)
    ]
    facts = {
        "n": config.n,
        "changed": float(np.mean(chosen > 0)),
        "num_unscored_draws": int(np.isnan(scores).sum()),
        "num_unscored": int(np.isnan(scores).all(axis=1).sum()),
    }
    return Steered.create(samples, passes.count, facts)


def choose_lowest(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The column of each row's lowest score, the first of equals; NaN is never chosen but in a row without a score, where
    it is column 0. [num_samples, draws] -> int64 [num_samples]."""
    chosen: npt.NDArray[np.int64] = np.argmin(np.where(np.isnan(scores), np.inf, scores), axis=1)
    return chosen


def generate_with_rejection(
    target: Target,
    sampling: SamplingConfig,
    config: Rejection,
    score: Score,
    threshold: float,
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Each sample is drawn until its score is at most `threshold`, `tries` times at most; then it is the best of its tries.

    Accepted samples are exact draws of p(text | score <= threshold). Only rejected ones are drawn again; an unscored draw is
    rejected.
    """
    num_samples = sampling.num_samples
    best: list[Sample | None] = [None] * num_samples
    lowest = np.full(num_samples, np.inf)
    waiting = np.arange(num_samples)
    num_draws = 0
    with count_passes(target.model) as passes:
        for draw in range(config.tries):
            # Every try has random numbers of its own; those of the first are plain sampling's.
            draws = [index + draw * REDRAW for index in waiting.tolist()]
            drawn = target.write(prompts, sampling, progress, draws)
            scores = score([sample.text for sample in drawn])
            num_draws += len(drawn)
            keys = np.where(np.isnan(scores), np.inf, scores)
            for index, sample, key in zip(waiting.tolist(), drawn, keys, strict=True):
                if best[index] is None or key < lowest[index]:
                    best[index], lowest[index] = replace(sample, index=index), key
            waiting = waiting[~Threshold(threshold).is_good(scores)]
            if len(waiting) == 0:
                break
    samples = [sample for sample in best if sample is not None]
    facts = {
        "threshold": threshold,
        "accepted": 1 - len(waiting) / num_samples,
        "mean_tries": num_draws / num_samples,
        "num_unscored": int(np.isinf(lowest).sum()),
    }
    return Steered.create(samples, passes.count, facts)
