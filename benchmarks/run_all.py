"""`make bench`: every benchmark that needs no GPU, one after the other, at a size of a few minutes each.

    python benchmarks/run_all.py            all
    python benchmarks/run_all.py loader     some, by name

Each prints a ratio from one run, or memory; docs/log.md holds the figures of larger sizes and the commands that made them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent
ONE_CORE = {"OMP_NUM_THREADS": "1"}


def commands(scratch: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Arguments and environment of each benchmark."""
    return {
        "loader": ([], ONE_CORE),
        "loader_rivals": ([], ONE_CORE),
        "export": ([], ONE_CORE),
        "reward_models": ([], ONE_CORE),
        "annotate": (["--dir", scratch, "--memory", "30", "100", "--speed", "60"], {}),
        "distill": ([], ONE_CORE),
        "active_learning": (["--seeds", "3"], ONE_CORE),
        "train": (["--rounds", "2"], {}),
        "checkpoint": ([], ONE_CORE),
        "optimizers": (["--tokens", "500000"], ONE_CORE),
        "generate": (["--rounds", "2", "--samples", "256"], ONE_CORE),
        "first_step": ([], {}),
    }


def main() -> None:
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        chosen = commands(scratch)
        names = sys.argv[1:] or list(chosen)
        for name in names:
            if name not in chosen:
                sys.exit(f"error: benchmark '{name}' is not known; choose some of {', '.join(chosen)}")
            arguments, environment = chosen[name]
            script = FOLDER / f"{name.split()[0]}.py"
            print(f"== {script.name} {' '.join(arguments)}", flush=True)
            start = time.perf_counter()
            done = subprocess.run([sys.executable, script, *arguments], env={**os.environ, **environment})
            print(
                f"== {name}: exit {done.returncode} after {time.perf_counter() - start:.0f} s\n", flush=True
            )
            if done.returncode != 0:
                failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
