"""The alignment-capability plane with its frontier (the paper's Figure 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from pydantic import JsonValue

from phf.records import Estimate
from phf.report.figures import (
    FAINT,
    INK,
    OBJECTIVE_COLOURS,
    Drawing,
    draw_figure,
    plot_point,
    scale_estimate,
    shorten,
)
from phf.report.samples import visible_text
from phf.report.verdict import Group
from phf.results import Judge

_MAX_GROUPS = 6
"""With more groups than this the plane shows only the modes one would release, coloured by objective."""


@dataclass(frozen=True)
class KLFacts:
    """Of the facts of `kl`: the language model that wrote the texts."""

    reference: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class _Point:
    group: Group
    mode: str
    x: Estimate
    y: Estimate

    @property
    def name(self) -> str:
        return f"{visible_text(self.group.label)} · {self.mode}"

    @property
    def label(self) -> str:
        return f"{shorten(self.group.label)} · {self.mode}"

    @property
    def is_target(self) -> bool:
        return self.mode == self.group.target_mode


def find_frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other is at least as low as in both coordinates and lower in one, from left to right."""
    order = sorted(range(len(points)), key=lambda place: points[place])
    frontier: list[int] = []
    for place in order:
        if (
            not frontier
            or points[place][1] < points[frontier[-1]][1]
            or points[place] == points[frontier[-1]]
        ):
            frontier.append(place)
    return frontier


def draw_plane(groups: list[Group], judge: Judge) -> Drawing:
    """Score against capability, one point per group and mode with both intervals, and the frontier of what one would
    release."""
    has_kl = _can_compare_kl(groups)
    points = [
        _Point(
            group,
            mode,
            group.results.find("kl", mode) if has_kl else group.results.find("bits_per_byte", mode, of="all"),
            scale_estimate(group.score(mode, judge), judge.display_scale),
        )
        for group in groups
        for mode in group.modes
    ]
    points = [point for point in points if math.isfinite(point.x.mean) and math.isfinite(point.y.mean)]
    is_crowded = len(groups) > _MAX_GROUPS
    if is_crowded:
        points = [point for point in points if point.is_target]
    targets = [point for point in points if point.is_target]
    frontier = [
        targets[place] for place in find_frontier([(point.x.mean, point.y.mean) for point in targets])
    ]
    name = "KL from the reference" if has_kl else "bits per byte"
    unit = "nats per token" if has_kl else "on held-out text"

    def draw(axes: Axes) -> None:
        for point in points:
            colour = OBJECTIVE_COLOURS.get(point.group.objective, INK) if is_crowded else None
            opacity = 1.0 if point in frontier else 0.65 if point.is_target else 0.35
            plot_point(
                axes,
                point.label,
                point.mode,
                (point.x.mean, point.y.mean),
                point.x,
                point.y,
                colour=colour,
                opacity=opacity,
                has_bars=not is_crowded or point in frontier,
            )
        axes.set_xlabel(f"{name}, {unit}  (lower is better)")
        axes.set_ylabel(f"{judge.shown_unit}  (lower is better)")
        axes.margins(0.14)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if len(targets) > 1:
            _draw_steps(axes, [(point.x.mean, point.y.mean) for point in frontier])
        if is_crowded:
            _number_points(axes, frontier)
            _add_legend(axes, groups)
        else:
            label_points(axes, [(point.label, point.x.mean, point.y.mean) for point in points])

    numbers = [f"({number}) " if is_crowded else "" for number in range(1, len(frontier) + 1)]
    on_it = ", ".join(f"{number}{point.name}" for number, point in zip(numbers, frontier, strict=True))
    if len(targets) > 1:
        caption = f"On the frontier, by their means: {on_it}."
    else:
        caption = "A frontier needs two configurations or more." if targets else "Not measured on both axes."
    return draw_figure(
        draw, f"Score by {judge.name} against {name}", caption, height=4.4 if is_crowded else 3.7
    )


def explain_plane(groups: list[Group]) -> str:
    """How to read the planes of a page."""
    if _can_compare_kl(groups):
        axis = "Capability is KL(reference || model) on text that the reference model wrote, control tokens not counted."
    else:
        axis = (
            "Capability is bits per byte on held-out text, read in each mode with its own control token before every "
            "segment."
        )
    if len(groups) > _MAX_GROUPS:
        shown = (
            "Only the modes one would release are drawn, coloured by objective; the tables have the others."
        )
    else:
        shown = "Fainter: what is dominated, and modes that one would not release."
    return (
        f"Down and left is better. {axis} The dashed line is the frontier of the modes one would release (good mode, or a "
        f"run’s only one): nothing is better in both. Where intervals overlap, the order is not settled. {shown}"
    )


def _can_compare_kl(groups: list[Group]) -> bool:
    """Whether every group has KL in its target mode, all from one reference model."""
    measured = [group.results.find("kl", group.target_mode) for group in groups]
    facts = [run.read_facts("kl", KLFacts) for group in groups for run in group.runs]
    references = [found.reference if found else None for found in facts]
    return all(math.isfinite(kl.mean) for kl in measured) and all(
        reference == references[0] for reference in references
    )


def _draw_steps(axes: Axes, frontier: list[tuple[float, float]]) -> None:
    """The edge of what is dominated: from above the first point, in steps, to the right of the last."""
    limits = axes.get_xlim(), axes.get_ylim()
    xs = [frontier[0][0], *(x for x, _ in frontier), limits[0][1]]
    ys = [limits[1][1], *(y for _, y in frontier), frontier[-1][1]]
    axes.step(xs, ys, where="post", color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=2)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def label_points(axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """Labels beside their points: to the left in the right half, and pushed up where two would touch."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    used: list[tuple[bool, float]] = []
    for label, x, y in sorted(points, key=lambda point: point[2]):
        on_left = x > (left + right) / 2
        lift = max(
            [height for side, height in used if side == on_left and height > y - 0.075 * (top - bottom)],
            default=-math.inf,
        )
        place = max(y + 0.03 * (top - bottom), lift + 0.075 * (top - bottom))
        used.append((on_left, place))
        axes.annotate(
            label,
            (x, y),
            xytext=(x + (-0.03 if on_left else 0.03) * (right - left), place),
            ha="right" if on_left else "left",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5},
        )


def _number_points(axes: Axes, points: list[_Point]) -> None:
    """The numbers under which the caption names points that stand too close for labels."""
    for number, point in enumerate(points, start=1):
        axes.annotate(
            str(number),
            (point.x.mean, point.y.mean),
            xytext=(0, -13),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            zorder=4,
        )


def _add_legend(axes: Axes, groups: list[Group]) -> None:
    for objective in dict.fromkeys(group.objective for group in groups):
        colour = OBJECTIVE_COLOURS.get(objective, INK)
        axes.plot([], [], color=colour, marker="o", markersize=6, linestyle="none", label=shorten(objective))
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=4)
