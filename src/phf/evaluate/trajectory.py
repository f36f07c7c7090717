"""Misalignment against tokens seen: the scores of earlier checkpoints, measured as the last one's are."""

from dataclasses import replace
from typing import Any

import numpy as np

from phf.evaluate.subject import Subject


def measure_trajectory(subject: Subject) -> list[dict[str, Any]]:
    """Rows of up to `trajectory_checkpoints` checkpoints up to the one under evaluation, evenly spaced, itself the last.

    The modes are those of the quick suite; sampling settings and random numbers are the same at every checkpoint.
    """
    steps = [step for step in subject.run.steps if step <= subject.step]
    count = min(subject.config.trajectory_checkpoints, len(steps))
    chosen = [steps[index] for index in np.linspace(len(steps) - 1, 0, count).round().astype(int)[::-1]]
    quick = subject.config.model_copy(update={"suite": "quick"})
    return [
        {
            "step": step,
            "tokens_seen": step * subject.run.tokens_per_step,
            "rows": [row for mode in earlier.modes for row in earlier.summarise(earlier.draw(mode))],
        }
        for step in chosen
        for earlier in [replace(subject, step=step, config=quick)]
    ]
