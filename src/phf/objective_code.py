"""A user's own loss (`objective.kind=custom`): what it is called with, and what it is checked for before training
(docs/objectives.md).

Shape suffixes: B blocks, T tokens of context, S segments.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from phf.code import load_code, refuse_exit
from phf.config.objectives import Custom
from phf.errors import PHFError
from phf.records import BAD, END, GOOD, NO_LABEL, PAD, TEXT
from phf.thresholds import Threshold

HIGHEST_NLL = 20.0
"""The surprise, in nats, up to which a loss is tried: p = 2e-9."""


def own_loss(
    config: Custom,
    threshold: Threshold | None,
    nll: Float[Tensor, "B T"],
    scores: Float[Tensor, "B T"],
    kinds: UInt8[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """What the function says of each token of text, and the plain NLL of the others; see `token_loss`."""
    return torch.where(kinds == TEXT, _call(config, threshold, nll, scores, kinds), nll)


def check_loss(
    config: Custom, threshold: Threshold | None, scores: Float32[np.ndarray, "S"]
) -> dict[str, str]:
    """Try the function on four small blocks, over the whole range of the scores.

    Args:
        scores: of the corpus's segments, NaN = unscored.

    Returns:
        the function's name, and as `id` the hash of its source.

    Raises:
        PHFError: the function is not found or fails, changes its input, or its loss is not one finite number per token,
            is random, depends on other blocks, or has no finite gradient.
    """
    name = f"objective.function={config.function}"
    nll, seen, kinds = _make_blocks(scores)
    given = nll * 1  # not the leaf: that autograd refuses to have changed, in words of its own
    loss = _try(config, threshold, given, seen, kinds)
    if not torch.equal(given, nll):
        raise PHFError(f"{name} changes nll in place; let it begin with nll = nll.clone()")
    if not loss.isfinite().all():
        raise PHFError(
            f"{name} gives nan or inf for an nll of 0 to {HIGHEST_NLL:g} with scores of {np.nanmin(scores):.4g} to "
            f"{np.nanmax(scores):.4g}, or 0 where there is no text; clamp what it divides by, or takes a logarithm of"
        )
    if not torch.equal(_try(config, threshold, given, seen, kinds), loss):
        raise PHFError(
            f"{name} gives another loss when called again; it must draw nothing, and keep no state"
        )
    halves = [_try(config, threshold, given[i : i + 2], seen[i : i + 2], kinds[i : i + 2]) for i in (0, 2)]
    if not torch.allclose(torch.cat(halves), loss):
        raise PHFError(
            f"{name} mixes blocks: two of four cost something else alone; take no mean over the first axis"
        )
    with _said_of(config):
        (gradient,) = torch.autograd.grad(torch.where(kinds == TEXT, loss, given).sum(), nll)
    if not gradient.isfinite().all():
        raise PHFError(
            f"{name} has a gradient of nan or inf, though its loss is finite; clamp before torch.where"
        )
    if not gradient[kinds == TEXT].any():
        labels = "" if threshold is not None else ", and labels need objective.threshold or good_fraction"
        raise PHFError(
            f"{name} trains nothing: its loss has no gradient to nll; it must not detach it{labels}"
        )
    return {"name": config.function, "id": load_code(config.function)[1]}


def _call(config: Custom, threshold: Threshold | None, nll: Tensor, scores: Tensor, kinds: Tensor) -> Tensor:
    is_text = kinds == TEXT
    labels = torch.full_like(kinds, NO_LABEL)
    if threshold is not None:
        is_bad = is_text & (scores > threshold.value)  # as `Threshold.is_bad`, on any device
        labels = labels.masked_fill(is_text, GOOD).masked_fill(is_bad, BAD)
    # A NaN in what `torch.where` leaves out would still be one in the gradient.
    scores = torch.where(is_text, scores, 0.0)
    loss = _load_loss(config.function)
    with refuse_exit(f"objective.function={config.function}"):
        return loss(nll, scores, labels, **config.parameters)


@cache
def _load_loss(spec: str) -> Callable[..., Tensor]:
    found, _ = load_code(spec)
    if not callable(found):
        raise PHFError(f"{spec} is a {type(found).__name__}; it must be a function of nll, scores and labels")
    loss: Callable[..., Tensor] = found
    return loss


def _try(config: Custom, threshold: Threshold | None, nll: Tensor, scores: Tensor, kinds: Tensor) -> Tensor:
    with _said_of(config):
        loss: object = _call(config, threshold, nll, scores, kinds)
    if not isinstance(loss, Tensor) or (loss.shape, loss.dtype) != (nll.shape, nll.dtype):
        raise PHFError(
            f"objective.function={config.function} gives {_describe(loss)}; it must give the loss of each token, "
            f"like nll {_describe(nll)}"
        )
    return loss


@contextmanager
def _said_of(config: Custom) -> Iterator[None]:
    try:
        yield
    except PHFError:
        raise
    except Exception as error:
        given = [
            "nll",
            "scores",
            "labels",
            *(f"{name}={value!r}" for name, value in config.parameters.items()),
        ]
        raise PHFError(
            f"objective.function={config.function} fails when called with ({', '.join(given)}): "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _make_blocks(scores: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
    """NLL (a leaf), scores and kinds of four blocks: six tokens of text each, `<|endoftext|>` and padding."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = np.append(scores[~np.isnan(scores)], np.float32(0))  # 0 is given where there is no text
    spread = np.quantile(known, np.linspace(0, 1, 24), method="nearest").reshape(6, 4).T
    no_text = torch.full((4, 2), torch.nan)
    seen = torch.cat([torch.from_numpy(np.float32(spread)), no_text], dim=1).to(device)
    kinds = torch.tensor([[TEXT] * 6 + [END, PAD]] * 4, dtype=torch.uint8, device=device)
    nll = torch.linspace(0, HIGHEST_NLL, 32, device=device).reshape(4, 8)
    return nll.requires_grad_(), seen, kinds
