"""Two trainings side by side against one after the other, on a quiet machine and on a busy one.

    python benchmarks/busy.py --corpus demo/corpus --steps 60

Each run is the demo's (1.1M parameters), a step is 2,048 tokens. Busy: a process beside it computes on every core. Prints seconds
and ratios from this one call; loading and compiling are not in them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from time import perf_counter

from phf.corpus.store import Corpus
from phf.demo import demo_config
from phf.processes import count_cores, run_side_by_side

BURN = "while True: pass"


def train_for(corpus: str, folder: str, steps: int, kind: str, *, say, progress) -> None:
    """Train some steps; says the seconds of all but the first ten."""
    from phf.train import loop

    config = demo_config(kind, Corpus.open(corpus), seed=0, tokens=steps * 2048)
    config = config.model_copy(update={"compile": False, "validate_every": 0, "checkpoint_every": 0})
    marks: list[float] = []
    loop.train(config, folder, say=lambda line: None, progress=lambda *call: marks.append(perf_counter()))
    say(f"{kind} {marks[-1] - marks[9]:.2f}")


def measure(corpus: str, steps: int, at_once: int) -> float:
    """Seconds of two runs: of the slower one if they run at once, of both if one after the other."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            kind: partial(train_for, corpus, f"{folder}/{kind}", steps, kind)
            for kind in ("mle", "conditional")
        }
        run_side_by_side(tasks, at_once=at_once, say=lambda line: found.append(float(line.split()[1])))
    return max(found) if at_once > 1 else sum(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="demo/corpus")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    for name, num_burners in (("quiet", 0), ("busy", count_cores())):
        burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(num_burners)]
        try:
            in_turn, at_once = (measure(arguments.corpus, arguments.steps, num) for num in (1, 2))
        finally:
            for burner in burners:
                burner.kill()
        print(
            f"{name}: one after the other {in_turn:.1f} s, side by side {at_once:.1f} s, ratio {in_turn / at_once:.2f}"
        )


if __name__ == "__main__":
    main()
