"""Rows of a source: a text with its place, or the reason why there is none."""

import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from phf.errors import PHFError
from phf.files import find_local

MAX_BYTES = 128 << 20
"""Of one text, or one line of records: what is longer is no document, and would have to be held in memory as a whole."""
_NUM_PLACES = 10  # that a manifest itself names


@dataclass(frozen=True, slots=True)
class Row:
    """A text and where it came from.

    Attributes:
        own_id: the id that the source itself gave, if it is a string or an integer; empty if it is anything else.
        ends: where the source itself cuts the text into segments (code points), if it does.
        provenance: further columns of a text that was made for the corpus, such as by which model.
    """

    place: str
    text: str
    own_id: str | None = None
    ends: Sequence[int] | None = None
    provenance: Mapping[str, object] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no usable text. `reason` is one of a few fixed phrases, so that it can be counted."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeftOut(BadRow):
    """A file or folder that was found and not read; it is no row, and is counted apart. `place` is its name."""


@dataclass
class SourceCounts:
    """What became of one source's rows (`docs/format.md`)."""

    spec: str
    num_rows: int = 0
    num_documents: int = 0
    num_duplicates: int = 0
    num_replaced_ids: int = 0
    num_bad_rows: int = 0
    bad_row_reasons: dict[str, int] = field(default_factory=dict)
    first_bad_rows: list[dict[str, str]] = field(default_factory=list)
    num_left_out: int = 0
    left_out_reasons: dict[str, int] = field(default_factory=dict)
    first_left_out: list[dict[str, str]] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        """Count a bad row, or what was left out, by its reason."""
        if isinstance(row, LeftOut):
            self.num_left_out += 1
            reasons, first = self.left_out_reasons, self.first_left_out
        else:
            self.num_rows += 1
            self.num_bad_rows += 1
            reasons, first = self.bad_row_reasons, self.first_bad_rows
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
        if len(first) < _NUM_PLACES:
            first.append({"place": row.place, "reason": row.reason})


EMPTY = "text is empty"


def find_fault(num_good: int, reasons: Mapping[str, int]) -> str | None:
    """Why a source is refused: as many of its rows are bad as hold what is wanted, so it is not what it was taken for.

    Rows with an empty text are like blank lines: they are counted, and speak for nothing.

    Args:
        num_good: rows that hold what is wanted.
        reasons: how many others are bad, by why.

    Returns:
        what is wrong, counted, for the middle of an error; None if the source may be used.
    """
    num_bad = sum(reasons.values())
    if num_good > 0 and num_bad - reasons.get(EMPTY, 0) < num_good:
        return None
    if num_bad == 0:
        return "is empty"
    counts = ", ".join(f"{count:,} x {reason}" for reason, count in Counter(reasons).most_common())
    rows = f"all {num_bad:,}" if num_good == 0 else f"{num_bad:,} of {num_good + num_bad:,}"
    return f"{'yields no text' if num_good == 0 else 'is half bad or worse'}: {rows} rows are bad ({counts})"


def make_row(place: str, text: object, own_id: object = None) -> Row | BadRow:
    """A row, or the bad row that says why this is no text."""
    if text is None:
        return BadRow(place, "no text")
    if not isinstance(text, str):
        return BadRow(place, "text is not a string")
    if not text:
        return BadRow(place, EMPTY)
    if not is_encodable(text):
        return BadRow(place, "lone surrogate")
    return Row(place, text, None if own_id is None else _read_id(own_id))


def _read_id(value: object) -> str:
    is_text = isinstance(value, str) and is_encodable(value)
    return str(value) if is_text or (isinstance(value, int) and not isinstance(value, bool)) else ""


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes. A pipe or a device, which may have no end, is refused.

    Raises:
        PHFError: it cannot be opened, or is no regular file.
    """
    try:
        if (local := find_local(path)) is None:
            return cast(BinaryIO, path.open("rb"))
        # Not to wait for whoever writes into a pipe.
        file = os.fdopen(os.open(local, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise explain_unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PHFError(f"{path} is no regular file; write what it gives into one, and name that")
    return file


def explain_unreadable(path: Path, error: OSError) -> PHFError:
    """The error that says why a file or a folder cannot be read."""
    return PHFError(
        f"{path} cannot be read ({error.strerror or type(error).__name__}); make it readable, or move it away"
    )


def read_file(path: Path) -> bytes | None:
    """The bytes of a file of at most `MAX_BYTES`; None if it is larger. Raises as `open_file`."""
    with open_file(path) as file:
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise explain_unreadable(path, error) from None
    return data if len(data) <= MAX_BYTES else None


TOO_LARGE = f"larger than {MAX_BYTES >> 20} MB"


def read_text_row(path: Path, place: str) -> Row | BadRow:
    """A whole file as one row. Its newlines stay as they are; a byte order mark goes. Raises as `open_file`."""
    if (data := read_file(path)) is None:
        return BadRow(place, TOO_LARGE)
    try:
        return make_row(place, data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow(place, "not UTF-8")


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
