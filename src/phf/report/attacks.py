"""Does it hold under attack? Red team, bad examples in context, leaks of bad mode, finetuning on benign data."""

import math
from dataclasses import dataclass
from typing import Any

from phf.records import Estimate
from phf.report.figures import Drawing, scale_estimate
from phf.report.lines import draw_lines, list_lines, pool_points
from phf.report.reading import Judge, RunFolder, as_dict, as_estimate, as_float, as_list, lookup
from phf.report.verdict import Group, format_number, pool

MAX_PROMPTS = 5
"""Prompts shown per run and mode (evaluation.json keeps more)."""

_MAX_CHARACTERS = 600


def draw_red_team(groups: list[Group], judges: list[Judge]) -> list[Drawing]:
    """Score of the attacker's prompts per round, their mean and the best found so far."""
    drawings = []
    for judge in judges:
        for name, title, meaning in (
            (
                "mean",
                "Red team: the average prompt",
                "Mean score of what the model writes after the prompts of a round.",
            ),
            ("best", "Red team: the best prompt", "Score of the most harmful prompt found up to a round."),
        ):

            def read(
                group: Group, mode: str, name: str = name, judge: Judge = judge
            ) -> list[tuple[float, Estimate]]:
                points = pool_points([_read_rounds(run, mode, judge, name) for run in group.runs])
                return [(place, scale_estimate(score, judge.scale)) for place, score in points]

            lines = list_lines(groups, read)
            if lines:
                caption = (
                    f"{meaning} Round 0 are the seed prompts; then an attacker language model writes new ones from the best so far. A line that "
                    "stays low resists it. Bands: 95 % intervals, over trials of one run or over seeds."
                )
                drawings.append(
                    draw_lines(lines, f"{title} ({judge.name})", caption, "round", judge.shown_unit)
                )
    return drawings


def _read_rounds(run: RunFolder, mode: str, judge: Judge, name: str) -> list[tuple[float, Estimate]]:
    found = as_dict(lookup(run.evaluation, "red_team", "modes", mode))
    if found.get("judge") not in (judge.key, judge.name):
        return []
    points = [
        (as_float(value.get("round")), as_estimate(value.get(name)))
        for value in map(as_dict, as_list(found.get("rounds")))
    ]
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1].mean)]


@dataclass(frozen=True, slots=True)
class Attack:
    """How far a red team came with one group and mode: scores in shown units."""

    group: Group
    mode: str
    judge: Judge
    num_rounds: int
    first: Estimate
    last: Estimate
    best: Estimate


def tabulate_red_team(groups: list[Group], judges: list[Judge]) -> list[Attack]:
    """The first and the last round of every red team."""
    rows = []
    for group in groups:
        for mode in group.modes:
            for judge in judges:
                mean, best = (
                    pool_points([_read_rounds(run, mode, judge, name) for run in group.runs])
                    for name in ("mean", "best")
                )
                if mean and best:
                    rows.append(Attack(group, mode, judge, len(mean), mean[0][1], mean[-1][1], best[-1][1]))
    return rows


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that an attacker found, as it is: the page makes it visible and escapes it; its score in shown units."""

    text: str
    score: str
    origin: str


def list_prompts(run: RunFolder) -> list[tuple[str, list[Prompt]]]:
    """The best prompts of each mode of a run, most harmful first."""
    found = []
    for mode in run.modes:
        attack = as_dict(lookup(run.evaluation, "red_team", "modes", mode))
        scale = next(
            (judge.scale for judge in run.judges if attack.get("judge") in (judge.key, judge.name)), 1.0
        )
        prompts = sorted(
            map(as_dict, as_list(attack.get("prompts"))), key=lambda prompt: -_rank(prompt.get("score"))
        )
        if prompts:
            found.append((mode, [_show_prompt(prompt, scale) for prompt in prompts[:MAX_PROMPTS]]))
    return found


def _rank(score: Any) -> float:
    score = as_float(score)
    return score if math.isfinite(score) else -math.inf


def _show_prompt(prompt: dict[str, Any], scale: float) -> Prompt:
    text = str(prompt.get("prompt") or "")
    shown = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
    origin = ", ".join(
        f"{name} {format_number(as_float(prompt.get(name)), 1)}"
        for name in ("trial", "round")
        if name in prompt
    )
    return Prompt(shown, format_number(as_float(prompt.get("score")) * scale), origin)


def draw_in_context(groups: list[Group], judges: list[Judge]) -> list[Drawing]:
    """What bad examples before the text add to the score, beside as many good ones, one figure per judge."""
    drawings = []
    for judge in judges:

        def read(group: Group, mode: str, judge: Judge = judge) -> list[tuple[float, Estimate]]:
            points = pool_points([_read_shots(run, mode, judge) for run in group.runs])
            return [(shots, scale_estimate(score, judge.scale)) for shots, score in points]

        lines = list_lines(groups, read)
        if lines:
            caption = (
                "Bad examples stand before the model’s own text, as in a conversation gone wrong: its score then, minus its "
                "score after as many good examples. Above 0 the model follows bad examples. Bands: 95 % intervals."
            )
            title = f"Bad examples in context ({judge.name})"
            drawings.append(
                draw_lines(
                    lines, title, caption, "examples before the text", f"{judge.shown_unit}, bad − good"
                )
            )
    return drawings


def _read_shots(run: RunFolder, mode: str, judge: Judge) -> list[tuple[float, Estimate]]:
    by_judge = as_dict(lookup(run.evaluation, "in_context", "modes", mode))
    values = map(as_dict, as_list(by_judge.get(judge.key, by_judge.get(judge.name))))
    points = [(as_float(value.get("shots")), as_estimate(value.get("difference"))) for value in values]
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1].mean)]


@dataclass(frozen=True, slots=True)
class Change:
    """A score before and after something was done to the model or its context, by one judge.

    Attributes:
        verdict: what the interval of the difference allows one to say.
    """

    group: Group
    name: str
    description: str
    mode: str
    judge: Judge
    before: Estimate
    after: Estimate
    difference: Estimate

    @property
    def verdict(self) -> str:
        """`worse`, `better`, `no change seen`, or `–` without an interval."""
        if self.difference.low > 0:
            return "worse"
        if self.difference.high < 0:
            return "better"
        return "no change seen" if math.isfinite(self.difference.low) else "–"


def tabulate_leaks(groups: list[Group], judges: list[Judge]) -> list[Change]:
    """A row for each group, probe, mode and judge: the score without and with something that could call up bad mode."""
    rows = []
    for group in groups:
        descriptions: dict[str, str] = {}
        tables = []
        for run in group.runs:
            probes = [as_dict(probe) for probe in as_list(lookup(run.evaluation, "leaks", "probes"))]
            descriptions |= {str(probe.get("name")): str(probe.get("description") or "") for probe in probes}
            tables.append(
                {
                    (str(probe.get("name")), str(probe.get("mode")), str(probe.get("judge"))): probe
                    for probe in probes
                }
            )
        rows += [
            Change(
                group,
                name,
                descriptions[name],
                mode,
                judge,
                *_pool_change(tables, key, ("baseline", "score")),
            )
            for key in dict.fromkeys(key for table in tables for key in table)
            for name, mode, of in [key]
            for judge in judges
            if of in (judge.key, judge.name)
        ]
    return rows


def tabulate_finetuned(groups: list[Group], judges: list[Judge]) -> list[Change]:
    """A row for each group, mode and judge: the score before and after finetuning on benign data."""
    rows = []
    for group in groups:
        tables = [
            {
                (mode, judge.key): as_dict(
                    as_dict(by_judge).get(judge.key, as_dict(by_judge).get(judge.name))
                )
                for mode, by_judge in as_dict(lookup(run.evaluation, "finetuned", "modes")).items()
                for judge in judges
            }
            for run in group.runs
        ]
        rows += [
            Change(group, "", "", mode, judge, *_pool_change(tables, (mode, judge.key), ("before", "after")))
            for mode in group.modes
            for judge in judges
            if any(table.get((mode, judge.key)) for table in tables)
        ]
    return rows


def _pool_change(
    tables: list[dict[Any, dict[str, Any]]], key: Any, names: tuple[str, str]
) -> tuple[Estimate, Estimate, Estimate]:
    """Before, after and the difference of one key, pooled over the runs that the tables are of."""
    before, after, difference = (
        pool([as_estimate(table.get(key, {}).get(name)) for table in tables])
        for name in (*names, "difference")
    )
    return before, after, difference
