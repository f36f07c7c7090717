"""The scores of a corpus as arrays, and what each objective would do with them at a threshold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from phf.config import AWR, RWR, Conditional, Filtering, Masking, ObjectiveConfig, Removal, Unlikelihood
from phf.corpus.annotation import Annotation
from phf.corpus.stats import TokenCounter, find_lengths, find_token_caches
from phf.errors import PHFError
from phf.objectives import Objective, resolve_objective, segment_weights
from phf.records import BAD, GOOD
from phf.thresholds import Threshold, mean_document_scores

Order = Literal["corpus order", "worst segment first", "highest mean first", "lowest mean first"]

NUM_BINS = 40


@dataclass(frozen=True)
class CorpusScores:
    """An annotation in memory, without the texts: 12 bytes a segment.

    Attributes:
        values: float32 [num_segments], higher = worse, NaN = unscored.
        num_segments: of each document, int64 [num_documents].
        counts: tokens of each segment, or characters, int64 [num_segments].
        count_unit: which of the two.
        is_train: bool [num_documents].
    """

    annotation: Annotation
    values: npt.NDArray[np.float32]
    num_segments: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    count_unit: Literal["tokens", "characters"]
    is_train: npt.NDArray[np.bool_]

    @classmethod
    def load(cls, annotation: Annotation) -> "CorpusScores":
        """Read all scores of an annotation, and no text: whether they are of these texts is checked where one is shown.

        Raises:
            PHFError: a shard is missing, damaged or stale.
        """
        corpus = annotation.corpus
        counter = TokenCounter(annotation, find_token_caches(corpus))
        values, numbers, counts, is_train = [], [], [], []
        for shard in range(len(corpus.shards)):
            table = annotation.read_shard(shard)
            num_segments = pc.list_value_length(table["scores"]).to_numpy().astype(np.int64)
            ends = pc.list_flatten(table["ends"]).to_numpy()
            split = corpus.read_shard(shard, ["split"])["split"]
            values.append(pc.list_flatten(table["scores"]).to_numpy())
            numbers.append(num_segments)
            counts.append(counter.count(find_lengths(num_segments, ends)))
            is_train.append(pc.equal(split, "train").to_numpy())
        return cls(
            annotation,
            values=np.concatenate(values),
            num_segments=np.concatenate(numbers),
            counts=np.concatenate(counts),
            count_unit="tokens" if counter.cache is not None else "characters",
            is_train=np.concatenate(is_train),
        )

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First segment of each document [num_documents]."""
        return np.cumsum(self.num_segments) - self.num_segments

    @cached_property
    def means(self) -> npt.NDArray[np.float32]:
        """Mean segment score of each document [num_documents]; NaN with an unscored segment."""
        return mean_document_scores(self.values, self.num_segments)

    @cached_property
    def worst(self) -> npt.NDArray[np.float32]:
        """Highest segment score of each document [num_documents]; NaN if none is scored."""
        highest: npt.NDArray[np.float32] = np.fmax.reduceat(self.values, self.starts)
        return highest

    @cached_property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score; (0, 1) where nothing is scored."""
        scored = self.values[~np.isnan(self.values)]
        return (float(scored.min()), float(scored.max())) if len(scored) > 0 else (0.0, 1.0)

    @cached_property
    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Counts [NUM_BINS] of all scored segments and the edges of the bins [NUM_BINS + 1]."""
        return np.histogram(self.values[~np.isnan(self.values)], NUM_BINS, self.range)

    @cached_property
    def dark(self) -> float:
        """The score that is coloured darkest: of a probability 1, else one that 1 % of the segments reach."""
        if self.annotation.unit == "probability" or np.isnan(self.values).all():
            return 1.0
        return float(np.nanquantile(self.values, 0.99)) or self.range[1] or 1.0

    @property
    def default_threshold(self) -> float:
        """Where a person would begin: half of a probability, a count of nothing."""
        return 0.5 if self.annotation.unit == "probability" else 0.0

    def sort(self, order: Order) -> npt.NDArray[np.int64]:
        """Documents in an order; those without a score come last."""
        return self._orders[order]

    @cached_property
    def _orders(self) -> dict[str, npt.NDArray[np.int64]]:
        return {
            "corpus order": np.arange(len(self.num_segments)),
            "worst segment first": np.argsort(-self.worst, kind="stable"),
            "highest mean first": np.argsort(-self.means, kind="stable"),
            "lowest mean first": np.argsort(self.means, kind="stable"),
        }

    def of_document(self, number: int) -> slice:
        """The segments of a document."""
        start = int(self.starts[number])
        return slice(start, start + int(self.num_segments[number]))

    def resolve(self, config: ObjectiveConfig) -> Objective:
        """An objective resolved as training would.

        Raises:
            PHFError: see `resolve_objective`.
        """
        return resolve_objective(config, self.values, self.counts, self.num_segments, self.is_train)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one objective would do.

    Attributes:
        name: the objective.
        share: of the training tokens that it learns to write as good text; None where it weighs them instead.
        text: a sentence for people.
    """

    name: str
    share: float | None
    text: str


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    make: Callable[[float], ObjectiveConfig]
    corpus: str
    document: Callable[["Verdicts", Objective, int], str] | None


class Verdicts:
    """What the objectives would do at a threshold, by their own data rules."""

    def __init__(self, scores: CorpusScores, threshold: float) -> None:
        self.scores = scores
        self.threshold = threshold
        self._resolved: dict[str, Objective | PHFError] = {}
        for entry in _ENTRIES:
            try:
                self._resolved[entry.name] = scores.resolve(entry.make(threshold))
            except PHFError as error:
                self._resolved[entry.name] = error

    def is_bad(self, segments: slice) -> npt.NDArray[np.bool_]:
        """Which segments score above the threshold; an unscored one does not."""
        return Threshold(self.threshold).is_bad(self.scores.values[segments])

    def of_corpus(self) -> list[Verdict]:
        """What each objective would do with the training split."""
        return [self._of_corpus(entry, self._resolved[entry.name]) for entry in _ENTRIES]

    def of_document(self, number: int) -> list[Verdict]:
        """What each objective would do with a document, or why none uses it."""
        if np.isnan(self.scores.values[self.scores.of_document(number)]).any():
            return [Verdict("Left out", None, "by every objective, because a segment has no score")]
        if not self.scores.is_train[number]:
            return [Verdict("Held out", None, "no objective trains on this document")]
        return [
            Verdict(entry.name, None, entry.document(self, objective, number))
            for entry in _ENTRIES
            if entry.document is not None and isinstance(objective := self._resolved[entry.name], Objective)
        ]

    def _of_corpus(self, entry: _Entry, objective: Objective | PHFError) -> Verdict:
        if isinstance(objective, PHFError):
            return Verdict(entry.name, None, f"cannot be trained like this: {objective}")
        if (threshold := objective.threshold) is None:
            low, high = self.scores.range
            weights = segment_weights(objective, np.array([low, high], np.float32))
            return Verdict(
                entry.name,
                None,
                entry.corpus.format(
                    best=weights[0], worst=weights[1], effective=_percent(objective.effective_share)
                ),
            )
        text = entry.corpus.format(
            part=_percent(threshold.segment_share),
            rest=_percent(1 - threshold.segment_share),
            threshold=f"{self.threshold:.3g}",
        )
        return Verdict(entry.name, threshold.token_share, text)

    def count_good(self, objective: Objective, number: int) -> tuple[int, int]:
        """Good segments of a document, and all of them."""
        assert objective.threshold is not None
        values = self.scores.values[self.scores.of_document(number)]
        labels = objective.label_segments(values, objective.threshold.value)
        return int((labels == GOOD).sum()), len(labels)


def _tell_labels(verdicts: Verdicts, objective: Objective, number: int) -> str:
    labels = objective.rule.labels[verdicts.scores.of_document(number)]
    return f"<|good|> × {int((labels == GOOD).sum())}, <|bad|> × {int((labels == BAD).sum())}"


def _tell_kept(verdicts: Verdicts, objective: Objective, number: int) -> str:
    mean = f"mean {verdicts.scores.means[number]:.3g}"
    return f"keeps it ({mean})" if objective.rule.keep[number] else f"drops it ({mean})"


def _tell_left(verdicts: Verdicts, objective: Objective, number: int) -> str:
    num_good, num = verdicts.count_good(objective, number)
    if not objective.rule.keep[number]:
        return "drops it: nothing is left"
    return f"keeps {num_good} of {num}"


def _tell_learned(verdicts: Verdicts, objective: Objective, number: int) -> str:
    num_good, num = verdicts.count_good(objective, number)
    return f"learns {num_good} of {num}"


def _tell_pushed(verdicts: Verdicts, objective: Objective, number: int) -> str:
    num_good, num = verdicts.count_good(objective, number)
    return f"pushes down {num - num_good} of {num}"


def _tell_weights(verdicts: Verdicts, objective: Objective, number: int) -> str:
    weights = segment_weights(objective, verdicts.scores.values[verdicts.scores.of_document(number)])
    low, high = (f"{weight:.2g}" for weight in (weights.min(), weights.max()))
    return f"weight {low}" if low == high else f"weights {low} to {high}"


_ENTRIES = (
    _Entry("Conditional", lambda t: Conditional(threshold=t),
           "puts <|good|> before {part} of the segments and <|bad|> before the other {rest}", _tell_labels),
    _Entry("Filtering", lambda t: Filtering(threshold=t),
           "keeps the {part} of the documents with a mean score up to {threshold} and drops {rest}", _tell_kept),
    _Entry("Removal", lambda t: Removal(threshold=t),
           "keeps {part} of the segments and cuts {rest} out of their documents", _tell_left),
    _Entry("Masking", lambda t: Masking(threshold=t),
           "reads everything, learns to write {part} of the segments only", _tell_learned),
    _Entry("Unlikelihood", lambda t: Unlikelihood(threshold=t),
           "learns to write {part} of the segments and not to write the other {rest}", _tell_pushed),
    _Entry("RWR", lambda _: RWR(),
           "has no threshold: weight {worst:.2g} for the worst segment, {best:.2g} for the best; effective sample: {effective} "
           "of the tokens", _tell_weights),
    _Entry("AWR", lambda _: AWR(),
           "has no threshold: begins with RWR's weights, then weighs how much better a segment is than its value head "
           "expects", None),
)  # fmt: skip


def _percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.3g} %"
