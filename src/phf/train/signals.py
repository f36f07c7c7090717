"""SIGTERM and SIGINT during training: the step is finished and saved, then the run stops."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Stopped(KeyboardInterrupt):
    """Training stopped because a signal asked for it; all steps taken are saved. The text says how to go on.

    A KeyboardInterrupt, so that no `except Exception` on the way takes it for a failure.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """128 + the signal: not 0, so that Slurm's `--dependency=afterok` and `&&` do not take the run for finished."""
        return 128 + self.signal_number


class StopSignals:
    """Within it, the first SIGTERM or SIGINT is noted in `received`; a second SIGINT interrupts at once.

    Outside the main thread, where Python allows no handlers, signals keep their usual meaning.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
