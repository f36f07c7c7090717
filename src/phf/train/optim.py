"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

from phf.config import OptimConfig
from phf.lm import ValueHead


def make_optimizers(
    model: PreTrainedModel, value_head: ValueHead | None, config: OptimConfig
) -> list[Optimizer]:
    """AdamW alone, or Muon for the hidden matrices and AdamW for the rest.

    Muon is not meant for embeddings and heads, the value head among them. Weight decay applies to matrices and
    embeddings, not to norms and biases.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    parameters = list(model.parameters())
    if value_head is not None:
        ends.append(value_head.linear)
        parameters += value_head.parameters()
    excluded = {id(module.weight) for module in ends}
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in excluded]
    tables = [p for p in parameters if p.ndim == 2 and id(p) in excluded]
    vectors = [p for p in parameters if p.ndim != 2]
    betas = (config.beta1, config.beta2)

    def adamw(groups: list[dict[str, object]]) -> Optimizer:
        return AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)

    decayed: dict[str, object] = {"params": tables, "weight_decay": config.weight_decay}
    undecayed: dict[str, object] = {"params": vectors, "weight_decay": 0.0}
    if config.name == "adamw":
        decayed["params"] = matrices + tables
        optimizers = [adamw([decayed, undecayed])]
    else:
        muon = Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95)
        optimizers = [muon, adamw([decayed, undecayed])]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(step: int, num_steps: int, config: OptimConfig) -> float:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine down to `final_fraction` of the peak.

    Args:
        step: the step about to be taken, from 0.
    """
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Scale every group's rate from its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def pack_state(optimizers: list[Optimizer]) -> dict[str, torch.Tensor]:
    """Optimizer states as named tensors, for safetensors."""
    return {
        f"{index}.{parameter}.{name}": value.contiguous()
        for index, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def unpack_state(optimizers: list[Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `pack_state`, into freshly made optimizers."""
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        index, parameter, name = key.split(".", 2)
        states[int(index)].setdefault(int(parameter), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
