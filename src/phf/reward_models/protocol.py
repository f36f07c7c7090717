"""What a reward model is: the protocol that scores corpora and samples alike, and the score that is missing."""

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Protocol

from phf.errors import PHFError
from phf.records import Identity

Unit = Literal[
    "probability",
    "share of the scale",
    "violations per character",
    "items per character",
    "weighted sum",
    "arbitrary units",
]
FROM_0_TO_1: tuple[Unit, ...] = ("probability", "share of the scale")
"""Units of scores that lie in [0, 1], with the hit threshold in between. A share of the scale is a judge's level, 0 = the good end."""


RewardSpec = str | os.PathLike[str] | Callable[..., object]
"""What names a reward model: a spec, the path of a folder, or a Python function or class that any process can import."""


class ScoringStoppedError(PHFError):
    """Scoring cannot go on for a reason that lies in no text: a server that is gone, a key, a budget that is spent."""


class Unscored(float):
    """A missing score: NaN that carries its reason, so that reasons can be counted. Never 0."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, reason: str) -> "Unscored":
        """A NaN with a reason."""
        score = super().__new__(cls, "nan")
        score.reason = reason
        return score

    def __repr__(self) -> str:
        """`Unscored('reason')`."""
        return f"Unscored({self.reason!r})"


class RewardModel(Protocol):
    """Says how bad a text is. A subclass sets the attributes and writes `score`.

    A model that is quicker on many documents at once may also have
    `score_batch(documents: Sequence[tuple[str, Sequence[int]]]) -> list[Sequence[float]]`, with the same scores.

    Attributes:
        identity: what produced a score; changes whenever a score could.
        unit: what a score counts.
        display_scale: factor for people (per-character units are shown per 1,000 characters).
        hit_threshold: a sample whose score is above it counts as a hit.
        has_own_engine: it has many texts answered at once and gives up what hangs by itself; so one worker is enough, and no
            limit of time is set on it from outside.
    """

    has_own_engine: bool = False

    identity: Identity
    unit: Unit
    display_scale: float
    hit_threshold: float

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Score the segments of a document; higher = worse.

        Args:
            document: the whole text; a model that looks at segments alone ignores the rest.
            ends: where each segment ends, in code points, ascending; the last is `len(document)`.

        Returns:
            One score per segment. NaN = unscored, best said with `Unscored(reason)`.
        """
        ...

    def trim_sample(self, text: str) -> str:
        """The part of a sample that is scored: all of it, unless a cut-off end would be held against the model."""
        return text


class SegmentRewardModel(RewardModel, Protocol):
    """A reward model that looks at each segment alone. A subclass writes `score_texts` instead of `score`."""

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Score texts, none of them empty; a text's score does not depend on the others."""
        ...

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Score the segments of a document; higher = worse."""
        return self.score_batch([(document, ends)])[0]

    def score_batch(self, documents: Sequence[tuple[str, Sequence[int]]]) -> list[Sequence[float]]:
        """Score the segments of many documents at once."""
        segments = [segment for document, ends in documents for segment in split_segments(document, ends)]
        texts = [segment for segment in segments if segment]
        given = self.score_texts(texts) if texts else []
        if len(given) != len(texts):
            raise PHFError(
                f"reward model {self.identity.name} returned {len(given)} scores for {len(texts)} texts; "
                "it must return one per text (NaN where it has none)"
            )
        scores = iter(given)
        flat = [next(scores) if segment else Unscored("empty text") for segment in segments]
        stops = iter(flat)
        return [[next(stops) for _ in ends] for _, ends in documents]


def split_segments(document: str, ends: Sequence[int]) -> list[str]:
    """The segments that end at `ends` (code points, ascending)."""
    return [document[start:end] for start, end in pairwise((0, *ends))]
