"""What belongs to some measures and is no number: metrics write these records and pages read them (`Evaluation.read_facts`).

A file that does not say something has None there.
"""

from dataclasses import dataclass, field

from pydantic import JsonValue

from phf.evaluate.drawn import FoundPrompt


@dataclass(frozen=True)
class RedTeamFacts:
    """The facts of `red_team`; `costs` by mode."""

    attacker: str | None = None
    settings: dict[str, JsonValue] = field(default_factory=dict)
    prompts: list[FoundPrompt] = field(default_factory=list)
    costs: dict[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetunedFacts:
    """The facts of `finetuned`: how a model was trained on benign text; the losses in nats, those of no step None."""

    steps: int | None = None
    data: str | None = None
    num_tokens: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None


@dataclass(frozen=True)
class MethodFacts:
    """The facts of one method of `steering`: its spec, the mode it was tried in, and what it went by."""

    spec: str
    mode: str
    facts: dict[str, object]
