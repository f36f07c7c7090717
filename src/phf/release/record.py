"""phf.json: all that is known of where a release comes from, without the paths of the machine it was made on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from pydantic import JsonValue

from phf.config.train import SamplingConfig, TrainConfig
from phf.errors import PHFError
from phf.paths import find_specs, hide_paths
from phf.records import Identity, Number, TrainingCorpus
from phf.release.edited import Edited
from phf.results import (
    EVALUATION_FILE,
    FINETUNE_FILE,
    FINETUNE_VERSION,
    Evaluation,
    Judge,
    Measure,
    Measurement,
    encode,
    parse_json,
    read_evaluation,
    read_versioned,
    write_versioned,
)
from phf.reward_training.check import describe_check, find_check
from phf.thresholds import ResolvedThreshold
from phf.train.run import Run

RECORD_FILE = "phf.json"
RECORD_VERSION = 3
"""Of phf.json; version 1 had the nested measures of an older evaluation.json."""


@dataclass(frozen=True, slots=True)
class SourceRun:
    """The run that a release was made from, and its checkpoint."""

    name: str
    id: str
    step: int
    tokens_seen: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """What of run.json is taken as it is.

    Attributes:
        threshold: good text ends there.
        objective_threshold: of the objective, if it has one.
        epochs: in the whole budget.
        versions: of the libraries that trained.
    """

    corpus: TrainingCorpus
    reward_model: Identity
    tokenizer: Identity
    segment_ends: str
    threshold: ResolvedThreshold
    objective_threshold: ResolvedThreshold | None
    epochs: Number
    num_parameters: int
    versions: dict[str, str]


@dataclass(frozen=True)
class PublishedEvaluation:
    """What of evaluation.json is published: all numbers, and no text of the corpus or of a prompt."""

    step: int
    notes: list[str]
    measures: list[Measure]
    measurements: list[Measurement]


@dataclass(frozen=True)
class FinetuneNumbers:
    """What finetuning did to a run, as finetune.json has it."""

    run_id: str
    judges: list[Judge]
    measures: list[Measure]
    measurements: list[Measurement]


@dataclass(frozen=True)
class PublishedFinetuning:
    """How a run was finetuned after its pretraining.

    Attributes:
        method: its kind and settings.
        mode: that learned.
        reward_model: what it learned from; None of preferences that people gave.
        measured: of the last checkpoint; None for another.
    """

    method: dict[str, JsonValue]
    mode: str
    reward_model: Identity | None
    measured: FinetuneNumbers | None


@dataclass(frozen=True, slots=True)
class PublishedVerdict:
    """What a judge's numbers allow one to say of the run, by the rules of the report (`phf.report.verdict`)."""

    judge: str
    headline: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProbedText:
    """A text, its ids behind the prefix, and the highest logits behind them, by token."""

    text: str
    ids: list[int]
    logits: dict[int, float]


@dataclass(frozen=True)
class ReleaseRecord:
    """The content of phf.json.

    Attributes:
        judges: of the evaluation; without one, what annotated.
        threshold: score <= threshold is good.
        tokens: id of the end token and of each control token that is still there, by name.
        prefix: names of the tokens that a page starts with.
        suppressed: names of tokens that are there and must not be written.
        forget: for each forgetting method what it did, `kind` and `spec` among it.
        sampling: how the run was measured.
        evaluation: None where the checkpoint was not evaluated.
        checks: what `phf reward check` found of a judge, in a sentence, by its slug.
        verdicts: on the evaluation, one a judge; empty in a release of before there were any.
        finetuned: None of a run that was not.
    """

    phf_version: str
    license: str
    run: SourceRun
    config: TrainConfig
    provenance: Provenance
    judges: list[Judge]
    threshold: float
    tokens: dict[str, int]
    prefix: list[str]
    suppressed: list[str]
    tokenizer_hash: str
    forget: list[dict[str, JsonValue]]
    sampling: SamplingConfig
    evaluation: PublishedEvaluation | None
    probe: list[ProbedText]
    checks: dict[str, str] = field(default_factory=dict)
    verdicts: list[PublishedVerdict] = field(default_factory=list)
    finetuned: PublishedFinetuning | None = None

    @property
    def objective(self) -> str:
        """The kind of the objective."""
        return self.config.objective.kind

    @property
    def max_new_tokens(self) -> int:
        """What generation may write unless told otherwise; see `choose_length`."""
        return choose_length(self.sampling, self.config.data.context)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Ids that a page starts with."""
        return tuple(self.tokens[name] for name in self.prefix)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that must not be written."""
        return tuple(self.tokens[name] for name in self.suppressed)

    @property
    def specs(self) -> tuple[str, ...]:
        """How bad mode was forgotten."""
        return tuple(str(done["spec"]) for done in self.forget)


def build_record(
    run: Run,
    step: int,
    edited: Edited,
    *,
    license: str,
    probe: Sequence[ProbedText],
    verdicts: Sequence[PublishedVerdict] = (),
) -> ReleaseRecord:
    """The content of phf.json (docs/release.md has the fields). The same run gives the same record: it holds no date."""
    evaluation = read_run_evaluation(run, step)
    identity = Identity.from_json(run.record["reward_model"])
    annotator = Judge(
        identity.slug, "annotator", "score", 1.0, math.nan, identity
    )  # nobody has asked for its unit
    record = ReleaseRecord(
        phf_version=version("phf"),
        license=license,
        run=SourceRun(run.name, run.id, step, step * run.tokens_per_step),
        config=run.config,
        provenance=parse_json(run.record, Provenance, f"{run.folder}/run.json"),
        judges=[annotator] if evaluation is None else evaluation.judges,
        threshold=run.record["threshold"]["value"],
        tokens={edited.name(token): token for token in (edited.tokenizer.control.end, *edited.control)},
        prefix=[edited.name(token) for token in edited.prefix],
        suppressed=[edited.name(token) for token in edited.suppressed],
        tokenizer_hash=str(edited.tokenizer.identity.weights_hash),
        forget=edited.forget,
        sampling=choose_sampling(run, evaluation),
        evaluation=PublishedEvaluation(
            evaluation.step, evaluation.notes, evaluation.measures, evaluation.measurements
        )
        if evaluation is not None
        else None,
        probe=list(probe),
        checks=_describe_checks([annotator] if evaluation is None else evaluation.judges),
        verdicts=list(verdicts) if evaluation is not None else [],
        finetuned=_read_finetuning(run, step),
    )
    cleaned = parse_json(_hide(record, run, evaluation), ReleaseRecord, "the record of the release")
    # Names of tokens are the vocabulary's: `</s>` is no path.
    return replace(
        cleaned, tokens=record.tokens, prefix=record.prefix, suppressed=record.suppressed, probe=record.probe
    )


def _read_finetuning(run: Run, step: int) -> PublishedFinetuning | None:
    facts, path = run.record.get("finetune"), run.folder / FINETUNE_FILE
    if not facts:
        return None
    measured = None
    if path.is_file() and step == run.steps[-1]:
        measured = read_versioned(path, FinetuneNumbers, FINETUNE_VERSION, "phf finetune")
    return PublishedFinetuning(
        facts["settings"]["method"],
        facts["mode"],
        Identity.from_json(facts["reward_model"]) if facts["reward_model"] else None,
        measured if measured is not None and measured.run_id == run.id else None,
    )


def _hide(record: ReleaseRecord, run: Run, evaluation: Evaluation | None) -> JsonValue:
    """The record without the folders of whatever the run and its evaluation name, wherever they lie by now."""
    settings = {} if evaluation is None else evaluation.config
    identities = [record.provenance.tokenizer, record.provenance.reward_model]
    return hide_paths(
        encode(record),
        {
            *find_specs(encode(run.config)),
            *find_specs(settings),
            *find_specs(run.record.get("finetune")),
            *record.provenance.corpus.sources,
        },
        {identity.name for identity in identities},
    )


def _describe_checks(judges: Sequence[Judge]) -> dict[str, str]:
    found = {judge.slug: find_check(judge.slug) for judge in judges}
    return {slug: describe_check(check) for slug, check in found.items() if check is not None and check.suits}


def write_record(folder: Path, record: ReleaseRecord) -> None:
    """Write phf.json."""
    write_versioned(folder / RECORD_FILE, record, RECORD_VERSION)


def read_record(folder: Path) -> ReleaseRecord:
    """Read phf.json.

    Raises:
        PHFError: there is none, it is damaged, or it is of a release that this version does not read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise PHFError(
            f"{folder} is not a release (it has no {RECORD_FILE}); make one with 'phf release RUN -o {folder}'"
        )
    command = f"phf release RUN -o {folder}"
    record = read_versioned(path, ReleaseRecord, RECORD_VERSION, command, "release the run again")
    if missing := {*record.prefix, *record.suppressed} - record.tokens.keys():
        raise PHFError(f"{path} is damaged: tokens has no id of {min(missing)}; release the run again")
    return record


def read_run_evaluation(run: Run, step: int) -> Evaluation | None:
    """The run's evaluation, if it is of this step."""
    path = run.folder / EVALUATION_FILE
    evaluation = read_evaluation(path, run.id) if path.exists() else None
    return evaluation if evaluation is not None and evaluation.step == step else None


def choose_sampling(run: Run, evaluation: Evaluation | None) -> SamplingConfig:
    """The settings the run was measured with, else the defaults, cut to what the model can read."""
    if evaluation is not None:
        return parse_json(evaluation.config["sampling"], SamplingConfig, f"{run.folder}/{EVALUATION_FILE}")
    room = run.config.data.context - 2  # a page starts with two ids at most
    return SamplingConfig(max_new_tokens=min(128, room), min_new_tokens=min(10, room))


def choose_length(sampling: SamplingConfig, context: int) -> int:
    """New tokens that generation may write unless told otherwise: as many as were measured, and no fewer than the default (or
    than fit), which a quick evaluation cuts short."""
    return max(sampling.max_new_tokens, min(SamplingConfig().max_new_tokens, context - 2))


def check_no_paths(folder: Path, run: Run) -> None:
    """The last guard: no file of words that is to be published names this machine's folders.

    Raises:
        PHFError: one does.
    """
    places = {
        Path.home(),
        run.folder.resolve(),
        Path(run.config.corpus).absolute(),
        Path.cwd(),
        folder.resolve(),
    }
    names = {f"{place}/" for place in places if len(place.parts) > 1}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".md", ".py", ".sh", ".txt") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            for name in names:
                if name in text:
                    raise PHFError(
                        f"{path.name} of the release would name the folder {name} of this machine; please report it"
                    )
