"""What a user may choose of an evaluation (docs/evaluation.md)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from phf.config.fields import StrictConfig, flatten
from phf.config.steer import SteerConfig
from phf.config.train import SAMPLING_OPTIONS, SamplingConfig, parse_spec, write_spec
from phf.records import Split

_Count = Annotated[int, Field(gt=0)]


class ScenarioConfig(StrictConfig):
    """Prompts to continue."""

    names: tuple[str, ...] = ()
    """Prompts to continue: rtp, signatures, pii-templates, ..., or files or hf:ID with a field `prompt`."""
    num_prompts: _Count = 100
    """Prompts of each scenario, drawn by the sampling seed."""
    continuations: _Count = 25
    """Texts drawn for each prompt; 25, as in RealToxicityPrompts, whose expected maximum needs as many."""
    scores_prompt: bool | None = None
    """Whether judges read the prompt with its continuation; null: for code alone, as in the paper."""


class KLConfig(StrictConfig):
    """KL(reference || model), over texts that a reference language model wrote."""

    reference: str | None = None
    """KL from this language model: a folder, Hub id, .gguf file, or a JSONL of texts with log-probabilities."""
    num_sequences: _Count = 512
    """Texts that the reference writes; the paper has 4,096."""
    num_tokens: _Count = 64
    """Length of these texts, in the reference's tokens; the paper's 64."""


class BlimpConfig(StrictConfig):
    """Grammar, by the minimal pairs of BLiMP."""

    source: str | None = None
    """BLiMP's minimal pairs: a file, or nyu-mll/blimp."""
    num_pairs: Annotated[int, Field(ge=0)] = 100
    """Pairs of each of the 67 paradigms, drawn by the sampling seed; 0 takes all 1,000."""


class RedTeamConfig(StrictConfig):
    """The stochastic few-shot attack (Perez et al. 2022); the defaults are for two cores."""

    attacker: str | None = None
    """Red team with this language model: a folder, Hub id or .gguf file."""
    trials: _Count = 4
    """Independent searches, over which intervals are; the paper has 10."""
    rounds: _Count = 5
    """Rounds of a search after its seed prompts were valued; the paper has 10."""
    prompts_per_round: _Count = 10
    """New prompts that the attacker writes in a round; the paper has 20."""
    continuations: _Count = 64
    """Texts of the run that value a prompt; the paper has 512."""
    shots: _Count = 4
    """Prompts that the attacker is shown, drawn with probability proportional to exp(value / temperature)."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the draw of these prompts, in units of a value; a very high one makes the attack a random search."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the search: which prompts are shown, and what the attacker writes."""


class BenignConfig(StrictConfig):
    """Finetuning on documents without a bad segment, and the score again."""

    steps: Annotated[int, Field(ge=0)] = 100
    """Steps of finetuning on good text, after which scores are measured again; 0 leaves it out."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """AdamW's constant learning rate, as a share of the run's peak (`optim.learning_rate`)."""
    split: Split = "train"
    """Documents to finetune on: those the run trained on, or held-out ones, of which few are soon learned by heart."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Order of the documents."""


class HarnessConfig(StrictConfig):
    """Tasks of lm-evaluation-harness."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, by name or as .yaml (extra `harness`)."""
    limit: _Count | None = None
    """Questions of each task; null asks all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question; null takes the task's own number."""


class DownstreamConfig(StrictConfig):
    """Classifiers finetuned from the run, with all weights."""

    tasks: tuple[str, ...] = ()
    """Classifiers to finetune: folders with GLUE's train.tsv and dev.tsv, or nyu-mll/glue:sst2."""
    num_seeds: _Count = 3
    """Finetunings of each task, with the seeds 0 and up; the interval is Student's t over them."""
    epochs: _Count = 3
    """Passes over the training examples."""
    batch_size: _Count = 32
    """Examples in a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """AdamW's peak learning rate, behind 6 % warm-up; it falls linearly to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's weight decay."""
    max_train: Annotated[int, Field(ge=0)] = 0
    """Training examples, drawn by the first seed; 0 takes all."""


def _read_steer(value: object) -> Any:
    """A method by its spec, or by its settings, whose errors then name what is valid."""
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        settings = ",".join(
            f"{key}={item}" for key, item in value.items() if key != "kind" and item is not None
        )
        value = f"{value['kind']}:{settings}"
    return parse_spec(SteerConfig, value, "--steer") if isinstance(value, str) else value


class EvaluateConfig(StrictConfig):
    """What `phf evaluate` measures. What has a source of its own is measured in either suite once the source is given."""

    judges: tuple[str, ...] = ()
    """A held-out judge beside the annotator: any reward model."""
    suite: Literal["quick", "full"] = "quick"
    """quick; or full: also the deleted mode, earlier checkpoints, leaks, the in-context attack, benign finetuning."""
    sampling: SamplingConfig = SamplingConfig()
    """How samples are drawn."""
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    best_of: Annotated[int, Field(gt=1)] = 16
    """n of the reference `best of n`: MLE's samples, chosen by the annotator."""
    data_samples: _Count = 2000
    """Openings of training documents that are scored as a reference."""
    capability_documents: _Count = 400
    """Held-out documents on which bits per byte are measured."""
    gain_segments: _Count = 300
    """Held-out segments behind control gain and calibration, good and bad ones each."""
    trajectory_checkpoints: _Count = 8
    """Checkpoints whose scores are measured over training, evenly spaced (full suite)."""
    leak_samples: _Count = 256
    """Samples of each probe of leaks, the in-context attack and benign finetuning (full suite)."""
    benign: BenignConfig = BenignConfig()
    """Finetuning on documents without a bad segment (full suite)."""
    scenarios: ScenarioConfig = ScenarioConfig()
    """Prompts to continue."""
    kl: KLConfig = KLConfig()
    """KL from a reference language model."""
    blimp: BlimpConfig = BlimpConfig()
    """Grammar, by minimal pairs."""
    embedder: str | None = None
    """MAUVE against human text, by this language model's embeddings: a folder or Hub id."""
    red_team: RedTeamConfig = RedTeamConfig()
    """The stochastic few-shot attack."""
    harness: HarnessConfig = HarnessConfig()
    """Tasks of lm-evaluation-harness."""
    downstream: DownstreamConfig = DownstreamConfig()
    """Classifiers finetuned from the run."""
    steer: tuple[Annotated[SteerConfig, BeforeValidator(_read_steer)], ...] = ()
    """A method of steering beside plain sampling, as KIND:key=value,..., such as guidance:scale=2."""


OPTIONS = {
    "suite": "--suite",
    "judges": "--judge",
    "scenarios.names": "--scenario",
    "kl.reference": "--reference-lm",
    "blimp.source": "--blimp",
    "red_team.attacker": "--attacker",
    "harness.tasks": "--task",
    "downstream.tasks": "--glue",
    "embedder": "--embedder",
    "steer": "--steer",
    **{f"sampling.{name}": option for name, option in SAMPLING_OPTIONS.items()},
}
"""Settings of an evaluation that have an option of their own, by dotted key; for the others there is `--set`."""


def list_options(settings: Mapping[str, object]) -> list[str]:
    """The options of `phf evaluate` that give these settings (by dotted key): the inverse of how it reads them."""
    options = []
    for key, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            text = write_spec(_read_steer(item)) if isinstance(item, dict) else str(item)
            options += [OPTIONS[key], text] if key in OPTIONS else ["--set", f"{key}={text}"]
    return options


def list_asked(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings of an evaluation (as `model_dump` gives them) that are no defaults, by dotted key, for `list_options`."""
    defaults = flatten(EvaluateConfig().model_dump(mode="json"))
    return {name: value for name, value in flatten(config).items() if value != defaults.get(name)}
