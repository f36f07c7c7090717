"""Muon + AdamW against AdamW: tokens to a loss, at equal budget, data and seeds, each at its best learning rate.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py [--tokens 1_000_000] [--seeds 3] [--workers 2]

The learning rates are swept on seed 100 and the rivals compared on other seeds. Held-out NLL per text token of an MLE run;
"tokens to AdamW's loss": where Muon's curve, read between validations, passes the loss that AdamW ends at.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml

from phf.annotate.annotate import annotate
from phf.config.recipes import apply_overrides, read_recipe
from phf.corpus.store import build_corpus
from phf.intervals import pooled_t
from phf.tokens.tokens import tokenize
from phf.train.run import Run

# (learning_rate of AdamW, of Muon): AdamW's share of the Muon run keeps the middle rate.
GRID = {
    "adamw": [(rate, 0.0) for rate in (2e-3, 4e-3, 8e-3)],
    "muon": [(4e-3, rate) for rate in (0.01, 0.02, 0.04)],
}
SWEEP_SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.workers) as pool:
        folder = Path(name)
        corpus = build_corpus(["fortunes"], folder / "corpus")
        annotate(corpus, "toxicity-svm", "sentences")
        tokenize(corpus, "train:2048", "sentences")

        def train(kind: str, rates: tuple[float, float], seed: int) -> list[tuple[int, float]]:
            return train_run(folder, kind, rates, seed, arguments.tokens)

        swept = {
            (kind, rates): pool.submit(train, kind, rates, SWEEP_SEED)
            for kind in GRID
            for rates in GRID[kind]
        }
        losses = {key: future.result()[-1][1] for key, future in swept.items()}
        best = {}
        for kind, grid in GRID.items():
            best[kind] = min(grid, key=lambda rates: losses[kind, rates])
            shown = ", ".join(
                f"{max(rates) if kind == 'adamw' else rates[1]:g}: {losses[kind, rates]:.4f}"
                for rates in grid
            )
            print(f"{kind}, learning rates and last NLL on seed {SWEEP_SEED}: {shown}", flush=True)
        seeds = range(arguments.seeds)
        futures = {
            (kind, seed): pool.submit(train, kind, best[kind], seed) for kind in GRID for seed in seeds
        }
        curves = {key: future.result() for key, future in futures.items()}
    report(curves, arguments.seeds, arguments.tokens)


def train_run(
    folder: Path, kind: str, rates: tuple[float, float], seed: int, tokens: int
) -> list[tuple[int, float]]:
    """Validation NLL by tokens, from a run in a process of its own."""
    overrides = [
        f"corpus={folder / 'corpus'}",
        "tokenizer=train:2048",
        "objective={kind: mle}",
        f"optim.name={kind}",
        f"optim.learning_rate={rates[0]}",
        f"optim.muon_learning_rate={rates[1] or 0.02}",
        f"tokens={tokens}",
        f"seed={seed}",
        "validate_every=25",
        "validation_blocks=256",
        "checkpoint_every=0",
    ]
    name = f"{kind}-{rates[0]:g}-{rates[1]:g}-{seed}"
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(apply_overrides(read_recipe("demo"), overrides)))
    command = [sys.executable, "-m", "phf", "train", str(recipe), "-o", str(folder / name)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = Run.open(folder / name).read_metrics()
    return [(line["tokens"], line["nll_all"]) for line in lines if line["kind"] == "validation"]


def report(curves: dict[tuple[str, int], list[tuple[int, float]]], num_seeds: int, tokens: int) -> None:
    last = {kind: [curves[kind, seed][-1][1] for seed in range(num_seeds)] for kind in GRID}
    for kind, values in last.items():
        print(f"{kind}: NLL after {tokens:,} tokens {show(values)}")
    difference = [one - other for one, other in zip(last["muon"], last["adamw"], strict=True)]
    print(f"Muon minus AdamW, paired: {show(difference)}")
    shares = []
    for seed in range(num_seeds):
        places, values = np.array(curves["muon", seed]).T
        target = last["adamw"][seed]
        shares.append(
            float(np.interp(-target, -np.minimum.accumulate(values), places)) / curves["adamw", seed][-1][0]
        )
    print(f"share of the tokens that Muon needs for AdamW's last loss: {show(shares)}")


def show(values: list[float]) -> str:
    estimate = pooled_t(values)
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


if __name__ == "__main__":
    main()
