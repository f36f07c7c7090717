"""What a user may choose of `phf infer` (docs/posterior.md)."""

from typing import Annotated

from pydantic import Field, field_validator

from phf.config.fields import StrictConfig
from phf.config.steer import Guidance, SteerConfig
from phf.config.train import SamplingConfig, write_spec
from phf.records import ControlStyle

_Count = Annotated[int, Field(gt=0)]


class TextSampling(SamplingConfig):
    """How texts are drawn whose probabilities are wanted: from all tokens, as the model has them."""

    num_samples: _Count = 2000
    """Texts of each policy."""
    temperature: Annotated[float, Field(gt=0)] = 1
    """Logits are divided by this."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1
    """1, or most texts would be impossible and divergences infinite."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 1
    """Until so many tokens of text a sample cannot end."""
    max_new_tokens: _Count = 64
    """A sample ends after so many tokens of text; divergences a text grow with it."""
    control: ControlStyle = "forced"
    """Where the mode's control token stands: before every segment, as in training (forced), or before the first alone (prefix)."""


class InferConfig(StrictConfig):
    """What is measured of a base model's posterior, and of the policies beside it."""

    betas: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] = (0.3, 0.1, 0.05, 0.02, 0.01)
    """Temperatures of the target p0 exp(-score / beta) / Z, in units of the score: lower is closer to the best text."""
    num_exact: _Count = 2000
    """Exact draws of the target wanted at every beta."""
    max_draws: _Count = 40_000
    """Draws of the base model at most; where they are too few for `num_exact`, that is said."""
    best_of: tuple[Annotated[int, Field(gt=1)], ...] = (8,)
    """Best of n draws of the base model, as policies beside the others."""
    steers: tuple[SteerConfig, ...] = ()
    """Guidance of the runs that have control tokens, as policies beside the others: guidance:scale=2."""
    particles: Annotated[int, Field(gt=1)] = 64
    """Of each population of sequential Monte Carlo, which bounds log Z where few draws would be kept."""
    populations: Annotated[int, Field(gt=2)] = 32
    """Populations behind each bound."""
    judges: tuple[str, ...] = ()
    """A held-out judge beside the annotator: any reward model."""
    optimism: bool = False
    """What the base model promises, as a posterior, of pages whose middle each RUN writes (and held-out text), and what it gets."""
    returns: bool = False
    """What quantile and scalar runs write for each level that they are asked for, beside what the level stood for in training."""
    values: bool = False
    """A soft-value head of the base model, against the truth at prefixes, and as a twist of sequential Monte Carlo."""
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    sampling: TextSampling = TextSampling()
    """How all policies write."""

    @field_validator("betas", "best_of")
    @classmethod
    def _all_different(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"values must be different ones, not {list(values)}")
        return tuple(sorted(values, reverse=True))

    @field_validator("steers")
    @classmethod
    def _have_probabilities(cls, values: tuple[SteerConfig, ...]) -> tuple[SteerConfig, ...]:
        unknown = [write_spec(value) for value in values if not isinstance(value, Guidance)]
        if unknown:
            raise ValueError(
                f"the texts of {unknown[0]} have no probability that could be written down; give guidance, or --best-of N "
                "(rejection stands beside the frontier unasked)"
            )
        return values


OPTIONS = {
    "betas": "--beta",
    "num_exact": "--num-exact",
    "max_draws": "--max-draws",
    "best_of": "--best-of",
    "steers": "--steer",
    "judges": "--judge",
    "optimism": "--optimism",
    "returns": "--returns",
    "values": "--values",
    "sampling.num_samples": "--num-samples",
    "sampling.max_new_tokens": "--max-new-tokens",
    "sampling.min_new_tokens": "--min-new-tokens",
    "sampling.temperature": "--temperature",
    "sampling.control": "--control",
    "sampling.seed": "--seed",
}
"""Settings that have an option of their own, by dotted key; for the others there is `--set`."""
