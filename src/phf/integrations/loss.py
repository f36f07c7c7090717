"""An objective's loss as a function of tensors, for a training loop that is not phf's.

Shape suffixes: B blocks, T tokens of context, V vocabulary.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import TypeAdapter
from torch import Tensor

from phf.config.objectives import ObjectiveConfig
from phf.control import ControlTokens
from phf.model import lm
from phf.objective_rewards import scale_from_json, scale_to_json
from phf.objectives import NO_DOCUMENTS, Objective, target_conditions, token_loss
from phf.records import PAD
from phf.thresholds import ResolvedThreshold
from phf.train.data import TrainingData


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The loss of each token under an objective: pure, and without the corpus that the objective was resolved on.

    Attributes:
        objective: with its threshold or reward scale; its data rule is empty, for blocks are laid out already.
        control: ids of the control tokens, which the objective may add to inputs.
    """

    objective: Objective
    control: ControlTokens

    @classmethod
    def of(cls, data: TrainingData) -> Self:
        """The loss of a run on this data."""
        own = data.objective
        return cls(
            Objective(own.config, NO_DOCUMENTS, own.threshold, own.reward_scale),
            data.tokens.tokenizer.control,
        )

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        config: Any = TypeAdapter(ObjectiveConfig).validate_python(record["config"])
        threshold, scale = record["threshold"], record["reward_scale"]
        objective = Objective(
            config,
            NO_DOCUMENTS,
            None if threshold is None else ResolvedThreshold(**threshold),
            scale_from_json(scale),
        )
        return cls(objective, ControlTokens(**record["control"]))

    def to_json(self) -> dict[str, Any]:
        """All that decides the loss, as a JSON object."""
        own = self.objective
        return {
            "config": own.config.model_dump(mode="json"),
            "threshold": None if own.threshold is None else asdict(own.threshold),
            "reward_scale": scale_to_json(own.reward_scale),
            "control": asdict(self.control),
        }

    def nll(self, logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """-log p of each target in nats, float32: exact near p = 1 where the objective needs it (unlikelihood).

        Of targets below 0, which are padding, it is some number.
        """
        places = targets.flatten().clamp(min=0)
        flat = lm.nll_of_logits(logits.flatten(0, 1), places, self.objective.needs_exact_nll)
        return flat.view(targets.shape)

    def __call__(
        self,
        nll: Float[Tensor, "B T"],
        scores: Float[Tensor, "B T"],
        kinds: Int[Tensor, "B T"] | UInt8[Tensor, "B T"],
        *,
        is_active: Bool[Tensor, "B"] | None = None,
        values: Float[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """The loss of each predicted token, 0 where the target is padding.

        The caller sums it over the whole batch, all micro-batches and processes, and divides by the number of targets that
        are not padding (`kinds != PAD`), as `phf train` does.

        Args:
            nll: -log p of the target, in nats, with its gradient.
            scores: misalignment score of the target's segment; NaN where the target is no text.
            kinds: of the target: PAD, TEXT, END or CONTROL (`phf.records`).
            is_active: blocks in which the objective is active; the others are trained on as plain MLE. None: all.
            values: AWR's prediction of the normalised reward, where the target is predicted.
        """
        kinds = kinds.to(torch.uint8)
        losses = token_loss(self.objective, nll, scores, kinds, values)
        if is_active is None:
            return losses
        plain = torch.where(kinds != PAD, nll, 0.0)
        return torch.where(is_active[:, None], losses, plain)

    def conditions(
        self, scores: Float[Tensor, "B T"], kinds: UInt8[Tensor, "B T"], labels: UInt8[Tensor, "B T"]
    ) -> Float[Tensor, "B T 2"] | None:
        """How much of the embeddings of `<|good|>` and `<|bad|>` is added to each input (`additive`, `scalar`), if any.

        Args:
            labels: what the model is told of each target's segment (`phf.records.Batch`).
        """
        return target_conditions(self.objective, scores, kinds, labels)
