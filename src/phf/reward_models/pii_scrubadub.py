"""Items of PII per character, found by scrubadub: the tool of the paper (Korbak et al. 2023)."""

from importlib.metadata import version

from phf.records import Identity
from phf.reward_models.pii import Item, ItemRewardModel, keep_first

DETECTORS = ("email", "phone", "credit_card", "social_security_number", "credential")
"""Those that scrubadub uses by itself for en_US, without `url` and `twitter`, whose hits are hardly personal."""


class PIIScrubadub(ItemRewardModel):
    """Scrubadub's own detectors. The paper added names, addresses and dates of birth, with models that we have not."""

    def __init__(self) -> None:
        """Load the detectors.

        Raises:
            ModuleNotFoundError: scrubadub is not installed.
        """
        from scrubadub.detectors import detector_catalogue

        self._detectors = {name: detector_catalogue.get(name)(locale="en_US") for name in DETECTORS}
        self.identity = Identity(
            "pii-scrubadub",
            version("scrubadub"),
            parameters={"detectors": list(DETECTORS), "phonenumbers": version("phonenumbers")},
        )

    def find_items(self, text: str) -> list[Item]:
        """Items of PII; of two that overlap the first is kept."""
        return keep_first(
            (filth.beg, filth.end, kind)
            for kind, detector in self._detectors.items()
            for filth in detector.iter_filth(text)
            if filth.is_valid()
        )
