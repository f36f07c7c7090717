"""Run folders as pages read them: what a run did not record is absent, never invented; what is damaged is refused by name."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import JsonValue

from phf.errors import PHFError
from phf.evaluate.drawn import UNPROMPTED
from phf.files import Place, as_list, check_hash
from phf.finetune.results import FINETUNE
from phf.items import ITEMS_FILE, Items, mean_items, read_items
from phf.paths import find_specs, hide_specs
from phf.records import TrainingCorpus
from phf.results import (
    EVALUATION_FILE,
    MODE_ORDER,
    Evaluation,
    Judge,
    Measurement,
    Measurements,
    check_owner,
    encode,
    parse_json,
    read_evaluation,
)
from phf.results import Place as MeasuredPlace
from phf.thresholds import ResolvedThreshold
from phf.train.folder import count_steps, hash_recipe, list_checkpoints, read_run_record
from phf.train.metrics import Line, read_metrics

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectiveSettings:
    """Of a run's configuration, what pages say of its objective."""

    kind: str = "unknown"


@dataclass(frozen=True)
class ModelSettings:
    """Of a run's configuration, what pages say of its model."""

    init: str | None = None


@dataclass(frozen=True)
class OptimSettings:
    """Of a run's configuration, what the number of its steps follows from, with the context."""

    batch_blocks: int | None = None


@dataclass(frozen=True)
class DataSettings:
    """Of a run's configuration, what the number of its steps follows from, with the batch."""

    context: int | None = None


@dataclass(frozen=True)
class Settings:
    """The settings of a run that pages speak of; `RunRecord.config` has all."""

    corpus: str | None = None
    reward_model: str | None = None
    segments: str | None = None
    tokenizer: str | None = None
    tokens: int | None = None
    log_every: int = 0
    seed: int | None = None
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    data: DataSettings = field(default_factory=DataSettings)


@dataclass(frozen=True)
class StartFacts:
    """The run whose weights a run started from."""

    run: str | None = None


@dataclass(frozen=True)
class FinetuneFacts:
    """How a run was finetuned: by which method, in which mode, on which reward model (None: preferences that people gave), and all its
    settings."""

    method: str
    mode: str
    reward_model: dict[str, JsonValue] | None = field(default_factory=dict)
    settings: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """What was learned from."""
        judge = self.reward_model
        return "preferences that people gave" if judge is None else f"scores of {judge.get('name', '–')}"

    def list_settings(self) -> dict[str, JsonValue]:
        """What tells one finetuning from another, by name."""
        method = self.settings.get("method")
        own = (
            {key: value for key, value in method.items() if key != "kind"} if isinstance(method, dict) else {}
        )
        sizes = {key: self.settings.get(key) for key in ("steps", "texts", "pool", "learning_rate")}
        reward = self.reward_model and self.reward_model.get("name")
        return {"method": self.method, "mode": self.mode, "reward_model": reward, **own, **sizes}


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json that pages speak of; what a record that was cut does not say is None.

    Attributes:
        id: tells it from all other runs.
        config: the whole configuration that the run was trained with.
        threshold: good text ends there.
        objective_function: what identifies a user's own objective.
    """

    id: str | None = None
    config: dict[str, JsonValue] = field(default_factory=dict)
    versions: dict[str, JsonValue] = field(default_factory=dict)
    corpus: TrainingCorpus | None = None
    reward_model: dict[str, JsonValue] = field(default_factory=dict)
    tokenizer: dict[str, JsonValue] = field(default_factory=dict)
    threshold: ResolvedThreshold | None = None
    epochs: float | None = None
    num_parameters: int | None = None
    precision: str | None = None
    start: StartFacts | None = None
    objective_function: JsonValue = None
    finetune: FinetuneFacts | None = None


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """A line of metrics.jsonl: its kind, and its numbers by name (`step`, `tokens`, `loss`, ...)."""

    kind: str
    numbers: dict[str, float]

    def get(self, name: str) -> float:
        """A number; NaN if the line has none of that name."""
        return self.numbers.get(name, math.nan)


@dataclass(frozen=True)
class RunFolder:
    """All that the report reads of one run.

    Attributes:
        label: the run's name, made unique among the runs of a page.
        recipe: see `hash_recipe`.
        evaluation: None for a run that was not evaluated, where that is allowed.
        samples: `samples.parquet` as a table, None if the file is missing.
        skipped_lines: lines of `metrics.jsonl` that are damaged or another run's.
    """

    path: Path
    label: str
    record: RunRecord
    settings: Settings
    evaluation: Evaluation | None
    metrics: list[MetricsLine]
    skipped_lines: int
    samples: pa.Table | None
    recipe: str

    @property
    def objective(self) -> str:
        """The objective's kind."""
        if self.evaluation:
            return self.evaluation.objective
        kind, finetuned = self.settings.objective.kind, self.record.finetune
        return kind if finetuned is None else f"{kind} + {finetuned.method}"

    @property
    def seed(self) -> int | None:
        """The training seed."""
        return self.evaluation.seed if self.evaluation else self.settings.seed

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the whole run: the budget rounded up to whole batches."""
        settings = self.settings
        tokens, batch, context = settings.tokens, settings.optim.batch_blocks, settings.data.context
        return count_steps(tokens, batch, context) if tokens and batch and context else None

    @cached_property
    def checkpoints(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        return list_checkpoints(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether the last step has its checkpoint."""
        return self.num_steps is not None and self.num_steps in self.checkpoints

    @property
    def has_lost_metrics(self) -> bool:
        """Whether the last lines of metrics.jsonl are gone: a checkpoint of a later step is there. Pretraining ends with a
        validation, finetuning with its last step."""
        ends_with_validation = self.is_finished and self.record.finetune is None
        steps = [
            line.get("step") for line in self.metrics if line.kind == "validation" or not ends_with_validation
        ]
        reach = 0 if self.is_finished else self.settings.log_every
        return bool(self.checkpoints) and max(steps, default=0) + reach < self.checkpoints[-1]

    @property
    def results(self) -> Measurements:
        """All that was measured; nothing of a run that was not evaluated."""
        return self.evaluation.results if self.evaluation else Measurements()

    @property
    def judges(self) -> list[Judge]:
        """The reward models that scored its samples."""
        return self.evaluation.judges if self.evaluation else []

    @property
    def modes(self) -> list[str]:
        """The modes whose unprompted samples were scored, good first; what steered text is no mode of its own."""
        found = {row.mode for row in self.results.of("score") if row.mode is not None and row.of is None}
        return sort_modes(mode for mode in found if not is_steered(mode))

    @property
    def base_mode(self) -> str | None:
        """The mode in which the model writes without being asked for either label."""
        return next((mode for mode in ("none", "untagged", *self.modes) if mode in self.modes), None)

    @property
    def sampling(self) -> dict[str, JsonValue]:
        """The settings that its samples were drawn with."""
        sampling = self.evaluation.config.get("sampling") if self.evaluation else None
        return sampling if isinstance(sampling, dict) else {}

    def read_facts(self, name: str, kind: type[T]) -> T | None:
        """What belongs to a measure and is no number (`Evaluation.read_facts`)."""
        return self.evaluation.read_facts(name, kind) if self.evaluation else None

    def sample_table(self, mode: str, scenario: str = UNPROMPTED) -> pa.Table:
        """The samples of a mode in a scenario, by index; empty if there are none."""
        if self.samples is None:
            return pa.table({"index": pa.array([], pa.int64())})
        wanted = pc.equal(self.samples["mode"], mode)
        if "scenario" in self.samples.column_names:
            found = pc.fill_null(self.samples["scenario"], UNPROMPTED)
            wanted = pc.and_(wanted, pc.equal(found, scenario))
        return self.samples.filter(wanted).sort_by("index")

    def sample_scores(self, mode: str, judge: Judge) -> npt.NDArray[np.float64]:
        """Scores of a mode's unprompted samples, by index; NaN where a sample has none. Empty if none was judged."""
        table = self.sample_table(mode)
        return read_scores(table, judge) if f"score:{judge.slug}" in table.column_names else np.zeros(0)

    @cached_property
    def items(self) -> dict[MeasuredPlace, Items]:
        """What measurements were made of, but for those that `samples` holds; empty of an older evaluation, or if the file is gone.

        Raises:
            PHFError: it is damaged.
        """
        path = self.path / ITEMS_FILE
        expected = self.evaluation.items_sha256 if self.evaluation else None
        if expected is None or not path.is_file():
            return {}
        return read_items(path, expected, f"run 'phf evaluate {self.path}' to make it again")

    def find_items(self, place: MeasuredPlace) -> Items | None:
        """What a measurement was made of, item by item; None where that was not kept.

        A sample's name is the seed and the index that its random numbers come from, and its prompt.
        """
        if place in self.items:
            return self.items[place]
        measure, mode, slug, scenario, at = place
        judge = next((judge for judge in self.judges if judge.slug == slug), None)
        if measure not in ("score", "hit_rate") or mode is None or judge is None or at is not None:
            return None
        table, seed = self.sample_table(mode, scenario or UNPROMPTED), self.sampling.get("seed")
        if seed is None or len(table) == 0 or f"score:{slug}" not in table.column_names:
            return None
        scores = read_scores(table, judge)
        if measure == "hit_rate":
            scores = np.where(np.isnan(scores), np.nan, scores > judge.hit_threshold)
        prompts = table["prompt"].to_pylist() if "prompt" in table.column_names else [""] * len(table)
        names = [
            f"{seed}:{index}:{prompt}"
            for index, prompt in zip(table["index"].to_pylist(), prompts, strict=True)
        ]
        return replace(mean_items(place, names, scores), clusters=None if scenario is None else prompts)


def read_runs(runs: Place | Sequence[Place], *, must_be_evaluated: bool = True) -> list[RunFolder]:
    """Read the runs of a page.

    Args:
        must_be_evaluated: refuse a run without `evaluation.json`; else its evaluation is None.

    Raises:
        PHFError: no runs, a folder that is no run, a run without evaluation, one given twice, a damaged file, or one of
            another format version.
    """
    paths = [Path(run) for run in as_list(runs)]
    if not paths:
        raise PHFError("no runs given; name at least one run folder, such as runs/mle")
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise PHFError(f"run {path} is given twice; name every run once")
    names = [path.name for path in resolved]
    labels = [
        name if names.count(name) == 1 else f"{path.parent.name}/{name}"
        for path, name in zip(resolved, names, strict=True)
    ]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    return [_read_run(path, label, must_be_evaluated) for path, label in zip(paths, labels, strict=True)]


def _read_run(path: Path, label: str, must_be_evaluated: bool) -> RunFolder:
    value = read_run_record(path)
    record = parse_json(value, RunRecord, f"{path}/run.json")
    is_evaluated = (path / EVALUATION_FILE).is_file()
    if must_be_evaluated and not is_evaluated:
        raise PHFError(f"run {path} has no evaluation.json; run 'phf evaluate {path}' first")
    evaluation = _read_evaluation(path, record.id) if is_evaluated else None
    metrics = read_metrics(path, record.id or "")
    return RunFolder(
        path=path,
        label=label,
        record=record,
        settings=parse_json(record.config, Settings, f"{path / 'run.json'}: config"),
        evaluation=evaluation,
        metrics=_sort_lines(metrics.lines),
        skipped_lines=metrics.num_damaged,
        # Without evaluation the samples are those of one that was interrupted: nothing says what they are.
        samples=_read_samples(path / "samples.parquet", evaluation.samples_sha256) if evaluation else None,
        recipe=hash_recipe(value),
    )


def _read_evaluation(path: Path, run_id: str | None) -> Evaluation:
    """The evaluation, and what finetuning has measured beside it."""
    evaluation = read_evaluation(path / EVALUATION_FILE, run_id)
    if not FINETUNE.is_in(path):
        return evaluation
    finetuned = FINETUNE.read(path)
    check_owner(path / FINETUNE.name, finetuned.run_id, run_id, "finetune again")
    rows = finetuned.measurements
    used = {row.measure for row in rows}
    return replace(
        evaluation,
        measures=[*evaluation.measures, *(own for own in finetuned.measures if own.name in used)],
        measurements=[*evaluation.measurements, *rows],
    )


def hide_folders(run: RunFolder) -> RunFolder:
    """The run as a page shows it, which people pass on: every path that its settings name is cut to its last part."""
    evaluation, record = run.evaluation, run.record
    specs = {
        *find_specs(record.config),
        *find_specs({} if evaluation is None else evaluation.config),
        *(record.corpus.sources if record.corpus else ()),
    }
    names = {str(found.get("name")) for found in (record.tokenizer, record.reward_model)}
    where = f"{run.path}/run.json"
    record = parse_json(hide_specs(encode(record), specs, names), RunRecord, where)
    if evaluation is not None:
        evaluation = parse_json(hide_specs(encode(evaluation), specs, names), Evaluation, where)
    settings = parse_json(record.config, Settings, where)
    return replace(run, record=record, settings=settings, evaluation=evaluation)


def _sort_lines(lines: Iterable[Line]) -> list[MetricsLine]:
    """The last of each kind and step (a resumed run repeats some), in order of tokens."""
    latest: dict[tuple[str, float], MetricsLine] = {}
    for line in lines:
        numbers = {key: float(value) for key, value in line.items() if key != "kind" and value is not None}
        latest[line["kind"], numbers["step"]] = MetricsLine(line["kind"], numbers)
    return sorted(latest.values(), key=lambda line: line.get("tokens"))


def _read_samples(path: Path, expected: str) -> pa.Table | None:
    """The table of `samples.parquet`: those that were scored, by the hash that the evaluation recorded."""
    if not path.is_file():
        return None
    check_hash(path, expected, f"run 'phf evaluate {path.parent} --force'")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise PHFError(
            f"{path} cannot be read ({' '.join(str(error).split())}); run 'phf evaluate {path.parent} --force'"
        ) from None
    if missing := {"mode", "index", "text"} - set(table.column_names):
        raise PHFError(
            f"{path} has no column '{min(missing)}'; it is damaged: run 'phf evaluate {path.parent} --force'"
        )
    return table


def read_scores(table: pa.Table, judge: Judge) -> npt.NDArray[np.float64]:
    """A judge's column of a table of samples; NaN where a sample has no score."""
    column = table[f"score:{judge.slug}"].cast(pa.float64())
    return np.asarray(pc.fill_null(column, math.nan).to_numpy(), np.float64)


def list_judges(runs: Iterable[RunFolder]) -> list[Judge]:
    """The judges of all runs, once each, the annotator first."""
    judges = {judge.slug: judge for run in runs for judge in run.judges}
    return sorted(judges.values(), key=lambda judge: judge.role != "annotator")


def is_steered(mode: str) -> bool:
    """Whether a measurement's mode names a method of steering too: `good + guidance:scale=2`."""
    return " + " in mode


def sort_modes(modes: Iterable[str]) -> list[str]:
    """Modes once each, as tables and figures have them."""
    return sorted(set(modes), key=lambda mode: (mode_rank(mode), mode))


def mode_rank(mode: str) -> int:
    """Where a mode stands in tables and figures."""
    return MODE_ORDER.index(mode) if mode in MODE_ORDER else len(MODE_ORDER)


def sort_by_at(rows: Iterable[Measurement]) -> list[Measurement]:
    """Measurements along their axis that have a number and a place there."""
    found = [row for row in rows if row.at is not None and math.isfinite(row.estimate.mean)]
    return sorted(found, key=lambda row: row.at or 0.0)
