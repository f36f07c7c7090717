"""Ends every command that writes with SIGKILL, runs it again, and compares all that it leaves with an undisturbed run's.

By hand, 100 kills: `python tests/kills.py` (`--num 20`, `--seed 1`, `--stages train,release`). A case is a fork of this process,
which has imported what the stage needs, and ends at one of the stage's changes of the disk, drawn by the seed, or at a
moment drawn from its own duration. OTHER (files have other content), LEFTOVER, NOT FINISHED and TRACEBACK are faults.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from damage import ATTACK, DOSES, EVALUATE, REWARD, in_copy, make_place, run_command
from golden_runs import write_mails

from phf.config.train import load_train_config
from phf.errors import PHFError
from phf.processes import Lifeline
from phf.train import loop, sweep

OUTCOMES = ("same", "OTHER", "LEFTOVER", "NOT FINISHED", "TRACEBACK")
SEEDS = "runs/seeds"


@dataclass(frozen=True)
class Stage:
    """A command, and what it has made already in the place and is removed first."""

    line: str
    made: tuple[str, ...] = ()


STAGES = {
    "corpus build": Stage("corpus build mails.jsonl -o new --validation-fraction 0.2"),
    "corpus balance": Stage("corpus balance corpus -r pii -s lines --threshold 0 -o new"),
    "corpus export": Stage("corpus export corpus -o new --format dolma -r pii -s lines"),
    "corpus import": Stage("corpus import exported -o new --format parquet"),
    "annotate": Stage(
        "annotate corpus --reward-model pii --segments lines --workers 2", ("corpus/annotations",)
    ),
    "tokenize": Stage("tokenize corpus --tokenizer train:320 --segments lines --workers 1", ("corpus/tokens",)),
    "label": Stage("label --import labelled.json -o new.jsonl --bad bad --good good"),
    "train": Stage("train tiny.yaml -o runs/new"),
    "resume": Stage("train --resume runs/a", ("runs/a/checkpoints/step-000020",)),
    "sweep": Stage(f"sweep tiny.yaml seed=0,1 -o {SEEDS}"),
    "evaluate": Stage(EVALUATE.format(run="runs/a"), ("runs/a/evaluation", "runs/a/evaluation.json", "runs/a/samples.parquet", "runs/a/items.parquet")),
    "report": Stage("report runs/a runs/b -o new.html"),
    "release": Stage("release runs/a -o release --forget block:directions=1 --forget delete"),
    "doses": Stage(DOSES, ("runs/a/doses", "doses.json", "doses.svg", "doses.png")),
    "attack": Stage(ATTACK, ("attack",)),
    "online": Stage(
        "online runs/a -o loop --rounds 2 --steps 2 --control shuffled --num-samples 12 --max-new-tokens 8 --set num_bootstrap=100"
    ),
    "reward train": Stage(REWARD, ("rewards",)),
    "reward distill": Stage("reward distill --teacher pii --corpus large -s lines -o new"),
    "reward check": Stage("reward check rewards -o new.json"),
}  # fmt: skip


def make_kill_place(folder: Path) -> None:
    """The place of the damages, and what these stages read beside it."""
    make_place(folder, has_other=False)
    with contextlib.chdir(folder):
        config = json.loads(Path("runs/a/run.json").read_text())["config"]
        Path("tiny.yaml").write_text(yaml.safe_dump({**config, "validate_every": 10}))
        write_answers(Path("labelled.json"))
        write_mails(Path("large.jsonl"), 440)
        for line in (
            "corpus build large.jsonl -o large",
            "corpus export corpus -o exported --format parquet -r pii -s lines",
        ):
            output, error = run_command(line)
            assert error is None, (line, output, error)


def write_answers(path: Path) -> None:
    """An export of Label Studio."""
    tasks = [
        {
            "id": number,
            "data": {"text": f"text {number}"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": [choice]}}]}],
        }
        for number, choice in enumerate(["good", "bad"] * 3)
    ]
    path.write_text(json.dumps(tasks))


# --- a command in a process of its own ----------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """What a command printed, and what it ended with; how often it changed the disk, for how long it ran, what it imported."""

    output: str
    error: str | None
    is_traceback: bool
    num_changes: int
    seconds: float
    modules: list[str] = field(repr=False)


def watch_changes(reached: Callable[[int], None]) -> Callable[[], int]:
    """Call `reached` with 1, 2, ... before each change of the disk that Python sees; gives what counts them."""
    count = 0
    events = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}
    pid = os.getpid()

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if os.getpid() != pid or not (event in events or (event == "open" and is_write(args))):
            return
        count += 1
        reached(count)

    sys.addaudithook(hook)
    return lambda: count


def is_write(args: tuple[object, ...]) -> bool:
    """Whether an `open` is to write."""
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def run_apart(line: str, *, at_change: int = 0, after: float | None = None) -> End | None:
    """Run a command in a fork; None where it was killed, before a change of the disk or after some seconds."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            fork = multiprocessing.get_context("fork")
            multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]  # what spawns would import all
            counted = watch_changes(
                lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == at_change else None
            )
            sweep.run_command = train_here
            began = time.monotonic()
            output, error = run_command(line)
            is_traceback = not (error is None or isinstance(error, PHFError | SystemExit | KeyboardInterrupt))
            end = End(
                output,
                None if error is None else f"{type(error).__name__}: {error}",
                is_traceback,
                counted(),
                time.monotonic() - began,
                sorted(sys.modules),
            )
            theirs.send(end)
        finally:
            os._exit(0)
    theirs.close()
    if after is not None and not ours.poll(after):
        os.kill(pid, signal.SIGKILL)
    try:
        end = ours.recv()
    except EOFError:
        end = None
    os.waitpid(pid, 0)
    return end


def train_here(
    arguments: list[str],
    environment: dict[str, str],
    folder: str | None = None,
    lifeline: Lifeline | None = None,
) -> str | None:
    """A training of a sweep in the sweep's own process, where it is killed with it: one that is started afresh imports for a minute.
    That its trainings end with a killed sweep is tested elsewhere."""
    try:
        if arguments[1] == "--resume":
            loop.resume(arguments[2])
        else:
            loop.train(load_train_config(arguments[1], []), arguments[3])
    except PHFError as error:
        return str(error)
    return None


def import_all(modules: list[str]) -> None:
    """Import what a command has imported, so that its forks need not."""
    for name in modules:
        if name not in sys.modules and not name.startswith("_"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


# --- what is compared ---------------------------------------------------------------------------------------------


def read_tree() -> dict[str, bytes]:
    """Every file below the current folder, which some of them name."""
    here = str(Path.cwd()).encode()
    return {
        str(path): path.read_bytes().replace(here, b".")
        for path in sorted(Path().rglob("*"))
        if path.is_file()
    }


def blur(data: bytes) -> bytes:
    """A text without its numbers and hashes, its lines each once: for what holds times."""
    lines = re.sub(rb"[0-9a-f]{8,}|-?\d[\d.e+-]*", b"#", data).splitlines()
    return hashlib.sha256(b"\n".join(sorted(set(lines)))).digest()


@dataclass(frozen=True)
class Whole:
    """What a stage leaves undisturbed, the files in which two undisturbed ones differ, and what it takes."""

    tree: dict[str, bytes]
    timed: set[str]
    num_changes: int
    seconds: float


def begin(stage: Stage) -> None:
    """Remove what the stage is to make."""
    for name in stage.made:
        path = Path(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def run_whole(place: Path, stage: Stage) -> Whole:
    """Run a stage twice, undisturbed."""
    trees = []
    for _ in range(2):
        with in_copy(place):
            begin(stage)
            end = run_apart(stage.line)
            assert end is not None, stage
            assert end.error is None, (stage, end)
            import_all(end.modules)
            trees.append(read_tree())
    first, second = trees
    assert first.keys() == second.keys(), (stage, first.keys() ^ second.keys())
    timed = {name for name in first if first[name] != second[name]}
    return Whole(second, timed, end.num_changes, end.seconds)


def draw_moment(whole: Whole, rng: random.Random) -> int | float:
    """When to kill: before which change of the disk, or, one time in three, after how many seconds."""
    return (
        rng.uniform(0, whole.seconds) if rng.random() < 1 / 3 else rng.randint(1, max(whole.num_changes, 1))
    )


def kill_stage(place: Path, stage: Stage, whole: Whole, moment: int | float) -> tuple[str, str]:
    """Kill the stage once, run it again: what came of it, and details."""
    with in_copy(place):
        begin(stage)
        if isinstance(moment, int):
            where = f"before change {moment} of {whole.num_changes}"
            assert run_apart(stage.line, at_change=moment) is None, stage
        else:
            where = f"after {moment:.2f} of {whole.seconds:.2f} s"
            run_apart(stage.line, after=moment)
        end = run_apart(stage.line)
        assert end is not None
        if end.is_traceback:
            return "TRACEBACK", f"{where}: {end.error}"
        if end.error is not None:
            return "NOT FINISHED", f"{where}: {end.error}"
        outcome, names = compare(read_tree(), whole)
        return outcome, f"{where}: {names}"


def compare(tree: dict[str, bytes], whole: Whole) -> tuple[str, str]:
    """The outcome of a tree, and the files that decide it."""
    if more := sorted(tree.keys() - whole.tree.keys()):
        return "LEFTOVER", str(more)
    other = [
        name
        for name, data in whole.tree.items()
        if name not in tree or (blur(tree[name]) != blur(data) if name in whole.timed else tree[name] != data)
    ]
    return ("OTHER", str(other)) if other else ("same", "")


def run_kills(
    place: Path, names: list[str], seed: int, say: Callable[[str], None]
) -> Counter[tuple[str, str]]:
    """Counts by (stage, outcome) of one kill for each name; faults, and a row for each stage, are told as they are found."""
    counts: Counter[tuple[str, str]] = Counter()
    for name in dict.fromkeys(names):
        whole = run_whole(place, STAGES[name])
        for number in range(names.count(name)):
            moment = draw_moment(whole, random.Random(f"{name} {number} {seed}"))
            outcome, detail = kill_stage(place, STAGES[name], whole, moment)
            counts[name, outcome] += 1
            if outcome != "same":
                say(f"{outcome}: {name}: {detail}")
        say(f"{name:16}" + "".join(f"{counts[name, outcome]:14}" for outcome in OUTCOMES))
    return counts


def main() -> None:
    """Run the driver by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default=",".join(STAGES))
    given = parser.parse_args()
    stages = given.stages.split(",")
    names = [stages[number % len(stages)] for number in range(given.num)]
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("fork").Process(target=make_kill_place, args=(Path(folder),))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        print(f"{'stage':16}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES), flush=True)
        counts = run_kills(Path(folder), names, given.seed, lambda line: print(line, flush=True))
    sys.exit(any(outcome != "same" for _, outcome in counts))


if __name__ == "__main__":
    main()
