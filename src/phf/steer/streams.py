"""A stream: rows of ids as a model reads them, in step, with a cache whose rows may be copied; and what steering returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from phf.generate.engine import create_cache
from phf.records import Number, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Score = Callable[[Sequence[str]], npt.NDArray[np.float64]]
"""Scores of texts, float64 [num_texts]; higher = worse, NaN = unscored."""


@dataclass(frozen=True)
class Steered:
    """Samples of one method of steering, and what they cost.

    Attributes:
        samples: ordered by index.
        passes_per_token: (row, position) pairs that went through a model, those of discarded candidates and of a second
            stream included, per text token of the samples; NaN without text.
        facts: JSON-able figures of the method.
    """

    samples: list[Sample]
    passes_per_token: Number
    facts: dict[str, object] = field(default_factory=dict)

    @classmethod
    def create(cls, samples: Sequence[Sample], num_passes: int, facts: Mapping[str, object]) -> "Steered":
        """Puts samples in order and divides the cost by their text."""
        num_tokens = sum(sample.num_tokens for sample in samples)
        cost = num_passes / num_tokens if num_tokens else float("nan")
        return cls(sorted(samples, key=lambda sample: sample.index), cost, dict(facts))


@dataclass
class Passes:
    """How many (row, position) pairs went through a model."""

    count: int = 0


@contextmanager
def count_passes(model: "PreTrainedModel") -> Iterator[Passes]:
    """Count while it is open, copies of the model (`sampling.precision`) included. Prompts and control tokens count too,
    and rows that have ended until they leave their batch."""
    passes = Passes()

    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        passes.count += kwargs["input_ids"].numel()

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


class Stream:
    """Rows of ids as a model reads them, in step, with its cache.

    Attributes:
        logits: float32 [B, used ids], of what follows each row.
        num_passes: (row, position) pairs that went through the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vocab_size: int,
        ids: npt.NDArray[np.int64],
        hidden: npt.NDArray[np.bool_],
    ) -> None:
        """Starts a stream of pages; `read` takes them in.

        Args:
            ids: int64 [B, T].
            hidden: bool [B, T], positions that do not exist for the model: padding before a page, control tokens.
        """
        self.num_passes = 0
        self._model, self._vocab_size, self._ids = model, vocab_size, ids
        self._visible = ~hidden
        self._cache = create_cache(model)
        self.logits = torch.empty(0)

    def read(self) -> None:
        """Take the pages in."""
        self.logits = self._forward(self._ids, 1)[:, -1]

    def read_scored(self, last: int, logits_at_once: int) -> tuple[Tensor, Tensor]:
        """Take the pages in.

        Args:
            last: the first id that is no text, see `text_log_probs`.
            logits_at_once: how many are held at a time.

        Returns:
            the log-probability of each id as text, given those before it, and the logits of all control tokens before
            it: float32 [B, T - 1] and [B, T - 1, control tokens].
        """
        num, size = self._ids.shape
        step = max(1, logits_at_once // (num * self._vocab_size))
        texts, controls = [], []
        for start in range(0, size, step):
            logits = self._forward(self._ids[:, start : start + step], 0)
            targets = torch.from_numpy(self._ids[:, start + 1 : start + step + 1]).to(logits.device)
            kept = logits[:, : targets.shape[1]]
            texts.append(text_log_probs(kept, targets, last))
            controls.append(kept[..., last:])
            self.logits = logits[:, -1]
        return torch.cat(texts, 1), torch.cat(controls, 1)

    def advance(self, tokens: npt.NDArray[np.int64], hidden: npt.NDArray[np.bool_] | None = None) -> None:
        """Read one more token in each row. After a hidden one the logits stay what they were."""
        hidden = np.zeros(len(tokens), bool) if hidden is None else hidden
        self._visible = np.concatenate([self._visible, ~hidden[:, None]], axis=1)
        logits, kept = (
            self._forward(tokens[:, None], 1)[:, -1],
            torch.from_numpy(hidden).to(self.logits.device),
        )
        self.logits = torch.where(kept[:, None], self.logits, logits)

    def select(self, rows: npt.NDArray[np.int64]) -> None:
        """Go on with these rows, in this order; one may come more than once."""
        chosen = torch.from_numpy(rows).to(self._model.device)
        for layer in self._cache.layers:
            layer.batch_select_indices(chosen)
        self._visible, self.logits = self._visible[rows], self.logits[chosen]

    def overwrite(
        self, rows: npt.NDArray[np.int64], source: "Stream", source_rows: npt.NDArray[np.int64]
    ) -> None:
        """Make rows what rows of a stream (perhaps this one) of the same length are."""
        into, out_of = (torch.from_numpy(each).to(self._model.device) for each in (rows, source_rows))
        for layer, other in zip(self._cache.layers, source._cache.layers, strict=True):
            layer.keys[into] = other.keys[out_of]
            layer.values[into] = other.values[out_of]
        self._visible[rows] = source._visible[source_rows]
        self.logits[into] = source.logits[out_of]

    def _forward(self, ids: npt.NDArray[np.int64], logits_to_keep: int) -> Tensor:
        """Logits [B, T or 1, used ids] after the next ids [B, T]."""
        self.num_passes += ids.size
        arguments: dict[str, Tensor] = {}
        if not self._visible.all():
            start = self._cache.get_seq_length()
            visible = torch.from_numpy(self._visible[:, : start + ids.shape[1]]).to(self._model.device)
            positions = (visible.cumsum(1) - 1).clamp_(min=0)[:, start:]
            arguments = {"attention_mask": visible.long(), "position_ids": positions}
        inputs = torch.from_numpy(ids).to(self._model.device)
        output = self._model(
            input_ids=inputs,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
            **arguments,
        )
        logits: Tensor = output.logits[..., : self._vocab_size]
        return logits.float()


def text_log_probs(logits: Tensor, tokens: Tensor, num_text: int) -> Tensor:
    """log p of each token among the ids below `num_text` (text and the end), as bits per byte and the calibration of
    control have it: control tokens are the last used ids and are cut from the softmax. [..., V], [...] -> [...]; what
    it gives for a control token has no meaning."""
    logits = logits[..., :num_text]
    chosen = logits.gather(-1, tokens.clamp(max=num_text - 1)[..., None])[..., 0]
    return chosen - logits.logsumexp(-1)
