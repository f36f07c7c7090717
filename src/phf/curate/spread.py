"""The spread of an annotation's scores: of a large corpus found in files, shard by shard, with memory that does not grow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from phf.thresholds import condense

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_NUM_BINS = 20

_Floats = npt.NDArray[np.float32]
_Counts = npt.NDArray[np.int64]


class Histogram(TypedDict):
    """How many scores lie between each two of the edges."""

    edges: list[float]
    counts: list[int]


class Summary(TypedDict):
    """The spread of an annotation's scores; `mean` is None where nothing is scored."""

    mean: float | None
    quantiles: list[dict[str, float]]
    histogram: Histogram


_Column = Literal["scores", "counts", "other_scores", "means", "worst", "document_counts", "num_segments"]


class Parts:
    """What is held of an annotation. Used: training documents that no segment without a score spoils.

    Columns: `scores` of the segments of used documents, `counts` their tokens, or characters; `other_scores` of the other
    scored segments; of used documents their `means`, `worst`, `document_counts` and `num_segments`.
    """

    def __init__(self, folder: Path | None) -> None:
        """Shards stay apart, in files of the folder; without one they are joined in memory."""
        self.num_train_documents = 0
        self.train_count = 0
        self._folder = folder
        self._columns: dict[_Column, list[npt.NDArray[Any]]] = {name: [] for name in get_args(_Column)}

    def add(self, columns: Mapping[_Column, npt.NDArray[Any]]) -> None:
        """Add a shard."""
        for name, array in columns.items():
            parts = self._columns[name]
            if self._folder is not None and array.size > 0:  # nothing cannot be mapped
                path = self._folder / f"{name}-{len(parts)}.npy"
                np.save(path, array)
                array = np.load(path, mmap_mode="r")
            parts.append(array)

    def take(self, name: _Column) -> list[npt.NDArray[Any]]:
        """A column, in one piece or in those of shards. Of this, memory holds nothing more."""
        parts = self._columns.pop(name)
        return parts if self._folder is not None else [np.concatenate(parts)]


def join_columns(one: Sequence[_Floats], other: Sequence[_Floats]) -> list[_Floats]:
    """Two columns as one; of many parts each stays where it is."""
    return [*one, *other] if len(one) > 1 else [np.concatenate([*one, *other])]


def summarize(parts: Sequence[_Floats]) -> Summary:
    """Mean, quantiles and histogram of scores, none of them NaN."""
    parts = [own for own in parts if len(own) > 0]
    if not parts:
        return {"mean": None, "quantiles": [], "histogram": {"edges": [], "counts": []}}
    bounds = min(own.min() for own in parts), max(own.max() for own in parts)
    edges = np.histogram_bin_edges(parts[0], _NUM_BINS, bounds)
    counts = sum(np.histogram(own, _NUM_BINS, bounds)[0] for own in parts)
    values = np.quantile(parts[0], QUANTILES) if len(parts) == 1 else _find_quantiles(parts)
    return {
        "mean": float(sum(own.sum(dtype=np.float64) for own in parts) / sum(map(len, parts))),
        "quantiles": [
            {"quantile": quantile, "score": float(value)}
            for quantile, value in zip(QUANTILES, values, strict=True)
        ],
        "histogram": {"edges": edges.tolist(), "counts": np.asarray(counts).tolist()},
    }


def _find_quantiles(parts: Sequence[_Floats]) -> npt.NDArray[np.float64]:
    """The quantiles of many parts, interpolated between neighbours as numpy does."""
    num = sum(map(len, parts))
    places = np.array(QUANTILES) * (num - 1)
    below = places.astype(np.int64)
    neighbours = np.stack([below, np.minimum(below + 1, num - 1)])
    ones = [(own, np.broadcast_to(np.int64(1), len(own))) for own in parts]
    scores, _, counts = condense(ones, ((neighbours + 0.5) / num).ravel().tolist())
    low, high = scores[np.searchsorted(np.cumsum(counts), neighbours, side="right")].astype(np.float64)
    found: npt.NDArray[np.float64] = low + (high - low) * (places - below)
    return found


@dataclass(frozen=True, slots=True)
class Ranked:
    """Scores in order, as far as thresholds are looked for among them.

    Attributes:
        scores: ascending.
        numbers: how many are at or below each of them, in that order.
        sums: how many tokens these have.
    """

    scores: _Floats
    numbers: _Counts
    sums: _Counts

    @classmethod
    def of(
        cls,
        scores: Sequence[_Floats],
        counts: Sequence[_Counts],
        fractions: Sequence[float],
        thresholds: Sequence[float],
    ) -> "Ranked":
        """Of one part all scores; of many a table, in which the thresholds of these fractions and these values are the same."""
        if len(scores) == 1:
            order = np.argsort(scores[0])
            sums = np.cumsum(counts[0][order], dtype=np.int64)
            return cls(scores[0][order], np.arange(1, len(order) + 1), sums)
        table, tokens, numbers = condense(list(zip(scores, counts, strict=True)), fractions, thresholds)
        return cls(table, np.cumsum(numbers), np.cumsum(tokens))

    @property
    def num_scores(self) -> int:
        """All of them."""
        return int(self.numbers[-1])

    @property
    def total(self) -> int:
        """Tokens of all."""
        return int(self.sums[-1])

    def at_or_below(self, threshold: float) -> tuple[int, int]:
        """How many scores, and how many tokens they have."""
        place = int(np.searchsorted(self.scores, np.float32(threshold), side="right"))
        return (int(self.numbers[place - 1]), int(self.sums[place - 1])) if place > 0 else (0, 0)
