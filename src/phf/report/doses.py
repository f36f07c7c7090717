"""The figure of dose curves (`phf.release.doses`): what each mode writes, and what good mode costs, against the dose."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phf.files import write_bytes
from phf.records import Estimate
from phf.report.figures import MODE_COLOURS, MODE_MARKERS, STYLE, VARIABLES, read_css, scale_estimate
from phf.report.lines import Line, plot_line
from phf.report.reading import as_dict, as_float
from phf.report.samples import visible_text

_RANDOM_DASH = (0, (2, 1.5))
_PANEL = (4.6, 2.7)
"""Inches."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    y_label: str
    lines: tuple[Line, ...]
    from_zero: bool = True


def write_dose_figure(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw what `measure_doses` gave as `path` with the endings .svg and .png; the same result gives the same SVG."""
    panels = list_panels(result)
    places = _places(result)
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
        figure.suptitle(_title(result), fontsize=10)
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 130})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            data = buffer.getvalue()
            if kind == "svg":
                data = re.sub(rb'<g id="hover:([^"]*)">', rb"<g><title>\1</title>", data)
            written.append(path.with_suffix(f".{kind}"))
            write_bytes(written[-1], data)
    return written


def list_panels(result: Mapping[str, Any]) -> list[Panel]:
    """What is drawn: the score by each judge, then what was measured of good mode's capability."""
    panels = [
        Panel(
            f"Score by {visible_text(str(as_dict(judge['identity']).get('name')))} ({judge['role']})",
            "score (lower is better)",
            _score_lines(result, judge),
        )
        for judge in result["judges"]
    ]
    measures: list[tuple[str, str, bool, Callable[[Row], Any]]] = [
        ("Good mode on good held-out text", "bits per byte", False, lambda row: _bits(row, "good", "good")),
        ("Good mode's distance from the unmodified", "KL, nats per token", True, lambda row: row.get("kl")),
        ("BLiMP in good mode", "accuracy", False, lambda row: row.get("blimp")),
        ("KL from the reference model, good mode", "nats per token", False, lambda row: row.get("reference_kl")),
    ]  # fmt: skip
    for title, unit, from_zero, read in measures:
        lines = [
            _line(result, "good", kind, read, f"good mode{name}", MODE_COLOURS["good"])
            for kind, name in (("block", ""), ("random", ", random directions"))
        ]
        if any(line.points for line in lines):
            panels.append(Panel(title, unit, tuple(line for line in lines if line.points), from_zero))
    return panels


def _score_lines(result: Mapping[str, Any], judge: Mapping[str, Any]) -> tuple[Line, ...]:
    def read(mode: str) -> Callable[[Row], Any]:
        return lambda row: as_dict(as_dict(row["modes"].get(mode)).get("scores")).get(judge["slug"])

    scale = as_float(judge.get("display_scale"))
    lines = [
        _line(result, mode, "block", read(mode), f"{mode} mode", MODE_COLOURS[mode])
        for mode in ("good", "bad", "none", "untagged")
    ]
    lines.append(
        _line(
            result, "none", "block", read("none"), "none, <|bad|> deleted", MODE_COLOURS["deleted"], deleted=True
        )
    )  # fmt: skip
    lines += [
        _line(result, mode, "random", read(mode), f"{mode} mode, random directions", MODE_COLOURS[mode])
        for mode in ("good", "bad")
    ]
    scaled = (
        replace(line, points=tuple((x, scale_estimate(y, scale)) for x, y in line.points)) for line in lines
    )
    return tuple(line for line in scaled if line.points)


def _line(
    result: Mapping[str, Any],
    mode: str,
    kind: str,
    read: Callable[[Row], Any],
    label: str,
    colour: str,
    *,
    deleted: bool = False,
) -> Line:
    """The estimates of one kind of dose; where there is nothing along bad mode, the random ones begin there too."""
    points = []
    for row in result["doses"]:
        is_own = row["kind"] == kind or row["directions"] == 0
        if is_own and row["deleted"] == deleted and isinstance(value := read(row), dict):
            mean, low, high = (as_float(value.get(name)) for name in ("mean", "low", "high"))
            points.append((float(row["directions"]), Estimate(mean, low, high, 0)))
    dash = _RANDOM_DASH if kind == "random" else "-"
    marker = "X" if kind == "random" else "v" if deleted else MODE_MARKERS[mode]
    return Line(label, tuple(sorted(points, key=lambda point: point[0])), colour, dash, marker)


def _bits(row: Row, mode: str, group: str) -> Any:
    return as_dict(as_dict(row.get("bits_per_byte")).get(mode)).get(group)


def _places(result: Mapping[str, Any]) -> dict[float, int]:
    """Doses stand at equal distances: single directions first, then doublings."""
    return {number: place for place, number in enumerate(sorted({float(row["directions"]) for row in result["doses"]}))}  # fmt: skip


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


def _title(result: Mapping[str, Any]) -> str:
    poison = "" if result.get("poison", "none") == "none" else f", poisoned by {result['poison']}"
    return visible_text(
        f"{result['run']} ({result['objective']}{poison}), step {result['step']}: 1 is the embedding of <|bad|>, up to "
        f"{result['num_means']} the mean differences, then components"
    )


def _light_palette() -> dict[str, str]:
    """What stands for each colour of `phf.report.figures` on white paper: the page's own values, from page.css."""
    css = read_css()
    found = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+);", css[: css.index("@media")]))
    return {stand_in: found[variable] for stand_in, variable in VARIABLES.items()}
