"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
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


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that ranks may share; then all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def pack_state(optimizers: list[Optimizer], trained: nn.Module) -> dict[str, torch.Tensor]:
    """Whole optimizer states by `<optimizer>.<parameter's name in trained>.<state>`, for safetensors."""
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    return {
        f"{_name(optimizer)}.{names[id(parameter)]}.{key}": gather(value).contiguous()
        for optimizer in optimizers
        for parameter in _parameters(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def unpack_state(optimizers: list[Optimizer], trained: nn.Module, tensors: dict[str, torch.Tensor]) -> int:
    """The inverse of `pack_state`, into freshly made optimizers; parameters without a state start afresh.

    Returns:
        how many of the tensors were of no use here, because no optimizer has such a parameter.
    """
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    states: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for path, value in tensors.items():
        head, key = path.rsplit(".", 1)
        kind, name = head.split(".", 1)
        states.setdefault((kind, name), {})[key] = value
    num_unused = len(tensors)
    for optimizer in optimizers:
        found = {
            index: _shard_like(parameter, states.get((_name(optimizer), names[id(parameter)]), {}))
            for index, parameter in enumerate(_parameters(optimizer))
        }
        found = {index: state for index, state in found.items() if state}
        num_unused -= sum(len(state) for state in found.values())
        optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
    return num_unused


def _shard_like(parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A parameter's state, sharded as the parameter is; scalars stay whole."""
    if not isinstance(parameter, DTensor):
        return state
    mesh, placements = parameter.device_mesh, parameter.placements
    return {
        key: distribute_tensor(value, mesh, placements) if value.shape == parameter.shape else value
        for key, value in state.items()
    }


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__.lower()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
