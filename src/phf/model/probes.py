"""What a foreign model does, found out by running it on a few tokens: no architecture is known by its name.

Parameters that are still zero all over (a fresh gate, the last matrix of a fresh branch) would hide what comes through
them once they learn, so the probes look at a copy in which they are noise.

Shape suffixes: R rows, T tokens, D width, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from phf.errors import NotApplicableError, PHFError
from phf.model.attention import run_trunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

LEAK = 1e-5
"""States that should not move may move by this share of their norm: 0 where they are masked, 1e-7 where experts share
products; where something leaks, a fresh model's move by 1e-4 at least (docs/log.md), a trained one's by .1 and more."""
APART = 1e-3
"""A page read alone and beside others may differ by this share of its norm: other shapes round otherwise."""
LOGIT_SIZES = (1.0, 30.0, 1000.0)
"""Largest logits at which a head is tried: a fresh model's, a trained one's, and any cap's."""
_PAGES = (3, 1, 4, 4)


def check_model(model: "PreTrainedModel") -> None:
    """Check what all training and reading here rests on: hidden states of the tokens so far, and a plain head on them.

    Raises:
        PHFError: the model gives no hidden states, sees later tokens, or scales, caps or shifts its logits.
    """
    with _probing(model) as awake:
        _check_causal(awake)
        _check_head(awake)


def check_isolation(model: "PreTrainedModel") -> None:
    """Check that pages whose positions start again at 0 do not see each other in one row, whichever of them is changed,
    and that each is read as if it were alone.

    Raises:
        PHFError: they do.
    """
    positions = torch.cat([torch.arange(length) for length in _PAGES])
    pages = torch.arange(len(_PAGES)).repeat_interleave(torch.tensor(_PAGES))
    with _probing(model) as awake:
        ids = _probe_ids(awake, len(positions))
        changed = [_change(ids, pages == page) for page in range(len(_PAGES))]
        own, *others = _states(awake, torch.stack([ids, *changed]), positions)
        moved = max(
            _distance(other[pages == page], own[pages == page])
            for place, other in enumerate(others)
            for page in range(len(_PAGES))
            if page != place
        )
        here = pages == len(_PAGES) - 1
        apart = _distance(own[here], _states(awake, ids[None, here], positions[here])[0])
    if not (moved < LEAK and apart < APART):
        raise NotApplicableError(
            f"{type(model).__name__} lets the documents of a block see each other or shifts their places (another document "
            f"moves hidden states by {max(moved, apart):.2g} of their size); give data.isolate_documents=false"
        )


def _check_causal(model: "PreTrainedModel") -> None:
    ids, positions = _probe_ids(model, 8), torch.arange(8)
    own, other = _states(model, torch.stack([ids, _change(ids, positions == 7)]), positions)
    if not _distance(other[:7], own[:7]) < LEAK:
        raise PHFError(
            f"{type(model).__name__} sees tokens that come later, so it cannot be trained to predict them; choose a causal "
            "language model (in BERT's kin: is_decoder=true)"
        )


def _check_head(model: "PreTrainedModel") -> None:
    """The logits that the model itself makes of the trunk's states, scaled, are those of the output embedding alone."""
    ids, positions, head = _probe_ids(model, 8), torch.arange(8), model.get_output_embeddings()
    hidden = _states(model, ids[None], positions)
    for size in LOGIT_SIZES:
        scaled = hidden * (size / head(hidden).abs().max())

        def replace_states(module: nn.Module, inputs: object, output: "ModelOutput") -> "ModelOutput":
            output.last_hidden_state = scaled  # noqa: B023  called before the next size comes
            return output

        with ExitStack() as hooks:
            for trunk in {model.base_model, model.get_decoder()}:  # some call what is inside their trunk
                hooks.callback(trunk.register_forward_hook(replace_states).remove)
            theirs = model(input_ids=ids[None].to(model.device), use_cache=False).logits
        ours = head(scaled)
        if not (ours - theirs).abs().max() <= 1e-4 * ours.abs().max():
            raise PHFError(
                f"{type(model).__name__} changes its logits after the output embedding (a soft cap or a scale) or its states "
                "before it, which training here would ignore; choose an architecture with a plain head, such as Llama, Qwen "
                "or GPT-2"
            )


@contextmanager
def _probing(model: "PreTrainedModel") -> "Iterator[PreTrainedModel]":
    """The model in evaluation mode, or a copy of it with noise where a parameter is still zero all over."""
    was_training = model.training
    model.eval()
    asleep = [name for name, parameter in model.named_parameters() if not parameter.any()]
    try:
        # Without a draw from torch's own generator: what is drawn from it next does not depend on a probe.
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            awake, generator = copy.deepcopy(model) if asleep else model, torch.Generator().manual_seed(0)
            for name in asleep:
                parameter = awake.get_parameter(name)
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            yield awake
    finally:
        model.train(was_training)


def _probe_ids(model: "PreTrainedModel", count: int) -> Tensor:
    return torch.arange(count) % len(model.get_input_embeddings().weight)


def _change(ids: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, ids.flip(0), ids)


def _states(model: "PreTrainedModel", ids: Tensor, positions: Tensor) -> Tensor:
    """[R T], [T] -> [R T D] in float32.

    Raises:
        PHFError: the model's trunk cannot be found or read.
    """
    try:
        return run_trunk(model, ids.to(model.device), positions.expand_as(ids).to(model.device)).float()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise PHFError(
            f"{type(model).__name__} gives no hidden states for ids and their positions ({reason[0]}); choose another "
            "architecture, such as Llama, Qwen or GPT-2"
        ) from None


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
