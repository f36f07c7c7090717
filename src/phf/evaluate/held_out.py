"""Held-out segments by their label, as contexts and as texts that directions are estimated on."""

from dataclasses import dataclass

from phf.errors import NotApplicableError
from phf.evaluate.pages import PageReader, choose_segments
from phf.records import BAD, GOOD
from phf.thresholds import Threshold

NUM_SEGMENTS = 512
"""Held-out segments of each label that contexts are made of, at most one of a document."""


@dataclass(frozen=True)
class HeldOutSegments:
    """Segments of held-out documents as text ids, at most one good and one bad one of a document, shuffled."""

    good: list[list[int]]
    bad: list[list[int]]

    @classmethod
    def read(cls, reader: PageReader, threshold: float, seed: int) -> "HeldOutSegments":
        """Up to `NUM_SEGMENTS` of each; score <= threshold is good.

        Raises:
            PHFError: the validation split lacks one of the two.
        """
        label = Threshold(threshold).label
        found = [
            [
                page.segments[-1].tolist()
                for page in choose_segments(reader, label, (wanted,), NUM_SEGMENTS, seed)
            ]
            for wanted in (GOOD, BAD)
        ]
        for name, segments in zip(("good", "bad"), found, strict=True):
            if not segments:
                raise NotApplicableError(
                    f"the validation split has no {name} segment (score against {threshold:.4g}) to make contexts of; "
                    "build the corpus with a larger validation fraction"
                )
        return cls(*found)
