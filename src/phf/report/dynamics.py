"""A run as a chain of pages, from a dynamics.json, as a page."""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from phf.dynamics.results import (
    AVERAGE,
    FAR_EXCESS,
    FAR_P,
    HAZARD,
    LAW,
    LAW_EXCESS,
    LAW_OF_DATA,
    MEASURES,
    ORDER,
    RATE,
    RATE_EXCESS,
    RATE_OF_DATA,
    SHARE_BETWEEN,
    DynamicsResults,
)
from phf.files import write_bytes
from phf.records import Estimate
from phf.report.figures import FAINT, MODE_COLOURS, MODE_MARKERS, Drawing, draw_figure, read_css
from phf.report.own_view import OwnView, plot_band
from phf.report.page import embed_figures, make_environment
from phf.results import Measure

_STEPS = ("good -> bad", "bad -> good", "good -> end", "bad -> end")
_LEAST_PAGES = 10
"""Pages with a state below which the page does not show its rates: they are in dynamics.json."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table."""

    mode: str
    name: str
    cells: list[Estimate]


class Dynamics:
    """What the page tells of a dynamics.json."""

    def __init__(self, results: DynamicsResults) -> None:
        self.results = results
        self.modes = results.modes

    def compare(self, *measures: Measure) -> list[Line]:
        """A line per mode and step or number: the model's, the data's, the difference."""
        find = self.results.results.find
        names = dict.fromkeys(row.of for row in self.results.results.of(measures[0].name))
        return [
            Line(mode, str(name), cells)
            for mode in self.modes
            for name in names
            for cells in [[find(measure.name, mode, of=name) for measure in measures]]
            if cells[0].count >= _LEAST_PAGES
        ]

    @property
    def rates(self) -> list[Line]:
        """Of steps."""
        return self.compare(RATE, RATE_OF_DATA, RATE_EXCESS)

    @property
    def laws(self) -> list[Line]:
        """What follows from them."""
        return self.compare(LAW, LAW_OF_DATA, LAW_EXCESS)

    @property
    def forgetting(self) -> list[Line]:
        """By mode: order, shares between pages, far excess and its p, both averages."""
        find = self.results.results.find
        return [
            Line(
                mode,
                "",
                [
                    *(find(measure.name, mode) for measure in (ORDER, SHARE_BETWEEN, FAR_EXCESS, FAR_P)),
                    *(find(AVERAGE.name, mode, of=name) for name in ("over pages", "over segments")),
                ],
            )
            for mode in self.modes
        ]

    def draw(self) -> list[Drawing]:
        """Rates beside the data's; hazards by place."""
        drawn = [self._draw_rates()] if self.results.judge is not None else []
        if self.results.results.of(HAZARD.name):
            drawn.append(self._draw_hazards())
        return drawn

    def _draw_rates(self) -> Drawing:
        find = self.results.results.find
        rows = [(mode, step) for step in _STEPS for mode in self.modes]

        def draw(axes: Axes) -> None:
            for place, (mode, step) in enumerate(rows):
                own, data = find(RATE.name, mode, of=step), find(RATE_OF_DATA.name, mode, of=step)
                _plot_interval(axes, data, place + 0.18, FAINT, "s")
                _plot_interval(axes, own, place - 0.18, MODE_COLOURS[mode], MODE_MARKERS[mode])
            axes.set_yticks(range(len(rows)), [f"{step}, {mode}" for mode, step in rows])
            axes.invert_yaxis()
            axes.set_xlim(left=0)
            axes.set_xlabel("share of segments")

        return draw_figure(
            draw,
            "How good text turns bad, and comes back",
            "Coloured: pages that the model wrote, by mode. Grey: documents of the training data with as many segments. 95 % intervals "
            "over pages; what the two differ in is the model's own.",
            0.6 + 0.3 * len(rows),
        )

    def _draw_hazards(self) -> Drawing:
        rows = self.results.results.of(HAZARD.name)

        def draw(axes: Axes) -> None:
            for mode in self.modes:
                for step, style in (("good -> bad", "-"), ("bad -> good", "--")):
                    own = [row for row in rows if (row.mode, row.of) == (mode, step) and row.at is not None]
                    plot_band(
                        axes,
                        [(row.at or 0, row.estimate) for row in own],
                        MODE_COLOURS[mode],
                        style,
                        f"{step}, {mode}",
                    )
            axes.set_xlabel("segment on the page")
            axes.set_ylabel("share that turns behind it")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=7)

        return draw_figure(
            draw,
            "Hazards by place on the page",
            "Full: good segments that turn bad. Dashed: bad ones that turn good. Bands: 95 %; a place with fewer than 20 such segments is not drawn.",
            3.2,
        )


def _plot_interval(axes: Axes, estimate: Estimate, place: float, colour: str, marker: str) -> None:
    if not math.isfinite(estimate.mean):
        return
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=1.4)
    axes.plot([estimate.mean], [place], marker, color=colour, markersize=4)


def write_dynamics_page(results: DynamicsResults, path: Path) -> Path:
    """Write the page of a dynamics.json to `path`: no script, nothing fetched; the same content gives the same bytes."""
    dynamics, own = Dynamics(results), OwnView(results)
    page = (
        make_environment()
        .get_template("dynamics_page.html")
        .render(
            css=read_css(),
            results=results,
            dynamics=dynamics,
            figures_drawn=embed_figures(dynamics.draw()),
            own=own,
            own_drawn=embed_figures(own.draw()),
            terms=[measure for measure in MEASURES if measure.note],
        )
    )
    write_bytes(path, page.encode("utf-8", "replace"))
    return path
