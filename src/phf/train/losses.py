"""What a batch costs: the objective's loss to step on, and the held-out losses to look at."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.model import lm
from phf.model.attention import page_ends, uses_pages
from phf.objectives import (
    effective_sample_share,
    is_additive,
    switch_conditions,
    target_conditions,
    token_loss,
    token_weights,
)
from phf.records import BAD, CONTROL, GOOD, NO_LABEL, TEXT, Batch
from phf.tokens.blocks import Blocks
from phf.train.data import TrainingData

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def loss_sum(
    model: "PreTrainedModel",
    value_head: lm.ValueHead | None,
    data: TrainingData,
    batch: Batch,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Sum of the token losses of some blocks, and the effective sample share of their weights; no step waits for a GPU."""
    if (
        batch.is_active.any() and not batch.is_active.all()
    ):  # each part by its own loss; the share is the objective's
        (active, share), (plain, _) = (
            loss_sum(model, value_head, data, slice_batch(batch, rows), precision)
            for rows in (batch.is_active, ~batch.is_active)
        )
        return active + plain, share
    objective = data.objective if batch.is_active.all() else data.plain
    device = model.device
    targets, scores, kinds = (_to_device(a, device) for a in (batch.targets, batch.scores, batch.kinds))
    with autocast(device, precision):
        hidden = read_batch(model, data, batch)
        nll = lm.nll_of_hidden(model, hidden, targets, is_exact=objective.needs_exact_nll)
        values = value_head(hidden) if value_head is not None and objective.has_value_head else None
    share = torch.ones((), device=device)
    if objective.has_weights:
        with torch.no_grad():
            share = effective_sample_share(token_weights(objective, scores, kinds, values), kinds)
    return token_loss(objective, nll, scores, kinds, values).sum(), share


def read_batch(
    model: "PreTrainedModel", data: TrainingData, batch: Batch, switched: npt.NDArray[np.bool_] | None = None
) -> Tensor:
    """The trunk's last hidden states [B, T, D] of some blocks, with the conditions that the objective adds.

    Args:
        switched: targets [B, T] for which good's condition is added in place of bad's, and the other way round.
    """
    device = model.device
    ids, positions, scores, kinds, labels = (
        _to_device(a, device) for a in (batch.ids, batch.positions, batch.scores, batch.kinds, batch.labels)
    )
    # Where the objective is not active there are no labels, so nothing is added.
    conditions = target_conditions(data.objective, scores, kinds, labels)
    if conditions is not None and switched is not None:
        other = switch_conditions(data.objective.config, conditions)
        conditions = torch.where(_to_device(switched, device)[..., None], other, conditions)
    ends = _to_device(page_ends(batch.positions), device) if uses_pages(model) else None
    if ends is not None and lm.is_compiled(model):
        torch._dynamo.mark_dynamic(ends, 0)  # another number of pages is no reason to compile again
    return lm.hidden_states(model, ids, positions, conditions, data.tokens.tokenizer.control, ends)


def _to_device(array: npt.NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    # A tensor with gaps would be copied to pageable memory first, from where a copy waits for the GPU.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def slice_batch(batch: Batch, rows: slice | npt.NDArray[np.bool_]) -> Batch:
    """Some of a batch's blocks."""
    return Batch(*(getattr(batch, name)[rows] for name in Batch.__slots__))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@torch.no_grad()
def validate(
    model: "PreTrainedModel", data: TrainingData, blocks: Blocks, precision: str
) -> dict[str, float | None]:
    """NLL per text token in nats on held-out blocks: all, and split into good and bad segments (None where there are
    none). Control tokens stand in the context where the objective puts them; their own loss is left out.

    Where good and bad mode exist, also the control gain in nats per segment: how much likelier the text of a segment
    is after its own label than after the other, for one segment of each block, all and split into good and bad.
    """
    model.eval()
    sums: dict[str, list[float]] = {name: [0.0, 0] for name in ("nll_good", "nll_bad", "nll_all")}
    gains: dict[str, list[float]] = {}
    if data.objective.has_control_tokens:
        gains = {name: [] for name in ("control_gain_good", "control_gain_bad", "control_gain")}
    for batch in blocks.iterate_in_order(data.config.validation_blocks, data.config.optim.batch_blocks):
        nll = _batch_nll(model, data, batch, precision)
        is_text, is_good = batch.kinds == TEXT, data.threshold.is_good(batch.scores)
        for name, mask in (
            ("nll_good", is_text & is_good),
            ("nll_bad", is_text & ~is_good),
            ("nll_all", is_text),
        ):
            sums[name][0] += float(nll[mask].sum(dtype=np.float64))
            sums[name][1] += int(mask.sum())
        if gains:
            switched, chosen = switch_segments(batch, data)
            other = _batch_nll(model, data, switched, precision, chosen)
            truth = data.objective.label_segments(batch.scores, data.threshold.value)
            # What the model was told is the truth, unless the objective inverts it.
            sign = np.where(truth == batch.labels, 1, -1) if not is_additive(data.config.objective) else 1
            found = (np.where(chosen, other - nll, 0.0) * sign).sum(axis=1)
            for name, rows in (
                ("control_gain_good", (chosen & (truth == GOOD)).any(axis=1)),
                ("control_gain_bad", (chosen & (truth == BAD)).any(axis=1)),
                ("control_gain", chosen.any(axis=1)),
            ):
                gains[name] += found[rows].tolist()
    model.train()
    means = {name: total / count if count else None for name, (total, count) in sums.items()}
    means |= {name: float(np.mean(found)) if found else None for name, found in gains.items()}
    return {
        name: None if value is None or not math.isfinite(value) else value for name, value in means.items()
    }


def _batch_nll(
    model: "PreTrainedModel",
    data: TrainingData,
    batch: Batch,
    precision: str,
    switched: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
    """NLL of each target [B, T]."""
    with autocast(model.device, precision):
        hidden = read_batch(model, data, batch, switched)
        nll = lm.nll_of_hidden(model, hidden, torch.from_numpy(batch.targets).to(model.device))
    found: npt.NDArray[np.float32] = nll.cpu().numpy()
    return found


def switch_segments(batch: Batch, data: TrainingData) -> tuple[Batch, npt.NDArray[np.bool_]]:
    """Swap good and bad for one segment of each block: the last one that begins in it and is told to be good or bad.

    Returns:
        the blocks with the other control token (the same blocks where labels are not written), and which targets
        [B, T] are that segment's text.
    """
    control, columns = data.tokens.tokenizer.control, np.arange(batch.ids.shape[1])
    is_text = batch.kinds == TEXT
    if is_additive(data.config.objective):
        begins = is_text & (batch.labels != NO_LABEL)
        begins[:, 0] = False  # it may have begun before the block
        begins[:, 1:] &= ~is_text[:, :-1] | (batch.scores[:, 1:] != batch.scores[:, :-1])
    else:
        begins = np.zeros_like(is_text)
        is_switchable = (batch.kinds == CONTROL) & np.isin(batch.targets, (control.good, control.bad))
        begins[:, 1:] = is_switchable[:, :-1] & is_text[:, 1:]
    firsts = np.where(begins, columns, 0).max(axis=1)
    first = np.arange(len(firsts)), firsts
    alike = is_text & (batch.scores == batch.scores[first][:, None])
    alike &= batch.labels == batch.labels[first][:, None]
    chosen = np.logical_and.accumulate(alike | (columns < firsts[:, None]), axis=1)
    chosen &= (columns >= firsts[:, None]) & begins.any(axis=1)[:, None]
    if is_additive(data.config.objective):
        return batch, chosen
    ids = batch.ids.copy()  # the control token is the input that predicts the segment's first token
    told = ids[first]
    other = np.where(told == control.good, control.bad, control.good)
    ids[first] = np.where(begins.any(axis=1), other, told)
    return replace(batch, ids=ids), chosen
