"""Blocks: fixed-length rows of packed pages, as the data rule says; every batch is a pure function of (seed, step).

A page is `<|endoftext|>` + a document with a control token before each labelled segment. The pages of an epoch, in
the epoch's own order, make one stream; block b holds its inputs b * context and on, the targets are one further.

Words for places: a *place* counts inputs in an epoch's stream; a *mark* counts tokens of all documents in corpus
order, control tokens of the epoch included and `<|endoftext|>` not. Both are plain sums of lengths, so a block is
found by bisection and nothing of an epoch is ever laid out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.corpus.tokens import TokenCache, cumulate
from phf.errors import PHFError
from phf.records import CONTROL, END, NO_LABEL, PAD, TEXT, Batch, DataRule, Split

Ints = npt.NDArray[np.int64]

# What a random generator is for, beside seed and epoch: no two draws share a stream.
_PAGES, _BLOCKS, _DROPS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Plan:
    """One epoch.

    Attributes:
        pages: document of each page [num_pages].
        page_starts: place of each page's `<|endoftext|>`, and the end [num_pages + 1].
        marks: mark of each segment's first token (its control token, if it has one), and the end [num_segments + 1].
        has_control: whether a control token stands before each segment [num_segments].
        blocks: the blocks in the order they are trained on [num_blocks].
    """

    pages: npt.NDArray[np.uint32]
    page_starts: Ints
    marks: Ints
    has_control: npt.NDArray[np.bool_]
    blocks: npt.NDArray[np.uint32]


class Blocks:
    """The blocks of one split under one data rule, over endless epochs.

    Each epoch holds every token of every kept document once, its pages and blocks in an order of its own. In each,
    exactly `drop_fraction` of the labelled segments, drawn anew, go without their control token: so all epochs have
    the same number of blocks, and a step's place follows without looking at the epochs before it.
    """

    def __init__(
        self,
        tokens: TokenCache,
        rule: DataRule,
        scores: npt.NDArray[np.float32],
        *,
        split: Split,
        context: int,
        seed: int,
        isolate_documents: bool = True,
    ) -> None:
        """Plan the blocks; reads no token.

        Args:
            tokens: the token cache.
            rule: which documents are kept, and the labels of the segments.
            scores: misalignment scores [num_segments], in corpus order; those of dropped documents may be NaN.
            split: the documents to use.
            context: inputs per block.
            seed: of the orders and of the dropped control tokens.
            isolate_documents: whether positions restart at every `<|endoftext|>`.

        Raises:
            PHFError: rule or scores do not fit the tokens, a kept segment has no score, or no token is kept.
        """
        for name, found, expected in (
            ("documents in the data rule", len(rule.keep), tokens.num_documents),
            ("labels in the data rule", len(rule.labels), tokens.num_segments),
            ("scores", len(scores), tokens.num_segments),
        ):
            if found != expected:
                raise PHFError(
                    f"{tokens.path} has {expected} where there are {found} {name}; annotate and tokenize the same "
                    "corpus with the same --segments"
                )
        self.context = context
        self.seed = seed
        self.isolate_documents = isolate_documents
        self._rule = rule
        self._scores = scores
        self._ids = tokens.ids
        self._shard_starts = tokens.shard_starts
        self._token_starts = cumulate(tokens.segment_lengths)
        self._document_starts = cumulate(tokens.document_segments)  # first segment of each document
        control = tokens.tokenizer.control
        self._end = control.end
        self._control_of_label = np.array([-1, control.good, control.bad])
        kept = rule.keep & tokens.split_mask(split) & (tokens.document_segments > 0)
        self._documents = np.flatnonzero(kept).astype(np.uint32)
        if len(self._documents) == 0:
            raise PHFError(
                f"no token of the {split} split is kept ({int(rule.keep.sum())} of {len(rule.keep)} documents pass the "
                "data rule); choose a higher threshold or fraction, or build a larger corpus"
            )
        in_use = np.repeat(kept, tokens.document_segments)
        num_missing = int(np.isnan(scores[in_use]).sum())
        if num_missing > 0:
            raise PHFError(
                f"{num_missing} kept segments have no score; annotate them, or give data.missing=drop"
            )
        self._labelled = np.flatnonzero(in_use & (rule.labels != NO_LABEL))
        self._num_dropped = round(rule.drop_fraction * len(self._labelled))
        num_text = int(tokens.document_tokens[self._documents].sum())
        self._num_inputs = num_text + len(self._documents) + len(self._labelled) - self._num_dropped
        self._plan = lru_cache(maxsize=2)(self._make_plan)  # a batch may lie in two epochs

    @property
    def num_tokens_per_epoch(self) -> int:
        """Model inputs of an epoch: text, control tokens, and one `<|endoftext|>` per page."""
        return self._num_inputs

    @property
    def num_blocks(self) -> int:
        """Blocks of an epoch; the last one is padded."""
        return -(-self._num_inputs // self.context)

    def epochs(self, budget: int) -> float:
        """Epochs that a budget of model inputs makes."""
        return budget / self._num_inputs

    def batch(self, step: int, batch_blocks: int) -> Batch:
        """The batch of a step: blocks `step * batch_blocks` and on, across the ends of epochs."""
        return self.rows(np.arange(step * batch_blocks, (step + 1) * batch_blocks))

    def rows(self, indices: Ints) -> Batch:
        """Any blocks, counted over all epochs in the order of training (a rank's share, a micro-batch)."""
        epochs, places = np.divmod(np.asarray(indices, np.int64), self.num_blocks)
        batches = []
        for first, stop in _runs(epochs):
            plan = self._plan(int(epochs[first]))
            batches.append(self._assemble(plan, plan.blocks[places[first:stop]].astype(np.int64)))
        return _join(batches)

    def iterate_in_order(self, max_blocks: int, batch_blocks: int = 16) -> Iterator[Batch]:
        """The first blocks of the first epoch's stream, in its order: always the same ones, for validation."""
        stop = min(max_blocks, self.num_blocks)
        for first in range(0, stop, batch_blocks):
            yield self._assemble(self._plan(0), np.arange(first, min(first + batch_blocks, stop)))

    def _make_plan(self, epoch: int) -> _Plan:
        pages = np.random.default_rng([self.seed, epoch, _PAGES]).permutation(self._documents)
        has_control = np.zeros(len(self._rule.labels), np.bool_)
        has_control[self._labelled] = True
        dropped = np.random.default_rng([self.seed, epoch, _DROPS]).choice(
            self._labelled, self._num_dropped, replace=False, shuffle=False
        )
        has_control[dropped] = False
        marks = self._token_starts + cumulate(has_control)
        document_marks = marks[self._document_starts]
        page_starts = cumulate(1 + np.diff(document_marks)[pages])
        assert page_starts[-1] == self._num_inputs
        blocks = np.random.default_rng([self.seed, epoch, _BLOCKS]).permutation(self.num_blocks)
        return _Plan(pages, page_starts, marks, has_control, blocks.astype(np.uint32))

    def _assemble(self, plan: _Plan, blocks: Ints) -> Batch:
        """Lay out blocks of one epoch.

        Rows have one token more than the context: row[:-1] are inputs, row[1:] targets. What is not text or a control
        token is `<|endoftext|>`, and after the end of the stream padding.
        """
        width = self.context + 1
        starts = blocks * self.context
        stops = np.minimum(starts + width, self._num_inputs + 1)
        ids = np.full((len(blocks), width), self._end, np.int64)
        kinds = np.full((len(blocks), width), END, np.uint8)
        scores = np.full((len(blocks), width), np.nan, np.float32)
        labels = np.zeros((len(blocks), width), np.uint8)
        kinds[np.arange(width) >= (stops - starts)[:, None]] = PAD

        segments, first_marks, lengths, targets = self._find_spans(plan, starts, stops)
        # Control tokens: spans that begin at the mark of a segment that has one.
        is_control = plan.has_control[segments] & (first_marks == plan.marks[segments])
        control_targets = targets[is_control]
        ids.reshape(-1)[control_targets] = self._control_of_label[self._rule.labels[segments[is_control]]]
        kinds.reshape(-1)[control_targets] = CONTROL
        # Text: what is left of the spans.
        first_tokens = self._token_starts[segments] + (first_marks - plan.marks[segments])
        first_tokens -= plan.has_control[segments] & ~is_control
        lengths = lengths - is_control
        text_targets = _expand(targets + is_control, lengths)
        ids.reshape(-1)[text_targets] = self._read_tokens(first_tokens, lengths)
        kinds.reshape(-1)[text_targets] = TEXT
        scores.reshape(-1)[text_targets] = np.repeat(self._scores[segments], lengths)
        labels.reshape(-1)[text_targets] = np.repeat(self._rule.labels[segments], lengths)
        return Batch(
            ids=ids[:, :-1],
            targets=ids[:, 1:],
            positions=self._find_positions(kinds[:, :-1]),
            scores=scores[:, 1:],
            kinds=kinds[:, 1:],
            labels=labels[:, 1:],
        )

    def _find_spans(self, plan: _Plan, starts: Ints, stops: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """The pieces of segments that rows of places [start, stop) hold, in corpus order.

        Returns:
            each span's segment, its first mark, its length, and where it goes in the flattened rows.
        """
        # Pages that each row touches, and which part of the page's document (in marks).
        first_pages = np.searchsorted(plan.page_starts, starts, side="right") - 1
        last_pages = np.searchsorted(plan.page_starts, np.minimum(stops, self._num_inputs), side="left")
        num_pages = last_pages - first_pages
        pages = _expand(first_pages, num_pages)
        rows = np.repeat(np.arange(len(starts)), num_pages)
        documents = plan.pages[pages].astype(np.int64)
        offsets = plan.marks[self._document_starts[documents]] - plan.page_starts[pages] - 1  # place -> mark
        first_marks = np.maximum(starts[rows], plan.page_starts[pages] + 1) + offsets
        last_marks = np.minimum(stops[rows], plan.page_starts[pages + 1]) + offsets
        row_offsets = (
            rows * (self.context + 1) - starts[rows] - offsets
        )  # mark -> place in the flattened rows
        # In corpus order, so that the tokens of a shard are read together.
        order = np.argsort(first_marks, kind="stable")
        first_marks, last_marks, row_offsets = first_marks[order], last_marks[order], row_offsets[order]
        # Segments that each of these parts touches.
        first_segments = np.searchsorted(plan.marks, first_marks, side="right") - 1
        last_segments = np.searchsorted(plan.marks, last_marks, side="left")
        num_segments = last_segments - first_segments
        segments = _expand(first_segments, num_segments)
        span_starts = np.maximum(plan.marks[segments], np.repeat(first_marks, num_segments))
        span_stops = np.minimum(plan.marks[segments + 1], np.repeat(last_marks, num_segments))
        targets = span_starts + np.repeat(row_offsets, num_segments)
        return segments, span_starts, span_stops - span_starts, targets

    def _read_tokens(self, first_tokens: Ints, lengths: Ints) -> npt.NDArray[Any]:
        """Token ids of runs that are sorted by their first token."""
        places = _expand(first_tokens, lengths)
        if len(self._ids) == 1:
            return self._ids[0][places]
        bounds = np.searchsorted(places, self._shard_starts)
        parts = [
            self._ids[shard][places[bounds[shard] : bounds[shard + 1]] - self._shard_starts[shard]]
            for shard in np.flatnonzero(np.diff(bounds))
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _find_positions(self, kinds: npt.NDArray[np.uint8]) -> Ints:
        """Position of each input: since the row's start or, if documents are isolated, the last `<|endoftext|>`."""
        places = np.broadcast_to(np.arange(self.context), kinds.shape)
        if not self.isolate_documents:
            return places.copy()
        ends = np.where(kinds == END, places, 0)
        return places - np.maximum.accumulate(ends, axis=1)


def _expand(starts: Ints, lengths: Ints) -> Ints:
    """The numbers start, start + 1, ... of each run, one run after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) > 0 else 0
    numbers: Ints = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return numbers


def _runs(values: Ints) -> Iterator[tuple[int, int]]:
    """First and stop of each run of equal values."""
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return pairwise(bounds)


def _join(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    fields = ("ids", "targets", "positions", "scores", "kinds", "labels")
    return Batch(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in fields})
