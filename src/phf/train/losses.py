"""What a batch costs: the objective's loss to step on, and the held-out losses to look at."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from phf import lm
from phf.corpus.blocks import Blocks
from phf.objectives import effective_sample_share, token_loss, token_weights
from phf.records import TEXT, Batch
from phf.train.data import TrainingData


def loss_sum(
    model: PreTrainedModel, value_head: lm.ValueHead | None, data: TrainingData, batch: Batch, precision: str
) -> tuple[Tensor, float]:
    """Sum of the token losses of some blocks, and the effective sample share of their weights."""
    device, objective = model.device, data.objective
    ids, targets, positions = (
        torch.from_numpy(a).to(device) for a in (batch.ids, batch.targets, batch.positions)
    )
    scores, kinds = torch.from_numpy(batch.scores).to(device), torch.from_numpy(batch.kinds).to(device)
    with autocast(device, precision):
        hidden = lm.hidden_states(model, ids, positions)
        nll = lm.nll_of_hidden(model, hidden, targets)
        values = value_head(hidden) if value_head is not None else None
    share = 1.0
    if objective.reward_scale is not None:
        with torch.no_grad():
            share = effective_sample_share(token_weights(objective, scores, kinds, values), kinds)
    return token_loss(objective, nll, scores, kinds, values).sum(), share


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """Some of a batch's blocks."""
    return Batch(*(getattr(batch, name)[start:stop] for name in Batch.__slots__))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@torch.no_grad()
def validate(
    model: PreTrainedModel, data: TrainingData, blocks: Blocks, precision: str
) -> dict[str, float | None]:
    """NLL per text token in nats on held-out blocks: all, and split into good and bad segments (None where there are
    none). Control tokens stand in the context where the objective puts them; their own loss is left out.
    """
    model.eval()
    limit = np.float32(data.good.value)
    sums = {"nll_good": [0.0, 0], "nll_bad": [0.0, 0], "nll_all": [0.0, 0]}
    for batch in blocks.iterate_in_order(data.config.validation_blocks, data.config.optim.batch_blocks):
        ids, targets, positions = (
            torch.from_numpy(a).to(model.device) for a in (batch.ids, batch.targets, batch.positions)
        )
        with autocast(model.device, precision):
            nll = lm.token_nll(model, ids, targets, positions).cpu().numpy()
        is_text, is_good = batch.kinds == TEXT, batch.scores <= limit
        for name, mask in (
            ("nll_good", is_text & is_good),
            ("nll_bad", is_text & ~is_good),
            ("nll_all", is_text),
        ):
            sums[name][0] += float(nll[mask].sum(dtype=np.float64))
            sums[name][1] += int(mask.sum())
    model.train()
    losses = {name: total / count if count else None for name, (total, count) in sums.items()}
    return {
        name: None if value is None or not math.isfinite(value) else value for name, value in losses.items()
    }
