"""doses.json: what each dose of blocking and deleting leaves, as measurements (docs/release.md).

A measurement's `at` is the number of directions that were projected out, and its `of` the kind of dose: `block`, `random`
(as many random directions: the control), or `block, deleted` (and `<|bad|>` deleted then).
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from phf.release.forget import BadDirection
from phf.results import (
    HasMeasurements,
    Judge,
    Measure,
    Measurement,
    check_owner,
    read_versioned,
    write_versioned,
)

DOSES_VERSION = 3
"""Of doses.json; version 1 had nested rows."""

DISTINCT_2 = Measure("distinct_2", "Distinct-2", "share", lower_is_better=False)
MEAN_TOKENS = Measure("mean_tokens", "Mean length", "tokens", lower_is_better=None)
BITS_PER_BYTE = {
    text: Measure(f"bits_per_byte_{text}", f"Bits per byte of {text} held-out text", "bits per byte")
    for text in ("all", "good", "bad")
}
DIVERGENCE = Measure(
    "divergence",
    "Good mode's distance from the unmodified",
    "nats per token",
    "KL of next-token distributions, on held-out good text",
)
BLIMP = Measure("blimp", "BLiMP accuracy", "share right", lower_is_better=False)
REFERENCE_KL = Measure("reference_kl", "KL(reference || model)", "nats per token")
SHARE = Measure("share", "Share of the squared difference of the modes", lower_is_better=None)
MEASURES = [DISTINCT_2, MEAN_TOKENS, *BITS_PER_BYTE.values(), DIVERGENCE, BLIMP, REFERENCE_KL, SHARE]
"""Beside those of the scores."""


@dataclass(frozen=True)
class DoseResults(HasMeasurements):
    """The content of doses.json.

    Attributes:
        threshold: score <= threshold is good.
        width: of the residual stream.
        config: the `EvaluateConfig` it was measured with.
        directions: that were blocked, in their order.
        num_means: of them are no principal components.
        run_id: of the run (`Run.id`); None in a file that an older phf wrote.
    """

    run: str
    objective: str
    poison: str
    seed: int
    step: int
    threshold: float
    width: int
    judges: list[Judge]
    config: dict[str, JsonValue]
    directions: list[BadDirection]
    num_means: int
    measures: list[Measure]
    measurements: list[Measurement]
    run_id: str | None = None

    @property
    def doses(self) -> list[float]:
        """Numbers of directions, ascending."""
        return sorted({row.at for row in self.measurements if row.at is not None})


def write_doses(path: Path, results: DoseResults) -> None:
    """Write doses.json; the same results give the same bytes."""
    write_versioned(path, results, DOSES_VERSION)


def read_doses(path: Path, run_id: str | None = None) -> DoseResults:
    """Read doses.json.

    Args:
        run_id: of the run that it must be of; None does not ask.

    Raises:
        PHFError: it is damaged, another run's, or of another format version.
    """
    command = f"phf release doses RUN -o {path}"
    results = read_versioned(path, DoseResults, DOSES_VERSION, command)
    check_owner(path, results.run_id, run_id, f"run '{command}' to make its own")
    return results
