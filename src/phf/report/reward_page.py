"""One self-contained HTML page about a reward model that was trained or distilled, and the same numbers in lines."""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from phf.config.fields import flatten
from phf.files import write_bytes
from phf.records import Estimate
from phf.report.figures import MODE_COLOURS, Drawing, draw_figure, read_css
from phf.report.page import embed_figures, make_environment
from phf.report.reliability import Series, draw_reliability
from phf.report.verdict import format_number
from phf.reward_training.check import describe_check, list_rows
from phf.reward_training.evaluation import (
    AUROC,
    PAIR_ACCURACY,
    RELIABILITY,
    RewardEvaluation,
    read_reward_evaluation,
)

_KINDS = {"labels": "labelled texts", "ratings": "rated texts", "pairs": "pairs of texts"}
CHANCE = 0.5
"""AUROC and pair accuracy of a model that knows nothing."""


@dataclass(frozen=True, slots=True)
class ShownMeasure:
    """A number of the page: its name, its value with the interval, and how to read it."""

    name: str
    value: str
    meaning: str


def write_reward_page(folder: Path) -> Path:
    """Write `report.html` into a reward model's folder: no script, nothing fetched; the same evaluation gives the same bytes.

    Raises:
        PHFError: the folder holds no evaluation.
    """
    evaluation = read_reward_evaluation(folder)
    page = (
        make_environment()
        .get_template("reward_page.html")
        .render(
            css=read_css(),
            evaluation=evaluation,
            kind="trained reward model" if evaluation.teaching is None else "distilled reward model",
            lead=_describe(evaluation),
            measures=_list_measures(evaluation),
            notices=_list_notices(evaluation),
            drawings=embed_figures([_draw_reliability(evaluation), _draw_histogram(evaluation)]),
            cost=_list_cost(evaluation),
            check=evaluation.check and describe_check(evaluation.check),
            groups=_list_groups(evaluation),
            identity=flatten(evaluation.reward_model.to_json()),
        )
    )
    out = folder / "report.html"
    write_bytes(out, page.encode())
    return out


def summarise_reward_model(evaluation: RewardEvaluation) -> list[str]:
    """Lines for the terminal: what it was made from, the measures, what to mind."""
    lines = [_describe(evaluation)]
    rows = [*_list_measures(evaluation), *_list_cost(evaluation)]
    width = max(len(row.name) for row in rows)
    lines += [f"  {row.name:{width}}  {row.value}" for row in rows]
    if evaluation.check is not None:
        lines.append(f"it {describe_check(evaluation.check)}")
    return lines + [f"note: {notice}" for notice in _list_notices(evaluation)]


def _describe(evaluation: RewardEvaluation) -> str:
    """One sentence: what the model was made from."""
    name, taught, labels = evaluation.reward_model.name, evaluation.teaching, evaluation.labels
    if taught is not None:
        return (
            f"{name} learnt from {taught.teacher.name} on {taught.num_train:,} {taught.segments} (target: "
            f"{taught.target}) and is compared with it on {taught.num_held_out:,} of documents held out."
        )
    assert labels is not None, "a model that has no teacher was trained on labels"
    linear = evaluation.linear
    made = f"linear; features: {linear.features}" if linear else f"encoder; base: {evaluation.base}"
    more = (
        f" and {labels.num_counterfactuals:,} versions about other groups"
        if labels.num_counterfactuals
        else ""
    )
    return (
        f"{name} learnt from {labels.num_train:,} {_KINDS[labels.kind]}{more} ({made}) and is measured "
        f"on {labels.num_held_out:,} held out."
    )


def _list_measures(evaluation: RewardEvaluation) -> list[ShownMeasure]:
    shown = {row.measure: row.estimate for row in evaluation.measurements if row.at is None}
    return [
        ShownMeasure(measure.title, _show(shown[measure.name], measure.unit), measure.note)
        for measure in evaluation.measures
        if measure.name in shown
    ]


def _list_groups(evaluation: RewardEvaluation) -> list[ShownMeasure]:
    """What it makes of the toxicity probes, if they suit it."""
    check = evaluation.check
    if check is None or not check.suits:
        return []
    return [
        ShownMeasure(f"{title}: {of}" if of else title, shown, note)
        for title, of, shown, note in list_rows(check)
    ]


def _list_cost(evaluation: RewardEvaluation) -> list[ShownMeasure]:
    """Speed and cost of a student beside its teacher's."""
    if evaluation.teaching is None:
        return []
    speed, cost = evaluation.teaching.speed, evaluation.teaching.cost
    size = f"{cost.num_parameters / 1e6:,.4g}M"
    return [
        ShownMeasure(
            "speed",
            f"{speed.student_segments:,.0f} segments per CPU-second, {speed.student_bytes / 1e6:.3g} MB",
            f"on one core, on {speed.num_segments:,} held-out segments",
        ),
        ShownMeasure(
            "teacher's speed",
            f"{speed.teacher_segments:,.0f} segments per CPU-second",
            "on the same segments",
        ),
        ShownMeasure("speed-up", f"{speed.ratio:.1f} x", "both were timed in one run"),
        ShownMeasure(
            f"annotating, of pretraining {size}, by time",
            _show_share(cost.student / cost.training),
            f"CPU time per token, times {cost.machine_flops_per_cpu_second / 1e9:.0f} GFLOP/s (what a core reaches here in a "
            f"float32 matrix product), over 6N = {cost.training / 1e6:,.0f} MFLOP per token",
        ),
        ShownMeasure(
            f"annotating, of pretraining {size}, by count",
            _show_share(cost.counted / cost.training),
            f"{cost.counted:,.0f} operations per token (hashing included; {cost.bytes_per_token:g} bytes per token)",
        ),
        ShownMeasure(
            "the teacher's, by time",
            _show_share(cost.teacher / cost.training),
            "what annotating with the teacher would cost",
        ),
    ]


def _show(estimate: Estimate, unit: str) -> str:
    scale, suffix = (100, " %") if unit == "%" else (1, "")
    mean, low, high = (format_number(value * scale) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean}{suffix} [{low}, {high}]" if low != "–" else f"{mean}{suffix}"


def _show_share(share: float) -> str:
    return f"{format_number(100 * share, 2)} %"


def _list_notices(evaluation: RewardEvaluation) -> list[str]:
    """What a reader must know before believing the numbers."""
    found, taught, labels = evaluation.results, evaluation.teaching, evaluation.labels
    notices = []
    for measure, name in ((AUROC, "AUROC"), (PAIR_ACCURACY, "pair accuracy")):
        if measure.name not in found.measures:
            continue
        estimate = found.find(measure.name)
        if not math.isfinite(estimate.mean):
            notices.append(f"the held-out texts are all good or all bad, so there is no {name}.")
        elif not estimate.low > CHANCE:
            notices.append(f"the {name} may be chance: its interval reaches {CHANCE}.")
    if evaluation.num_unscored:
        notices.append(f"{evaluation.num_unscored:,} held-out texts could not be scored and are left out.")
    if taught is not None:
        if taught.num_known:
            notices.append(
                f"{taught.num_known:,} held-out segments also stand in documents trained on (case and white space "
                "aside): they count for documents alone."
            )
        if taught.num_unscored:
            notices.append(
                f"the teacher gave no score to {taught.num_unscored:,} segments, which are left out."
            )
        if taught.num_labels:
            notices.append(
                f"people labelled {taught.num_labels:,} texts; unless these were drawn at random (phf label --order random), "
                "agreement on them is not that on the corpus."
            )
        notices.append(
            "the student inherits what its teacher cannot see, and knows no text unlike the corpus."
        )
    if labels is not None:
        if labels.num_conflicts:
            what = (
                "pairs were judged both ways"
                if labels.kind == "pairs"
                else "texts were labelled both good and bad"
            )
            notices.append(f"{labels.num_conflicts:,} {what}: see evaluation.json.")
        if labels.num_duplicates:
            notices.append(
                f"{labels.num_duplicates:,} rows repeat a text (case and white space aside) and count once."
            )
        if labels.num_bad_rows:
            notices.append(
                f"{labels.num_bad_rows:,} rows were no feedback and are left out: see evaluation.json."
            )
    if evaluation.linear is None:
        notices.append("an encoder's probabilities are not calibrated: mind the reliability figure.")
    return notices


def _label_reliability(evaluation: RewardEvaluation) -> tuple[str, str, str]:
    """What the two axes are, and what a point on the diagonal means."""
    if evaluation.teaching is not None:
        return (
            "score",
            f"teacher's {evaluation.teaching.target}, mean",
            "a score of 0.3 is 0.3 to the teacher, on average",
        )
    match evaluation.labels and evaluation.labels.kind:
        case "labels":
            return "score", "share of bad texts", "of the texts with score 0.3, three in ten are bad"
        case "ratings":
            return "score", "rating, 0 = best, 1 = worst", "a score is the rating to expect, turned round"
        case _:
            return (
                "probability that one text is chosen before the other",
                "share that was chosen",
                "of the judgements given a probability of 0.3, three in ten were made (each pair is read both ways)",
            )


def _label_classes(evaluation: RewardEvaluation) -> tuple[str, str]:
    if evaluation.labels is None:
        return "good to the teacher", "bad to the teacher"
    return ("chosen", "rejected") if evaluation.labels.kind == "pairs" else ("good", "bad")


def _draw_reliability(evaluation: RewardEvaluation) -> Drawing:
    predicted, outcome, meaning = _label_reliability(evaluation)
    bins = tuple(row for row in evaluation.results.of(RELIABILITY.name) if row.at is not None)
    caption = (
        f"Held out, in ten bins, with 95 % intervals; a larger mark stands for more texts. On the dashed line the number means "
        f"what it says: {meaning}. Below it, it is too high."
    )
    return draw_reliability([Series("", bins)], predicted, outcome, caption)


def _draw_histogram(evaluation: RewardEvaluation) -> Drawing:
    """How many held-out texts of each class have which score, on a logarithmic axis."""
    classes, histogram = _label_classes(evaluation), evaluation.histogram

    def draw(axes: Axes) -> None:
        for key, counts, name, line in (
            ("good", histogram.good, classes[0], "-"),
            ("bad", histogram.bad, classes[1], (0, (4, 2))),
        ):
            axes.stairs(
                counts, histogram.edges, color=MODE_COLOURS[key], linewidth=1.6, linestyle=line, label=name
            )
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("score  (higher is worse)")
        axes.set_ylabel("held-out texts")
        axes.legend(frameon=False)

    caption = (
        "The less the two overlap, the better they can be told apart. The axis of counts is logarithmic."
    )
    return draw_figure(draw, "Scores", caption, height=3.6)
