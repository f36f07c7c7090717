"""What a user may choose of `phf infer` (docs/posterior.md)."""

from typing import Annotated

from pydantic import Field, field_validator

from phf.config.fields import StrictConfig
from phf.config.steer import Guidance, SteerConfig
from phf.config.train import SamplingConfig, write_spec

_Count = Annotated[int, Field(gt=0)]


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
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    sampling: SamplingConfig = SamplingConfig(
        num_samples=2000, temperature=1, top_p=1, min_new_tokens=1, max_new_tokens=64, control="forced"
    )
    """How all policies write; `num_samples` of each. Their texts must have probabilities, so `top_p` is 1 and `control` not free."""

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
    "sampling.num_samples": "--num-samples",
    "sampling.max_new_tokens": "--max-new-tokens",
    "sampling.min_new_tokens": "--min-new-tokens",
    "sampling.temperature": "--temperature",
    "sampling.control": "--control",
    "sampling.seed": "--seed",
}
"""Settings that have an option of their own, by dotted key; for the others there is `--set`."""
