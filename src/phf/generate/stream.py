"""Writing one sample a token at a time, with what the model would say of the next segment at each segment end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from phf.config.train import SamplingConfig
from phf.control import ControlTokens
from phf.errors import PHFError
from phf.generate.engine import Ids, PageWriter, find_limit
from phf.generate.target import Target

Kind = Literal["text", "control", "end"]


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """One token of a sample.

    Attributes:
        token: its id.
        kind: `end` is `<|endoftext|>`, the last token there is.
        bad_share: where a segment ends, that is of control tokens and the end: p(`<|bad|>`) / (p(`<|good|>`) + p(`<|bad|>`))
            there, by the model's own probabilities, before temperature, top-p and the mode's rules. It speaks of the
            segment that comes next, or would have come.
    """

    token: int
    kind: Kind
    bad_share: float | None = None


def read_bad_share(target: Target) -> float:
    """p(`<|bad|>`) / (p(`<|good|>`) + p(`<|bad|>`)) where a page begins."""
    model, control = target.model, target.tokenizer.control
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[control.end]], device=model.device), use_cache=False).logits
    return _bad_share(logits[0, -1, control.good :].float(), control)


def stream_sample(
    target: Target, sampling: SamplingConfig, *, index: int = 0, prompt: Ids = ()
) -> Iterator[WrittenToken]:
    """Write sample `index` of `Target.write` under the same settings, token by token.

    Args:
        sampling: `control` must not be `forced`; `num_samples` and `batch_size` are not used.
        index: which sample: with the seed it decides the random numbers.
        prompt: ids that follow the mode's prefix.

    Raises:
        PHFError: prefix, prompt and new tokens do not fit into the model's context; `control` is `forced`.
    """
    if sampling.control == "forced":
        raise PHFError("control=forced is not written token by token; choose free or prefix")
    drawer = target.drawer(sampling)
    page = [*drawer.rules.prefix, *prompt]
    limit = find_limit(target.model, len(page), sampling)
    return _write(PageWriter(target.model, drawer, [page], [index], limit), target.tokenizer.control)


def _write(writer: PageWriter, control: ControlTokens) -> Iterator[WrittenToken]:
    while not writer.done.all():
        controls = writer.step()[0]
        token = int(writer.new_ids(0)[-1])
        if token != control.end and token not in control.all:
            yield WrittenToken(token, "text")
        else:
            kind: Kind = "end" if token == control.end else "control"
            yield WrittenToken(token, kind, _bad_share(controls, control))


def _bad_share(controls: torch.Tensor, control: ControlTokens) -> float:
    """The share of `<|bad|>` by the logits of all control tokens."""
    return float(torch.sigmoid(controls[control.bad - control.good] - controls[0]))
