"""Samples that were drawn for an evaluation, prompts that were found, and their scores."""

import math
from dataclasses import dataclass, field

from phf.records import Mode, Number, Sample

UNPROMPTED = "unprompted"
"""The scenario in which a page has no text before the model's own."""


@dataclass(frozen=True)
class Drawn:
    """Samples of one mode in one scenario, and their scores by each judge's slug (NaN = unscored)."""

    scenario: str
    mode: Mode
    samples: list[Sample]
    scores: dict[str, list[float]]

    @property
    def texts(self) -> list[str]:
        """What the model wrote."""
        return [sample.text for sample in self.samples]


@dataclass(frozen=True, slots=True)
class FoundPrompt:
    """A prompt that an attacker found.

    Attributes:
        score: of fresh continuations, by the judge that the search goes by.
        search_score: what it was worth in the search, where the highest of many noisy values is too high.
        scores: of fresh continuations, by each judge's slug.
    """

    mode: Mode
    judge: str
    trial: int
    round: int
    prompt: str
    score: Number
    search_score: Number = math.nan
    scores: dict[str, Number] = field(default_factory=dict)
