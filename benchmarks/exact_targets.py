"""KL(target || model) of each objective against its closed form over training, on the toy source of the tests.

    OMP_NUM_THREADS=1 python benchmarks/exact_targets.py            writes docs/exact_targets.svg; about 40 minutes

The source has 12 possible segments (pages of one segment) or 144 pages of two, in known shares, so nothing is sampled: what
is left of the KL is the optimizer's. docs/exact_targets.md says how to read the figure and the table.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from toy_source import ToySource, in_mode, kl, log_probabilities, train

from phf.config.objectives import (
    AWR,
    MLE,
    RWR,
    Additive,
    Conditional,
    Filtering,
    Masking,
    ObjectiveConfig,
    Quantile,
    Removal,
    Scalar,
    Tagging,
)
from phf.intervals import pooled_t


@dataclass(frozen=True)
class Case:
    """An objective, and the modes in which its model is read."""

    config: ObjectiveConfig
    modes: tuple[str, ...] = ("none",)
    num_levels: int | None = None  # of the source's scores; None: all differ
    num_segments: tuple[int, ...] = (1, 2)


CASES = {
    "MLE": Case(MLE()),
    "Filtering, best 40 %": Case(Filtering(keep_fraction=0.4)),
    "Removal, best 40 %": Case(Removal(good_fraction=0.4), num_segments=(1,)),  # of two, one may be left
    "Masking, best 40 %": Case(Masking(good_fraction=0.4)),
    "Conditional": Case(Conditional(good_fraction=0.4, drop_fraction=0.1), ("good", "bad")),
    "Quantile, 3 levels": Case(Quantile(levels=3), ("good", "bad")),
    "Additive": Case(Additive(good_fraction=0.4), ("good", "bad")),
    "Scalar, 4 rewards": Case(Scalar(normalize="none"), ("good", "bad"), num_levels=4),
    "Tagging, 30 %": Case(Tagging(good_fraction=0.4, tag_fraction=0.3), ("untagged", "tagged")),
    "RWR, beta 0.5": Case(RWR(beta=0.5)),
    "AWR, beta 0.5": Case(AWR(beta=0.5, max_weight=1e4)),
}


@dataclass(frozen=True)
class Curve:
    """KL in nats a page at each look, for each seed [seeds, looks]."""

    steps: list[int]
    to_target: np.ndarray
    to_corpus: np.ndarray


def measure(case: Case, num_segments: int, num_steps: int, num_seeds: int) -> dict[str, Curve]:
    """Train with each seed; a curve for each mode."""
    source = ToySource.make(num_segments, num_levels=case.num_levels)
    objective = source.resolve(case.config)
    targets = {mode: source.target(objective, mode) for mode in case.modes}
    found: dict[str, list[list[tuple[int, float, float]]]] = {mode: [] for mode in case.modes}
    for seed in range(num_seeds):
        for rows in found.values():
            rows.append([])
        for step, model in train(source, objective, num_steps, seed=seed, look_every=num_steps // 12):
            for mode, target in targets.items():
                logs = log_probabilities(*_arguments(model, source, case.config, mode))
                found[mode][-1].append((step, kl(target, logs), kl(source.probabilities, logs)))
    return {
        mode: Curve([step for step, _, _ in rows[0]], *np.array(rows)[:, :, 1:].transpose(2, 0, 1))
        for mode, rows in found.items()
    }


def _arguments(model, source, config, mode):
    folded, mode = in_mode(model, config, mode)
    return folded, source, mode


def draw(curves: dict[tuple[str, int], dict[str, Curve]], out: Path) -> None:
    """A panel for each objective."""
    plt.rcParams.update({"svg.hashsalt": "exact_targets", "svg.fonttype": "none"})
    figure, axes = plt.subplots(3, 4, figsize=(11, 7), sharex=True, sharey=True, layout="constrained")
    for axis, name in zip(axes.flat, CASES, strict=False):
        for num_segments in CASES[name].num_segments:
            _draw_case(axis, curves[name, num_segments], f"C{num_segments - 1}")
        axis.set_title(name, fontsize=10)
        axis.set_yscale("log")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("KL, nats a page")
    legend = axes.flat[-1]
    legend.axis("off")
    lines = {
        "pages of one segment": Line2D([], [], color="C0"),
        "pages of two segments": Line2D([], [], color="C1"),
        "to its closed form:\ngood, untagged or only mode": Line2D([], [], color="0.3"),
        "to its closed form:\nbad mode, or after a tag": Line2D([], [], color="0.3", linestyle="--"),
        "the same model to the corpus": Line2D([], [], color="0.3", linestyle=":"),
    }
    legend.legend(lines.values(), lines.keys(), loc="center", frameon=False, fontsize=9)
    axes[1, -1].tick_params(labelbottom=True)
    figure.savefig(out, metadata={"Date": None})


def _draw_case(axis: Axes, curves: dict[str, Curve], color: str) -> None:
    for curve, style in zip(curves.values(), ("-", "--"), strict=False):
        steps, to_target = curve.steps[1:], curve.to_target[:, 1:]
        axis.fill_between(steps, to_target.min(0), to_target.max(0), color=color, alpha=0.2, linewidth=0)
        axis.plot(steps, to_target.mean(0), color=color, linestyle=style, linewidth=1.4)
        if style == "-" and not np.allclose(curve.to_target, curve.to_corpus):
            axis.plot(steps, curve.to_corpus[:, 1:].mean(0), color=color, linestyle=":", linewidth=1)


def list_rows(curves: dict[tuple[str, int], dict[str, Curve]]) -> list[str]:
    """A Markdown table of the last looks."""
    rows = [
        "| objective | mode | one segment: to its closed form | to the corpus | two segments: to its closed form | to the corpus |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        for mode in case.modes:
            cells = [
                _show(curves[name, size][mode]) if size in case.num_segments else "– | –" for size in (1, 2)
            ]
            rows.append(f"| {name} | {mode} | {' | '.join(cells)} |")
    return rows


def _show(curve: Curve) -> str:
    last = pooled_t(curve.to_target[:, -1])
    return f"{last.mean:.4f} [{last.low:.4f}, {last.high:.4f}] | {curve.to_corpus[:, -1].mean():.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/exact_targets.svg"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = {}
    for size in (1, 2):
        for name, case in CASES.items():
            if size in case.num_segments:
                curves[name, size] = measure(case, size, options.steps, options.seeds)
                last = {mode: curve.to_target[:, -1].round(4) for mode, curve in curves[name, size].items()}
                print(f"{name}, pages of {size}: {last}", file=sys.stderr, flush=True)
    print("\n".join(list_rows(curves)))
    draw(curves, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
