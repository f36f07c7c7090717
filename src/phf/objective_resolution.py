"""An objective's config against a training split: where good ends, how rewards are scaled, what the data rule keeps.

A corpus is gone through whole or part by part; both give the same (of a sample of the scores, where the parts are many: `condense`).

Shape suffixes: D documents, S segments.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phf.config.objectives import (
    AWR,
    RWR,
    Additive,
    Conditional,
    Custom,
    Filtering,
    GoodConfig,
    Masking,
    ObjectiveConfig,
    Quantile,
    Removal,
    Scalar,
    Tagging,
    Unlikelihood,
)
from phf.objective_rewards import RAW_REWARDS, RankScale, RewardScale, make_reward_scale
from phf.objectives import (
    NO_DOCUMENTS,
    Objective,
    apply_objective,
    segment_weights,
    usable_documents,
    without_documents,
)
from phf.thresholds import (
    ResolvedThreshold,
    ScoredTokens,
    Unit,
    condense,
    mean_document_scores,
    resolve_good_fraction,
    resolve_keep_fraction,
    resolve_levels,
    resolve_report_threshold,
    resolve_threshold,
)


def resolve_objective(
    config: ObjectiveConfig,
    scores: npt.NDArray[np.float32],
    segment_tokens: npt.NDArray[np.int64],
    document_segments: npt.NDArray[np.int64],
    is_train: npt.NDArray[np.bool_],
) -> Objective:
    """Turn an objective's config into its data rule, thresholds and reward scale.

    Thresholds and scales look at the training split only. Documents with an unscored segment, and empty ones, are
    dropped from every objective alike, so that comparisons share their data.

    Args:
        scores: misalignment score of each segment [S], NaN = unscored.
        segment_tokens: tokens of each segment [S].
        document_segments: number of segments of each document [D].
        is_train: documents of the training split [D].

    Raises:
        PHFError: a threshold or fraction that cannot be met; scores that do not vary (RWR, AWR).
    """
    part = Part(scores, segment_tokens, document_segments, is_train)
    return apply_objective(resolve_parts(config, [lambda: part]), scores, document_segments, is_train)


class Part(NamedTuple):
    """Some documents: see `resolve_objective`."""

    scores: npt.NDArray[np.float32]
    segment_tokens: npt.NDArray[np.int64]
    document_segments: npt.NDArray[np.int64]
    is_train: npt.NDArray[np.bool_]


Parts = Sequence[Callable[[], Part]]
"""A corpus in parts, each read when it is called for, maybe more than once."""


@dataclass(frozen=True, slots=True)
class TrainingScores:
    """Scores and tokens of the training segments (or documents) of each part, gone through anew whenever they are asked for."""

    parts: Parts
    unit: Unit = "segment"
    with_dropped: bool = False
    """Whether scored segments count whose document is dropped because another one is unscored."""

    def __iter__(self) -> Iterator[ScoredTokens]:
        for read in self.parts:
            scores, tokens, document_segments, is_train = read()
            used = is_train & usable_documents(scores, document_segments)
            documents = np.repeat(np.arange(len(used)), document_segments)
            if self.unit == "document":
                means = mean_document_scores(scores, document_segments)
                sums = np.bincount(documents, weights=tokens, minlength=len(used)).astype(np.int64)
                yield means[used], sums[used]
            else:
                chosen = is_train[documents] & ~np.isnan(scores) if self.with_dropped else used[documents]
                yield scores[chosen], tokens[chosen]

    def join(
        self, fractions: Sequence[float | None] = (), value: float | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """Scores, tokens and counts to find thresholds in: those of a single part as they are, else see `condense`."""
        if len(self.parts) == 1:
            return (*next(iter(self)), None)
        given = [fraction for fraction in fractions if fraction is not None]
        return condense(self, given, [] if value is None else [value])


def resolve_parts(config: ObjectiveConfig, parts: Parts) -> Objective:
    """As `resolve_objective`, of a corpus that is read part by part; of the data rule there are the settings alone."""
    train = TrainingScores(parts, "document" if isinstance(config, Filtering) else "segment")
    threshold: ResolvedThreshold | None = None
    levels: tuple[ResolvedThreshold, ...] = ()
    scale: RewardScale | RankScale | None = None

    if isinstance(config, Filtering):
        scores, tokens, counts = train.join([config.keep_fraction], config.threshold)
        if config.keep_fraction is not None:
            threshold = resolve_keep_fraction(scores, tokens, config.keep_fraction, counts=counts)
        else:
            assert config.threshold is not None, "config validation lets exactly one way through"
            threshold = resolve_threshold(scores, tokens, config.threshold, unit="document", counts=counts)
    elif isinstance(config, Removal | Masking | Conditional | Additive | Tagging | Unlikelihood | Custom):
        scores, tokens, counts = train.join([config.good_fraction], config.threshold)
        if config.good_fraction is not None:
            threshold = resolve_good_fraction(scores, tokens, config.good_fraction, counts=counts)
        elif config.threshold is not None:
            threshold = resolve_threshold(scores, tokens, config.threshold, counts=counts)
    elif isinstance(config, Quantile):
        scores, tokens, counts = train.join([level / config.levels for level in range(1, config.levels)])
        levels = tuple(resolve_levels(scores, tokens, config.levels, counts=counts))
    elif isinstance(config, Scalar | RWR | AWR) and config.normalize == "none":
        scale = RAW_REWARDS
    elif isinstance(config, Scalar | RWR | AWR):
        scores, tokens, _ = train.join()
        scale = make_reward_scale(config.normalize, scores, tokens, train)

    objective = without_documents(Objective(config, NO_DOCUMENTS, threshold, scale, levels))
    if not objective.has_weights:
        return objective
    # Kish's effective sample size of the weights of all training tokens, as a share of their number.
    sums = [
        (own.sum(), own @ (weights := segment_weights(objective, scores)), own @ weights**2)
        for scores, own in train
    ]
    num_tokens, first, second = (sum(column) for column in zip(*sums, strict=True))
    return replace(objective, effective_share=float(first**2 / (num_tokens * second)))


def resolve_report(good: GoodConfig, parts: Parts) -> ResolvedThreshold:
    """Where reports end good text if the objective has no line of its own: over all scored segments of the training split."""
    train = TrainingScores(parts, with_dropped=True)
    scores, tokens, counts = train.join([good.good_fraction], good.threshold)
    return resolve_report_threshold(scores, tokens, good.threshold, good.good_fraction, counts=counts)
