"""KL(target || model) of each objective against its closed form over training, on the toy source of the tests.

    OMP_NUM_THREADS=1 python benchmarks/exact_targets.py            writes docs/exact_targets.svg; about ten minutes

The source has 12 possible segments (pages of one segment) or 144 pages of two, in known shares, so nothing is sampled: what
is left of the KL is the optimizer's. Dashed: the distance of the same model to the corpus itself.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from toy_source import ToySource, kl, log_probabilities, train

from phf.config import MLE, RWR, Conditional, Filtering
from phf.intervals import pooled_t

CASES = {
    "MLE": (MLE(), "none"),
    "Filtering, best 40 %": (Filtering(keep_fraction=0.4), "none"),
    "Conditional, good mode": (Conditional(good_fraction=0.4, drop_fraction=0.1), "good"),
    "Conditional, bad mode": (Conditional(good_fraction=0.4, drop_fraction=0.1), "bad"),
    "RWR, beta 0.5": (RWR(beta=0.5), "none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/exact_targets.svg"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, num_segments in zip(axes, (1, 2), strict=True):
        source = ToySource.make(num_segments)
        for color, (name, (config, mode)) in enumerate(CASES.items()):
            objective = source.resolve(config)
            target = source.target(objective, mode)
            steps, to_target, to_corpus = [], [], []
            for seed in range(options.seeds):
                looks = train(source, objective, options.steps, seed=seed, look_every=options.steps // 12)
                found = [(step, log_probabilities(model, source, mode)) for step, model in looks]
                steps = [step for step, _ in found]
                to_target.append([kl(target, logs) for _, logs in found])
                to_corpus.append([kl(source.probabilities, logs) for _, logs in found])
            last = pooled_t([row[-1] for row in to_target])
            away = pooled_t([row[-1] for row in to_corpus])
            print(
                f"{num_segments} segment(s), {name:24} KL to its target {last.mean:.4f} [{last.low:.4f}, {last.high:.4f}], "
                f"to the corpus {away.mean:.3f}; {options.steps} steps, {options.seeds} seeds",
                flush=True,
            )
            axis.plot(steps[1:], np.mean(to_target, axis=0)[1:], color=f"C{color}", label=name)
            axis.plot(steps[1:], np.mean(to_corpus, axis=0)[1:], color=f"C{color}", linestyle=":", alpha=0.5)
        axis.set(
            yscale="log", xlabel="step", title=f"pages of {num_segments} segment{'s' * (num_segments > 1)}"
        )
    axes[0].set_ylabel("KL(target || model), nats a page")
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(options.out, metadata={"Date": None})
    print(options.out)


if __name__ == "__main__":
    main()
