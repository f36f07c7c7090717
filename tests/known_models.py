"""Small causal language models with known opinions, a tokenizer for them, and exact tests of what they write."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from phf.config.train import SamplingConfig
from phf.control import ControlTokens
from phf.generate.target import Target
from phf.records import Sample

TEXTS = ["", "a", "b", "c", "d", " e", " f", "g.", "\n", "h", "", ""]
END, GOOD, BAD, NUM_IDS = 0, 10, 11, 16
DOT, NEWLINE = 7, 8


@dataclass
class TinyTokenizer:
    """Ten text tokens, three control tokens; ids 12 to 15 of the models are padding."""

    control: ControlTokens = field(default_factory=lambda: ControlTokens(END, GOOD, BAD))
    vocab_size: int = 12

    def decode(self, ids: Sequence[int]) -> str:
        assert all(0 <= token < self.vocab_size for token in ids), "padding of the vocabulary was drawn"
        return "".join(TEXTS[token] for token in ids)


def create_llama(*, context: int = 256, seed: int = 0) -> LlamaForCausalLM:
    """A small random model with opinions: its next-token distribution depends on all that came before."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=NUM_IDS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            pad_token_id=None,
            bos_token_id=END,
            eos_token_id=END,
        )
    )
    return model.eval()


def create_bigram(logits: torch.Tensor, context: int = 256) -> LlamaForCausalLM:
    """A Llama whose next-token logits are a row of a table [ids, ids]: its distribution can be written down."""
    size = len(logits)
    model = create_llama(context=context)
    config = model.config
    config.vocab_size = config.hidden_size = size
    config.head_dim = 4
    config.tie_word_embeddings = False
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(
            logits.T / size**0.5
        )  # the norm turns a one-hot vector into sqrt(size) of it
    return model


class LabelledSource(LlamaForCausalLM):
    """A model whose posterior is right: behind `<|good|>` and `<|bad|>` it writes "a", "b" and "c" with other shares, each
    on its own, and ends its segments and pages by chance. Its cache holds the ids themselves.

    Attributes:
        shares: of the three texts behind each control token, and behind neither.
    """

    def __init__(self, good_share: float = 0.7, segment_end: float = 0.1, page_end: float = 0.1) -> None:
        super().__init__(LlamaConfig(**{**create_llama().config.to_dict(), "num_hidden_layers": 1}))
        self.good_share, self.segment_end, self.page_end = good_share, segment_end, page_end
        self.shares = {GOOD: [0.5, 0.35, 0.15], BAD: [0.15, 0.25, 0.6], END: [0.4, 0.3, 0.3]}

    def next_logits(self, history: Sequence[int]) -> torch.Tensor:
        """Of all ids, behind a page; -1e4 where a token cannot come."""
        told = next(token for token in reversed(history) if token in (END, GOOD, BAD))
        probs = torch.zeros(NUM_IDS)
        ends = self.segment_end + self.page_end if history[-1] not in (GOOD, BAD) else 0.0
        probs[1:4] = torch.tensor(self.shares[told]) * (1 - ends)
        if ends:
            probs[END] = self.page_end
            probs[GOOD] = self.segment_end * self.good_share
            probs[BAD] = self.segment_end * (1 - self.good_share)
        return probs.log().clamp(min=-1e4)

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, logits_to_keep: int, **_: Any) -> Any:  # type: ignore[override]
        states = input_ids[:, None, :, None].float()
        keys, _values = past_key_values.update(states, states, 0)
        pages = keys[:, 0, :, 0].long()
        is_control = (pages == END) | (pages == GOOD) | (pages == BAD)
        places = torch.where(is_control, torch.arange(pages.shape[1]), -1).cummax(1).values
        begins = (pages == GOOD) | (pages == BAD)
        rows = self._table()[pages.gather(1, places), begins.long()]
        return SimpleNamespace(logits=rows[:, -(logits_to_keep or input_ids.shape[1]) :])

    def _table(self) -> torch.Tensor:
        """Logits by the last control token and by whether it came just now: [ids, 2, ids]."""
        table = torch.zeros(NUM_IDS, 2, NUM_IDS)
        for told in (END, GOOD, BAD):
            table[told, 0] = self.next_logits([told, 1])
            table[told, 1] = self.next_logits([told])
        return table


def create_table(**favourites: float) -> torch.Tensor:
    """Logits 0 for every token but the named ones."""
    table = torch.zeros(NUM_IDS, NUM_IDS)
    for name, value in favourites.items():
        table[:, {"end": END, "good": GOOD, "bad": BAD, "newline": NEWLINE, "dot": DOT, "pad": 13}[name]] = (
            value
        )
    return table


def record_rows(model: LlamaForCausalLM) -> list[torch.Tensor]:
    """The ids the model is given, one tensor [B, T] per call, filled while it runs."""
    calls: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs["input_ids"]), with_kwargs=True)
    return calls


def read_row(calls: list[torch.Tensor]) -> list[int]:
    return torch.cat(calls, dim=1)[0].tolist()


def expected_probs(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """The truncated distribution, written the slow way."""
    probs = torch.softmax(logits.double() / temperature, -1).numpy()
    kept: list[int] = []
    for token in np.argsort(-probs):
        if sum(probs[kept]) >= top_p:
            break
        kept.append(int(token))
    result = np.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


def p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """Chi-square test of counts against probabilities; a token that cannot come makes it 0."""
    if counts[probs == 0].sum() > 0:
        return 0.0
    return float(chisquare(counts[probs > 0], probs[probs > 0] * counts.sum()).pvalue)


def create_target(model: Any, mode: str = "good", segments: str = "document", **options: Any) -> Target:
    """A model in a mode, behind the tokenizer of this file."""
    given = {"tokenizer": TinyTokenizer(), **options}
    return Target(mode=mode, model=model, segments=segments, **given)  # type: ignore[arg-type]


def generate(
    model: Any,
    tokenizer: Any,
    mode: str,
    sampling: SamplingConfig,
    *,
    segments: str = "document",
    prompts: Sequence[Sequence[int]] = ((),),
    is_folded: bool = False,
    **options: Any,
) -> list[Sample]:
    """What a model writes in a mode; `options` as of `Target.write`."""
    target = create_target(model, mode, segments, tokenizer=tokenizer, is_folded=is_folded)
    return target.write(prompts, sampling, **options)
