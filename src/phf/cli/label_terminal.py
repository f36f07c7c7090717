"""Labelling with single keys in a terminal, or with lines from a pipe."""

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from phf.feedback.pool import Segment
from phf.feedback.session import COMMANDS, PROMPTS, LabelSession
from phf.terminal import make_console, printable

_ARROWS = {"\x1b[D": "left", "\x1bOD": "left", "\x1b[C": "right", "\x1bOC": "right"}
_END = "q"


def label_in_terminal(session: LabelSession) -> None:
    """Ask until the questions, the input or the person's patience end."""
    console = make_console(highlight=False)
    with suppress(KeyboardInterrupt), _read_keys() as keys:
        notice = ""
        while session.question is not None:
            _show(console, session, notice)
            key = next(keys, _END)
            if key == _END:
                break
            notice = "" if key == "?" else session.press(key)
    if session.question is None:
        console.print("no question is left", markup=False)


def _show(console: Console, session: LabelSession, notice: str) -> None:
    assert session.question is not None
    if console.is_terminal:
        console.clear()
    is_ascii = console.options.ascii_only
    rule = Rule(characters="-" if is_ascii else "─", style="dim")
    marks = ("", "") if console.is_terminal else (">>", "<<") if is_ascii else ("»", "«")
    console.print(Text(session.describe(), style="dim"))
    console.print(rule)
    for number, segment in enumerate(session.question, start=1):
        heading = f"{number}  {segment.id}" if len(session.question) > 1 else segment.id
        console.print(Text(printable(heading).replace("\n", " "), style="cyan"))
        console.print(_spell(segment, *marks))
        console.print(rule)
    console.print(Text(PROMPTS[session.task] + "   " + COMMANDS))
    if notice:
        console.print(Text(printable(notice), style="dim"))


def _spell(segment: Segment, left: str, right: str) -> Text:
    """The segment in bold, the document around it dimmed; between marks where there are no styles."""
    return Text.assemble(
        (printable(segment.before), "dim"),
        (left + printable(segment.text) + right, "bold"),
        (printable(segment.after), "dim"),
    )


@contextmanager
def _read_keys() -> Iterator[Iterator[str]]:
    """Keys as they are pressed; from a pipe, lines. The terminal is restored however the block is left."""
    if not sys.stdin.isatty():
        yield (line.strip() for line in sys.stdin if line.strip())
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    handlers = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, _end),
        signal.SIGCONT: signal.signal(signal.SIGCONT, lambda *_: tty.setcbreak(handle)),
    }
    try:
        tty.setcbreak(handle)  # Ctrl-C and Ctrl-Z stay what they are
        yield _split_keys(handle)
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _split_keys(handle: int) -> Iterator[str]:
    # One read gives what one key sends (an arrow is three bytes), or several keys pressed while we were busy.
    while True:
        # Python runs a signal's handler between calls, and the signal may have woken another thread than this one.
        while not select.select([handle], [], [], 0.3)[0]:
            pass
        data = os.read(handle, 64)
        for key in re.findall(r"\x1b[\[O][A-Z]|.", data.decode(errors="replace"), re.DOTALL):
            if key == "\x04":  # Ctrl-D
                return
            yield _ARROWS.get(key, key)
        if not data:
            return
