"""One pool of the start model's texts, drawn and scored once and kept in the run's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.evaluate.parts import Parts
from phf.finetune.start import Start
from phf.generate.engine import Written
from phf.intervals import best_weights
from phf.records import Number, Progress

_Values = npt.NDArray[np.float64]

POOL_STREAM = 1
"""Of random numbers: steps draw from stream 0, a pool from 1, the measurement at the end from 2."""
PARTS_FOLDER = "finetune"
_CHUNK = 1024
"""Texts that are kept together: what a stopped command repeats at most."""


@dataclass(frozen=True)
class PoolText:
    """A text behind prompt number `prompt`, with its score by the reward model."""

    prompt: int
    ids: list[int]
    ended: bool
    score: Number


@dataclass(frozen=True)
class Pool:
    """Texts of the start model; neighbours stand behind the same prompt, two by two."""

    texts: Sequence[PoolText]

    @classmethod
    def draw(cls, start: Start, folder: Path, run_id: str, progress: Progress | None = None) -> "Pool":
        """`pool` texts, from the disk where they were drawn before.

        Raises:
            PHFError: fewer than two of them have a score.
        """
        num, parts = start.config.pool, Parts(folder / PARTS_FOLDER, [run_id])
        texts: list[PoolText] = []
        for first in range(0, num, _CHUNK):
            indices = range(first, min(first + _CHUNK, num))
            draw = partial(_draw, start, indices, progress)
            texts += parts.measure(f"pool-{first}", len(indices), draw, list[PoolText])
        pool = cls(texts)
        if np.isfinite(pool.scores).sum() < 2:
            raise PHFError(
                f"{start.reward.slug} scored fewer than two of {num} texts; give another --reward, or more with --pool"
            )
        return pool

    @cached_property
    def scores(self) -> _Values:
        """By the reward model; NaN = unscored."""
        return np.array([text.score for text in self.texts])

    @property
    def num_tokens(self) -> int:
        """All tokens of all texts, the ends of pages among them."""
        return sum(len(text.ids) + text.ended for text in self.texts)

    def take(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> tuple[list[int], list[Written]]:
        """Numbers of prompts, and what stands behind them."""
        own = [self.texts[index] for index in chosen]
        return [text.prompt for text in own], [(text.ids, text.ended) for text in own]

    def weigh_best(self, n: int) -> _Values:
        """The chance of each text to be the best of n of the pool without replacement, ties shared: [N], of sum 1.

        Behind several prompts, the best of n stands for the best of n prompts and texts: the pool is one.

        Raises:
            PHFError: fewer than n texts have a score.
        """
        known = np.flatnonzero(np.isfinite(self.scores))
        if len(known) < n:
            raise PHFError(f"{len(known)} scored texts have no best of {n}; give more with --pool")
        weights = np.zeros(len(self.texts))
        weights[known] = best_weights(self.scores[known], n)
        weights /= weights.sum()  # rounding
        return weights


def _draw(start: Start, indices: Sequence[int], progress: Progress | None) -> list[PoolText]:
    numbers = [index // 2 % len(start.prompts) for index in indices]
    prompts = [start.prompts[number] for number in numbers]
    written, texts = start.write(start.model, prompts, POOL_STREAM, "drawing a pool", progress, indices[0])
    scores = start.score(texts)
    return [
        PoolText(number, list(ids), ended, float(score))
        for number, (ids, ended), score in zip(numbers, written, scores, strict=True)
    ]
