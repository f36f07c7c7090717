"""Work side by side in processes of its own, which say and report as if they were this one."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Protocol

from phf.errors import PHFError

if TYPE_CHECKING:
    from phf.records import Progress  # with numpy, which `phf --help` waits for

_LIFELINE = "PHF_LIFELINE"


class Task(Protocol):
    """What a process does: a picklable callable, such as a partial of a module's function."""

    def __call__(self, *, say: Callable[[str], None], progress: "Progress") -> None:
        """Do it.

        Raises:
            PHFError: for the user; it ends all the others.
            KeyboardInterrupt: a signal asked to stop; what was done is saved.
        """


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_side_by_side(
    tasks: Mapping[str, Task],
    *,
    at_once: int,
    say: Callable[[str], None] = print,
    progress: "Progress | None" = None,
) -> None:
    """Run named tasks, so many at a time, each with its share of the cores; their lines and bars come through here.

    One thread a task does not slow down on a busy machine as several do, which wait for each other at every product: two
    threads on two loaded cores took several times as long.

    Raises:
        PHFError: of the first task that failed; or a process was killed. The others are asked to save and stop (SIGTERM).
    """
    threads = max(1, count_cores() // max(1, min(at_once, len(tasks))))
    context = multiprocessing.get_context("spawn")
    waiting = deque(tasks.items())
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, task = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_work, args=(task, theirs, threads), name=name)
                process.start()
                theirs.close()  # so that the pipe ends with the process
                running[ours] = name, process
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                _receive(pipe, running, say, progress)
    finally:
        for _, process in running.values():
            process.terminate()
        for pipe, (_, process) in running.items():
            pipe.close()
            process.join()


def _receive(
    pipe: Connection,
    running: dict[Connection, tuple[str, BaseProcess]],
    say: Callable[[str], None],
    progress: "Progress | None",
) -> None:
    """Pass on what a process says, or see how it has ended."""
    try:
        kind, *content = pipe.recv()
    except EOFError:
        name, process = running.pop(pipe)
        pipe.close()
        process.join()
        if process.exitcode:
            raise PHFError(
                f"{name}: its process ended with code {process.exitcode} (out of memory?); run the same command again to go on"
            ) from None
        return
    if kind == "say":
        say(*content)
    elif kind == "progress" and progress is not None:
        progress(*content)
    elif kind == "error":
        raise PHFError(*content)
    elif kind == "stopped":
        raise KeyboardInterrupt


def _work(task: Task, pipe: Connection, threads: int) -> None:
    """In the new process: the task, with what it says sent to the first one."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read when torch is imported, which the task does
    end_with_parent()
    # Until the task handles signals itself, as training does: a stop is passed on, so that no traceback is shown.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def send(*message: object) -> None:
        with suppress(OSError):  # the first process has stopped listening: it waits for this one to save
            pipe.send(message)

    try:
        task(say=lambda line: send("say", line), progress=lambda *call: send("progress", *call))
    except PHFError as error:
        send("error", str(error))
    except KeyboardInterrupt:
        send("stopped")


class Lifeline:
    """A pipe that processes are started with: they are asked to stop (SIGTERM) as soon as it is cut, or whoever holds it is
    gone, however that ended.

    Attributes:
        environment: tells them of it, in which file descriptor `handle` must be left open.
    """

    def __init__(self) -> None:
        self.handle, self._ours = os.pipe()
        self.environment = {_LIFELINE: str(self.handle)}

    def cut(self) -> None:
        """Ask all to stop."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def __enter__(self) -> "Lifeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        os.close(self.handle)


def stop_with_lifeline() -> None:
    """Ask this process to stop when the lifeline that it was started with, if any, has ended."""
    if (handle := os.environ.pop(_LIFELINE, None)) is None:
        return

    def watch() -> None:
        try:
            os.read(int(handle), 1)
        except (OSError, ValueError):  # it was not handed on
            return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
