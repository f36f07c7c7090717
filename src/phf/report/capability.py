"""How capabilities differ between good and bad mode, and what the models can do: BLiMP, downstream tasks, harness tasks."""

import math
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from phf.records import Estimate
from phf.report.figures import Drawing, draw_figure, plot_point, shorten
from phf.report.tables import (
    Catalogue,
    Cell,
    Column,
    Field,
    PrintedRow,
    Table,
    make_table,
    mark_direction,
    select_rows,
    show_estimate,
)
from phf.report.verdict import Group
from phf.results import Measure

_MAX_GROUPS = 12
"""Groups that the figure shows; the table has all."""

_MAX_DETAILED = 4
"""With more groups than this the figure shows bits per byte on all text alone."""


@dataclass(frozen=True, slots=True)
class ModeComparison:
    """One capability of one group in its modes.

    Attributes:
        of: the kind of text it was measured on.
        difference: good mode minus bad mode.
    """

    measure: Measure
    of: str | None
    modes: dict[str, Estimate]
    difference: Estimate

    @property
    def kind(self) -> str:
        """`good text`; empty where there is but one kind."""
        return f"{self.of} {self.measure.of}".rstrip() if self.of is not None else ""

    @property
    def name(self) -> str:
        """`Bits per byte, good text`."""
        return ", ".join(filter(None, [self.measure.title, self.kind]))

    @property
    def better(self) -> str:
        """The mode that does better; empty where the interval of the difference holds 0 or there is none."""
        lower, higher = ("good", "bad") if self.measure.lower_is_better is not False else ("bad", "good")
        return lower if self.difference.high < 0 else higher if self.difference.low > 0 else ""


def compare_modes(group: Group) -> list[ModeComparison]:
    """What was measured in good mode and in bad mode, and paired by text: the mode `good-bad`.

    The difference is taken within each seed, so that what makes one seed better than another falls out; its interval is
    a t-interval over seeds. One seed's is a bootstrap over texts, paired, since both modes read the same ones.
    """
    measures = Catalogue.of([group]).measures
    found = []
    for row in group.results:
        if row.mode == "good-bad" and math.isfinite(row.estimate.mean):
            modes = {
                mode: group.results.find(row.measure, mode, of=row.of) for mode in ("good", "bad", "none")
            }
            found.append(ModeComparison(measures[row.measure], row.of, modes, row.estimate))
    return found


def tabulate_modes(compared: list[tuple[Group, list[ModeComparison]]]) -> Table:
    """Capabilities in good mode beside bad mode."""
    lines = [
        PrintedRow(
            [Cell(group.label), Cell(row.name + mark_direction(row.measure))],
            [
                *(show_estimate(row.modes[mode], group) for mode in ("good", "bad", "none")),
                show_estimate(row.difference, group),
                _show_better(row),
            ],
        )
        for group, comparisons in compared
        for row in comparisons
    ]
    columns = [Column(mode, is_mode=True) for mode in ("good", "bad", "none")]
    caption = (
        "↓ lower is better, ↑ higher is better; 95 % intervals. Good minus bad is paired, since both modes read the same texts: far "
        "finer than the two intervals. Over seeds it is taken within each, with a t-interval."
    )
    heads = ["objective", "capability"]
    return Table(
        "Good mode against bad mode",
        heads,
        [*columns, Column("good − bad"), Column("better")],
        lines,
        caption,
    )


def _show_better(row: ModeComparison) -> Cell:
    if row.better:
        return Cell(row.better, is_mode=True)
    return Cell("not settled" if math.isfinite(row.difference.low) else "–")


def draw_modes(compared: list[tuple[Group, list[ModeComparison]]]) -> list[Drawing]:
    """A figure for each kind of capability: the modes of each group on one line, with their intervals."""
    drawings = []
    found = [(group, row) for group, rows in compared[:_MAX_GROUPS] for row in rows]
    for measure in dict.fromkeys(row.measure for _, row in found):
        rows = [(group, row) for group, row in found if row.measure == measure]
        if len(compared) > _MAX_DETAILED:
            rows = [row for row in rows if row[1].of == rows[-1][1].of]
        drawings.append(_draw_measure(measure, rows, num_groups=len(compared)))
    return drawings


def _draw_measure(measure: Measure, rows: list[tuple[Group, ModeComparison]], num_groups: int) -> Drawing:
    better = "higher" if measure.lower_is_better is False else "lower"
    texts = dict.fromkeys(comparison.kind for _, comparison in rows)
    labels = [
        " · ".join(
            [
                *([shorten(group.label)] if num_groups > 1 else []),
                *([comparison.kind or measure.title] if num_groups == 1 or len(texts) > 1 else []),
            ]
        )
        for group, comparison in rows
    ]
    on = f", on {next(iter(texts))}" if len(texts) == 1 and any(texts) else ""

    def draw(axes: Axes) -> None:
        for place, (label, (_, comparison)) in enumerate(zip(labels, rows, strict=True)):
            for shift, (mode, estimate) in zip((-0.22, 0.0, 0.22), comparison.modes.items(), strict=True):
                plot_point(axes, f"{label}, {mode} mode", mode, (estimate.mean, place + shift), estimate)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{measure.unit}{on}  ({better} is better)")

    caption = "Circle: good mode; diamond: bad mode; square: no control token. 95 % intervals."
    if num_groups > _MAX_GROUPS:
        caption += f" The first {_MAX_GROUPS} of {num_groups} configurations; the table has all."
    return draw_figure(draw, f"{measure.title} by mode", caption, height=0.8 + 0.44 * len(rows))


def tabulate_kl(groups: list[Group]) -> Table:
    """KL per token and per sequence, and what the control tokens cost, by mode."""
    columns = [
        Column("per token", "kl"),
        Column("per sequence", "kl_per_sequence"),
        Column("control tokens", "kl_control_cost"),
    ]
    caption = (
        "KL(reference || model), in nats, on sequences that the reference model wrote; lower is better. What control tokens cost "
        "stands apart and is not part of it."
    )
    return make_table("KL table", select_rows(groups, columns), columns, caption=caption, kind="narrow")


def tabulate_fields(groups: list[Group]) -> Table:
    """BLiMP's accuracy in all and in each of its fields, by mode."""
    fields = dict.fromkeys(row.of for group in groups for row in group.results.of("blimp"))
    columns = [
        Column((of or "all").replace("_", " "), "blimp", of)
        for of in sorted(fields, key=lambda of: of is not None)
    ]
    caption = "BLiMP: share of sentence pairs in which the grammatical one is likelier; guessing gives 0.5."
    return make_table("BLiMP table", select_rows(groups, columns), columns, caption=caption)


DIVERSITY = ("entropy_1", "entropy_2", "entropy_3", "self_bleu_5", "mauve")


def tabulate_diversity(groups: list[Group]) -> Table:
    """Measures of diversity, by mode."""
    measured = {row.measure for group in groups for row in group.results}
    columns = [Column(name.replace("_", " "), name) for name in DIVERSITY if name in measured]
    caption = (
        "Entropy of n-grams: higher is more varied. Self-BLEU: how alike samples are to one another, lower is more varied. MAUVE: how "
        "alike the samples are to held-out human text in a language model’s embedding, 1 = alike."
    )
    return make_table("Diversity table", select_rows(groups, columns), columns, caption=caption)


def tabulate_tasks(groups: list[Group], measure: str, name: str, caption: str, mode: str) -> Table:
    """Tasks, `downstream` by prefix or `harness` by mode: the score, and what guessing the commonest answer gives."""
    columns = [Column("score", measure), Column("best constant answer", f"{measure}_baseline", form="mean")]
    by: tuple[Field, ...] = ("of", "mode")
    table = make_table(name, select_rows(groups, columns, by), columns, by, caption=caption, kind="narrow")
    for line in table.rows:
        task, _, metric = line.names[1].text.partition(": ")
        line.names[1:2] = [Cell(task), Cell(metric)]
    return replace(table, heads=["objective", "task", "metric", mode])
