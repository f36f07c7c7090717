"""Where the lines of a run go: metrics.jsonl always, trackers of other makers beside it if the config names them."""

import importlib
import math
import os
from collections.abc import Callable
from types import ModuleType
from typing import Protocol, assert_never

from phf.config.train import Tracker
from phf.errors import PHFError
from phf.files import write_bytes
from phf.train.metrics import METRICS, Line, encode_lines, read_metrics
from phf.train.run import Run

Say = Callable[[str], None]


class Logger(Protocol):
    """Something that takes a run's lines."""

    def log(self, line: Line) -> None:
        """Take a line of metrics.jsonl: `kind`, `step`, `tokens` and numbers."""

    def flush(self) -> None:
        """Make sure that all lines are kept; called before each checkpoint."""

    def finish(self) -> None:
        """No line will follow in this process."""


class MetricsFile:
    """metrics.jsonl, one line each; numbers that are not finite are null."""

    def __init__(self, run: Run, step: int, say: Say) -> None:
        """Drops the lines that a stopped run wrote after the checkpoint it goes on from, and those that are damaged."""
        found = read_metrics(run.folder, run.id)
        kept = [
            line
            for line in found.lines
            if line["step"] < step or (line["step"] == step and line["kind"] == "train")
        ]
        path = run.folder / METRICS
        if found.num_damaged > 0:
            say(f"{found.num_damaged} damaged lines of {path} were dropped; the curves have gaps there")
        text, self._before = encode_lines(kept, run.id)
        self._run_id = run.id
        write_bytes(path, text.encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, line: Line) -> None:
        text, self._before = encode_lines([line], self._run_id, self._before)
        self._file.write(text)

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in the run folder, tokens on the x axis."""

    def __init__(self, run: Run, step: int) -> None:
        _import("tensorboard", "tensorboard")  # torch's writer names no package when it is missing
        writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = writer(str(run.folder / "tensorboard"), purge_step=step * run.tokens_per_step + 1)

    def log(self, line: Line) -> None:
        for name, value in _numbers(line).items():
            self._writer.add_scalar(name, value, line["tokens"])

    def flush(self) -> None:
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class Hosted:
    """wandb, or trackio, which has the same interface; a resumed run goes on under its id.

    trackio knows a run by its name alone, and would add one of another folder with that name to it: the id is in it.
    """

    def __init__(self, module: str, run: Run) -> None:
        self._module = _import(module, module)
        identity = (
            {"name": run.name, "id": run.id} if module == "wandb" else {"name": f"{run.name}-{run.id[:8]}"}
        )
        self._module.init(project="phf", config=run.record, resume="allow", **identity)

    def log(self, line: Line) -> None:
        self._module.log({**_numbers(line), "tokens": line["tokens"]}, step=line["step"])

    def flush(self) -> None:
        """They send on their own."""

    def finish(self) -> None:
        self._module.finish()


class Loggers:
    """All loggers of a run as one."""

    def __init__(self, loggers: list[Logger]) -> None:
        self._loggers = loggers

    def log(self, line: Line) -> None:
        """Hand a line to all; numbers that are not finite become None."""
        finite = {
            key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()
        }
        for logger in self._loggers:
            logger.log(finite)

    def flush(self) -> None:
        for logger in self._loggers:
            logger.flush()

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, *_: object) -> None:
        """Finish all, however the run ended."""
        for logger in self._loggers:
            logger.finish()


def open_loggers(run: Run, step: int, *, is_first: bool, say: Say = print) -> Loggers:
    """The loggers of a run that goes on from a step; on other ranks than the first none.

    Raises:
        PHFError: a tracker's package is not installed.
    """
    if not is_first:
        return Loggers([])
    return Loggers(
        [MetricsFile(run, step, say), *(_open_tracker(name, run, step) for name in run.config.trackers)]
    )


def check_trackers(names: tuple[Tracker, ...]) -> None:
    """Refuse a tracker that is not installed, before anything is written.

    Raises:
        PHFError: names the package and how to install it.
    """
    for name in names:
        _import(name, name)


def _open_tracker(name: Tracker, run: Run, step: int) -> Logger:
    match name:
        case "tensorboard":
            return TensorBoard(run, step)
        case "wandb" | "trackio":
            return Hosted(name, run)
        case _:
            assert_never(name)


def _import(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise PHFError(
            f"tracker {package} is not installed; 'pip install phf[{package}]', or leave it out of trackers"
        ) from None


def _numbers(line: Line) -> dict[str, float]:
    """What a chart can show, named after the line's kind: `train/loss`."""
    return {
        f"{line['kind']}/{key}": value
        for key, value in line.items()
        if key not in ("kind", "step", "tokens") and isinstance(value, int | float)
    }
