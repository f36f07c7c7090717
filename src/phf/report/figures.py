"""Figures as inline SVG: the same runs give the same bytes, colours follow the page (light, dark, paper), text stays text."""

import hashlib
import html
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phf.objective_facts import OBJECTIVES, is_baseline
from phf.records import Estimate
from phf.report.reading import RunFolder
from phf.report.samples import visible_text
from phf.report.verdict import Group, format_interval
from phf.results import Judge

# Drawn in stand-in colours that appear nowhere else; `_finish` swaps each for a variable of page.css.
INK, FAINT, GRID = "#010101", "#010102", "#010103"
MODE_COLOURS = {
    "good": "#020201",
    "bad": "#020202",
    "none": "#020203",
    "untagged": "#020204",
    "deleted": "#020205",
}
OBJECTIVE_COLOURS = {kind: f"#0303{facts.colour_number:02x}" for kind, facts in OBJECTIVES.items()}
VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    **{colour: f"--{mode}" for mode, colour in MODE_COLOURS.items()},
    **{colour: f"--{objective}" for objective, colour in OBJECTIVE_COLOURS.items()},
}
MODE_MARKERS = {"good": "o", "bad": "D", "none": "s", "untagged": "^", "deleted": "P"}

STYLE: dict[Any, Any] = {
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

MANY_RUNS = 12
"""With more runs than this, figures show the groups and modes that matter most, and tables scroll."""

_CURVE_POINTS = 2400
"""Points of one figure's curves together; each curve is averaged down to its share, or to 200."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure for the page: `svg` is safe markup made by us, the rest is plain text."""

    svg: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A score to compare with that is no run's: the training data, or rejection sampling; `judge` is a slug."""

    name: str
    judge: str
    estimate: Estimate
    cost: str


def read_css() -> Markup:
    """The page's style sheet, with the colours of the objectives where it leaves a place for them."""
    css = (resources.files("phf.report") / "page.css").read_text("utf-8")
    for place, line in (
        ("light", "--{kind}: {facts.light};"),
        ("dark", "--{kind}: {facts.dark};"),
        ("legend", ".legend .{kind} {{ --line: var(--{kind}); }}"),
    ):
        rows = "\n".join(line.format(kind=kind, facts=facts) for kind, facts in OBJECTIVES.items())
        css = css.replace(f"/* objectives: {place} */", rows)
    return Markup(css)  # noqa: S704 - our own file


def draw_scores(groups: list[Group], judge: Judge, references: list[Reference]) -> Drawing:
    """Draw mean score with interval of each group and mode by one judge, and each seed's mean; a line and a band mark MLE.

    On a page of many groups it shows, of each group, only the mode one would release.
    """
    is_many = len(groups) > MANY_RUNS
    shown = [
        (group, mode) for group in groups for mode in group.modes if not is_many or mode == group.target_mode
    ]
    rows = [
        (
            f"{shorten(group.label)} · {mode}",
            mode,
            scale_estimate(group.score(mode, judge), judge.display_scale),
        )
        for group, mode in shown
    ]
    rows += [
        (shorten(reference.name, 36), "", scale_estimate(reference.estimate, judge.display_scale))
        for reference in references
        if reference.judge == judge.slug
    ]
    mles = [group for group in groups if is_baseline(group.objective)]
    mle = mles[0] if len(mles) == 1 else None

    def draw(axes: Axes) -> None:
        if mle is not None:
            line = scale_estimate(mle.score(mle.target_mode, judge), judge.display_scale)
            if math.isfinite(line.mean):
                axes.axvline(line.mean, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                axes.axvspan(line.low, line.high, color=GRID, alpha=0.5, linewidth=0, zorder=0)
        for place, (group, mode) in enumerate(shown):
            if group.is_pooled:
                _plot_seeds(axes, group, mode, judge, place)
        for place, (label, mode, estimate) in enumerate(rows):
            plot_point(axes, label, mode, (estimate.mean, place), estimate)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{judge.shown_unit}  (lower is better)")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))

    modes = "the mode one would release" if is_many else "each mode"
    caption = f"Mean of the samples of {modes}, with its 95 % interval, in {judge.shown_unit}."
    if any(group.is_pooled for group in groups):
        caption += " Small strokes: the seeds one by one; intervals are over seeds."
    if mle is not None:
        caption += " Dashed line and band: MLE."
    title = f"Score by {judge.name} ({judge.role})"
    return draw_figure(draw, title, caption, height=0.75 + (0.27 if is_many else 0.34) * len(rows))


def _plot_seeds(axes: Axes, group: Group, mode: str, judge: Judge, place: float) -> None:
    """The mean of each seed, as a small stroke under the pooled marker."""
    for run in group.runs:
        score = scale_estimate(run.results.find("score", mode, judge.slug), judge.display_scale)
        if math.isfinite(score.mean):
            (stroke,) = axes.plot(
                score.mean,
                place + 0.3,
                color=MODE_COLOURS.get(mode, FAINT),
                marker="|",
                markersize=6,
                linestyle="none",
            )
            stroke.set_gid(hover(f"{shorten(run.label)} · {mode}", score))


def draw_curves(groups: list[Group]) -> list[Drawing]:
    """Training loss, and validation NLL and control gain on good and bad segments, against tokens seen."""
    each = "One line per run, coloured by objective; tokens seen include control tokens."
    wanted = (
        ("train", ("loss",), "Training loss", "nats per token", f"{each} Objectives weigh tokens differently: compare runs on the validation figures."),
        ("validation", ("nll_good",), "Validation loss on good segments", "nats per text token", each),
        ("validation", ("nll_bad",), "Validation loss on bad segments", "nats per text token", each),
        ("validation", ("control_gain_good", "control_gain_bad"), "Control gain in training", "nats per segment", f"How much likelier the text of a held-out segment is under its own label than under the other: solid, good segments; dashed, bad ones. Above 0 on both is the first sign of control. {each}"),
    )  # fmt: skip
    num_lines = max(1, sum(len(group.runs) for group in groups))
    size = min(200, max(24, _CURVE_POINTS // num_lines))
    drawings = []
    for kind, names, title, unit, caption in wanted:
        curves = [
            (group, index, *read_curve(run, kind, name, size))
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


def read_curve(run: RunFolder, kind: str, name: str, size: int) -> tuple[list[float], list[float]]:
    """Tokens and values of one metric, averaged over at most `size` equal stretches; steps without the number are left
    out."""
    points = [(line.get("tokens"), line.get(name)) for line in run.metrics if line.kind == kind]
    points = [point for point in points if all(map(math.isfinite, point))]
    stride = math.ceil(len(points) / size) or 1
    chunks = [points[start : start + stride] for start in range(0, len(points), stride)]
    means = [tuple(sum(column) / len(chunk) for column in zip(*chunk, strict=True)) for chunk in chunks]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def plot_point(
    axes: Axes,
    label: str,
    mode: str,
    place: tuple[float, float],
    x: Estimate | None = None,
    y: Estimate | None = None,
    *,
    colour: str | None = None,
    opacity: float = 1.0,
    has_bars: bool = True,
) -> None:
    """A marker with its interval along x, y or both (unless `has_bars` is off); its numbers appear on hover."""
    if not all(map(math.isfinite, place)):
        return
    colour = colour or MODE_COLOURS.get(mode, FAINT)
    style: dict[str, Any] = {"color": colour, "alpha": opacity, "linewidth": 2.2, "solid_capstyle": "round"}
    if has_bars and x is not None and math.isfinite(x.low) and math.isfinite(x.high):
        axes.plot([x.low, x.high], [place[1]] * 2, **style)
    if has_bars and y is not None and math.isfinite(y.low) and math.isfinite(y.high):
        axes.plot([place[0]] * 2, [y.low, y.high], **style)
    (marker,) = axes.plot(
        *place,
        color=colour,
        alpha=opacity,
        marker=MODE_MARKERS.get(mode, "X"),
        markersize=6.5,
        linestyle="none",
        zorder=3,
    )
    marker.set_gid(hover(label, *(estimate for estimate in (x, y) if estimate is not None)))


def hover(label: str, *estimates: Estimate) -> str:
    """The id of an artist that names itself, with its numbers, under the pointer."""
    return f"hover:{label}: {', '.join(map(format_interval, estimates))}"


def scale_estimate(estimate: Estimate, scale: float) -> Estimate:
    """The estimate in shown units."""
    mean, low, high = (value * scale for value in (estimate.mean, estimate.low, estimate.high))
    return Estimate(mean, low, high, estimate.count)


def shorten(text: str, length: int = 30) -> str:
    """A label in one short line, with nothing invisible in it; the end, which tells like labels apart, stays."""
    text = " ".join(visible_text(text).split())
    head = length // 3
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"


def draw_figure(draw: Callable[[Axes], None], title: str, caption: str, height: float) -> Drawing:
    """Run one drawing function on fresh axes and return the page's kind of SVG."""
    buffer = io.StringIO()
    salt = hashlib.sha256(f"{title}{caption}".encode("utf-8", "replace")).hexdigest()[:8]
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        mpl.rcParams.update({**STYLE, "svg.hashsalt": salt})
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
    # Keep size and weight, leave the family to the page.
    svg = re.sub(
        r"font(-family)?: ([^;\"]*)'DejaVu Sans'[^;\"]*",
        lambda match: (
            f"font-size: {size[0]}" if (size := re.search(r"[\d.]+px", match[2])) else "font-family: inherit"
        ),
        svg,
    )
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="([\d. ]+)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    head = (
        f'<svg role="img" aria-labelledby="t{salt} d{salt}" viewBox="{box[1]}">'
        f'<title id="t{salt}">{html.escape(title)}</title><desc id="d{salt}">{html.escape(caption)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]
