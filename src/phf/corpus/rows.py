"""Rows of a source: a text with its place, or the reason why there is none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """A text and where it came from.

    Attributes:
        own_id: the id that the source itself gave, if it is a string.
        ends: where the source itself cuts the text into segments (code points), if it does.
    """

    place: str
    text: str
    own_id: str | None = None
    ends: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no usable text. `reason` is one of a few fixed phrases, so that it can be counted."""

    place: str
    reason: str


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
    has_id = isinstance(own_id, str) and own_id != "" and is_encodable(own_id)
    return Row(place, text, str(own_id) if has_id else None)


def read_text_row(path: Path, place: str) -> Row | BadRow:
    """A whole file as one row. Its newlines stay as they are; a byte order mark goes."""
    try:
        return make_row(place, path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow(place, "not UTF-8")
    except OSError as error:
        return BadRow(place, f"cannot be read ({error.strerror})")


def find_files(folder: Path) -> list[tuple[str, Path]]:
    """Files below a folder with their relative names (`/` between parts), sorted by code point; hidden ones left out."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            # Bytes of a name that are no UTF-8 are spelled `\udc..`.
            found.append((name.encode("utf-8", "backslashreplace").decode(), path))
    return sorted(found)


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
