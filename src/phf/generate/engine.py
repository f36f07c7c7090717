"""Writing samples with a model: batched, with a key-value cache that is allocated once, each sample with its own seed.

A sample is a pure function of (weights, mode, prompt, sampling settings, its index). The j-th token that is written
into sample i comes from the uniform number u(seed, i, j), word j of the counter-based generator Philox with the key
(seed, i), by inverting the distribution function of the truncated next-token distribution in the order of the
vocabulary. So a sample does not depend on the batch it was drawn in, on how many samples or tokens are asked for, or
on what the others do, and two modes of a model see the same numbers. Only rounding is left: a matrix product may round
differently in a batch of another size, and a uniform number that falls within that difference picks the neighbour
(docs/evaluation.md has the measured shares).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from phf.config.train import SamplingConfig, SamplingPrecision, SegmentKind
from phf.control import ControlTokens, ModeRules, mode_rules
from phf.errors import PHFError
from phf.generate.cache import RowReader, evaluation_mode, find_cache
from phf.records import Mode
from phf.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = Sequence[int]
Written = tuple[list[int], bool]
"""The text ids that were written behind a page, and whether the end token came."""

COMPACT_SHARE = 7 / 8
"""Finished rows leave the batch once fewer than this share is alive: moving the cache costs about one step's reading."""


def write_pages(
    model: "PreTrainedModel",
    drawer: "TokenDrawer",
    pages: Sequence[Ids],
    indices: Sequence[int],
    report: Callable[[int], None],
) -> list[Written]:
    """Continue each page under the rules of a mode, in batches.

    Args:
        model: any Hugging Face causal language model.
        pages: prefix and prompt of each.
        indices: which sample each is; with the seed it decides the random numbers.
        report: called with the number of finished pages.

    Raises:
        PHFError: a page and its new tokens do not fit into the model's context.
    """
    sampling = drawer.sampling
    limit = find_limit(model, max(map(len, pages)), sampling)
    # Pages of similar length share a batch; the rows of one batch are read and written in step.
    order = sorted(range(len(pages)), key=lambda row: len(pages[row]))
    model = cast_parameters(model, sampling.precision)
    written: dict[int, Written] = {}
    with evaluation_mode(model):
        for start in range(0, len(order), sampling.batch_size):
            rows = order[start : start + sampling.batch_size]
            writer = PageWriter(
                model, drawer, [pages[row] for row in rows], [indices[row] for row in rows], limit
            )
            while not writer.done.all():
                writer.step()
                report(start + int(writer.done.sum()))
            written |= {row: writer.text(place) for place, row in enumerate(rows)}
    return [written[row] for row in range(len(pages))]


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row from softmax(logits / temperature), cut to the smallest set of mass >= `top_p`.

    Tokens tied with the last one of the set are kept with it, so the set does not depend on a sort's order. A token of
    mass 0 is never drawn.

    Args:
        logits: float [B, V]; -inf is never drawn.
        uniforms: float64 [B] in [0, 1); the same number gives the same token.
        temperature: above 0.
        top_p: in (0, 1].

    Returns:
        int64 [B].
    """
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        if probs.device.type == "cpu":  # by numpy: 2.5 ms for 256 x 4,096 where `torch.sort` takes 51
            ascending = torch.from_numpy(np.sort(probs.numpy(), axis=-1))
        else:
            ascending = probs.sort(-1).values
        # A token stays while the mass of those above it is below top_p: the running mass from below exceeds the rest.
        last = _find_mass(ascending, lambda total: total - top_p)
        probs *= probs >= ascending.gather(-1, last[:, None])
    return _find_mass(probs, lambda total: uniforms * total)


_MASS_BLOCK = 64


def _find_mass(values: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
    """The first position of each row at which the running sum is above a target; its value is above 0 (for a target below
    0, the first position).

    Sums of blocks first, then the running sum (float64) within one block: a running sum over a whole row takes several
    times as long.

    Args:
        values: float [B, V], none below 0 and some above it in each row.
        target: gives float64 [B], below the row's sum, from the sums [B].

    Returns:
        int64 [B].
    """
    if missing := -values.shape[1] % _MASS_BLOCK:
        values = F.pad(values, (0, missing))
    blocks = values.reshape(len(values), -1, _MASS_BLOCK)
    ends = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    targets = target(ends[:, -1])[:, None]
    # `right`: the first sum *above* the target. Rounding must not lead out of a row or a block, nor to a value of 0.
    block = torch.searchsorted(ends, targets, right=True).clamp_(max=ends.shape[1] - 1)
    starts = F.pad(ends, (1, 0)).gather(-1, block)
    chosen = blocks.gather(1, block[:, :, None].expand(-1, -1, _MASS_BLOCK))[:, 0]
    inner = chosen.cumsum(-1, dtype=torch.float64)
    below = torch.nextafter(inner[:, -1:], inner.new_zeros(()))
    offset = torch.searchsorted(inner, (targets - starts).minimum(below), right=True)
    return (block * _MASS_BLOCK + offset)[:, 0]


def find_limit(model: "PreTrainedModel", longest_page: int, sampling: SamplingConfig) -> int:
    """Positions a row may fill: page, new text and as many control tokens, within the model's context.

    Raises:
        PHFError: page and new text alone exceed it.
    """
    wanted = longest_page + sampling.max_new_tokens
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None:
        return wanted + sampling.max_new_tokens
    if wanted > context:
        raise PHFError(
            f"{longest_page} tokens of prefix and prompt and {sampling.max_new_tokens} new ones exceed the model's "
            f"context of {context}; lower max_new_tokens to at most {max(context - longest_page, 0)} or shorten the prompt"
        )
    return min(wanted + sampling.max_new_tokens, int(context))


def cast_parameters(model: "PreTrainedModel", precision: SamplingPrecision) -> "PreTrainedModel":
    """The model, or a copy with parameters of another type; buffers stay (rotary frequencies in bfloat16 would move
    every position)."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    find_cache(model)  # here, where rounding is not taken for a cache that does not work
    if model.dtype == dtype:
        return model
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def decode_behind(tokenizer: Tokenizer, before: Ids, ids: Ids) -> str:
    """The text that ids add behind others, with the space that many decoders drop from the beginning of a text."""
    first, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
    # A character may be cut in two between them.
    return whole[len(first) :] if whole.startswith(first) else tokenizer.decode(ids)


@dataclass(frozen=True)
class Boundaries:
    """Which tokens end a segment, as tables over ids: bool [V].

    A segment surely ends after `closes`. After `may_close` it ends if the next token is one of `opens`.
    """

    closes: npt.NDArray[np.bool_]
    may_close: npt.NDArray[np.bool_]
    opens: npt.NDArray[np.bool_]

    @classmethod
    def create(cls, tokenizer: Tokenizer, segments: SegmentKind) -> "Boundaries":
        """Lines end with a token that ends in a line feed; sentences end before white space that follows `.`, `!` or
        `?`; a document does not end before its page.

        Raises:
            PHFError: segments of another kind.
        """
        # Behind a letter: alone, SentencePiece's tokens and whole words of BERT's kin lose the space they begin with.
        tokens = range(tokenizer.vocab_size)
        before = next(([token] for token in tokens if tokenizer.decode([token]).isalnum()), [])
        texts = [decode_behind(tokenizer, before, [token]) for token in tokens]
        never = np.zeros(len(texts), bool)
        if segments == "lines":
            return cls(np.array([text.endswith("\n") for text in texts]), never, never)
        if segments == "sentences":
            may_close = [text.rstrip("\"'”’)]").endswith((".", "!", "?")) for text in texts]
            return cls(never, np.array(may_close), np.array([text[:1].isspace() for text in texts]))
        if segments == "document":
            return cls(never, never, never)
        raise PHFError(
            f"control=forced knows where lines, sentences and documents end, not {segments}; give control=free or prefix"
        )


@dataclass(frozen=True)
class TokenDrawer:
    """Draws next tokens under the rules of a mode.

    Attributes:
        vocab_size: ids in use; the model's vocabulary may be padded beyond it, and what is there is never drawn.
    """

    sampling: SamplingConfig
    control: ControlTokens
    vocab_size: int
    rules: ModeRules
    boundaries: Boundaries | None

    @classmethod
    def create(
        cls, tokenizer: Tokenizer, mode: Mode, sampling: SamplingConfig, segments: SegmentKind
    ) -> "TokenDrawer":
        """The rules of a mode under some settings; `segments` say where `control="forced"` inserts the token.

        Raises:
            PHFError: `control="forced"` and segments whose ends are not to be seen while writing.
        """
        rules = mode_rules(mode, tokenizer.control, sampling.control)
        boundaries = Boundaries.create(tokenizer, segments) if rules.forced is not None else None
        return cls(sampling, tokenizer.control, tokenizer.vocab_size, rules, boundaries)

    def draw(
        self,
        logits: Tensor,
        last: npt.NDArray[np.int64],
        num_text: npt.NDArray[np.int64],
        uniforms: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int64]:
        """The next token of each row, under the rules of the mode.

        Args:
            logits: float [B, used ids]; what is blocked is overwritten.
            last: int64 [B], the token before.
            num_text: int64 [B], text tokens written so far.
            uniforms: float64 [B] in [0, 1).
        """
        logits = self._block(logits, last, num_text)
        numbers = torch.from_numpy(uniforms).to(logits.device)
        tokens = draw_tokens(logits, numbers, self.sampling.temperature, self.sampling.top_p)
        drawn: npt.NDArray[np.int64] = tokens.cpu().numpy()
        return self._force_control(drawn, last)

    def _block(self, logits: Tensor, last: npt.NDArray[np.int64], num_text: npt.NDArray[np.int64]) -> Tensor:
        """-inf where a token may not come. Where one is forced, the draw only decides whether the page ends, so the
        control tokens' mass must count as going on: blocked, a page would end at nearly every segment. Behind the forced token
        the page neither ends (that was decided) nor goes on with what does not begin a segment."""
        blocked = np.ones(len(last), bool)
        if self.boundaries is not None:
            blocked = ~(self.boundaries.closes[last] | self.boundaries.may_close[last])
        for token in self.rules.blocked:
            if token >= logits.shape[1]:
                continue  # the model has no such token any more (a release without `<|bad|>`)
            logits[torch.from_numpy(blocked).to(logits.device), token] = -torch.inf
        never = num_text < self.sampling.min_new_tokens
        if self.boundaries is not None:
            is_forced = (last == self.rules.forced) & (num_text > 0)
            never = never | is_forced
            if self.boundaries.opens.any() and is_forced.any():
                rows, others = np.flatnonzero(is_forced), np.flatnonzero(~self.boundaries.opens)
                logits[torch.from_numpy(rows)[:, None], torch.from_numpy(others)] = -torch.inf
        logits[torch.from_numpy(never).to(logits.device), self.control.end] = -torch.inf
        return logits

    def _force_control(
        self, drawn: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Put the mode's control token where a segment ended and the page goes on; the text is then drawn after it."""
        if self.boundaries is None or self.rules.forced is None:
            return drawn
        goes_on = drawn != self.control.end
        wants_control = np.isin(drawn, self.control.all)
        sure = self.boundaries.closes[last]
        found = self.boundaries.may_close[last] & (wants_control | self.boundaries.opens[drawn])
        return np.where(goes_on & (sure | found), self.rules.forced, drawn)

    def is_text(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which ids are neither control tokens nor the end."""
        return ~np.isin(ids, (self.control.end, *self.control.all))


class PageWriter:
    """Pages that are being written in step; one that is longer than the shortest reads its own ids before it writes.

    Attributes:
        done: bool [B], the pages that have ended.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        drawer: TokenDrawer,
        pages: Sequence[Ids],
        indices: Sequence[int],
        limit: int,
    ) -> None:
        """See `write_pages`; `limit`: positions a page may fill (`find_limit`)."""
        sampling = drawer.sampling
        self._drawer, self._reader, self._device = drawer, RowReader(model), model.device
        self._lengths = np.array([len(page) for page in pages])
        self._last = np.minimum(self._lengths + 2 * sampling.max_new_tokens, limit)
        self._ids = np.zeros((len(pages), limit), np.int64)
        for row, page in enumerate(pages):
            self._ids[row, : len(page)] = page
        self._uniforms = np.stack([uniform_numbers(sampling.seed, i, limit) for i in indices])
        self._num_text = np.zeros(len(pages), np.int64)
        self.done = np.zeros(len(pages), bool)
        self._ends = self._lengths.copy()
        # The rows still in the batch, some of them finished but not yet moved out.
        self._rows = np.arange(len(pages))
        self._num_read, self._position = 0, int(self._lengths.min())

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Write the next token of every page that has not ended.

        Returns:
            float32 [rows of the batch, control tokens], the model's own logits of the control tokens in this place, before
            the rules of the mode.
        """
        rows, position, lengths = self._rows, self._position, self._lengths[self._rows]
        logits = self._next_logits(self._ids[rows, self._num_read : position])
        controls = logits[:, self._drawer.control.good :].clone()
        drawn = self._drawer.draw(
            logits,
            self._ids[rows, position - 1],
            self._num_text[rows],
            self._uniforms[rows, np.maximum(position - lengths, 0)],
        )
        writes = (position >= lengths) & ~self.done[rows]
        self._ids[rows, position] = np.where(writes, drawn, self._ids[rows, position])
        self._num_text[rows] += writes & self._drawer.is_text(drawn)
        self._num_read, self._position = position, position + 1
        self._ends[rows[writes]] = self._position
        self.done[rows] |= writes & (
            (drawn == self._drawer.control.end)
            | (self._num_text[rows] == self._drawer.sampling.max_new_tokens)
            | (self._position == self._last[rows])
        )
        self._drop_finished()
        return controls

    def _next_logits(self, inputs: npt.NDArray[np.int64]) -> Tensor:
        """Logits [B, used ids] after the last input."""
        logits = self._reader.read(torch.from_numpy(inputs).to(self._device))
        return logits[:, : self._drawer.vocab_size].float()

    def _drop_finished(self) -> None:
        """Go on with the rows that are alive, if enough have finished to pay for moving the cache."""
        alive = ~self.done[self._rows]
        if not alive.any() or alive.sum() >= COMPACT_SHARE * len(self._rows):
            return
        self._reader.select(torch.from_numpy(np.flatnonzero(alive)).to(self._device))
        self._rows = self._rows[alive]

    def new_ids(self, row: int) -> npt.NDArray[np.int64]:
        """All that was written behind a page so far, control tokens and the end included."""
        return self._ids[row, self._lengths[row] : self._ends[row]]

    def text(self, row: int) -> Written:
        """The text that was written behind a page."""
        new = self.new_ids(row)
        return new[self._drawer.is_text(new)].tolist(), bool((new == self._drawer.control.end).any())


def uniform_numbers(seed: int, index: int, count: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """u(seed, index, 0) and on, float64 [count] in [0, 1): words of Philox4x64-10 with the key (seed, index).

    `stream`: of independent sequences for one sample; the highest word of the counter. Plain sampling uses 0.
    """
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream])).random(count)
