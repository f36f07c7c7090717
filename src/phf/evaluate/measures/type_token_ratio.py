"""How rich the words of samples are: the moving-average type-token ratio (Covington and McFall 2010)."""

import math
from typing import TYPE_CHECKING

import numpy as np

from phf.evaluate.metric import Measured, Metric
from phf.evaluate.pieces import split_pieces
from phf.intervals import bootstrap_mean
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject

WINDOW = 25
"""Words that are looked at together, so that long samples compare with short ones."""


def type_token_ratio(text: str) -> float:
    """Share of different words, averaged over all runs of `WINDOW` words; NaN for a text with fewer."""
    words = [piece.casefold() for piece in split_pieces(text) if piece[0].isalnum()]
    windows = [words[start : start + WINDOW] for start in range(len(words) - WINDOW + 1)]
    return float(np.mean([len(set(window)) / WINDOW for window in windows])) if windows else math.nan


def measure_modes(subject: "Subject") -> Measured:
    """The mean over the samples of each mode that are long enough."""
    sizes = (subject.config.num_bootstrap, subject.config.sampling.seed)
    return Measured(
        [
            Measurement(
                "type_token_ratio", bootstrap_mean(list(map(type_token_ratio, own.texts)), *sizes), mode
            )
            for mode, own in subject.drawn.items()
        ]
    )


METRIC = Metric(
    "type_token_ratio",
    (
        Measure(
            "type_token_ratio",
            "Type-token ratio",
            f"share of {WINDOW} words",
            f"Different words among {WINDOW} that follow one another in a sample: higher is a richer vocabulary.",
            "Garbled words are different words, and a sample that repeats itself after more words than these passes.",
            lower_is_better=False,
            group="Diversity",
        ),
    ),
    measure_modes,
)
