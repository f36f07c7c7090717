"""The one exception a user is meant to see."""

import difflib
from collections.abc import Iterable


class PHFError(Exception):
    """A mistake in the input, said in one line: what (with the value), what would be valid, what to do.

    The command line prints it without a traceback and exits with code 2. Anything else that escapes is a bug.
    """


class NotApplicableError(PHFError):
    """What was asked for cannot be had of this run, model or data, though nothing is missing or damaged.

    What measures many things goes on without this one and says why; any other `PHFError` stops it.
    """


def suggest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean 'mle'? ` for a name that is near a known one (by difflib's ratio, at least `cutoff`), else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'? " if near else ""
