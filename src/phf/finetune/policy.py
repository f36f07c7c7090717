"""What is trained and what it is compared with: a model's distribution over texts, with the tokens that are blocked in it left out.

One renormalised policy is drawn from, stands in the ratio, and is what the KL is of. Texts are token ids and whether the page ended.
Shape suffixes: N texts, T positions, V used ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phf.generate.engine import Ids, TokenDrawer, Written, write_pages
from phf.generate.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.config.train import SamplingConfig


_READ_TOGETHER = 16
"""Texts of like length that go through the model at once, at least."""


@dataclass(frozen=True)
class Laid:
    """Texts as a model reads them, each behind its page, filled up on the right.

    Attributes:
        inputs: all ids but the last.
        targets: what follows each.
        is_text: where the target is the text's: a token of it, or the end of its page.
        is_young: where the text has too few tokens to end.
    """

    inputs: Int[Tensor, "N T"]
    targets: Int[Tensor, "N T"]
    is_text: Bool[Tensor, "N T"]
    is_young: Bool[Tensor, "N T"]

    def take(self, rows: Int[Tensor, "M"]) -> "Laid":
        """Some texts, up to where the last of them ends."""
        width = int(self.is_text[rows].any(0).nonzero().max()) + 1 if bool(self.is_text[rows].any()) else 1
        return Laid(
            *(part[rows, :width] for part in (self.inputs, self.targets, self.is_text, self.is_young))
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, its end among them: [N]."""
        found: npt.NDArray[np.int64] = self.is_text.sum(1).cpu().numpy()
        return found


@dataclass(frozen=True)
class Drawing:
    """How a mode of a model writes: the rules by which tokens are drawn, and which of them never are."""

    target: Target
    drawer: TokenDrawer

    @classmethod
    def create(cls, target: Target, sampling: "SamplingConfig") -> "Drawing":
        """The rules of a target under sampling settings; `control` is `prefix` and `top_p` 1."""
        return cls(target, target.drawer(sampling))

    @property
    def blocked(self) -> npt.NDArray[np.int64]:
        """Ids that are never drawn: control tokens, and padding of the vocabulary."""
        num_rows = self.target.model.get_output_embeddings().weight.shape[0]
        ids = {*self.drawer.rules.blocked, *range(self.drawer.vocab_size, num_rows)}
        return np.array(sorted(token for token in ids if token < num_rows), np.int64)

    def write(
        self,
        model: "PreTrainedModel",
        prompts: Sequence[Ids],
        indices: Sequence[int],
        report: Callable[[int], None] = lambda done: None,
    ) -> list[Written]:
        """A text behind each prompt; with the seed, its index decides its random numbers."""
        pages = [[*self.drawer.rules.prefix, *prompt] for prompt in prompts]
        return write_pages(model, self.drawer, pages, indices, report)

    def decode(self, prompt: Ids, written: Written) -> str:
        """What was written behind a prompt, as text."""
        return self.target.sample(0, prompt, written).text

    def lay_out(self, prompts: Sequence[Ids], texts: Sequence[Written]) -> Laid:
        """Texts behind their pages, as `log_probs` reads them."""
        control, prefix = self.drawer.control, self.drawer.rules.prefix
        rows = [
            [*prefix, *prompt, *ids, *([control.end] if ended else [])]
            for prompt, (ids, ended) in zip(prompts, texts, strict=True)
        ]
        ids = np.full((len(rows), max(map(len, rows))), control.end)
        place = np.full(ids.shape, -1)  # of a token in its text
        for row, (own, prompt) in enumerate(zip(rows, prompts, strict=True)):
            start = len(prefix) + len(prompt)
            ids[row, : len(own)] = own
            place[row, start : len(own)] = np.arange(len(own) - start)
        device = self.target.model.device
        inputs, targets = (torch.from_numpy(part.copy()).to(device) for part in (ids[:, :-1], ids[:, 1:]))
        is_text = torch.from_numpy(place[:, 1:] >= 0).to(device)
        is_young = torch.from_numpy(place[:, 1:] < self.drawer.sampling.min_new_tokens).to(device)
        return Laid(inputs, targets, is_text, is_text & is_young)

    def log_probs(self, model: "PreTrainedModel", laid: Laid) -> Float[Tensor, "N T"]:
        """log p of each target given what stands before it, as it is drawn, in nats, float32; 0 where the target is not the text's."""
        # Texts of like length are read together, up to where the longest of them ends. Padding stands behind them, and causal models
        # do not look ahead: no mask is needed.
        places = torch.arange(1, 1 + laid.is_text.shape[1], device=laid.is_text.device)
        order = (laid.is_text * places).amax(1).argsort()
        parts = [laid.take(rows) for rows in order.tensor_split(max(1, len(order) // _READ_TOGETHER))]
        hidden = [
            model.base_model(input_ids=part.inputs, use_cache=False).last_hidden_state[part.is_text]
            for part in parts
        ]
        found = torch.cat(
            [self._read_head(model, own, part) for own, part in zip(hidden, parts, strict=True)]
        )
        sorted_ = torch.zeros_like(laid.inputs, dtype=found.dtype).masked_scatter(laid.is_text[order], found)
        return sorted_[order.argsort()]

    def _read_head(
        self, model: "PreTrainedModel", hidden: Float[Tensor, "M D"], laid: Laid
    ) -> Float[Tensor, "M"]:
        """log p of the texts' tokens by the hidden states before them."""
        logits = model.get_output_embeddings()(hidden).float() / self.drawer.sampling.temperature
        logits[:, torch.from_numpy(self.blocked).to(logits.device)] = -torch.inf
        logits[laid.is_young[laid.is_text], self.drawer.control.end] = -torch.inf
        return -torch.nn.functional.cross_entropy(logits, laid.targets[laid.is_text], reduction="none")
