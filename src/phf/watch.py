"""The command in a child of this process, which tells how it ended if code that is not ours ended it without a word: by a crash, or by
an exit that Python does not see.

Linux only, where a child can be made to end with its parent; elsewhere a command runs as it is.
"""

import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SIZE = 512
_PR_SET_PDEATHSIG = 1
_at_work: mmap.mmap | None = None
"""What the watched process is in the middle of; it shares this memory with the one that watches."""
_watched = -1


@contextmanager
def note_work(what: str) -> Iterator[None]:
    """Leave word, for as long as this takes, of whose code is at work."""
    if _at_work is None or os.getpid() != _watched:  # nobody watches, or a process that the code forked
        yield
        return
    before = _at_work[:]
    _at_work[:] = what.encode(errors="replace")[:_SIZE].ljust(_SIZE, b"\0")
    try:
        yield
    finally:
        _at_work[:] = before


def watch() -> None:
    """Go on in a child. This process waits for it, passes signals on, and ends as it ends: with a line on stderr and code 2 where it
    died within `note_work`.
    """
    global _at_work, _watched
    if not sys.platform.startswith("linux"):
        return
    _at_work, ours = mmap.mmap(-1, _SIZE), os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM))
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != ours:  # it has ended meanwhile
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _watched = os.getpid()
        return
    _end_as(_wait_for(child), _at_work[:].rstrip(b"\0").decode(errors="replace"))


def _wait_for(child: int) -> int:
    """The exit code of a child, negative for a signal; signals that a person's terminal has not sent to both go on to it."""
    while True:
        found = signal.sigwaitinfo((signal.SIGCHLD, signal.SIGINT, signal.SIGTERM))
        if found.si_signo != signal.SIGCHLD:
            if found.si_code <= 0:
                os.kill(child, found.si_signo)
        elif (ended := os.waitpid(child, os.WNOHANG))[0] == child:
            return os.waitstatus_to_exitcode(ended[1])


def _end_as(code: int, work: str) -> None:
    if work:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        out_of_memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        print(
            f"error: {work}: the process {how}{out_of_memory} in the middle of its work; mend it or give another one ('phf annotate "
            "--workers 2' says at which documents a reward model dies)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (-code,))
        os.kill(os.getpid(), -code)
    os._exit(code)
