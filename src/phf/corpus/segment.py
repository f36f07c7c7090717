"""Where a document is cut into segments. Every cut is lossless: segments join to the document, for any Unicode."""

import hashlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import assert_never

import numpy as np
import numpy.typing as npt
import sentencex

from phf.config.train import SegmentKind
from phf.errors import PHFError


def segment_ends(text: str, kind: SegmentKind) -> list[int]:
    """Ends of a document's segments in code points, increasing; the last is `len(text)`; an empty text has none.

    A line keeps its newline at its end, a paragraph the blank lines behind it. A sentence begins with its leading
    white space (so that byte-level BPE keeps its " word" tokens); white space at the document's end belongs to the last
    sentence. A text on which the splitter crashes is one segment (`is_unsegmentable`).
    """
    if not text:
        return []
    match kind:
        case "document":
            return [len(text)]
        case "lines":
            return _find_line_ends(text)
        case "sentences":
            return _find_sentence_ends(text) or [len(text)]
        case "paragraphs":
            return _find_paragraph_ends(text)
        case "imported":
            raise PHFError("imported segments come with the documents of a corpus, not from a text")
        case _:
            assert_never(kind)


def is_unsegmentable(text: str, ends: Sequence[int], kind: SegmentKind) -> bool:
    """Whether these ends of a text are one segment because the splitter crashes on it: its score would mean nothing."""
    return kind == "sentences" and len(ends) == 1 and _find_sentence_ends(text) == []


def segmentation_identity(kind: SegmentKind) -> dict[str, str | int]:
    """What decides the ends beside the text: part of an annotation's id, so that another splitter is another id."""
    if kind == "sentences":
        return {"kind": kind, "splitter": f"sentencex {version('sentencex')}", "window": _WINDOW}
    return {"kind": kind}


def hash_segment_ends(num_segments: npt.NDArray[np.integer], ends: npt.NDArray[np.integer]) -> str:
    """SHA-256, in hex, of the segment ends of documents in order: for each its number of segments, then its ends,
    as little-endian int64.

    Args:
        num_segments: [num_documents], the segments of each document.
        ends: [num_segments.sum()], code points, restarting with each document.
    """
    starts = np.cumsum(num_segments) - num_segments
    return hashlib.sha256(np.insert(ends.astype("<i8"), starts, num_segments).tobytes()).hexdigest()


def _find_line_ends(text: str) -> list[int]:
    # Only "\n" ends a line. str.splitlines would also cut at \r, \f, \x1c, U+2028 ..., which pycodestyle does not
    # count as lines: every score after one would slip to the next line.
    ends = [match.end() for match in re.finditer("\n", text)]
    if not text.endswith("\n"):
        ends.append(len(text))
    return ends


_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def _find_paragraph_ends(text: str) -> list[int]:
    # White space at either end is no paragraph.
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    inner = (match.end() for match in _BLANK_LINES.finditer(text, first, last))
    return [*inner, len(text)]


# sentencex 1.0.32 (Rust, Wikimedia) panics on an initial, then one of these, then a full stop ("D\x85."). It is shown
# a plain space in their place: one code point for one, so the ends hold for the true text.
_WIDE_SPACES = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


# sentencex takes time quadratic in the length of a text with many quotes and no blank line (130 s for 1.6 MB of minified
# JavaScript), so it sees so many characters at a time.
_WINDOW = 8192


def _find_sentence_ends(text: str) -> list[int]:
    """Ends of the sentences of a text that is not empty; none if the splitter crashes on it."""
    try:
        return _split_windows(text)
    except BaseException as error:  # a Rust panic is no Exception
        if type(error).__name__ != "PanicException":
            raise
        return []


def _split_windows(text: str) -> list[int]:
    plain = text if text.isascii() else _WIDE_SPACES.sub(" ", text)
    if len(plain) <= _WINDOW:
        return [*_split_window(plain)[:-1], len(text)]
    ends: list[int] = []
    start = 0
    while start < len(plain):
        window = plain[start : start + _WINDOW]
        found = _split_window(window)
        if start + len(window) < len(plain):
            found = found[:-1]  # the last sentence may go on behind the window: the next one begins with it
        ends.extend(start + end for end in found)
        start += found[-1] if found else len(window)
    ends[-1:] = [len(text)]
    return ends


def _split_window(text: str) -> list[int]:
    """Ends of the sentences in a text, without the white space that follows each."""
    # Measured on fortunes, one core: sentencex 1.2M sentences/s, nupunkt-rs 114k, blingfire 56k, syntok 18k, pysbd 5k.
    pieces: list[str] = sentencex.segment("en", text)
    ends: list[int] = []
    end = 0
    if "".join(pieces) == text:
        for piece in pieces:
            if content := piece.rstrip():
                ends.append(end + len(content))
            end += len(piece)
    else:  # some leave out a blank line, so each is looked up
        for piece in pieces:
            if content := piece.strip():
                end = text.index(content, end) + len(content)
                ends.append(end)
    return ends
