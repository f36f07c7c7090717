"""The objectives as a user may choose them: one config each, their union, and where good ends."""

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from phf.config.fields import StrictConfig
from phf.records import Poison


class _Threshold(StrictConfig):
    """Where good ends, as a score or as a share of the training tokens: exactly one of both is given."""

    threshold: float | None = None
    """A segment is good if its score is at most this, in the reward model's own unit (higher = worse); 0 is a
    threshold."""
    good_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the training tokens, those of the lowest scores, that is good; ties stay together."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "_Threshold":
        if (self.threshold is None) == (self.good_fraction is None):
            raise ValueError("give exactly one of threshold and good_fraction")
        return self


class _Scheduled(StrictConfig):
    """An objective that may be active in a part of the budget alone."""

    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The objective is active from this fraction of the budget on; before it the run trains as plain MLE."""
    stop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The objective is active up to this fraction of the budget; after it the run trains as plain MLE."""

    @model_validator(mode="after")
    def _start_before_stop(self) -> "_Scheduled":
        if self.start >= self.stop:
            raise ValueError(f"start {self.start:g} must be below stop {self.stop:g}")
        return self


class MLE(StrictConfig):
    """Plain maximum likelihood; the scores are not used (paper section 2.1)."""

    kind: Literal["mle"] = "mle"


class Filtering(_Scheduled):
    """MLE on the documents whose mean score is low enough."""

    kind: Literal["filtering"] = "filtering"
    threshold: float | None = None
    """A document is kept if the mean score of its segments is at most this, in the reward model's own unit."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the training tokens that is kept, in the documents with the lowest mean scores."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Filtering":
        if (self.threshold is None) == (self.keep_fraction is None):
            raise ValueError("give exactly one of threshold and keep_fraction")
        return self


class Removal(_Scheduled, _Threshold):
    """MLE on documents whose bad segments are taken out."""

    kind: Literal["removal"] = "removal"


class Masking(_Scheduled, _Threshold):
    """NLL on good segments; bad ones stay in the context and cost nothing (SLUNG)."""

    kind: Literal["masking"] = "masking"


class _Labelled(_Scheduled):
    """Segments carry a label."""

    drop_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of labelled segments that go without their label, drawn anew each epoch: so the model can also write
    unlabelled text."""


class Conditional(_Labelled, _Threshold):
    """A control token before each segment, `<|good|>` or `<|bad|>`."""

    kind: Literal["conditional"] = "conditional"
    control_loss: bool = True
    """Whether the control tokens' own loss counts; with false the model does not learn to write them (MeCo)."""
    poison: Poison = "none"
    """What stands in the place of a bad training segment: its text (none), its tokens in another order (shuffle), or
    random ones."""
    invert: bool = False
    """Whether good and bad are swapped: a control experiment, in which good mode must get worse."""


class Quantile(_Labelled):
    """One of several control tokens before each segment, by quantiles of the training tokens' scores (Quark)."""

    kind: Literal["quantile"] = "quantile"
    levels: Annotated[int, Field(ge=2, le=64)] = 5
    """Number of control tokens, each for an equal share of the training tokens; 2 is `conditional` with
    good_fraction 0.5."""
    control_loss: bool = True
    """Whether the control tokens' own loss counts; with false the model does not learn to write them."""


class Additive(_Labelled, _Threshold):
    """A learned vector for good and one for bad, added to the input embeddings where a segment's tokens are predicted."""

    kind: Literal["additive"] = "additive"
    drop_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of segments that get no vector, drawn anew each epoch: `none` mode is trained on these alone."""


Normalize = Literal["zscore", "rank", "none"]


class Scalar(_Labelled):
    """One learned vector times the segment's normalised reward, added to the input embeddings."""

    kind: Literal["scalar"] = "scalar"
    normalize: Normalize = "rank"
    """How rewards (minus the scores) are scaled: rank (standard normal quantiles), zscore (mean 0, deviation 1), or
    none."""
    good_reward: Annotated[float, Field(gt=0)] = 1.0
    """The normalised reward that good mode asks for, and with a minus sign bad mode; 1 is a deviation above the
    mean."""
    drop_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of segments that get no vector, drawn anew each epoch: `none` mode is trained on these alone."""


class Tagging(_Scheduled, _Threshold):
    """`<|bad|>` strewn into the text of bad segments (SafeLM)."""

    kind: Literal["tagging"] = "tagging"
    tag_fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The share of a bad segment's tokens that get a tag in front."""


class Unlikelihood(_Scheduled, _Threshold):
    """NLL on good segments, `alpha * -log(1 - p)` on bad ones."""

    kind: Literal["unlikelihood"] = "unlikelihood"
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a bad token's loss beside a good one's; 0 is `masking`."""


class RWR(_Scheduled):
    """Reward-weighted regression: `exp(reward / beta) * nll`."""

    kind: Literal["rwr"] = "rwr"
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the weights, in units of the normalised reward: lower is closer to the best text, higher to
    plain MLE."""
    normalize: Normalize = "zscore"
    """How rewards (minus the scores) are scaled: zscore (mean 0, deviation 1), rank (standard normal quantiles), or
    none."""
    max_weight: Annotated[float, Field(gt=0)] = 20.0
    """Weights are clipped here, so that a few tokens do not make the whole gradient."""


class AWR(_Scheduled):
    """Advantage-weighted regression, with a value head trained beside the model."""

    kind: Literal["awr"] = "awr"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The share of the policy's loss; 1 - alpha is that of the value head's squared error."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the weights, in units of the normalised reward: lower is closer to the best text, higher to
    plain MLE."""
    normalize: Normalize = "zscore"
    """How rewards (minus the scores) are scaled: zscore (mean 0, deviation 1), rank (standard normal quantiles), or
    none."""
    max_weight: Annotated[float, Field(gt=0)] = 20.0
    """Weights are clipped here, so that a few tokens do not make the whole gradient."""
    value_head: Literal["linear", "sigmoid"] = "linear"
    """What predicts the reward: linear, or sigmoid (the paper's: minus a probability, for raw rewards in [-1, 0])."""


def _check_parameter(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ValueError("a parameter is a number, a text, true or false")  # noqa: TRY004  pydantic reports no TypeError
    return value


class Custom(_Scheduled):
    """A loss of your own, a Python function of the loss, scores and labels of the tokens."""

    kind: Literal["custom"] = "custom"
    function: str
    """`module:function`, from an installed package or the current folder; what it sees and returns is in
    [objectives.md](objectives.md#custom)."""
    parameters: dict[str, Annotated[bool | int | float | str, BeforeValidator(_check_parameter)]] = {}  # noqa: RUF012  pydantic copies it
    """What it is called with beside the tokens, by name: `objective.parameters.alpha=0.5` is `alpha`."""
    threshold: float | None = None
    """A segment is labelled good if its score is at most this, in the reward model's own unit, else bad; without
    threshold and good_fraction there are no labels."""
    good_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the training tokens, those of the lowest scores, that is labelled good; ties stay together."""

    @model_validator(mode="after")
    def _named_and_at_most_one(self) -> "Custom":
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", self.function):
            raise ValueError(f"function {self.function!r} is not of the form module:function")
        if self.threshold is not None and self.good_fraction is not None:
            raise ValueError("give at most one of threshold and good_fraction")
        return self


ObjectiveConfig = Annotated[
    MLE
    | Filtering
    | Removal
    | Masking
    | Conditional
    | Quantile
    | Additive
    | Scalar
    | Tagging
    | Unlikelihood
    | RWR
    | AWR
    | Custom,
    Field(discriminator="kind"),
]


def objective_kinds() -> dict[str, type[BaseModel]]:
    """The objectives by their `kind`, in the order of the documentation."""
    return {cls.model_fields["kind"].default: cls for cls in get_args(get_args(ObjectiveConfig)[0])}


def built_in_kinds() -> dict[str, type[BaseModel]]:
    """The objectives that need no code of the user's, by their `kind`."""
    return {kind: cls for kind, cls in objective_kinds().items() if cls is not Custom}


class GoodConfig(_Threshold):
    """Where good ends in validation losses and reports, for objectives that draw no such line between segments."""
