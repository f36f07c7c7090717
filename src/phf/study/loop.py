"""`phf study`: run what is missing, keep what is measured, and write the page."""

import json
import shlex
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from phf.config.evaluate import list_asked, list_options
from phf.config.recipes import apply_overrides, read_recipe
from phf.errors import PHFError
from phf.files import Place
from phf.folders import lock_folder
from phf.records import Progress
from phf.study.collect import collect
from phf.study.contrasts import Verdict, judge_claims
from phf.study.page import write_page
from phf.study.plan import Plan, StudyRun, read_study
from phf.study.results import write_result
from phf.train.sweep import Call, GridCell, call_phf, prepare, run_local

STATE_FILE = "state.jsonl"
Say = Callable[[str], None]


@dataclass(frozen=True)
class StudyOutcome:
    """What a study has come to.

    Attributes:
        failures: why runs are not done, by their names.
    """

    plan: Plan
    verdicts: list[Verdict]
    page: Path
    failures: dict[str, str]


def run_study(
    study: Place,
    out: Place,
    *,
    workers: int = 1,
    wait: bool = False,
    say: Say = print,
    progress: Progress | None = None,
) -> StudyOutcome:
    """Do all that a study file asks for and is not done, as far as its hours reach, and write OUT/study.md with what is claimed.

    What is done stands in OUT/results/, a small file for each run, and is not done again, also where the runs' folders are not
    there: the results may be committed, and the study goes on elsewhere. A run that fails is listed and stops no other.

    Args:
        workers: runs at a time, one thread each.
        wait: for another process that writes into `out`, instead of an error.

    Raises:
        PHFError: see `read_study`, `Plan.create` and `judge_claims`; a command of `prepare` failed.
    """
    config, folder = read_study(study), Path(out)
    with lock_folder(folder, "studying into", wait=wait, say=say):
        plan = Plan.create(config, folder)
        judge_claims(config.claims, [])  # a contrast that cannot be read is said before hours go by
        for run in plan.cut:
            say(f"{run.id} is left out: {config.hours:g} hours do not reach so far")
        session = _Session(folder, State(folder / STATE_FILE), say)
        failures = session.work(plan, workers, progress) if plan.missing else {}
        plan = Plan.create(config, folder)
        verdicts = judge_claims(config.claims, [run.result for run in plan.runs if run.result is not None])
        return StudyOutcome(plan, verdicts, write_page(folder, config, plan, verdicts), failures)


class State:
    """OUT/state.jsonl: a line for each command that ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._lines: list[dict[str, Any]] = []
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            with suppress(ValueError):  # a kill cut it short
                self._lines.append(json.loads(line))
        if text and not text.endswith("\n"):
            with path.open("a") as file:
                file.write("\n")

    def add(self, run: str, command: str, seconds: float, failure: str | None) -> None:
        line = {"run": run, "command": command, "seconds": round(seconds, 1), "failure": failure}
        with self._lock:
            self._lines.append(line)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def seconds(self, run: str) -> float:
        """Of all its commands, of earlier sessions too."""
        with self._lock:
            return float(sum(line["seconds"] for line in self._lines if line["run"] == run))

    def has(self, command: str) -> bool:
        """Whether a command of `prepare` has ended well."""
        return any(
            line["command"] == command and line["failure"] is None and line["run"] == "prepare"
            for line in self._lines
        )


@dataclass
class _Session:
    """Runs side by side; one that reads another waits for it."""

    out: Path
    state: State
    say: Say
    _done: dict[str, threading.Event] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _preparing: threading.Lock = field(default_factory=threading.Lock)
    _checked: set[str] = field(default_factory=set)

    def work(self, plan: Plan, workers: int, progress: Progress | None) -> dict[str, str]:
        study, runs = plan.runs[0].study, plan.needed
        self._prepare(study.prepare, plan.runs[0])
        self.say(
            f"{len(runs)} of {len(plan.runs)} runs to do, about {plan.minutes_left / workers:.0f} minutes with {workers} at a time"
        )
        self._done = {run.id: threading.Event() for run in runs}
        left = plan.minutes_left
        for done, (name, failure) in enumerate(
            run_local({run.id: partial(self._do, run) for run in runs}, workers), 1
        ):
            left -= plan.minutes[name]
            self.say(
                f"{name}: {failure or f'done in {self.state.seconds(name) / 60:.1f} min'}; about {left / workers:.0f} minutes left"
            )
            if progress is not None:
                progress("study", done, len(runs))
        return self._failed

    def _prepare(self, commands: Sequence[str], run: StudyRun) -> None:
        for command in commands:
            if self.state.has(command):
                continue
            self.say(f"phf {command}")
            begun = perf_counter()
            ((_, failure),) = run_local({command: partial(call_phf, shlex.split(run.fill(command)))}, 1)
            self.state.add("prepare", command, perf_counter() - begun, failure)
            if failure is not None:
                raise PHFError(f"'phf {command}' failed: {failure}")

    def _do(self, run: StudyRun, call: Call) -> str | None:
        """Train, or run the arm's command, then evaluate, then keep the numbers; why not, or None."""
        try:
            for need in run.arm.needs:
                if (event := self._done.get(own := f"{need}-seed{run.seed}")) is not None:
                    event.wait()
                if own in self._failed:
                    raise PHFError(f"it reads {own}, which failed")
            for command in self._list_commands(run):
                begun = perf_counter()
                failure = call(command)
                self.state.add(run.id, shlex.join(command), perf_counter() - begun, failure)
                if failure is not None:
                    raise PHFError(failure)
            if run.result is None:
                write_result(run.result_path, collect(run, self.state.seconds(run.id)))
        except PHFError as error:
            self._failed[run.id] = str(error)
            return str(error)
        finally:
            self._done[run.id].set()
        return None

    def _list_commands(self, run: StudyRun) -> list[list[str]]:
        if run.arm.command is not None:
            return [shlex.split(run.fill(run.arm.command))]
        if run.arm.finetune is not None:
            base: dict[str, object] = {"finetune": run.fill(run.arm.finetune)}
        else:
            base = apply_overrides(read_recipe(run.study.recipe), run.fill_settings(run.study.set))
        cell = GridCell((*run.fill_settings(run.arm.set), f"seed={run.seed}"), run.folder)
        with self._preparing:  # it opens data and tries a model, in this very process
            training = prepare(cell, base, self._checked)
        evaluation = [
            "evaluate",
            str(run.folder),
            *list_options(list_asked(run.evaluation.model_dump(mode="json"))),
            "--quiet",
        ]
        is_base_of_others = run.result is not None  # its numbers are here, its folder is not
        return [*([training] if training else []), *([] if is_base_of_others else [evaluation])]
