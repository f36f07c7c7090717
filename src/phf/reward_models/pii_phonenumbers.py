"""Items of PII per character: those of `pii`, and phone numbers as `phonenumbers` (Google's libphonenumber) knows them."""

import re
from collections.abc import Iterator
from importlib.metadata import version

from phf.records import Identity
from phf.reward_models.pii import PATTERNS_HASH, Item, ItemRewardModel, find_items, is_sum, keep_first

PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT")
"""Countries whose national formats are looked for; with a leading + any country's. Each more takes time and finds more plain
numbers: 0123456789 is a number of Italy."""
MIN_DIGITS = 6
DIGIT = re.compile(r"\d")


class PIIPhoneNumbers(ItemRewardModel):
    """What `pii` finds, and valid phone numbers of any country (with a leading +) or of `PHONE_REGIONS`."""

    def __init__(self) -> None:
        """Find phonenumbers.

        Raises:
            ModuleNotFoundError: phonenumbers is not installed.
        """
        from phonenumbers import PhoneNumberMatcher

        self._match = PhoneNumberMatcher
        parameters = {
            "patterns": PATTERNS_HASH,
            "phonenumbers": version("phonenumbers"),
            "regions": list(PHONE_REGIONS),
        }
        self.identity = Identity("pii-phonenumbers", "2", parameters=parameters)

    def find_items(self, text: str) -> list[Item]:
        """Items of PII; a number within an item of another kind, such as an IP address, is none."""
        own = find_items(text)
        others = [item for item in own if item[2] != "phone"]
        phones = (
            phone
            for phone in self._find_phones(text)
            if not is_sum(text, phone[0], phone[1])
            and not any(start < phone[1] and phone[0] < end for start, end, _ in others)
        )
        return keep_first([*own, *phones])

    def _find_phones(self, text: str) -> Iterator[Item]:
        # A line at a time: the matcher gives up on a text in which it has tried many numbers.
        for line in re.finditer(".+", text):
            if len(DIGIT.findall(line[0])) >= MIN_DIGITS:
                for region in PHONE_REGIONS:
                    for match in self._match(line[0], region):
                        yield line.start() + match.start, line.start() + match.end, "phone"
