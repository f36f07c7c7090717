"""Measurements as tables, the same for pages and for the terminal: a row and a column say between them which number stands in a cell."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import JsonValue
from rich.table import Table as TerminalTable
from rich.text import Text

from phf.records import Estimate
from phf.report.figures import scale_estimate
from phf.report.reading import RunFolder, is_steered, sort_modes
from phf.report.samples import visible_text
from phf.report.verdict import Group, Tone, format_interval, format_number
from phf.results import Judge, Measure, Measurement, pivot, to_json
from phf.terminal import make_table as make_terminal_table

Field = Literal["of", "at", "mode", "judge"]
Form = Literal["interval", "mean", "percent"]

_STYLES = {"good": "blue", "bad": "yellow"}
HEADLINE_MODES = ("good", "bad", "none")
"""Those of a short summary."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in one place of a table, as it is: whoever prints it makes it visible and escapes it.

    Attributes:
        note: in small print behind it; `role`: of the judge it names.
        tone: whether it is good news, bad news or neither.
        is_mode: whether it names a mode, which has a colour.
        is_code: whether it is what one types.
    """

    text: str
    note: str = ""
    role: str = ""
    tone: Tone | None = None
    is_mode: bool = False
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head, and what it adds to the place that its rows are of.

    Attributes:
        over: a head that neighbouring columns share; or `judge` is that head.
        show: what a row says there, of a column without a measure.
    """

    head: str
    measure: str = ""
    of: str | None = None
    judge: Judge | None = None
    over: str = ""
    form: Form = "interval"
    is_mode: bool = False
    show: "Callable[[MeasuredRow], Cell] | None" = None

    @property
    def shared(self) -> tuple[str, Judge | None] | None:
        """The head that it shares with its neighbours, if it does."""
        return (self.over, self.judge) if self.over or self.judge else None


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """Numbers of a group in one place, one for each column, in their own unit."""

    group: Group
    estimates: tuple[Estimate, ...] = ()
    mode: str | None = None
    judge: Judge | None = None
    of: str | None = None
    at: float | None = None

    def find(self, column: Column) -> Estimate:
        """The number that this row has in a column."""
        judge = column.judge or self.judge
        return self.group.results.find(
            column.measure,
            self.mode,
            judge.slug if judge else None,
            self.of if column.of is None else column.of,
            self.at,
        )


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """A printed row: names on the left, then its cells."""

    names: list[Cell]
    cells: list[Cell]
    is_faint: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table to print.

    Attributes:
        name: read aloud to those who do not see it.
        heads: over the names of its lines.
        kind: classes of page.css.
    """

    name: str
    heads: list[str]
    columns: list[Column]
    rows: list[PrintedRow]
    caption: str = ""
    kind: str = ""

    @property
    def has_two_heads(self) -> bool:
        """Whether some columns share a head."""
        return any(column.shared for column in self.columns)

    @property
    def overs(self) -> list[tuple[Column, int]]:
        """The upper row of heads: the first of the columns that share one, and how many they are (0: it shares none)."""
        heads: list[tuple[Column, int]] = []
        for column in self.columns:
            if column.shared and heads and heads[-1][0].shared == column.shared:
                heads[-1] = heads[-1][0], heads[-1][1] + 1
            else:
                heads.append((column, 1 if column.shared else 0))
        return heads

    @property
    def bodies(self) -> list[list[PrintedRow]]:
        """Lines that share their first name, together."""
        found: list[list[PrintedRow]] = []
        for line in self.rows:
            if found and found[-1][-1].names[0] == line.names[0] and not line.is_faint:
                found[-1].append(line)
            else:
                found.append([line])
        return found

    def starts(self, place: int) -> bool:
        """Whether a column begins a group of columns, which stands a little apart."""
        return self.columns[place].shared != (self.columns[place - 1].shared if place else None)


def is_plain(mode: str) -> bool:
    """Whether a measurement's mode is one in which samples are drawn without steering."""
    return not is_steered(mode) and mode not in ("labelled", "good-bad")


def select_rows(
    groups: Iterable[Group],
    columns: Sequence[Column],
    by: Sequence[Field] = ("mode",),
    judges: Sequence[Judge] = (),
    is_wanted: Callable[[str], bool] = is_plain,
) -> list[MeasuredRow]:
    """A row for each group and place that has a number in any of the columns, pooled over seeds.

    Args:
        by: what tells the rows of a group apart, in the order they are sorted by.
        judges: of a table by judge; others are left out.
        is_wanted: of a mode.
    """
    rows = []
    for group in groups:
        found = group.results.of(*dict.fromkeys(column.measure for column in columns))
        wanted = [row for row in found if any(_fits(row, column, by) for column in columns)]
        wanted = [row for row in wanted if row.mode is None or is_wanted(row.mode)]
        places = dict.fromkeys(_name_place(row, by) for row in wanted)
        own = [
            MeasuredRow(group, (), mode, judge, of, at)
            for mode, slug, of, at in _sort_places(list(places), by, judges)
            for judge in ([one for one in judges if one.slug == slug] if slug else [None])
        ]
        rows += [replace(row, estimates=tuple(map(row.find, columns))) for row in own]
    return [row for row in rows if any(math.isfinite(value.mean) for value in row.estimates)]


_Key = tuple[str | None, str | None, str | None, float | None]


def _fits(row: Measurement, column: Column, by: Sequence[Field]) -> bool:
    slug = column.judge.slug if column.judge else None
    return (
        row.measure == column.measure
        and ("of" in by or row.of == column.of)
        and ("judge" in by or row.judge == slug)
        and ("mode" in by or row.mode is None)
        and ("at" in by or row.at is None)
    )


def _name_place(row: Measurement, by: Sequence[Field]) -> _Key:
    return (
        row.mode if "mode" in by else None,
        row.judge if "judge" in by else None,
        row.of if "of" in by else None,
        row.at if "at" in by else None,
    )


def _sort_places(places: list[_Key], by: Sequence[Field], judges: Sequence[Judge]) -> list[_Key]:
    """Modes and judges in the order of the page, an axis upwards, the rest as they come."""
    modes = sort_modes(place[0] for place in places if place[0] is not None)
    slugs = [judge.slug for judge in judges]
    names = list(dict.fromkeys(place[2] for place in places))

    def rank(place: _Key) -> list[float]:
        mode, slug, of, at = place
        ranks: dict[Field, float] = {
            "mode": modes.index(mode) if mode in modes else -1,
            "judge": slugs.index(slug) if slug in slugs else -1,
            "of": names.index(of),
            "at": -1 if at is None else at,
        }
        return [ranks[name] for name in by]

    return sorted(places, key=rank)


def make_table(
    name: str,
    rows: Sequence[MeasuredRow],
    columns: Sequence[Column],
    by: Sequence[Field] = ("mode",),
    *,
    caption: str = "",
    kind: str = "",
    heads: dict[str, str] | None = None,
    describe: Callable[[Group], str] = lambda group: "",
) -> Table:
    """Rows as they are printed.

    Args:
        heads: other words for the fields in the heads (`group`, `of`, ...).
        describe: what stands beside the name of a group.
    """
    words = {"group": "objective", **(heads or {})}
    lines = [
        PrintedRow(
            [Cell(row.group.label, describe(row.group)), *(_name_cell(row, name) for name in by)],
            [
                column.show(row)
                if column.show
                else show_estimate(value, row.group, column.judge or row.judge, column.form)
                for value, column in zip(row.estimates, columns, strict=True)
            ],
        )
        for row in rows
    ]
    return Table(
        name, [words.get(name, name) for name in ("group", *by)], list(columns), lines, caption, kind
    )


def _name_cell(row: MeasuredRow, name: Field) -> Cell:
    if name == "mode":
        return Cell(row.mode or "–", is_mode=True)
    if name == "judge":
        return Cell(row.judge.name, role=row.judge.role) if row.judge else Cell("–")
    return Cell(row.of or "–") if name == "of" else Cell("–" if row.at is None else f"{row.at:g}")


def show_estimate(
    estimate: Estimate, group: Group | None = None, judge: Judge | None = None, form: Form = "interval"
) -> Cell:
    """A number in shown units; with its interval it says how many seeds have a number, where not all have."""
    shown = scale_estimate(estimate, judge.display_scale if judge else 1.0)
    if form == "percent":
        return Cell(format_percent(estimate.mean))
    if form == "mean":
        return Cell(format_number(shown.mean))
    num_seeds = len(group.runs) if group is not None else 1
    is_partial = num_seeds > 1 and 0 < estimate.count < num_seeds
    return Cell(format_interval(shown), f"{estimate.count} of {num_seeds} seeds" if is_partial else "")


def format_percent(share: float) -> str:
    """`43.2 %`; two digits below 10 %."""
    return f"{format_number(share * 100, 2 if share < 0.0995 else 3)} %" if math.isfinite(share) else "–"


# Tables of any measure, by what its `Measure` says.


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The measures and the judges of groups: how what was measured is named."""

    measures: dict[str, Measure]
    judges: dict[str, Judge] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Iterable[Group]) -> "Catalogue":
        """The measures that the files of the groups' runs declare, and any other by its name alone."""
        groups = list(groups)
        runs = [run for group in groups for run in group.runs if run.evaluation is not None]
        declared = {
            one.name: one for run in runs for one in (run.evaluation.measures if run.evaluation else ())
        }
        bare = {name: Measure(name, name.replace("_", " ")) for run in runs for name in run.results.measures}
        return cls(declared | {name: one for name, one in bare.items() if name not in declared},
                   {judge.slug: judge for group in groups for judge in group.judges})  # fmt: skip

    def name_row(self, row: Measurement) -> str:
        """`Bits per byte, good text`: the measure, what it is of, and who judged."""
        measure = self.measures[row.measure]
        of = f", {row.of} {measure.of}".rstrip() if row.of is not None else ""
        at = f", {measure.at} {row.at:g}".replace(",  ", ", ") if row.at is not None else ""
        judge = self.judges.get(row.judge or "")
        return f"{measure.title}{of}{at}" + (f" ({judge.name})" if judge else "")

    def show(self, row: Measurement, group: Group) -> Cell:
        """A measurement's number as it is shown."""
        judge = None if self.measures[row.measure].unit else self.judges.get(row.judge or "")
        return show_estimate(row.estimate, group, judge)


def mark_direction(measure: Measure) -> str:
    """`↓` where lower is better, `↑` where higher is."""
    return {True: " ↓", False: " ↑", None: ""}[measure.lower_is_better]


def tabulate_measures(
    groups: Sequence[Group],
    measures: Sequence[Measure],
    name: str,
    is_wanted: Callable[[Measurement], bool] = lambda row: not is_steered(row.mode or ""),
) -> Table:
    """Measures in a row for each group and what they are of, and in a column for each mode."""
    catalogue = Catalogue.of(groups)
    found = {group.label: select_measurements(group, measures, is_wanted) for group in groups}
    modes = sort_modes(row.mode for rows in found.values() for row in rows if row.mode is not None)
    has_none = any(row.mode is None for rows in found.values() for row in rows)
    keys: list[str | None] = [*modes, *([None] if has_none else [])]
    lines = []
    for group in groups:
        table = pivot(
            found[group.label], lambda row: (row.measure, row.judge, row.of, row.at), lambda row: row.mode
        )
        for place, numbers in table.items():
            measure, judge, of, at = place
            rows = [
                Measurement(measure, numbers[mode], mode, judge, of, at) if mode in numbers else None
                for mode in keys
            ]
            first = next(row for row in rows if row is not None)
            label = Cell(catalogue.name_row(first) + mark_direction(catalogue.measures[measure]))
            cells = [catalogue.show(row, group) if row else Cell("–") for row in rows]
            lines.append(PrintedRow([Cell(group.label), label], cells))
    columns = [Column(mode or "", is_mode=mode is not None) for mode in keys]
    return Table(name, ["objective", "measure"], columns, lines)


def select_measurements(
    group: Group, measures: Sequence[Measure], is_wanted: Callable[[Measurement], bool]
) -> list[Measurement]:
    """A group's numbers of some measures, pooled over seeds; those that are missing are left out."""
    found = group.results.of(*(measure.name for measure in measures))
    return [row for row in found if math.isfinite(row.estimate.mean) and is_wanted(row)]


def list_headlines(groups: Sequence[Group]) -> tuple[list[Measure], Callable[[Measurement], bool]]:
    """What a short summary shows: the measures that say they belong there, and which of their numbers.

    Those are of the modes good, bad and none. Where a measure has a number of the whole, its parts are left out.
    """
    measures = list(Catalogue.of(groups).measures.values())
    headlines = [measure for measure in measures if measure.is_headline] or measures
    wholes = {row.measure for group in groups for row in group.results if row.of is None}

    def is_wanted(row: Measurement) -> bool:
        is_part = row.of is not None and row.measure in wholes
        return row.mode in (*HEADLINE_MODES, None) and row.at is None and not is_part

    return headlines, is_wanted


def list_measured(runs: Sequence[RunFolder]) -> list[dict[str, JsonValue]]:
    """Every number of evaluated runs, a row each, in its own unit: for scripts."""
    rows: list[dict[str, JsonValue]] = []
    for run in runs:
        catalogue = Catalogue.of([Group(run.label, (run,))])
        for row in run.results:
            measure, judge = catalogue.measures[row.measure], catalogue.judges.get(row.judge or "")
            rows.append(
                {
                    "run": run.label,
                    "objective": run.objective,
                    "seed": run.seed,
                    "measure": row.measure,
                    "title": measure.title,
                    "unit": measure.unit or (judge.unit if judge else ""),
                    "mode": row.mode,
                    "judge": row.judge,
                    "of": row.of,
                    "at": row.at,
                    **{key: to_json(getattr(row.estimate, key)) for key in ("mean", "low", "high", "count")},
                }
            )
    return rows


def to_terminal(table: Table, *, skip: int = 0, title: str = "", max_columns: int = 3) -> list[TerminalTable]:
    """The table for a terminal; columns of numbers that do not fit side by side stand in another table below.

    Args:
        skip: names on the left that are left out.
        max_columns: of numbers side by side.
    """
    printed = []
    for start in range(0, len(table.columns), max_columns):
        places = range(start, min(start + max_columns, len(table.columns)))
        shown = make_terminal_table(visible_text(title) if start == 0 else "")
        for head in table.heads[skip:]:
            shown.add_column(_text(head), overflow="fold")
        for place in places:
            # A long head (the name of a run) stands in lines no wider than a number with its interval.
            lines = [textwrap.wrap(line, 20) or [""] for line in table.columns[place].head.split("\n")]
            head = "\n".join(part for line in lines for part in line)
            shown.add_column(_text(head), justify="right", no_wrap=True)
        before: list[Cell] = []
        for row in table.rows:
            if any(row.cells[place].text != "–" for place in places):
                names = row.names[skip:]
                # A name that repeats is shown once, as on the page.
                cells: list[Text] = []
                kept = [
                    Cell("") if names[: i + 1] == before[: i + 1] else name for i, name in enumerate(names)
                ]
                for cell in [*kept, *(row.cells[place] for place in places)]:
                    text = f"{cell.text} ({cell.note})" if cell.note else cell.text
                    cells.append(_text(text, _STYLES.get(cell.text, "") if cell.is_mode else ""))
                shown.add_row(*cells)
                before = names
        printed.append(shown)
    return printed


def _text(text: str, style: str = "") -> Text:
    """Foreign text for a terminal: visible, and no markup."""
    return Text(visible_text(text), style)
