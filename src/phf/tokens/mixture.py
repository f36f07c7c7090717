"""Training blocks of which a share comes from other corpora, such as text that the model has written."""

from collections.abc import Sequence

import numpy as np

from phf.records import Batch
from phf.tokens.blocks import Ints, join_batches
from phf.tokens.phases import TrainingBlocks
from phf.tokens.windows import AnyBlocks


class MixedBlocks(TrainingBlocks):
    """Blocks of a run, some of them from other corpora. Its own go on as if those did not stand between them.

    Counted from the run's first block, block r is another corpus's where floor((r + 1) share) is above floor(r share): evenly
    spread, and a pure function of the config and the step. The other corpora take turns, each in an order and with epochs of
    its own.
    """

    def __init__(
        self,
        starts: Sequence[tuple[int, AnyBlocks]],
        others: Sequence[AnyBlocks],
        share: float,
        *,
        first_row: int = 0,
        first_epoch: float = 0.0,
    ) -> None:
        """For `starts`, `first_row` and `first_epoch` see `TrainingBlocks`.

        Args:
            others: the blocks of each other corpus.
            share: of the run's blocks that are theirs, in (0, 1].
        """
        super().__init__(starts, first_row=first_row, first_epoch=first_epoch)
        self._others, self._share, self._first_row = others, share, first_row

    def rows(self, indices: Ints) -> Batch:
        """Any blocks of the run, in the order of training."""
        rows = np.asarray(indices, np.int64) - self._first_row
        theirs = np.floor(rows * self._share).astype(np.int64)  # of the blocks before each
        is_theirs = np.floor((rows + 1) * self._share).astype(np.int64) > theirs
        batches, places = [], []
        if not is_theirs.all():
            batches.append(super().rows((self._first_row + rows - theirs)[~is_theirs]))
            places.append(np.flatnonzero(~is_theirs))
        turns, numbers = np.divmod(theirs, len(self._others))
        for number, blocks in enumerate(self._others):
            if (chosen := is_theirs & (numbers == number)).any():
                batches.append(blocks.rows(turns[chosen]))
                places.append(np.flatnonzero(chosen))
        order = np.argsort(np.concatenate(places))
        joined = join_batches(batches)
        return Batch(*(getattr(joined, name)[order] for name in Batch.__slots__))

    def place(self, row: int) -> float:
        """The place in epochs of the run's own corpus before a block of the budget."""
        after = row - self._first_row
        return super().place(row - int(np.floor(after * self._share)))
