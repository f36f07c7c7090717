"""All metrics, in the order in which they are measured and shown."""

from collections.abc import Sequence

from phf.config.evaluate import EvaluateConfig
from phf.errors import NotApplicableError
from phf.evaluate.measures import (
    bits_per_byte,
    blimp,
    calibration,
    control_gain,
    degeneracy,
    diversity,
    downstream,
    finetuned,
    harness,
    in_context,
    joint,
    kl,
    leaks,
    mauve,
    misalignment,
    red_team,
    references,
    scenarios,
    steering,
    trajectory,
    type_token_ratio,
)
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.subject import Subject
from phf.results import Measure, Measurement

METRICS: tuple[Metric, ...] = (
    misalignment.METRIC,
    scenarios.METRIC,
    steering.METRIC,
    degeneracy.METRIC,
    diversity.METRIC,
    type_token_ratio.METRIC,
    mauve.METRIC,
    bits_per_byte.METRIC,
    joint.METRIC,
    control_gain.METRIC,
    calibration.METRIC,
    references.METRIC,
    kl.METRIC,
    blimp.METRIC,
    harness.METRIC,
    downstream.METRIC,
    red_team.METRIC,
    trajectory.METRIC,
    leaks.METRIC,
    in_context.METRIC,
    finetuned.METRIC,
)


def check_config(config: EvaluateConfig) -> None:
    """Find all that an evaluation was given, before hours go into the metrics that come first.

    Raises:
        PHFError: a scenario, file or model is not there, or cannot be read.
    """
    for metric in METRICS:
        metric.check(config)


def measure_all(
    subject: Subject, metrics: Sequence[Metric] = METRICS
) -> tuple[dict[str, Measured], dict[str, str]]:
    """What each wanted metric found, by its name; and what was not measured, and why.

    What the run or its data does not admit is left out, with the reason, unless it was asked for by name.

    Raises:
        PHFError: of anything else: a damaged file, say, is no reason to go on.
    """
    found: dict[str, Measured] = {}
    left_out: dict[str, str] = {}
    num_done = 0
    num_wanted = sum(metric.is_wanted(subject.config) for metric in metrics)
    for metric in metrics:
        if not metric.is_wanted(subject.config):
            if metric.option and subject.config.suite == "full":
                left_out[metric.name] = f"give {metric.option}"
            continue
        if subject.progress is not None:
            title = metric.name.replace("_", " ")
            subject.progress(f"evaluating {subject.run.name}  {title}", num_done, num_wanted)
        num_done += 1
        try:
            found[metric.name] = metric.compute(subject)
        except NotApplicableError as error:
            if metric.option:
                raise
            left_out[metric.name] = str(error)
        else:
            left_out |= found[metric.name].left_out
    if subject.progress is not None:
        subject.progress(f"evaluating {subject.run.name}", num_wanted, num_wanted)
    return found, left_out


def list_measures(measurements: list[Measurement], metrics: Sequence[Metric] = METRICS) -> list[Measure]:
    """How each measure of these is shown, in the order of the metrics."""
    measured = {row.measure for row in measurements}
    return [measure for metric in metrics for measure in metric.measures if measure.name in measured]
