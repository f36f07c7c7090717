"""Training by transformers' `Trainer`, and what is made of it, with an objective of phf (docs/own_trainer.md).

`Trainer` hands its `compute_loss_func` nothing but the model's outputs and the labels. So what the loss must know of a target is
packed into its label: one int64, which is counted, moved and sharded as labels are, and rounded by no mixed precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from phf.config.train import TrainConfig
from phf.errors import PHFError
from phf.files import Place
from phf.integrations.columns import IGNORED, make_columns
from phf.integrations.export import read_export
from phf.integrations.loss import TokenLoss
from phf.model import lm
from phf.model.probes import check_isolation
from phf.objectives import value_head_of
from phf.records import PAD
from phf.train.data import TrainingData
from phf.train.folder import count_steps
from phf.train.optim import learning_rate_factor, make_optimizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TARGET_BITS, _KIND_BITS = 28, 2
_ACTIVE_BIT = _TARGET_BITS + _KIND_BITS
_SCORE_BIT = 32
"""A label: the target's id, its kind, whether the objective is active, and from here on the bits of its score (float32)."""


@dataclass
class ValuedOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """What a model with a value head gives: also the predicted reward of each target [B, T]. DDP takes apart and makes again
    no other class than one whose fields it knows."""

    token_values: Tensor | None = None


class BlockDataset(Dataset[dict[str, npt.NDArray[np.generic]]]):
    """The blocks of a run in the order in which `phf train` reads them, each a row of columns (`make_columns`)."""

    def __init__(self, data: TrainingData) -> None:
        config = data.config
        self._blocks = data.training_blocks()
        num_steps = count_steps(config.tokens, config.optim.batch_blocks, config.data.context)
        self._num_blocks = num_steps * config.optim.batch_blocks

    def __len__(self) -> int:
        """Blocks of the whole budget, over all its epochs."""
        return self._num_blocks

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[np.generic]]:
        """One block.

        Raises:
            IndexError: the budget ends before it, as an iteration wants to know.
        """
        if index >= self._num_blocks:
            raise IndexError(index)
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, npt.NDArray[np.generic]]]:
        """Some blocks, laid out together: what a `DataLoader` calls."""
        columns = make_columns(self._blocks.rows(np.asarray(indices, np.int64)))
        return [{name: column[row] for name, column in columns.items()} for row in range(len(indices))]


class TrainerObjective:
    """An objective's collator and loss for `Trainer`: `data_collator=own.collate, compute_loss_func=own.compute_loss`."""

    def __init__(self, loss: TokenLoss, *, isolate_documents: bool = True) -> None:
        """For a run on data that is here see `of`, for an export `read`."""
        self._loss, self._isolate_documents = loss, isolate_documents

    @classmethod
    def of(cls, data: TrainingData) -> Self:
        """The objective of a run on this data."""
        return cls(TokenLoss.of(data), isolate_documents=data.config.data.isolate_documents)

    @classmethod
    def read(cls, folder: Place) -> Self:
        """The objective of an export (`phf tokens export --format datasets`), which needs no corpus.

        Raises:
            PHFError: see `read_export`.
        """
        manifest = read_export(folder)
        return cls(TokenLoss.from_json(manifest["loss"]), isolate_documents=manifest["isolate_documents"])

    def prepare(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """Check a model, whose vocabulary holds the control tokens, and add to it what the objective trains beside it.

        AWR's value head becomes its module `value_head`, so that it is moved, sharded, trained and saved with it. For `additive`
        and `scalar` the embeddings of the control tokens are added to its inputs.

        Raises:
            PHFError: its vocabulary is too small, or it lets documents of a block see each other.
        """
        objective, control = self._loss.objective, self._loss.control
        width, num_ids = (
            model.get_input_embeddings().weight.shape[1],
            len(model.get_input_embeddings().weight),
        )
        if num_ids <= control.all[-1]:
            raise PHFError(
                f"the model has {num_ids} embeddings, and control tokens are ids {control.good} to {control.all[-1]}; make it with "
                "phf.train.loop.create_model(data), whose model.init may name any model"
            )
        if self._isolate_documents:
            check_isolation(model)
        if objective.has_control_tokens:
            model.config.control_tokens = list(control.all)
        if (form := value_head_of(objective.config)) is not None:
            _add_value_head(model, lm.ValueHead(width, sigmoid=form == "sigmoid"))
        model.register_forward_pre_hook(self._add_conditions, with_kwargs=True)
        return model

    def _add_conditions(
        self, model: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        conditions: Tensor | None = given.pop("conditions", None)
        if conditions is not None:
            control, ids = self._loss.control, given.pop("input_ids")
            embed = model.get_input_embeddings()  # type: ignore[operator]
            pair = embed(ids.new_tensor([control.good, control.bad]))
            given["inputs_embeds"] = embed(ids) + conditions.to(pair.dtype) @ pair
        return args, given

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of the model's inputs, and labels that `compute_loss` alone can read.

        Args:
            rows: blocks as a `BlockDataset` or an export to `datasets` gives them.

        Raises:
            PHFError: a column is missing.
        """
        try:
            columns = {
                name: torch.from_numpy(np.stack([np.asarray(row[name], kind) for row in rows]))
                for name, kind in _COLUMNS.items()
            }
        except KeyError as error:
            raise PHFError(
                f"the rows have no column {error}: give TrainingArguments remove_unused_columns=False, and as train_dataset a "
                "BlockDataset or what 'phf tokens export --format datasets' wrote"
            ) from None
        labels = _pack(*(columns[name] for name in ("targets", "scores", "kinds", "is_active")))
        # Trainer counts the labels but for the first of each row.
        labels = nn.functional.pad(labels, (1, 0), value=IGNORED)
        batch = {"input_ids": columns["input_ids"], "position_ids": columns["position_ids"], "labels": labels}
        conditions = self._loss.conditions(*(columns[name] for name in ("scores", "kinds", "segment_labels")))
        return batch if conditions is None else {**batch, "conditions": conditions}

    def compute_loss(
        self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a micro-batch as a part of its step's: the sum of its tokens' over all targets of the step.

        Args:
            outputs: the model's, with logits [B, T, V].
            labels: int64 [B, T + 1], of `collate`.
            num_items_in_batch: targets of the step; None: those of `labels`.

        Raises:
            PHFError: the model kept a cache, with which it does not isolate documents, or has not been prepared.
        """
        if self._isolate_documents and outputs.get("past_key_values") is not None:
            raise PHFError(
                "the model keeps a cache, and with it documents of a block see each other; give use_cache=False to "
                "TrainingArguments, where it is the default"
            )
        values = outputs.get("token_values")
        if self._loss.objective.has_value_head and values is None:
            raise PHFError("the model has no value head; give Trainer what prepare(model) returns")
        targets, scores, kinds, is_active = _unpack(labels[:, 1:])
        nll = self._loss.nll(outputs["logits"], targets)
        losses = self._loss(nll, scores, kinds, is_active=is_active, values=values)
        total = (kinds != PAD).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / total


class WithObjective:
    """A mixin for trainers that replace `Trainer`'s loss by their own, such as TRL's: `class Own(WithObjective, SFTTrainer)`."""

    compute_loss = transformers.Trainer.compute_loss

    def __init__(self, *args: Any, objective: TrainerObjective, **settings: Any) -> None:
        """As the other class's, without a collator."""
        super().__init__(*args, data_collator=objective.collate, **settings)  # type: ignore[call-arg]
        self.compute_loss_func = objective.compute_loss


def training_arguments(config: TrainConfig) -> dict[str, Any]:
    """What `TrainingArguments` says of a run: its steps, batches, order and AdamW; for one process.

    The learning rate warms up and falls as the run's would, but begins a step later, at 0. A run with Muon gets AdamW.
    """
    optim = config.optim
    num_steps = count_steps(config.tokens, optim.batch_blocks, config.data.context)
    return {
        "max_steps": num_steps,
        "per_device_train_batch_size": optim.batch_blocks,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": optim.final_fraction},
        "warmup_steps": round(optim.warmup_fraction * num_steps),
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.clip_norm,
        "seed": config.seed,
    }


def make_optimizer(
    model: "PreTrainedModel", config: TrainConfig
) -> tuple[Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The very AdamW and schedule of `phf train`, for `Trainer(optimizers=...)`: with them the two take the same steps.

    Raises:
        PHFError: the run has Muon, which is two optimizers.
    """
    if config.optim.name != "adamw":
        raise PHFError(f"optim.name={config.optim.name} is not one optimizer; give optim.name=adamw")
    num_steps = count_steps(config.tokens, config.optim.batch_blocks, config.data.context)
    [optimizer] = make_optimizers(model, None, config.optim)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, num_steps, config.optim)
    )
    return optimizer, schedule


_COLUMNS: dict[str, type[np.generic]] = {
    "input_ids": np.int64,
    "position_ids": np.int64,
    "targets": np.int64,
    "scores": np.float32,
    "kinds": np.uint8,
    "segment_labels": np.uint8,
    "is_active": np.bool_,
}


def _pack(targets: Tensor, scores: Tensor, kinds: Tensor, is_active: Tensor) -> Tensor:
    """One int64 for each target; `IGNORED` where it is padding, which no other has: its upper half is no score's NaN."""
    packed = targets | (kinds.long() << _TARGET_BITS) | (is_active.long()[:, None] << _ACTIVE_BIT)
    packed |= scores.view(torch.int32).long() << _SCORE_BIT
    return torch.where(targets == IGNORED, IGNORED, packed)


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets, scores, kinds [B, T] and is_active [B]; the target of padding is 0."""
    is_padding = packed == IGNORED
    packed = packed.masked_fill(is_padding, 0)
    kinds = ((packed >> _TARGET_BITS) & (2**_KIND_BITS - 1)).to(torch.uint8)
    scores = (packed >> _SCORE_BIT).to(torch.int32).view(torch.float32)
    is_active = ((packed >> _ACTIVE_BIT) & 1).bool().any(1)
    return packed & (2**_TARGET_BITS - 1), scores, kinds, is_active


def _add_value_head(model: "PreTrainedModel", head: lm.ValueHead) -> None:
    """Let `head` read what the output embedding reads, inside the model's own forward pass: there FSDP has its weights."""
    model.value_head = head.to(model.device)
    values: list[Tensor] = []

    def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        values.append(model.value_head(args[0]))

    def give(module: nn.Module, args: object, outputs: ModelOutput) -> ValuedOutput:
        return ValuedOutput(
            logits=outputs["logits"],
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            token_values=values.pop(),
        )

    model.get_output_embeddings().register_forward_pre_hook(read)
    model.register_forward_hook(give)
