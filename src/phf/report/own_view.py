"""The model's half of a dynamics.json on its page: ends of pages, its own labels, many pages in one context."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from phf.dynamics import measures
from phf.dynamics.results import DynamicsResults
from phf.records import Estimate
from phf.report.figures import FAINT, INK, MODE_COLOURS, Drawing, draw_figure
from phf.results import Measurement

_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table without modes."""

    name: str
    cells: list[Estimate]
    note: str = ""


class OwnView:
    """What the page tells of it."""

    def __init__(self, results: DynamicsResults) -> None:
        self.results = results

    @property
    def lengths(self) -> list[float]:
        """Of the texts whose divergence is known, in tokens."""
        return sorted(
            {row.at for row in self.results.results.of(measures.TEXT_DIVERGENCE.name) if row.at is not None}
        )

    @property
    def heads(self) -> list[str]:
        """Of the table of these."""
        return [f"{length:.0f}" for length in self.lengths]

    @property
    def ends(self) -> list[Row]:
        """What stood before an end, or before nothing, by length of text: of each mode, then of models side by side."""
        rows, find = self.results.results.of(measures.TEXT_DIVERGENCE.name), self.results.results.find
        return [
            Row(
                f"{mode}, {of} between" if mode else str(of),
                [find(measures.TEXT_DIVERGENCE.name, mode, of=of, at=length) for length in self.lengths],
            )
            for mode, of in dict.fromkeys((row.mode, row.of) for row in rows)
        ]

    @property
    def hazards(self) -> list[Row]:
        """By the model's labels, by the judge, and the difference."""
        find, steps = self.results.results.find, ("good -> bad", "bad -> good")
        rows = [
            Row(
                step,
                [
                    find(measures.OWN_HAZARD.name, "none", of=step + end)
                    for end in ("", ", judged", ", own view - judged")
                ],
            )
            for step in steps
        ]
        return rows if self.results.results.of(measures.OWN_HAZARD.name) else []

    @property
    def coming_back(self) -> list[Row]:
        """The answers in one number each."""
        return [
            Row(str(row.of), [row.estimate]) for row in self.results.results.of(measures.COMING_BACK.name)
        ]

    def draw(self) -> list[Drawing]:
        """What there is: divergence by distance from an end, relaxation, numbers by position."""
        drawings = (
            (measures.DIVERGENCE.name, self._draw_divergence),
            (measures.RELAXATION.name, self._draw_relaxation),
            (
                measures.BITS_BY_POSITION.name,
                lambda: self._draw_positions(
                    measures.BITS_BY_POSITION.name, "Bits per byte", "held-out documents"
                ),
            ),
            (
                measures.SCORE_BY_POSITION.name,
                lambda: self._draw_positions(
                    measures.SCORE_BY_POSITION.name, "Score", "what the model writes"
                ),
            ),
        )
        return [draw() for name, draw in drawings if self.results.results.of(name)]

    def _draw_divergence(self) -> Drawing:
        rows = self.results.results.of(measures.DIVERGENCE.name)
        others = list(
            dict.fromkeys(str(row.of) for row in rows if row.mode is None and " - " not in str(row.of))
        )

        def draw(axes: Axes) -> None:
            for mode in self.results.modes:
                for between, style in (("an end", "-"), ("nothing", ":")):
                    own = [row for row in rows if (row.mode, row.of) == (mode, between)]
                    plot_band(
                        axes, _list_points(own), MODE_COLOURS[mode], style, f"{between} between, {mode}"
                    )
            for place, name in enumerate(others[1:]):
                own = [row for row in rows if (row.mode, row.of) == (None, name)]
                plot_band(axes, _list_points(own), INK, _STYLES[place % 4], f"an end between, {name}")
            axes.set_ylim(bottom=0)
            _name_axes(axes, "tokens of the third document that were read", "divergence, nats")

        isolated = {True: ", isolated from each other", False: ", not isolated from each other", None: ""}
        return draw_figure(
            draw,
            "What stood before the end of a page",
            "How much the next token depends on which of two documents stood before: 0 where the end makes the model forget, .69 at most. "
            f"Dotted: without an end between. {self.results.run} was trained on documents{isolated[self.results.isolated]}. Bands: 95 %, over "
            "triples of documents.",
            3.2,
        )

    def _draw_relaxation(self) -> Drawing:
        rows = self.results.results.of(measures.RELAXATION.name)

        def draw(axes: Axes) -> None:
            for name in dict.fromkeys(str(row.of) for row in rows):
                first, last = (part.split()[1] for part in name.split(", "))
                own = [row for row in rows if row.of == name]
                plot_band(axes, _list_points(own), MODE_COLOURS[first], "-" if first == last else "--", name)
            axes.set_ylim(bottom=0)
            _name_axes(axes, "segments behind the forced beginning", "P(the next label is bad)")

        return draw_figure(
            draw,
            "Once bad, is it harder to come back than it was to fall?",
            "Labels were put before the first segments, then the model labels on; no judge. Dashed: the last label was of the other kind. What "
            "one such label does is the gap to the full line of its colour. Bands: 95 %.",
            3.2,
        )

    def _draw_positions(self, measure: str, title: str, what: str) -> Drawing:
        rows = self.results.results.of(measure)

        def draw(axes: Axes) -> None:
            for mode in self.results.modes:
                own = [row for row in rows if row.mode == mode]
                plot_band(axes, _list_points(own), MODE_COLOURS[mode], "-", mode)
            axes.axvline(self.results.context, color=FAINT, linewidth=0.8)
            _name_axes(axes, "token of the context", title.lower())

        return draw_figure(
            draw,
            f"{title} by position",
            f"Of {what}, page after page in one context, by the end of each stretch. Line: the context of training. Bands: 95 %, over streams.",
            2.8,
        )


def _name_axes(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if axes.get_legend_handles_labels()[0]:  # matplotlib warns of an empty legend
        axes.legend(frameon=False, fontsize=7)


def _list_points(rows: Sequence[Measurement]) -> list[tuple[float, Estimate]]:
    return [
        (row.at, row.estimate) for row in rows if row.at is not None and not math.isnan(row.estimate.mean)
    ]


def plot_band(
    axes: Axes, points: Sequence[tuple[float, Estimate]], colour: str, style: str, label: str
) -> None:
    """A curve with its intervals; nothing without a point."""
    if not points:
        return
    places = [place for place, _ in points]
    lows, highs = [own.low for _, own in points], [own.high for _, own in points]
    axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.plot(places, [own.mean for _, own in points], style, color=colour, linewidth=1.3, label=label)
