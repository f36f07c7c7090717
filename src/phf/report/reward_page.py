"""One self-contained HTML page about a reward model that was trained or distilled, and the same numbers in lines."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from phf.files import write_bytes
from phf.records import Estimate
from phf.report.figures import MODE_COLOURS, Drawing, draw_figure, read_css
from phf.report.page import make_environment
from phf.report.reading import as_dict, as_estimate, as_float, as_list
from phf.report.reliability import Bin, Series, draw_reliability
from phf.report.verdict import flatten, format_number
from phf.reward_models.trained import read_evaluation

_KINDS = {"labels": "labelled texts", "ratings": "rated texts", "pairs": "pairs of texts"}


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of the page: its name, the number with its interval, and how to read it."""

    name: str
    value: str
    meaning: str


def write_reward_page(folder: Path) -> Path:
    """Write `report.html` beside `evaluation.json`: no script, nothing fetched; the same evaluation gives the same bytes.

    Args:
        folder: a reward model that `phf reward train` or `phf reward distill` made.

    Returns:
        The file written.

    Raises:
        PHFError: the folder holds no evaluation.
    """
    evaluation = read_evaluation(folder)
    held_out = evaluation["held_out"]
    drawings = [
        _draw_reliability(as_list(held_out["reliability"]), *_label_reliability(evaluation)),
        _draw_histogram(as_dict(held_out["histogram"]), _label_classes(evaluation)),
    ]
    page = (
        make_environment()
        .get_template("reward_page.html")
        .render(
            css=read_css(),
            evaluation=evaluation,
            lead=_describe(evaluation),
            measures=_list_measures(evaluation),
            notices=_list_notices(evaluation),
            drawings=[(drawing, Markup(drawing.svg)) for drawing in drawings],  # noqa: S704  made by us
            cost=_list_cost(evaluation),
            identity=flatten(evaluation["reward_model"]),
        )
    )
    out = folder / "report.html"
    write_bytes(out, page.encode())
    return out


def summarise_reward_model(evaluation: dict[str, Any]) -> list[str]:
    """Lines for the terminal: what it was made from, the measures, what to mind."""
    lines = [_describe(evaluation)]
    rows = [*_list_measures(evaluation), *_list_cost(evaluation)]
    width = max(len(row.name) for row in rows)
    lines += [f"  {row.name:{width}}  {row.value}" for row in rows]
    return lines + [f"note: {notice}" for notice in _list_notices(evaluation)]


def _describe(evaluation: dict[str, Any]) -> str:
    """One sentence: what the model was made from."""
    name = evaluation["reward_model"]["name"]
    if evaluation["kind"] == "distilled reward model":
        sample = evaluation["sample"]
        return (
            f"{name} learnt from {evaluation['teacher']['name']} on {sample['num_train']:,} {evaluation['segments']} (target: "
            f"{evaluation['target']}) and is compared with it on {sample['num_held_out']:,} of documents held out."
        )
    labels = evaluation["labels"]
    what = (
        f"features: {evaluation['features']}"
        if evaluation["backend"] == "linear"
        else f"base: {evaluation['base']}"
    )
    return (
        f"{name} learnt from {labels['num_train']:,} {_KINDS[labels['kind']]} ({evaluation['backend']}; {what}) and is measured "
        f"on {labels['num_held_out']:,} held out."
    )


def _list_measures(evaluation: dict[str, Any]) -> list[Measure]:
    held_out = evaluation["held_out"]
    distilled = evaluation["kind"] == "distilled reward model"
    threshold = f"{as_float(evaluation.get('threshold')):g}"
    wanted: dict[str, tuple[str, float, str]] = {
        "auroc": (
            f"AUROC at the teacher's threshold {threshold}" if distilled else "AUROC",
            1,
            "how often a bad text gets a higher score than a good one: 0.5 is chance, 1 is perfect",
        ),
        "pair_accuracy": (
            "pair accuracy",
            100,
            "how often the chosen text gets the lower score: 50 % is chance",
        ),
        "spearman": (
            "Spearman correlation",
            1,
            f"of the order of scores with {'the teacher' if distilled else 'the ratings'}: 1 is the same order",
        ),
        "segments_changed": ("segments that change side", 100, "good to one of the two, bad to the other"),
        "bad_segments_missed": ("bad segments missed", 100, "of the segments that are bad to the teacher"),
        "documents_changed": (
            "documents that change side",
            100,
            "by their mean segment score, as the objective filtering judges them",
        ),
        "calibration_error": (
            "calibration error (ECE)",
            1,
            "mean distance of score and share of bad texts, in ten bins; 0 is perfect, noise alone is above it",
        ),
    }
    measures = []
    for key, (name, scale, meaning) in wanted.items():
        if key in held_out:
            value = _show(as_estimate(held_out[key]), scale)
            measures.append(Measure(name, value, meaning))
    return measures


def _list_cost(evaluation: dict[str, Any]) -> list[Measure]:
    """Speed and cost of a student beside its teacher's."""
    if evaluation["kind"] != "distilled reward model":
        return []
    speed, cost = evaluation["speed"], evaluation["cost"]
    student, teacher = speed["student"], speed["teacher"]
    size = f"{cost['num_parameters'] / 1e6:,.4g}M"
    counted, measured, before = (
        cost[key] for key in ("student_counted", "student_measured", "teacher_measured")
    )
    return [
        Measure(
            "speed",
            f"{student['segments_per_second']:,.0f} segments per CPU-second, {student['bytes_per_second'] / 1e6:.3g} MB",
            f"on one core, on {speed['num_segments']:,} held-out segments",
        ),
        Measure(
            "teacher's speed",
            f"{teacher['segments_per_second']:,.0f} segments per CPU-second",
            "on the same segments",
        ),
        Measure("speed-up", f"{speed['ratio']:.1f} x", "both were timed in one run"),
        Measure(
            f"annotating, of pretraining {size}, by time",
            _show_share(measured["fraction"]),
            f"CPU time per token, times {cost['machine_flops_per_cpu_second'] / 1e9:.0f} GFLOP/s (what a core reaches here in a "
            f"float32 matrix product), over 6N = {cost['training_flops_per_token'] / 1e6:,.0f} MFLOP per token",
        ),
        Measure(
            f"annotating, of pretraining {size}, by count",
            _show_share(counted["fraction"]),
            f"{counted['flops_per_token']:,.0f} operations per token (hashing included; {cost['bytes_per_token']:g} bytes per token)",
        ),
        Measure(
            "the teacher's, by time",
            _show_share(before["fraction"]),
            "what annotating with the teacher would cost",
        ),
    ]


def _show(estimate: Estimate, scale: float) -> str:
    unit = " %" if scale == 100 else ""
    mean, low, high = (format_number(value * scale) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean}{unit} [{low}, {high}]" if low != "–" else f"{mean}{unit}"


def _show_share(share: float) -> str:
    return f"{format_number(100 * share, 2)} %"


def _list_notices(evaluation: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    held_out = evaluation["held_out"]
    notices = []
    for key, chance, name in (("auroc", 0.5, "AUROC"), ("pair_accuracy", 0.5, "pair accuracy")):
        if key not in held_out:
            continue
        found = as_estimate(held_out[key])
        if not math.isfinite(found.mean):
            notices.append(f"the held-out texts are all good or all bad, so there is no {name}.")
        elif not found.low > chance:
            notices.append(f"the {name} may be chance: its interval reaches {chance}.")
    if held_out.get("num_unscored"):
        notices.append(f"{held_out['num_unscored']:,} held-out texts could not be scored and are left out.")
    if evaluation["kind"] == "distilled reward model":
        sample = evaluation["sample"]
        if held_out["num_known_segments"]:
            notices.append(
                f"{held_out['num_known_segments']:,} held-out segments also stand in documents trained on (case and white space "
                "aside): they count for documents alone."
            )
        if sample["num_unscored"]:
            notices.append(
                f"the teacher gave no score to {sample['num_unscored']:,} segments, which are left out."
            )
        notices.append(
            "the student inherits what its teacher cannot see, and knows no text unlike the corpus."
        )
        return notices
    labels = evaluation["labels"]
    if labels["num_conflicts"]:
        what = (
            "pairs were judged both ways"
            if labels["kind"] == "pairs"
            else "texts were labelled both good and bad"
        )
        notices.append(f"{labels['num_conflicts']:,} {what}: see evaluation.json.")
    if labels["num_duplicates"]:
        notices.append(
            f"{labels['num_duplicates']:,} rows repeat a text (case and white space aside) and count once."
        )
    if labels["num_bad_rows"]:
        notices.append(
            f"{labels['num_bad_rows']:,} rows were no feedback and are left out: see evaluation.json."
        )
    if evaluation["backend"] == "encoder":
        notices.append("an encoder's probabilities are not calibrated: mind the reliability figure.")
    return notices


def _label_reliability(evaluation: dict[str, Any]) -> tuple[str, str, str]:
    """What the two axes are, and what a point on the diagonal means."""
    if evaluation["kind"] == "distilled reward model":
        return (
            "score",
            f"teacher's {evaluation['target']}, mean",
            "a score of 0.3 is 0.3 to the teacher, on average",
        )
    match evaluation["labels"]["kind"]:
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


def _label_classes(evaluation: dict[str, Any]) -> tuple[str, str]:
    if evaluation["kind"] == "distilled reward model":
        return "good to the teacher", "bad to the teacher"
    return ("chosen", "rejected") if evaluation["labels"]["kind"] == "pairs" else ("good", "bad")


def _draw_reliability(rows: list[Any], predicted: str, outcome: str, meaning: str) -> Drawing:
    bins = tuple(Bin(as_float(row["mean_score"]), as_estimate(row["share_bad"])) for row in rows)
    caption = (
        f"Held out, in ten bins, with 95 % intervals; a larger mark stands for more texts. On the dashed line the number means "
        f"what it says: {meaning}. Below it, it is too high."
    )
    return draw_reliability([Series("", bins)], predicted, outcome, caption)


def _draw_histogram(histogram: dict[str, Any], classes: tuple[str, str]) -> Drawing:
    """How many held-out texts of each class have which score, on a logarithmic axis."""
    edges = [float(edge) for edge in histogram["edges"]]

    def draw(axes: Axes) -> None:
        for key, name, line in (("good", classes[0], "-"), ("bad", classes[1], (0, (4, 2)))):
            axes.stairs(
                histogram[key], edges, color=MODE_COLOURS[key], linewidth=1.6, linestyle=line, label=name
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
