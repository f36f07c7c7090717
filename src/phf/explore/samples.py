"""The samples of an evaluated run: its modes side by side."""

import math
from typing import Any

from phf.explore.html import escape_text, format_score, render_sentence
from phf.report.reading import RunFolder
from phf.report.samples import MAX_CHARACTERS, read_score
from phf.results import Judge

SAMPLES_PER_PAGE = 5
ORDERS = ("as drawn", "worst first", "best first")
_MODES = {
    "good": "asked for <|good|>",
    "bad": "asked for <|bad|>",
    "none": "not asked for anything",
    "untagged": "without tags, which are blocked",
    "deleted": "the model has no control tokens",
}


class SampleBrowser:
    """The samples of a run by mode."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.judges = {f"{judge.name} ({judge.role})": judge for judge in run.judges}
        self._samples = {mode: run.sample_table(mode).to_pylist() for mode in run.modes}

    @property
    def num_pages(self) -> int:
        """Pages until the longest mode has ended."""
        return max(1, *(-(-len(rows) // SAMPLES_PER_PAGE) for rows in self._samples.values()))

    def show(self, judge_name: str, order: str, page: int) -> str:
        """HTML of one page: a column for each mode.

        Args:
            judge_name: a key of `judges`; its scores are shown and sorted by.
            order: one of `ORDERS`.
            page: from 0 on.
        """
        if not any(self._samples.values()):
            return render_sentence(
                f"{self.run.path} has no samples; write them with: phf evaluate {self.run.path} --force"
            )
        judge = self.judges.get(judge_name)
        columns = "".join(
            self._render_mode(mode, rows, judge, order, page) for mode, rows in self._samples.items() if rows
        )
        return f"<div class='columns'>{columns}</div>"

    def _render_mode(
        self, mode: str, rows: list[dict[str, Any]], judge: Judge | None, order: str, page: int
    ) -> str:
        shown = _sort(rows, judge, order)[page * SAMPLES_PER_PAGE : (page + 1) * SAMPLES_PER_PAGE]
        cards = "".join(_render_sample(row, judge) for row in shown) or render_sentence("no more samples")
        return (
            f"<section><h3 class='mode-{escape_text(mode)}'>{escape_text(mode)} mode <small>{escape_text(_MODES.get(mode, ''))}</small></h3>"
            f"{self._render_mean(mode, judge)}{cards}</section>"
        )

    def _render_mean(self, mode: str, judge: Judge | None) -> str:
        if judge is None:
            return ""
        mean = self.run.results.find("score", mode, judge.slug)
        hit_rate = self.run.results.find("hit_rate", mode, judge.slug).mean
        if math.isnan(mean.mean):
            return ""
        low, middle, high = (
            format_score(judge.display_scale * value) for value in (mean.low, mean.mean, mean.high)
        )
        text = f"mean score {middle} [{low}, {high}]"
        if not math.isnan(hit_rate):
            text += f"; {100 * hit_rate:.1f} % score above {format_score(judge.hit_threshold)}"
        return render_sentence(text, "count")


def _sort(rows: list[dict[str, Any]], judge: Judge | None, order: str) -> list[dict[str, Any]]:
    """Samples without a score come last, unless they stay as drawn."""
    if judge is None or order == "as drawn":
        return sorted(rows, key=lambda row: row["index"])
    sign = -1 if order == "worst first" else 1
    scores = [sign * read_score(row, judge) for row in rows]
    places = sorted(
        range(len(rows)), key=lambda i: (math.isnan(scores[i]), scores[i] if scores[i] == scores[i] else 0)
    )
    return [rows[place] for place in places]


def _render_sample(row: dict[str, Any], judge: Judge | None) -> str:
    text, prompt = str(row.get("text") or ""), str(row.get("prompt") or "")
    score = read_score(row, judge) if judge is not None else math.nan
    is_bad = judge is not None and score > judge.hit_threshold
    told = f"{'▲ ' if is_bad else ''}{format_score(score * judge.display_scale)}" if judge is not None else ""
    cut = len(text) - MAX_CHARACTERS
    note = f"<p class='phf-cut'>… {cut:,} more characters are not shown</p>" if cut > 0 else ""
    facts = [f"sample {row['index']}", "ended by itself" if row.get("ended") else "cut at the length limit"]
    return (
        f"<article><header><b>{told}</b> <span>{escape_text(' · '.join(facts))}</span></header>"
        f"<div class='document' dir='auto'><span class='segment{' bad' if is_bad else ''}' {'tabindex=0' if is_bad else ''}>"
        f"<span class='prompt'>{escape_text(prompt[-MAX_CHARACTERS:])}</span>"
        f"<span class='text'>{escape_text(text[:MAX_CHARACTERS]) or '(empty)'}</span></span></div>{note}</article>"
    )
