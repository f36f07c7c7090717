"""How long training stands still for a checkpoint: waiting until it is written, against writing beside training.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint.py --preset 30M --steps 24

One process, then two gloo ranks with fsdp, each in processes of their own, both ways in turn. Prints for each the seconds in
which no step is taken, per save; the seconds of a step while a checkpoint is written and otherwise; and the peak memory
of a process. The last save, which every run waits for, does not count.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

from phf.annotate.annotate import annotate
from phf.config.recipes import apply_overrides, read_recipe
from phf.config.train import TrainConfig, parse
from phf.corpus.store import build_corpus
from phf.tokens.tokens import tokenize
from phf.train import loop
from phf.train.checkpoint import Checkpointer, TrainState

SAVES = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="30M")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rank", nargs=3, metavar=("CONFIG", "RUN", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure_rank(*arguments.rank)
        return
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(arguments, Path(folder))
        for layout, size in (("one process", 1), ("two ranks, fsdp", 2)):
            for way in ("waiting", "beside"):
                name = f"{size}-{way}"
                for rank, line in enumerate(start(config, Path(folder) / name, way, size)):
                    print(f"{layout}, {way}, rank {rank}: {line}", flush=True)


def prepare(arguments: argparse.Namespace, folder: Path) -> Path:
    """Make the corpus; the config of all runs, as a file."""
    corpus = build_corpus(["fortunes"], folder / "corpus")
    annotate(corpus, "toxicity-svm", "sentences")
    tokenize(corpus, f"train:{arguments.vocabulary}", "sentences")
    overrides = [
        f"corpus={corpus.path}",
        f"tokenizer=train:{arguments.vocabulary}",
        "segments=sentences",
        "objective.kind=mle",
        "optim.name=adamw",
        "optim.batch_blocks=4",
        f"model.preset={arguments.preset}",
        f"data.context={arguments.context}",
        f"tokens={arguments.steps * 4 * arguments.context}",
        "validate_every=0",
        f"checkpoint_every={arguments.steps // (SAVES + 1)}",
        "keep_checkpoints=1",
        "data_parallel=fsdp",
        "precision=fp32",
    ]
    path = folder / "config.json"
    path.write_text(json.dumps(apply_overrides(read_recipe("demo"), overrides)))
    return path


def start(config: Path, run: Path, way: str, size: int) -> list[str]:
    """Train in one or several processes; the line of each."""
    launch = [sys.executable]
    if size > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    command = [*launch, __file__, "--rank", str(config), str(run), way]
    subprocess.run(command, check=True)
    return [run.with_name(f"{run.name}-rank{rank}").read_text() for rank in range(size)]


def measure_rank(config_path: str, run: str, way: str) -> None:
    """One rank's training, with a clock around its saves; on the first rank also around its steps."""
    config = parse(TrainConfig, json.loads(Path(config_path).read_text()), "benchmark")
    pauses: list[float] = []
    steps: dict[bool, list[float]] = {True: [], False: []}
    writes: list[Future[None]] = []
    last, is_beside = time.perf_counter(), False
    save = Checkpointer.save

    def timed_save(self: Checkpointer, state: TrainState) -> None:
        nonlocal last, is_beside
        begin = time.perf_counter()
        save(self, state)
        if self._writing is not None:
            writes.append(self._writing)
        if way == "waiting":
            self.wait()
        last, is_beside = time.perf_counter(), way == "beside"
        pauses.append(last - begin)

    def time_step(*_: object) -> None:
        nonlocal last, is_beside
        now = time.perf_counter()
        steps[is_beside].append(now - last)
        last, is_beside = now, bool(writes) and not writes[-1].done()

    Checkpointer.save = timed_save  # type: ignore[method-assign]
    loop.train(config, run, say=lambda line: None, progress=time_step)
    rank = os.environ.get("RANK", "0")
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    line = f"{', '.join(f'{pause:.2f}' for pause in pauses[:-1])} s per save, peak {megabytes:,.0f} MB"
    for beside, seconds in steps.items():
        if seconds:
            what = "while one is written" if beside else "otherwise"
            line += f"; a step {what} {statistics.median(seconds):.2f} s"
    Path(f"{run}-rank{rank}").write_text(line)


if __name__ == "__main__":
    main()
