"""What a study runs, in which order, and how long it takes: before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from phf.config.evaluate import EvaluateConfig
from phf.config.recipes import apply_overrides, read_recipe
from phf.config.study import PLACE, Arm, StudyConfig
from phf.config.train import parse
from phf.errors import PHFError
from phf.files import Place, hash_json
from phf.study.results import RunResults, read_result


def read_study(path: Place) -> StudyConfig:
    """A study file.

    Raises:
        PHFError: it cannot be read; a key is not known or a value out of range (names it).
    """
    return parse(StudyConfig, read_recipe(path), f"study {path}")


@dataclass(frozen=True)
class StudyRun:
    """One arm with one seed.

    Attributes:
        out: the study's folder.
    """

    name: str
    arm: Arm
    seed: int
    study: StudyConfig
    out: Path

    @property
    def id(self) -> str:
        """Names its folder and its results."""
        return f"{self.name}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """The run, or what a command made."""
        return self.out / "runs" / self.id

    @property
    def result_path(self) -> Path:
        """Its small results, which are all that the page needs."""
        return self.out / "results" / f"{self.id}.json"

    @property
    def evaluation(self) -> EvaluateConfig:
        """What is measured of it."""
        shared = self.study.evaluate.model_dump(mode="json")
        return parse(
            EvaluateConfig,
            apply_overrides(shared, self.fill_settings(self.arm.evaluate)),
            f"arm {self.name}: evaluate",
        )

    @property
    def settings_hash(self) -> str:
        """Of all that decides its numbers."""
        own = self.arm.model_dump(mode="json", include={"set", "finetune", "command", "evaluate"})
        shared = self.study.model_dump(mode="json", include={"recipe", "set", "evaluate", "prepare"})
        return hash_json([own, shared, self.seed, [self.study.arms[name].set for name in self.arm.needs]])

    def fill(self, text: str) -> str:
        """Text with the folders that it names."""
        known = {
            "out": self.out,
            "own": self.folder,
            **{name: self.out / "runs" / f"{name}-seed{self.seed}" for name in self.arm.needs},
        }
        return PLACE.sub(lambda found: str(known.get(found[1], found[0])), text)

    def fill_settings(self, settings: Mapping[str, object]) -> list[str]:
        """Overrides `key=value`."""
        dumped = {
            key: yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix("\n...\n").strip()
            for key, value in settings.items()
        }
        return [self.fill(f"{key}={value}") for key, value in dumped.items()]

    @cached_property
    def result(self) -> RunResults | None:
        """What is there of it; None before it has run.

        Raises:
            PHFError: it is damaged, or of other settings.
        """
        if not self.result_path.exists():
            return None
        found = read_result(self.result_path)
        if found.settings_hash != self.settings_hash:
            raise PHFError(
                f"{self.result_path} is of other settings than {self.name} has in the study file; delete it, or name the arm otherwise"
            )
        return found


@dataclass(frozen=True)
class Plan:
    """All runs of a study.

    Attributes:
        runs: in the order in which they begin.
        cut: those that do not fit into `hours`.
        minutes: of one core, for each run that is yet to be done; what was measured of another seed, else what the file says.
    """

    runs: Sequence[StudyRun]
    cut: Sequence[StudyRun]
    minutes: Mapping[str, float]

    @classmethod
    def create(cls, study: StudyConfig, out: Path) -> "Plan":
        """Arms in the order of the file, each with all its seeds.

        Raises:
            PHFError: an arm reads the run of a seed that its own arm has not; results are damaged, or of other settings.
        """
        runs = [
            StudyRun(name, arm, seed, study, out)
            for name, arm in study.arms.items()
            for seed in arm.seeds or study.seeds
        ]
        known = {run.id for run in runs}
        for run in runs:
            for need in run.arm.needs:
                if f"{need}-seed{run.seed}" not in known:
                    raise PHFError(
                        f"arm {run.name} reads {{{need}}} with seed {run.seed}, which {need} does not have; give it that seed"
                    )
        measured: dict[str, list[float]] = {}
        for run in runs:
            if run.result is not None:
                measured.setdefault(run.name, []).append(run.result.seconds / 60)
        minutes = {
            run.id: sum(own) / len(own) if (own := measured.get(run.name)) else run.arm.minutes
            for run in runs
        }
        fitting, used = [], 0.0
        for run in runs:
            used += minutes[run.id] if run.result is None else run.result.seconds / 60
            if used <= 60 * study.hours:
                fitting.append(run)
        return cls(fitting, [run for run in runs if run not in fitting], minutes)

    @property
    def missing(self) -> list[StudyRun]:
        """Runs that have no results yet."""
        return [run for run in self.runs if run.result is None]

    @property
    def needed(self) -> list[StudyRun]:
        """The missing, and before them those that they read and whose folders are gone: only their results were carried here."""
        by_id, found = {run.id: run for run in self.runs}, {}

        def add(run: StudyRun) -> None:
            for need in run.arm.needs:
                other = by_id.get(f"{need}-seed{run.seed}")
                if other is not None and not other.folder.exists():
                    add(other)
            found[run.id] = run

        for run in self.missing:
            add(run)
        return [run for run in self.runs if run.id in found]

    @property
    def minutes_left(self) -> float:
        """Of one core."""
        return sum(self.minutes[run.id] for run in self.needed)
