"""Splitting the tokens that straddle a segment end, and no others."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phf.tokens.tokenizer import EncodedDocuments, Tokenizer


class Splitter:
    """Tokenizes documents whole and splits the tokens that straddle a segment end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._parts: dict[str, list[int]] = {}  # few different tokens straddle, each many times

    def tokenize(
        self,
        texts: list[str],
        num_segments: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        encoded: EncodedDocuments | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids of the documents, one after the other; tokens and UTF-8 bytes of each segment.

        Args:
            texts: the documents.
            num_segments: segments of each document.
            ends: their ends in code points, restarting with each document.
            encoded: the documents' ids, where they are not those the tokenizer would make.
        """
        encoded = self.tokenizer.encode_documents(texts) if encoded is None else encoded
        text_starts = cumulate([len(text) for text in texts])[:-1]
        ends = ends + np.repeat(text_starts, num_segments)
        byte_ends = _to_bytes("".join(texts), ends)
        unit_ends = byte_ends if self.tokenizer.is_byte_level else ends
        # Tokens that end at or before each segment end. The last of a document takes all that are left, some of
        # which may have no width.
        counts = np.searchsorted(np.maximum.accumulate(encoded.ends), unit_ends, side="right")
        has_segments = num_segments > 0
        counts[np.cumsum(num_segments)[has_segments] - 1] = np.cumsum(encoded.num_tokens)[has_segments]
        inside = counts < len(encoded.ids)
        inside[inside] = encoded.starts[counts[inside]] < unit_ends[inside]
        ids, token_ends = self._split(encoded.ids, encoded.ends, counts, unit_ends, inside)
        return ids, np.diff(token_ends, prepend=0), np.diff(byte_ends, prepend=0)

    def _split(
        self,
        ids: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        unit_ends: npt.NDArray[np.int64],
        inside: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Split each token that has a segment end inside; give the new ids and the segment ends in them."""
        num_parts = np.ones(len(ids), np.int64)  # tokens that each token becomes
        tokens_before_cut = np.zeros(len(counts), np.int64)
        replaced: list[int] = []
        cut_segments = np.flatnonzero(inside)
        # Several segments may end inside one token: all of its cuts are made together.
        for cuts in np.split(cut_segments, np.flatnonzero(np.diff(counts[cut_segments])) + 1):
            if len(cuts) == 0:
                continue
            token = int(counts[cuts[0]])
            piece = self.tokenizer.pieces[int(ids[token])]
            new: list[int] = []
            start = 0
            for segment in cuts:
                # A unit is a letter of the piece, counted from its end: an added "▁" stands at the beginning.
                stop = len(piece) - int(ends[token] - unit_ends[segment])
                new += self._encode_part(piece[start:stop])
                tokens_before_cut[segment] = len(new)
                start = stop
            new += self._encode_part(piece[start:])
            num_parts[token] = len(new)
            replaced += new
        starts = cumulate(num_parts)
        result = np.repeat(ids, num_parts)
        is_cut = np.zeros(len(ids), np.bool_)
        is_cut[counts[cut_segments]] = True
        result[np.repeat(is_cut, num_parts)] = replaced
        return result, starts[counts] + tokens_before_cut

    def _encode_part(self, part: str) -> list[int]:
        if part not in self._parts:
            self._parts[part] = self.tokenizer.encode_piece(part)
        return self._parts[part]


def _to_bytes(text: str, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places in a text, in UTF-8 bytes instead of code points."""
    if text.isascii():
        return ends
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return cumulate(widths)[ends]


def cumulate(counts: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Sums before each entry, and of all: int64 [n + 1]."""
    sums = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums
