"""What a user may choose of steering at inference (docs/steering.md): `--steer KIND:key=value,...`."""

from typing import Annotated, Literal

from pydantic import Field

from phf.config import StrictConfig
from phf.records import ControlStyle

_Count = Annotated[int, Field(gt=0)]


class ControlSteer(StrictConfig):
    """Who writes control tokens after the first (contract: Modes)."""

    kind: Literal["control"] = "control"
    style: ControlStyle = "forced"


class Guidance(StrictConfig):
    """Classifier-free guidance: logits of the mode, moved `scale` - 1 times away from those of `against`.

    `against`: the other mode, or `none`, a page without control tokens. `scale` 1 is no guidance.
    """

    kind: Literal["guidance"] = "guidance"
    scale: float = 1.5
    against: Literal["other", "none"] = "other"


class Direction(StrictConfig):
    """Subtracts `scale` times a vector from the residual stream at every position.

    `of`: `bad` is the embedding of `<|bad|>`; `difference` is the mean of bad mode's states less good mode's, there.
    `layer`: 0 is the input, l is what layer l gives; `all` = the input's and every layer's own.
    """

    kind: Literal["direction"] = "direction"
    of: Literal["bad", "difference"] = "difference"
    layer: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    scale: float = 1.0


class Lookahead(StrictConfig):
    """Draws `width` continuations of `tokens` tokens, keeps the one that the model itself believes most to be good, goes on."""

    kind: Literal["lookahead"] = "lookahead"
    width: Annotated[int, Field(gt=1)] = 4
    tokens: _Count = 8


class BestOfN(StrictConfig):
    """Of `n` samples the one with the lowest score. `reward_model`: default, the one that annotated the run's corpus."""

    kind: Literal["best-of-n"] = "best-of-n"
    n: Annotated[int, Field(gt=1)] = 8
    reward_model: str | None = None


class Rejection(StrictConfig):
    """Draws until a score is at most `threshold`, `tries` times at most. `threshold`: default, the run's."""

    kind: Literal["rejection"] = "rejection"
    tries: Annotated[int, Field(gt=1)] = 16
    threshold: float | None = None
    reward_model: str | None = None


class SMC(StrictConfig):
    """Sequential Monte Carlo for p(x) exp(-score / `beta`), with the model's own posterior of good as twist.

    `particles`: of each population, which gives one sample. `ess`: resample where the effective sample size falls below
    this share. `twist`: false is importance sampling by the final score, for comparison.
    """

    kind: Literal["smc"] = "smc"
    beta: Annotated[float, Field(ge=1e-6)] = 0.1
    particles: Annotated[int, Field(gt=1)] = 8
    ess: Annotated[float, Field(gt=0, le=1)] = 0.5
    twist: bool = True
    reward_model: str | None = None


SteerConfig = Annotated[
    ControlSteer | Guidance | Direction | Lookahead | BestOfN | Rejection | SMC, Field(discriminator="kind")
]
