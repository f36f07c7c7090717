"""A stream: rows of ids as a model reads them, in step, with a cache whose rows may be copied; and what steering returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from phf.errors import NotApplicableError
from phf.generate.cache import STRANGE, create_cache, evaluation_mode, is_alike, select_rows
from phf.records import Number, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

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
        forward: "Callable[..., CausalLMOutput] | None" = None,
    ) -> None:
        """Starts a stream of pages; `read` takes them in.

        Args:
            ids: int64 [B, T].
            hidden: bool [B, T], positions that do not exist for the model: padding before a page, control tokens.
            forward: what is called in place of the model.
        """
        self.num_passes = 0
        self._call = model if forward is None else forward
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
        select_rows(self._cache, chosen)
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
        output = self._call(
            input_ids=inputs,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
            **arguments,
        )
        assert output.logits is not None
        logits: Tensor = output.logits[..., : self._vocab_size]
        return logits.float()


def check_streams(model: "PreTrainedModel", length: int) -> None:
    """Check, in float32, that hidden tokens are to a model as if they were not there, and that its rows can be copied.

    Args:
        length: tokens of the longest page, hidden ones too. What was found out is kept with the model.

    Raises:
        NotApplicableError: its cache keeps what went by in a state, or takes no mask; or the page is longer than its attention
            reaches back, which counts hidden tokens as others.
    """
    known: dict[int, bool] = model.__dict__.setdefault("has_streams", {})
    with torch.inference_mode(), evaluation_mode(model):
        if 0 not in known:
            known[0] = _has_streams(model)
        if known[0] and length not in known:
            known[length] = _reaches_back(model, length)
    if not known[0]:
        raise NotApplicableError(
            f"{type(model).__name__} cannot leave out tokens that it has read or copy its rows, which steering needs; sample it "
            "without steering"
        )
    if not known[length]:
        raise NotApplicableError(
            f"the attention of {type(model).__name__} reaches back less far than pages of {length} tokens, and counts what it is to "
            "leave out; give a smaller max_new_tokens, or sample it without steering"
        )


def _reaches_back(model: "PreTrainedModel", length: int) -> bool:
    """Whether every second token of a page can be hidden: a window that slides over all of them would see half as many."""
    size = model.config.get_text_config().vocab_size
    ids = np.arange(length)[None] % size
    hidden = np.arange(length)[None] % 2 == 1
    hidden[:, -1] = False
    whole = Stream(model, size, ids, hidden, model.forward)
    plain = Stream(model, size, ids[~hidden][None], np.zeros_like(hidden[~hidden])[None], model.forward)
    whole.read()
    plain.read()
    return is_alike(whole.logits, plain.logits)


def _has_streams(model: "PreTrainedModel") -> bool:
    size = model.config.get_text_config().vocab_size

    def open_stream(rows: list[list[int]], num_padded: int) -> Stream:
        ids = np.array(rows) % size
        hidden = np.broadcast_to(np.arange(ids.shape[1]) < num_padded, ids.shape)
        # `forward` itself: what counts the model's calls does not see the probe's.
        return Stream(model, size, ids, hidden, model.forward)

    def advance(stream: Stream, tokens: list[int], *, is_hidden: bool = False) -> None:
        stream.advance(np.array(tokens) % size, np.full(len(tokens), is_hidden))

    try:
        plain, stream = open_stream([[0, 1, 2, 3, 4]], 0), open_stream([[0, 0, 0, 1], [0, 0, 0, 6]], 2)
        plain.read()
        stream.read_scored(size, 2 * size)  # one token at a time
        advance(stream, [2, 8])
        advance(stream, [7, 7], is_hidden=True)
        stream.overwrite(np.array([1]), stream, np.array([0]))
        stream.select(np.array([1]))
        advance(stream, [3])
        advance(stream, [4])
    except STRANGE:
        return False
    return is_alike(stream.logits, plain.logits)


def text_log_probs(logits: Tensor, tokens: Tensor, num_text: int) -> Tensor:
    """log p of each token among the ids below `num_text` (text and the end), as bits per byte and the calibration of
    control have it: control tokens are the last used ids and are cut from the softmax. [..., V], [...] -> [...]; what
    it gives for a control token has no meaning."""
    logits = logits[..., :num_text]
    chosen = logits.gather(-1, tokens.clamp(max=num_text - 1)[..., None])[..., 0]
    return chosen - logits.logsumexp(-1)
