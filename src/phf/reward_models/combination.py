"""A weighted sum of several reward models: `0.7*toxicity-svm + 0.3*pii`."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.records import MAX_SCORE, Identity
from phf.reward_models.protocol import RewardModel, Unit, Unscored
from phf.reward_models.scoring import score_documents

EXAMPLE = "a combination looks like '0.7*toxicity-svm + 0.3*pii'"
TERM = re.compile(r"([^\s*:/]+)\s*\*\s*(.+)", re.DOTALL)
PLUS = re.compile(r"\s+\+\s+|\s*(?<!\d[eE])\+\s*(?=[\d.][\d.eE+-]*\s*\*)")  # not the plus of 1e+3


@dataclass(frozen=True, slots=True)
class Component:
    """One model of a combination, its weight, and how it was named."""

    weight: float
    spec: str
    model: RewardModel


class Combination(RewardModel):
    """The weighted sum of its components' scores. A segment that one of them leaves unscored is unscored."""

    unit: Unit = "weighted sum"
    display_scale = 1.0

    def __init__(self, components: Sequence[Component]) -> None:
        """Combine loaded models.

        Raises:
            PHFError: there are fewer than two, two are the same, or one is itself a combination.
        """
        if len(components) < 2:
            raise PHFError(f"a combination of {len(components)} reward model is none; {EXAMPLE}")
        seen: dict[str, str] = {}
        for component in components:
            if isinstance(component.model, Combination):
                raise PHFError(f"'{component.spec}' is itself a combination; write all components in one sum")
            first = seen.setdefault(component.model.identity.id, component.spec)
            if first is not component.spec:
                raise PHFError(f"'{first}' and '{component.spec}' are one reward model; add their weights")
        self.components = tuple(components)
        self.hit_threshold = sum(part.weight * part.model.hit_threshold for part in components)
        self.identity = Identity(
            "+".join(part.model.identity.name for part in components)[:100],
            "1",
            parameters={
                "components": [
                    {"weight": part.weight, "reward_model": part.model.identity.to_json()}
                    for part in components
                ]
            },
        )

    def combine(self, scores: Sequence[npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
        """Weighted sum of the components' scores.

        Args:
            scores: one array [num_segments] per component, in their order.

        Returns:
            float64 [num_segments]; NaN where any component's score is NaN.
        """
        total = np.zeros(len(scores[0]), np.float64)
        for component, part in zip(self.components, scores, strict=True):
            total += component.weight * part.astype(np.float64)
        return total

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Score the segments of a document; higher = worse."""
        return self.score_batch([(document, ends)])[0]

    def score_batch(self, documents: Sequence[tuple[str, Sequence[int]]]) -> list[Sequence[float]]:
        """Score the segments of many documents, from float32 scores as annotations store them."""
        parts = [
            list(chain.from_iterable(score_documents(component.model, documents)))
            for component in self.components
        ]
        combined = self.combine([np.asarray(part, np.float32) for part in parts]).tolist()
        for index in np.flatnonzero(np.isnan(combined)):
            missing = next(part[index] for part in parts if math.isnan(part[index]))
            combined[index] = Unscored(getattr(missing, "reason", "no reason given"))
        scores = iter(combined)
        return [[next(scores) for _ in ends] for _, ends in documents]

    def trim_sample(self, text: str) -> str:
        """The sample as every component in turn trims it: all of them judge the same text."""
        for component in self.components:
            text = component.model.trim_sample(text)
        return text


def is_combination(spec: str) -> bool:
    """Whether a spec is a sum, or a product with a weight in front."""
    return " + " in spec or TERM.fullmatch(spec) is not None


def load_combination(spec: str, load: Callable[[str], RewardModel]) -> Combination:
    """Load a combination and, with `load`, its components.

    Raises:
        PHFError: a weight is missing, not a positive finite number; a component cannot be loaded; or as `Combination`.
    """
    terms = [_parse_term(term) for term in PLUS.split(spec)]
    if len(terms) == 1:
        raise PHFError(
            f"'{spec}' combines one reward model; write '{terms[0][1]}' alone, or add another: {EXAMPLE}"
        )
    return Combination([Component(weight, part, load(part)) for weight, part in terms])


def _parse_term(term: str) -> tuple[float, str]:
    match = TERM.fullmatch(term.strip())
    if match is None:
        raise PHFError(f"'{term}' has no weight; write '1*{term}'; {EXAMPLE}")
    try:
        weight = float(match[1])
    except ValueError:
        raise PHFError(f"weight '{match[1]}' of '{match[2]}' is no number; {EXAMPLE}") from None
    if not 0 < weight <= MAX_SCORE:
        raise PHFError(
            f"weight {match[1]} of '{match[2]}' must be above 0 and at most {MAX_SCORE:g}; {EXAMPLE}"
        )
    if TERM.fullmatch(match[2]) or match[2].startswith("("):
        raise PHFError(f"'{term}' holds a combination itself; multiply it out; {EXAMPLE}")
    return weight, match[2]
