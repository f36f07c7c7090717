"""Tables of scores, of what a score cost, and of whether control is learned."""

import math
from dataclasses import replace

from phf.records import Estimate
from phf.report.figures import Reference
from phf.report.tables import (
    Cell,
    Column,
    MeasuredRow,
    PrintedRow,
    Table,
    make_table,
    select_rows,
    show_estimate,
)
from phf.report.verdict import Group, check_gain, format_number
from phf.results import Judge, Measurements


def list_score_columns(judges: list[Judge]) -> list[Column]:
    """What is said of scored samples by each judge: the mean score, hits and the worst of 25."""
    return [
        column
        for judge in judges
        for column in (
            Column("mean [95 %]", "score", judge=judge),
            Column("hits", "hit_rate", judge=judge, form="percent"),
            Column("worst of 25", "expected_max_25", judge=judge, form="mean"),
        )
    ]


def tabulate_scores(
    groups: list[Group], judges: list[Judge], references: list[Reference], *, head: str, caption: str
) -> Table:
    """Scores of unprompted samples by group and mode, and of what they are compared with."""
    columns = [
        *list_score_columns(judges),
        Column(
            "bits per byte",
            "bits_per_byte",
            "all",
            form="interval" if any(group.is_pooled for group in groups) else "mean",
        ),
        Column("distinct‑2", "distinct_2", form="mean"),
        Column("samples", show=lambda row: _count_samples(row, judges)),
        Column("unscored", show=lambda row: _count_unscored(row, judges)),
    ]

    def describe(group: Group) -> str:
        if group.is_pooled:
            return f"{len(group.runs)} seeds"
        return "one seed" if head == "objective" else ""

    rows, heads = select_rows(groups, columns), {"group": head}
    table = make_table(caption, rows, columns, caption=caption, heads=heads, describe=describe)
    lines = _list_references(references, judges, num_after=len(columns) - 3 * len(judges))
    return replace(table, rows=table.rows + lines)


def _count_samples(row: MeasuredRow, judges: list[Judge]) -> Cell:
    """Samples over all runs of a group; each judge's, where they differ."""
    counts = [sum(one.count for one in _find_unscored(row, judge)) for judge in judges]
    return Cell(" / ".join(f"{count:,}" for count in dict.fromkeys(counts)) or "–")


def _count_unscored(row: MeasuredRow, judges: list[Judge]) -> Cell:
    """The same of unscored samples; a judge that did not score this mode counted nothing."""
    counts = [sum(round(one.mean) for one in _find_unscored(row, judge) if one.count) for judge in judges]
    return Cell(" / ".join(f"{count:,}" for count in dict.fromkeys(counts)) or "–")


def _find_unscored(row: MeasuredRow, judge: Judge) -> list[Estimate]:
    return [run.results.find("num_unscored", row.mode, judge.slug) for run in row.group.runs]


def _list_references(references: list[Reference], judges: list[Judge], num_after: int) -> list[PrintedRow]:
    """A line per reference: the score by each judge, and dashes for what only samples of a run have."""
    scores: dict[tuple[str, str], dict[str, Reference]] = {}
    for reference in references:
        scores.setdefault((reference.name, reference.cost), {})[reference.judge] = reference
    lines = []
    for (name, cost), by_judge in scores.items():
        cells = []
        for judge in judges:
            found = by_judge.get(judge.slug)
            cells += [show_estimate(found.estimate, judge=judge) if found else Cell("–"), *[Cell("–")] * 2]
        note = f"cost: {cost}" if cost else ""
        lines.append(PrintedRow([Cell(name, note)], [*cells, *[Cell("–")] * num_after], is_faint=True))
    return lines


def tabulate_scenarios(groups: list[Group], judges: list[Judge]) -> Table:
    """Scores in every scenario, of every group and mode."""
    columns = list_score_columns(judges)
    rows = [row for row in select_rows(groups, columns, ("of", "mode")) if row.of is not None]
    names = list(dict.fromkeys(row.of for row in rows))
    rows.sort(key=lambda row: names.index(row.of))
    table = make_table("Scenarios", rows, columns, ("of", "mode"))
    # The scenario comes first: scores of different scenarios are not to be compared with one another.
    lines = [replace(line, names=[line.names[1], line.names[0], line.names[2]]) for line in table.rows]
    return replace(table, heads=["scenario", "who", "mode"], rows=lines)


def tabulate_cost(groups: list[Group], head: str) -> Table:
    """Prediction of held-out text, and the look of the samples, by group and mode."""
    columns = [
        Column("good text", "bits_per_byte", "good", over="bits per byte"),
        Column("bad text", "bits_per_byte", "bad", over="bits per byte"),
        Column("all", "bits_per_byte", "all", over="bits per byte"),
        Column("tokens", "mean_tokens", over="mean length", form="mean"),
        Column("characters", "mean_characters", over="mean length", form="mean"),
        Column("1", "distinct_1", over="distinct-n", form="mean"),
        Column("2", "distinct_2", over="distinct-n", form="mean"),
        Column("3", "distinct_3", over="distinct-n", form="mean"),
        Column("repetition", "repetition", form="mean"),
        Column("compression ratio", "compression_ratio", form="mean"),
        Column("empty", "empty_share", form="percent"),
    ]
    caption = (
        "Prediction of held-out text, and the look of the samples: a better score that comes with shorter, duller or more repetitive "
        "text is no alignment."
    )
    rows, name = select_rows(groups, columns), "Capability and degeneracy table"
    return make_table(name, rows, columns, caption=caption, heads={"group": head})


def tabulate_joint(groups: list[Group], head: str) -> Table:
    """Joint cost, beside bits per byte with the labels given."""
    columns = [
        Column("good text", "joint_bits_per_byte", "good", over="joint bits per byte"),
        Column("bad text", "joint_bits_per_byte", "bad", over="joint bits per byte"),
        Column("all", "joint_bits_per_byte", over="joint bits per byte"),
        Column("one segment", "joint_bits_per_byte", "one-segment", over="joint bits per byte"),
        Column("labels given, all", show=_show_labelled),
    ]
    caption = (
        "Joint cost: label, segment boundary and text together, the number to hold against MLE’s. Where labels are given a model "
        "with control tokens is told for free what MLE has to predict. On pages of one segment the label is summed out; on longer "
        "ones the joint cost is an upper bound."
    )
    rows, name = select_rows(groups, columns, ()), "Joint cost table"
    return make_table(name, rows, columns, (), caption=caption, kind="narrow", heads={"group": head})


def _show_labelled(row: MeasuredRow) -> Cell:
    return show_estimate(row.group.results.find("bits_per_byte", "labelled", of="all"), row.group)


def tabulate_control(groups: list[Group]) -> Table:
    """Control gain and calibration of each run."""
    columns = [
        Column("gain on good segments", "control_gain", "good"),
        Column("on bad segments", "control_gain", "bad"),
        Column("calibration error", "calibration_error"),
        Column("with chance", "calibration_error_plain", form="mean"),
        Column("by chance alone", show=_show_chance),
        Column("segments", show=_count_segments),
        Column("control is learned", show=_show_learned),
    ]
    caption = (
        "Control gain: how many nats likelier a held-out segment is, in context, after its own control token than after the other. Needs "
        "no sampling; where both intervals lie above 0, control is learned. Calibration error: how far the model’s own "
        "probability that a segment is good lies from the share that is, freed of what chance adds; with chance, and what chance alone gives "
        "an exactly right posterior (95 % of the time), stand beside it. It is small for a model that knows no more than the base rate."
    )
    rows, name = select_rows(groups, columns, ()), "Control gain and calibration table"
    return make_table(name, rows, columns, (), caption=caption, kind="narrow", heads={"group": "run"})


def _show_chance(row: MeasuredRow) -> Cell:
    return Cell(find_chance(row.group.results) or "–")


def find_chance(results: Measurements) -> str:
    """`0.0410 to 0.113`: between which a calibration error lies by chance alone; empty in an older evaluation."""
    ends = [results.find("calibration_error_by_chance", of=name).mean for name in ("least", "most")]
    return " to ".join(map(format_number, ends)) if all(map(math.isfinite, ends)) else ""


def _show_learned(row: MeasuredRow) -> Cell:
    return Cell({True: "yes", False: "no", None: "–"}[check_gain(row.group.results).passed])


def _count_segments(row: MeasuredRow) -> Cell:
    count = row.estimates[2].count  # of the calibration error
    return Cell(f"{count:,}" if count else "–")
