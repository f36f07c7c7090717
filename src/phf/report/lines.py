"""Estimates along an axis (tokens, rounds, shots): a line with its interval for each group and mode."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from phf.records import Estimate
from phf.report.figures import (
    INK,
    MODE_COLOURS,
    MODE_MARKERS,
    OBJECTIVE_COLOURS,
    Drawing,
    draw_figure,
    hover,
    scale_estimate,
    shorten,
)
from phf.report.reading import sort_by_at
from phf.report.verdict import Group
from phf.results import Judge

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
_MAX_NAMED = 8
"""With more lines than this there is no legend: hovering names every point."""
_MAX_TICKS = 7
"""A logarithmic axis of at most so many places has a tick at each."""


@dataclass(frozen=True, slots=True)
class Line:
    """Estimates at places along the x axis, and how they are drawn."""

    label: str
    points: tuple[tuple[float, Estimate], ...]
    colour: str = INK
    dash: Any = "-"
    marker: str = "o"


@dataclass(frozen=True, slots=True)
class Level:
    """A number without a place on the x axis, to compare lines with. Without a label it is not in the legend."""

    name: str
    value: Estimate
    colour: str = INK
    dash: Any = (0, (5, 3))
    label: str | None = None


def list_lines(
    groups: Sequence[Group], read: Callable[[Group, str], Sequence[tuple[float, Estimate]]]
) -> list[Line]:
    """A line for each group and mode that `read` finds points for.

    A mode has its colour and a group its dashes; of more groups than there are dashes, only the modes one would release,
    in the colours of their objectives.
    """
    found = [
        (group, mode, points)
        for group in groups
        for mode in group.modes
        if (points := tuple(read(group, mode)))
    ]
    measured = list(dict.fromkeys(group.label for group, _, _ in found))
    are_few = len(measured) <= len(_DASHES)
    return [
        Line(
            f"{shorten(group.label)} · {mode}",
            points,
            MODE_COLOURS.get(mode, INK) if are_few else OBJECTIVE_COLOURS.get(group.objective, INK),
            _DASHES[measured.index(group.label)] if are_few else "-",
            MODE_MARKERS.get(mode, "X"),
        )
        for group, mode, points in found
        if are_few or mode == group.target_mode
    ]


def list_points(measure: str, judge: Judge, group: Group, mode: str) -> list[tuple[float, Estimate]]:
    """What was measured along an axis, as the judge's numbers are shown."""
    rows = [row for row in group.results.of(measure) if (row.mode, row.judge) == (mode, judge.slug)]
    return [(row.at or 0.0, scale_estimate(row.estimate, judge.display_scale)) for row in sort_by_at(rows)]


def draw_lines(
    lines: Sequence[Line],
    title: str,
    caption: str,
    x_label: str,
    y_label: str,
    *,
    is_log: bool = False,
    from_zero: bool = True,
    height: float = 3.1,
    levels: Sequence[Level] = (),
    top: float | None = None,
) -> Drawing:
    """Lines with their intervals as bands; every point names its numbers on hover.

    Args:
        is_log: of the x axis, which is linear below its smallest number above 0 if there is a 0.
        levels: drawn across the whole axis.
        top: where the y axis ends, for figures to be compared.
    """
    xs = sorted({x for line in lines for x, _ in line.points})

    def draw(axes: Axes) -> None:
        for level in levels:
            _draw_level(axes, level)
        for line in lines:
            plot_line(axes, line)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if top is not None:
            axes.set_ylim(top=top)
        if is_log:
            _scale_log(axes, xs)
        elif all(float(x).is_integer() for x in xs):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if from_zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if num_named <= _MAX_NAMED:
            axes.legend(
                frameon=False,
                fontsize=8,
                loc="upper center",
                bbox_to_anchor=(0.45, -0.17),
                ncol=2,
                handlelength=3,
            )

    num_named = len(lines) + sum(level.label is not None for level in levels)
    num_rows = math.ceil(num_named / 2) if num_named <= _MAX_NAMED else 0
    return draw_figure(draw, title, caption, height=height + 0.19 * num_rows)


def plot_line(axes: Axes, line: Line) -> None:
    """A line, its interval as a band, and its points, whose numbers appear on hover."""
    xs = [x for x, _ in line.points]
    axes.plot(xs, [y.mean for _, y in line.points], color=line.colour, linestyle=line.dash, linewidth=1.3)
    bounded = [(x, y) for x, y in line.points if math.isfinite(y.low) and math.isfinite(y.high)]
    if len(bounded) > 1:
        axes.fill_between(
            [x for x, _ in bounded],
            [y.low for _, y in bounded],
            [y.high for _, y in bounded],
            color=line.colour,
            alpha=0.13,
            linewidth=0,
        )
    elif bounded:
        (x, y) = bounded[0]
        axes.plot([x, x], [y.low, y.high], color=line.colour, linewidth=1.6, solid_capstyle="round")
    for x, y in line.points:
        (marker,) = axes.plot(
            x, y.mean, color=line.colour, marker=line.marker, markersize=4.5, linestyle="none"
        )
        marker.set_gid(hover(f"{line.label}, at {x:g}", y))
    axes.plot(
        [], [], color=line.colour, linestyle=line.dash, marker=line.marker, markersize=4.5, label=line.label
    )


def _draw_level(axes: Axes, level: Level) -> None:
    if math.isfinite(level.value.mean):
        line = axes.axhline(
            level.value.mean, color=level.colour, linestyle=level.dash, linewidth=1.1, label=level.label
        )
        line.set_gid(hover(level.name, level.value))


def _scale_log(axes: Axes, xs: Sequence[float]) -> None:
    """A logarithmic x axis with plain numbers (matplotlib's own are powers of ten in its markup)."""
    above = [x for x in xs if x > 0]
    if len(above) < len(xs) and above:
        axes.set_xscale("symlog", linthresh=above[0])
    elif above:
        axes.set_xscale("log")
    if len(xs) <= _MAX_TICKS:
        axes.set_xticks(xs)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.15g}")
    axes.xaxis.set_minor_locator(NullLocator())
