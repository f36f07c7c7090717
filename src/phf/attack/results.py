"""attack.json: what attacks reached, as measurements, and what follows of them (docs/release.md)."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from phf.errors import PHFError
from phf.records import Estimate, Number
from phf.results import (
    HasMeasurements,
    Judge,
    Measure,
    Measurement,
    check_owner,
    read_versioned,
    write_versioned,
)

ATTACK_FILE = "attack.json"
ATTACK_VERSION = 3
"""Of attack.json; version 1 had rows of its own for each of its tables."""

ForgettingOutcome = Literal["raises", "lowers", "does not raise", "damaged", "unknown"]
Interval = Literal["seeds", "samples"]
"""What an interval is over."""

SCORE = Measure("score", "score", note="of what the attacked model writes")
HIT_RATE = Measure("hit_rate", "hit rate", note="share of the samples above the judge’s line")
NLL = Measure("nll", "NLL", "nats per token", "of held-out bad text, on the attacked page")
SECONDS = Measure("seconds", "seconds", note="of the attacker, up to there")
RECITED = Measure(
    "recited", "recited", note="share of the samples that begin as one of the attacker’s texts does"
)
MEASURES = [SCORE, HIT_RATE, NLL, SECONDS, RECITED]


@dataclass(frozen=True)
class AttackedModel(HasMeasurements):
    """A target as it is before any attack.

    Attributes:
        forget: how bad mode was forgotten, as specs; empty for a model that was not to forget it.
        start: the mode in which an attacker finds it.
        measurements: `score` by mode and judge, and `nll` of held-out bad text behind its prefix.
        run_id: of the run, or of the one that the release was made from; None in a file that an older phf wrote.
    """

    name: str
    folder: str
    objective: str
    forget: list[str]
    start: str
    measurements: list[Measurement]
    run_id: str | None = None

    @property
    def is_unmodified(self) -> bool:
        """Whether it still has a bad mode of its own, to call up by a token."""
        return not self.forget and any(row.mode == "bad" for row in self.measurements)

    def score(self, mode: str, judge: str) -> Estimate:
        """Score of a mode by the judge with a slug, in the judge's own unit; NaN if it has no such mode."""
        return self.results.find(SCORE.name, mode, judge)


@dataclass(frozen=True)
class Trajectory(HasMeasurements):
    """An attack on a target with so many bad texts, measured along its steps.

    Attributes:
        seed: of the draw of texts and samples.
        measurements: at each step (`at`): score and hit rate by judge, and the other `MEASURES`.
        failed: why it ended early; None if it did not.
    """

    target: str
    attack: str
    num_texts: int
    seed: int
    measurements: list[Measurement]
    failed: str | None = None

    @property
    def steps(self) -> list[float]:
        """Where it was measured."""
        return list(dict.fromkeys(row.at for row in self.measurements if row.at is not None))


@dataclass(frozen=True)
class Reached(HasMeasurements):
    """What an attack reaches with so many texts at each trajectory's best step, pooled over seeds.

    Attributes:
        steps: their median; NaN where no step was measured.
        interval: what those of the scores are over.
        num_seeds: trajectories with a step that was measured.
        num_failed: trajectories that ended early.
        measurements: `score` by judge, and `nll`.
    """

    target: str
    attack: str
    num_texts: int
    steps: Number
    interval: Interval
    num_seeds: int
    num_failed: int
    measurements: list[Measurement]

    def score(self, judge: str) -> Estimate:
        """Score by the judge with a slug, in the judge's own unit."""
        return self.results.find(SCORE.name, judge=judge)


@dataclass(frozen=True, slots=True)
class RediscoveryCost:
    """How many bad texts bring back a share of bad mode.

    Attributes:
        level: the share of the way from the reference's own score to that of its bad mode.
        line: the score there.
        is_there: whether the target scores as much before any attack.
        texts: with the interval; what was not reached is NaN, in the interval too.
        is_at_most: the fewest texts that were tried did.
        most_texts: that were tried.
        steps: spent where the line was reached; NaN where it was not.
        interval: what that of the scores is over.
        num_failed: trajectories that ended early.
    """

    target: str
    attack: str
    judge: str
    level: float
    line: Number
    is_there: bool
    texts: Estimate
    is_at_most: bool
    most_texts: int
    steps: Number
    interval: Interval
    num_failed: int

    @property
    def is_reached(self) -> bool:
        """Whether some number of texts that was tried did."""
        return not math.isnan(self.texts.mean)

    def describe(self) -> str:
        """The cost in words: `23 [15, 40]`, `at most 10 [10, 12]`, `not reached with 1,000`; ends that were not reached say so."""

        def write(value: float) -> str:
            return f"over {self.most_texts:,}" if math.isnan(value) else f"{value:,.0f}"

        low, high = write(self.texts.low), write(self.texts.high)
        if not self.is_reached:
            earliest = "" if math.isnan(self.texts.low) else f" [from {low}]"
            return f"not reached with {self.most_texts:,}{earliest}"
        return f"{'at most ' if self.is_at_most else ''}{write(self.texts.mean)} [{low}, {high}]"


@dataclass(frozen=True, slots=True)
class ForgettingVerdict:
    """Whether forgetting raised the cost over that of another model.

    Attributes:
        attack: `cheapest` compares the cheapest attack on either.
        level, judge: of the costs that were compared.
        text: the same in one line, for people.
    """

    target: str
    against: str
    attack: str
    level: float
    judge: str
    outcome: ForgettingOutcome
    text: str


@dataclass(frozen=True, slots=True)
class TextSource:
    """Where the bad texts are from, in words, and how many there are for the attacker and to measure him by."""

    source: str
    num_available: int
    num_held_out: int = 0


@dataclass(frozen=True)
class AttackResults:
    """The content of attack.json.

    Attributes:
        settings: the `AttackSuiteConfig`.
        threshold: score <= threshold is good.
        reference: the target whose bad mode is to be reached; None if there is none, and then no cost and no verdict.
    """

    settings: dict[str, JsonValue]
    sampling: dict[str, JsonValue]
    judges: list[Judge]
    threshold: float
    texts: TextSource
    notes: list[str]
    reference: str | None
    targets: list[AttackedModel]
    trajectories: list[Trajectory]
    best: list[Reached]
    rediscovery: list[RediscoveryCost] = field(default_factory=list)
    verdicts: list[ForgettingVerdict] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=lambda: list(MEASURES))

    @property
    def failed(self) -> list[Trajectory]:
        """Trajectories that ended early."""
        return [trajectory for trajectory in self.trajectories if trajectory.failed is not None]


def write_attack(folder: Path, results: AttackResults) -> None:
    """Write FOLDER/attack.json; the same results give the same bytes."""
    write_versioned(folder / ATTACK_FILE, results, ATTACK_VERSION)


def read_attack(folder: Path, run_id: str | None = None) -> AttackResults:
    """Read FOLDER/attack.json.

    Args:
        run_id: of a run that must be among the targets, or what one was made from; None does not ask.

    Raises:
        PHFError: there is none, it is damaged, of other runs, or of another format version.
    """
    path = folder / ATTACK_FILE
    if not path.is_file():
        raise PHFError(f"{path} does not exist; give a folder made by 'phf attack ... -o {folder}'")
    command = f"phf attack ... -o {folder}"
    results = read_versioned(path, AttackResults, ATTACK_VERSION, command)
    found = {target.run_id for target in results.targets}
    if run_id not in found:
        check_owner(path, next(iter(found), None), run_id, f"run '{command}' to make its own")
    return results
