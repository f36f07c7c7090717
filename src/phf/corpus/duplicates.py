"""Near-duplicates: the same text in other line breaks, case or punctuation, or with a few words changed."""

import re
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+")
RUN_WORDS = 5


def find_near_duplicates(texts: Iterable[str], overlap: float = 0.5) -> npt.NDArray[np.bool_]:
    """Which texts have at least `overlap` of their runs of five words in the texts before them.

    Exact duplicates go when a corpus is built; without this, a fortune in one file would stand in training and the same
    fortune with another line break in validation. Keeps a digest of every run in memory (about 100 bytes each): meant
    for corpora up to about a gigabyte; a larger one is deduplicated before, by MinHash.

    Args:
        texts: in corpus order; of several near-duplicates the first stays.
        overlap: share of a text's runs, in (0, 1].

    Returns:
        bool [number of texts].
    """
    seen: set[bytes] = set()
    found = []
    for text in texts:
        runs = _find_runs(text)
        found.append(len(runs) > 0 and len(runs & seen) >= overlap * len(runs))
        seen |= runs
    return np.array(found, dtype=np.bool_)


def _find_runs(text: str) -> set[bytes]:
    words = _WORD.findall(text.lower())
    starts = range(max(1, len(words) - RUN_WORDS + 1)) if words else ()
    return {
        blake2b(" ".join(words[start : start + RUN_WORDS]).encode(), digest_size=8).digest()
        for start in starts
    }
