"""What a user may choose of rounds on a model's own text, and of the lemma behind them (docs/loops.md)."""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from phf.config.fields import StrictConfig
from phf.config.infer import TextSampling
from phf.records import Mode

Control = Literal["none", "unscored", "shuffled", "own-token", "human"]
LemmaCase = Literal[
    "unfiltered",
    "temperature .7",
    "top-p .9",
    "top-p .95",
    "top-p .99",
    "length-normalised",
    "stale",
    "data prompt in the loss",
    "data prompt masked",
    "scored",
    "shuffled",
    "own token",
]
_Count = Annotated[int, Field(gt=0)]


class RoundSampling(TextSampling):
    """How a round's texts are drawn; temperature 1 from all tokens, so that each has a probability."""

    num_samples: _Count = 512
    """Texts of a round, which are measured and then trained on."""


class OnlineConfig(StrictConfig):
    """Rounds in which a run writes, is scored, and goes on training on what it wrote."""

    rounds: _Count = 4
    """Rounds in all; a finished loop goes on with more."""
    steps: _Count = 60
    """Optimizer steps of a round."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of a round's blocks that are the run's own text; the others are the next ones of its corpus."""
    keep: Literal["accumulate", "replace"] = "accumulate"
    """Whether earlier rounds' texts stay beside the latest (accumulate, in turns), or go (replace)."""
    control: Control = "none"
    """A loop to hold the others against: texts without their scores, with shuffled ones, with labels that the model wrote
    itself, or human text in their place."""
    mode: Mode | None = None
    """The mode that is asked for; null: the run's best, good where it has that."""
    schedule: Literal["kept", "constant"] = "kept"
    """Of the learning rate: kept is the run's own, over a budget that is longer by the rounds; constant stays at `rate`."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """With schedule=constant: as a share of the run's peak; null takes the share at which its own schedule ends."""
    reset_optimizer: bool = False
    """Whether the first round begins with fresh optimizer states."""
    judges: tuple[str, ...] = ()
    """Held-out judges, which only measure: any reward model."""
    num_documents: _Count = 400
    """Held-out human documents that bits per byte are of."""
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    sampling: RoundSampling = RoundSampling()
    """How the model writes."""


class LemmaConfig(StrictConfig):
    """How the mean gradient of log p over own samples is told from 0."""

    cases: tuple[LemmaCase, ...] = get_args(LemmaCase)
    """Which cases stand in the table."""
    groups: Annotated[int, Field(ge=8)] = 32
    """Groups of samples; each has one gradient, and the test is between them."""
    group_size: Annotated[int, Field(gt=1)] = 32
    """Samples of a group."""
    max_new_tokens: _Count = 48
    """A sample is cut after so many tokens; that is no filter."""
    prompt_tokens: _Count = 8
    """Tokens of held-out text that a data prompt has."""
    flips: Annotated[int, Field(ge=999)] = 9999
    """Flips of the groups' signs behind a p value."""
    max_numbers: _Count = 1 << 28
    """Numbers that the groups' gradients may hold together; of a larger model evenly spaced parameters are taken."""
    mode: Mode | None = None
    """The mode that is asked for; null: the run's best."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of samples and flips."""

    @field_validator("cases")
    @classmethod
    def _some(cls, values: tuple[LemmaCase, ...]) -> tuple[LemmaCase, ...]:
        if not values:
            raise ValueError(f"give at least one of {', '.join(get_args(LemmaCase))}")
        return values


ONLINE_OPTIONS = {
    "rounds": "--rounds",
    "steps": "--steps",
    "share": "--share",
    "keep": "--keep",
    "control": "--control",
    "mode": "--mode",
    "judges": "--judge",
    "sampling.num_samples": "--num-samples",
    "sampling.max_new_tokens": "--max-new-tokens",
    "sampling.temperature": "--temperature",
    "sampling.seed": "--seed",
}
"""Settings of a loop that have an option of their own, by dotted key; for the others there is `--set`."""
