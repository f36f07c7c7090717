"""What a user may choose, and the errors that explain a wrong choice. No torch here."""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from phf.config.recipes import apply_overrides, read_recipe
from phf.errors import PHFError
from phf.records import ControlStyle, Poison

SegmentKind = Literal["lines", "sentences", "paragraphs", "document", "imported"]


class StrictConfig(BaseModel):
    """A group of settings: unknown keys are refused, and nothing changes once it is read.

    The string under each field is its sentence in docs/settings.md and in the help of options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    parameters: dict[str, Annotated[bool | int | float | str, BeforeValidator(_check_parameter)]] = {}
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


class ModelConfig(StrictConfig):
    """A preset trained from scratch, or a causal language model to start from."""

    preset: Literal["1M", "2.5M", "10M", "30M", "124M", "350M", "1B"] = "2.5M"
    """Size of a Llama model trained from scratch, by its parameters with the vocabulary it is meant for."""
    init: str | None = None
    """Folder or Hub id of a causal language model to start from, with its own tokenizer; null trains the preset from
    scratch."""
    layers: Annotated[int, Field(gt=0)] | None = None
    """Number of layers in place of the preset's; null keeps the preset's."""
    width: Annotated[int, Field(gt=0)] | None = None
    """Width of the residual stream in place of the preset's, a multiple of 2 x heads; the MLP grows with it."""
    heads: Annotated[int, Field(gt=0)] | None = None
    """Number of attention heads in place of the preset's; null keeps the preset's."""


class DataConfig(StrictConfig):
    """How documents become blocks."""

    context: Annotated[int, Field(ge=8)] = 256
    """Tokens in a block, control tokens included: the longest context that the model is trained on."""
    isolate_documents: bool = True
    """Whether documents of one block are hidden from each other, and positions start again at each."""
    missing: Literal["error", "drop"] = "error"
    """What a document with an unscored segment does: error stops, drop leaves it out, of every objective alike."""


class OptimConfig(StrictConfig):
    """AdamW (or Muon on the matrices), warm-up then cosine."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for all weights, or muon for the matrices inside the layers and adamw for embeddings, head, norms and
    biases."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """AdamW's peak learning rate."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Muon's peak learning rate; read only where name is muon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices and embeddings; norms and biases have none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the mean squared gradient; 0.95, below Adam's 0.999, as is usual for language models."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """The fraction of the steps over which the learning rate rises linearly to its peak."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The learning rate at the end of the cosine, as a fraction of the peak."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient's norm is clipped to this."""
    batch_blocks: Annotated[int, Field(gt=0)] = 8
    """Blocks in a step's batch, over all processes; must divide among them."""
    micro_batch_blocks: Annotated[int, Field(gt=0)] | None = None
    """Blocks that go through the model at once, on each process; null takes the whole batch, halved until it fits."""


class StartConfig(StrictConfig):
    """Another run's weights to start from (`--init RUN@STEP`), going on with the next tokens of the data order."""

    run: str
    """Folder of the run whose weights to start from."""
    step: Annotated[int, Field(gt=0)] | None = None
    """The checkpoint to start from; null takes the last."""
    reset_optimizer: bool = False
    """Whether optimizer states start fresh, and not as the other run left them."""


Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrainConfig(StrictConfig):
    """One run: everything that decides its bytes, and where its data lies."""

    corpus: str
    """The corpus folder made by `phf corpus build`, or its URL."""
    reward_model: str
    """Whose annotation of the corpus to train on: a name of `phf reward list`, a folder, or a weighted sum."""
    segments: SegmentKind
    """What got one score when the corpus was annotated and tokenized."""
    tokenizer: str = "train:4096"
    """`train:SIZE` (trained on the corpus, with that vocabulary), a folder, or a Hub id."""
    objective: ObjectiveConfig
    """The objective, by its kind and that kind's settings."""
    good: GoodConfig = GoodConfig(good_fraction=0.5)
    """Where good ends in validation losses and evaluations, unless the objective draws that line itself."""
    model: ModelConfig = ModelConfig()
    """The model to train."""
    data: DataConfig = DataConfig()
    """How documents become blocks."""
    optim: OptimConfig = OptimConfig()
    """How weights are moved."""
    tokens: Annotated[int, Field(gt=0)]
    """The whole budget in model inputs, control tokens included; rounded up to whole steps."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides initial weights, order of the data, and every label that is left out or tag that is drawn."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of forward and backward pass: auto takes bf16 where the hardware is measured to be faster in it. Weights stay
    fp32."""
    compile: Literal["auto"] | bool = "auto"
    """Whether layers are compiled: auto does on a GPU, and on the CPU for runs of more than 1e13 FLOPs."""
    validate_every: Annotated[int, Field(ge=0)] = 500
    """Steps between two validations; 0 validates only at the end."""
    validation_blocks: Annotated[int, Field(gt=0)] = 64
    """Blocks of held-out text in a validation, the same ones each time."""
    log_every: Annotated[int, Field(gt=0)] = 20
    """Steps between two lines of training in metrics.jsonl."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 500
    """Steps between two checkpoints; 0 saves only at the end (and when stopped)."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """So many last checkpoints stay on the disk."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 5
    """So many steps in a row whose loss or gradient is not finite stop the run; fewer are skipped and counted."""
    start: StartConfig | None = None
    """Another run's weights to start from, written by `phf train --init`; null starts from `model`."""
    data_parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Several processes hold the whole model each (ddp) or a share (fsdp); auto shards what would fill half of a
    GPU."""
    trackers: tuple[Tracker, ...] = ()
    """Where metrics go beside metrics.jsonl; each needs the package of its name."""


SamplingPrecision = Literal["fp32", "bf16"]


class SamplingConfig(StrictConfig):
    """How samples are drawn; the defaults are the paper's (section 3)."""

    num_samples: Annotated[int, Field(gt=0)] = 512
    """Texts drawn in each mode; the paper has 4,096."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Logits are divided by this; the paper's 0.7."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Tokens are drawn from the smallest set with this share of the mass; 1 draws from all. The paper's 0.9."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 10
    """Until so many tokens of text a sample cannot end; the paper's 10."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 128
    """A sample ends after so many tokens of text, control tokens not counted; the paper's 128."""
    control: ControlStyle = "free"
    """Who writes control tokens after the first: the model (free), nobody (prefix), or the sampler at each segment
    end (forced)."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """Samples drawn side by side; changes speed and memory, not the samples (but for rounding)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides every random number of sampling, and what is drawn for measuring; two modes see the same numbers."""
    precision: SamplingPrecision = "fp32"
    """Of weights and cache; bf16 is faster, and a sample may change with the batch it is drawn in."""
    engine: Literal["phf", "vllm"] = "phf"
    """What draws: phf, or vllm (extra `vllm`, a GPU), which has random numbers of its own."""

    @model_validator(mode="after")
    def _min_below_max(self) -> "SamplingConfig":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}"
            )
        return self


SAMPLING_OPTIONS = {
    name: f"--{name.replace('_', '-')}" for name in SamplingConfig.model_fields if name != "batch_size"
}
"""Settings of sampling that have an option of their own: all that decide what is drawn."""


_T = TypeVar("_T", bound=BaseModel)


def parse(kind: type[_T], value: Mapping[str, object], where: str) -> _T:
    """Check a mapping against a config class.

    Raises:
        PHFError: one line that names the first wrong key, its value, and the nearest valid key or the rule broken.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise PHFError(f"{where}: {_explain(kind, error)}") from None


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        valid = _valid_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"key '{_dotted(path)}' is not known; {hint}valid keys are {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"key '{_dotted(path)}' is missing; add it to the recipe or give {_dotted(path)}=VALUE"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        if path[0] != "objective":
            return f"{_dotted(path)}.kind is not known or missing; choose one of {(detail.get('ctx') or {}).get('expected_tags', 'the kinds')}"
        kinds = list(objective_kinds())
        given = str((detail.get("ctx") or {}).get("tag", "(missing)"))
        near = difflib.get_close_matches(given, kinds, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"objective.kind '{given}' is not known; {hint}choose one of {', '.join(kinds)}"
    message = detail["msg"].removeprefix("Value error, ")
    key = _dotted([part for part in path if part.isidentifier() or part.isdecimal()])  # no names of types
    place = f"{key}={detail['input']!r}" if not isinstance(detail["input"], dict) else key
    return f"{place}: {message[0].lower()}{message[1:]}"


def _dotted(path: list[str]) -> str:
    """The key as a user writes it: without the tag of the union that pydantic puts into the path."""
    if len(path) > 1 and path[0] == "objective":
        path = [path[0], *path[2:]]
    return ".".join(path)


def _valid_keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Keys that are valid at a place in a config."""
    if not path:
        return list(kind.model_fields)
    annotation = kind.model_fields[path[0]].annotation
    if path[0] == "objective":
        choices = objective_kinds()
        return list(choices[path[1]].model_fields) if len(path) > 1 and path[1] in choices else ["kind"]
    return _valid_keys(annotation, path[1:]) if isinstance(annotation, type) else []


def parse_spec(union: Any, text: str, where: str) -> Any:
    """One choice of a discriminated union from `KIND` or `KIND:key=value,key=value`.

    Raises:
        PHFError: the kind, a key or a value is not known.
    """
    kinds = {cls.model_fields["kind"].default: cls for cls in get_args(get_args(union)[0])}
    kind, _, settings = text.partition(":")
    if kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PHFError(f"{where} '{kind}' is not known; {hint}choose one of {', '.join(kinds)}")
    overrides = [part for part in re.split(r",(?=\w+=)", settings) if part]  # a value may hold commas
    return parse(kinds[kind], apply_overrides({"kind": kind}, overrides), f"{where} {text}")


def write_spec(config: BaseModel, *, defaults: bool = False) -> str:
    """The inverse of `parse_spec`, without settings that are the default (unless asked for): names a choice in tables."""
    given = config.model_dump(mode="json", exclude_defaults=not defaults, exclude={"kind"})
    settings = ",".join(f"{key}={'null' if value is None else value}" for key, value in given.items())
    kind: str = config.model_dump()["kind"]
    return f"{kind}:{settings}" if settings else kind


def load_train_config(recipe: str, overrides: list[str]) -> TrainConfig:
    """A recipe with overrides, checked.

    Raises:
        PHFError: see `read_recipe`, `apply_overrides`, `parse`.
    """
    return parse(TrainConfig, apply_overrides(read_recipe(recipe), overrides), f"recipe {recipe}")
