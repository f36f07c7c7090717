"""What a user may choose, and the errors that explain a wrong choice. No torch here."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from phf.config.fields import StrictConfig
from phf.config.objectives import GoodConfig, ObjectiveConfig, objective_kinds
from phf.config.recipes import apply_overrides, find_line, read_recipe
from phf.errors import PHFError, suggest
from phf.files import Place
from phf.records import ControlStyle

SegmentKind = Literal["lines", "sentences", "paragraphs", "document", "imported"]


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
    """Whether documents of one block are hidden from each other, and positions start again at each; a `model.init` that cannot
    (state spaces, convolutions, ALiBi) is refused, and trains with false."""
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


class MixConfig(StrictConfig):
    """Blocks of other corpora among the run's own, such as text that a model has written (`phf online`)."""

    corpora: tuple[str, ...] = Field(min_length=1)
    """Folders of corpora that are scored, and tokenized by the run's tokenizer; they take turns."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the run's blocks that are theirs."""
    reward_model: str | None = None
    """Whose annotation of these corpora to train on; null takes the run's."""
    scored: bool = True
    """Whether the objective sees their scores, by the thresholds of the run's own corpus; with false they are trained on as plain
    MLE would."""


Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrainConfig(StrictConfig):
    """One run: everything that decides its bytes, and where its data lies."""

    corpus: str
    """The corpus folder made by `phf corpus build`, or its URL."""
    reward_model: str
    """Whose annotation of the corpus to train on, as it was named to `phf annotate`: `toxicity-svm`, `calm:score`,
    `-kind:reward`, a folder, a weighted sum."""
    segments: SegmentKind
    """What got one score when the corpus was annotated and tokenized."""
    tokenizer: str = "train:4096"
    """`train:SIZE` (trained on the corpus, with that vocabulary), a folder, or a Hub id."""
    objective: ObjectiveConfig
    """The objective, by its kind and that kind's settings."""
    good: GoodConfig = GoodConfig(good_fraction=0.5)
    """Where good ends in validation losses and evaluations, unless the objective draws that line itself; not given, it
    is the objective's line, also that of a kind which an override replaced."""
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
    keep_checkpoints: Annotated[int, Field(ge=1)] | Literal["all"] = 2
    """So many last checkpoints stay on the disk, or all: for `--init RUN@STEP`, `evaluate --step` and scores over training."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 5
    """So many steps in a row whose loss or gradient is not finite stop the run; fewer are skipped and counted."""
    start: StartConfig | None = None
    """Another run's weights to start from, written by `phf train --init`; null starts from `model`."""
    mix: MixConfig | None = None
    """Other corpora to train on among the run's own; null trains on its own alone."""
    data_parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Several processes hold the whole model each (ddp) or a share (fsdp); auto shards what would fill half of a
    GPU."""
    trackers: tuple[Tracker, ...] = ()
    """Where metrics go beside metrics.jsonl; each needs the package of its name."""

    @model_validator(mode="before")
    @classmethod
    def _follow_objective(cls, value: object) -> object:
        if isinstance(value, dict) and "good" not in value and (line := find_line(value)):
            return {**value, "good": line}
        return value


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
        hint = suggest(path[-1], valid, cutoff=0.5)
        return f"key '{_dotted(path)}' is not known; {hint}valid keys are {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"key '{_dotted(path)}' is missing; add it to the recipe or give {_dotted(path)}=VALUE"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        if path[0] != "objective":
            return f"{_dotted(path)}.kind is not known or missing; choose one of {(detail.get('ctx') or {}).get('expected_tags', 'the kinds')}"
        kinds = list(objective_kinds())
        given = str((detail.get("ctx") or {}).get("tag", "(missing)"))
        return (
            f"objective.kind '{given}' is not known; {suggest(given, kinds)}choose one of {', '.join(kinds)}"
        )
    message = detail["msg"].removeprefix("Value error, ")
    key = _dotted([part for part in path if part.isidentifier() or part.isdecimal()])  # no names of types
    place = f"{key}={detail['input']!r:.200}" if not isinstance(detail["input"], dict) else key
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
        raise PHFError(
            f"{where} '{kind}' is not known; {suggest(kind, kinds)}choose one of {', '.join(kinds)}"
        )
    overrides = [part for part in re.split(r",(?=\w+=)", settings) if part]  # a value may hold commas
    return parse(kinds[kind], apply_overrides({"kind": kind}, overrides), f"{where} {text}")


def write_spec(config: BaseModel, *, defaults: bool = False) -> str:
    """The inverse of `parse_spec`, without settings that are the default (unless asked for): names a choice in tables."""
    given = config.model_dump(mode="json", exclude_defaults=not defaults, exclude={"kind"})
    settings = ",".join(f"{key}={'null' if value is None else value}" for key, value in given.items())
    kind: str = config.model_dump()["kind"]
    return f"{kind}:{settings}" if settings else kind


def load_train_config(recipe: Place, overrides: str | Sequence[str] = ()) -> TrainConfig:
    """A shipped recipe, or a YAML file, with overrides (`key.path=value`, one or several), checked.

    Raises:
        PHFError: see `read_recipe`, `apply_overrides`, `parse`.
    """
    return parse(TrainConfig, apply_overrides(read_recipe(recipe), overrides), f"recipe {recipe}")
