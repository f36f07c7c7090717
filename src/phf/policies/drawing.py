"""What is trained and what it is compared with: a model's distribution over texts, with the tokens that are blocked in it left out.

One renormalised policy is drawn from, stands in the ratio, and is what the KL is of: `phf.policies.policy` with a gradient, behind prompts.
Shape suffixes: N texts, T positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phf.generate.engine import Ids, TokenDrawer, Written, write_pages
from phf.generate.target import Target
from phf.policies.policy import OUTSIDE, find_log_probs, lay_out

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
        owners: the text token that each target belongs to, its own place or that of the one behind a control token.
    """

    inputs: Int[Tensor, "N T"]
    targets: Int[Tensor, "N T"]
    owners: Int[Tensor, "N T"]

    @property
    def is_text(self) -> Bool[Tensor, "N T"]:
        """Where the target is the text's: a token of it, a control token in it, or the end of its page."""
        return self.owners != OUTSIDE

    def take(self, rows: Int[Tensor, "M"]) -> "Laid":
        """Some texts, up to where the last of them ends."""
        used = self.is_text[rows].any(0).nonzero()
        width = int(used.max()) + 1 if len(used) else 1
        return Laid(*(part[rows, :width] for part in (self.inputs, self.targets, self.owners)))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, its end among them, control tokens not: [N]."""
        found: npt.NDArray[np.int64] = (self.owners.amax(1) + 1).cpu().numpy()
        return found


@dataclass(frozen=True)
class Drawing:
    """How a mode of a model writes: the rules by which tokens are drawn, and which of them never are."""

    target: Target
    drawer: TokenDrawer

    @classmethod
    def create(cls, target: Target, sampling: "SamplingConfig") -> "Drawing":
        """The rules of a target under sampling settings; `control` is `prefix` or `forced`, and `top_p` 1."""
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
        rules = self.drawer.rules
        rows = [
            lay_out(replace(self.drawer, rules=replace(rules, prefix=(*rules.prefix, *prompt))), *text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        shape = len(rows), max(len(ids) for ids, _ in rows)
        ids, owners = np.full(shape, self.drawer.control.end), np.full(shape, OUTSIDE)
        for row, own in enumerate(rows):
            ids[row, : len(own[0])], owners[row, : len(own[0])] = own
        device = self.target.model.device
        return Laid(
            *(torch.from_numpy(part.copy()).to(device) for part in (ids[:, :-1], ids[:, 1:], owners[:, 1:]))
        )

    def log_probs(self, model: "PreTrainedModel", laid: Laid) -> Float[Tensor, "N T"]:
        """log p of each target given what stands before it, as it is drawn, in nats, float32; 0 where the target is not the text's."""
        # Texts of like length are read together, up to where the longest of them ends. Padding stands behind them, and causal models
        # do not look ahead: no mask is needed.
        places = torch.arange(1, 1 + laid.is_text.shape[1], device=laid.is_text.device)
        order = (laid.is_text * places).amax(1).argsort()
        parts = [laid.take(rows) for rows in order.tensor_split(max(1, len(order) // _READ_TOGETHER))]
        found = torch.cat([self._read(model, part) for part in parts])
        sorted_ = torch.zeros_like(laid.inputs, dtype=found.dtype).masked_scatter(laid.is_text[order], found)
        return sorted_[order.argsort()]

    def _read(self, model: "PreTrainedModel", laid: Laid) -> Float[Tensor, "M"]:
        """log p of all targets that are a text's."""
        hidden = model.base_model(input_ids=laid.inputs, use_cache=False).last_hidden_state[laid.is_text]
        logits = model.get_output_embeddings()(hidden)[..., : self.drawer.vocab_size].float()
        given = (part[laid.is_text] for part in (laid.inputs, laid.targets, laid.owners))
        return find_log_probs(self.drawer, logits, *given)
