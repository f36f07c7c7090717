"""What the annotator says of a mode of some runs over several sampling seeds: how far trainings differ beyond their samples.

    python benchmarks/mode_scores.py runs/phf runs/trainer --mode good --seeds 0 1 2 3

512 samples a seed, with the settings of `phf evaluate`, whose number seed 0 is; 4 CPU-seconds each. Intervals are over samples alone.
"""

import argparse

import numpy as np

from phf.config.train import SamplingConfig
from phf.evaluate.rollouts import sample_run
from phf.intervals import bootstrap_mean
from phf.reward_models import load_reward_model, score_samples
from phf.train.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--mode", default="good")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    for run in options.runs:
        judge = load_reward_model(Run.open(run).config.reward_model)
        scores = []
        for seed in options.seeds:
            samples = sample_run(run, options.mode, SamplingConfig(num_samples=512, seed=seed), prompts=[])
            scores.append(score_samples(judge, [sample.text for sample in samples]))
            print(run, options.mode, f"seed {seed}", describe(scores[-1]))
        print(run, options.mode, "all", describe(np.concatenate(scores)))


def describe(scores: list[float] | np.ndarray) -> str:
    """Mean and interval."""
    found = bootstrap_mean(np.asarray(scores, np.float64), 1000, 0)
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}] of {len(scores):,}"


if __name__ == "__main__":
    main()
