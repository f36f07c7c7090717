"""Every way to name a reward model, and what a person should know before trusting one."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from phf.errors import PHFError
from phf.reward_models.protocol import RewardModel, RewardSpec

WORDS_NOT_HATE = "offensive words, not hate in context (HateCheck AUC ~ .5)"
NGRAMS = Path(str(resources.files("phf") / "reward_models" / "toxicity_ngrams"))
"""Made by benchmarks/toxicity_ngrams."""
MENTIONS_ARE_TOXIC = "calls about half of neutral sentences about gay and lesbian people toxic"
"""Measured by `phf reward check`; the share and its interval stand in the shipped check."""
DETOXIFY = "unitary/toxic-bert@4d6c22e74ba2fdd26bc4f7238f50766b045a0d94"
"""The weights that Detoxify calls "original", at the commit that has them as safetensors."""


@dataclass(frozen=True, slots=True)
class RewardModelCard:
    """A reward model with a name of its own, in a line for each thing a person should know.

    Attributes:
        description: what a score means.
        packages: distributions that must be installed for it to load.
        weights: `<id>@<revision>` of what must be fetched from the Hugging Face Hub.
        text: what its speed is measured on.
    """

    name: str
    description: str
    licence: str
    blind_spots: str
    install: str
    packages: tuple[str, ...] = ()
    weights: str = ""
    text: Literal["prose", "python"] = "prose"


@dataclass(frozen=True, slots=True)
class SpecForm:
    """A way to name a reward model that is not in the catalogue."""

    form: str
    description: str
    blind_spots: str


CARDS = (
    RewardModelCard(
        "pep8",
        "PEP 8 violations per character, found by pycodestyle in the whole document",
        "MIT",
        "layout only: names, logic and dead code are free; a '# noqa' silences some checks",
        "pip install pycodestyle",
        ("pycodestyle",),
        text="python",
    ),
    RewardModelCard(
        "pep8-fast",
        "nine tenths of these violations, found by ruff, many times faster; the held-out judge of pep8",
        "MIT",
        "as pep8, and sees no continuation line (E12x, E131), no '+' with a blank on one side (E225), no bare except that "
        "raises again (E722); docs/reward_models.md has its share of each code",
        "pip install ruff",
        ("ruff",),
        text="python",
    ),
    RewardModelCard(
        "pii",
        "e-mail addresses, phone numbers, US social security numbers, card numbers, IP addresses, per character",
        "Apache-2.0 (ours)",
        "no names, no street addresses; phone numbers: finds .92 of made-up US ones, .44 of 14 other countries' (needs a "
        "North American layout or a leading +), e-mail, SSN, card, IP 1.00; in 604 mails other makes agree with all that it finds; 4-part versions look like IPs",
        "pip install phf",
    ),
    RewardModelCard(
        "pii-phonenumbers",
        "as pii, and phone numbers of every country (with a leading +) or in six countries' own formats, by phonenumbers",
        "Apache-2.0",
        "no names, no street addresses; finds .96 of made-up US phone numbers, .88 of 14 other countries', e-mail, SSN, card, "
        "IP 1.00; ten plain digits may be a phone number",
        "pip install phonenumbers",
        ("phonenumbers",),
    ),
    RewardModelCard(
        "pii-presidio",
        "the same kinds of item per character, by Presidio's pattern recognizers; the held-out judge of pii",
        "MIT",
        "patterns alone: no names, no street addresses; finds .55 of made-up US phone numbers, .50 of 14 other countries', "
        ".75 of cards (none of 12 digits), e-mail, SSN, IP 1.00; made-up items count like real ones",
        "pip install presidio-analyzer",
        ("presidio-analyzer",),
    ),
    RewardModelCard(
        "pii-presidio-names",
        "as pii-presidio, and names of people, found by the spaCy model en_core_web_sm",
        "MIT",
        "spaCy misses many names and takes other capitalized words for names; no street addresses",
        "pip install presidio-analyzer && python -m spacy download en_core_web_sm",
        ("presidio-analyzer", "en-core-web-sm"),
    ),
    RewardModelCard(
        "pii-scrubadub",
        "items of personal data per character, by scrubadub, the paper's tool, without its detectors of URLs and of @names",
        "Apache-2.0",
        "no names, no URLs, no Twitter names, no IP addresses; finds .47 of made-up US phone numbers, .39 of 14 other "
        "countries', .86 of cards, e-mail, SSN 1.00; misreads 'mail me at x.y@z'",
        "pip install 'phf[pii]' && pip install --no-deps scrubadub==2.0.1",
        ("scrubadub",),
    ),
    RewardModelCard(
        "toxicity-svm",
        "probability that a text is offensive, by alt-profanity-check's linear SVM over words",
        "MIT",
        f"{MENTIONS_ARE_TOXIC}; {WORDS_NOT_HATE}; blind to order, spelling tricks, other languages",
        "pip install alt-profanity-check==1.9.1",
        ("alt-profanity-check",),
    ),
    RewardModelCard(
        "toxicity-lstm",
        "probability of Jigsaw's label 'toxic', by tox-block's bidirectional LSTM",
        "MIT",
        f"{MENTIONS_ARE_TOXIC}; {WORDS_NOT_HATE}; reads only the last 100 known words",
        "pip install h5py safetensors && pip install --no-deps tox-block==0.1.2",
        ("tox-block",),
    ),
    RewardModelCard(
        "toxicity-ngrams",
        "probability that a text is offensive, by our linear model over hashed words and characters, taught that groups are alike",
        "Apache-2.0 (ours)",
        f"{WORDS_NOT_HATE}; negated and quoted bad words are toxic to it; finds attacks by their words alone; other languages",
        "pip install phf",
    ),
    RewardModelCard(
        "toxicity-detoxify",
        "probability of Jigsaw's label 'toxic', by the BERT of Detoxify 'original' (438 MB from the Hugging Face Hub)",
        "Apache-2.0",
        f"{WORDS_NOT_HATE}; high for mentions of groups that are often insulted; English",
        f"hf download {DETOXIFY.split('@')[0]} --revision {DETOXIFY.split('@')[1]}",
        weights=DETOXIFY,
    ),
)

FORMS = (
    SpecForm(
        "hf:<id or folder>[@revision][#LABEL,...]",
        "probability that a Hugging Face sequence classifier gives to its bad labels; #-LABEL names a good one",
        "what its training data lacks; the polarity of a label is what you say it is",
    ),
    SpecForm(
        "llm:<rubric>[#AXIS][,model=NAME,base_url=URL,...]",
        "level that a language model gives by a rubric (a YAML file, or one of those below), from 0 (the good end of the scale) "
        "to 1",
        "what the model does not see or does not mind; a text may ask it for a better level (docs/llm_judges.md)",
    ),
    SpecForm(
        "lexicon:<file>",
        "hits of your own words and phrases, weighted, per character",
        "context, spelling tricks, languages without spaces between words",
    ),
    SpecForm(
        "<module>:<function>",
        "what your own Python function, or reward model, returns",
        "not known: nobody has said or measured what it misses",
    ),
    SpecForm(
        "<folder>",
        "a model made by 'phf reward train' or 'phf reward distill'",
        "what its labels, or its teacher, did not see; see report.html in the folder",
    ),
    SpecForm(
        "-SPEC",
        "minus what SPEC says (1 - p of a probability): turns a reward, higher = better, into a score",
        "those of SPEC",
    ),
    SpecForm(
        "0.7*SPEC + 0.3*SPEC",
        "weighted sum of several models' scores as they are stored: mind their units",
        "those of its components",
    ),
)


def list_reward_models() -> list[RewardModelCard]:
    """The reward models that `load_reward_model` knows by name."""
    return list(CARDS)


def name_reward_model(given: RewardSpec) -> str:
    """The spec of a reward model: itself, a folder's path, or of a Python function or class `module:name`.

    Raises:
        PHFError: see `name_code`.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    from phf.code import name_code

    return name_code(given)


def name_reward_models(given: RewardSpec | Sequence[RewardSpec]) -> list[str]:
    """The specs of one reward model or several; see `name_reward_model`."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [name_reward_model(own) for own in given]
    return [name_reward_model(given)]


def load_reward_model(spec: RewardSpec) -> RewardModel:
    """Load the reward model that a spec names.

    Args:
        spec: a card's name, or one of `FORMS`; a folder's path; or the function or class itself.

    Raises:
        PHFError: nothing is named so; a package, file, folder, module or function is missing; a weight is wrong.
    """
    spec = name_reward_model(spec).strip()
    if any(card.name == spec for card in CARDS):
        return load_card(spec)
    if (Path(spec).expanduser() / "reward_model.json").exists():
        from phf.reward_models.trained import load_trained

        return load_trained(Path(spec).expanduser())
    from phf.reward_models.combination import is_combination, load_combination

    if is_combination(spec):
        return load_combination(spec, load_reward_model)
    if spec.startswith("-"):
        from phf.reward_models.negated import Negated

        return Negated(load_reward_model(spec[1:]))
    if spec.startswith("hf:"):
        from phf.reward_models.hugging_face import load_hugging_face

        return load_hugging_face(spec.removeprefix("hf:"))
    if spec.startswith("llm:"):
        from phf.reward_models.llm.judge import load_judge

        return load_judge(spec.removeprefix("llm:"))
    if spec.startswith("lexicon:"):
        from phf.reward_models.lexicon import Lexicon

        return Lexicon(Path(spec.removeprefix("lexicon:")).expanduser())
    if re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", spec):
        from phf.reward_models.function import load_function

        return load_function(spec)
    raise _explain_unknown(spec)


def load_card(name: str, *, download: bool = True) -> RewardModel:
    """Load a reward model of the catalogue.

    Args:
        download: whether weights may be fetched from the Hugging Face Hub.

    Raises:
        PHFError: its package or its weights are not there.
    """
    card = next(card for card in CARDS if card.name == name)
    try:
        return _find_constructor(name, download)()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("phf."):
            raise
        raise PHFError(
            f"reward model {name} needs the package {error.name!r}, which is not installed; run '{card.install}'"
        ) from error


def _find_constructor(name: str, download: bool) -> Callable[[], RewardModel]:
    """Import a model's module. Each import stays inside: some take seconds."""
    match name:
        case "pep8":
            from phf.reward_models.pep8 import Pep8

            return Pep8
        case "pep8-fast":
            from phf.reward_models.pep8_fast import Pep8Fast

            return Pep8Fast
        case "pii":
            from phf.reward_models.pii import PII

            return PII
        case "pii-phonenumbers":
            from phf.reward_models.pii_phonenumbers import PIIPhoneNumbers

            return PIIPhoneNumbers
        case "pii-presidio":
            from phf.reward_models.pii_presidio import PIIPresidio

            return PIIPresidio
        case "pii-presidio-names":
            from phf.reward_models.pii_presidio import NAMES_MODEL, PIIPresidio

            return lambda: PIIPresidio(NAMES_MODEL)
        case "pii-scrubadub":
            from phf.reward_models.pii_scrubadub import PIIScrubadub

            return PIIScrubadub
        case "toxicity-svm":
            from phf.reward_models.toxicity_svm import ToxicitySVM

            return ToxicitySVM
        case "toxicity-lstm":
            from phf.reward_models.toxicity_lstm import ToxicityLSTM

            return ToxicityLSTM
        case "toxicity-ngrams":
            from phf.reward_models.trained import load_trained

            return lambda: load_trained(NGRAMS)
        case "toxicity-detoxify":
            from phf.reward_models.hugging_face import HuggingFaceClassifier, find_snapshot

            return lambda: HuggingFaceClassifier(
                find_snapshot(DETOXIFY, download=download), labels=("toxic",), name=name
            )
        case _:
            raise AssertionError(f"{name} has a card but no constructor")


def _explain_unknown(spec: str) -> PHFError:
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        if (path / "config.json").exists():
            return PHFError(
                f"{spec} holds no reward_model.json; if it is a Hugging Face classifier, write 'hf:{spec}'"
            )
        return PHFError(
            f"{spec} holds no reward_model.json; make a reward model with 'phf reward train' or 'phf reward distill'"
        )
    if path.is_file():
        return PHFError(
            f"{spec} is a file, no reward model; a word list is 'lexicon:{spec}', a function is 'module:function'"
        )
    if "/" in spec:
        return PHFError(f"no folder {spec}; give one with a reward_model.json, or 'hf:{spec}' for the Hub")
    names = [card.name for card in CARDS]
    nearest = difflib.get_close_matches(spec, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    forms = ", ".join(form.form for form in FORMS)
    return PHFError(f"no reward model is named {spec!r}; {hint}valid names: {', '.join(names)}; or {forms}")
