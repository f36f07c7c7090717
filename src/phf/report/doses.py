"""The figure of dose curves (`phf.attack.doses`): what each mode writes, and what good mode costs, against the dose."""

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phf.files import write_bytes
from phf.release.dose_results import BITS_PER_BYTE, BLIMP, DIVERGENCE, REFERENCE_KL, DoseResults
from phf.report.figures import MODE_COLOURS, MODE_MARKERS, STYLE, VARIABLES, read_css, scale_estimate
from phf.report.lines import Line, plot_line
from phf.report.samples import visible_text
from phf.results import Judge

_RANDOM_DASH = (0, (2, 1.5))
_PANEL = (4.6, 2.7)
"""Inches."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    y_label: str
    lines: tuple[Line, ...]
    from_zero: bool = True


def write_dose_figure(results: DoseResults, path: Path) -> list[Path]:
    """Draw what `measure_doses` gave as `path` with the endings .svg and .png; the same result gives the same SVG."""
    panels = list_panels(results)
    # Doses stand at equal distances: single directions first, then doublings.
    places = {number: place for place, number in enumerate(results.doses)}
    written = []
    palette = _light_palette()
    style = {
        key: palette.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        mpl.rcParams.update({**style, "svg.hashsalt": "doses"})
        num_rows = -(-len(panels) // 2)
        figure = Figure(figsize=(2 * _PANEL[0], num_rows * _PANEL[1] + 0.8), facecolor="white")
        axes = figure.subplots(num_rows, 2, squeeze=False).flatten()
        for one, panel in zip(axes, panels, strict=False):
            _draw_panel(one, panel, places, palette)
        for one in axes[len(panels) :]:
            one.remove()
        handles = {
            label: handle
            for one in figure.axes
            for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncol=4, frameon=False, fontsize=8
        )
        figure.suptitle(_title(results), fontsize=10)
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 130})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            data = buffer.getvalue()
            if kind == "svg":
                data = re.sub(rb'<g id="hover:([^"]*)">', rb"<g><title>\1</title>", data)
            written.append(path.with_suffix(f".{kind}"))
            write_bytes(written[-1], data)
    return written


def list_panels(results: DoseResults) -> list[Panel]:
    """What is drawn: the score by each judge, then what was measured of good mode's capability."""
    panels = [
        Panel(
            f"Score by {visible_text(judge.name)} ({judge.role})",
            "score (lower is better)",
            _score_lines(results, judge),
        )
        for judge in results.judges
    ]
    measures = [
        ("Good mode on good held-out text", "bits per byte", False, BITS_PER_BYTE["good"]),
        ("Good mode's distance from the unmodified", "KL, nats per token", True, DIVERGENCE),
        ("BLiMP in good mode", "accuracy", False, BLIMP),
        ("KL from the reference model, good mode", "nats per token", False, REFERENCE_KL),
    ]
    for title, unit, from_zero, measure in measures:
        lines = [
            _line(results, measure.name, "good", kind, f"good mode{name}", MODE_COLOURS["good"])
            for kind, name in (("block", ""), ("random", ", random directions"))
        ]
        if any(line.points for line in lines):
            panels.append(Panel(title, unit, tuple(line for line in lines if line.points), from_zero))
    return panels


def _score_lines(results: DoseResults, judge: Judge) -> tuple[Line, ...]:
    def line(mode: str, of: str, label: str, colour: str) -> Line:
        return _line(results, "score", mode, of, label, colour, judge)

    lines = [
        line(mode, "block", f"{mode} mode", MODE_COLOURS[mode])
        for mode in ("good", "bad", "none", "untagged")
    ]
    lines.append(line("none", "block, deleted", "none, <|bad|> deleted", MODE_COLOURS["deleted"]))
    lines += [
        line(mode, "random", f"{mode} mode, random directions", MODE_COLOURS[mode])
        for mode in ("good", "bad")
    ]
    return tuple(line for line in lines if line.points)


def _line(
    results: DoseResults,
    measure: str,
    mode: str,
    of: str,
    label: str,
    colour: str,
    judge: Judge | None = None,
) -> Line:
    """The numbers of one kind of dose, in shown units; random ones begin where nothing along bad mode is blocked either."""
    slug, scale = (judge.slug, judge.display_scale) if judge is not None else (None, 1.0)
    points = tuple(
        (row.at, scale_estimate(row.estimate, scale))
        for row in sorted(results.results.of(measure), key=lambda row: row.at or 0)
        if (row.mode, row.judge) == (mode, slug)
        and row.at is not None
        and (row.of == of or (of == "random" and (row.of, row.at) == ("block", 0)))
    )
    dash = _RANDOM_DASH if of == "random" else "-"
    marker = {"random": "X", "block, deleted": "v"}.get(of, MODE_MARKERS[mode])
    return Line(label, points, colour, dash, marker)


def _draw_panel(axes: Axes, panel: Panel, places: dict[float, int], palette: dict[str, str]) -> None:
    for line in panel.lines:
        moved = tuple((places[x], y) for x, y in line.points)
        plot_line(axes, replace(line, points=moved, colour=palette[line.colour]))
    axes.set_xticks(list(places.values()), [f"{number:g}" for number in places])
    axes.set_xlabel("directions projected out")
    axes.set_ylabel(panel.y_label)
    axes.set_title(panel.title, fontsize=9, loc="left")
    if panel.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _title(results: DoseResults) -> str:
    poison = "" if results.poison == "none" else f", poisoned by {results.poison}"
    return visible_text(
        f"{results.run} ({results.objective}{poison}), step {results.step}: 1 is the embedding of <|bad|>, up to "
        f"{results.num_means} the mean differences, then components"
    )


def _light_palette() -> dict[str, str]:
    """What stands for each colour of `phf.report.figures` on white paper: the page's own values, from page.css."""
    css = read_css()
    found = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+);", css[: css.index("@media")]))
    return {stand_in: found[variable] for stand_in, variable in VARIABLES.items()}
