"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from phf.config.train import OptimConfig
from phf.model.lm import ValueHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Muon(torch.optim.Muon):
    """torch's Muon, which orthogonalises in bf16, with the choice of float32: a CPU without bf16 takes 20 times as long for it.

    Settings are those of torch's; its `nesterov` and its own adjustment of the rate are what is used.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, is_bf16: bool, **settings: float) -> None:
        super().__init__(params, **settings)  # type: ignore[arg-type]
        self.is_bf16 = is_bf16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step (Jordan et al. 2024)."""
        if self.is_bf16:
            super().step(closure)  # type: ignore[no-untyped-call]
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                moment = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
                moment.lerp_(gradient, 1 - group["momentum"])
                update = orthogonalise(gradient.lerp(moment, group["momentum"]), group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = parameter.shape
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalise(matrix: Tensor, group: Mapping[str, Any]) -> Tensor:
    """About U V^T of a matrix U S V^T [rows, columns], by Newton-Schulz steps in its own precision.

    Args:
        group: Muon's settings, of which `ns_coefficients`, `ns_steps` and `eps` are used.
    """
    a, b, c = group["ns_coefficients"]
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # the smaller of the two products of a matrix with itself
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def make_optimizers(
    model: "PreTrainedModel", value_head: ValueHead | None, config: OptimConfig, *, is_bf16: bool = True
) -> list[Optimizer]:
    """AdamW alone, or Muon for the hidden matrices and AdamW for the rest.

    Muon is not meant for embeddings and heads, the value head among them. Weight decay applies to matrices and
    embeddings, not to norms and biases.

    Args:
        is_bf16: whether Muon orthogonalises in bf16, as on every device that is quick at it; float32 where the run is.
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
        muon = Muon(
            matrices,
            is_bf16=is_bf16,
            lr=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            momentum=0.95,
        )
        optimizers = [muon, adamw([decayed, undecayed])]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]  # the schedule overwrites `lr` in every step
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


def list_state(optimizers: list[Optimizer], trained: nn.Module) -> dict[str, torch.Tensor]:
    """Optimizer states by `<optimizer>.<parameter's name in trained>.<state>`."""
    return {
        f"{path}.{key}": value
        for path, (optimizer, parameter) in _list_parameters(optimizers, trained).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def create_state(
    optimizers: list[Optimizer], trained: nn.Module, shapes: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Empty tensors for those of some states (`list_state`) whose parameter is here: sharded as it is; scalars whole."""
    parameters = {path: pair[1] for path, pair in _list_parameters(optimizers, trained).items()}
    return {
        name: torch.empty_like(parameter, requires_grad=False)
        if shape == parameter.shape
        else torch.empty(shape)
        for name, shape in shapes.items()
        if (parameter := parameters.get(name.rpartition(".")[0])) is not None
    }


def load_state(optimizers: list[Optimizer], trained: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `list_state`, into freshly made optimizers; parameters without a state start afresh."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        path, _, key = name.rpartition(".")
        states.setdefault(path, {})[key] = value
    paths = {id(pair[1]): path for path, pair in _list_parameters(optimizers, trained).items()}
    for optimizer in optimizers:
        found = {
            index: states[path]
            for index, parameter in enumerate(_parameters(optimizer))
            if (path := paths[id(parameter)]) in states
        }
        optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})


def _list_parameters(
    optimizers: list[Optimizer], trained: nn.Module
) -> dict[str, tuple[Optimizer, nn.Parameter]]:
    """Each parameter and its optimizer, by `<optimizer>.<parameter's name in trained>`."""
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    return {
        f"{type(optimizer).__name__.lower()}.{names[id(parameter)]}": (optimizer, parameter)
        for optimizer in optimizers
        for parameter in _parameters(optimizer)
    }


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
