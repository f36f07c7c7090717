"""Rounds on own text, from the online.json of loops and their controls: a section of the report, and a page of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from pydantic import JsonValue

from phf.files import hash_json, write_bytes
from phf.intervals import difference_of_shares, pooled_t
from phf.loops.results import (
    BITS_CHANGE,
    BITS_PER_BYTE,
    DISTINCT_2,
    JUDGE_DRIFT,
    KL_FROM_START,
    LEMMA_MEASURES,
    MEASURES,
    OWN_SHARE,
    REPETITION,
    SCORE,
    LemmaResults,
    LoopResults,
)
from phf.records import Estimate
from phf.report.figures import INK, MODE_COLOURS, OBJECTIVE_COLOURS, Drawing, read_css, scale_estimate
from phf.report.lines import Line, draw_lines
from phf.report.page import Section, embed_figures, make_environment
from phf.report.posterior import Row
from phf.results import Judge, Measure, Measurements, pool

_OTHER_SETTINGS = ("control", "rounds", "judges", "num_documents", "num_bootstrap", "sampling")
_COLOURS = {
    "unscored": MODE_COLOURS["untagged"],
    "shuffled": MODE_COLOURS["bad"],
    "own-token": MODE_COLOURS["none"],
    "human": INK,
}
_DASHES = {"unscored": (0, (5, 2)), "shuffled": (0, (1, 1.5)), "own-token": (0, (6, 1.5, 1, 1.5))}
_MARKERS = {"none": "o", "unscored": "^", "shuffled": "X", "own-token": "s", "human": "D"}
_MORE_MARKERS = ("v", "P", "*", "<", ">")
"""Of further arms of one control and objective."""


@dataclass(frozen=True)
class Arm:
    """Loops that differ by seed alone.

    Attributes:
        results: of one loop its own; of several, over seeds.
    """

    label: str
    loops: tuple[LoopResults, ...]
    results: Measurements

    @property
    def control(self) -> str:
        """Which kind of loop."""
        return self.loops[0].control

    @property
    def rounds(self) -> list[int]:
        """That all of its loops have."""
        return sorted(set.intersection(*(set(loop.rounds) for loop in self.loops)))


@dataclass(frozen=True)
class Column:
    """A number of every round."""

    head: str
    measure: Measure
    judge: Judge | None = None
    of: str | None = None

    def find(self, results: Measurements, at: int) -> Estimate:
        """Of one round, in shown units."""
        slug = self.judge.slug if self.judge else None
        found = results.find(self.measure.name, judge=slug, of=self.of, at=at)
        return scale_estimate(found, self.judge.display_scale if self.judge else 1)

    @property
    def unit(self) -> str:
        """What its axis says."""
        return self.judge.shown_unit if self.judge else self.measure.unit


class Loops:
    """What the page tells of loops."""

    def __init__(self, loops: Sequence[LoopResults]) -> None:
        self.loops = loops
        found: dict[tuple[str, str], list[LoopResults]] = {}
        for loop in loops:
            found.setdefault((_name(loop, loops), loop.recipe), []).append(loop)
        names = [name for name, _ in found]
        self.arms = [
            Arm(
                name if names.count(name) == 1 else f"{name} ({own[0].run})",
                tuple(own),
                pool([loop.measurements for loop in own]),
            )
            for (name, _), own in found.items()
        ]
        self.judges = list({judge.slug: judge for loop in loops for judge in loop.judges}.values())

    @property
    def columns(self) -> list[Column]:
        """Those of every table, in their order."""
        scores = [Column(f"score, {judge.name}", SCORE, judge) for judge in self.judges]
        drifts = [
            Column(f"drift from {judge.name}", JUDGE_DRIFT, judge)
            for judge in self.judges
            if any(loop.results.of(JUDGE_DRIFT.name) for loop in self.loops) and judge.role != "annotator"
        ]
        return [
            *scores,
            *drifts,
            Column("KL from start", KL_FROM_START),
            Column("bits per byte, good text", BITS_PER_BYTE, of="good"),
            Column("change of bits per byte, good text", BITS_CHANGE, of="good"),
            Column("distinct-2", DISTINCT_2),
        ]

    @property
    def rounds(self) -> list[Row]:
        """A line per arm and round."""
        extra = [Column("repetition", REPETITION), Column("own text", OWN_SHARE)]
        return [
            Row(
                arm.label,
                f"round {at}",
                [column.find(arm.results, at) for column in (*self.columns, *extra)],
            )
            for arm in self.arms
            for at in arm.rounds
        ]

    @property
    def last(self) -> int:
        """The last round that every arm has."""
        return min(max(arm.rounds, default=0) for arm in self.arms)

    @property
    def differences(self) -> list[Row]:
        """At the last round, each arm minus the human one of its start and settings; nothing of an arm without that."""
        humans = {_find_kin(arm): arm for arm in self.arms if arm.control == "human"}
        return [
            Row(
                arm.label,
                _count_seeds(arm),
                [_subtract(arm, humans[_find_kin(arm)], column, self.last) for column in self.columns],
            )
            for arm in self.arms
            if arm.control != "human" and _find_kin(arm) in humans
        ]

    def list_last(self) -> list[Row]:
        """Each arm at the last round, below the start."""
        first = self.arms[0]
        rows = [Row("start", "round 0", [column.find(first.results, 0) for column in self.columns])]
        return rows + [
            Row(
                arm.label, _count_seeds(arm), [column.find(arm.results, self.last) for column in self.columns]
            )
            for arm in self.arms
        ]

    def draw(self) -> list[Drawing]:
        """One figure per number, a line per arm."""
        return [self._draw(column) for column in self.columns]

    def _draw(self, column: Column) -> Drawing:
        kinds = [(arm.control, arm.loops[0].objective) for arm in self.arms]
        lines = [
            Line(
                arm.label,
                tuple(
                    (at, found)
                    for at in arm.rounds
                    if math.isfinite((found := column.find(arm.results, at)).mean)
                ),
                _COLOURS.get(arm.control, OBJECTIVE_COLOURS.get(arm.loops[0].objective, INK)),
                _DASHES.get(arm.control, "-"),
                (_MARKERS[arm.control], *_MORE_MARKERS)[
                    min(kinds[:place].count(kinds[place]), len(_MORE_MARKERS))
                ],
            )
            for place, arm in enumerate(self.arms)
        ]
        title = f"{column.head[0].upper()}{column.head[1:]}"
        caption = f"{column.measure.note} 95 % intervals{', over seeds where there are several' if len(self.loops) > len(self.arms) else ''}."
        return draw_lines(
            lines, title, caption, "round", column.unit, from_zero=column.measure is not BITS_PER_BYTE
        )


def _subtract(arm: Arm, other: Arm, column: Column, at: int) -> Estimate:
    """One arm minus another in a round: over the seeds that both have, in pairs; of one seed, as independent texts."""
    own, others = (
        {_find_seeds(loop): column.find(loop.results, at) for loop in each.loops} for each in (arm, other)
    )
    seeds = sorted(own.keys() & others.keys())
    if len(seeds) > 1:
        return pooled_t([own[seed].mean - others[seed].mean for seed in seeds])
    return difference_of_shares(column.find(arm.results, at), column.find(other.results, at))


def _find_kin(arm: Arm) -> str:
    """What an arm shares with its human control: all but how own text is mixed in."""
    first = arm.loops[0]
    settings = {key: value for key, value in _list_settings(first).items() if key not in ("share", "keep")}
    return hash_json([first.recipe, first.mode, settings])


def _find_seeds(loop: LoopResults) -> tuple[int, JsonValue]:
    """Of the run's training, and of the loop's texts."""
    sampling = loop.settings.get("sampling")
    return loop.seed, sampling.get("seed") if isinstance(sampling, dict) else None


def _count_seeds(arm: Arm) -> str:
    return f"{len(arm.loops)} seeds" if len(arm.loops) > 1 else "one seed"


def _name(loop: LoopResults, loops: Sequence[LoopResults]) -> str:
    """The kind of loop, and in what else these loops differ beside seeds and control."""
    parts = [loop.objective if loop.control == "none" else f"{loop.objective}, {loop.control}"]
    for key, value in _list_settings(loop).items():
        if any(_list_settings(other).get(key) != value for other in loops):
            parts.append(f"{key}={value}")
    return ", ".join(parts)


def _list_settings(loop: LoopResults) -> dict[str, JsonValue]:
    """What decides a loop's texts and weights, beside its control and seeds."""
    settings, sampling = loop.settings, loop.settings.get("sampling")
    own = {key: value for key, value in settings.items() if key not in _OTHER_SETTINGS}
    if isinstance(sampling, dict):
        own |= {
            f"sampling.{key}": value for key, value in sampling.items() if key not in ("seed", "batch_size")
        }
    return {"step": loop.step, **own}


def tabulate_lemma(results: LemmaResults) -> tuple[list[str], list[Row]]:
    """Heads, and a line per case."""
    find = results.results.find
    rows = [
        Row(case, "", [find(measure.name, of=case) for measure in LEMMA_MEASURES]) for case in results.cases
    ]
    return [measure.title for measure in LEMMA_MEASURES], rows


def _describe_lemma(results: LemmaResults) -> dict[str, object]:
    heads, rows = tabulate_lemma(results)
    return {"lemma": results, "lemma_heads": heads, "lemma_rows": rows, "lemma_terms": LEMMA_MEASURES}


def make_lemma_section(results: LemmaResults) -> Section:
    """The lemma's table for the page that compares runs."""
    markup = make_environment().get_template("lemma.html").render(_describe_lemma(results))
    return Section("lemma", "What own samples teach", Markup(markup))  # noqa: S704 - escaped by the template


def write_lemma_page(results: LemmaResults, path: Path) -> Path:
    """Write the page of a lemma.json to `path`: no script, nothing fetched; the same content gives the same bytes."""
    template = make_environment().get_template("lemma_page.html")
    page = template.render(css=read_css(), **_describe_lemma(results))
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def describe_loops(loops: Sequence[LoopResults]) -> dict[str, object]:
    """What the section's template is given."""
    found = Loops(loops)
    return {
        "loops": found,
        "loop_figures": embed_figures(found.draw()),
        "loop_heads": [column.head for column in found.columns],
        "loop_terms": MEASURES,
    }


def make_section(loops: Sequence[LoopResults]) -> Section:
    """The section for the page that compares runs."""
    markup = make_environment().get_template("loops.html").render(describe_loops(loops))
    return Section("loops", "Rounds on own text", Markup(markup))  # noqa: S704 - escaped by the template


def write_loops_page(loops: Sequence[LoopResults], path: Path) -> Path:
    """Write the page of loops to `path`: no script, nothing fetched; the same content gives the same bytes."""
    template = make_environment().get_template("loops_page.html")
    notes = list(dict.fromkeys(note for loop in loops for note in loop.notes))
    page = template.render(css=read_css(), notes=notes, **describe_loops(loops))
    write_bytes(path, page.encode("utf-8", "replace"))
    return path
