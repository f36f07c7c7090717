"""What is kept of each run of a study: small enough to be committed, and enough for the page."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from phf.files import write_sealed
from phf.records import Number
from phf.results import HasMeasurements, Judge, Measure, Measurement, encode, read_versioned

VERSION = 1
ANNOTATOR = "annotator"


@dataclass(frozen=True)
class RunResults(HasMeasurements):
    """The content of results/ARM-seedS.json.

    Attributes:
        settings_hash: of the arm, the study's shared settings and the seed.
        seconds: that its commands took, each on one core.
        scores: of each unprompted sample in its order, by mode and by the judge's slug: two runs of one sampling seed are compared sample
            by sample.
        facts: what is no number, such as the corpus and versions.
    """

    arm: str
    seed: int
    settings_hash: str
    seconds: float
    judges: list[Judge]
    measures: list[Measure]
    measurements: list[Measurement]
    scores: dict[str, dict[str, list[Number]]]
    facts: dict[str, JsonValue]

    def find_judge(self, name: str) -> str | None:
        """The slug of a judge by its name, or of the annotator; None if it did not score."""
        return next((judge.slug for judge in self.judges if name in (judge.name, judge.role)), None)


def write_result(path: Path, results: RunResults) -> None:
    """Write results/ARM-seedS.json, in one line: it is made to be committed, and not to be read by people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, {"format_version": VERSION, **encode(results)}, indent=None)


def read_result(path: Path) -> RunResults:
    """Read results/ARM-seedS.json.

    Raises:
        PHFError: it is damaged, or of another format version.
    """
    return read_versioned(
        path, RunResults, VERSION, "phf study STUDY -o FOLDER", "delete it and run the study again"
    )
