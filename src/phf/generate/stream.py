"""Writing one sample a token at a time, with what the model would say of the next segment at each segment end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from phf.config import SamplingConfig
from phf.control import mode_rules
from phf.errors import PHFError
from phf.generate.engine import TextTokenizer, draw_tokens, find_limit, uniform_numbers
from phf.records import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["text", "control", "end"]


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """One token of a sample.

    Attributes:
        token: its id.
        kind: `end` is `<|endoftext|>`, the last token there is.
        bad_share: where a segment ends, that is of control tokens and the end: p(`<|bad|>`) / (p(`<|good|>`) + p(`<|bad|>`))
            there, by the model's own probabilities, before temperature, top-p and the mode's rules. It speaks of the
            segment that comes next, or would have come (contract: Calibration of control).
    """

    token: int
    kind: Kind
    bad_share: float | None = None


def read_bad_share(model: "PreTrainedModel", tokenizer: TextTokenizer) -> float:
    """p(`<|bad|>`) / (p(`<|good|>`) + p(`<|bad|>`)) where a page begins."""
    with torch.inference_mode():
        ids = torch.tensor([[tokenizer.control.end]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
    return _bad_share(logits.float(), tokenizer)


def stream_sample(
    model: "PreTrainedModel",
    tokenizer: TextTokenizer,
    mode: Mode,
    sampling: SamplingConfig,
    *,
    index: int = 0,
    prompt: Sequence[int] = (),
    is_folded: bool = False,
) -> Iterator[WrittenToken]:
    """Write sample `index` of `phf.generate.engine.generate` under the same settings, token by token.

    Args:
        model, tokenizer, mode, is_folded: as of `generate`.
        sampling: `control` must not be `forced`; `num_samples` and `batch_size` are not used.
        index: which sample: with the seed it decides the random numbers.
        prompt: ids that follow the mode's prefix.

    Raises:
        PHFError: prefix, prompt and new tokens do not fit into the model's context; `control` is `forced`.
    """
    if sampling.control == "forced":
        raise PHFError("control=forced is not written token by token; choose free or prefix")
    control = tokenizer.control
    rules = mode_rules("untagged" if is_folded else mode, control, sampling.control)
    page = [*rules.prefix, *prompt]
    limit = find_limit(model, len(page), sampling) - len(page)
    return _write(model, tokenizer, page, rules.blocked, sampling, index, limit)


@torch.inference_mode()
def _write(
    model: "PreTrainedModel",
    tokenizer: TextTokenizer,
    page: Sequence[int],
    blocked: Sequence[int],
    sampling: SamplingConfig,
    index: int,
    limit: int,
) -> Iterator[WrittenToken]:
    control = tokenizer.control
    cache, inputs, num_text = None, list(page), 0
    for uniform in uniform_numbers(sampling.seed, index, limit):
        ids = torch.tensor([inputs], device=model.device)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[:, -1, : tokenizer.vocab_size].float()
        allowed = logits.clone()
        allowed[:, list(blocked)] = -torch.inf
        if num_text < sampling.min_new_tokens:
            allowed[:, control.end] = -torch.inf
        number = torch.tensor([uniform], dtype=torch.float64, device=model.device)
        token = int(draw_tokens(allowed, number, sampling.temperature, sampling.top_p))
        if token == control.end:
            yield WrittenToken(token, "end", _bad_share(logits[0], tokenizer))
            return
        if token in control.all:
            yield WrittenToken(token, "control", _bad_share(logits[0], tokenizer))
        else:
            yield WrittenToken(token, "text")
            num_text += 1
            if num_text == sampling.max_new_tokens:
                return
        inputs = [token]


def _bad_share(logits: torch.Tensor, tokenizer: TextTokenizer) -> float:
    return float(torch.sigmoid(logits[tokenizer.control.bad] - logits[tokenizer.control.good]))
