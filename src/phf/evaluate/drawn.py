"""Samples that were drawn for an evaluation, and their scores."""

from dataclasses import dataclass

from phf.records import Mode, Sample

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
