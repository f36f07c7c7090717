"""How capabilities differ between good and bad mode, and what the models can do: BLiMP, downstream tasks, harness tasks."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from phf.records import Estimate
from phf.report.figures import Drawing, draw_figure, plot_point, shorten
from phf.report.reading import RunFolder, as_dict, as_estimate, as_list, lookup, mode_rank
from phf.report.verdict import Group, pool, pool_tables

_MAX_GROUPS = 12
"""Groups that the figure shows; the table has all."""

_MAX_DETAILED = 4
"""With more groups than this the figure shows bits per byte on all text alone."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A capability that is measured in each mode, and where evaluation.json has it.

    Attributes:
        path: keys, with None in the place of the mode.
        difference: keys of good mode's minus bad mode's, paired by text, under `good_minus_bad`.
    """

    name: str
    unit: str
    path: tuple[str | None, ...]
    difference: tuple[str, ...]
    is_lower_better: bool = True

    def read(self, run: RunFolder, mode: str) -> Estimate:
        """The number of one run in one mode."""
        return run.measure(*(mode if key is None else key for key in self.path))


MEASURES = (
    Measure(
        "Bits per byte, good text",
        "bits per byte",
        ("modes", None, "bits_per_byte", "good"),
        ("bits_per_byte", "good"),
    ),
    Measure(
        "Bits per byte, bad text",
        "bits per byte",
        ("modes", None, "bits_per_byte", "bad"),
        ("bits_per_byte", "bad"),
    ),
    Measure(
        "Bits per byte, all text",
        "bits per byte",
        ("modes", None, "bits_per_byte", "all"),
        ("bits_per_byte", "all"),
    ),
    Measure("KL(reference || model)", "nats per token", ("kl", "modes", None, "per_token"), ("kl",)),
    Measure(
        "BLiMP accuracy",
        "share right",
        ("blimp", "modes", None, "accuracy"),
        ("blimp",),
        is_lower_better=False,
    ),
)


@dataclass(frozen=True, slots=True)
class ModeComparison:
    """One capability of one group in its modes.

    Attributes:
        difference: good mode minus bad mode.
        better: the mode that does better, or empty where the interval of the difference holds 0 or there is none.
    """

    measure: Measure
    modes: dict[str, Estimate]
    difference: Estimate
    better: str


def compare_modes(group: Group) -> list[ModeComparison]:
    """Capabilities in good mode beside bad mode, where both were measured.

    The difference is taken within each seed, so that what makes one seed better than another falls out; its interval is
    a t-interval over seeds. One seed's is a bootstrap over texts, paired, since both modes read the same ones.
    """
    found = []
    for measure in MEASURES:
        modes = {mode: group.pool(partial(measure.read, mode=mode)) for mode in ("good", "bad", "none")}
        if not all(math.isfinite(modes[mode].mean) for mode in ("good", "bad")):
            continue
        gaps = [measure.read(run, "good").mean - measure.read(run, "bad").mean for run in group.runs]
        difference = pool([as_estimate(gap) for gap in gaps])
        paired = group.runs[0].measure("good_minus_bad", *measure.difference)
        if len(group.runs) == 1 and math.isfinite(paired.mean):
            difference = paired
        found.append(ModeComparison(measure, modes, difference, _name_better(difference, measure)))
    return found


def _name_better(difference: Estimate, measure: Measure) -> str:
    if difference.high < 0:
        return "good" if measure.is_lower_better else "bad"
    if difference.low > 0:
        return "bad" if measure.is_lower_better else "good"
    return ""


def draw_modes(compared: list[tuple[Group, list[ModeComparison]]]) -> list[Drawing]:
    """A figure for each kind of capability: the modes of each group on one line, with their intervals."""
    drawings = []
    for unit in dict.fromkeys(measure.unit for measure in MEASURES):
        rows = [
            (group, comparison)
            for group, comparisons in compared[:_MAX_GROUPS]
            for comparison in comparisons
            if comparison.measure.unit == unit
        ]
        if len(compared) > _MAX_DETAILED:
            rows = [row for row in rows if row[1].measure.name == rows[-1][1].measure.name]
        if rows:
            drawings.append(_draw_unit(unit, rows, num_groups=len(compared)))
    return drawings


def _draw_unit(unit: str, rows: list[tuple[Group, ModeComparison]], num_groups: int) -> Drawing:
    name = rows[0][1].measure.name.partition(",")[0]
    better = "lower" if rows[0][1].measure.is_lower_better else "higher"
    texts = dict.fromkeys(comparison.measure.name.rpartition(", ")[2] for _, comparison in rows)
    labels = [
        " · ".join(
            [
                *([shorten(group.label)] if num_groups > 1 else []),
                *([comparison.measure.name.rpartition(", ")[2]] if num_groups == 1 or len(texts) > 1 else []),
            ]
        )
        for group, comparison in rows
    ]
    on = f", on {next(iter(texts))}" if len(texts) == 1 and unit == "bits per byte" else ""

    def draw(axes: Axes) -> None:
        for place, (label, (_, comparison)) in enumerate(zip(labels, rows, strict=True)):
            for shift, (mode, estimate) in zip((-0.22, 0.0, 0.22), comparison.modes.items(), strict=True):
                plot_point(axes, f"{label}, {mode} mode", mode, (estimate.mean, place + shift), estimate)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{unit}{on}  ({better} is better)")

    caption = "Circle: good mode; diamond: bad mode; square: no control token. 95 % intervals."
    if num_groups > _MAX_GROUPS:
        caption += f" The first {_MAX_GROUPS} of {num_groups} configurations; the table has all."
    return draw_figure(draw, f"{name} by mode", caption, height=0.8 + 0.44 * len(rows))


def tabulate_diversity(groups: list[Group]) -> tuple[list[str], list[tuple[Group, str, list[Estimate]]]]:
    """Names of the measures of diversity that any run has, and a row per group and mode."""
    names = dict.fromkeys(
        name
        for group in groups
        for run in group.runs
        for mode in run.modes
        for name in as_dict(lookup(run.evaluation, "modes", mode, "diversity"))
        if name != "num_ngrams"
    )
    rows = [
        (group, mode, [group.measure("modes", mode, "diversity", name) for name in names])
        for group in groups
        for mode in group.modes
    ]
    return list(names), [row for row in rows if any(math.isfinite(value.mean) for value in row[2])]


def tabulate_fields(groups: list[Group]) -> tuple[list[str], list[tuple[Group, str, list[Estimate]]]]:
    """BLiMP's fields, and a row per group and mode with the accuracy in all and in each of them."""
    fields = dict.fromkeys(
        field
        for group in groups
        for run in group.runs
        for value in as_dict(lookup(run.evaluation, "blimp", "modes")).values()
        for field in as_dict(as_dict(value).get("fields"))
    )
    rows = [
        (
            group,
            mode,
            [
                group.measure("blimp", "modes", mode, "accuracy"),
                *(group.measure("blimp", "modes", mode, "fields", field) for field in fields),
            ],
        )
        for group in groups
        for mode in group.modes
    ]
    return list(fields), [row for row in rows if math.isfinite(row[2][0].mean)]


def tabulate_kl(groups: list[Group]) -> list[tuple[Group, str, list[Estimate]]]:
    """A row per group and mode: KL per token, per sequence, and what the control tokens cost."""
    rows = [
        (
            group,
            mode,
            [
                group.measure("kl", "modes", mode, name)
                for name in ("per_token", "per_sequence", "control_cost")
            ],
        )
        for group in groups
        for mode in group.modes
    ]
    return [row for row in rows if math.isfinite(row[2][0].mean)]


@dataclass(frozen=True, slots=True)
class Task:
    """A task's score in each mode (or with each prefix), and what guessing the commonest answer gives."""

    group: Group
    name: str
    metric: str
    scores: dict[str, Estimate]
    baseline: Estimate


def tabulate_tasks(groups: list[Group], key: str) -> list[Task]:
    """Tasks of `downstream` (by prefix) or `harness` (by mode), pooled over seeds of training."""
    tasks = []
    for group in groups:
        tables: list[dict[tuple[str, str, str], Estimate]] = []
        baselines: dict[tuple[str, str], Estimate] = {}
        for run in group.runs:
            table = {}
            for task in map(as_dict, as_list(lookup(run.evaluation, key, "tasks"))):
                name, metric = str(task.get("task")), str(task.get("metric"))
                table[name, metric, str(task.get("mode") or task.get("prefix") or "none")] = _read_task(task)
                baselines[name, metric] = as_estimate(task.get("baseline"))
            tables.append(table)
        pooled = pool_tables(tables)
        for (name, metric), baseline in baselines.items():
            scores = {mode: score for (*of, mode), score in pooled.items() if of == [name, metric]}
            ordered = dict(sorted(scores.items(), key=lambda item: mode_rank(item[0])))
            tasks.append(Task(group, name, metric, ordered, baseline))
    return tasks


def _read_task(task: dict[str, Any]) -> Estimate:
    """The score of a task; the harness gives a standard error, from which comes a normal interval."""
    score = as_estimate(task.get("score", task.get("value")))
    error = as_estimate(task.get("stderr")).mean
    if math.isfinite(error) and not math.isfinite(score.low):
        return Estimate(score.mean, score.mean - 1.96 * error, score.mean + 1.96 * error, score.count)
    return score
