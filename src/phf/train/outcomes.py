"""What came out of a step, read without making a GPU wait: one step late there."""

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from phf.train.checkpoint import TrainState


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one step: loss, norm of the gradient before clipping, effective sample share of the weights."""

    loss: float
    norm: float
    share: float

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken; else it was skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def step_if_finite(optimizers: list[Optimizer], loss: Tensor, norm: Tensor) -> None:
    """Take the step unless loss or norm is not finite: decided on the device, where the optimizer can.

    Fused optimizers obey `found_inf`, which torch's gradient scaler sets.
    """
    is_finite = torch.isfinite(loss) & torch.isfinite(norm)
    skip = (~is_finite).to(torch.float32)
    for optimizer in optimizers:
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
        elif bool(is_finite):  # Muon: one wait a step
            optimizer.step()


class Outcomes:
    """The outcomes of the latest steps, on their way from the device."""

    def __init__(self, state: TrainState, *, lag: int) -> None:
        """`state` counts the skipped steps; `lag` outcomes may be on their way at once."""
        self._state = state
        self._lag = lag
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self.last: Outcome | None = None

    def put(self, loss: Tensor, norm: Tensor, share: Tensor) -> None:
        """Start a step's outcome on its way, and count what has arrived."""
        values = torch.stack([loss.double(), norm.double(), share.double()])
        event = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending.append((values, event))
        self._count(self._lag)

    def settle(self) -> None:
        """Wait for all steps, so that the state says how many of them were skipped."""
        self._count(0)

    def read(self) -> Outcome:
        """The latest step's outcome; waits for it."""
        self.settle()
        assert self.last is not None
        return self.last

    def _count(self, num_left: int) -> None:
        while len(self._pending) > num_left:
            values, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            self.last = Outcome(*values.tolist())
            self._state.count(is_finite=self.last.is_finite)
