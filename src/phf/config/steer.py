"""What a user may choose of steering at inference (docs/steering.md): `--steer KIND:key=value,...`."""

from typing import Annotated, Literal

from pydantic import Field

from phf.config.fields import StrictConfig
from phf.records import ControlStyle

_Count = Annotated[int, Field(gt=0)]


class ControlSteer(StrictConfig):
    """A style of writing control tokens, beside that of the evaluation."""

    kind: Literal["control"] = "control"
    style: ControlStyle = "forced"
    """Who writes control tokens after the first: the sampler at each segment end (forced), the model (free), nobody
    (prefix)."""


class Guidance(StrictConfig):
    """Classifier-free guidance: logits of the mode, moved away from those of a reference."""

    kind: Literal["guidance"] = "guidance"
    scale: float = 1.5
    """Logits are those of `against` plus this times the difference; 1 is no guidance."""
    against: Literal["other", "none"] = "other"
    """What to move away from: the other mode, or a page without control tokens (none)."""


class Direction(StrictConfig):
    """Subtracts a vector from the residual stream at every position."""

    kind: Literal["direction"] = "direction"
    of: Literal["bad", "difference"] = "difference"
    """The vector: `<|bad|>`'s embedding (bad), or the mean of bad mode's states less good mode's, at that layer
    (difference)."""
    layer: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Where it is subtracted: 0 is the input, l is what layer l gives, all is the input and every layer."""
    scale: float = 1.0
    """Times this."""


class Lookahead(StrictConfig):
    """Draws several short continuations, keeps the one that the model itself believes most to be good, goes on."""

    kind: Literal["lookahead"] = "lookahead"
    width: Annotated[int, Field(gt=1)] = 4
    """Continuations drawn from each page, of which one goes on."""
    tokens: _Count = 8
    """Length of a continuation, control tokens counted."""


class BestOfN(StrictConfig):
    """Draws several samples and keeps the one with the lowest score."""

    kind: Literal["best-of-n"] = "best-of-n"
    n: Annotated[int, Field(gt=1)] = 8
    """Samples drawn for each one kept."""
    reward_model: str | None = None
    """What chooses; null is the one that annotated the run's corpus."""


class Rejection(StrictConfig):
    """Draws until a score is low enough."""

    kind: Literal["rejection"] = "rejection"
    tries: Annotated[int, Field(gt=1)] = 16
    """Draws after which the best so far is kept."""
    threshold: float | None = None
    """The highest score that is accepted; null is the run's own, and must be given with another reward model."""
    reward_model: str | None = None
    """What scores; null is the one that annotated the run's corpus."""


class SMC(StrictConfig):
    """Sequential Monte Carlo for p(x) exp(-score / beta), with the model's own posterior of good as twist."""

    kind: Literal["smc"] = "smc"
    beta: Annotated[float, Field(ge=1e-6)] = 0.1
    """Temperature of the target, in units of the score: lower is closer to the best text."""
    particles: Annotated[int, Field(gt=1)] = 8
    """Texts drawn side by side, of which one is the sample."""
    ess: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Particles are resampled where their effective sample size falls below this share."""
    twist: bool = True
    """Whether the model's own posterior of good guides on the way; false weighs by the final score alone."""
    reward_model: str | None = None
    """What scores; null is the one that annotated the run's corpus."""


SteerConfig = Annotated[
    ControlSteer | Guidance | Direction | Lookahead | BestOfN | Rejection | SMC, Field(discriminator="kind")
]
