"""The scores of a corpus as arrays, and what each objective would do with them at a threshold."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from phf.annotate.annotation import Annotation
from phf.config.objectives import ObjectiveConfig, built_in_kinds
from phf.control import level_tokens
from phf.curate.stats import TokenCounter, find_lengths, find_token_caches
from phf.errors import PHFError
from phf.objective_facts import OBJECTIVES, Telling
from phf.objective_resolution import resolve_objective
from phf.objectives import Objective, num_levels, segment_rewards, segment_weights
from phf.records import BAD, GOOD
from phf.reward_models.protocol import FROM_0_TO_1
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
    _orders: dict[Order, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False)

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
            counts.append(counter.count(shard, find_lengths(num_segments, ends)))
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
        if self.annotation.unit in FROM_0_TO_1 or np.isnan(self.values).all():
            return 1.0
        return float(np.nanquantile(self.values, 0.99)) or self.range[1] or 1.0

    @property
    def default_threshold(self) -> float:
        """Where a person would begin: half of a probability, a count of nothing."""
        return 0.5 if self.annotation.unit in FROM_0_TO_1 else 0.0

    def sort(self, order: Order) -> npt.NDArray[np.int64]:
        """Documents in an order; those without a score come last."""
        if order not in self._orders:
            self._orders[order] = self._sort(order)
        return self._orders[order]

    def _sort(self, order: Order) -> npt.NDArray[np.int64]:
        match order:
            case "corpus order":
                return np.arange(len(self.num_segments))
            case "worst segment first":
                return np.argsort(-self.worst, kind="stable")
            case "highest mean first":
                return np.argsort(-self.means, kind="stable")
            case "lowest mean first":
                return np.argsort(self.means, kind="stable")

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
class ObjectiveVerdict:
    """What one objective would do.

    Attributes:
        name: the objective.
        share: of the training tokens that it learns to write as good text; None where it weighs them instead.
        text: a sentence for people.
    """

    name: str
    share: float | None
    text: str


class Verdicts:
    """What the built-in objectives would do at a threshold, by their own data rules."""

    def __init__(self, scores: CorpusScores, threshold: float) -> None:
        self.scores = scores
        self.threshold = threshold
        self._resolved: dict[str, Objective | PHFError] = {}
        for kind, choice in built_in_kinds().items():
            has_threshold = "threshold" in choice.model_fields
            config = cast(ObjectiveConfig, choice(**({"threshold": threshold} if has_threshold else {})))
            try:
                self._resolved[kind] = scores.resolve(config)
            except PHFError as error:
                self._resolved[kind] = error

    def is_bad(self, segments: slice) -> npt.NDArray[np.bool_]:
        """Which segments score above the threshold; an unscored one does not."""
        return Threshold(self.threshold).is_bad(self.scores.values[segments])

    def of_corpus(self) -> list[ObjectiveVerdict]:
        """What each objective would do with the training split."""
        return [self._of_corpus(kind, objective) for kind, objective in self._resolved.items()]

    def of_document(self, number: int) -> list[ObjectiveVerdict]:
        """What each objective would do with a document, or why none uses it."""
        if np.isnan(self.scores.values[self.scores.of_document(number)]).any():
            return [ObjectiveVerdict("Left out", None, "by every objective, because a segment has no score")]
        if not self.scores.is_train[number]:
            return [ObjectiveVerdict("Held out", None, "no objective trains on this document")]
        return [
            ObjectiveVerdict(_name(kind), None, _tell(line, self, objective, number))
            for kind, objective in self._resolved.items()
            if isinstance(objective, Objective) and (line := OBJECTIVES[kind].document_line) is not None
        ]

    def _of_corpus(self, kind: str, objective: Objective | PHFError) -> ObjectiveVerdict:
        if isinstance(objective, PHFError):
            return ObjectiveVerdict(_name(kind), None, f"cannot be trained like this: {objective}")
        text = OBJECTIVES[kind].corpus_line.format(**self._numbers(objective))
        if objective.threshold is not None:
            return ObjectiveVerdict(_name(kind), objective.threshold.token_share, text)
        if objective.levels:
            return ObjectiveVerdict(_name(kind), objective.levels[0].token_share, text)
        return ObjectiveVerdict(_name(kind), None if objective.reward_scale is not None else 1.0, text)

    def _numbers(self, objective: Objective) -> dict[str, str | float]:
        """What a row's `corpus_line` may name."""
        numbers: dict[str, str | float] = {"threshold": f"{self.threshold:.3g}"}
        if objective.threshold is not None:
            share = objective.threshold.segment_share
            numbers |= {"part": _percent(share), "rest": _percent(1 - share)}
        if objective.levels:
            best, worst = (f"{objective.levels[place].value:.3g}" for place in (0, -1))
            numbers |= {"num_levels": len(objective.levels) + 1, "best_level": best, "worst_level": worst}
        if objective.reward_scale is not None:
            tell = segment_weights if objective.has_weights else segment_rewards
            best, worst = tell(objective, np.array(self.scores.range, np.float32))
            numbers |= {"best": float(best), "worst": float(worst)}
        if objective.effective_share is not None:
            numbers["effective"] = _percent(objective.effective_share)
        return numbers

    def count_good(self, objective: Objective, number: int) -> tuple[int, int]:
        """Good segments of a document, and all of them; without a threshold all are good."""
        values = self.scores.values[self.scores.of_document(number)]
        if objective.threshold is None:
            return len(values), len(values)
        labels = objective.label_segments(values, objective.threshold.value)
        return int((labels == GOOD).sum()), len(labels)

    def count_labels(self, objective: Objective, number: int) -> npt.NDArray[np.int64]:
        """How many segments of a document have each label: NO_LABEL, GOOD, BAD, then the levels between."""
        labels = objective.rule.labels[self.scores.of_document(number)]
        return np.bincount(labels, minlength=BAD + 1 + num_levels(objective.config))


def _tell(line: Telling, verdicts: Verdicts, objective: Objective, number: int) -> str:
    """What an objective would do with a document, in a few words."""
    values = verdicts.scores.values[verdicts.scores.of_document(number)]
    is_kept = objective.rule.keep[number]
    match line:
        case "labels" | "levels":
            counts = verdicts.count_labels(objective, number)
            names = level_tokens(num_levels(objective.config))
            pairs = zip(names, counts[BAD + 1 :], strict=True)
            between = "".join(f"{name} × {count}, " for name, count in pairs)
            return f"<|good|> × {counts[GOOD]}, {between}<|bad|> × {counts[BAD]}"
        case "tagged":
            counts = verdicts.count_labels(objective, number)
            return f"strews <|bad|> into {counts[BAD]} of {counts.sum()}"
        case "kept":
            return f"{'keeps' if is_kept else 'drops'} it (mean {verdicts.scores.means[number]:.3g})"
        case "weights":
            return _tell_range("weight", segment_weights(objective, values))
        case "rewards":
            return _tell_range("reward", segment_rewards(objective, values))
        case "left" if not is_kept:
            return "drops it: nothing is left"
    num_good, num = verdicts.count_good(objective, number)
    done = {
        "left": f"keeps {num_good}",
        "learned": f"learns {num_good}",
        "pushed": f"pushes down {num - num_good}",
    }
    return f"{done[line]} of {num}"


def _tell_range(name: str, values: npt.NDArray[np.floating]) -> str:
    low, high = (f"{value:.2g}" for value in (values.min(), values.max()))
    return f"{name} {low}" if low == high else f"{name}s {low} to {high}"


def _name(kind: str) -> str:
    return built_in_kinds()[kind].__name__


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
