"""What `phf compare` says of runs, as data: what they differ in, what was measured, and the verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from phf.files import Place
from phf.objective_facts import is_baseline
from phf.report.differences import list_settings
from phf.report.provenance import list_unlike
from phf.report.reading import read_runs
from phf.report.tables import list_measured
from phf.report.verdict import Group, find_mle, group_runs, judge_group


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other, in the order given.

    Attributes:
        settings: settings, data and versions that differ: a value of each run by dotted name.
        measured: every number of the evaluated runs, a row each, with its interval.
        verdicts: of each judge on each objective that is not MLE, a line each.
        notices: in what the evaluations are not alike, a line each.
    """

    settings: dict[str, list[JsonValue]]
    measured: list[dict[str, JsonValue]]
    verdicts: list[str]
    notices: list[str]


def compare_runs(runs: Place | Sequence[Place]) -> Comparison:
    """Read runs, evaluated or not, and say in what they differ.

    Raises:
        PHFError: see `read_runs`.
    """
    folders = read_runs(runs, must_be_evaluated=False)
    evaluated = [run for run in folders if run.evaluation]
    groups = group_runs(evaluated)
    return Comparison(
        list_settings(folders),
        list_measured(evaluated),
        [line for group in groups for line in list_verdicts(group, groups)],
        list_unlike(evaluated),
    )


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
