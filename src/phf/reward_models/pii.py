"""Items of personally identifying information per character, found by five patterns of our own."""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from phf.files import hash_json
from phf.records import Identity
from phf.reward_models.protocol import RewardModel, Unit, Unscored

# No pattern crosses a line end, and none takes more than linear time: each may only begin where a run of its characters does.
PATTERNS = {
    "e-mail": r"(?<![\w.%+-])[\w.%+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}(?![\w-])",
    "card": r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])",
    "ip": r"(?<![\w.-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w-]|\.\d)"
    r"|(?<![\w:.])[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7}(?![\w:])",
    "ssn": r"(?<![\w-])(?!000|666|9\d\d)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?![\w-])",
    "phone": r"(?<![\w.+-])(?:\+?1[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)"
    r"|(?<![\w.+-])\+\d(?:[ .()-]{0,2}\d){7,14}(?![\w-])",
}
COMPILED = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}


class PII(RewardModel):
    """Items of PII per character of the segment that holds an item's start. Overlapping hits are one item."""

    unit: Unit = "items per character"
    display_scale = 1000.0
    hit_threshold = 0.0

    def __init__(self) -> None:
        """Nothing to load."""
        self.identity = Identity("pii", "1", parameters={"patterns": hash_json(PATTERNS)[:16]})

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Items per character of each segment."""
        counts = [0] * len(ends)
        for start, _, _ in find_items(document):
            counts[bisect_right(ends, start)] += 1
        return [
            count / (end - start) if end > start else Unscored("empty text")
            for count, start, end in zip(counts, (0, *ends), ends, strict=False)
        ]


def find_items(text: str) -> list[tuple[int, int, str]]:
    """Items of PII as `(start, end, kind)`, in order, none overlapping: of two that overlap the first is kept."""
    items: list[tuple[int, int, str]] = []
    for item in sorted(_find_candidates(text), key=lambda item: (item[0], -item[1])):
        if not items or item[0] >= items[-1][1]:
            items.append(item)
    return items


def _find_candidates(text: str) -> Iterator[tuple[int, int, str]]:
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
