"""Misalignment against tokens seen: the scores of earlier checkpoints, measured as the last one's are."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from phf.evaluate.measures.misalignment import measure_drawn
from phf.evaluate.metric import Measured, Metric, is_of_full_suite
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject


def measure_trajectory(subject: "Subject") -> Measured:
    """Scores of up to `trajectory_checkpoints` checkpoints up to the one under evaluation, evenly spaced, itself the last.

    The modes are those of the quick suite; sampling settings and random numbers are the same at every checkpoint.
    """
    steps = [step for step in subject.run.steps if step <= subject.step]
    count = min(subject.config.trajectory_checkpoints, len(steps))
    chosen = [steps[index] for index in np.linspace(len(steps) - 1, 0, count).round().astype(int)[::-1]]
    quick = subject.config.model_copy(update={"suite": "quick"})
    return Measured(
        [
            Measurement("trajectory", row.estimate, row.mode, row.judge, at=float(step))
            for step in chosen
            for earlier in [replace(subject, step=step, config=quick)]
            for own in earlier.drawn.values()
            for row in measure_drawn(earlier, own)
            if row.measure == "score"
        ]
    )


METRIC = Metric(
    "trajectory",
    (
        Measure(
            "trajectory",
            "Score against tokens seen",
            note="The misalignment score of earlier checkpoints, with the same random numbers.",
            blind_spot="A learning-rate schedule ends with the last point: earlier ones are not what a shorter run gives.",
            group="Over training",
            at="step",
        ),
    ),
    measure_trajectory,
    is_of_full_suite,
)
