"""*Pieces* of text: runs of word characters, and single other signs.

Numbers about text count them and not token ids: so two models with different tokenizers compare, and control tokens
play no part.
"""

import re
from collections.abc import Iterator, Sequence

NGRAMS_PER_SAMPLE = 8
"""Numbers of a set are taken at this many n-grams for each sample: most of them change as there is more text."""

_PIECE = re.compile(r"\w+|[^\w\s]")


def split_pieces(text: str) -> list[str]:
    """Runs of word characters, and single other signs."""
    return _PIECE.findall(text)


def iterate_ngrams(pieces: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every n consecutive pieces."""
    return zip(*(pieces[start:] for start in range(n)), strict=False)
