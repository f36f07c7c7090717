"""Blocks of a corpus that is larger than memory: laid out window by window (docs/design/0012-windows.md).

A window is some whole shards, dealt by the seed; a corpus of one window is laid out by `Blocks` alone. Of all windows only
sums are kept, of one its arrays.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from phf.records import Batch, DataRule, Split
from phf.tokens import tokens as token_cache
from phf.tokens.blocks import Blocks, Ints, join_batches, refuse_empty
from phf.tokens.kept import Counts
from phf.tokens.splitter import cumulate
from phf.tokens.tokens import TokenCache

OpenWindow = Callable[[Ints], tuple[TokenCache, DataRule, npt.NDArray[np.float32]]]
"""The tokens of some shards, what the data rule does to them, and their scores."""


class BlockSettings(TypedDict):
    """What `Blocks` is told beside the data; see there."""

    context: int
    seed: int
    isolate_documents: bool
    is_active: bool


_DEAL, _WINDOWS = 5, 6  # beside what `phf.tokens.blocks` draws


def deal_windows(tokens: TokenCache, seed: int | None) -> list[Ints]:
    """The shards of each window: as many as hold `WINDOW_ROWS` segments and documents, at least one.

    Args:
        seed: neighbours in the corpus, which may be of one source, come into different windows; None: they stay together.
    """
    rows = np.array([entry["num_segments"] + entry["num_documents"] for entry in tokens.shards])
    order = np.arange(len(rows))
    if seed is not None:
        order = np.random.default_rng([seed, 0, _DEAL]).permutation(order)
    windows: list[list[int]] = [[]]
    for shard in order.tolist():
        if windows[-1] and rows[[*windows[-1], shard]].sum() > token_cache.WINDOW_ROWS:
            windows.append([])
        windows[-1].append(shard)
    return [np.sort(window) for window in windows]


class WindowedBlocks:
    """What `Blocks` is for a corpus of one window: blocks of one split under one data rule, over endless epochs.

    The windows of an epoch come in an order of its own, one after the other; each ends with a padded block. In memory
    lies the window that was read last.
    """

    def __init__(
        self,
        tokens: TokenCache,
        rule: DataRule,
        counts: npt.NDArray[np.int64],
        open_window: OpenWindow,
        *,
        split: Split,
        **settings: Unpack[BlockSettings],
    ) -> None:
        """Plan the windows; reads nothing of them.

        Args:
            tokens: the token cache.
            rule: the data rule's settings; its arrays are not read.
            counts: `Counts` of each shard [num_shards, 4].
            open_window: reads some shards.
            split, settings: see `Blocks`.

        Raises:
            PHFError: no token is kept.
        """
        self.context, self.seed = settings["context"], settings["seed"]
        self._open_window, self._split, self._settings = open_window, split, settings
        self._windows = deal_windows(tokens, self.seed)
        refuse_empty(split, tokens.num_documents, tokens.num_documents, int(counts[:, 0].sum()))
        self._num_inputs = np.array(
            [Counts(*counts[window].sum(axis=0).tolist()).num_inputs(rule) for window in self._windows]
        )
        self._num_blocks = -(-self._num_inputs // self.context)
        # A part of an epoch is the same shards under every data rule: places are counted in tokens before any is dropped.
        shares = np.array([sum(tokens.shards[shard]["num_tokens"] for shard in own) for own in self._windows])
        self._shares = shares / shares.sum()
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._opened: tuple[int, Blocks] | None = None

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return len(self._windows)

    @property
    def num_tokens_per_epoch(self) -> int:
        """Model inputs of an epoch: text, control tokens, and one `<|endoftext|>` per page."""
        return int(self._num_inputs.sum())

    @property
    def num_blocks(self) -> int:
        """Blocks of an epoch; the last one of each window is padded."""
        return int(self._num_blocks.sum())

    def epochs(self, budget: int) -> float:
        """Epochs that a budget of model inputs makes."""
        return budget / self.num_tokens_per_epoch

    def epochs_at(self, block: int) -> float:
        """The place in epochs before a block, counted over all epochs."""
        epoch, place = divmod(block, self.num_blocks)
        order, starts = self._order(epoch)
        owner = int(np.searchsorted(starts, place, side="right")) - 1
        within = (place - starts[owner]) / self._num_blocks[order[owner]]
        shares = self._shares[order]
        return float(epoch + shares[:owner].sum() + within * shares[owner])

    def block_at(self, epochs: float) -> int:
        """The block that begins nearest to a place in epochs, counted over all epochs."""
        epoch = int(epochs)
        order, starts = self._order(epoch)
        ends = np.cumsum(self._shares[order])
        owner = min(int(np.searchsorted(ends, epochs - epoch, side="right")), len(order) - 1)
        share = self._shares[order[owner]]
        within = (epochs - epoch - (ends[owner] - share)) / share if share > 0 else 0.0
        return int(epoch * self.num_blocks + starts[owner] + round(within * self._num_blocks[order[owner]]))

    def batch(self, step: int, batch_blocks: int) -> Batch:
        """The batch of a step: blocks `step * batch_blocks` and on, across the ends of windows and epochs."""
        return self.rows(np.arange(step * batch_blocks, (step + 1) * batch_blocks))

    def rows(self, indices: Ints) -> Batch:
        """Any blocks, counted over all epochs in the order of training (a rank's share, a micro-batch)."""
        epochs, places = np.divmod(np.asarray(indices, np.int64), self.num_blocks)
        owners = np.empty_like(places)
        for epoch in np.unique(epochs):
            order, starts = self._order(int(epoch))
            chosen = epochs == epoch
            found = np.searchsorted(starts, places[chosen], side="right") - 1
            owners[chosen] = order[found]
            places[chosen] -= starts[found]
        batches = []
        is_new = (np.diff(epochs) != 0) | (np.diff(owners) != 0)
        for first, stop in pairwise([0, *(np.flatnonzero(is_new) + 1).tolist(), len(epochs)]):
            blocks = self._open(int(owners[first]))
            batches.append(blocks.rows(epochs[first] * blocks.num_blocks + places[first:stop]))
        return join_batches(batches)

    def iterate_in_order(self, max_blocks: int, batch_blocks: int = 16) -> Iterator[Batch]:
        """The first blocks of the first epoch's stream, in its order: always the same ones, for validation."""
        for window in self._order(0)[0]:
            if max_blocks <= 0:
                break
            if self._num_blocks[window] > 0:
                yield from self._open(int(window)).iterate_in_order(max_blocks, batch_blocks)
                max_blocks -= int(self._num_blocks[window])
        self._opened = None  # training needs the memory

    def _draw_order(self, epoch: int) -> tuple[Ints, Ints]:
        """The windows of an epoch in their order, and the first block of each, which follow one another."""
        order = np.random.default_rng([self.seed, epoch, _WINDOWS]).permutation(len(self._windows))
        return order, cumulate(self._num_blocks[order])[:-1]

    def _open(self, window: int) -> Blocks:
        if self._opened is None or self._opened[0] != window:
            self._opened = None  # before the next one takes memory
            tokens, rule, scores = self._open_window(self._windows[window])
            blocks = Blocks(tokens, rule, scores, split=self._split, window=window, **self._settings)
            assert blocks.num_tokens_per_epoch == self._num_inputs[window]
            self._opened = window, blocks
        return self._opened[1]


AnyBlocks = Blocks | WindowedBlocks
