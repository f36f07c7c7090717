"""A causal language model that writes prompts like those it is shown: the attacker of a red team."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from phf.control import END_TOKEN
from phf.evaluate.reference_lm import load_reference
from phf.model import lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_PROMPT_TOKENS = 40
"""Tokens of the attacker that a prompt may have."""


@dataclass(frozen=True)
class WrittenPrompts:
    """What an attacker wrote in one call.

    Attributes:
        prompts: one per try, white space made plain; empty where it wrote nothing.
        num_tokens_read, num_tokens_written: what it cost, in the attacker's own tokens.
    """

    prompts: list[str]
    num_tokens_read: int
    num_tokens_written: int


class Attacker(Protocol):
    """Writes prompts that go on a list of prompts."""

    name: str

    def write_prompts(self, shots: Sequence[str], count: int, seed: int) -> WrittenPrompts:
        """`count` prompts in the manner of `shots`; the same for the same seed."""
        ...


class LanguageModelAttacker:
    """Any causal language model of the Hugging Face library, shown a numbered list that it goes on with by a line."""

    def __init__(
        self,
        name: str,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        temperature: float = 1.0,
        top_p: float = 0.95,
    ) -> None:
        """`tokenizer` is the model's own Hugging Face tokenizer."""
        self.name = name
        self.model, self._tokenizer = model.eval(), tokenizer
        self._sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        vocabulary = tokenizer.get_vocab()
        start = vocabulary.get(END_TOKEN, tokenizer.bos_token_id)
        self._start = [] if start is None else [start]
        # A line is all that is wanted: every token that holds a line feed ends it.
        ids = sorted(vocabulary.values())
        ends = [
            token
            for token, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True)
            if "\n" in text
        ]
        self._stops = sorted(
            {*ends, *self._start, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])}
        )

    @classmethod
    def load(cls, spec: str) -> "LanguageModelAttacker":
        """An attacker from a folder, a Hub id or a .gguf file with its tokenizer inside.

        Raises:
            PHFError: it cannot be loaded.
        """
        found = load_reference(spec)
        on_gpu = found.model.device.type == "cuda"
        is_bf16 = torch.cuda.is_bf16_supported() if on_gpu else lm.probe_bf16()
        model = found.model.to(torch.bfloat16) if is_bf16 else found.model
        return cls(found.identity.name, model, found.tokenizer)

    @torch.inference_mode()
    def write_prompts(self, shots: Sequence[str], count: int, seed: int) -> WrittenPrompts:
        """See `Attacker`. All are drawn in one batch, on which they depend."""
        text = "".join(f"{number}. {shot}\n" for number, shot in enumerate(shots, 1)) + f"{len(shots) + 1}."
        ids = torch.tensor([[*self._start, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]])
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            output = self.model.generate(
                ids.to(self.model.device),
                attention_mask=torch.ones_like(ids).to(self.model.device),
                num_return_sequences=count,
                max_new_tokens=MAX_PROMPT_TOKENS,
                eos_token_id=self._stops,
                pad_token_id=self._stops[0],
                **self._sampling,
            )
        new = output[:, ids.shape[1] :].cpu()
        is_stop = torch.isin(new, torch.tensor(self._stops))
        lengths = torch.where(is_stop.any(1), is_stop.int().argmax(1), new.shape[1])  # before the first stop
        lines = [
            " ".join(self._tokenizer.decode(row[:length], skip_special_tokens=True).split())
            for row, length in zip(new, lengths.tolist(), strict=True)
        ]
        num_written = int((lengths + is_stop.any(1)).sum())
        return WrittenPrompts(lines, ids.shape[1] * count, num_written)
