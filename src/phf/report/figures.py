"""Figures as inline SVG: the same runs give the same bytes, colours follow the page (light, dark, paper), text stays text."""

import hashlib
import html
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phf.records import Estimate
from phf.report.reading import Judge, RunFolder, as_float, list_judges
from phf.report.samples import visible_text
from phf.report.verdict import Group, format_number

# Drawn in stand-in colours that appear nowhere else; `_finish` swaps each for a variable of page.css.
INK, FAINT, GRID = "#010101", "#010102", "#010103"
MODE_COLOURS = {"good": "#020201", "bad": "#020202", "none": "#020203", "untagged": "#020204"}
OBJECTIVE_COLOURS = {
    "mle": "#030301",
    "conditional": "#030302",
    "filtering": "#030303",
    "unlikelihood": "#030304",
    "rwr": "#030305",
    "awr": "#030306",
}
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    **{colour: f"--{mode}" for mode, colour in MODE_COLOURS.items()},
    **{colour: f"--{objective}" for objective, colour in OBJECTIVE_COLOURS.items()},
}
MODE_MARKERS = {"good": "o", "bad": "D", "none": "s", "untagged": "^"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
}

_WIDTH = 4.9
"""Inches; the page scales a figure to its column, and 9-point text stays readable down to a phone's width."""

_MAX_LABELS = 12
"""Points of a plane that are labelled; more would cover one another (each still names itself on hover)."""

_CURVE_POINTS = 200
"""Points a curve is averaged down to."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure for the page: `svg` is safe markup made by us, the rest is plain text."""

    svg: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A score to compare with that is no run's: the training data, or rejection sampling."""

    name: str
    judge: str
    estimate: Estimate
    cost: str


def draw_scores(
    runs: list[RunFolder], judge: Judge, references: list[Reference], mle: Group | None
) -> Drawing:
    """Mean score with interval of each run and mode by one judge; a dashed line and a band mark MLE."""
    rows = [
        (f"{shorten(run.label)} · {mode}", mode, _scaled(run.score(mode, judge), judge))
        for run in runs
        for mode in run.modes
    ]
    rows += [
        (shorten(reference.name, 36), "", _scaled(reference.estimate, judge))
        for reference in references
        if reference.judge in (judge.key, judge.name)
    ]
    title = f"Score by {judge.name} ({judge.role})"

    def draw(axes: Axes) -> None:
        if mle is not None:
            line = _scaled(mle.score(mle.target_mode, judge), judge)
            if math.isfinite(line.mean):
                axes.axvline(line.mean, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                axes.axvspan(line.low, line.high, color=GRID, alpha=0.5, linewidth=0, zorder=0)
        for place, (label, mode, estimate) in enumerate(rows):
            _plot_point(axes, label, mode, (estimate.mean, place), estimate, None)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{judge.shown_unit}  (lower is better)")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))

    caption = f"Mean of the samples of each run and mode, with its 95 % interval, in {judge.shown_unit}."
    if mle is not None:
        caption += " Dashed line and band: MLE."
    return draw_figure(draw, title, caption, height=0.75 + 0.27 * len(rows))


def draw_plane(groups: list[Group], judge: Judge) -> Drawing:
    """Score against bits per byte on all held-out text, one point per group and mode, with both intervals."""
    points = [
        (
            f"{shorten(group.label)} · {mode}",
            mode,
            group.bits_per_byte(mode, "all"),
            _scaled(group.score(mode, judge), judge),
        )
        for group in groups
        for mode in group.modes
    ]
    points = [point for point in points if math.isfinite(point[2].mean) and math.isfinite(point[3].mean)]

    def draw(axes: Axes) -> None:
        for label, mode, bits, score in points:
            _plot_point(axes, label, mode, (bits.mean, score.mean), bits, score)
        axes.set_xlabel("bits per byte on held-out text  (lower is better)")
        axes.set_ylabel(f"{judge.shown_unit}")
        axes.margins(0.14)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if 0 < len(points) <= _MAX_LABELS:
            _label_points(axes, [(label, bits.mean, score.mean) for label, _, bits, score in points])

    caption = (
        "Down and left is better: fewer bad samples, better prediction of held-out text. "
        "Each mode reads the held-out text with its own control token before every segment."
    )
    return draw_figure(draw, f"Score by {judge.name} against bits per byte", caption, height=3.7)


def _label_points(axes: Axes, points: list[tuple[str, float, float]]) -> None:
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


def draw_curves(groups: list[Group]) -> list[Drawing]:
    """Training loss, and validation NLL and control gain on good and bad segments, against tokens seen."""
    each = "One line per run, coloured by objective; tokens seen include control tokens."
    wanted = (
        ("train", ("loss",), "Training loss", "nats per token", f"{each} Objectives weigh tokens differently: compare runs on the validation figures."),
        ("validation", ("nll_good",), "Validation loss on good segments", "nats per text token", each),
        ("validation", ("nll_bad",), "Validation loss on bad segments", "nats per text token", each),
        ("validation", ("control_gain_good", "control_gain_bad"), "Control gain in training", "nats per segment", f"How much likelier the text of a held-out segment is under its own label than under the other: solid, good segments; dashed, bad ones. Above 0 on both is the first sign of control. {each}"),
    )  # fmt: skip
    drawings = []
    for kind, names, title, unit, caption in wanted:
        curves = [
            (group, index, *_read_curve(run, kind, name))
            for group in groups
            for run in group.runs
            for index, name in enumerate(names)
        ]
        curves = [curve for curve in curves if curve[2]]
        if curves:
            drawings.append(_draw_lines(curves, title, unit, caption))
    return drawings


def _draw_lines(
    curves: list[tuple[Group, int, list[float], list[float]]], title: str, unit: str, caption: str
) -> Drawing:
    def draw(axes: Axes) -> None:
        for group, index, tokens, values in curves:
            axes.plot(
                [token / 1e6 for token in tokens],
                values,
                color=OBJECTIVE_COLOURS.get(group.objective, INK),
                linestyle=("-", (0, (4, 2)))[index],
                linewidth=1.4,
                marker="o" if len(values) <= 12 else None,
                markersize=3,
            )
        if any(index for _, index, _, _ in curves):
            axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.set_xlabel("million tokens seen")
        axes.set_ylabel(unit)

    return draw_figure(draw, title, caption, height=2.7)


def _read_curve(run: RunFolder, kind: str, name: str) -> tuple[list[float], list[float]]:
    """Tokens and values of one metric, averaged over equal stretches; steps without the number are left out."""
    points = [
        (as_float(line.get("tokens")), as_float(line.get(name)))
        for line in run.metrics
        if line.get("kind") == kind
    ]
    points = [point for point in points if all(map(math.isfinite, point))]
    stride = math.ceil(len(points) / _CURVE_POINTS) or 1
    chunks = [points[start : start + stride] for start in range(0, len(points), stride)]
    means = [tuple(sum(column) / len(chunk) for column in zip(*chunk, strict=True)) for chunk in chunks]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def _plot_point(
    axes: Axes, label: str, mode: str, place: tuple[float, float], x: Estimate, y: Estimate | None
) -> None:
    """A marker with its interval along x (and y); its numbers appear on hover."""
    if not all(map(math.isfinite, place)):
        return
    colour = MODE_COLOURS.get(mode, FAINT)
    if math.isfinite(x.low) and math.isfinite(x.high):
        axes.plot([x.low, x.high], [place[1]] * 2, color=colour, linewidth=2.2, solid_capstyle="round")
    if y is not None and math.isfinite(y.low) and math.isfinite(y.high):
        axes.plot([place[0]] * 2, [y.low, y.high], color=colour, linewidth=2.2, solid_capstyle="round")
    (marker,) = axes.plot(
        *place, color=colour, marker=MODE_MARKERS.get(mode, "X"), markersize=6.5, linestyle="none", zorder=3
    )
    numbers = ", ".join(_show(estimate) for estimate in (x, y) if estimate is not None)
    marker.set_gid(f"hover:{label}: {numbers}")


def _show(estimate: Estimate) -> str:
    mean, low, high = map(format_number, (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _scaled(estimate: Estimate, judge: Judge) -> Estimate:
    mean, low, high = (value * judge.scale for value in (estimate.mean, estimate.low, estimate.high))
    return Estimate(mean, low, high, estimate.count)


def shorten(text: str, length: int = 26) -> str:
    """A label in one short line, with nothing invisible in it."""
    text = " ".join(visible_text(text).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def draw_figure(draw: Callable[[Axes], None], title: str, caption: str, height: float) -> Drawing:
    """Run one drawing function on fresh axes and return the page's kind of SVG."""
    buffer = io.StringIO()
    salt = hashlib.sha256(f"{title}{caption}".encode("utf-8", "replace")).hexdigest()[:8]
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        # A run may be named in any script; the browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, height))
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(_finish(buffer.getvalue(), title, caption, salt), title, caption)


def _finish(svg: str, title: str, caption: str, salt: str) -> str:
    """Matplotlib's file as an element of a page: no prolog, metadata, namespaces or spare ids; colours by name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"(hover:[^\"]*)\">", lambda match: f"<g><title>{match[1][6:]}</title>", svg)
    # Ids of clip paths and markers are salted by figure; all others would repeat from figure to figure.
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r" id=\"([^\"]*)\"", lambda match: match[0] if match[1] in used else "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font(-family)?: ([^;\"]*)'DejaVu Sans'[^;\"]*", _rename_font, svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head = (
        f'<svg role="img" aria-labelledby="t{salt} d{salt}" viewBox="{_view_box(svg)}">'
        f'<title id="t{salt}">{html.escape(title)}</title><desc id="d{salt}">{html.escape(caption)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]


def _rename_font(match: re.Match[str]) -> str:
    """Keep size and weight, leave the family to the page."""
    size = re.search(r"[\d.]+px", match[2])
    return f"font-size: {size[0]}" if size else "font-family: inherit"


def _view_box(svg: str) -> str:
    found = re.search(r'viewBox="([\d. ]+)"', svg)
    assert found is not None, "matplotlib writes a viewBox"
    return found[1]


def list_drawings(
    runs: list[RunFolder], groups: list[Group], references: list[Reference]
) -> tuple[list[Drawing], list[Drawing], list[Drawing]]:
    """Scores (one figure per judge), planes (one per judge) and curves."""
    judges = list_judges(runs)
    mles = [group for group in groups if group.objective == "mle"]
    mle = mles[0] if len(mles) == 1 else None
    scores = [draw_scores(runs, judge, references, mle) for judge in judges]
    return scores, [draw_plane(groups, judge) for judge in judges], draw_curves(groups)
