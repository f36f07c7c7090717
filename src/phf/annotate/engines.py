"""The local engine of annotate: turns scored in order, in this process or by a pool of processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.queues import SimpleQueue
from types import FrameType

import pyarrow as pa
from threadpoolctl import threadpool_limits

from phf.annotate.annotation_writer import ScoredDocuments
from phf.annotate.scorer import Scorer, ScorerArguments, Turn, load_scorer
from phf.errors import PHFError
from phf.processes import end_with_parent

_Scored = Generator[ScoredDocuments, None, None]

# Enough that the workers have work while this process writes and flushes a shard: with 4, two workers did 1.73 times the
# work of one, with 16 1.83 times (docs/log.md).
_TURNS_AHEAD = 16


def score_in_order(
    turns: Sequence[Turn], scorer: Scorer, workers: int, timeout: float, isolated: bool = False
) -> _Scored:
    """Score turns by a number of processes (1 is this one), and give the results in the order of the turns.

    Args:
        isolated: let also a single worker be a process of its own.
        timeout: seconds that one turn may take; a worker that takes longer is killed.

    Raises:
        PHFError: the reward model fails on a document or hangs; a worker was killed. Names the documents.
    """
    _import_pandas()
    if workers <= 1 and not isolated:
        for turn in turns:
            yield score_within(scorer, turn, timeout)
    else:
        yield from _score_in_pool(turns, scorer, workers, timeout)


def _import_pandas() -> None:
    """Let Arrow import pandas, as it does at its first array. It swallows a Ctrl-C or SIGTERM that comes meanwhile: these wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        pa.array([0])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _TimeUp(BaseException):
    """Raised wherever a reward model hangs; no `except Exception` on the way may take it for a failure of the model."""


def score_within(scorer: Scorer, turn: Turn, timeout: float) -> ScoredDocuments:
    """Score a turn in this process. Signals reach the main thread alone: elsewhere there is no limit.

    Raises:
        PHFError: the model fails on a document, or takes longer than `timeout` seconds.
    """
    try:
        with _limit_time(timeout), threadpool_limits(1):  # a worker is one core here too
            return scorer.score(turn)
    except _TimeUp:
        raise _explain_hang(scorer, turn, timeout) from None


@contextmanager
def _limit_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TimeUp

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def _explain_hang(scorer: Scorer, turn: Turn, timeout: float) -> PHFError:
    return PHFError(
        f"reward model {scorer.model.identity.name} gave no scores in {timeout:g} s for {scorer.describe(turn)} and was "
        "stopped; look at these documents, or give more seconds with --timeout"
    )


def _score_in_pool(turns: Sequence[Turn], scorer: Scorer, workers: int, timeout: float) -> _Scored:
    """Never more than `_TURNS_AHEAD` turns per worker ahead of what is consumed, which bounds memory."""
    # spawn: fork would copy the threads' locks of pyarrow and the BLAS libraries in whatever state they are.
    context = multiprocessing.get_context("spawn")
    processes = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(processes,))
    remaining = iter(turns)
    waiting: deque[tuple[Turn, Future[ScoredDocuments]]] = deque()
    try:
        while True:
            for turn in islice(remaining, _TURNS_AHEAD * workers - len(waiting)):
                waiting.append((turn, pool.submit(_score_turn, scorer.arguments, turn)))
            if not waiting:
                return
            turn, scored = waiting.popleft()
            # The oldest turn: it has been at work at least since the one before it came.
            yield scored.result(timeout)
    except TimeoutError:
        if scored.done():  # of the worker, on its way to a file
            raise
        while not processes.empty():
            os.kill(processes.get(), signal.SIGKILL)
        raise _explain_hang(scorer, turn, timeout) from None
    except BrokenProcessPool:
        raise PHFError(
            f"a worker process was killed (out of memory?) or crashed in reward model {scorer.model.identity.name} at "
            f"{scorer.describe(turn)} or soon after; run the same command again to go on, perhaps with fewer --workers; a Python "
            "script needs: if __name__ == '__main__':"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _score_turn(arguments: ScorerArguments, turn: Turn) -> ScoredDocuments:
    return load_scorer(arguments).score(turn)


def _begin_worker(processes: "SimpleQueue[int]") -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent is killed, instead of waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Each worker is a core. Torch reads this when the reward model imports it; with a thread per core in each worker
    # a recurrent model ran several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    processes.put(os.getpid())
    end_with_parent()
