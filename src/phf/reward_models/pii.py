"""Items of personally identifying information per character, found by five patterns of our own."""

import ipaddress
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from phf.files import hash_json
from phf.records import Identity
from phf.reward_models.protocol import RewardModel, Unit, Unscored

# Where an item may begin and end: no word goes on there, but for the underscores and dashes that writers put around things.
_BEGIN = r"(?<![^\W_])(?<![^\W_]_)(?<![^\W_]__)"
_END = r"(?!_{0,2}[^\W_]|-\w)"

# No pattern crosses a line end, and none takes more than linear time: each may only begin where a run of its characters does.
PATTERNS = {
    "e-mail": rf"(?<![\w.%+-])[\w.%+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,62}})\.)+[A-Za-z]{{2,24}}{_END}",
    "card": rf"{_BEGIN}(?<![.-])(?:[3-6]\d{{3}}|2[2-7]\d\d|1800|2131|0604)(?:[ -]?\d){{8,15}}{_END}",
    "ip": rf"{_BEGIN}(?<![.-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){{3}}(?:25[0-5]|2[0-4]\d|1?\d?\d){_END}(?!\.\d)"
    rf"|{_BEGIN}(?<![:.])(?:[0-9A-Fa-f]{{1,4}}(?:::?[0-9A-Fa-f]{{1,4}}){{1,7}}|:(?::[0-9A-Fa-f]{{1,4}}){{1,7}}"
    rf"|[0-9A-Fa-f]{{1,4}}(?=::(?![:\w])))(?:::(?![:\w]))?{_END}(?!:[\w:]|\.\d)",
    "ssn": rf"{_BEGIN}(?<!-)(?!000|666|9\d\d)\d{{3}}([ -])(?!00)\d\d\1(?!0000)\d{{4}}{_END}",
    "phone": rf"{_BEGIN}(?<![.+])(?<!\d-)(?:"
    r"(?:(?:\+|00)?1[ .-]?)?\(\d{3}\) ?[.-]? ?\d{3}(?: ?- ?|[ .])\d{4}"
    r"|(?:(?:\+|00)?1(?: ?- ?| ))?\d{3}(?: ?- ?\d{3}(?: ?- ?| )| \d{3} ?- ?)\d{4}"
    r"|(?:(?:\+|00)?1[ .-])?\d{3}\.\d{3}\.\d{4}"
    # Blanks alone separate the columns of tables, too.
    r"|(?<!\d )(?:(?:\+|00)?1[ -])?[2-9]\d\d [2-9]\d\d \d{4}(?! \d)"
    rf")(?: ?(?:x|ext\.?) ?\d{{1,6}})?{_END}(?!\.\d)"
    rf"|{_BEGIN}(?<![.+)\]}}])(?<!\d-)\+ ?(?=[1-9](?:[ .()-]{{0,3}}\d){{7}})"
    rf"[1-9]\d{{0,2}}(?:[ .-]{{0,2}}\(\d{{1,5}}\))?(?:[ .-]{{0,2}}\d){{4,14}}{_END}",
}
# Digits of cards, by the lengths that their issuers have (ISO/IEC 7812; Maestro from 12 on).
ISSUERS = (
    r"4\d{12}(?:\d{3}){0,2}|3[47]\d{13}|(?:1800|2131)\d{11}|35\d{14,17}|3(?:0[0-59]|[689]\d)\d{11,16}"
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|(?:0604|50\d\d|5[6-9]\d\d|6\d{3})\d{8,15}"
)
# Blanks and hyphens that keep a line together are read as plain ones.
PLAIN = str.maketrans("\xa0\u2007\u2009\u202f\u2010\u2011", "    --")
PATTERNS_HASH = hash_json({**PATTERNS, "issuers": ISSUERS})[:16]
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
        self.identity = Identity("pii", "4", parameters={"patterns": PATTERNS_HASH})

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
    text = text.translate(PLAIN)
    for kind, pattern in COMPILED.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            if (
                (kind != "card" or _is_card(match[0], text[end : end + 1]))
                and (kind != "ip" or _is_address(match[0], text[max(0, start - 60) : start]))
                and (kind != "phone" or not is_sum(text, start, end))
            ):
                yield start, end, kind


def is_sum(text: str, start: int, end: int) -> bool:
    """Whether a "+" and the digits behind it are arithmetic (`h * 69069 + 907133923`, `+3.14159265`) and no telephone number."""
    number = text[start:end]
    if number[0] != "+":
        return False
    if re.fullmatch(r"\+ ?\d+(?:\.\d+)?", number) is None:  # in groups, as people write telephone numbers
        return number[1] == " " and re.search(r"[\d)\]][ \t]*$", text[max(0, start - 9) : start]) is not None
    before = text[max(0, start - 9) : start].rstrip(" \t")[-1:]
    return (
        "." in number
        or number[1] == " "
        or before.isdigit()
        or before in tuple(")]")
        or text[end : end + 1] in tuple("*/^")
    )


def _is_card(text: str, behind: str) -> bool:
    """Whether the digits are a card's: an issuer's, of its length, with the right check digit (ISO/IEC 7812); not a factor."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    if behind == "*" or re.fullmatch(ISSUERS, "".join(map(str, reversed(digits)))) is None:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_address(text: str, before: str) -> bool:
    """Whether it is an address of the Internet, and neither a slice (`x[::2]`), a time nor the identifier of a device."""
    if ":" in text:
        parts = text.split(":")
        is_slice = re.search(r"[\w)\]]\[[^\[\]\n]*$", before) is not None
        if (
            is_slice
            or not any(map(str.isdigit, text))
            or (len(parts) == 8 and all(len(part) == 2 for part in parts))
        ):
            return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
