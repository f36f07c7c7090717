"""What a tokenizer loses of a text: the characters that do not come back when its ids are decoded (docs/evaluation.md).

A number that divides by the bytes of a text is one of that text only if the ids say all of it. With an unknown token, or in
lower case, a model predicts less than the text, and would be credited with the rest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from phf.tokens.tokenizer import Tokenizer

MAX_LOST_SHARE = 1e-4
"""Of the characters. To say which one of a million was lost, and where, takes about 30 bits: .003 bits per character at this share."""
NUM_EXAMPLES = 5


def count_lost(
    tokenizer: Tokenizer, texts: Sequence[str], rows: Sequence[npt.NDArray[np.int64]]
) -> Counter[str]:
    """How often each character is missing from what ids decode to, or is there and was not in the text.

    A character that came back as another (in lower case, composed, a space for a line end) is counted once, as itself. A
    space put before a text takes nothing from it.

    Args:
        rows: the ids of each text.
    """
    lost = Counter[str]()
    if tokenizer.is_byte_level:  # `encode_documents` has compared the bytes
        return lost
    ids = [row.tolist() for row in rows]
    # A vocabulary may have bytes among its special tokens: with them a text is whole, though its unknown token shows, too.
    decoded, spelled = (
        tokenizer.backend.decode_batch(ids, skip_special_tokens=skip) for skip in (True, False)
    )
    for text, back, full in zip(texts, decoded, spelled, strict=True):
        if text not in (back, back.removeprefix(" "), full, full.removeprefix(" ")):
            missing, added = Counter(text), Counter(back)
            missing, added = missing - added, added - missing
            lost += missing if missing.total() >= added.total() else added
    return lost


def describe_loss(lost: Mapping[str, int], num_characters: int, name: str) -> str | None:
    """One line on what a tokenizer lost of some texts; None if it lost nothing."""
    if not lost:
        return None
    num_lost = sum(lost.values())
    most = ", ".join(
        f"{letter!r} {count:,} times" for letter, count in Counter(lost).most_common(NUM_EXAMPLES)
    )
    return (
        f"tokenizer {name} does not give back {num_lost:,} of {num_characters:,} characters "
        f"({100 * num_lost / num_characters:.2g} %; {most})"
    )


def explain_loss(lost: Mapping[str, int], num_characters: int, name: str) -> str | None:
    """Why what a model pays for some ids is not the price of the texts; None if it is: see `MAX_LOST_SHARE`."""
    if sum(lost.values()) <= MAX_LOST_SHARE * num_characters:
        return None
    return (
        f"{describe_loss(lost, num_characters, name)}, so its ids do not price the text; a byte-level one loses nothing "
        "(train:4096)"
    )


def explain_loss_of_texts(
    tokenizer: Tokenizer, texts: Sequence[str], rows: Sequence[npt.NDArray[np.int64]]
) -> str | None:
    """Why what a model pays for the ids of each text is not the price of the texts; None if it is."""
    return explain_loss(count_lost(tokenizer, texts, rows), sum(map(len, texts)), tokenizer.name)
