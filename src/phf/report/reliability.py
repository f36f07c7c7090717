"""Reliability diagrams: what a probability promised beside what came, drawn alike for runs and for reward models."""

import math
from dataclasses import dataclass

from matplotlib.axes import Axes

from phf.report.figures import FAINT, INK, OBJECTIVE_COLOURS, Drawing, draw_figure, shorten
from phf.report.reading import RunFolder, sort_by_at
from phf.report.verdict import format_number
from phf.results import Measurement

_MARKERS = "oDs^vPX"
_MAX_NAMED = 8
"""With more series than this there is no legend: hovering names every point."""


@dataclass(frozen=True, slots=True)
class Series:
    """The bins of one model: at the mean prediction of its texts, the share that came true. An empty label is not shown."""

    label: str
    bins: tuple[Measurement, ...]
    colour: str = INK


def draw_reliability(
    series: list[Series], predicted: str, outcome: str, caption: str, *, title: str = "Reliability"
) -> Drawing:
    """Share that came true against mean prediction in bins, with intervals, and the diagonal of perfect calibration.

    Args:
        predicted: what the x axis shows, from 0 to 1.
        outcome: what the y axis shows, from 0 to 1.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for index, one in enumerate(series):
            _draw_series(axes, one, _MARKERS[index % len(_MARKERS)], predicted, outcome)
        axes.set_xlabel(predicted)
        axes.set_ylabel(outcome)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        if 0 < sum(bool(one.label) for one in series) <= _MAX_NAMED:
            axes.legend(frameon=False, fontsize=8, loc="best")

    return draw_figure(draw, title, caption, height=3.9)


def _draw_series(axes: Axes, series: Series, marker: str, predicted: str, outcome: str) -> None:
    total = sum(found.estimate.count for found in series.bins)
    path = [(found.at or 0.0, found.estimate.mean) for found in series.bins]
    axes.plot(*zip(*path, strict=True), color=series.colour, linewidth=0.7)
    for found, place in zip(series.bins, path, strict=True):
        share = found.estimate
        axes.plot(
            [place[0]] * 2,
            [share.low, share.high],
            color=series.colour,
            linewidth=1.6,
            solid_capstyle="round",
        )
        size = 3 + 7 * math.sqrt(share.count / max(total, 1))
        (point,) = axes.plot(*place, color=series.colour, marker=marker, markersize=size, linestyle="none")
        name = f"{series.label}: " if series.label else ""
        numbers = ", ".join(
            f"{what} {format_number(value)}" for what, value in zip((predicted, outcome), place, strict=True)
        )
        point.set_gid(f"hover:{name}{numbers}, {share.count:,}")
    if series.label:
        name = f"{series.label}: {total:,} segments"
        axes.plot([], [], color=series.colour, marker=marker, markersize=6, linestyle="none", label=name)


def draw_control_reliability(runs: list[RunFolder]) -> Drawing | None:
    """The posterior of all runs whose model writes control tokens; None if there is none."""
    series = [
        Series(shorten(run.label), tuple(bins), OBJECTIVE_COLOURS.get(run.objective, INK))
        for run in runs
        if (bins := sort_by_at(run.results.of("reliability")))
    ]
    if not series:
        return None
    caption = (
        "A model with control tokens gives each segment a probability of being good, from the tokens’ own probability and from "
        "how likely its text is after each. Held-out segments, one of each document, in ten bins, with 95 % intervals over "
        "segments, run by run; a larger mark stands for more segments. On the dashed line the model means what the judge of "
        "the training text finds; below it, it takes too much for good."
    )
    return draw_reliability(
        series,
        "the model’s probability that a segment is good",
        "share of good segments",
        caption,
        title="Does the model know what is bad?",
    )
