"""Score against tokens seen: along a run's checkpoints, and across runs of several budgets."""

import math

from phf.files import hash_json
from phf.objective_facts import is_baseline
from phf.records import Estimate
from phf.report.figures import INK, MODE_COLOURS, MODE_MARKERS, Drawing, scale_estimate, shorten
from phf.report.lines import Line, draw_lines, list_lines, list_points
from phf.report.verdict import Group
from phf.results import Judge


def draw_trajectory(groups: list[Group], judge: Judge) -> Drawing | None:
    """Score by one judge at every checkpoint that was evaluated; None if none was but the last."""

    def read(group: Group, mode: str) -> list[tuple[float, Estimate]]:
        last = group.runs[0].evaluation
        if last is None or not group.results.of("trajectory"):
            return []
        points = dict(list_points("trajectory", judge, group, mode))
        final = scale_estimate(group.score(mode, judge), judge.display_scale)
        if math.isfinite(final.mean):
            points[last.step] = final
        # Every step reads as many tokens.
        return [(step * last.tokens_seen / last.step / 1e6, points[step]) for step in sorted(points)]

    lines = list_lines(groups, read)
    if not lines:
        return None
    caption = (
        "Mean score of the samples of each checkpoint, with 95 % intervals. Modes that part early show that the control "
        "token is learned long before training ends; lines still moving at the right end have not settled."
    )
    return draw_lines(
        lines, f"Score by {judge.name} against tokens seen", caption, "million tokens seen", judge.shown_unit
    )


def draw_budgets(groups: list[Group], judge: Judge) -> Drawing | None:
    """Final score against the training budget, a line for each configuration that was trained with several budgets."""
    families: dict[str, list[Group]] = {}
    for group in groups:
        config = group.runs[0].record.config
        settings = {key: value for key, value in config.items() if key not in ("tokens", "seed")}
        families.setdefault(hash_json(settings), []).append(group)
    lines = []
    for family in families.values():
        budgets = {tokens: group for group in family if (tokens := group.runs[0].settings.tokens) is not None}
        if len(budgets) < 2:
            continue
        first = family[0]
        for mode in first.modes:
            points = [
                (tokens / 1e6, scale_estimate(group.score(mode, judge), judge.display_scale))
                for tokens, group in sorted(budgets.items(), key=lambda item: item[0])
            ]
            points = [point for point in points if math.isfinite(point[1].mean)]
            lines.append(
                Line(
                    f"{shorten(first.objective)} · {mode}",
                    tuple(points),
                    MODE_COLOURS.get(mode, INK),
                    "-" if is_baseline(first.objective) else (0, (5, 2)),
                    MODE_MARKERS.get(mode, "X"),
                )
            )
    if not lines:
        return None
    caption = (
        "Each point is a whole training with that budget (its learning rate has decayed), so the points can be compared, "
        "unlike checkpoints of one run. 95 % intervals: over seeds, or over samples where there is one seed."
    )
    return draw_lines(
        lines,
        f"Score by {judge.name} against the training budget",
        caption,
        "million tokens of training",
        judge.shown_unit,
        is_log=True,
    )
