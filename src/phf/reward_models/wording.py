"""Words by which people say good and bad: in labels, in choices, and in the names of what should be a score."""

import re
from collections.abc import Iterator

from phf.reward_models.combination import PLUS, TERM

_BAD = "bad toxic negative unsafe harmful offensive hateful hate abusive obscene insult threat inappropriate unacceptable"
_GOOD = "good ok okay safe positive harmless inoffensive benign clean acceptable appropriate nontoxic"
BAD_WORDS = frozenset(_BAD.split())
GOOD_WORDS = frozenset([*_GOOD.split(), "non toxic", "not toxic", "not bad", "not offensive", "not hateful"])
"""As `fold` spells them."""


def fold(text: str) -> str:
    """One spelling of a choice: case, `-`, `_` and runs of spaces do not matter."""
    return " ".join(text.casefold().replace("-", " ").replace("_", " ").split())


def find_good_word(spec: str) -> str | None:
    """The word of a spec that sounds as if higher were better: `reward` in `tone:reward`, `SAFE` in `hf:org/model#SAFE`.

    A minus in front of a spec, a component or a label has said so already. `reward_model` is no such word: its scores are
    higher = worse here.
    """
    for term in PLUS.split(spec):
        weighted = TERM.fullmatch(term.strip())
        part = weighted[2] if weighted else term.strip()
        if part.startswith(("-", "lexicon:")):
            continue
        for word in _list_words(part):
            bare = fold(word)
            if bare in GOOD_WORDS or bare in ("reward", "rewards"):
                return word
    return None


def _list_words(part: str) -> Iterator[str]:
    if part.startswith("hf:"):
        labels = (label.strip() for label in part.partition("#")[2].split(","))
        yield from (label for label in labels if not label.startswith("-"))
    elif ":" in part:
        names = re.sub(r"(?i)reward_?models?", "", part)
        yield from re.findall(r"[A-Z]?[a-z]+|[A-Z]+", names)
