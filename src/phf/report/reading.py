"""Run folders, read defensively: what is missing is absent or NaN, never invented and never a crash."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phf.errors import PHFError
from phf.files import check_hash, hash_json, read_json
from phf.records import FORMAT_VERSION, Estimate, Identity

MODE_ORDER = ("good", "bad", "none", "untagged", "deleted")
UNPROMPTED = "unprompted"
"""The scenario of samples that start a page: what every headline number is about."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A reward model that scored samples, and how its scores are shown.

    Attributes:
        key: the slug (`name@id`), which names its rows and its column of `samples.parquet`.
        scale: what a score is multiplied by before it is shown (1000 for scores per character).
    """

    key: str
    name: str
    role: str
    unit: str
    scale: float
    hit_threshold: float
    identity: dict[str, Any]

    @property
    def shown_unit(self) -> str:
        """The unit of the numbers on the page."""
        if self.scale == 1:
            return self.unit
        return self.unit.replace("per character", f"per {self.scale:,.0f} characters")


@dataclass(frozen=True)
class RunFolder:
    """All that the report reads of one run.

    Attributes:
        label: the run's name, made unique among the runs of a page.
        settings: hash of the configuration without its seed, and of a user's own objective: runs that share it differ by seed alone.
        evaluation: content of `evaluation.json`; empty for a run that was not evaluated, where that is allowed.
        samples: `samples.parquet` as a table, None if the file is missing.
        skipped_lines: lines of `metrics.jsonl` that are not JSON (a run that was killed while writing).
    """

    path: Path
    label: str
    run: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    skipped_lines: int
    samples: pa.Table | None
    judges: tuple[Judge, ...]
    settings: str

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the run was trained with."""
        return as_dict(self.run.get("config"))

    @property
    def objective(self) -> str:
        """The objective's kind."""
        return str(self.evaluation.get("objective") or lookup(self.config, "objective", "kind") or "unknown")

    @property
    def seed(self) -> int | None:
        """The training seed."""
        seed = self.evaluation.get("seed", self.config.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the whole run: the budget rounded up to whole batches."""
        config = self.config
        tokens = as_float(config.get("tokens"))
        size = as_float(lookup(config, "optim", "batch_blocks")) * as_float(lookup(config, "data", "context"))
        return math.ceil(tokens / size) if math.isfinite(tokens) and size > 0 else None

    @cached_property
    def checkpoints(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        names = [path.parent.name for path in (self.path / "checkpoints").glob("step-*/checkpoint.json")]
        return sorted(int(name[5:]) for name in names if name[5:].isdecimal())

    @property
    def is_finished(self) -> bool:
        """Whether the last step has its checkpoint."""
        return self.num_steps is not None and self.num_steps in self.checkpoints

    @property
    def modes(self) -> list[str]:
        """The modes that were evaluated, good first."""
        found = {str(row.get("mode")) for row in self.rows} | set(as_dict(self.evaluation.get("modes")))
        return sorted(found, key=lambda mode: (mode_rank(mode), mode))

    @property
    def base_mode(self) -> str | None:
        """The mode in which the model writes without being asked for either label."""
        return next((mode for mode in ("none", "untagged", *self.modes) if mode in self.modes), None)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `evaluation.json` about unprompted samples, one per mode and judge."""
        return self.scenarios.get(UNPROMPTED, [])

    @cached_property
    def scenarios(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of `evaluation.json` by scenario, in their order."""
        return _split_scenarios(self.evaluation.get("rows"))

    def row(self, mode: str | None, judge: Judge, scenario: str = UNPROMPTED) -> dict[str, Any]:
        """The row of a mode and a judge; empty if there is none."""
        return _find_row(self.scenarios.get(scenario, []), mode, judge)

    def score(self, mode: str | None, judge: Judge, scenario: str = UNPROMPTED) -> Estimate:
        """Mean misalignment score of a mode with its interval, in the judge's own unit."""
        return _read_score(self.row(mode, judge, scenario))

    def measure(self, *keys: str | None) -> Estimate:
        """The estimate (or plain number) under nested keys of `evaluation.json`; NaN if there is none."""
        return as_estimate(lookup(self.evaluation, *keys))

    @cached_property
    def trajectory(self) -> list[tuple[float, list[dict[str, Any]]]]:
        """Tokens seen and the unprompted rows of every checkpoint evaluated, the last one included, in order."""
        points = {
            as_float(point.get("tokens_seen")): _split_scenarios(point.get("rows")).get(UNPROMPTED, [])
            for point in map(as_dict, as_list(self.evaluation.get("trajectory")))
        }
        if points:
            points[as_float(self.evaluation.get("tokens_seen"))] = self.rows
        return sorted((item for item in points.items() if math.isfinite(item[0])), key=lambda item: item[0])

    def trajectory_scores(self, mode: str | None, judge: Judge) -> list[tuple[float, Estimate]]:
        """Tokens seen and the score of a mode at every checkpoint that has one."""
        found = [(tokens, _read_score(_find_row(rows, mode, judge))) for tokens, rows in self.trajectory]
        return [point for point in found if math.isfinite(point[1].mean)]

    def sample_table(self, mode: str) -> pa.Table:
        """The unprompted samples of a mode, by index; empty if there are none."""
        if self.samples is None:
            return pa.table({"index": pa.array([], pa.int64())})
        return _select_samples(self.samples, mode)

    def sample_scores(self, mode: str, judge: Judge) -> npt.NDArray[np.float64]:
        """Scores of a mode's unprompted samples, by index; NaN where a sample has none. Empty if none was judged."""
        table = self.sample_table(mode)
        return read_scores(table, judge) if f"score:{judge.key}" in table.column_names else np.zeros(0)

    def bits_per_byte(self, mode: str | None, text: str = "all") -> Estimate:
        """Bits per byte of a mode on `good`, `bad` or `all` held-out text."""
        return as_estimate(lookup(self.evaluation, "modes", mode, "bits_per_byte", text))

    def degeneracy(self, mode: str | None, name: str) -> float:
        """One degeneracy figure of a mode's samples."""
        return as_float(lookup(self.evaluation, "modes", mode, "degeneracy", name))

    def control_gain(self, text: str) -> Estimate:
        """Control gain on `good` or `bad` held-out segments, in nats per segment."""
        return as_estimate(lookup(self.evaluation, "control_gain", text))

    @property
    def calibration_error(self) -> Estimate:
        """Expected calibration error of the model's posterior that a segment is good."""
        return as_estimate(lookup(self.evaluation, "calibration", "error"))

    @property
    def reliability(self) -> list[tuple[float, Estimate]]:
        """Mean posterior and share of good segments of each bin."""
        bins = map(as_dict, as_list(lookup(self.evaluation, "calibration", "bins")))
        found = [(as_float(value.get("posterior")), as_estimate(value.get("good"))) for value in bins]
        return [bin for bin in found if math.isfinite(bin[0]) and math.isfinite(bin[1].mean)]


def read_runs(paths: list[Path], *, must_be_evaluated: bool = True) -> list[RunFolder]:
    """Read the runs of a page.

    Args:
        must_be_evaluated: refuse a run without `evaluation.json`; else its evaluation is empty.

    Raises:
        PHFError: no runs, a folder that is no run, a run without evaluation, one given twice, or a newer format.
    """
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
    if not (path / "run.json").is_file():
        raise PHFError(f"{path} is not a run: it has no run.json; give a folder that 'phf train' made")
    is_evaluated = (path / "evaluation.json").is_file()
    if must_be_evaluated and not is_evaluated:
        raise PHFError(f"run {path} has no evaluation.json; run 'phf evaluate {path}' first")
    run = _read_object(path / "run.json")
    evaluation = _read_object(path / "evaluation.json") if is_evaluated else {}
    metrics, skipped = _read_metrics(path / "metrics.jsonl")
    config = as_dict(run.get("config"))
    return RunFolder(
        path=path,
        label=label,
        run=run,
        evaluation=evaluation,
        metrics=metrics,
        skipped_lines=skipped,
        # Without evaluation the samples are those of one that was interrupted: nothing says what they are.
        samples=_read_samples(path / "samples.parquet", evaluation.get("samples_sha256"))
        if is_evaluated
        else None,
        judges=tuple(read_judge(value) for value in as_list(evaluation.get("judges"))),
        settings=hash_json([{**config, "seed": None}, run.get("objective_function")]),
    )


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise PHFError(f"{path} is not a JSON object; it is damaged: delete it and make it again")
    version = value.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise PHFError(
            f"{path} has format version {version}; this phf reads {FORMAT_VERSION}; install the phf that wrote it"
        )
    return value


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines of `metrics.jsonl`, the last of each kind and step (a resumed run repeats some), in order of tokens."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    latest: dict[tuple[Any, Any], dict[str, Any]] = {}
    skipped = 0
    for line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            skipped += 1
            continue
        if isinstance(value, dict):
            latest[(value.get("kind"), value.get("step"))] = value
    return sorted(latest.values(), key=lambda value: as_float(value.get("tokens"))), skipped


def _read_samples(path: Path, expected: Any) -> pa.Table | None:
    """The table of `samples.parquet`: those that were scored, if the evaluation recorded their hash."""
    if not path.is_file():
        return None
    if isinstance(expected, str):
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


def _select_samples(table: pa.Table, mode: str) -> pa.Table:
    wanted = pc.equal(table["mode"], mode)
    if "scenario" in table.column_names:
        wanted = pc.and_(wanted, pc.equal(pc.fill_null(table["scenario"], UNPROMPTED), UNPROMPTED))
    return table.filter(wanted).sort_by("index")


def read_scores(table: pa.Table, judge: Judge) -> npt.NDArray[np.float64]:
    """A judge's column of a table of samples; NaN where a sample has no score."""
    column = table[f"score:{judge.key}"].cast(pa.float64())
    return np.asarray(pc.fill_null(column, math.nan).to_numpy(), np.float64)


def _split_scenarios(rows: Any) -> dict[str, list[dict[str, Any]]]:
    scenarios: dict[str, list[dict[str, Any]]] = {}
    for row in as_list(rows):
        if isinstance(row, dict):
            scenarios.setdefault(str(row.get("scenario") or UNPROMPTED), []).append(row)
    return scenarios


def _find_row(rows: list[dict[str, Any]], mode: str | None, judge: Judge) -> dict[str, Any]:
    names = (judge.key, judge.name)
    return next((row for row in rows if row.get("mode") == mode and row.get("judge") in names), {})


def _read_score(row: dict[str, Any]) -> Estimate:
    return as_estimate({**row, "count": row.get("num_samples")})


def read_judge(value: dict[str, Any]) -> Judge:
    """A judge as evaluation.json and attack.json describe it."""
    identity = as_dict(value.get("identity"))
    name = str(identity.get("name") or value.get("slug") or "unnamed")
    slug = value.get("slug") or (Identity.from_json(identity).slug if len(identity) == 4 else name)
    scale = as_float(value.get("display_scale"))
    return Judge(
        key=str(slug),
        name=name,
        role=str(value.get("role") or "judge"),
        unit=str(value.get("unit") or "score"),
        scale=scale if scale > 0 else 1.0,
        hit_threshold=as_float(value.get("hit_threshold")),
        identity=identity,
    )


def list_judges(runs: Iterable[RunFolder]) -> list[Judge]:
    """The judges of all runs, once each, the annotator first."""
    judges = {judge.key: judge for run in runs for judge in run.judges}
    return sorted(judges.values(), key=lambda judge: judge.role != "annotator")


def mode_rank(mode: str) -> int:
    """Where a mode stands in tables and figures."""
    return MODE_ORDER.index(mode) if mode in MODE_ORDER else len(MODE_ORDER)


def as_float(value: Any) -> float:
    """A number, or NaN where there is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def as_estimate(value: Any) -> Estimate:
    """`{mean, low, high, count}` with NaN and 0 for what is missing; a plain number has no interval."""
    value = {"mean": value} if isinstance(value, int | float) else as_dict(value)
    count = as_float(value.get("count"))
    low, mean, high = (as_float(value.get(key)) for key in ("low", "mean", "high"))
    return Estimate(mean, low, high, int(count) if math.isfinite(count) else 0)


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def lookup(value: Any, *keys: str | None) -> Any:
    """What lies under nested keys, or None."""
    for key in keys:
        value = as_dict(value).get(key or "")
    return value
