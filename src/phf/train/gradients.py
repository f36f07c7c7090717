"""Gradients of a batch, in micro-batches that shrink when memory runs out."""

import re
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from phf.errors import PHFError
from phf.objectives import active_fractions
from phf.records import PAD, Batch
from phf.train.checkpoint import TrainState
from phf.train.data import TrainingData
from phf.train.distributed import DataParallel, Ranks, Trained, replicate
from phf.train.losses import loss_sum, slice_batch

Say = Callable[[str], None]

_CPU_ALLOCATOR = re.compile(r"DefaultCPUAllocator|not enough memory", re.IGNORECASE)


class CompileError(PHFError):
    """What compiles layers does not work here."""


class Gradients:
    """Computes the gradients of batches. The batch and its loss never depend on the micro-batches but by rounding."""

    def __init__(
        self,
        data: TrainingData,
        trained: Trained,
        ranks: Ranks,
        parallel: DataParallel,
        precision: str,
        state: TrainState,
        tell: Say,
    ) -> None:
        """With `ddp`, `trained` is replicated; with `fsdp` it is sharded already.

        Args:
            state: keeps the size of the micro-batches once it had to shrink, so that a resumed run rounds alike.
            tell: is told when it shrinks.
        """
        self._data, self._trained, self._ranks = data, trained, ranks
        self._precision, self._state, self._tell = precision, state, tell
        is_partial = active_fractions(data.config.objective) != (0, 1) or data.config.mix is not None
        has_idle = trained.value_head is not None and is_partial
        self._replicas = replicate(trained, has_idle=has_idle) if parallel == "ddp" else None
        # DDP's exchange cannot be taken back on one rank alone, so memory is tried without it first: in a process's
        # first step, which makes the optimizer states, and in its second, which has them.
        self._num_rehearsals = 2 if parallel == "ddp" else 0

    def compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Put the gradients of the whole batch into `.grad`.

        Args:
            batch: this rank's rows of it.

        Returns:
            the loss of the whole batch, and the effective sample share of its weights (mean over ranks), on the device.

        Raises:
            PHFError: memory does not suffice.
        """
        (num_targets,) = self._ranks.sum(int(np.count_nonzero(batch.kinds != PAD)))
        if self._num_rehearsals > 0:
            self._num_rehearsals -= 1
            while self._try(batch, num_targets, exchange=False) is None:
                self._halve(batch)
            self._trained.zero_grad(set_to_none=True)
        while True:
            result = self._try(batch, num_targets, exchange=True)
            if result is not None:
                return result
            self._halve(batch)

    def _try(self, batch: Batch, num_targets: float, *, exchange: bool) -> tuple[Tensor, Tensor] | None:
        """Loss and share, or None where memory ran out on any rank."""
        result = None
        try:
            result = self._accumulate(batch, num_targets, exchange=exchange)
        except (RuntimeError, MemoryError) as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                self._trained.zero_grad(set_to_none=True)
                raise CompileError(
                    f"torch.compile failed ({str(error).strip().splitlines()[0]}); phf train --resume RUN compile=off goes on"
                ) from error
            if not is_out_of_memory(error):
                raise
            if exchange and self._ranks.size > 1:
                raise PHFError(
                    f"rank {self._ranks.rank} ran out of memory with micro-batches of {self._micro_blocks(batch)} blocks; "
                    "go on with 'phf train --resume RUN optim.micro_batch_blocks=N', a lower one"
                ) from None
        if not exchange:
            (failed,) = self._ranks.highest(result is None)
            result = result if not failed else None
        if result is None:
            self._trained.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return result

    def _accumulate(self, batch: Batch, num_targets: float, *, exchange: bool) -> tuple[Tensor, Tensor]:
        trained, ranks, num_blocks = self._trained, self._ranks, len(batch.ids)
        run = self._replicas or trained
        micro_blocks = self._micro_blocks(batch)
        loss, share = torch.zeros((2,), dtype=torch.float64, device=trained.model.device)
        # A block is a row of the micro-batch. Rows are independent, so the split changes the loss by rounding only.
        for start in range(0, num_blocks, micro_blocks):
            is_last = start + micro_blocks >= num_blocks
            with (
                nullcontext()
                if self._replicas is None or (exchange and is_last)
                else self._replicas.no_sync()
            ):
                part, weight = run(
                    loss_sum,
                    trained.model,
                    trained.value_head,
                    self._data,
                    slice_batch(batch, slice(start, start + micro_blocks)),
                    self._precision,
                )
                part = part / num_targets
                (part * ranks.size).backward()  # DDP and FSDP take the mean over ranks
            loss += part.detach()
            share += weight * min(micro_blocks, num_blocks - start) / num_blocks
        if ranks.size == 1 or not exchange:
            return loss, share
        loss, share = ranks.sum_tensor(torch.stack([loss, share]))
        return loss, share / ranks.size

    def _micro_blocks(self, batch: Batch) -> int:
        limits = (self._state.micro_blocks, self._data.config.optim.micro_batch_blocks, len(batch.ids))
        return min(limit for limit in limits if limit is not None)

    def _halve(self, batch: Batch) -> None:
        size = self._micro_blocks(batch)
        if size == 1:
            raise PHFError(
                f"out of memory with micro-batches of 1 block of {batch.ids.shape[1]} tokens; give a smaller data.context "
                "or model, or more processes with data_parallel=fsdp"
            )
        self._state.micro_blocks = size // 2
        self._tell(
            f"out of memory with micro-batches of {size} blocks: going on with {size // 2}; batch and loss stay the same"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a GPU's or the CPU allocator's way of saying that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR.search(str(error)) is not None
