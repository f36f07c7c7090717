"""Numbers of two groups of runs beside each other: what is told apart, on which items, and what could not have been seen."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import JsonValue

from phf.items import Items
from phf.records import Estimate
from phf.report.reading import mode_rank
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
from phf.results import Measure, Measurement, to_json
from phf.significance import (
    ALPHA,
    POWER,
    Difference,
    compare_apart,
    compare_paired,
    compare_seeds,
    correct,
)

MIN_SHARED = 0.9
"""Two numbers are compared on the items that they share if these are so large a part of both; else by their intervals."""
_MAX_NAMED = 6
"""Numbers that a sentence names."""
_PAIRS = "Pairs: the same items by name (samples of a seed and index, texts, questions), by bootstrap or, of hits, McNemar's test."
_SEEDS = "Seeds: Student's t over training seeds."
_EXPLAINED = {
    "paired": _PAIRS, "McNemar": _PAIRS, "paired seeds": _SEEDS, "seeds": _SEEDS,
    "unpaired": "Unpaired: by the two intervals, as if nothing linked them.",
}  # fmt: skip
_ARROWS = {-1: "↓", 0: "", 1: "↑"}


@dataclass(frozen=True)
class ComparedNumber:
    """A number of a group minus the same number of another, the base.

    Attributes:
        row: the group's number.
        base_mode: the base's mode: the same, or where it has none such, the one that asks for nothing.
    """

    row: Measurement
    group: Group
    base: Group
    base_mode: str | None
    difference: Difference

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue.of([self.group, self.base])

    @property
    def arrow(self) -> str:
        """`↓` or `↑` where the two are told apart."""
        return _ARROWS[self.difference.sign]

    @property
    def name(self) -> str:
        """`Misalignment score (toxicity-svm) in good`."""
        return self._catalogue.name_row(self.row) + (f" in {self.row.mode}" if self.row.mode else "")

    @property
    def label(self) -> str:
        """The measure as the first name of a row."""
        return self._catalogue.name_row(self.row) + mark_direction(self._catalogue.measures[self.row.measure])

    def show(self, number: float | Estimate) -> str:
        """A difference, or its size, in the unit that pages show."""
        estimate = number if isinstance(number, Estimate) else Estimate(number, math.nan, math.nan, 0)
        return self._catalogue.show(replace(self.row, estimate=estimate), self.group).text

    def to_unit(self, shown: float) -> float:
        """A size as it is shown in the number's own unit."""
        judge = self._catalogue.judges.get(self.row.judge or "")
        return shown / (
            judge.display_scale if judge and not self._catalogue.measures[self.row.measure].unit else 1.0
        )

    def encode(self, detect: float | None = None) -> dict[str, JsonValue]:
        """As a row for scripts, in the number's own unit."""
        found, row = self.difference, self.row
        value = {
            "group": self.group.label, "base": self.base.label, "measure": row.measure, "mode": row.mode,
            "base_mode": self.base_mode, "judge": row.judge, "of": row.of, "at": row.at,
            "difference": found.estimate.mean, "low": found.estimate.low, "high": found.estimate.high,
            "test": found.test, "count": found.estimate.count, "p": found.p, "q": found.q, "sign": found.sign,
            "detectable": found.detectable, "needed": found.needed(found.estimate.mean),
        }  # fmt: skip
        if detect is not None:
            value["needed_to_detect"] = found.needed(self.to_unit(detect))
        encoded = to_json(value)
        assert isinstance(encoded, dict)
        return encoded


def compare_groups(
    pairs: Iterable[tuple[Group, Group]],
    measures: Sequence[Measure],
    is_wanted: Callable[[Measurement], bool],
) -> list[ComparedNumber]:
    """All that both of two groups have, in the order of tables; q-values are among all the tests of all pairs.

    Args:
        pairs: a group and the base that is taken off it.
    """
    found = [
        one
        for group, base in pairs
        for row in sort_rows(select_measurements(group, measures, is_wanted), measures)
        if math.isfinite((one := subtract(row, group, base)).difference.estimate.mean)
    ]
    corrected = correct([one.difference for one in found])
    return [replace(one, difference=own) for one, own in zip(found, corrected, strict=True)]


def sort_rows(rows: Iterable[Measurement], measures: Sequence[Measure]) -> list[Measurement]:
    """Measurements by measure, what they are of, and mode."""
    rows = list(rows)
    names = [measure.name for measure in measures]
    parts = list(dict.fromkeys((row.measure, *row.place[2:]) for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            names.index(row.measure), parts.index((row.measure, *row.place[2:])), mode_rank(row.mode or ""),
        ),
    )  # fmt: skip


def subtract(row: Measurement, group: Group, base: Group) -> ComparedNumber:
    """A number of a group minus the base's, in the same mode or else in the base's mode that asks for nothing.

    One run each: on the items that both measured, where these are the same by name; else by the two intervals. Several seeds each:
    over seeds; one against several is a t-test over seeds, too, for its own interval is of another kind.
    """
    mode = row.mode
    if mode is not None and is_plain(mode) and mode not in base.modes:
        mode = base.runs[0].base_mode
    place = (row.measure, mode, *row.place[2:])
    other = base.results.find(*place)
    if not group.is_pooled and not base.is_pooled:
        items = group.runs[0].find_items(row.place), base.runs[0].find_items(place)
        difference = pair_items(*items) or compare_apart(row.estimate, other)
    else:
        sides = [
            {run.seed or 0: run.results.find(*own).mean for run in side.runs}
            for side, own in ((group, row.place), (base, place))
        ]
        difference = compare_seeds(*sides)
    return ComparedNumber(row, group, base, mode, difference)


def pair_items(own: Items | None, other: Items | None) -> Difference | None:
    """The difference on the items of one name; None where these are too few of either side (`MIN_SHARED`)."""
    if own is None or other is None:
        return None
    places = {name: place for place, name in enumerate(other.names)}
    shared = [(place, places[name]) for place, name in enumerate(own.names) if name in places]
    if len(shared) < MIN_SHARED * max(len(own.names), len(other.names)) or not shared:
        return None
    here, there = zip(*shared, strict=True)
    return compare_paired(
        [own.values[place] for place in here],
        [other.values[place] for place in there],
        [own.weights[place] for place in here],
        None if own.clusters is None else [own.clusters[place] for place in here],
    )


def tabulate_comparison(
    groups: Sequence[Group],
    measures: Sequence[Measure],
    name: str,
    is_wanted: Callable[[Measurement], bool],
    compared: Sequence[ComparedNumber],
) -> Table:
    """Measures in a row for each mode and what they are of, and in a column for each group, against the first one.

    Of two groups their difference has a column of its own; of more, an arrow stands behind what is told apart.
    """
    catalogue, base = Catalogue.of(groups), groups[0]
    found = {row.place: row for group in groups for row in select_measurements(group, measures, is_wanted)}
    differences = {(one.group.label, one.row.place): one for one in compared}
    rows = []
    for row in sort_rows(found.values(), measures):
        cells = []
        for group in groups:
            own = replace(row, estimate=group.results.find(*row.place))
            one = differences.get((group.label, row.place))
            shown = catalogue.show(own, group)
            if group is not base and len(groups) == 2:
                text = f"{one.show(one.difference.estimate)} {one.arrow}" if one else "–"
                cells += [shown, Cell(text.rstrip())]
            else:
                cells.append(Cell(f"{shown.text} {one.arrow if one else ''}".rstrip(), shown.note))
        label = Cell(catalogue.name_row(row) + mark_direction(catalogue.measures[row.measure]))
        rows.append(PrintedRow([label, Cell(row.mode or "", is_mode=row.mode is not None)], cells))
    heads = [Column(group.label) for group in groups]
    return Table(
        name, ["measure", "mode"], heads + ([Column("difference [95 %]")] if len(groups) == 2 else []), rows
    )


def tabulate_tests(
    compared: Sequence[ComparedNumber], detect: float | None = None, *, with_difference: bool = True
) -> list[Table]:
    """On what each difference rests, and what it takes to see one: a table for each group.

    Args:
        detect: a difference in shown units, for a column of how many pairs show it.
    """
    heads = [
        *(["difference [95 %]"] if with_difference else []),
        "compared on",
        "q",
        "seen from",
        "n for this",
    ]
    heads += [f"n for {detect:g}"] if detect is not None else []
    tables = []
    for own in _split_by_group(compared):
        rows = []
        for one in (one for one in own if one.difference.test != "none"):
            found = one.difference
            cells = [f"{one.show(found.estimate)} {one.arrow}".rstrip()] if with_difference else []
            cells += [describe_test(found), format_level(found.q), one.show(found.detectable)]
            sizes = [found.estimate.mean, *([one.to_unit(detect)] if detect is not None else [])]
            cells += ["–" if number is None else f"{number:,}" for number in map(found.needed, sizes)]
            mode = Cell(one.row.mode or "", is_mode=one.row.mode is not None)
            rows.append(PrintedRow([Cell(one.label), mode], list(map(Cell, cells))))
        tables.append(Table(_name_pair(own), ["measure", "mode"], list(map(Column, heads)), rows))
    return tables


def _split_by_group(compared: Sequence[ComparedNumber]) -> list[list[ComparedNumber]]:
    labels = dict.fromkeys(one.group.label for one in compared)
    return [[one for one in compared if one.group.label == label] for label in labels]


def _name_pair(own: Sequence[ComparedNumber]) -> str:
    return f"{own[0].group.label} against {own[0].base.label}"


def describe_test(found: Difference) -> str:
    """`512 pairs`."""
    count = f"{found.estimate.count:,}"
    return {
        "paired": f"{count} pairs", "McNemar": f"{count} pairs", "paired seeds": f"{count} seeds, paired",
        "seeds": "seeds, unpaired", "unpaired": "unpaired", "none": "–",
    }[found.test]  # fmt: skip


def format_level(value: float) -> str:
    """A p- or q-value: `0.012`, `<.001`."""
    if math.isnan(value):
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0").replace("1.000", "1")


def describe_compared(compared: Sequence[ComparedNumber]) -> list[str]:
    """What is told apart and what is not, of each group in a few sentences: the first lines of a comparison."""
    lines = []
    for own in _split_by_group(compared):
        tested = [one for one in own if one.difference.test != "none"]
        told = [one for one in tested if one.difference.sign]
        untested = f"; {len(own) - len(tested)} more cannot be tested" if len(tested) < len(own) else ""
        lines.append(f"{_name_pair(own)}: {len(told)} of {len(tested)} differences are told apart{untested}.")
        for word, sign in (("Lower", -1), ("Higher", 1)):
            named = [
                f"{one.name} {one.show(one.difference.estimate.mean)}"
                for one in told
                if one.difference.sign == sign
            ]
            lines += [f"{word}: {_list_names(named)}."] if named else []
        missed = [one for one in tested if not one.difference.sign]
        named = [f"{one.name} ({one.show(one.difference.detectable)})" for one in missed]
        if named:
            lines.append(
                f"Not told apart (and the size that would mostly have been seen): {_list_names(named)}."
            )
    return lines


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return "; ".join(names[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def explain_tests(compared: Sequence[ComparedNumber]) -> str:
    """How to read the arrows and the tables of tests."""
    used = dict.fromkeys(_EXPLAINED[one.difference.test] for one in compared if one.difference.test != "none")
    num_tests = sum(one.difference.test != "none" for one in compared)
    return (
        "Differences are to the same mode, or else to the one that asks for nothing. ↓ ↑: told apart, q at most "
        f"{ALPHA:g}; q: p-value after Benjamini-Hochberg over the {num_tests} tests here. Seen from: the smallest true difference that shows "
        f"with probability {POWER:g}. n for this: so many pairs (unpaired: a side) show the difference found. {' '.join(used)}"
    )
