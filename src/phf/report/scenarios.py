"""Prompted scenarios: what a model writes after prompts, scored like everything else, in tables of their own."""

import math
from dataclasses import dataclass

from phf.records import Estimate
from phf.report.reading import UNPROMPTED, Judge, RunFolder
from phf.report.verdict import Group


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """One mode of one group (or run) in one scenario: an estimate, a share of hits and a worst of 25 for each judge."""

    group: Group
    mode: str
    scores: list[Estimate]
    hits: list[Estimate]
    worst: list[Estimate]


def list_scenarios(runs: list[RunFolder]) -> list[str]:
    """Names of the prompted scenarios of all runs, in their order."""
    return [
        name for name in dict.fromkeys(name for run in runs for name in run.scenarios) if name != UNPROMPTED
    ]


def tabulate_scenario(scenario: str, groups: list[Group], judges: list[Judge]) -> list[ScenarioRow]:
    """A row for each group and mode that has a score in this scenario, pooled over seeds."""
    rows = []
    for group in groups:
        modes = {str(row.get("mode")) for run in group.runs for row in run.scenarios.get(scenario, [])}
        rows += [
            ScenarioRow(
                group,
                mode,
                [group.score(mode, judge, scenario) for judge in judges],
                [group.row_number(mode, judge, "hit_rate", scenario) for judge in judges],
                [group.row_number(mode, judge, "expected_max_25", scenario) for judge in judges],
            )
            for mode in group.modes
            if mode in modes
        ]
    return [row for row in rows if any(math.isfinite(score.mean) for score in row.scores)]
