"""Items of PII per character, found by the recognizers of Microsoft's Presidio: the held-out judge of `pii`."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from phf.errors import PHFError
from phf.records import Identity
from phf.reward_models.pii import Item, ItemRewardModel, keep_first

if TYPE_CHECKING:
    from spacy.language import Language

PHONE_REGIONS = ("US", "GB")
WEAKEST = 0.3
"""Presidio's weaker patterns (nine digits in a row as a social security number) want a word like "ssn" beside them."""
SECONDS = 60.0
"""A document that takes one pattern longer has no score. Presidio itself would go on as if it had found nothing."""
NAMES_MODEL = "en_core_web_sm"
DIGIT = re.compile(r"\d")
ADDRESS_RUN = re.compile(r"[\w!#$%&'*+\-/=?^`{|}~.@]+")


class PIIPresidio(ItemRewardModel):
    """Presidio's recognizers of the five kinds of item that `pii` counts; with an installed spaCy model also names.

    Reads no network: Presidio's engine, which downloads spaCy models, is not used, and the list of top-level domains is
    the one that lies in tldextract.
    """

    def __init__(self, names_model: str | None = None) -> None:
        """Load the recognizers.

        Args:
            names_model: an installed spaCy model (or its folder) whose PERSON entities count too.

        Raises:
            ModuleNotFoundError: presidio-analyzer is not installed.
            PHFError: the spaCy model is not installed.
        """
        import regex
        from presidio_analyzer import predefined_recognizers as recognizers

        kinds = {
            "e-mail": _make_email_recognizer(),
            "card": recognizers.CreditCardRecognizer(),
            "ip": recognizers.IpRecognizer(),
            "ssn": recognizers.UsSsnRecognizer(),
        }
        self._patterns = [
            (kind, recognizer, regex.compile(pattern.regex, recognizer.global_regex_flags))
            for kind, recognizer in kinds.items()
            for pattern in recognizer.patterns
            if pattern.score >= WEAKEST
        ]
        self._phone = recognizers.PhoneRecognizer(supported_regions=PHONE_REGIONS)
        self._spacy = _load_spacy(names_model) if names_model else None
        parameters = {
            "recognizers": [type(recognizer).__name__ for recognizer in (*kinds.values(), self._phone)],
            "weakest": WEAKEST,
            "phone_regions": list(PHONE_REGIONS),
            "phonenumbers": version("phonenumbers"),
            "tldextract": version("tldextract"),
        }
        if self._spacy is not None:
            parameters["spacy_model"] = "{lang}_{name} {version}".format(**self._spacy.meta)
        name = "pii-presidio-names" if names_model else "pii-presidio"
        self.identity = Identity(name, version("presidio-analyzer"), parameters=parameters)

    def find_items(self, text: str) -> list[Item]:
        """Items of PII; of two that overlap the first is kept."""
        return keep_first([*self._match_patterns(text), *self._find_phones(text), *self._find_names(text)])

    def _match_patterns(self, text: str) -> Iterator[Item]:
        for kind, recognizer, pattern in self._patterns:
            for offset, piece in _find_address_runs(text) if kind == "e-mail" else ((0, text),):
                for match in pattern.finditer(piece, timeout=SECONDS):
                    found = match[0]
                    if recognizer.validate_result(found) is not False and not recognizer.invalidate_result(
                        found
                    ):
                        yield offset + match.start(), offset + match.end(), kind

    def _find_phones(self, text: str) -> Iterator[Item]:
        # A line at a time: the matcher gives up on a text in which it has tried many numbers.
        for line in re.finditer(".+", text):
            if DIGIT.search(line[0]):
                for result in self._phone.analyze(line[0], self._phone.supported_entities):
                    yield line.start() + result.start, line.start() + result.end, "phone"

    def _find_names(self, text: str) -> Iterator[Item]:
        if self._spacy is None:
            return
        paragraphs = list(re.finditer(r"(?s)\S.{0,99999}?(?=\n\s*\n|\Z)|\S.{0,99999}", text))
        for start, parsed in zip(
            (paragraph.start() for paragraph in paragraphs),
            self._spacy.pipe(paragraph[0] for paragraph in paragraphs),
            strict=True,
        ):
            for entity in parsed.ents:
                if entity.label_ == "PERSON":
                    yield start + entity.start_char, start + entity.end_char, "name"


def _find_address_runs(text: str) -> Iterator[tuple[int, str]]:
    """Start and text of each run of characters that an address may hold, with an @ in it.

    A match lies within one, so nothing is lost; Presidio's pattern takes quadratic time on what it is shown.
    """
    for line in re.finditer(".+", text):
        if "@" in line[0]:
            for run in ADDRESS_RUN.finditer(line[0]):
                if "@" in run[0]:
                    yield line.start() + run.start(), run[0]


def _make_email_recognizer() -> Any:
    """Presidio's, but its list of top-level domains is tldextract's own and not fetched."""
    from presidio_analyzer.predefined_recognizers import EmailRecognizer
    from tldextract import TLDExtract

    extract = TLDExtract(cache_dir=None, suffix_list_urls=())
    recognizer: Any = EmailRecognizer()
    recognizer.validate_result = lambda found: extract(found).fqdn != ""
    return recognizer


def _load_spacy(model: str) -> "Language":
    import spacy

    try:
        return spacy.load(model, exclude=["parser", "lemmatizer", "tagger", "attribute_ruler"])
    except OSError:
        raise PHFError(
            f"spaCy model {model!r} is not installed; run 'python -m spacy download {model}', or use pii-presidio"
        ) from None
