"""The objectives: what each does to the data, and its loss per token (docs/objectives.md).

`reward = -score` exists in objective_rewards.py and in feedback/ only; everywhere else there are misalignment scores (higher =
worse).

Shape suffixes: B blocks, T tokens of context, D documents, S segments.
"""

from dataclasses import dataclass, replace
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from phf.config.objectives import (
    AWR,
    MLE,
    RWR,
    Additive,
    Conditional,
    Custom,
    Filtering,
    Masking,
    ObjectiveConfig,
    Quantile,
    Removal,
    Scalar,
    Tagging,
    Unlikelihood,
)
from phf.objective_code import check_loss, own_loss
from phf.objective_facts import OBJECTIVES
from phf.objective_rewards import RankScale, RewardScale
from phf.records import BAD, CONTROL, END, GOOD, NO_LABEL, PAD, TEXT, DataRule, Mode, Poison
from phf.thresholds import ResolvedThreshold, Threshold, mean_document_scores

MIN_NLL = 1e-30
"""Unlikelihood's NLL is clamped here: at p = 1 its loss is infinite. Its slope by the logits is exact up to there, if the
NLL's is (`needs_exact_nll`)."""

MLE_SHARE = 0.99
"""Weights with a larger effective sample share train what MLE would (the fault of beta = 10 on raw scores)."""


LossReads = Literal["nothing", "mask", "weight", "inputs", "scores"]
"""What an engine must know of a token to train with an objective: nothing but the ids; which tokens are not learned; a number
that its NLL is multiplied with; what is added to the model's inputs; its score, for a loss that is no multiple of the NLL."""

NO_DOCUMENTS = DataRule(np.empty(0, np.bool_), np.empty(0, np.uint8))
"""The data rule of an objective that meets no corpus: a loss alone."""


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective resolved against a training split.

    Attributes:
        threshold: where good ends for segments (Conditional, Unlikelihood, ...) or document means (Filtering).
        reward_scale: for RWR, AWR and Scalar.
        levels: where each of Quantile's levels ends, best first.
        effective_share: of RWR's weights (AWR's, while the value is 0) over the training tokens; 1 means plain MLE.
    """

    config: ObjectiveConfig
    rule: DataRule
    threshold: ResolvedThreshold | None = None
    reward_scale: RewardScale | RankScale | None = None
    levels: tuple[ResolvedThreshold, ...] = ()
    effective_share: float | None = None

    @property
    def has_control_tokens(self) -> bool:
        """See `has_control_tokens`."""
        return has_control_tokens(self.config)

    @property
    def writes_control_tokens(self) -> bool:
        """Whether the model learns to write control tokens: what it reads of them is also its own to predict."""
        if isinstance(self.config, Conditional | Quantile):
            return self.config.control_loss
        return isinstance(self.config, Tagging)

    @property
    def has_value_head(self) -> bool:
        """Whether a value head is trained beside the model."""
        return value_head_of(self.config) is not None

    @property
    def has_weights(self) -> bool:
        """Whether the NLL is weighted by rewards."""
        return isinstance(self.config, RWR | AWR)

    @property
    def needs_exact_nll(self) -> bool:
        """Whether a token that the model is all but sure of must still have a slope: else it would never be unlearned."""
        return isinstance(self.config, Unlikelihood | Custom)

    @property
    def loss_reads(self) -> LossReads:
        """What the loss of a token rests on, beside its NLL: see `LossReads`."""
        match self.config:
            case MLE() | Filtering() | Removal() | Tagging():
                return "nothing"
            case Conditional() | Quantile():
                return "nothing" if self.config.control_loss else "mask"
            case Masking():
                return "mask"
            case RWR():
                return "weight"
            case Additive() | Scalar():
                return "inputs"
            case Unlikelihood() | AWR() | Custom():
                return "scores"
            case _:
                assert_never(self.config)

    @property
    def kept_share(self) -> float:
        """Share of the training tokens that the data rule keeps."""
        if isinstance(self.config, Filtering | Removal) and self.threshold is not None:
            return self.threshold.token_share
        return 1.0

    @property
    def segment_threshold(self) -> ResolvedThreshold | None:
        """Where good ends for *segments*, if this objective has a threshold of them."""
        return None if isinstance(self.config, Filtering) else self.threshold

    def label_segments(self, scores: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.uint8]:
        """The label that tells the truth about each segment: NO_LABEL where there is no score.

        Args:
            scores: misalignment scores [S].
            threshold: where good ends, for objectives without levels.
        """
        if not self.levels:
            return Threshold(threshold).label(scores)
        ends = np.array([level.value for level in self.levels], np.float32)
        order = np.array([GOOD, *range(BAD + 1, BAD + len(ends)), BAD], np.uint8)
        return np.where(np.isnan(scores), NO_LABEL, order[np.searchsorted(ends, scores)]).astype(np.uint8)


def has_control_tokens(config: ObjectiveConfig) -> bool:
    """Whether the model learns what `<|good|>` and `<|bad|>` mean, so that good and bad mode exist."""
    return "bad" in modes_of(config)


def is_additive(config: ObjectiveConfig) -> bool:
    """Whether the embeddings of control tokens are added to the inputs, and do not stand between them."""
    return OBJECTIVES[config.kind].is_additive


def value_head_of(config: ObjectiveConfig) -> Literal["linear", "sigmoid"] | None:
    """The form of the value head that is trained beside the model, if any."""
    return config.value_head if isinstance(config, AWR) else None


def poison_of(config: ObjectiveConfig) -> Poison:
    """What the text of bad training segments is replaced by."""
    return config.poison if isinstance(config, Conditional) else "none"


def num_levels(config: ObjectiveConfig) -> int:
    """Control tokens that the objective needs beside `<|good|>` and `<|bad|>`."""
    return config.levels - 2 if isinstance(config, Quantile) else 0


def modes_of(config: ObjectiveConfig) -> tuple[Mode, ...]:
    """The modes in which a model trained with this objective is measured, the one to release first."""
    return OBJECTIVES[config.kind].modes


def active_fractions(config: ObjectiveConfig) -> tuple[float, float]:
    """From which to which fraction of the budget the objective is active; outside it the run trains as MLE."""
    return (0.0, 1.0) if isinstance(config, MLE) else (config.start, config.stop)


def baseline(scores: npt.NDArray[np.float32], document_segments: npt.NDArray[np.int64]) -> Objective:
    """The MLE that stands in for an objective where it is not active.

    Args:
        scores: misalignment score of each segment [S], NaN = unscored.
        document_segments: number of segments of each document [D].
    """
    return apply_objective(Objective(MLE(), NO_DOCUMENTS), scores, document_segments, np.empty(0, np.bool_))


def apply_objective(
    objective: Objective,
    scores: npt.NDArray[np.float32],
    document_segments: npt.NDArray[np.int64],
    is_train: npt.NDArray[np.bool_],
) -> Objective:
    """A resolved objective on documents that it may not have been resolved on: its thresholds, levels and scale stay, its
    data rule is theirs. For the arguments see `objective_resolution.resolve_objective`.
    """
    config, keep = objective.config, usable_documents(scores, document_segments)
    no_labels = np.zeros(len(scores), np.uint8)
    if objective.segment_threshold is not None:
        is_good = objective.segment_threshold.is_good(scores)
    match config:
        case MLE() | Masking() | Unlikelihood() | Custom() | RWR() | AWR():
            rule = DataRule(keep, no_labels)
        case Filtering():
            assert objective.threshold is not None
            means = mean_document_scores(scores, document_segments)
            # Validation is not filtered: every objective is judged on the same text.
            rule = DataRule(keep & (~is_train | objective.threshold.is_good(means)), no_labels)
        case Removal():
            has_good = np.zeros(len(keep), np.bool_)
            has_good[np.repeat(np.arange(len(keep)), document_segments)[is_good]] = True
            rule = DataRule(keep & (has_good | ~is_train), no_labels, keep_segments=is_good)
        case Conditional():
            good, bad = (BAD, GOOD) if config.invert else (GOOD, BAD)
            labels = np.where(is_good, good, bad).astype(np.uint8)
            rule = DataRule(keep, labels, config.drop_fraction, poison=config.poison)
        case Quantile():
            rule = DataRule(keep, objective.label_segments(scores, np.nan), config.drop_fraction)
        case Additive():
            labels = np.where(is_good, GOOD, BAD).astype(np.uint8)
            rule = DataRule(keep, labels, config.drop_fraction, control=False)
        case Scalar():
            # Every segment is told its reward; whether that counts as good or bad plays no part.
            rule = DataRule(keep, np.full(len(scores), GOOD, np.uint8), config.drop_fraction, control=False)
        case Tagging():
            tagged = np.where(is_good, NO_LABEL, BAD).astype(np.uint8)
            rule = DataRule(keep, tagged, tag_fraction=config.tag_fraction)
        case _:
            assert_never(config)
    return replace(objective, rule=rule)


def without_documents(objective: Objective) -> Objective:
    """A resolved objective whose data rule has its settings alone."""
    return apply_objective(objective, np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.bool_))


def usable_documents(
    scores: npt.NDArray[np.float32], document_segments: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Documents that have segments, all of them scored [D]: an empty document has nothing to learn from."""
    usable = document_segments > 0
    usable[np.repeat(np.arange(len(document_segments)), document_segments)[np.isnan(scores)]] = False
    return usable


def segment_weights(objective: Objective, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What RWR (and AWR, while its value is 0) multiplies the NLL of each segment's text with [S]; 1 for the others."""
    kinds = torch.full((1, len(scores)), TEXT, dtype=torch.uint8)
    weights: npt.NDArray[np.float64] = (
        token_weights(objective, torch.from_numpy(scores)[None], kinds, None)[0].double().numpy()
    )
    return weights


def segment_rewards(objective: Objective, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The normalised reward of each segment [S], for objectives that have a reward scale."""
    assert objective.reward_scale is not None
    rewards: npt.NDArray[np.float32] = objective.reward_scale.rewards(torch.from_numpy(scores)).numpy()
    return rewards


def warn_of_mle(objective: Objective) -> str | None:
    """A line for the user where an objective's weights would train what MLE trains."""
    share, config = objective.effective_share, objective.config
    if share is None or share <= MLE_SHARE or not isinstance(config, RWR | AWR):
        return None
    return (
        f"warning: {config.kind} with beta={config.beta:g} and normalize={config.normalize} is almost MLE: the effective "
        f"sample share of its weights is {share:.4f}; give a smaller objective.beta or objective.normalize=zscore"
    )


def check_code(objective: Objective, scores: npt.NDArray[np.float32]) -> dict[str, dict[str, str]]:
    """Try a user's own code on a small batch, before hours go in.

    Args:
        scores: misalignment score of each segment [S], NaN = unscored: the range that it is tried on.

    Returns:
        what the code is, for run.json; empty for the built-in objectives.

    Raises:
        PHFError: see `check_loss`.
    """
    if not isinstance(objective.config, Custom):
        return {}
    return {"objective_function": check_loss(objective.config, objective.threshold, scores)}


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
    advantage = scale.rewards(torch.where(is_text, scores, 0.0))
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
        case MLE() | Filtering() | Removal() | Additive() | Scalar() | Tagging():
            loss = nll
        case Conditional() | Quantile():
            loss = nll if config.control_loss else torch.where(kinds == CONTROL, 0.0, nll)
        case Masking():
            loss = torch.where(_is_bad(objective, scores, kinds), 0.0, nll)
        case Unlikelihood():
            unlikely = -torch.log(-torch.expm1(-nll.clamp(min=MIN_NLL)))
            loss = torch.where(_is_bad(objective, scores, kinds), config.alpha * unlikely, nll)
        case RWR():
            loss = token_weights(objective, scores, kinds, None) * nll
        case AWR():
            assert values is not None
            assert objective.reward_scale is not None
            rewards = objective.reward_scale.rewards(torch.where(is_text, scores, 0.0))
            value_loss = torch.where(is_text, (values - rewards) ** 2, 0.0)
            weights = token_weights(objective, scores, kinds, values)
            loss = config.alpha * weights * nll + (1 - config.alpha) * value_loss
        case Custom():
            loss = own_loss(config, objective.threshold, nll, scores, kinds)
        case _:
            assert_never(config)
    return torch.where(kinds != PAD, loss, 0.0)


def _is_bad(
    objective: Objective, scores: Float[Tensor, "B T"], kinds: UInt8[Tensor, "B T"]
) -> Bool[Tensor, "B T"]:
    """Which targets are text of bad segments."""
    assert objective.threshold is not None
    return (kinds == TEXT) & (scores > objective.threshold.value)  # as `Threshold.is_bad`, on any device


def target_conditions(
    objective: Objective,
    scores: Float[Tensor, "B T"],
    kinds: UInt8[Tensor, "B T"],
    labels: UInt8[Tensor, "B T"],
) -> Float[Tensor, "B T 2"] | None:
    """How much of `<|good|>`'s and of `<|bad|>`'s embedding is added to each input; None for objectives that add none.

    An input predicts its target, so it carries the condition of the *target*'s segment; the input that predicts
    `<|endoftext|>` carries the last segment's. A scalar's reward there is that of the target before, in the same block
    (a page that ends with a block's first target ends under no condition).
    """
    match objective.config:
        case Additive():
            return torch.stack([labels == GOOD, labels == BAD], dim=-1).float()
        case Scalar():
            assert objective.reward_scale is not None
            told = (kinds == TEXT) & (labels != NO_LABEL)
            rewards = torch.where(told, objective.reward_scale.rewards(torch.where(told, scores, 0.0)), 0.0)
            before = torch.nn.functional.pad(rewards[:, :-1], (1, 0))
            rewards = torch.where(kinds == END, before, rewards)
            return torch.stack([rewards, torch.zeros_like(rewards)], dim=-1)
    return None


def switch_conditions(config: ObjectiveConfig, conditions: Float[Tensor, "B T 2"]) -> Float[Tensor, "B T 2"]:
    """The conditions with good and bad swapped; a scalar's reward with its sign turned."""
    return -conditions if isinstance(config, Scalar) else conditions.flip(-1)


def label_conditions(config: ObjectiveConfig) -> Float[np.ndarray, "3 2"] | None:
    """What `target_conditions` are at each label (NO_LABEL, GOOD, BAD) when a mode or a judge gives it."""
    match config:
        case Additive():
            return np.array([[0, 0], [1, 0], [0, 1]], np.float32)
        case Scalar():
            return np.array([[0, 0], [config.good_reward, 0], [-config.good_reward, 0]], np.float32)
    return None


def effective_sample_share(weights: Float[Tensor, "B T"], kinds: UInt8[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Kish's effective sample size of the text tokens' weights as a share of their number: 1 means plain MLE."""
    is_text = kinds == TEXT
    weight = torch.where(is_text, weights.double(), 0.0)
    share = weight.sum() ** 2 / (weight.square().sum() * is_text.sum())
    return torch.where(is_text.any(), share, 1.0)
