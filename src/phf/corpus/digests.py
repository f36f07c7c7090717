"""A set of digests that is small in memory: what finds duplicates among many millions of documents."""

import numpy as np

_NUM_BYTES = 16  # of a SHA-256: two of 10^9 documents share them with a probability of 10^-21
MIN_RECENT = 1 << 16
"""Digests that are added before the first merge."""


class DigestSet:
    """A growing set of texts, kept as the first 16 bytes of their SHA-256.

    Takes about 45 bytes per text at its peak, where a Python set of the same bytes takes 110: most lie in a sorted
    array, those added lately in a set that is merged into it when it has grown to an eighth.
    """

    def __init__(self, min_recent: int = MIN_RECENT) -> None:
        self._min_recent = min_recent
        # numpy pads S16 with zero bytes on both sides of a comparison: exact for values that are all 16 bytes long.
        self._sorted = np.empty(0, f"S{_NUM_BYTES}")
        self._recent: set[bytes] = set()

    def add(self, sha256: bytes) -> bool:
        """Add a SHA-256; returns whether it is new."""
        digest = sha256[:_NUM_BYTES]
        if digest in self._recent:
            return False
        index = int(self._sorted.searchsorted(np.bytes_(digest)))
        if self._sorted[index : index + 1].tobytes() == digest:
            return False
        self._recent.add(digest)
        if len(self._recent) >= max(self._min_recent, len(self._sorted) // 8):
            self._sorted = np.concatenate([self._sorted, np.array(list(self._recent), self._sorted.dtype)])
            self._sorted.sort()
            self._recent = set()
        return True
