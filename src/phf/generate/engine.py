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
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from phf.config import SamplingConfig, SamplingPrecision, SegmentKind
from phf.control import ControlTokens, ModeRules, mode_rules
from phf.errors import PHFError
from phf.records import Mode, Progress, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextTokenizer(Protocol):
    """What generation needs of a tokenizer (`phf.corpus.tokenizer.Tokenizer` has it)."""

    @property
    def control(self) -> ControlTokens:
        """Ids of the control tokens and the end of a document."""

    @property
    def vocab_size(self) -> int:
        """Number of ids in use; the model's vocabulary may be padded beyond it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, without control tokens."""


REDRAW = 1 << 32
"""Sample i + j * REDRAW is the j-th other draw of sample i: of the same prompt, with random numbers of its own."""

_CACHE_STEP = 64
"""Positions by which the cache grows: few reallocations, and at most this many positions of memory to spare."""

COMPACT_SHARE = 7 / 8
"""Finished rows leave the batch once fewer than this share is alive: moving the cache costs about one step's reading."""


def generate(
    model: "PreTrainedModel",
    tokenizer: TextTokenizer,
    mode: Mode,
    sampling: SamplingConfig,
    *,
    segments: SegmentKind = "document",
    prompts: Sequence[Sequence[int]] | None = None,
    is_folded: bool = False,
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Sample]:
    """Draw `sampling.num_samples` texts in a mode (contract: Modes; paper section 3).

    `min_new_tokens`, `max_new_tokens` and `Sample.num_tokens` count *text* tokens, so that modes compare at equal
    amounts of text: control tokens come on top of them, up to one per text token and the model's context. Until
    `min_new_tokens` the end token is blocked.

    Args:
        model: any Hugging Face causal language model.
        tokenizer: maps ids to text; ids at or above its `vocab_size` are never drawn.
        mode: what the page starts with and what is blocked.
        sampling: temperature, top-p, lengths, style of control, seed.
        segments: where `control="forced"` inserts the control token; not used otherwise.
        prompts: ids that follow the mode's prefix; sample i continues prompt i modulo their number.
        is_folded: the mode is in the model's weights (`lm.fold_condition`), so the page has no control tokens.
        indices: which samples are drawn (default: the first `num_samples`); see `REDRAW`.
        progress: called with (description, finished samples, all samples).

    Returns:
        the samples in the order of `indices`.

    Raises:
        PHFError: prefix, prompt and new tokens do not fit into the model's context; or `control="forced"` and segments
            whose ends are not to be seen while writing.
    """
    drawer = TokenDrawer.create(tokenizer, "untagged" if is_folded else mode, sampling, segments)
    prompts = prompts or [()]
    indices = range(sampling.num_samples) if indices is None else indices
    own_prompts = [prompts[index % REDRAW % len(prompts)] for index in indices]
    pages = [[*drawer.rules.prefix, *prompt] for prompt in own_prompts]
    limit = find_limit(model, max(map(len, pages)), sampling)
    writer = _Writer(cast_parameters(model, sampling.precision), drawer, tokenizer.vocab_size, limit)
    # Pages of similar length share a batch; the rows of one batch are read and written in step.
    order = sorted(range(len(pages)), key=lambda row: len(pages[row]))
    samples: dict[int, Sample] = {}
    was_training = writer.model.training
    writer.model.eval()
    for start in range(0, len(order), sampling.batch_size):
        batch = order[start : start + sampling.batch_size]

        def report(done: int, before: int = start) -> None:
            if progress is not None:
                progress(f"sampling {mode}", before + done, len(order))

        written = writer.write([pages[row] for row in batch], [indices[row] for row in batch], report)
        for row, (ids, ended) in zip(batch, written, strict=True):
            prompt = tokenizer.decode(own_prompts[row])
            samples[row] = Sample(mode, indices[row], tokenizer.decode(ids), len(ids), ended, prompt)
    writer.model.train(was_training)
    return [samples[row] for row in range(len(pages))]


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
        ascending = _sort_rows(probs)
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


def _sort_rows(values: Tensor) -> Tensor:
    """Each row in ascending order. On CPU by numpy: 2.5 ms for 256 x 4,096 where `torch.sort` takes 51."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(-1).values


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
    if model.dtype == dtype:
        return model
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@dataclass(frozen=True)
class _Boundaries:
    """Which tokens end a segment, as tables over ids: bool [V].

    A segment surely ends after `closes`. After `may_close` it ends if the next token is one of `opens`.
    """

    closes: npt.NDArray[np.bool_]
    may_close: npt.NDArray[np.bool_]
    opens: npt.NDArray[np.bool_]

    @classmethod
    def create(cls, tokenizer: TextTokenizer, segments: SegmentKind) -> "_Boundaries":
        """Lines end with a token that ends in a line feed; sentences end before white space that follows `.`, `!` or
        `?`; a document does not end before its page.

        Raises:
            PHFError: segments of another kind.
        """
        texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
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
    """Draws next tokens under the rules of a mode."""

    sampling: SamplingConfig
    control: ControlTokens
    rules: ModeRules
    boundaries: _Boundaries | None

    @classmethod
    def create(
        cls, tokenizer: TextTokenizer, mode: Mode, sampling: SamplingConfig, segments: SegmentKind
    ) -> "TokenDrawer":
        """The rules of a mode under some settings; `segments` say where `control="forced"` inserts the token.

        Raises:
            PHFError: `control="forced"` and segments whose ends are not to be seen while writing.
        """
        rules = mode_rules(mode, tokenizer.control, sampling.control)
        boundaries = _Boundaries.create(tokenizer, segments) if rules.forced is not None else None
        return cls(sampling, tokenizer.control, rules, boundaries)

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
        control tokens' mass must count as going on: blocked, a page would end at nearly every segment."""
        blocked = np.ones(len(last), bool)
        if self.boundaries is not None:
            blocked = ~(self.boundaries.closes[last] | self.boundaries.may_close[last])
        for token in self.rules.blocked:
            if token >= logits.shape[1]:
                continue  # the model has no such token any more (a release without `<|bad|>`)
            logits[torch.from_numpy(blocked).to(logits.device), token] = -torch.inf
        too_short = torch.from_numpy(num_text < self.sampling.min_new_tokens).to(logits.device)
        logits[too_short, self.control.end] = -torch.inf
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


class _FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """A cache layer that writes into memory allocated ahead; `DynamicLayer` copies all of it at every token."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._key_memory, self._value_memory = self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._key_memory.shape[2]:
            self._move(end, None)
        self._key_memory[:, :, start:end] = key_states
        self._value_memory[:, :, start:end] = value_states
        self.keys, self.values = self._key_memory[:, :, :end], self._value_memory[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._move(self._key_memory.shape[2], indices)

    def _move(self, num_positions: int, rows: Tensor | None) -> None:
        """New memory for at least `num_positions`, holding what is there (or some rows of it)."""
        capacity = -(-num_positions // _CACHE_STEP) * _CACHE_STEP
        self._key_memory, self.keys = _copy_into_new(self.keys, capacity, rows)
        self._value_memory, self.values = _copy_into_new(self.values, capacity, rows)


def _copy_into_new(states: Tensor, capacity: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fresh memory [B, H, capacity, D] and the view of it that holds `states` (or some of its rows)."""
    num_rows = states.shape[0] if rows is None else rows.shape[0]
    memory = states.new_empty(num_rows, states.shape[1], capacity, states.shape[3])
    view = memory[:, :, : states.shape[2]]
    if rows is None:
        view.copy_(states)
    else:
        torch.index_select(states, 0, rows, out=view)
    return memory, view


def create_cache(model: "PreTrainedModel") -> DynamicCache:
    """The model's own cache, its plain layers replaced by ones that do not copy (sliding windows stay as they are)."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_FixedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@dataclass(frozen=True)
class _Writer:
    """Writes batches of pages with one model and one set of rules."""

    model: "PreTrainedModel"
    drawer: TokenDrawer
    vocab_size: int
    limit: int

    @torch.inference_mode()
    def write(
        self, pages: Sequence[Sequence[int]], indices: Sequence[int], report: Callable[[int], None]
    ) -> list[tuple[list[int], bool]]:
        """Continue each page; gives the new text ids and whether the end token came.

        Rows advance in step. A row whose page is longer than the shortest reads its own ids before it writes.
        """
        sampling, end = self.drawer.sampling, self.drawer.control.end
        lengths = np.array([len(page) for page in pages])
        last = np.minimum(lengths + 2 * sampling.max_new_tokens, self.limit)
        ids = np.zeros((len(pages), self.limit), np.int64)
        for row, page in enumerate(pages):
            ids[row, : len(page)] = page
        uniforms = np.stack([uniform_numbers(sampling.seed, i, self.limit) for i in indices])
        num_text = np.zeros(len(pages), np.int64)
        done = np.zeros(len(pages), bool)
        ends = lengths.copy()
        rows = np.arange(
            len(pages)
        )  # the rows still in the batch, some of them finished but not yet moved out

        cache = create_cache(self.model)
        position = int(lengths.min())
        inputs = ids[:, :position]
        while True:
            logits = self._next_logits(inputs, cache)
            drawn = self.drawer.draw(
                logits,
                ids[rows, position - 1],
                num_text[rows],
                uniforms[rows, np.maximum(position - lengths[rows], 0)],
            )
            writes = (position >= lengths[rows]) & ~done[rows]
            ids[rows, position] = np.where(writes, drawn, ids[rows, position])
            num_text[rows] += writes & self.drawer.is_text(drawn)
            position += 1
            ends[rows[writes]] = position
            done[rows] |= writes & (
                (drawn == end) | (num_text[rows] == sampling.max_new_tokens) | (position == last[rows])
            )
            if done.all():
                break
            rows = self._drop_finished(rows, done, cache)
            inputs = ids[rows, position - 1 : position]
            report(int(done.sum()))
        report(len(pages))
        new = [ids[row, lengths[row] : ends[row]] for row in range(len(pages))]
        return [(part[self.drawer.is_text(part)].tolist(), bool((part == end).any())) for part in new]

    def _next_logits(self, inputs: npt.NDArray[np.int64], cache: DynamicCache) -> Tensor:
        """Logits [B, used ids] after the last input."""
        ids = torch.from_numpy(inputs).to(self.model.device)
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1, : self.vocab_size]
        return logits.float()

    def _drop_finished(
        self, rows: npt.NDArray[np.int64], done: npt.NDArray[np.bool_], cache: DynamicCache
    ) -> npt.NDArray[np.int64]:
        """The rows that go on, if enough have finished to pay for moving the cache."""
        alive = ~done[rows]
        if alive.sum() >= COMPACT_SHARE * len(rows):
            return rows
        kept = torch.from_numpy(np.flatnonzero(alive)).to(self.model.device)
        for layer in cache.layers:
            layer.batch_select_indices(kept)
        return rows[alive]


def uniform_numbers(seed: int, index: int, count: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """u(seed, index, 0) and on, float64 [count] in [0, 1): words of Philox4x64-10 with the key (seed, index).

    `stream`: of independent sequences for one sample; the highest word of the counter. Plain sampling uses 0.
    """
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream])).random(count)
