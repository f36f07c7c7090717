"""Prompted scenarios: what a model writes after prompts, scored like everything else, in tables of their own."""

import math
from dataclasses import dataclass

from phf.records import Estimate
from phf.report.reading import UNPROMPTED, Judge, RunFolder, as_estimate
from phf.report.verdict import Group


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """One mode of one group (or run) in one scenario: an estimate, a share of hits and a worst of 25 for each judge."""

    label: str
    mode: str
    num_runs: int
    scores: list[Estimate]
    hits: list[Estimate]
    worst: list[Estimate]


def list_scenarios(runs: list[RunFolder]) -> list[str]:
    """Names of the prompted scenarios of all runs, in their order."""
    return [name for name in dict.fromkeys(name for run in runs for name in run.scenarios) if name != UNPROMPTED]


def tabulate_scenario(scenario: str, groups: list[Group], judges: list[Judge]) -> list[ScenarioRow]:
    """A row for each group and mode that has a score in this scenario, pooled over seeds."""
    rows = []
    for group in groups:
        modes = {
            str(row.get("mode")) for run in group.runs for row in run.scenarios.get(scenario, [])
        }
        rows += [
            ScenarioRow(
                group.label,
                mode,
                len(group.runs),
                [group.score(mode, judge, scenario) for judge in judges],
                [_read(group, mode, judge, scenario, "hit_rate") for judge in judges],
                [_read(group, mode, judge, scenario, "expected_max_25") for judge in judges],
            )
            for mode in group.modes
            if mode in modes
        ]
    return [row for row in rows if any(math.isfinite(score.mean) for score in row.scores)]


def split_groups(groups: list[Group]) -> list[Group]:
    """Every run as a group of its own, named after the run."""
    return [Group(run.label, (run,)) for group in groups for run in group.runs]


def _read(group: Group, mode: str, judge: Judge, scenario: str, key: str) -> Estimate:
    low, high = {"hit_rate": ("hit_low", "hit_high")}.get(key, (f"{key}_low", f"{key}_high"))

    def read(run: RunFolder) -> Estimate:
        row = run.row(mode, judge, scenario)
        return as_estimate({"mean": row.get(key), "low": row.get(low), "high": row.get(high)})

    return group.pool(read)
