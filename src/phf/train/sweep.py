"""A grid of runs over shared annotations and tokens; one folder per run, what is finished is not trained again."""

import importlib
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeVar, assert_never

import yaml

from phf.config.finetune import FinetuneConfig
from phf.config.recipes import apply_overrides, parse_yaml, read_recipe
from phf.config.train import TrainConfig, parse
from phf.errors import PHFError
from phf.files import Place, as_list, hash_json, write_bytes
from phf.folders import lock_folder
from phf.intervals import pooled_t
from phf.processes import Lifeline
from phf.records import Estimate, Progress
from phf.results import FINETUNE_FILE
from phf.train.data import open_data
from phf.train.metrics import Line
from phf.train.plan import check_model
from phf.train.run import Run
from phf.train.start import parse_place, resolve_start

Launcher = Literal["local", "slurm", "ray"]
Say = Callable[[str], None]
Call = Callable[[list[str]], str | None]
Key = TypeVar("Key", bound=Hashable)
MAX_NAME = 120


@dataclass(frozen=True, slots=True)
class GridCell:
    """One run of a sweep.

    Attributes:
        overrides: the swept keys with this run's values, `key=value`.
        folder: the run folder, named by them.
    """

    overrides: tuple[str, ...]
    folder: Path

    @property
    def recipe(self) -> Path:
        """The whole config as a recipe, so that a person, a job or a task can start this run alone; of a finetuning, what it was begun with."""
        return self.folder.parent / "recipes" / f"{self.folder.name}.yaml"


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """How a run of a sweep ended; `failure` is the line that says why it is not finished, or None."""

    cell: GridCell
    failure: str | None


def parse_grid(overrides: list[str]) -> tuple[list[str], list[list[str]]]:
    """Overrides with one value, and for every swept key (`key=[a,b]`, `key=a,b`) its overrides, one per value.

    Raises:
        PHFError: an override is not `key=value`, or a list is empty.
    """
    fixed, swept = [], []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise PHFError(f"'{override}' is not of the form key=value or key=[a,b], such as seed=0,1,2")
        values = _split_values(override, text)
        if values is None:
            fixed.append(override)
        else:
            swept.append([f"{key}={value}" for value in values])
    return fixed, swept


def _split_values(override: str, text: str) -> list[str] | None:
    if text.startswith("["):
        values = parse_yaml(text, f"the list of '{override}'")
        if not isinstance(values, list) or not values:
            raise PHFError(f"the list of '{override}' is empty; give one value or more")
        return [_dump(value) for value in values]
    return text.split(",") if "," in text and not text.startswith(("{", "'", '"')) else None


def _dump(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def read_grids(recipe: Place, overrides: Sequence[str]) -> tuple[dict[str, object], list[list[str]]]:
    """A recipe without its `sweep`, and for each group of lists under it what that and the overrides say; an override takes the place of
    its key's list, so that folders keep their names.

    Raises:
        PHFError: see `read_recipe`; `sweep` is neither a group of keys nor a list of such groups.
    """
    base = read_recipe(recipe)
    swept = base.pop("sweep", {})
    groups = swept if isinstance(swept, list) and swept else [swept]
    if not all(isinstance(group, dict) for group in groups):
        raise PHFError(
            f"recipe {recipe}: sweep={swept!r} is no group of keys, and no list of groups; give lists by key, such as seed: [0, 1]"
        )
    return base, [_override_lists(group, overrides) for group in groups]


def _override_lists(group: dict[str, object], overrides: Sequence[str]) -> list[str]:
    own = {key: f"{key}={_dump(values)}" for key, values in group.items()}
    rest = []
    for override in overrides:
        key = override.partition("=")[0]
        if key in own:
            own[key] = override
        else:
            rest.append(override)
    return [*own.values(), *rest]


def plan_sweep(overrides: list[str], out: Path) -> tuple[list[str], list[GridCell]]:
    """The overrides that all runs share, and the grid, the last key fastest.

    Raises:
        PHFError: see `parse_grid`; no key has several values.
    """
    fixed, swept = parse_grid(overrides)
    if not swept:
        raise PHFError(
            "nothing to sweep: give a key several values, such as seed=0,1,2 or objective.kind=[mle,rwr], or the recipe a group "
            "of lists, such as 'sweep: {seed: [0, 1, 2]}'"
        )
    cells = [
        GridCell(combination, out / _folder_name(combination)) for combination in itertools.product(*swept)
    ]
    return fixed, cells


def _folder_name(overrides: tuple[str, ...]) -> str:
    name = "_".join(overrides)
    safe = "".join(c if c.isalnum() or c in "=._-+" else "-" for c in name)
    return safe if safe == name and len(name) <= MAX_NAME else f"{safe[:MAX_NAME]}-{hash_json(name)[:8]}"


def run_sweep(
    recipe: Place,
    overrides: str | Sequence[str],
    out: Place,
    *,
    workers: int = 1,
    launcher: Launcher = "local",
    wait: bool = False,
    say: Say = print,
    progress: Progress | None = None,
) -> list[CellOutcome]:
    """Train every run of a grid, or go on with it; a run that fails is listed and does not stop the others.

    Args:
        recipe: of `phf train`, or with `finetune: RUN` of `phf finetune`; lists under `sweep` are part of the grid, or
            of each of several, one after the other, where it is a list of such groups.
        workers: runs at a time; for `slurm`, jobs at a time.
        launcher: `local` processes with one thread each (and a GPU each, if there are any), `slurm` jobs, `ray` tasks. They
            save and stop when this process ends, however it does.
        wait: for other processes that write into `out` or one of its runs, instead of an error.

    Raises:
        PHFError: see `plan_sweep`, `read_recipe`; the launcher's package is not installed; another process writes into `out`.
    """
    base, grids = read_grids(recipe, as_list(overrides))
    bases: dict[GridCell, dict[str, object]] = {}
    for given in grids:
        fixed, cells = plan_sweep(given, Path(out))
        own = apply_overrides(base, fixed)
        for cell in cells:
            if bases.setdefault(cell, own) != own:
                raise PHFError(
                    f"two groups of sweep both make {cell.folder.name}; write what tells them apart as a list, such as "
                    "objective.kind: [mle]"
                )
    with lock_folder(Path(out), "sweeping into", wait=wait, say=say):
        return _run_cells(bases, workers, launcher, wait, say, progress)


def _run_cells(
    cells: Mapping[GridCell, dict[str, object]],
    workers: int,
    launcher: Launcher,
    wait: bool,
    say: Say,
    progress: Progress | None,
) -> list[CellOutcome]:
    outcomes: dict[GridCell, CellOutcome] = {}
    commands: dict[GridCell, list[str]] = {}
    checked: set[str] = set()
    for cell, base in cells.items():
        try:
            if (command := prepare(cell, base, checked)) is None:
                outcomes[cell] = CellOutcome(cell, None)
            else:
                commands[cell] = [*command, "--wait"] if wait else command
        except PHFError as error:
            outcomes[cell] = CellOutcome(cell, str(error))
            say(f"{cell.folder.name} cannot be trained: {error}")
    say(
        f"{len(cells)} runs: {len(commands)} to train, {sum(o.failure is None for o in outcomes.values())} finished before"
    )
    for cell, failure in _launch(launcher, commands, workers):
        if failure is not None:
            say(f"{cell.folder.name} failed: {failure}")
        elif not Run.open(cell.folder).is_finished:
            failure = "it ended before its last step"
        outcomes[cell] = CellOutcome(cell, failure)
        if progress is not None:
            progress("sweep", len(outcomes), len(cells))
    return [outcomes[cell] for cell in cells]


@dataclass(frozen=True, slots=True)
class PooledRuns:
    """The runs of a sweep that differ in their seed alone: their final validation losses, pooled (Student's t)."""

    overrides: tuple[str, ...]
    num_finished: int
    num_failed: int
    losses: dict[str, Estimate]


LOSSES = ("nll_all", "nll_good", "nll_bad")


def summarize(outcomes: list[CellOutcome]) -> list[PooledRuns]:
    """A row per setting, seeds pooled, in the order of the grid."""
    groups: dict[tuple[str, ...], list[CellOutcome]] = {}
    for outcome in outcomes:
        setting = tuple(o for o in outcome.cell.overrides if not o.startswith("seed="))
        groups.setdefault(setting, []).append(outcome)
    rows = []
    for setting, members in groups.items():
        finished = [outcome.cell for outcome in members if outcome.failure is None]
        last = [_last_validation(cell) for cell in finished]
        losses = {
            name: pooled_t([float("nan") if line.get(name) is None else line[name] for line in last])
            for name in LOSSES
        }
        rows.append(PooledRuns(setting, len(finished), len(members) - len(finished), losses))
    return rows


def _last_validation(cell: GridCell) -> Line:
    return Run.open(cell.folder).read_last_validation() or {}


def prepare(cell: GridCell, base: dict[str, object], checked: set[str]) -> list[str] | None:
    """The arguments of `phf` that train the run or go on with it; None if it is finished.

    Args:
        checked: settings of models that were tried; this run's are added.
    """
    value = apply_overrides(base, list(cell.overrides))
    if "finetune" in value:
        return _prepare_finetuning(cell, value)
    config = parse(TrainConfig, value, "recipe")
    if (cell.folder / "run.json").exists():
        run = Run.open(cell.folder)
        run.check_config(config)
        return None if run.is_finished else ["train", "--resume", str(cell.folder)]
    # What cannot be trained fails here, in the words of its error, before hours go into the others.
    data = open_data(config, to_train=True)
    if config.start is not None:
        resolve_start(config.start, data)
    model = hash_json(
        [config.model.model_dump(mode="json"), config.data.model_dump(mode="json"), config.tokenizer]
    )
    if model not in checked:
        check_model(data)
        checked.add(model)
    write_bytes(cell.recipe, yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)).encode())
    return ["train", str(cell.recipe), "-o", str(cell.folder)]


def _prepare_finetuning(cell: GridCell, value: dict[str, object]) -> list[str] | None:
    """The same of a run of `phf finetune`, which goes on by itself."""
    settings = {key: own for key, own in value.items() if key != "finetune"}
    parse(FinetuneConfig, settings, "recipe")
    place, step = parse_place(str(value["finetune"]))
    Run.open(place).resolve_step(step)
    recipe = yaml.safe_dump(value)
    if (cell.folder / "run.json").exists():
        if not cell.recipe.exists() or cell.recipe.read_text(encoding="utf-8") != recipe:
            raise PHFError(
                f"{cell.folder} was finetuned with other settings; choose another -o, or delete it"
            )
        if (cell.folder / FINETUNE_FILE).exists() and Run.open(cell.folder).is_finished:
            return None
    write_bytes(cell.recipe, recipe.encode())
    options = [f"--set={key}={json.dumps(own, ensure_ascii=False)}" for key, own in settings.items()]
    return ["finetune", str(value["finetune"]), "-o", str(cell.folder), *options]


def run_command(
    arguments: list[str],
    environment: dict[str, str],
    folder: str | None = None,
    lifeline: Lifeline | None = None,
) -> str | None:
    """Run `phf ARGUMENTS` in a process of its own, which ends with this one; its last line of stderr if it failed.

    Args:
        folder: where it runs, as relative paths mean it; a worker of a cluster was started somewhere else.
        lifeline: it stops when this is cut.
    """
    with ExitStack() as own:
        lifeline = lifeline or own.enter_context(Lifeline())
        ended = subprocess.run(
            [sys.executable, "-m", "phf", *arguments],
            cwd=folder,
            env={**os.environ, **environment, **lifeline.environment},
            pass_fds=[lifeline.handle],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
    return lines[-1].removeprefix("error: ")


def _launch(
    launcher: Launcher, commands: dict[GridCell, list[str]], workers: int
) -> Iterator[tuple[GridCell, str | None]]:
    """Each run with why it failed, or None, in the order in which they end."""
    match launcher:
        case "local":
            tasks = {cell: partial(call_phf, arguments) for cell, arguments in commands.items()}
            yield from run_local(tasks, workers)
        case "slurm":
            yield from _launch_slurm(commands, workers)
        case "ray":
            yield from _launch_ray(commands)
        case _:
            assert_never(launcher)


def call_phf(arguments: list[str], call: Call) -> str | None:
    """The task of `run_local` that is one command."""
    return call(arguments)


def run_local(
    tasks: Mapping[Key, Callable[[Call], str | None]], workers: int
) -> Iterator[tuple[Key, str | None]]:
    """Run tasks side by side, each of which calls `phf` in processes with one thread (and a GPU each, if there are any): its name with why
    it failed, or None, in the order in which they end. The processes save and stop when this one ends, however it does.

    Args:
        tasks: are given a function that runs `phf ARGUMENTS` and returns why it failed.
    """
    import torch

    slots: SimpleQueue[dict[str, str]] = SimpleQueue()
    for index in range(workers):
        environment = {"OMP_NUM_THREADS": "1"}
        if torch.cuda.is_available():
            environment["CUDA_VISIBLE_DEVICES"] = str(index % torch.cuda.device_count())
        slots.put(environment)

    def run(task: Callable[[Call], str | None]) -> str | None:
        slot = slots.get()
        try:
            return task(lambda arguments: run_command(arguments, slot, None, lifeline))
        finally:
            slots.put(slot)

    with Lifeline() as lifeline, ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(run, task): name for name, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            lifeline.cut()  # and then wait until all have saved
            raise


def _launch_slurm(commands: dict[GridCell, list[str]], workers: int) -> Iterator[tuple[GridCell, str | None]]:
    try:
        submitit: Any = importlib.import_module("submitit")
    except ImportError:
        raise PHFError(
            "launcher slurm needs submitit; 'pip install phf[slurm]', or take --launcher local"
        ) from None
    if not commands:
        return
    folder = next(iter(commands)).folder.parent / "jobs"
    try:
        # Without the name, it would start all jobs at once on a machine without Slurm.
        executor = submitit.AutoExecutor(folder=str(folder), cluster="slurm")
    except RuntimeError:
        raise PHFError(
            "launcher slurm finds no Slurm here (no srun); start the sweep where jobs are submitted, or take "
            "--launcher local"
        ) from None
    executor.update_parameters(name="phf", slurm_array_parallelism=workers)
    with executor.batch():
        jobs = {
            cell: executor.submit(run_command, arguments, {}, str(Path.cwd()))
            for cell, arguments in commands.items()
        }
    for cell, job in jobs.items():
        error = job.exception()
        yield (
            cell,
            job.result() if error is None else f"job {job.job_id}: {str(error).strip().splitlines()[-1]}",
        )


def _launch_ray(commands: dict[GridCell, list[str]]) -> Iterator[tuple[GridCell, str | None]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default, else it warns
    try:
        import ray
    except ImportError:
        raise PHFError("launcher ray needs ray; 'pip install phf[ray]', or take --launcher local") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise PHFError(
                f"Ray does not start: {reason}; see 'ray status', or unset RAY_ADDRESS to start one here"
            ) from None
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = 1 if resources.get("GPU", 0) > 0 else 0
        task: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=2)(run_command)
        place = ({"OMP_NUM_THREADS": "1"}, str(Path.cwd()))
        cells = {task.remote(arguments, *place): cell for cell, arguments in commands.items()}
        waiting = list(cells)
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                yield cells[done], ray.get(done)
            except ray.exceptions.RayError as error:
                yield cells[done], str(error).strip().splitlines()[-1]
    finally:
        if is_ours:
            ray.shutdown()
