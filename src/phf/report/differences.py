"""What two runs differ in: settings, and scores sample by sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from phf.config.fields import flatten
from phf.intervals import CONFIDENCE, bootstrap_mean
from phf.records import Estimate
from phf.report.reading import RunFolder, mode_rank, read_scores
from phf.report.tables import (
    Catalogue,
    Cell,
    Column,
    PrintedRow,
    Table,
    is_plain,
    mark_direction,
    select_measurements,
)
from phf.report.verdict import Group
from phf.results import Judge, Measure, Measurement

_NUM_BOOTSTRAP = 1000

_Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean score of one run's mode minus another's, in the judge's own unit.

    Attributes:
        is_paired: whether sample i of one was compared with sample i of the other, which had the same random numbers.
        arrow: `↓` or `↑` where the numbers are apart, else empty.
    """

    estimate: Estimate
    is_paired: bool
    arrow: str = ""


def subtract(row: Measurement, group: Group, base: Group, judges: Mapping[str, Judge]) -> Difference:
    """A number of a group minus that of another one, in the same mode or else in the mode that asks for nothing.

    Scores of one run each are compared sample by sample (`subtract_scores`). Other numbers have no interval of their
    difference; their arrow says that the two intervals do not touch.
    """
    mode = row.mode
    if mode is not None and is_plain(mode) and mode not in base.modes:
        mode = base.runs[0].base_mode
    is_alone = not group.is_pooled and not base.is_pooled
    if (
        is_alone
        and row.measure == "score"
        and row.of is None
        and row.mode in group.modes
        and mode is not None
    ):
        return subtract_scores(group.runs[0], row.mode or "", base.runs[0], mode, judges[row.judge or ""])
    other = base.results.find(row.measure, mode, row.judge, row.of, row.at)
    mean = row.estimate.mean - other.mean
    arrow = "↓" if row.estimate.high < other.low else "↑" if row.estimate.low > other.high else ""
    return Difference(Estimate(mean, np.nan, np.nan, 0), is_paired=False, arrow=arrow)


def list_settings(runs: Sequence[RunFolder]) -> dict[str, list[JsonValue]]:
    """Settings, data and versions in which runs differ: a value of each run by dotted name, None where it has none."""
    tables: list[dict[str, JsonValue]] = [
        {
            **flatten(run.record.config),
            **flatten({"finetune": run.record.finetune.list_settings() if run.record.finetune else {}}),
            **{f"versions.{name}": value for name, value in run.record.versions.items()},
            "corpus id": run.record.corpus.id if run.record.corpus else None,
            "parameters": run.record.num_parameters,
            "precision used": run.record.precision,
            "threshold used": run.record.threshold.value if run.record.threshold else None,
            "epochs": run.record.epochs,
        }
        for run in runs
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: [table.get(name) for table in tables] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def tabulate_comparison(
    groups: Sequence[Group], measures: Sequence[Measure], name: str, is_wanted: Callable[[Measurement], bool]
) -> Table:
    """Measures in a row for each mode and what they are of, and in a column for each group, against the first one.

    Of two groups their difference has a column of its own; of more, an arrow stands behind what differs.
    """
    catalogue, base = Catalogue.of(groups), groups[0]
    found = {row.place: row for group in groups for row in select_measurements(group, measures, is_wanted)}
    parts = list(dict.fromkeys((row.measure, *row.place[2:]) for row in found.values()))
    names = [measure.name for measure in measures]
    places = sorted(
        found.values(),
        key=lambda row: (
            names.index(row.measure),
            parts.index((row.measure, *row.place[2:])),
            mode_rank(row.mode or ""),
        ),
    )
    rows = []
    for row in places:
        cells = []
        for group in groups:
            own = replace(row, estimate=group.results.find(*row.place))
            difference = subtract(own, group, base, catalogue.judges) if group is not base else None
            shown = catalogue.show(own, group)
            if difference and len(groups) == 2:
                star = "*" if difference.is_paired else ""
                shown_difference = catalogue.show(replace(own, estimate=difference.estimate), group).text
                cells += [shown, Cell(f"{shown_difference}{star} {difference.arrow}".rstrip())]
            else:
                cells.append(
                    Cell(f"{shown.text} {difference.arrow if difference else ''}".rstrip(), shown.note)
                )
        label = Cell(catalogue.name_row(row) + mark_direction(catalogue.measures[row.measure]))
        rows.append(PrintedRow([label, Cell(row.mode or "", is_mode=row.mode is not None)], cells))
    heads = [Column(group.label) for group in groups] + (
        [Column("difference [95 %]")] if len(groups) == 2 else []
    )
    return Table(name, ["measure", "mode"], heads, rows)


def subtract_scores(
    run: RunFolder, mode: str, base: RunFolder, base_mode: str, judge: Judge, *, seed: int = 0
) -> Difference:
    """The difference of two modes by one judge, with a bootstrap interval over samples.

    Runs that were sampled with the same seed are compared sample by sample: pairs are resampled, which takes out what the
    shared random numbers do to both. Others are resampled apart. NaN where there are no scores to compare.

    Args:
        seed: of the bootstrap.
    """
    one, other = _read_mode(run, mode, judge), _read_mode(base, base_mode, judge)
    seeds = [folder.sampling.get("seed") for folder in (run, base)]
    if seeds[0] is not None and seeds[0] == seeds[1]:
        gaps = np.array([score - other[index] for index, score in one.items() if index in other])
        found = bootstrap_mean(gaps, _NUM_BOOTSTRAP, seed)
        return Difference(found, is_paired=True, arrow=_name_direction(found))
    apart = _subtract_means(_drop_missing(one), _drop_missing(other), seed)
    return Difference(apart, is_paired=False, arrow=_name_direction(apart))


def _name_direction(difference: Estimate) -> str:
    return "↓" if difference.high < 0 else "↑" if difference.low > 0 else ""


def _read_mode(run: RunFolder, mode: str, judge: Judge) -> dict[int, float]:
    """Scores of a mode's samples by their index."""
    table = run.sample_table(mode)
    if f"score:{judge.slug}" not in table.column_names:
        return {}
    return dict(zip(table["index"].to_pylist(), read_scores(table, judge).tolist(), strict=True))


def _drop_missing(scores: dict[int, float]) -> _Scores:
    values = np.array(list(scores.values()), np.float64)
    return values[~np.isnan(values)]


def _subtract_means(one: _Scores, other: _Scores, seed: int) -> Estimate:
    """Difference of two means of separate samples, with a percentile bootstrap interval."""
    if min(len(one), len(other)) < 2:
        return Estimate(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    gaps = _resample_means(one, rng) - _resample_means(other, rng)
    low, high = np.percentile(gaps, (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2))
    return Estimate(float(one.mean() - other.mean()), float(low), float(high), min(len(one), len(other)))


def _resample_means(values: _Scores, rng: np.random.Generator) -> _Scores:
    """Means of resamples, float64 [_NUM_BOOTSTRAP]."""
    return np.array([rng.choice(values, len(values)).mean() for _ in range(_NUM_BOOTSTRAP)])
