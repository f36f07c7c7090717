"""What `phf compare` says of runs, as data: what they differ in, what was measured, and the verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import JsonValue

from phf.files import Place
from phf.objective_facts import is_baseline
from phf.report.compared import (
    ComparedNumber,
    compare_groups,
    describe_compared,
    explain_tests,
    tabulate_tests,
)
from phf.report.differences import list_settings
from phf.report.provenance import list_unlike
from phf.report.reading import RunFolder, is_steered, read_runs
from phf.report.tables import Catalogue, list_headlines, list_measured
from phf.report.verdict import Group, find_mle, group_runs, judge_group
from phf.results import Measure, Measurement

_MANY = 6
"""With more groups than this, a page compares the modes one would release alone."""


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other, in the order given.

    Attributes:
        settings: settings, data and versions that differ: a value of each run by dotted name.
        measured: every number of the evaluated runs, a row each, with its interval.
        differences: the headline numbers minus those of the first run's group, a row each: on what they rest (`test`, `count`), p and q,
            the smallest difference that would have been seen, and how many pairs show the one found (`phf.significance`).
        verdicts: of each judge on each objective that is not MLE, a line each.
        notices: in what the evaluations are not alike, a line each.
    """

    settings: dict[str, list[JsonValue]]
    measured: list[dict[str, JsonValue]]
    differences: list[dict[str, JsonValue]]
    verdicts: list[str]
    notices: list[str]


def compare_runs(
    runs: Place | Sequence[Place], *, everything: bool = False, detect: float | None = None
) -> Comparison:
    """Read runs, evaluated or not, and say in what they differ.

    Args:
        everything: differences of every number, not of the headlines alone.
        detect: a difference in shown units: each row says how many pairs would show it, too.

    Raises:
        PHFError: see `read_runs`.
    """
    folders = read_runs(runs, must_be_evaluated=False)
    evaluated = [run for run in folders if run.evaluation]
    groups = group_runs(evaluated)
    compared = compare_with_first(name_groups(groups, evaluated[0]) if evaluated else [], everything)
    return Comparison(
        list_settings(folders),
        list_measured(evaluated),
        [one.encode(detect) for one in compared],
        [line for group in groups for line in list_verdicts(group, groups)],
        list_unlike(evaluated),
    )


def name_groups(groups: list[Group], first: RunFolder) -> list[Group]:
    """Groups under the names of their runs, or how many seeds they are; the one that holds the first run first."""
    named = [
        replace(
            group, label=f"{group.label}, {len(group.runs)} seeds" if group.is_pooled else group.runs[0].label
        )
        for group in groups
    ]
    return sorted(named, key=lambda group: first not in group.runs)


def compare_with_first(groups: list[Group], everything: bool) -> list[ComparedNumber]:
    """Every group's numbers minus the first one's."""
    measures, is_wanted = list_wanted(groups, everything)
    return compare_groups([(group, groups[0]) for group in groups[1:]], measures, is_wanted)


def tabulate_told_apart(groups: list[Group]) -> dict[str, Any]:
    """For a page: what is told apart from MLE, or from the first group, and on what that rests; of many groups in the modes one
    would release alone."""
    measures, is_headline = list_headlines(groups)
    pairs = [(group, find_mle(group, groups) or groups[0]) for group in groups]
    pairs = [(group, base) for group, base in pairs if group is not base]
    targets = (None, *(group.target_mode for group in groups))
    is_wanted = is_headline if len(groups) <= _MANY else lambda row: is_headline(row) and row.mode in targets
    compared = compare_groups(pairs, measures, is_wanted)
    return {
        "told_apart": describe_compared(compared),
        "tests": tabulate_tests(compared),
        "tests_note": explain_tests(compared),
    }


def list_wanted(groups: list[Group], everything: bool) -> tuple[list[Measure], Callable[[Measurement], bool]]:
    """The measures that a comparison shows, and which of their numbers: the headlines, or all but what steered text has."""
    if not everything:
        return list_headlines(groups)
    measures = list(Catalogue.of(groups).measures.values())
    return measures, lambda row: not is_steered(row.mode or "")


def list_verdicts(group: Group, groups: list[Group]) -> list[str]:
    """The verdict of each judge on a group that is not MLE, and what it rests on."""
    if is_baseline(group.objective):
        return []
    mle = find_mle(group, groups)
    basis = f"{len(group.runs)} seeds" if group.is_pooled else "one seed"
    return [
        f"{group.label} ({basis}) by {judge.name}: {judge_group(group, mle, judge).headline}"
        for judge in group.judges
    ]
