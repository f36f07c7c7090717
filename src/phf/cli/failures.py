"""What the system refuses, in one line: memory, space on a disk, names that nothing can write."""

import errno
import os
import re

_MEMORY = re.compile(
    r"not enough memory|can(?:no|')t allocate memory|unable to allocate|out of memory|bad_alloc|can't start new thread"
    r"|failed to map segment",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"\((?:os error|errno) (\d+)\)", re.IGNORECASE
)  # of libraries whose errors are no OSError


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
