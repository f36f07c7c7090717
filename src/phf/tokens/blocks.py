"""Blocks: fixed-length rows of packed pages, as the data rule says; every batch is a pure function of (seed, step).

A page is `<|endoftext|>` + a document with a control token before each labelled segment. The pages of an epoch, in
the epoch's own order, make one stream; block b holds its inputs b * context and on, the targets are one further.

Words for places: a *place* counts inputs in an epoch's stream; a *mark* counts tokens of all documents in corpus
order, control tokens of the epoch included and `<|endoftext|>` not. Both are plain sums of lengths, so a block is
found by bisection and nothing of an epoch is ever laid out. A *piece* is a run of text with at most one control token,
before it: a segment, or with tags a part of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.records import BAD, CONTROL, END, NO_LABEL, PAD, TEXT, Batch, DataRule, Split
from phf.tokens.kept import find_kept
from phf.tokens.splitter import cumulate
from phf.tokens.tokens import TokenCache

Ints = npt.NDArray[np.int64]

SHUFFLE_BLOCKS = 4096
"""Blocks are shuffled among this many neighbours of the stream. So a part of an epoch is a part of its pages, and the
same part under every data rule: an objective that takes over from another goes on with documents not yet seen."""

# What a random generator is for, beside seed and epoch: no two draws share a stream.
_PAGES, _BLOCKS, _DROPS, _TAGS, _POISON = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Pieces:
    """How the text is cut.

    Attributes:
        starts: first token of each piece [num_pieces].
        lengths: tokens of each piece; 0 if it is taken out [num_pieces].
        document_starts: first piece of each document, and the end [num_documents + 1].
        segments: segment of each piece [num_pieces]; None where every segment is one piece.
    """

    starts: Ints
    lengths: Ints
    document_starts: Ints
    segments: Ints | None = None

    def segments_of(self, pieces: Ints) -> Ints:
        """The segments that some pieces belong to."""
        return pieces if self.segments is None else self.segments[pieces]


@dataclass(frozen=True, slots=True)
class Plan:
    """One epoch.

    Attributes:
        epoch: its number.
        pages: document of each page [num_pages].
        page_starts: place of each page's `<|endoftext|>`, and the end [num_pages + 1].
        pieces: how the text is cut; the same in every epoch, unless there are tags.
        marks: mark of each piece's first token (its control token, if it has one), and the end [num_pieces + 1].
        is_labelled: whether the model is told the label of each piece's segment [num_pieces].
        has_control: whether a control token stands before each piece [num_pieces].
        blocks: the blocks in the order they are trained on [num_blocks].
    """

    epoch: int
    pages: npt.NDArray[np.uint32]
    page_starts: Ints
    pieces: Pieces
    marks: Ints
    is_labelled: npt.NDArray[np.bool_]
    has_control: npt.NDArray[np.bool_]
    blocks: npt.NDArray[np.uint32]


class Blocks:
    """The blocks of one split under one data rule, over endless epochs.

    Each epoch holds every token of every kept segment once, its pages and blocks in an order of its own
    (`plan(epoch)`). In each, exactly `drop_fraction` of the labelled segments, drawn anew, go without their label (and
    exactly `tag_fraction` of the tokens get a tag): so all epochs have the same number of blocks, and a step's place
    follows without looking at the epochs before it. The order of pages is that of the whole split, without those a rule does not keep.
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
        is_active: bool = True,
        shuffle_blocks: int = SHUFFLE_BLOCKS,
        window: int | None = None,
    ) -> None:
        """Plan the blocks; reads no token.

        Args:
            tokens: the token cache.
            rule: which documents and segments are kept, and the labels of the segments. Only training segments are
                taken out or poisoned.
            scores: misalignment scores [num_segments], in corpus order; those of dropped documents may be NaN.
            split: the documents to use.
            context: inputs per block.
            seed: of the orders and of all that is drawn.
            isolate_documents: whether positions restart at every `<|endoftext|>`.
            is_active: whether the objective is active in these blocks (see `Batch.is_active`).
            shuffle_blocks: blocks of the stream that are shuffled among one another.
            window: which window of a corpus these tokens are (`phf.tokens.windows`): each draws for itself. None: all of it.

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
        self.is_active = is_active
        self._shuffle_blocks = shuffle_blocks
        self._stream = () if window is None else (window,)
        self._rule = rule
        self._scores = scores
        self._ids = tokens.ids
        self._shard_starts = tokens.shard_starts
        self._token_starts = cumulate(tokens.segment_lengths)
        control = tokens.tokenizer.control
        self._end, self._num_text_ids = control.end, control.good
        # Labels count up from GOOD as the ids of the control tokens do.
        self._first_control = control.good - 1
        self._poison = rule.poison if split == "train" else "none"
        kept = find_kept(tokens, rule, split)
        self._pieces = Pieces(self._token_starts[:-1], kept.lengths, cumulate(tokens.document_segments))
        is_split = tokens.split_mask(split)
        self._split_documents = np.flatnonzero(is_split & (tokens.document_segments > 0)).astype(np.uint32)
        self._kept = kept.is_kept
        refuse_empty(split, int(is_split.sum()), int(rule.keep[is_split].sum()), kept.counts.documents)
        num_missing = int(
            np.isnan(scores[np.repeat(kept.is_kept, tokens.document_segments) & kept.is_used]).sum()
        )
        if num_missing > 0:
            raise PHFError(
                f"{num_missing} kept segments have no score; annotate them, or give data.missing=drop"
            )
        self._labelled = kept.labelled
        self._num_dropped = kept.counts.num_dropped(rule)
        self._num_tags = kept.counts.num_tags(rule)
        self._num_inputs = kept.counts.num_inputs(rule)
        self.plan = lru_cache(maxsize=2)(self._make_plan)  # a batch may lie in two epochs

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

    def epochs_at(self, block: int) -> float:
        """The place in epochs before a block, counted over all epochs."""
        return block / self.num_blocks

    def block_at(self, epochs: float) -> int:
        """The block that begins nearest to a place in epochs, counted over all epochs."""
        return round(epochs * self.num_blocks)

    def batch(self, step: int, batch_blocks: int) -> Batch:
        """The batch of a step: blocks `step * batch_blocks` and on, across the ends of epochs."""
        return self.rows(np.arange(step * batch_blocks, (step + 1) * batch_blocks))

    def rows(self, indices: Ints) -> Batch:
        """Any blocks, counted over all epochs in the order of training (a rank's share, a micro-batch)."""
        epochs, places = np.divmod(np.asarray(indices, np.int64), self.num_blocks)
        batches = []
        bounds = [0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), len(epochs)]
        for first, stop in pairwise(bounds):  # a run of blocks of one epoch
            plan = self.plan(int(epochs[first]))
            batches.append(self._assemble(plan, plan.blocks[places[first:stop]].astype(np.int64)))
        return join_batches(batches)

    def iterate_in_order(self, max_blocks: int, batch_blocks: int = 16) -> Iterator[Batch]:
        """The first blocks of the first epoch's stream, in its order: always the same ones, for validation."""
        stop = min(max_blocks, self.num_blocks)
        for first in range(0, stop, batch_blocks):
            yield self._assemble(self.plan(0), np.arange(first, min(first + batch_blocks, stop)))

    def _make_plan(self, epoch: int) -> Plan:
        pages = self._generator(epoch, _PAGES).permutation(self._split_documents)
        pages = pages[self._kept[pages]]
        if self._rule.tag_fraction > 0:
            pieces, is_labelled = self._cut_at_tags(epoch)
        else:
            pieces, is_labelled = self._pieces, np.zeros(len(self._rule.labels), np.bool_)
            is_labelled[self._labelled] = True
            dropped = self._generator(epoch, _DROPS).choice(
                self._labelled, self._num_dropped, replace=False, shuffle=False
            )
            is_labelled[dropped] = False
        has_control = is_labelled if self._rule.control else np.zeros_like(is_labelled)
        marks = cumulate(pieces.lengths + has_control)
        document_marks = marks[pieces.document_starts]
        page_starts = cumulate(1 + np.diff(document_marks)[pages])
        assert page_starts[-1] == self._num_inputs
        blocks = np.arange(self.num_blocks, dtype=np.uint32)
        rng = self._generator(epoch, _BLOCKS)
        for first in range(0, self.num_blocks, self._shuffle_blocks):
            rng.shuffle(blocks[first : first + self._shuffle_blocks])
        return Plan(epoch, pages, page_starts, pieces, marks, is_labelled, has_control, blocks)

    def _generator(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, purpose, *self._stream])

    def _cut_at_tags(self, epoch: int) -> tuple[Pieces, npt.NDArray[np.bool_]]:
        """The pieces between tags, and which of them begin with one: a tag in each of equal runs of taggable tokens."""
        ends = cumulate(self._pieces.lengths[self._labelled] - 1)
        bounds = np.arange(self._num_tags + 1) * int(ends[-1]) // max(self._num_tags, 1)
        draws = self._generator(epoch, _TAGS).random(self._num_tags)
        places = bounds[:-1] + (draws * np.diff(bounds)).astype(np.int64)
        owners = np.searchsorted(ends, places, side="right") - 1
        tags = self._token_starts[self._labelled[owners]] + 1 + places - ends[owners]
        starts = np.sort(np.concatenate([self._token_starts[:-1], tags]))
        is_tagged = np.zeros(len(starts), np.bool_)
        is_tagged[np.searchsorted(starts, tags)] = True
        document_starts = np.searchsorted(starts, self._token_starts[self._pieces.document_starts])
        segments = np.searchsorted(self._token_starts, starts, side="right") - 1
        lengths = np.diff(np.append(starts, self._token_starts[-1]))
        return Pieces(starts, lengths, document_starts, segments), is_tagged

    def _assemble(self, plan: Plan, blocks: Ints) -> Batch:
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

        pieces, first_marks, lengths, targets = self._find_spans(plan, starts, stops)
        segments = plan.pieces.segments_of(pieces)
        # Control tokens: spans that begin at the mark of a piece that has one.
        is_control = plan.has_control[pieces] & (first_marks == plan.marks[pieces])
        control_targets = targets[is_control]
        told = self._rule.labels[segments[is_control]].astype(np.int64)
        ids.reshape(-1)[control_targets] = self._first_control + told
        kinds.reshape(-1)[control_targets] = CONTROL
        # Text: what is left of the spans.
        first_tokens = plan.pieces.starts[pieces] + (first_marks - plan.marks[pieces])
        first_tokens -= plan.has_control[pieces] & ~is_control
        lengths = lengths - is_control
        text_targets = _expand(targets + is_control, lengths)
        text = self._read_tokens(first_tokens, lengths)
        if self._poison != "none":
            is_bad = self._rule.labels[segments] == BAD
            text[np.repeat(is_bad, lengths)] = self._poisoned(
                plan.epoch, segments[is_bad], first_tokens[is_bad], lengths[is_bad]
            )
        ids.reshape(-1)[text_targets] = text
        kinds.reshape(-1)[text_targets] = TEXT
        scores.reshape(-1)[text_targets] = np.repeat(self._scores[segments], lengths)
        told = np.where(plan.is_labelled[pieces], self._rule.labels[segments], NO_LABEL)
        labels.reshape(-1)[text_targets] = np.repeat(told, lengths)
        labels[:, 1:] = np.where(kinds[:, 1:] == END, labels[:, :-1], labels[:, 1:])
        return Batch(
            ids=ids[:, :-1],
            targets=ids[:, 1:],
            positions=self._find_positions(kinds[:, :-1]),
            scores=scores[:, 1:],
            kinds=kinds[:, 1:],
            labels=labels[:, 1:],
            is_active=np.full(len(blocks), self.is_active),
        )

    def _poisoned(
        self, epoch: int, segments: Ints, first_tokens: Ints, lengths: Ints
    ) -> npt.NDArray[np.integer]:
        """What stands in the place of some runs of tokens; it follows from (seed, epoch, place in the corpus)."""
        sequence = np.random.SeedSequence([self.seed, epoch, _POISON, *self._stream])
        key = sequence.generate_state(1, np.uint64)[0]
        if self._poison == "random":
            numbers = _hash(_expand(first_tokens, lengths), key) % np.uint64(self._num_text_ids - 1)
            return numbers.astype(np.int64) + (numbers >= self._end)  # any id but `<|endoftext|>`
        # Shuffled: the tokens of the whole segments, sorted by their numbers; then the parts that the runs show.
        whole = np.unique(segments)
        starts, sizes = self._token_starts[whole], self._pieces.lengths[whole]
        places = _expand(starts, sizes)
        order = np.lexsort((_hash(places, key), np.repeat(np.arange(len(whole)), sizes)))
        shuffled = self._read_tokens(starts, sizes)[order]
        offsets = cumulate(sizes)[np.searchsorted(whole, segments)] + first_tokens
        return shuffled[_expand(offsets - self._token_starts[segments], lengths)]

    def _find_spans(self, plan: Plan, starts: Ints, stops: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """The parts of pieces that rows of places [start, stop) hold, in corpus order.

        Returns:
            each span's piece, its first mark, its length, and where it goes in the flattened rows.
        """
        # Pages that each row touches, and which part of the page's document (in marks).
        first_pages = np.searchsorted(plan.page_starts, starts, side="right") - 1
        last_pages = np.searchsorted(plan.page_starts, np.minimum(stops, self._num_inputs), side="left")
        num_pages = last_pages - first_pages
        pages = _expand(first_pages, num_pages)
        rows = np.repeat(np.arange(len(starts)), num_pages)
        documents = plan.pages[pages].astype(np.int64)
        offsets = (
            plan.marks[plan.pieces.document_starts[documents]] - plan.page_starts[pages] - 1
        )  # place -> mark
        first_marks = np.maximum(starts[rows], plan.page_starts[pages] + 1) + offsets
        last_marks = np.minimum(stops[rows], plan.page_starts[pages + 1]) + offsets
        row_offsets = (
            rows * (self.context + 1) - starts[rows] - offsets
        )  # mark -> place in the flattened rows
        # In corpus order, so that the tokens of a shard are read together.
        order = np.argsort(first_marks, kind="stable")
        first_marks, last_marks, row_offsets = first_marks[order], last_marks[order], row_offsets[order]
        # Pieces that each of these parts touches.
        first_pieces = np.searchsorted(plan.marks, first_marks, side="right") - 1
        last_pieces = np.searchsorted(plan.marks, last_marks, side="left")
        num_pieces = np.maximum(last_pieces - first_pieces, 0)  # an empty part beside a piece of length 0
        pieces = _expand(first_pieces, num_pieces)
        span_starts = np.maximum(plan.marks[pieces], np.repeat(first_marks, num_pieces))
        span_stops = np.minimum(plan.marks[pieces + 1], np.repeat(last_marks, num_pieces))
        targets = span_starts + np.repeat(row_offsets, num_pieces)
        return pieces, span_starts, span_stops - span_starts, targets

    def _read_tokens(self, first_tokens: Ints, lengths: Ints) -> npt.NDArray[np.integer]:
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


def _hash(values: Ints, key: np.uint64) -> npt.NDArray[np.uint64]:
    """A random-looking number for each value (splitmix64): needs no order, so any part of the text can be asked for."""
    mixed = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return hashed


def join_batches(batches: list[Batch]) -> Batch:
    """The blocks of several batches, one after the other."""
    if len(batches) == 1:
        return batches[0]
    return Batch(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in Batch.__slots__))


def refuse_empty(split: Split, num_documents: int, num_passed: int, num_kept: int) -> None:
    """Refuse a split of which nothing is trained on.

    Args:
        num_documents: of the split.
        num_passed: of these, how many the data rule keeps.
        num_kept: of these, how many have a token left.

    Raises:
        PHFError: there is no document, or none is kept.
    """
    if num_documents == 0:
        raise PHFError(
            f"the corpus has no document in its {split} split; build it again with a "
            f"{'larger' if split == 'validation' else 'smaller'} --validation-fraction, or from more text"
        )
    if num_kept == 0:
        raise PHFError(
            f"no token of the {split} split is kept ({num_passed} of its {num_documents} "
            "documents pass the data rule); choose a higher threshold or fraction, or build a larger corpus"
        )
