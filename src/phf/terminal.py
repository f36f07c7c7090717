"""What people see while they wait: a live bar on a terminal, a line now and then in a log."""

import io
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TextIO, cast

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

LOG_SECONDS = 10.0


_QUIET = threading.Event()


def be_quiet(is_quiet: bool = True) -> None:
    """Say nothing but results and errors from here: no progress, no remarks, no hints."""
    if is_quiet:
        _QUIET.set()
    else:
        _QUIET.clear()


_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _SafeStream:
    """Standard output without control characters of its texts, such as names of runs; a console's own go past it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write with what would steer the terminal escaped."""
        self.stream.write(_UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Let standard output and error take every text: what their encoding has not (`LANG=C`), and lone surrogates, is escaped, and
    so are control characters on standard output."""
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    before = sys.stdout
    sys.stdout = cast(TextIO, _SafeStream(before))
    try:
        yield
    finally:
        sys.stdout = before


def make_console(*, width: int | None = None, highlight: bool = True) -> Console:
    """A console on standard output, whose styles `safe_streams` lets through; texts must be `printable`."""
    stream = sys.stdout
    return Console(file=getattr(stream, "stream", stream), width=width, highlight=highlight)


class Bars:
    """Progress of named activities. Call it with (description, done, total); a total of 0 is not known yet.

    What follows two spaces in a description is detail that may change (a loss); what stands before names the bar.
    """

    def __init__(self, live: Progress | None) -> None:
        self._live = live
        self._tasks: dict[str, TaskID] = {}
        self._starts: dict[str, tuple[float, int]] = {}
        self._next_line = 0.0

    def __call__(self, description: str, done: int, total: int) -> None:
        """Report progress of one activity."""
        if _QUIET.is_set():
            return
        description = printable(description)
        name = description.split("  ")[0]
        if self._live is not None:
            if name not in self._tasks:
                self._tasks[name] = self._live.add_task(description)
            self._live.update(self._tasks[name], description=description, completed=done, total=total or None)
            return
        now, is_new = monotonic(), name not in self._starts
        start, first = self._starts.setdefault(name, (now, done))
        if now >= self._next_line or (done == total and name not in self._tasks):
            # The second line comes soon: it is the first that can say how long this will take.
            self._next_line = now + (LOG_SECONDS / 5 if is_new else LOG_SECONDS)
            goal = f" of {total:,}" if total > 0 else ""
            if done == total:
                self._tasks[name] = TaskID(0)
            elif first < done < total and now > start:
                goal += f", about {format_duration((total - done) * (now - start) / (done - first))} left"
            complain(f"{description}  {done:,}{goal}")


def format_duration(seconds: float) -> str:
    """Seconds in the unit that one would say them in."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


@contextmanager
def show_progress() -> Iterator[Bars]:
    """Bars for the activities of one command, on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal or _QUIET.is_set():
        yield Bars(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as live:
        yield Bars(live)


def say(line: str) -> None:
    """A line that a person should read, on stderr, so that stdout stays for results."""
    if not _QUIET.is_set():
        complain(line)


def complain(line: str) -> None:
    """A line about what went wrong, on stderr, also to those who want quiet."""
    print(printable(line), file=sys.stderr, flush=True)


def hint(line: str) -> None:
    """What to do next, after the results."""
    if not _QUIET.is_set():
        print(line)


def printable(text: str) -> str:
    """Foreign text on a terminal: no escape sequences, no overrides of the reading direction."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def quote(place: object) -> str:
    """A path as a shell takes it for one word, in a command that is to be typed."""
    return printable(shlex.quote(str(place)))


def make_table(title: str = "") -> Table:
    """A table without frames that is as narrow as it can be; columns and rows are added by the caller."""
    return Table(
        title=Text(title, "bold") if title else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def table_width() -> int:
    """Columns of a table; into a pipe at least 120, so that none is cut."""
    console = make_console()
    return console.width if console.is_terminal else max(console.width, 120)


def print_table(table: RenderableType) -> None:
    """Print a rich table."""
    make_console(width=table_width()).print(_Printable(table))


class _Printable:
    """A renderable whose texts are `printable`, whatever stands in its cells."""

    def __init__(self, content: RenderableType) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.content, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
