"""Reward models: how bad is a text? One protocol scores corpora and samples; see docs/reward_models.md."""

import difflib
from dataclasses import dataclass

from phf.errors import PHFError
from phf.reward_models.protocol import RewardModel, SegmentRewardModel, Unscored, split_segments
from phf.reward_models.scoring import score_documents, score_samples

__all__ = [
    "RewardModel",
    "RewardModelCard",
    "SegmentRewardModel",
    "Unscored",
    "list_reward_models",
    "load_reward_model",
    "score_documents",
    "score_samples",
    "split_segments",
]


@dataclass(frozen=True, slots=True)
class RewardModelCard:
    """What a person should know before trusting a reward model, in a line each."""

    name: str
    description: str
    licence: str
    blind_spots: str
    install: str


CARDS = (
    RewardModelCard(
        "pep8",
        "PEP 8 violations per character, found by pycodestyle in the whole document",
        "MIT",
        "layout only: names, logic and dead code are free; a '# noqa' silences some checks",
        "pip install pycodestyle",
    ),
    RewardModelCard(
        "pep8-fast",
        "the same violations found by ruff, many times faster; the held-out judge of pep8",
        "MIT",
        "lacks pycodestyle's continuation-line checks (E12x); otherwise as pep8",
        "pip install ruff",
    ),
    RewardModelCard(
        "pii",
        "e-mail addresses, phone numbers, US social security numbers, card numbers, IP addresses, per character",
        "Apache-2.0 (ours)",
        "no names, no street addresses; North American phone layouts or a leading +; 4-part versions look like IPs",
        "pip install phf",
    ),
    RewardModelCard(
        "toxicity-svm",
        "probability that a text is offensive, by alt-profanity-check's linear SVM over words",
        "MIT",
        "offensive words, not hate in context (HateCheck AUC ~ .5); blind to order, spelling tricks, other languages",
        "pip install alt-profanity-check==1.9.1",
    ),
    RewardModelCard(
        "toxicity-lstm",
        "probability of Jigsaw's label 'toxic', by tox-block's bidirectional LSTM",
        "MIT",
        "offensive words, not hate in context (HateCheck AUC ~ .5); reads only the last 100 known words",
        "pip install h5py safetensors && pip install --no-deps tox-block==0.1.2",
    ),
)


def list_reward_models() -> list[RewardModelCard]:
    """The reward models that `load_reward_model` knows by name."""
    return list(CARDS)


def load_reward_model(spec: str) -> RewardModel:
    """Load a reward model by name.

    Raises:
        PHFError: no model has that name, or its package is not installed.
    """
    cards = {card.name: card for card in CARDS}
    if spec not in cards:
        nearest = difflib.get_close_matches(spec, cards, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise PHFError(f"no reward model is named {spec!r}; {hint}valid names: {', '.join(cards)}")
    try:
        return _construct(spec)
    except ModuleNotFoundError as error:
        raise PHFError(
            f"reward model {spec} needs the package {error.name!r}, which is not installed; "
            f"run '{cards[spec].install}'"
        ) from error


def _construct(name: str) -> RewardModel:
    """Import a model's module and build it. Each import stays inside: some take seconds."""
    match name:
        case "pep8":
            from phf.reward_models.pep8 import Pep8

            return Pep8()
        case "pep8-fast":
            from phf.reward_models.pep8_fast import Pep8Fast

            return Pep8Fast()
        case "pii":
            from phf.reward_models.pii import PII

            return PII()
        case "toxicity-svm":
            from phf.reward_models.toxicity_svm import ToxicitySVM

            return ToxicitySVM()
        case "toxicity-lstm":
            from phf.reward_models.toxicity_lstm import ToxicityLSTM

            return ToxicityLSTM()
        case _:
            raise AssertionError(f"{name} has a card but no constructor")
