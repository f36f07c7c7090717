"""Seconds from the command to the first training step on the demo's corpus, and what a new objective scores anew.

    python benchmarks/first_step.py [--demo demo]

The bar: under 5 s. The corpus of `phf demo` is used if it is there, else made (not timed). Every run has another objective or
threshold; the annotation and the tokens must not change by a byte.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from phf.demo import prepare_corpus

CHOICES = (
    ["objective.kind=mle"],
    ["objective.threshold=0.5"],
    ["objective.kind=filtering", "objective.keep_fraction=0.25"],
    ["objective.kind=rwr", "objective.beta=2"],
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare_corpus(arguments.demo or Path(folder) / "demo").path
        before = stamps(corpus)
        for number, overrides in enumerate(CHOICES):
            seconds = time_first_step(Path(folder) / f"run{number}", corpus, overrides)
            print(f"{' '.join(overrides)}: first step after {seconds:.1f} s")
        print(
            f"files of annotations and tokens written anew: {sum(a != b for a, b in zip(before, stamps(corpus), strict=True))}"
        )


def stamps(corpus: Path) -> list[tuple[str, int]]:
    return [(str(path), path.stat().st_mtime_ns) for path in sorted(corpus.rglob("*")) if path.is_file()]


def time_first_step(run: Path, corpus: Path, overrides: list[str]) -> float:
    """Start `phf train`, wait for the first line of metrics that a step has written, stop it."""
    command = [
        str(Path(sys.executable).parent / "phf"),
        *["train", "demo", f"corpus={corpus}", "log_every=1", "validate_every=0", *overrides, "-o", str(run)],
    ]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and any(is_step(line) for line in metrics.read_text().splitlines())):
            if process.poll() is not None:
                sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def is_step(line: str) -> bool:
    try:
        return json.loads(line)["kind"] == "train"
    except ValueError:  # the line is being written
        return False


if __name__ == "__main__":
    main()
