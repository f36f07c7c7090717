"""Do the judges agree? Rank correlation and agreement on hits between the annotator and each held-out judge, on the samples.

Computed from the scores in samples.parquet. A gain by the annotator that the held-out judge does not see is a gain of
loopholes; judges that do not agree at all cannot vouch for one another.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from phf.intervals import CONFIDENCE, pooled_t, wilson
from phf.records import Estimate
from phf.report.figures import INK, MODE_COLOURS, MODE_MARKERS, Drawing, scale_estimate
from phf.report.lines import Line, draw_lines
from phf.report.reading import RunFolder
from phf.report.tables import Cell, Column, PrintedRow, Table, show_estimate
from phf.report.verdict import Group, pool
from phf.results import Judge

_NUM_BINS = 8
_MIN_SAMPLES = 10
"""Fewer samples scored by both give no correlation."""

_Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two judges agree on the samples of one group, in one mode or (`all`) in all.

    Attributes:
        spearman: rank correlation.
        both: share of samples on which both say hit, or both say no hit.
        confirmed: share of the annotator's hits that the other judge calls hits too.
    """

    group: Group
    mode: str
    annotator: Judge
    other: Judge
    spearman: Estimate
    both: Estimate
    confirmed: Estimate


def spearman(one: _Scores, other: _Scores) -> Estimate:
    """Spearman's rank correlation of two judges' scores, float64 [num_samples] each; NaN pairs are left out.

    Interval: Fisher's z with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright (2000). No number where there are
    fewer than 10 pairs or a judge gives all the same score.
    """
    used = np.isfinite(one) & np.isfinite(other)
    num = int(used.sum())
    from scipy.stats import rankdata  # slow to import

    ranks = rankdata(one[used]), rankdata(other[used])
    if num < _MIN_SAMPLES or any(np.ptp(rank) == 0 for rank in ranks):
        return Estimate(math.nan, math.nan, math.nan, num)
    r = float(np.corrcoef(*ranks)[0, 1])
    if abs(r) >= 1 - 1e-12:
        return Estimate(r, r, r, num)
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + r**2 / 2) / (num - 3))
    z = math.atanh(r)
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), num)


def measure_agreement(groups: list[Group]) -> list[Agreement]:
    """A row for each group with an annotator and a held-out judge: all its modes together, then each mode.

    All modes together hold the widest range of scores, so their correlation is the highest.
    """
    rows = []
    for group in groups:
        for annotator, other in _list_pairs(group.judges):
            modes = group.modes if len(group.modes) > 1 else []
            for mode in ["all", *modes]:
                chosen = tuple(group.modes) if mode == "all" else (mode,)
                found = [_measure_run(run, chosen, annotator, other) for run in group.runs]
                if any(math.isfinite(value[0].mean) for value in found):
                    estimates = (pool([value[place] for value in found]) for place in range(3))
                    rows.append(Agreement(group, mode, annotator, other, *estimates))
    return rows


def tabulate_agreement(rows: list[Agreement]) -> Table:
    """How the judges agree, by group and mode."""
    lines = [
        PrintedRow(
            [
                Cell(row.group.label),
                Cell(f"{row.annotator.name}, {row.other.name}"),
                Cell("all modes") if row.mode == "all" else Cell(row.mode, is_mode=True),
            ],
            [show_estimate(value, row.group) for value in (row.spearman, row.both, row.confirmed)],
        )
        for row in rows
    ]
    caption = (
        "The annotator and each judge that labelled no training text, on the same samples. Spearman: rank correlation, 1 is the same "
        "order; it is higher over all modes because they hold a wider range. Agree: both call a sample a hit, or both do not. "
        "Confirmed: of the annotator’s hits, those that the other judge calls hits."
    )
    columns = [Column("Spearman"), Column("agree"), Column("hits confirmed")]
    return Table("Agreement of the judges", ["objective", "judges", "mode"], columns, lines, caption)


def _list_pairs(judges: list[Judge]) -> list[tuple[Judge, Judge]]:
    """Each annotator with each judge that labelled no training text."""
    annotators = [judge for judge in judges if judge.role == "annotator"]
    return [(one, other) for one in annotators for other in judges if other.role != "annotator"]


def _read_pair(run: RunFolder, modes: tuple[str, ...], one: Judge, other: Judge) -> tuple[_Scores, _Scores]:
    """Scores of the same samples by two judges, float64 [num_samples] each."""
    pairs = [(run.sample_scores(mode, one), run.sample_scores(mode, other)) for mode in modes]
    pairs = [pair for pair in pairs if len(pair[0]) == len(pair[1])]
    if not pairs:
        return np.zeros(0), np.zeros(0)
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def _measure_run(
    run: RunFolder, modes: tuple[str, ...], annotator: Judge, other: Judge
) -> tuple[Estimate, Estimate, Estimate]:
    one, two = _read_pair(run, modes, annotator, other)
    used = np.isfinite(one) & np.isfinite(two)
    hits = one[used] > annotator.hit_threshold
    other_hits = two[used] > other.hit_threshold
    both = wilson(int((hits == other_hits).sum()), int(used.sum()))
    return spearman(one, two), both, wilson(int((hits & other_hits).sum()), int(hits.sum()))


def draw_all_agreement(groups: list[Group], judges: list[Judge]) -> list[Drawing]:
    """A figure for each annotator and each other judge."""
    drawings = (draw_agreement(groups, *pair) for pair in _list_pairs(judges))
    return [drawing for drawing in drawings if drawing is not None]


def draw_agreement(groups: list[Group], annotator: Judge, other: Judge) -> Drawing | None:
    """Mean held-out score in bins of the annotator's ranks, a line for each mode, over all runs."""
    modes = dict.fromkeys(mode for group in groups for mode in group.modes)
    runs = [run for group in groups for run in group.runs]
    lines = []
    for mode in modes:
        pairs = [_read_pair(run, (mode,), annotator, other) for run in runs]
        one, two = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        used = np.isfinite(one) & np.isfinite(two)
        if used.sum() < _NUM_BINS * _MIN_SAMPLES:
            continue
        order = np.argsort(one[used], kind="stable")
        bins = [(one[used][part], two[used][part]) for part in np.array_split(order, _NUM_BINS)]
        points = tuple(
            (
                float(left.mean()) * annotator.display_scale,
                scale_estimate(pooled_t(right), other.display_scale),
            )
            for left, right in bins
        )
        lines.append(
            Line(f"{mode} mode", points, MODE_COLOURS.get(mode, INK), "-", MODE_MARKERS.get(mode, "X"))
        )
    if not lines:
        return None
    caption = (
        f"The samples of each mode in {_NUM_BINS} equal parts by the annotator’s score: the mean of each part by the annotator (across) "
        f"and by {other.name}, which labelled no training text (up), with Student’s intervals over samples. Lines that rise agree; where the lines of the modes "
        "lie on one another, a score means the same in every mode, and no mode has learned to please the annotator alone."
    )
    return draw_lines(
        lines,
        f"{other.name} against {annotator.name}",
        caption,
        f"{annotator.name}: {annotator.shown_unit}",
        f"{other.name}: {other.shown_unit}",
    )
