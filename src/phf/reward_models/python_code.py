"""Python source that may be broken: which of its lines are code at all, and where a cut-off sample should end.

Models write code that does not parse, and corpora hold prose and Python 2. Checkers of style call such lines perfect.
"""

import ast
import io
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

PYTHON = "{}.{}".format(*sys.version_info)
"""Part of an identity: what parses depends on the Python that runs."""

NOT_PARSED, NOT_TOKENIZED = "does not parse", "does not tokenize"

# Between which lines a logical line becomes a whole program, if it is one line of one.
CONTEXTS = (
    ("", ""),
    ("", "\n pass\n"),
    ("if x: pass\n", ""),
    ("if x: pass\n", "\n pass\n"),
    ("try: pass\n", ""),
    ("try: pass\n", "\n pass\n"),
    ("", "\nfinally: pass\n"),
    ("", "\n pass\nfinally: pass\n"),
    ("match x:\n ", "\n"),
    ("match x:\n ", "\n  pass\n"),
    ("", "\n case _: pass\n"),
    ("", "\ndef f(): pass\n"),
)
# What decides where a logical line ends: quotes, comments, brackets and a backslash at the line's end; or anything else but space.
MARKS = re.compile(r"""\"{3}|'{3}|["'#()\[\]{}]|\\\n|[^\s"'#()\[\]{}\\]+|\\""")


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """Physical lines `first` to `last` (from 1): one statement or header, or a comment with `is_code` False."""

    first: int
    last: int
    is_code: bool = True


def split_lines(document: str) -> list[str]:
    r"""Physical lines with their ends (`\n`, `\r\n` or `\r`, as Python reads files; not form feed or U+2028)."""
    return io.StringIO(document, newline="").readlines()


def normalise_line_ends(lines: list[str]) -> list[str]:
    r"""The same lines as Python reads them from a file: `\n` for `\r\n` and `\r`, no byte order mark."""
    lines = [line.removeprefix("\ufeff") for line in lines[:1]] + lines[1:]
    return [re.sub(r"\r\n?$", "\n", line) for line in lines if line]


def parses(source: str) -> bool:
    """Whether Python can read the source as a program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the text are its own matter (W605)
        try:
            ast.parse(source.removeprefix("\ufeff"))
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # NUL, surrogates, deep nesting
            return False
    return True


def iterate_logical_lines(lines: list[str]) -> Iterator[LogicalLine]:
    """The complete logical lines and the comment lines of some lines, of which the last has its line end too.

    Broken code has them as well: a string without an end stops at its line's end, a bracket that closes nothing is passed over, and
    indentation plays no part. Python's own tokenizer is not asked: from 3.12 on it gives nothing behind the first error.
    """
    first, depth, quote = (
        None,
        0,
        "",
    )  # row of the statement's beginning; open brackets; the open string's quote
    for row, line in enumerate(normalise_line_ends(lines), start=1):
        place, is_continued, is_comment = 0, False, False
        while place < len(line):
            if quote:
                place, quote = _skip_string(line, place, quote)
                continue
            mark = MARKS.search(line, place)
            if mark is None or mark[0] == "#":
                is_comment = mark is not None and first is None
                break
            place, is_continued = mark.end(), mark[0] == "\\\n"
            first = row if first is None else first
            if mark[0][0] in "\"'":
                quote = mark[0]
            elif mark[0] in "([{":
                depth += 1
            elif mark[0] in ")]}":
                depth = max(depth - 1, 0)
        if is_comment:
            yield LogicalLine(row, row, is_code=False)
        elif first is not None and not (is_continued or depth or quote):
            yield LogicalLine(first, row)
            first = None


def _skip_string(line: str, place: int, quote: str) -> tuple[int, str]:
    """Where a line goes on behind a string that is open at a place, and the quote if it is still open at the line's end."""
    escape = ""
    for found in re.compile(rf"\\.|{quote}", re.DOTALL).finditer(line, place):
        if found[0] == quote:
            return found.end(), ""
        escape = found[0]
    return len(line), quote if len(quote) == 3 or escape == "\\\n" else ""


def trim_to_last_logical_line(text: str) -> str:
    """The text up to the end of its last complete logical line or comment, whatever Python runs; "" if it has none."""
    lines = split_lines(text)
    if lines and not lines[-1].endswith(("\n", "\r")):
        del lines[-1]
    last = max((logical.last for logical in iterate_logical_lines(lines)), default=0)
    return "".join(lines[:last])


def find_broken_lines(document: str) -> dict[int, str]:
    """The physical lines (from 1) whose style cannot be judged, each with the reason. Empty if the document parses.

    In a document that does not parse these are its logical lines that no program could hold, and a last one without an end. If
    no more than half of its logical lines parse, it is no Python: every line.
    """
    if parses(document):
        return {}
    lines = split_lines(document)
    broken: dict[int, str] = {}
    num_code = num_parsed = stopped = 0
    for logical in iterate_logical_lines([*lines[:-1], lines[-1].rstrip("\r\n") + "\n"]):
        stopped = logical.last
        if not logical.is_code:
            continue
        num_code += 1
        source = "".join(lines[logical.first - 1 : logical.last]).strip(" \t\f\r\n")
        if any(parses(before + source + after) for before, after in CONTEXTS):
            num_parsed += 1
        else:
            broken |= dict.fromkeys(range(logical.first, logical.last + 1), NOT_PARSED)
    if any(line.strip() for line in lines[stopped:]):
        broken |= dict.fromkeys(range(stopped + 1, len(lines) + 1), NOT_TOKENIZED)
    if num_parsed * 2 <= num_code:
        return dict.fromkeys(range(1, len(lines) + 1), NOT_PARSED)
    return broken


def count_syntax_errors(document: str) -> int:
    """Unbroken stretches of lines that are not Python; at least 1 if the document does not parse, else 0."""
    if parses(document):
        return 0
    broken = sorted(find_broken_lines(document))
    return 1 + sum(after - before > 1 for before, after in pairwise(broken))
