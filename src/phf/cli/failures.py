"""What the system refuses, in one line: memory, space on a disk, names that nothing can write."""

import errno
import os
import re
import resource

from phf.errors import PHFError
from phf.processes import count_cores

_MEMORY = re.compile(
    r"not enough memory|can(?:no|')t allocate memory|unable to allocate|out of memory|bad_alloc|can't start new thread"
    r"|failed to map segment|failed to launch worker thread",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"\((?:os error|errno) (\d+)\)", re.IGNORECASE
)  # of libraries whose errors are no OSError

_LIBRARY_BYTES, _CORE_BYTES = 1_750_000_000, 125_000_000
"""Address space that torch, scipy, scikit-learn and Arrow take to start, and that each thread of theirs does: measured at 1.8 GB for
`annotate` and 2.7 for `train` on two cores. With less they do not always fail: from 250 to 500 MB they hung or crashed by turns."""


def check_memory_limit() -> None:
    """Refuse a limit on address space (`ulimit -v`) under which the libraries may hang while they start their threads.

    Raises:
        PHFError: it is too low.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    need = _LIBRARY_BYTES + _CORE_BYTES * count_cores()
    if limit != resource.RLIM_INFINITY and limit < need:
        raise PHFError(
            f"not enough memory: this shell allows {limit / 1e9:.2f} GB of address space (ulimit -v), of which the libraries "
            f"need {need / 1e9:.2f} GB to start on {count_cores()} cores; raise it (ulimit -v unlimited)"
        )


def explain_failure(error: Exception) -> str | None:
    """A line on what failed and what to do; None for a bug of ours, which shows itself."""
    text = " ".join(str(error).split())
    found = _NUMBER.search(text)
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _MEMORY.search(text):
        return (
            f"not enough memory ({text or 'for one more object'}); free some, or hold less at once: fewer --workers, a lower "
            "optim.micro_batch_blocks or data.context in training, a lower sampling.batch_size in sampling"
        )
    if isinstance(error, OSError) or number is not None or "No space left on device" in text:
        name = getattr(error, "filename", None)
        reason = os.strerror(number) if number else getattr(error, "strerror", None) or text
        place = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes | os.PathLike) else ""
        return f"{place}{reason}; check the path, its permissions and the space on the disk"
    if isinstance(error, RecursionError):
        return "what was read is nested too deeply (lists in lists, or groups in groups); check the file or the value"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[error.start : error.end]!r:.20} is no character (half of one); take it out of the text or name"
    if isinstance(error, ValueError) and re.search(r"embedded null (?:byte|character)", text):
        return "a path holds a NUL character, as none can; check the paths and names that were given"
    return None
