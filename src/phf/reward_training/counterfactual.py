"""Counterfactual pairs: the same text about another group has the same label, so that a model does not judge by the group.

A file of terms has a line for terms that may stand for one another, with commas between them; a line that starts with # is a
comment. Whole words count, in any case.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from phf.errors import PHFError
from phf.files import hash_file, read_regular
from phf.reward_training.split import Examples, hash_text

NUM_COPIES = 4
_MAX_BYTES = 1 << 24
"""Other versions that are made of a text that has a term."""


class Terms:
    """Terms that may stand for one another, and what finds them in a text.

    Attributes:
        lines: the terms of each line, as written.
        sha256: of the file.
    """

    def __init__(self, lines: Sequence[Sequence[str]], sha256: str) -> None:
        self.lines, self.sha256 = lines, sha256
        self._line = {term.casefold(): line for line in lines for term in line}
        words = "|".join(map(re.escape, sorted(self._line, key=len, reverse=True)))
        self._pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)

    def swap(self, text: str, rng: np.random.Generator) -> str:
        """The text with each of its terms, wherever it stands, replaced by another of the same line; without terms, the text."""
        chosen: dict[str, str] = {}
        for found in self._pattern.findall(text):
            key = found.casefold()
            if key not in chosen:
                others = [term for term in self._line[key] if term.casefold() != key]
                chosen[key] = others[int(rng.integers(len(others)))]
        return self._pattern.sub(lambda match: _match_case(chosen[match[0].casefold()], match[0]), text)


def _match_case(term: str, model: str) -> str:
    if len(model) > 1 and model.isupper():
        return term.upper()
    return term[0].upper() + term[1:] if model[0].isupper() else term


def read_terms(path: Path) -> Terms:
    """Read a file of terms (UTF-8).

    Raises:
        PHFError: the file cannot be read, a line has one term alone, a term stands twice, or there is none.
    """
    try:
        text = read_regular(path, _MAX_BYTES, f"file of terms {path}").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PHFError(
            f"{path} cannot be read ({error}); give a UTF-8 file of terms, commas between them"
        ) from None
    lines: list[list[str]] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        terms = [term.strip() for term in line.split(",") if term.strip()]
        if not terms or line.startswith("#"):
            continue
        if len(terms) == 1:
            raise PHFError(
                f"{path}: line {number} has one term, {terms[0]!r}; put those that may stand for it beside it"
            )
        for term in terms:
            if term.casefold() in seen:
                raise PHFError(f"{path}: line {number} has {term!r} again; a term belongs to one line, once")
            seen.add(term.casefold())
        lines.append(terms)
    if not lines:
        raise PHFError(f"{path} holds no terms; write a line such as 'gay, straight, Muslim, Christian'")
    return Terms(lines, hash_file(path))


def add_counterfactuals(
    train: Examples, terms: Terms, *, seed: int, held_out: Iterable[str] = ()
) -> Examples:
    """Labelled texts (no pairs), and behind them `NUM_COPIES` versions of each that has a term, with its label.

    Args:
        held_out: texts that no version may repeat.
    """
    rng = np.random.default_rng(seed)
    known = set(map(hash_text, (*train.texts, *held_out)))
    rows: list[int] = []
    copies: list[str] = []
    for row, text in enumerate(train.texts):
        for _ in range(NUM_COPIES):
            copy = terms.swap(text, rng)
            if copy == text:
                break
            if (key := hash_text(copy)) not in known:
                known.add(key)
                rows.append(row)
                copies.append(copy)
    every = [*range(len(train.texts)), *rows]
    return Examples([*train.texts, *copies], [], train.targets[every], train.clusters[every])
