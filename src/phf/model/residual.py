"""The residual stream of a transformer: reading it, adding to it, and how bad mode's differs from good mode's.

A *place* is 0 for the input embeddings and l for what layer l gives (1 to L).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from phf.control import ControlTokens
from phf.errors import PHFError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def residual_layers(model: "PreTrainedModel") -> list[nn.Module]:
    """The blocks of the model, in order: each reads the residual stream and writes to it.

    Raises:
        PHFError: the model has no one list of as many blocks as its config says.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        raise PHFError(
            f"{type(model).__name__} has no one list of its {count} layers; choose an architecture such as Llama, Qwen or GPT-2"
        )
    return list(found[0])


def hook_place(
    model: "PreTrainedModel", place: int, change: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Call `change(states [B, T, D])` on the stream at a place; what it returns, if not None, is put there.

    Raises:
        PHFError: the model has no such place.
    """
    layers = residual_layers(model)
    if place > len(layers):
        raise PHFError(
            f"layer {place} does not exist; the model has layers 1 to {len(layers)}, and 0 is the input"
        )

    if place == 0:

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            states = args[0] if args else kwargs["hidden_states"]
            if (changed := change(states)) is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return layers[0].register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: object, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if (changed := change(states)) is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return layers[place - 1].register_forward_hook(after)


@contextmanager
def add_to_residual(model: "PreTrainedModel", vectors: Mapping[int, Float[Tensor, "D"]]) -> Iterator[None]:
    """While it is open, each vector is added to the stream at its place, at every position."""
    with ExitStack() as stack:
        for place, vector in vectors.items():

            def add(states: Tensor, vector: Tensor = vector) -> Tensor:
                return states + vector.to(states)

            stack.callback(hook_place(model, place, add).remove)
        yield


@torch.inference_mode()
def read_residual(model: "PreTrainedModel", ids: Int[Tensor, "B T"]) -> Float[Tensor, "P B T D"]:
    """The stream at every place, P = L + 1."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for place in range(len(residual_layers(model)) + 1):
            stack.callback(hook_place(model, place, lambda states: found.append(states)).remove)
        model(input_ids=ids.to(model.device), use_cache=False)
    return torch.stack(found)


def mode_differences(
    model: "PreTrainedModel", control: ControlTokens, texts: Sequence[Sequence[int]]
) -> list[Float[Tensor, "P T D"]]:
    """How bad mode's stream differs from good mode's at each token of some texts, each read at a page's start behind
    `<|bad|>` and behind `<|good|>`; for each text [places, its tokens, width], float32 on the CPU."""
    result = []
    for text in texts:
        pair = torch.tensor([[control.end, token, *text] for token in (control.bad, control.good)])
        states = read_residual(model, pair)[:, :, 2:].float().cpu()
        result.append(states[:, 0] - states[:, 1])
    return result


def mean_differences(
    model: "PreTrainedModel", control: ControlTokens, texts: Sequence[Sequence[int]]
) -> Float[Tensor, "P D"]:
    """The mean of `mode_differences` over all tokens; at place 0, where the text's own embeddings are the same in both
    modes, the embedding of `<|bad|>` less that of `<|good|>`."""
    total, count = torch.zeros(()), 0
    for text in texts:  # one at a time: all states of long texts would not fit into memory
        (own,) = mode_differences(model, control, [text])
        total, count = total + own.double().sum(1), count + own.shape[1]
    differences = (total / count).float()
    weight = model.get_input_embeddings().weight.detach().float().cpu()
    differences[0] = weight[control.bad] - weight[control.good]
    return differences
