"""dynamics.json: a model as a chain of pages, as measurements (docs/dynamics.md)."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from phf.dynamics.measures import MEASURES
from phf.records import Number
from phf.results import (
    MODE_ORDER,
    HasMeasurements,
    Judge,
    Measure,
    Measurement,
    ResultsFile,
)


@dataclass(frozen=True)
class DynamicsResults(HasMeasurements):
    """The content of dynamics.json.

    Attributes:
        settings: the `DynamicsConfig`.
        run: name of the model; `run_id` the id of a run, or the hash of another model.
        judge: whose verdicts are the states; None where nobody judged.
        threshold: score <= threshold is good.
        isolated: whether documents were isolated from each other in training; None where that is not known.
        context: of training, in tokens.
        num_pages: of each mode, and of the data (`data`).
        notes: what a reader must know.
    """

    settings: dict[str, JsonValue]
    run: str
    run_id: str
    step: int
    judge: Judge | None
    threshold: Number
    isolated: bool | None
    context: int
    num_pages: dict[str, int]
    notes: list[str]
    measurements: list[Measurement]
    measures: list[Measure] = field(default_factory=lambda: list(MEASURES))

    @property
    def modes(self) -> list[str]:
        """Those that were measured."""
        return [mode for mode in MODE_ORDER if mode in self.num_pages]


DYNAMICS = ResultsFile("dynamics.json", DynamicsResults, 3, "phf dynamics RUN -o FOLDER")
"""Files of version 1 have one of several shapes, and none of them is read; there was no 2 (the version before is read where its shape is
the same)."""
