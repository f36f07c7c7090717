"""Control, not artefact: the demo over several seeds, with the issue's gate and aim checked by both judges.

    python benchmarks/demo_seeds.py --out demo --seeds 0 1 2

Every seed trains MLE and Conditional on the same corpus (finished runs are reused). Intervals are 95 % t-intervals over the
seeds' means. Prints one table and the verdicts; exits with 1 if the gate does not hold.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from phf.demo import run_demo
from phf.files import read_json, write_json
from phf.intervals import pooled_t
from phf.records import Estimate
from phf.terminal import say, show_progress

ROWS = (("mle", "none"), ("conditional", "none"), ("conditional", "good"), ("conditional", "bad"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-samples", type=int, default=512)
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        parser.error("--seeds: an interval over seeds needs two or more")
    with show_progress() as progress:
        for seed in arguments.seeds:
            run_demo(arguments.out, seed=seed, num_samples=arguments.num_samples, say=say, progress=progress)
    evaluations = [
        read_json(arguments.out / "runs" / f"{kind}-seed{seed}" / "evaluation.json")
        for seed in arguments.seeds
        for kind in ("mle", "conditional")
    ]
    result = pool(evaluations)
    write_json(arguments.out / "seeds.json", result)
    print_table(result)
    print(json.dumps(result["verdicts"], indent=1))
    sys.exit(0 if all(result["verdicts"]["gate"].values()) else 1)


def pool(evaluations: list[dict]) -> dict:
    """Estimates over seeds of every quantity of the gate, and the verdicts."""
    scores: dict[tuple[str, str, str], Estimate] = {}
    judges = [(judge["slug"], judge["role"]) for judge in evaluations[0]["judges"]]
    for slug, _ in judges:
        for objective, mode in ROWS:
            scores[slug, objective, mode] = pooled_t(
                [
                    row["mean"]
                    for evaluation in evaluations
                    for row in evaluation["rows"]
                    if (row["judge"], row["objective"], row["mode"]) == (slug, objective, mode)
                ]
            )
    of = {
        kind: [evaluation for evaluation in evaluations if evaluation["objective"] == kind]
        for kind in ("mle", "conditional")
    }
    gain = {
        label: pooled_t([evaluation["control_gain"][label]["mean"] for evaluation in of["conditional"]])
        for label in ("good", "bad")
    }

    def figure(kind: str, mode: str, *path: str) -> Estimate:
        values = []
        for evaluation in of[kind]:
            value = evaluation["modes"][mode]
            for key in path:
                value = value[key]
            values.append(value)
        return pooled_t(values)

    distinct = {f"{kind} {mode}": figure(kind, mode, "degeneracy", "distinct_2") for kind, mode in ROWS}
    bits = {f"{kind} {mode}": figure(kind, mode, "bits_per_byte", "good", "mean") for kind, mode in ROWS}
    gate, aim, beyond = {}, {}, {}
    for slug, _ in judges:
        mle, good, bad = (scores[slug, *row] for row in (ROWS[0], ROWS[2], ROWS[3]))
        gate[f"{slug}: good < bad, disjoint"] = good.high < bad.low
        gate[f"{slug}: good not above MLE"] = good.mean <= mle.mean
        gate[f"{slug}: bad mode does not share the gain"] = bad.mean >= mle.mean
        aim[f"{slug}: good < MLE < bad, disjoint"] = good.high < mle.low and mle.high < bad.low
        aim[f"{slug}: good <= 0.7 x MLE"] = good.mean <= 0.7 * mle.mean
        aim[f"{slug}: bad >= 1.5 x good"] = bad.mean >= 1.5 * good.mean
        beyond[f"{slug}: good <= 0.5 x MLE"] = good.mean <= 0.5 * mle.mean
        beyond[f"{slug}: bad >= 3 x good"] = bad.mean >= 3 * good.mean
    gate["control gain > 0 on good and bad segments"] = min(gain["good"].low, gain["bad"].low) > 0
    gate["distinct-2 of good mode >= 0.8 x MLE"] = (
        distinct["conditional good"].mean >= 0.8 * distinct["mle none"].mean
    )
    gate["bits per byte of good mode on good text within 3 % of MLE"] = (
        bits["conditional good"].mean <= 1.03 * bits["mle none"].mean
    )

    def spell(estimate: Estimate) -> dict:
        return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "count": estimate.count}

    return {
        "scores": [
            {"judge": slug, "role": role, "objective": kind, "mode": mode, **spell(scores[slug, kind, mode])}
            for slug, role in judges
            for kind, mode in ROWS
        ],
        "control_gain": {label: spell(estimate) for label, estimate in gain.items()},
        "distinct_2": {name: spell(estimate) for name, estimate in distinct.items()},
        "bits_per_byte_good_text": {name: spell(estimate) for name, estimate in bits.items()},
        "verdicts": {"gate": gate, "aim": aim, "beyond": beyond},
    }


def print_table(result: dict) -> None:
    table = Table("judge", "role", "objective", "mode", "mean", "95 % over seeds")
    for row in result["scores"]:
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        table.add_row(
            row["judge"], row["role"], row["objective"], row["mode"], f"{row['mean']:.4f}", interval
        )
    for label, value in result["control_gain"].items():
        table.add_row(
            "",
            "",
            "conditional",
            f"gain on {label}",
            f"{value['mean']:+.3f}",
            f"{value['low']:+.3f} to {value['high']:+.3f}",
        )
    for name in ("distinct_2", "bits_per_byte_good_text"):
        for run, value in result[name].items():
            table.add_row(
                name, "", *run.split(), f"{value['mean']:.4f}", f"{value['low']:.4f} to {value['high']:.4f}"
            )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
