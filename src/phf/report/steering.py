"""Steering at inference: what each method scores, beside plain sampling of the same mode, and what it costs."""

import math
from dataclasses import dataclass

from matplotlib.axes import Axes

from phf.evaluate.facts import MethodFacts
from phf.records import Estimate
from phf.report.figures import Drawing, draw_figure, plot_point, scale_estimate, shorten
from phf.report.plane import find_frontier, label_points
from phf.report.reading import RunFolder, is_steered
from phf.report.tables import Cell, Column, PrintedRow, Table, show_estimate
from phf.report.verdict import MAX_BITS, MIN_VARIETY, Group, format_interval, format_number
from phf.results import Judge

PLAIN = "plain sampling"
_MAX_LABELS = 10
"""With more points than this only those on the frontier are named; hovering names every point."""
_COSTS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class SteeringRow:
    """One method on one group, pooled over seeds; lists have an entry for each judge of the page.

    Attributes:
        name: the method's spec, or `PLAIN`.
        passes: forward passes per token.
        differences: from plain sampling, paired by sample; NaN for plain sampling itself.
        chosen_by: slugs of the judges whose scores the method went by.
        num_tokens: mean text tokens of a sample.
        bits: bits per byte of held-out text under a direction.
        is_dull, is_costly: whether distinct-2 or bits per byte fail the checks of the verdict, against plain sampling.
    """

    group: Group
    name: str
    mode: str
    passes: Estimate
    scores: list[Estimate]
    differences: list[Estimate]
    chosen_by: frozenset[str]
    distinct_2: float
    num_tokens: float
    bits: Estimate
    is_dull: bool = False
    is_costly: bool = False


def list_steering(groups: list[Group], judges: list[Judge]) -> list[SteeringRow]:
    """A row for plain sampling and for every method of each group that was steered."""
    rows = []
    for group in groups:
        methods: dict[str, list[str]] = {}
        for steered in dict.fromkeys(row.mode for row in group.results if row.mode and is_steered(row.mode)):
            methods.setdefault(steered.partition(" + ")[0], []).append(steered)
        for mode, steered_modes in methods.items():
            plain = _describe(group, mode, judges)
            rows += [plain, *(_describe(group, steered, judges, plain) for steered in steered_modes)]
    return rows


def _describe(group: Group, mode: str, judges: list[Judge], plain: SteeringRow | None = None) -> SteeringRow:
    """Plain sampling of a mode; of a steered mode the method, beside `plain`."""
    find = group.results.find
    distinct_2, bits = find("distinct_2", mode).mean, find("bits_per_byte", mode, of="all")
    return SteeringRow(
        group=group,
        name=mode.partition(" + ")[2] if plain else PLAIN,
        mode=plain.mode if plain else mode,
        passes=find("passes_per_token", mode),
        scores=[find("score", mode, judge.slug) for judge in judges],
        differences=[find("steered_difference", mode, judge.slug) for judge in judges],
        chosen_by=_name_choosers(group, mode),
        distinct_2=distinct_2,
        num_tokens=find("mean_tokens", mode).mean,
        bits=bits,
        is_dull=plain is not None
        and not distinct_2 >= MIN_VARIETY * plain.distinct_2,  # collapsed text has none
        is_costly=plain is not None and bits.mean > MAX_BITS * plain.bits.mean,
    )


def _name_choosers(group: Group, steered: str) -> frozenset[str]:
    """Slugs of the judges that a method went by."""
    methods = [method for run in group.runs for method in run.read_facts("steering", list[MethodFacts]) or []]
    found = [
        method.facts.get("reward_model") for method in methods if f"{method.mode} + {method.spec}" == steered
    ]
    return frozenset(slug for slug in found if isinstance(slug, str))


def tabulate_steering(rows: list[SteeringRow], judges: list[Judge], *, are_pooled: bool = False) -> Table:
    """Every method beside plain sampling: scores, differences in pairs, and what they cost."""
    columns = [
        Column("passes per token"),
        *(Column(head, judge=judge) for judge in judges for head in ("mean [95 %]", "− plain")),
        *(Column(head) for head in ("distinct‑2", "tokens", "bits per byte")),
    ]
    lines = [
        PrintedRow(
            [Cell(row.group.label), Cell(row.mode, is_mode=True), Cell(row.name, is_code=True)],
            [
                Cell(format_number(row.passes.mean)),
                *(cell for place, judge in enumerate(judges) for cell in _show_judged(row, place, judge)),
                Cell(f"{format_number(row.distinct_2)}{' ⚠' if row.is_dull else ''}"),
                Cell(format_number(row.num_tokens)),
                _mark(show_estimate(row.bits, row.group), " ⚠" if row.is_costly else ""),
            ],
        )
        for row in rows
    ]
    caption = (
        f"Lower scores are better; 95 % intervals{', of pooled runs over seeds' if are_pooled else ''}. Bits per byte: of held-out "
        "text while a direction is subtracted. ⚠: distinct-2 or bits per byte fail the check that the verdict makes, so a better "
        "score may be an artefact."
    )
    return Table("Steering table", ["objective", "mode", "method"], columns, lines, caption)


def _show_judged(row: SteeringRow, place: int, judge: Judge) -> list[Cell]:
    score, difference = row.scores[place], row.differences[place]
    shown = show_estimate(score, row.group, judge)
    if judge.slug in row.chosen_by:
        shown = Cell(shown.text, f"{shown.note} chosen by it".strip())
    arrow = " ↓" if difference.high < 0 else " ↑" if difference.low > 0 else ""
    return [shown, _mark(show_estimate(difference, row.group, judge), arrow)]


def _mark(cell: Cell, mark: str) -> Cell:
    return Cell(cell.text + mark, cell.note)


def draw_steering(rows: list[SteeringRow], judges: list[Judge]) -> list[Drawing]:
    """Score against cost, a figure for each judge."""
    has_groups = len({row.group.label for row in rows}) > 1
    drawings = []
    for place, judge in enumerate(judges):
        points = [
            (row, math.log2(row.passes.mean), scale_estimate(row.scores[place], judge.display_scale))
            for row in rows
            if row.passes.mean > 0 and math.isfinite(row.scores[place].mean)
        ]
        if points:
            drawings.append(_draw_costs(points, judge, has_groups))
    return drawings


def _draw_costs(points: list[tuple[SteeringRow, float, Estimate]], judge: Judge, has_groups: bool) -> Drawing:
    def name(row: SteeringRow) -> str:
        return f"{shorten(row.group.label)} · {row.name}" if has_groups else row.name

    def is_sound(row: SteeringRow) -> bool:
        return judge.slug not in row.chosen_by and not row.is_dull and not row.is_costly

    shown = points
    if len(points) > _MAX_LABELS:
        sound = [point for point in points if is_sound(point[0])]
        shown = [sound[i] for i in find_frontier([(x, score.mean) for _, x, score in sound])]

    def draw(axes: Axes) -> None:
        for row, x, score in points:
            opacity = 1.0 if is_sound(row) else 0.35
            plot_point(axes, shorten(name(row), 60), row.mode, (x, score.mean), None, score, opacity=opacity)
        high = max(x for _, x, _ in points)
        ticks = [cost for cost in _COSTS if math.log2(cost) <= max(high, 1) + 0.3]
        axes.set_xticks([math.log2(cost) for cost in ticks], [str(cost) for cost in ticks])
        axes.set_xlabel("forward passes per token")
        axes.set_ylabel(f"{judge.shown_unit}  (lower is better)")
        axes.margins(0.14)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        label_points(axes, [(shorten(name(row), 36), x, score.mean) for row, x, score in shown])

    caption = (
        "Each method of steering, and plain sampling; the axis of costs is logarithmic, bars are 95 % intervals. "
        "Faint: a method that goes by this very judge, or whose text fails a check (marked in the table): its score flatters it."
    )
    if len(shown) < len(points):
        caption += " Named, of the others, are those that no cheaper one equals."
    return draw_figure(draw, f"Score by {judge.name} ({judge.role}) against cost", caption, height=3.4)


def list_steering_lines(run: RunFolder) -> list[str]:
    """A line for each method of a run, for the terminal: cost, then the difference by each judge."""
    lines = []
    for row in list_steering([Group(run.label, (run,))], run.judges):
        if row.name == PLAIN:
            continue
        parts = [
            f"{judge.name} {format_interval(scale_estimate(difference, judge.display_scale))}"
            + (" (goes by it)" if judge.slug in row.chosen_by else "")
            for judge, difference in zip(run.judges, row.differences, strict=True)
        ]
        cost = f"{row.name}, {row.passes.mean:.1f} passes per token"
        lines.append(f"{cost}, against plain {row.mode} mode: {'; '.join(parts)}")
    return lines
