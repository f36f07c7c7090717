"""OUT/study.md, study.svg and study.json: what is claimed, what was measured, and what it took."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phf.config.study import StudyConfig
from phf.files import write_bytes, write_json
from phf.objective_facts import is_baseline
from phf.records import Estimate
from phf.results import Judge, Measurements, pool, to_json
from phf.study.contrasts import Answer, Tested, Verdict
from phf.study.plan import Plan
from phf.study.results import RunResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ANSWERS: tuple[Answer, ...] = (
    "reproduced",
    "contradicted",
    "could not be told",
    "not testable here",
    "not run",
)
HEADINGS = {"paper": "What the paper claims", "question": "Open questions", "goal": "Goals"}
_PLAIN = ("none", "untagged")


@dataclass(frozen=True)
class ArmNumbers:
    """An arm's numbers, pooled over its seeds.

    Attributes:
        mode: whose text is wanted: good, or the one that asks for nothing.
    """

    name: str
    seeds: Sequence[int]
    results: Measurements
    judges: Sequence[Judge]
    mode: str

    def score(self, judge: Judge, mode: str | None = None) -> Estimate:
        """Of unprompted text."""
        return self.results.find("score", mode or self.mode, judge.slug)

    @property
    def bits(self) -> Estimate:
        """Joint cost of good text, in which no label is given away."""
        return self.results.find("joint_bits_per_byte", None, None, "good")

    @property
    def variety(self) -> Estimate:
        """distinct-2 of the wanted text."""
        return self.results.find("distinct_2", self.mode)


def read_arms(plan: Plan) -> list[ArmNumbers]:
    """Every arm that was trained and measured."""
    by_arm: dict[str, list[RunResults]] = {}
    for run in plan.runs:
        if run.arm.command is None and run.result is not None:
            by_arm.setdefault(run.name, []).append(run.result)
    return [
        ArmNumbers(
            name,
            [run.seed for run in runs],
            pool([run.measurements for run in runs]),
            runs[0].judges,
            _find_mode(runs[0]),
        )
        for name, runs in by_arm.items()
    ]


def _find_mode(run: RunResults) -> str:
    modes = {row.mode for row in run.results.of("score")}
    return (
        "good"
        if {"good", "bad"} <= modes and not is_baseline(str(run.facts.get("objective", "")))
        else next((mode for mode in _PLAIN if mode in modes), "good")
    )


def summarise(verdicts: Sequence[Verdict]) -> str:
    """How many claims came out how, in a sentence."""
    counts = {answer: sum(verdict.answer == answer for verdict in verdicts) for answer in ANSWERS}
    said = [f"{count} {answer}" for answer, count in counts.items() if count]
    return f"Of {len(verdicts)} claims: {', '.join(said)}." if verdicts else "Nothing is claimed."


def write_page(folder: Path, study: StudyConfig, plan: Plan, verdicts: Sequence[Verdict]) -> Path:
    """Write the page, its figure and its numbers; the page's path."""
    arms = read_arms(plan)
    write_json(
        folder / "study.json", {"title": study.title, "verdicts": [to_json(verdict) for verdict in verdicts]}
    )
    if arms:
        draw(arms, folder / "study.svg")
    path = folder / "study.md"
    write_bytes(path, "\n".join(_list_lines(study, plan, verdicts, arms)).encode() + b"\n")
    return path


def _list_lines(
    study: StudyConfig, plan: Plan, verdicts: Sequence[Verdict], arms: Sequence[ArmNumbers]
) -> Iterator[str]:
    yield f"# {study.title}\n"
    if study.about:
        yield f"{' '.join(study.about.split())}\n"
    yield f"**{summarise(verdicts)}**\n"
    if arms:
        yield "![Score and bits per byte of every arm](study.svg)\n"
    for kind, heading in HEADINGS.items():
        own = [verdict for verdict in verdicts if verdict.claim.kind == kind]
        if own:
            yield f"## {heading}\n\n| claim | answer | p | what was measured |\n|---|---|---|---|"
            for verdict in own:
                yield _show_verdict(verdict)
            yield ""
    if verdicts:
        yield (
            "Each line of the last column is one contrast: both sides, their ratio with its 95 % interval, and how far off the claimed ratio a true one "
            "must lie to be seen 4 times in 5. p is two-sided, by Student's t over seeds with shrunk variances, Holm-corrected over all claims.\n"
        )
    if arms:
        yield from _list_arms(arms)
    yield from _list_costs(study, plan)


def _show_verdict(verdict: Verdict) -> str:
    claim = verdict.claim
    source = f" ({claim.source})" if claim.source else ""
    measured = "<br>".join(map(_show_tested, verdict.tested)) or verdict.note
    p = "" if math.isnan(verdict.p) else f"{verdict.p:.2g}"
    return f"| {_escape(claim.text + source)} | **{verdict.answer}** | {p} | {measured} |"


def _show_tested(tested: Tested) -> str:
    basis = {
        "seeds": f"{tested.ratio.count} seeds",
        "seeds of others": "one seed, variance of others",
        "texts": "texts of one seed",
    }[tested.basis]
    left, right = tested.means
    seen = "" if math.isnan(tested.detectable) else f", ×{tested.detectable:.2f} seen"
    contrast = tested.contrast.replace("|", "\\|")
    return f"`{contrast}`: {left:.3g} / {right:.3g} = {_show(tested.ratio)} ({basis}{seen})"


def _show(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "–"
    interval = (
        "" if math.isnan(estimate.low + estimate.high) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    )
    return f"{estimate.mean:.3f}{interval}"


def _escape(text: str) -> str:
    """As a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _list_arms(arms: Sequence[ArmNumbers]) -> Iterator[str]:
    judges = list({judge.slug: judge for arm in arms for judge in arm.judges}.values())
    yield "## Every arm\n"
    heads = [f"{judge.name} ({judge.role})" for judge in judges]
    columns = [
        "arm",
        "seeds",
        "mode",
        *heads,
        *(f"bad mode, {judge.name}" for judge in judges[:1]),
        "bits per byte, good text",
        "distinct-2",
    ]
    yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    for arm in arms:
        bad = arm.score(judges[0], "bad") if arm.mode == "good" else Estimate(math.nan, math.nan, math.nan, 0)
        cells = [_show(arm.score(judge)) for judge in judges] + [
            _show(bad),
            _show(arm.bits),
            _show(arm.variety),
        ]
        yield f"| {arm.name} | {', '.join(map(str, arm.seeds))} | {arm.mode} | {' | '.join(cells)} |"
    yield "\nIntervals: Student's t over seeds where there are several, else over texts.\n"


def _list_costs(study: StudyConfig, plan: Plan) -> Iterator[str]:
    done = [run for run in plan.runs if run.result is not None]
    total = sum(run.result.seconds for run in done if run.result is not None)
    yield f"## What it took\n\n{len(done)} runs, {total / 3600:.1f} hours of one core.\n"
    rows: dict[str, list[float]] = {}
    for run in done:
        assert run.result is not None
        rows.setdefault(run.name, []).append(run.result.seconds / 60)
    yield "| arm | runs | minutes a run | note |\n|---|---|---|---|"
    for name, minutes in rows.items():
        yield f"| {name} | {len(minutes)} | {sum(minutes) / len(minutes):.1f} | {_escape(study.arms[name].note)} |"
    for title, runs in (("Not run yet", plan.missing), (f"Left out, beyond {study.hours:g} hours", plan.cut)):
        if runs:
            yield f"\n{title}: {', '.join(run.id for run in runs)}."


# --- figure --------------------------------------------------------------------------------------------------------


def draw(arms: Sequence[ArmNumbers], path: Path) -> None:
    """Left: score of every arm in the wanted mode and in bad mode, by each judge. Right: what the wanted text's score cost in bits."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    plt.rcParams.update({"svg.hashsalt": "study", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.34 * len(arms)), layout="constrained", width_ratios=(3, 2)
    )
    right.set_yscale("log")
    judges = list({judge.slug: judge for arm in arms for judge in arm.judges}.values())
    for row, arm in enumerate(arms):
        for place, judge in enumerate(judges):
            shift = 0.16 * (place - (len(judges) - 1) / 2)
            marks = [(arm.mode, "C0" if arm.mode == "good" else "0.4", "o")] + (
                [("bad", "C3", "D")] if arm.mode == "good" else []
            )
            for mode, colour, marker in marks:
                _mark(
                    left,
                    arm.score(judge, mode),
                    row + shift,
                    colour,
                    marker,
                    is_filled=judge.role == "annotator",
                )
    left.set_xscale("log")
    left.set(
        yticks=range(len(arms)),
        yticklabels=[arm.name for arm in arms],
        xlabel="score (lower is better)",
    )
    left.invert_yaxis()
    for axis in (left.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    left.grid(axis="x", linewidth=0.4)
    handles = [
        left.plot([], [], marker, color=colour, label=label, markerfacecolor=face)[0]
        for marker, colour, face, label in (
            ("o", "0.4", "0.4", "no mode asked for"), ("o", "C0", "C0", "good mode"), ("D", "C3", "C3", "bad mode"), ("o", "0.4", "none", "held-out judge"),
        )
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    for place, arm in enumerate(arms):
        score = arm.score(judges[0])
        if math.isfinite(arm.bits.mean + score.mean):
            right.errorbar(
                arm.bits.mean,
                score.mean,
                _bars(score),
                _bars(arm.bits),
                fmt="o",
                markersize=4,
                elinewidth=0.6,
                color=f"C{place % 10}",
            )
            right.annotate(
                arm.name, (arm.bits.mean, score.mean), xytext=(4, 3), textcoords="offset points", fontsize=7
            )
    right.set(xlabel="bits per byte of good text", ylabel=f"score by {judges[0].name}")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _mark(axis: "Axes", estimate: Estimate, y: float, colour: str, marker: str, *, is_filled: bool) -> None:
    if math.isnan(estimate.mean):
        return
    face = colour if is_filled else "none"
    axis.errorbar(
        estimate.mean,
        y,
        xerr=_bars(estimate),
        fmt=marker,
        color=colour,
        markerfacecolor=face,
        markersize=4,
        elinewidth=0.7,
    )


def _bars(estimate: Estimate) -> Any:
    """Both halves of an interval, for matplotlib; None where there is none. A log axis has no place at or below 0."""
    if math.isnan(estimate.low + estimate.high):
        return None
    low = max(estimate.low, estimate.mean / 10)
    return [[estimate.mean - low], [estimate.high - estimate.mean]]
