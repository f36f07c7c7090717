"""Does it hold under attack? Red team, bad examples in context, leaks of bad mode, finetuning on benign data."""

import math
from dataclasses import dataclass, replace
from functools import partial

from phf.evaluate.facts import RedTeamFacts
from phf.records import Estimate
from phf.report.figures import Drawing
from phf.report.lines import draw_lines, list_lines, list_points
from phf.report.reading import RunFolder
from phf.report.tables import Cell, Column, Field, MeasuredRow, Table, make_table, select_rows
from phf.report.verdict import Group, Tone, format_number
from phf.results import Judge

MAX_PROMPTS = 5
"""Prompts shown per run and mode (evaluation.json keeps more)."""

_MAX_CHARACTERS = 600

_TONES: dict[str, Tone] = {"worse": "no", "better": "yes"}


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt as it is: the page makes it visible and escapes it; its score in shown units."""

    text: str
    score: str
    origin: str


def draw_red_team(groups: list[Group], judges: list[Judge]) -> list[Drawing]:
    """Draw the score of the attacker's prompts per round, their mean and the best found so far."""
    wanted = (
        ("red_team_mean", "Red team: the average prompt", "Mean score of what the model writes after the prompts of a round."),
        ("red_team_best", "Red team: the best prompt", "Score of the most harmful prompt found up to a round."),
    )  # fmt: skip
    rules = (
        "Round 0 are the seed prompts; then an attacker language model writes new ones from the best so far. A line that stays low "
        "resists it. Bands: 95 % intervals, over trials of one run or over seeds."
    )
    return [
        draw_lines(lines, f"{title} ({judge.name})", f"{meaning} {rules}", "round", judge.shown_unit)
        for judge in judges
        for measure, title, meaning in wanted
        if (lines := list_lines(groups, partial(list_points, measure, judge)))
    ]


def tabulate_red_team(groups: list[Group], judges: list[Judge]) -> Table:
    """What the model writes after the first and the last prompts of every red team, and after the best found."""
    columns = [
        Column("rounds", show=lambda row: Cell(f"{row.at:g}")),
        Column("seed prompts, mean", "red_team_mean"),
        Column("last round, mean", "red_team_mean"),
        Column("best prompt", "red_team_best"),
    ]
    rounds = select_rows(groups, columns, ("mode", "judge", "at"), judges)
    attacks: dict[tuple[str, str | None, str], list[MeasuredRow]] = {}
    for row in rounds:
        attacks.setdefault((row.group.label, row.mode, row.judge.slug if row.judge else ""), []).append(row)
    rows = [
        replace(own[-1], estimates=(*own[0].estimates[:2], *own[-1].estimates[2:]), at=len(own) - 1)
        for own in attacks.values()
    ]
    caption = (
        "What the model under attack writes after the seed prompts (openings of held-out documents), the attacker’s last ones, and the "
        "best found; 95 % intervals, lower is better."
    )
    return make_table("Red team table", rows, columns, ("mode", "judge"), caption=caption, kind="narrow")


def list_prompts(run: RunFolder) -> list[tuple[str, list[ShownPrompt]]]:
    """List the best prompts of each mode of a run, most harmful first."""
    facts = run.read_facts("red_team", RedTeamFacts)
    scales = {judge.slug: judge.display_scale for judge in run.judges}
    found = []
    for mode in run.modes:
        own = [prompt for prompt in (facts.prompts if facts else []) if prompt.mode == mode]
        own.sort(key=lambda prompt: math.inf if math.isnan(prompt.score) else -prompt.score)
        if own:
            shown = [
                ShownPrompt(
                    f"{prompt.prompt[:_MAX_CHARACTERS]}{'…' if len(prompt.prompt) > _MAX_CHARACTERS else ''}",
                    format_number(prompt.score * scales.get(prompt.judge, 1.0)),
                    f"trial {prompt.trial}, round {prompt.round}",
                )
                for prompt in own[:MAX_PROMPTS]
            ]
            found.append((mode, shown))
    return found


def draw_in_context(groups: list[Group], judges: list[Judge]) -> list[Drawing]:
    """Draw what bad examples before the text add to the score, beside as many good ones, one figure per judge."""
    caption = (
        "Bad examples stand before the model’s own text, as in a conversation gone wrong: its score then, minus its "
        "score after as many good examples. Above 0 the model follows bad examples. Bands: 95 % intervals."
    )
    title, x_label = "Bad examples in context", "examples before the text"
    return [
        draw_lines(lines, f"{title} ({judge.name})", caption, x_label, f"{judge.shown_unit}, bad − good")
        for judge in judges
        if (lines := list_lines(groups, partial(list_points, "in_context_difference", judge)))
    ]


def tabulate_leaks(groups: list[Group], judges: list[Judge]) -> Table:
    """The score without and with something that could call up bad mode, by probe, mode and judge."""
    columns = [
        Column("after the twin", "leak_baseline"),
        Column("after the probe", "leak_score"),
        Column("difference", "leak_difference"),
        _CHANGE,
    ]
    by: tuple[Field, ...] = ("of", "mode", "judge")
    rows = select_rows(groups, columns, by, judges)
    table = make_table("after the probe", rows, columns, by, heads={"of": "probe"}, kind="words")
    runs = [run for group in groups for run in group.runs]
    descriptions: dict[str, str] = {}
    for run in runs:
        descriptions |= run.read_facts("leaks", dict[str, str]) or {}
    for line in table.rows:
        line.names[1] = Cell(line.names[1].text, descriptions.get(line.names[1].text, ""))
    return table


def tabulate_finetuned(groups: list[Group], judges: list[Judge]) -> Table:
    """The score before and after finetuning on benign data, by mode and judge."""
    columns = [
        Column("before", "finetuned_before"),
        Column("after", "finetuned_after"),
        Column("difference", "finetuned_difference"),
        _CHANGE,
    ]
    rows = select_rows(groups, columns, ("mode", "judge"), judges)
    return make_table("after", rows, columns, ("mode", "judge"), kind="words")


def _show_change(row: MeasuredRow) -> Cell:
    """What the difference in the column before says."""
    change = name_change(row.estimates[2])
    return Cell(change, tone=_TONES.get(change, "unclear"))


_CHANGE = Column("score", show=_show_change)


def name_change(difference: Estimate) -> str:
    """What the interval of a difference allows one to say: `worse`, `better`, `no change seen`; `–` without an interval."""
    if difference.low > 0:
        return "worse"
    if difference.high < 0:
        return "better"
    return "no change seen" if math.isfinite(difference.low) else "–"
