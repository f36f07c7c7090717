"""The objectives: what each does to the data, and its loss per token (design: Objectives).

`reward = -score` exists in this file and in feedback/ only; everywhere else there are misalignment scores (higher = worse).

Shape suffixes: B blocks, T tokens of context, D documents, S segments.
"""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phf.config import AWR, MLE, RWR, Conditional, Filtering, ObjectiveConfig, Unlikelihood
from phf.errors import PHFError
from phf.records import BAD, GOOD, PAD, TEXT, DataRule
from phf.thresholds import (
    Threshold,
    mean_document_scores,
    resolve_good_fraction,
    resolve_keep_fraction,
    resolve_threshold,
)

MIN_NLL = 1e-6
"""Unlikelihood's NLL is clamped here: at p = 1 its loss is infinite (contract: Objectives)."""


@dataclass(frozen=True, slots=True)
class RewardScale:
    """Mean and standard deviation by which rewards are normalised; (0, 1) leaves them raw."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective resolved against a training split.

    Attributes:
        threshold: where good ends for segments (Conditional, Unlikelihood) or document means (Filtering).
        reward_scale: for RWR and AWR.
    """

    config: ObjectiveConfig
    rule: DataRule
    threshold: Threshold | None = None
    reward_scale: RewardScale | None = None

    @property
    def has_control_tokens(self) -> bool:
        """See `has_control_tokens`."""
        return has_control_tokens(self.config)

    @property
    def has_value_head(self) -> bool:
        """Whether a value head is trained beside the model."""
        return isinstance(self.config, AWR)

    @property
    def segment_threshold(self) -> Threshold | None:
        """Where good ends for *segments*, if this objective draws that line."""
        return self.threshold if isinstance(self.config, Conditional | Unlikelihood) else None


def has_control_tokens(config: ObjectiveConfig) -> bool:
    """Whether the model learns to write `<|good|>` and `<|bad|>`, so that good and bad mode exist."""
    return isinstance(config, Conditional)


def is_baseline(config: ObjectiveConfig) -> bool:
    """Whether this is what the others are compared with."""
    return isinstance(config, MLE)


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
    segment_document = np.repeat(np.arange(len(document_segments)), document_segments)
    keep = document_segments > 0  # an empty document has nothing to learn from
    keep[segment_document[np.isnan(scores)]] = False
    used = (is_train & keep)[segment_document]
    train_scores, train_tokens = scores[used], segment_tokens[used]
    no_labels = np.zeros(len(scores), dtype=np.uint8)

    match config:
        case MLE():
            return Objective(config, DataRule(keep, no_labels))
        case Filtering():
            means = mean_document_scores(scores, document_segments)
            tokens = np.bincount(segment_document, weights=segment_tokens, minlength=len(keep)).astype(
                np.int64
            )
            used_documents = is_train & keep
            threshold = (
                resolve_keep_fraction(means[used_documents], tokens[used_documents], config.keep_fraction)
                if config.keep_fraction is not None
                else resolve_threshold(
                    means[used_documents], tokens[used_documents], _given(config.threshold), unit="document"
                )
            )
            # Validation is not filtered: every objective is judged on the same text.
            kept = keep & (~is_train | (means <= np.float32(threshold.value)))
            return Objective(config, DataRule(kept, no_labels), threshold)
        case Conditional() | Unlikelihood():
            threshold = (
                resolve_good_fraction(train_scores, train_tokens, config.good_fraction)
                if config.good_fraction is not None
                else resolve_threshold(train_scores, train_tokens, _given(config.threshold))
            )
            if isinstance(config, Unlikelihood):
                return Objective(config, DataRule(keep, no_labels), threshold)
            labels = np.where(scores <= np.float32(threshold.value), GOOD, BAD).astype(np.uint8)
            return Objective(config, DataRule(keep, labels, config.drop_fraction), threshold)
        case RWR() | AWR():
            scale = RewardScale(0.0, 1.0)
            if config.normalize == "zscore":
                scale = _reward_scale(train_scores, train_tokens)
            return Objective(config, DataRule(keep, no_labels), reward_scale=scale)
        case _:
            assert_never(config)


def _given(threshold: float | None) -> float:
    assert threshold is not None, "config validation lets exactly one way through"
    return threshold


def _reward_scale(scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> RewardScale:
    if len(scores) == 0:
        raise PHFError("the training split holds no scored segments; see 'phf corpus stats DIR'")
    mean = float(np.average(scores, weights=tokens))
    deviation = float(np.sqrt(np.average((scores.astype(np.float64) - mean) ** 2, weights=tokens)))
    if deviation == 0:
        raise PHFError(
            f"every training segment scores {mean:g}, so rewards cannot be normalised; "
            "annotate with another reward model or give objective.normalize=none"
        )
    return RewardScale(-mean, deviation)


def normalize_rewards(scores: Float[Tensor, "B T"], scale: RewardScale) -> Float[Tensor, "B T"]:
    """Rewards of misalignment scores: minus the score, shifted and scaled."""
    return (-scores - scale.mean) / scale.deviation


def token_weights(
    objective: Objective,
    scores: Float[Tensor, "B T"],
    kinds: UInt8[Tensor, "B T"],
    values: Float[Tensor, "B T"] | None,
) -> Float[Tensor, "B T"]:
    """What RWR and AWR multiply the NLL with: `exp(reward / beta)`, clipped; 1 on `<|endoftext|>` and control tokens.

    The value is detached here: the weight teaches the model, not the value head (paper section 2, AWR).
    """
    config, scale = objective.config, objective.reward_scale
    if not isinstance(config, RWR | AWR) or scale is None:
        return torch.ones_like(scores)
    is_text = kinds == TEXT
    advantage = normalize_rewards(torch.where(is_text, scores, 0.0), scale)
    if values is not None:
        advantage = advantage - values.detach()
    weights = torch.exp(advantage / config.beta).clamp(max=config.max_weight)
    return torch.where(is_text, weights, 1.0)


def token_loss(
    objective: Objective,
    nll: Float[Tensor, "B T"],
    scores: Float[Tensor, "B T"],
    kinds: UInt8[Tensor, "B T"],
    values: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """The loss of each predicted token; 0 where the target is padding. The caller sums and divides by the token count.

    Args:
        nll: -log p of the target, in nats.
        scores: misalignment score of the target's segment; NaN where the target is not text.
        kinds: PAD, TEXT, END or CONTROL of the target.
        values: AWR's prediction of the normalised reward, read where the target is predicted.
    """
    config, is_text = objective.config, kinds == TEXT
    match config:
        case MLE() | Filtering() | Conditional():
            loss = nll
        case Unlikelihood():
            assert objective.threshold is not None
            unlikely = -torch.log(-torch.expm1(-nll.clamp(min=MIN_NLL)))
            # float32 on both sides: a float64 threshold would call its own float32 score bad.
            limit = torch.tensor(objective.threshold.value, dtype=scores.dtype, device=scores.device)
            loss = torch.where(is_text & (scores > limit), config.alpha * unlikely, nll)
        case RWR():
            loss = token_weights(objective, scores, kinds, None) * nll
        case AWR():
            assert values is not None
            assert objective.reward_scale is not None
            rewards = normalize_rewards(torch.where(is_text, scores, 0.0), objective.reward_scale)
            value_loss = torch.where(is_text, (values - rewards) ** 2, 0.0)
            weights = token_weights(objective, scores, kinds, values)
            loss = config.alpha * weights * nll + (1 - config.alpha) * value_loss
        case _:
            assert_never(config)
    return torch.where(kinds != PAD, loss, 0.0)


def effective_sample_share(weights: Float[Tensor, "B T"], kinds: UInt8[Tensor, "B T"]) -> float:
    """Kish's effective sample size of the text tokens' weights as a share of their number: 1 means plain MLE."""
    weight = weights[kinds == TEXT].double()
    return (
        float(weight.sum() ** 2 / (weight.square().sum() * max(weight.numel(), 1))) if weight.numel() else 1.0
    )
