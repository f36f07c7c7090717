"""A model as a chain of pages, from a dynamics.json, as a page and as a section."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from phf.dynamics import measures
from phf.dynamics.results import DynamicsResults
from phf.files import write_bytes
from phf.records import Estimate
from phf.report.figures import FAINT, GRID, MODE_COLOURS, MODE_MARKERS, Drawing, draw_figure, read_css
from phf.report.own_view import OwnView, plot_band
from phf.report.page import Section, embed_figures, make_environment
from phf.results import Measure

_STEPS = ("good -> bad", "bad -> good", "good -> end", "bad -> end")
_TIMES = ("segments until bad, from good", "segments until good, from bad", "segments of memory")
_NODES = {"good": (-1.0, 0.0), "bad": (1.0, 0.0), "looping": (0.0, 1.3), "end": (0.0, -1.3)}
"""Where the states of a chain stand."""
_CIRCLE = {"boxstyle": "round,pad=0.4", "facecolor": GRID, "edgecolor": "none"}
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

    def compare(self, *shown: Measure) -> list[Line]:
        """A line per mode and step or number: the model's, the data's, the difference."""
        find = self.results.results.find
        names = dict.fromkeys(row.of for row in self.results.results.of(shown[0].name))
        return [
            Line(mode, str(name), cells)
            for mode in self.modes
            for name in names
            for cells in [[find(measure.name, mode, of=name) for measure in shown]]
            if cells[0].count >= _LEAST_PAGES
        ]

    @property
    def rates(self) -> list[Line]:
        """Of steps."""
        return self.compare(measures.RATE, measures.RATE_OF_DATA, measures.RATE_EXCESS)

    @property
    def laws(self) -> list[Line]:
        """What follows from them."""
        return self.compare(measures.LAW, measures.LAW_OF_DATA, measures.LAW_EXCESS)

    @property
    def forgetting(self) -> list[Line]:
        """By mode: order and its p, shares between pages, far excess and its p, both averages."""
        find = self.results.results.find
        return [
            Line(
                mode,
                "",
                [
                    *(
                        find(measure.name, mode)
                        for measure in (
                            measures.ORDER,
                            measures.ORDER_P,
                            measures.SHARE_BETWEEN,
                            measures.FAR_EXCESS,
                            measures.FAR_P,
                        )
                    ),
                    *(find(measures.AVERAGE.name, mode, of=name) for name in ("over pages", "over segments")),
                ],
            )
            for mode in self.modes
        ]

    @property
    def places(self) -> list[Line]:
        """By mode: p of alike places, and the drift of both turns."""
        find = self.results.results.find
        return [
            Line(
                mode,
                "",
                [
                    find(measures.PLACES_P.name, mode),
                    *(find(measures.DRIFT.name, mode, of=step) for step in _STEPS[:2]),
                ],
            )
            for mode in self.modes
        ]

    @property
    def errors(self) -> list[Line]:
        """Where the judge's errors are known: rates and what follows, plain and without them, and what is the model's own."""
        find = self.results.results.find
        names = dict.fromkeys(row.of for row in self.results.results.of(measures.HIDDEN.name))
        plain = [(measures.RATE, measures.RATE_OF_DATA), (measures.LAW, measures.LAW_OF_DATA)]
        return [
            Line(
                mode,
                str(name),
                [
                    find(own.name, mode, of=name),
                    find(measures.HIDDEN.name, mode, of=name),
                    find(data.name, mode, of=name),
                    find(measures.HIDDEN_OF_DATA.name, mode, of=name),
                    find(measures.HIDDEN_EXCESS.name, mode, of=name),
                ],
            )
            for mode in self.modes
            for name in names
            for own, data in [plain[name not in _STEPS]]
        ]

    @property
    def judge_errors(self) -> list[Line]:
        """How often the judge errs, of what is good and of what is bad."""
        find = self.results.results.find
        return [
            Line(mode, "", [find(measures.JUDGE_ERROR.name, mode, of=name) for name in ("good", "bad")])
            for mode in self.modes
            if self.results.results.of(measures.JUDGE_ERROR.name)
        ]

    @property
    def returns(self) -> list[Line]:
        """By state and truncation: good again within the most segments, and still there."""
        find = self.results.results.find
        return [
            Line(
                str(row.mode),
                str(row.of),
                [find(measures.RETURN.name, row.mode, of=row.of, at=row.at), row.estimate],
            )
            for row in self.results.results.of(measures.STAY.name)
            if row.estimate.count >= _LEAST_PAGES
        ]

    def draw(self) -> list[Drawing]:
        """The chain of each mode; rates and times beside the data's; hazards by place; returns."""
        if self.results.judge is None:
            return []
        drawn = [self._draw_chain(mode) for mode in self.modes]
        drawn.append(
            self._draw_intervals(
                _STEPS,
                (measures.RATE, measures.RATE_OF_DATA),
                "How good text turns bad, and comes back",
                "Coloured: pages that the model wrote, by mode. Grey: documents of the training data with as many segments. 95 % intervals "
                "over pages; what the two differ in is the model's own.",
                "share of segments",
            )
        )
        drawn.append(
            self._draw_intervals(
                _TIMES,
                (measures.LAW, measures.LAW_OF_DATA),
                "How long it takes",
                "Expected segments, over the ends of pages, and how many a deviation takes to fall to 1/e. Coloured: the model's pages. "
                "Grey: the data, of as many segments.",
                "segments",
            )
        )
        if self.results.results.of(measures.HAZARD.name):
            drawn.append(self._draw_hazards())
        if any(
            str(row.of).endswith("all tokens") and row.estimate.count >= _LEAST_PAGES
            for row in self.results.results.of(measures.RETURN.name)
        ):
            drawn.append(self._draw_returns())
        return drawn

    def _draw_chain(self, mode: str) -> Drawing:
        """Its states, and arrows as wide as they are often taken."""
        find = self.results.results.find
        seen = [state for state in _NODES if state == "end" or self._find_pages(mode, state) >= _LEAST_PAGES]

        def draw(axes: Axes) -> None:
            for state in seen:
                axes.text(*_NODES[state], state, ha="center", va="center", zorder=3, bbox=_CIRCLE)
                if state != "end":
                    place = (_NODES[state][0], _NODES[state][1] + 0.27)
                    axes.text(*place, f"stays {self._describe_stay(mode, state)}", ha="center", fontsize=7)
            for first in seen:
                for second in seen:
                    rate = find(measures.RATE.name, mode, of=f"{first} -> {second}")
                    if rate.count >= _LEAST_PAGES and rate.mean > 0:
                        data = find(measures.RATE_OF_DATA.name, mode, of=f"{first} -> {second}")
                        _draw_arrow(axes, _NODES[first], _NODES[second], rate.mean, MODE_COLOURS[mode])
                        place = _place_label(_NODES[first], _NODES[second])
                        axes.text(*place, _write_pair(rate, data), ha="center", va="center", fontsize=7)
            axes.set_xlim(-1.5, 1.5)
            axes.set_ylim(-1.5, 1.8 if "looping" in seen else 0.6)
            axes.axis("off")

        return draw_figure(
            draw,
            f"The chain of pages, {mode}",
            "How often a segment is followed by which kind: the model's pages, and in brackets the data's of as many segments. Arrows are as wide "
            "as they are often taken; their intervals are in the table.",
            3.8 if "looping" in seen else 2.6,
        )

    def _find_pages(self, mode: str, state: str) -> int:
        return self.results.results.find(measures.RATE.name, mode, of=f"{state} -> end").count

    def _describe_stay(self, mode: str, state: str) -> str:
        find = self.results.results.find
        stays = [
            1
            - sum(
                find(measure.name, mode, of=f"{state} -> {other}").mean for other in _NODES if other != state
            )
            for measure in (measures.RATE, measures.RATE_OF_DATA)
        ]
        return _write_pair(*(Estimate(stay, math.nan, math.nan, 0) for stay in stays))

    def _draw_intervals(
        self, names: Sequence[str], shown: tuple[Measure, Measure], title: str, caption: str, unit: str
    ) -> Drawing:
        find = self.results.results.find
        rows = [
            (mode, name)
            for name in names
            for mode in self.modes
            if math.isfinite(find(shown[0].name, mode, of=name).mean)
        ]

        def draw(axes: Axes) -> None:
            for place, (mode, name) in enumerate(rows):
                own, data = (find(measure.name, mode, of=name) for measure in shown)
                _plot_interval(axes, data, place + 0.18, FAINT, "s")
                _plot_interval(axes, own, place - 0.18, MODE_COLOURS[mode], MODE_MARKERS[mode])
            axes.set_yticks(range(len(rows)), [f"{name}, {mode}" for mode, name in rows])
            axes.invert_yaxis()
            axes.set_xlim(left=0)
            axes.set_xlabel(unit)

        return draw_figure(draw, title, caption, 0.6 + 0.3 * max(len(rows), 1))

    def _draw_hazards(self) -> Drawing:
        rows = self.results.results.of(measures.HAZARD.name)

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
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=7)

        return draw_figure(
            draw,
            "Hazards by place on the page",
            "Full: good segments that turn bad. Dashed: bad ones that turn good. Bands: 95 %; a place with fewer than 20 such segments is not drawn.",
            3.2,
        )

    def _draw_returns(self) -> Drawing:
        rows = self.results.results.of(measures.RETURN.name)

        def draw(axes: Axes) -> None:
            for mode in self.modes:
                for state, style in (("bad", "-"), ("looping", "--")):
                    of = f"{state}, all tokens"
                    points = [
                        (row.at or 0, row.estimate)
                        for row in rows
                        if (row.mode, row.of) == (mode, of) and row.estimate.count >= _LEAST_PAGES
                    ]
                    plot_band(axes, points, MODE_COLOURS[mode], style, f"{state}, {mode}")
            axes.set_xlabel("segments since the first of that kind")
            axes.set_ylabel("share good again by then")
            axes.set_ylim(0, 1)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False, fontsize=7)

        return draw_figure(
            draw,
            "How soon pages are good again",
            "Of pages that came to a bad (full) or looping (dashed) segment, as the model draws from all tokens; the rest mostly ended first. Bands: "
            "95 %.",
            3.2,
        )


def _draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], rate: float, colour: str
) -> None:
    style = {
        "arrowstyle": "-|>",
        "connectionstyle": "arc3,rad=0.16",
        "shrinkA": 20,
        "shrinkB": 20,
        "linewidth": 0.6 + 5 * rate,
        "color": colour,
        "mutation_scale": 9,
    }
    axes.annotate("", end, start, arrowprops=style, zorder=2)


def _place_label(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Beside an arrow, nearer to its start, so that those that cross do not share a place."""
    (x0, y0), (x1, y1) = start, end
    along, out = 0.2 if x0 == x1 else 0.36, 0.11  # the one down the middle would meet all others there
    return x0 + along * (x1 - x0) + out * (y1 - y0), y0 + along * (y1 - y0) - out * (x1 - x0)


def _write_pair(own: Estimate, data: Estimate) -> str:
    return f"{own.mean:.3f}" + (f" ({data.mean:.3f})" if math.isfinite(data.mean) else "")


def _plot_interval(axes: Axes, estimate: Estimate, place: float, colour: str, marker: str) -> None:
    if not math.isfinite(estimate.mean):
        return
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=1.4)
    axes.plot([estimate.mean], [place], marker, color=colour, markersize=4)


def describe_dynamics(results: DynamicsResults) -> dict[str, object]:
    """What the section's template is given."""
    dynamics, own = Dynamics(results), OwnView(results)
    return {
        "results": results,
        "dynamics": dynamics,
        "figures_drawn": embed_figures(dynamics.draw()),
        "own": own,
        "own_drawn": embed_figures(own.draw()),
        "terms": [measure for measure in measures.MEASURES if measure.note],
    }


def make_section(results: DynamicsResults, key: str) -> Section:
    """The section for the page that compares runs; `key` tells it from others there."""
    template = make_environment().get_template("dynamics.html")
    markup = template.render(key=key, **describe_dynamics(results))
    return Section(key, f"A chain of pages: {results.run}", Markup(markup))  # noqa: S704 - escaped by the template


def write_dynamics_page(results: DynamicsResults, path: Path) -> Path:
    """Write the page of a dynamics.json to `path`: no script, nothing fetched; the same content gives the same bytes."""
    template = make_environment().get_template("dynamics_page.html")
    page = template.render(css=read_css(), key="dynamics", **describe_dynamics(results))
    write_bytes(path, page.encode("utf-8", "replace"))
    return path
