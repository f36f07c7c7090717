"""Which samples the page shows, and how text that a model wrote is made safe to look at."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from phf.report.reading import RunFolder, read_scores
from phf.report.verdict import format_number
from phf.results import Judge

NUM_RANDOM, NUM_EXTREME = 3, 2
"""Samples shown per run and mode: the first by index, and the worst and the best."""

MAX_CHARACTERS = 1500
"""A longer sample is cut, and the page says by how much."""

_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_HARMLESS = "\n\t\u200c\u200d"  # emoji and several scripts need the two joiners


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample as the page shows it. `text` has nothing invisible left, but is not yet escaped for HTML.

    Attributes:
        scores: `name score` of each judge, in shown units.
        hidden: why it stands behind a click; empty if it does not.
        num_cut: characters left out at the end.
    """

    index: int
    text: str
    scores: str
    hidden: str
    num_cut: int


@dataclass(frozen=True, slots=True)
class SampleList:
    """Samples of one mode of one run that were chosen by one rule."""

    title: str
    samples: list[ShownSample]


def visible_text(text: str) -> str:
    """Text in which every character can be seen and none can reorder, hide or break what surrounds it.

    Control and format characters (bidi overrides, zero-width signs), line separators, lone surrogates and unassigned
    code points become `⟨U+202E⟩`. Newline, tab and the joiners of emoji stay. (Unicode's control pictures would be
    shorter, but common fonts lack them.)
    """
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in _HARMLESS or unicodedata.category(character) not in _INVISIBLE:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def choose_samples(run: RunFolder, mode: str, *, few: bool = False) -> list[SampleList]:
    """The first samples by index, then the worst and the best by the annotator (or the first judge).

    Sampling is seeded and samples are independent, so the first by index are a random choice nobody made.

    Args:
        few: one of each, on a page of many runs.
    """
    own = run.sample_table(mode)
    num_random, num_extreme = (1, 1) if few else (NUM_RANDOM, NUM_EXTREME)
    first = list(range(min(num_random, len(own))))
    lists = [SampleList(f"First {len(first)} (not chosen)", _show(run, mode, own, first))]
    judge = next((judge for judge in run.judges if judge.role == "annotator"), None)
    if judge is None or f"score:{judge.slug}" not in own.column_names:
        return lists
    scores = read_scores(own, judge)
    places = np.flatnonzero(np.isfinite(scores))
    # Stable: of equal scores the lower index comes first, at either end.
    best = places[np.argsort(scores[places], kind="stable")][:num_extreme]
    worst = places[np.argsort(-scores[places], kind="stable")][:num_extreme]
    return [
        *lists,
        SampleList(f"Worst by {judge.name}", _show(run, mode, own, worst.tolist())),
        SampleList(f"Best by {judge.name}", _show(run, mode, own, best.tolist())),
    ]


def pair_samples(run: RunFolder, *, few: bool = False) -> list[tuple[int, list[tuple[str, ShownSample]]]]:
    """The first samples that all modes of a run have in common: index, and each mode's sample, good first.

    Sample i of two modes was drawn with the same random numbers, so they differ by what the modes differ in. Empty for a
    run with one mode.
    """
    tables = {mode: run.sample_table(mode) for mode in run.modes}
    tables = {mode: table for mode, table in tables.items() if len(table)}
    if len(tables) < 2:
        return []
    indices = {mode: table["index"].to_pylist() for mode, table in tables.items()}
    common = sorted(set.intersection(*map(set, indices.values())))[: 1 if few else NUM_RANDOM]
    return [
        (
            int(index),
            [
                (mode, _show(run, mode, table, [indices[mode].index(index)])[0])
                for mode, table in tables.items()
            ],
        )
        for index in common
    ]


def _show(run: RunFolder, mode: str, table: pa.Table, places: list[int]) -> list[ShownSample]:
    return [_show_one(run, mode, row) for row in table.take(pa.array(places, pa.int64())).to_pylist()]


def _show_one(run: RunFolder, mode: str, row: dict[str, Any]) -> ShownSample:
    text = str(row.get("text") or "")
    scores = [(judge, read_score(row, judge)) for judge in run.judges]
    # `not <=` rather than `>`: where the threshold is unknown the text stays behind the click.
    hits = [
        judge.name for judge, score in scores if math.isfinite(score) and not score <= judge.hit_threshold
    ]
    hidden = "bad mode" if mode == "bad" else ""
    if not any(math.isfinite(score) for _, score in scores):
        hidden = "unscored"
    elif hits:
        hidden = f"flagged by {' and '.join(hits)}"
    return ShownSample(
        index=row["index"],
        text=visible_text(text[:MAX_CHARACTERS]),
        scores=", ".join(
            f"{judge.name} {format_number(score * judge.display_scale) if math.isfinite(score) else 'unscored'}"
            for judge, score in scores
        ),
        hidden=hidden,
        num_cut=max(0, len(text) - MAX_CHARACTERS),
    )


def read_score(row: Mapping[str, Any], judge: Judge) -> float:
    """A judge's score of one sample, a row of samples.parquet; NaN if it has none."""
    score = row.get(f"score:{judge.slug}")
    return math.nan if score is None else float(score)
