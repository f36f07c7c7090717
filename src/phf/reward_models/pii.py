"""Items of personally identifying information per character, found by five patterns of our own."""

import ipaddress
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from phf.files import hash_json
from phf.records import Identity
from phf.reward_models.protocol import RewardModel, Unit, Unscored

# No pattern crosses a line end, and none takes more than linear time: each may only begin where a run of its characters does.
PATTERNS = {
    "e-mail": r"(?<![\w.%+-])[\w.%+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}(?![\w-])",
    # 13 to 19 digits, for Maestro from 12 on: what ISO/IEC 7812 leaves to issuers of cards begins so.
    "card": r"(?<![\w.-])(?:(?:[3-6]\d{3}|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720|1800|2131)(?:[ -]?\d){9,15}"
    r"|(?:0604|5[06-9]\d\d|6\d{3})(?:[ -]?\d){8})(?![\w-])",
    "ip": r"(?<![\w.-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w-]|\.\d)"
    r"|(?<![\w:.])[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7}(?![\w:])",
    "ssn": r"(?<![\w-])(?!000|666|9\d\d)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?![\w-])",
    "phone": r"(?<![\w.+])(?<!\d-)(?:(?:\+|00)?1(?: ?[.-] ?| )?)?(?:\(\d{3}\) ?[.-]? ?|\d{3}(?: ?[.-] ?| ))\d{3}(?: ?[.-] ?| )\d{4}"
    r"(?: ?(?:x|ext\.?) ?\d{1,6})?(?![\w-]|\.\d)"
    r"|(?<![\w.+])(?<!\d-)\+ ?\d(?:[ .()-]{0,2}\d){7,14}(?![\w-])",
}
PATTERNS_HASH = hash_json(PATTERNS)[:16]
COMPILED = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}


Item = tuple[int, int, str]
"""Start and end (code points) and kind."""


class ItemRewardModel(RewardModel, ABC):
    """Items of PII per character of the segment that holds an item's start. A subclass finds the items."""

    unit: Unit = "items per character"
    display_scale = 1000.0
    hit_threshold = 0.0

    @abstractmethod
    def find_items(self, text: str) -> list[Item]:
        """Items in order, none overlapping.

        Raises:
            TimeoutError: the search took too long; the document is then unscored.
        """

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Items per character of each segment."""
        try:
            items = self.find_items(document)
        except TimeoutError:
            return [Unscored("timed out")] * len(ends)
        counts = [0] * len(ends)
        for start, _, _ in items:
            counts[bisect_right(ends, start)] += 1
        return [
            count / (end - start) if end > start else Unscored("empty text")
            for count, start, end in zip(counts, (0, *ends), ends, strict=False)
        ]


class PII(ItemRewardModel):
    """E-mail addresses, phone, social security and card numbers and IP addresses, by our patterns."""

    def __init__(self) -> None:
        """Nothing to load."""
        self.identity = Identity("pii", "3", parameters={"patterns": PATTERNS_HASH})

    def find_items(self, text: str) -> list[Item]:
        """Items of PII; see the function."""
        return find_items(text)


def find_items(text: str) -> list[Item]:
    """Items of PII in order, none overlapping: of two that overlap the first is kept."""
    return keep_first(_find_candidates(text))


def keep_first(candidates: Iterable[Item]) -> list[Item]:
    """Candidates in order of their start; of two that overlap the first is kept, of two with one start the longer."""
    items: list[Item] = []
    for item in sorted(candidates, key=lambda item: (item[0], -item[1])):
        if not items or item[0] >= items[-1][1]:
            items.append(item)
    return items


def _find_candidates(text: str) -> Iterator[Item]:
    for kind, pattern in COMPILED.items():
        for match in pattern.finditer(text):
            if (kind != "card" or _passes_luhn(match[0])) and (kind != "ip" or _is_address(match[0])):
                yield match.start(), match.end(), kind


def _passes_luhn(text: str) -> bool:
    """Whether the digits of a card number agree with their check digit (ISO/IEC 7812)."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
