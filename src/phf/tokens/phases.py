"""The training blocks of a run: its objective's, and plain MLE's before and after the objective is active.

The phases of a run read one stream of pages: where one stops, the next goes on, with its own layout (control tokens,
filters). The place that carries over is counted in epochs, because a block of one layout is not a block of the other.
All is a pure function of the config and the step, so resuming needs no state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phf.records import Batch
from phf.tokens.blocks import Ints, join_batches
from phf.tokens.windows import AnyBlocks


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run with one layout of blocks.

    Attributes:
        blocks: what it reads.
        first_row: the run's block at which it begins.
        offset: which of its own blocks that is, counted over epochs.
    """

    blocks: AnyBlocks
    first_row: int
    offset: int

    def epochs_at(self, row: int) -> float:
        """The place in epochs before a block of the run."""
        return self.blocks.epochs_at(self.offset + row - self.first_row)


class TrainingBlocks:
    """Blocks of a run in the order of training, across its phases."""

    def __init__(
        self, starts: Sequence[tuple[int, AnyBlocks]], *, first_row: int = 0, first_epoch: float = 0.0
    ) -> None:
        """Lay phases one after the other.

        Args:
            starts: for each phase its first block in the budget (the first phase: 0) and its layout.
            first_row: the block of the budget at which this run begins; those before were another run's.
            first_epoch: the place in epochs there: where the other run has stopped (`place`).
        """
        last = max(index for index, (row, _) in enumerate(starts) if row <= first_row)
        self._phases: list[Phase] = []
        for row, blocks in starts[last:]:
            row = max(row, first_row)
            epochs = self._phases[-1].epochs_at(row) if self._phases else first_epoch
            self._phases.append(Phase(blocks, row, blocks.block_at(epochs)))
        self._first_rows = np.array([phase.first_row for phase in self._phases])

    def batch(self, step: int, batch_blocks: int) -> Batch:
        """The batch of a step: blocks `step * batch_blocks` and on."""
        return self.rows(np.arange(step * batch_blocks, (step + 1) * batch_blocks))

    def rows(self, indices: Ints) -> Batch:
        """Any blocks of the run, in the order of training (a rank's share, a micro-batch)."""
        indices = np.asarray(indices, np.int64)
        owners = np.searchsorted(self._first_rows, indices, side="right") - 1
        batches = []
        for owner in np.unique(owners):  # in order: blocks are asked for in the order of training
            phase = self._phases[owner]
            batches.append(phase.blocks.rows(phase.offset + indices[owners == owner] - phase.first_row))
        return join_batches(batches)

    @property
    def num_tokens_per_epoch(self) -> int:
        """Model inputs of an epoch in the layout that the run begins with."""
        return self._phases[0].blocks.num_tokens_per_epoch

    def place(self, row: int) -> float:
        """The place in epochs before a block of the budget: the `first_epoch` of a run that goes on from there."""
        owner = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return self._phases[owner].epochs_at(row)

    def epochs(self, budget: int) -> float:
        """Epochs that a budget of model inputs ends at."""
        return self.place(-(-budget // self._phases[0].blocks.context))
