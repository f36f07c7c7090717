"""How far a trained reward model can be trusted: frozen on corpus text, frozen on samples of the start, or refreshed on the policy's own.

    phf sweep benchmarks/overoptimisation_small.yaml finetune=runs/mle -o grid --workers 2
    python benchmarks/overoptimisation.py grid -o found [--figure docs/images/overoptimisation.svg]

Every run of the sweep spends n labels of a gold judge on a proxy that it learns from. At each of its checkpoints texts are drawn, scored by the
gold judge and by the proxy of that step, and d = sqrt(KL from the start) is read; a frozen proxy also chooses the best of n of one pool of the
start's texts for each seed. OUT/points.jsonl has the points, OUT/results.json what is said of them. A stopped command goes on.

Compute plan of benchmarks/overoptimisation_small.yaml (1.1M parameters, one thread, CPU-seconds on a busy machine): a finetuning of 20 steps of
RLOO 46 + its proxies 2 to 8, a text to label .01, and here 256 texts a point 12: 36 x (60 + 4 x 12) + 3 seeds x 1,024 texts x .02 + labels
18 x 1,650 x .01 = 4,300 s at most, 72 CPU-minutes; conditional training adds 12 x 37 (444 measured, with all points). That is bought by half the steps and half the samples of benchmarks/overoptimisation.yaml, not
by fewer arms. At a rate of 1e-3 all arms collapse into texts that no judge dislikes (d of 13 to 19). The whole grid is about ten times as much.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import yaml
from fits import FORMS, fit_forms

from phf.api import Run
from phf.config.finetune import DPO, RLOO, FinetuneConfig, Pretraining
from phf.config.train import parse
from phf.evaluate.measures.degeneracy import distinct_ngrams
from phf.evaluate.pieces import NGRAMS_PER_SAMPLE, split_pieces
from phf.files import write_bytes
from phf.finetune.measure import read_gaps
from phf.finetune.proxy import Proxies
from phf.finetune.results import FINETUNE
from phf.finetune.start import Start
from phf.intervals import best_of, bootstrap_mean, pooled_t
from phf.policies.drawing import Drawing
from phf.posterior.frontier import Frontier
from phf.posterior.frontier import best_of as find_best
from phf.records import Estimate
from phf.reward_models import load_reward_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURE_STREAM, POOL_STREAM = 2, 900  # of random numbers; labels are drawn from 3 on
BEST_OF = (2, 4, 8, 16, 32, 64)
Z = 1.96
LEAST_D, LEAST_POINTS, HELD_OUT = 0.05, 6, 0.4
ARMS = {
    "corpus": "frozen on corpus text",
    "samples": "frozen on samples of the start",
    "policy": "refreshed on the policy's samples",
}


@dataclass(frozen=True)
class Cell:
    """A run of the sweep, with what it started from and learned from.

    Attributes:
        key: arm, labels, seed and method, joined by slashes: names its points.
    """

    run: Run
    proxies: Proxies

    @property
    def key(self) -> str:
        config = self.proxies.gold.config
        assert config.proxy is not None
        proxy, method = config.proxy, config.method
        if isinstance(method, Pretraining):
            name = f"phf:{method.objective.kind}"
        else:
            assert isinstance(method, RLOO | DPO)
            name = f"{method.kind}:beta={method.beta:g}"
        return f"{proxy.data}/{proxy.labels}/{config.seed}/{name}"

    @classmethod
    def read(cls, recipe: Path) -> "Cell":
        """By the recipe that `phf sweep` wrote beside the run's folder."""
        value = yaml.safe_load(recipe.read_text())
        start = Start.open(
            value.pop("finetune"), parse(FinetuneConfig, value, str(recipe)), load_reward_model
        )
        folder = recipe.parent.parent / recipe.stem
        return cls(Run.open(folder), Proxies(start, folder))


class Grid:
    """The runs of a sweep over one start, and what was measured of them in a folder."""

    def __init__(self, sweep: Path, out: Path, samples: int, pool: int) -> None:
        self.out, self.samples, self.num_pool = out, samples, pool
        recipes = sorted((sweep / "recipes").glob("*.yaml"))
        made = [recipe for recipe in recipes if FINETUNE.is_in(sweep / recipe.stem)]
        if not made:
            sys.exit(f"{sweep} has no finished finetuning; run phf sweep first")
        if len(made) < len(recipes):
            print(
                f"{len(recipes) - len(made)} of {len(recipes)} runs are not finished, and left out",
                flush=True,
            )
        self.cells = [Cell.read(recipe) for recipe in made]
        self.start = self.cells[0].proxies.gold
        self.seeds = sorted({cell.run.config.seed for cell in self.cells})
        self.points = {point["key"]: point for point in self.read_lines("points.jsonl")}

    def read_lines(self, name: str) -> list[dict]:
        path = self.out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_lines(self, name: str, rows: list[dict]) -> None:
        write_bytes(self.out / name, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def keep(self, key: str, **point: float) -> None:
        """A point, once."""
        self.points[key] = {"key": key, **point}
        self.write_lines("points.jsonl", list(self.points.values()))
        print(json.dumps(self.points[key]), flush=True)

    # --- points ----------------------------------------------------------------------------------------------------

    def measure_cells(self) -> None:
        for cell in self.cells:
            first = self.start.step
            for step in cell.run.steps:
                if f"{cell.key}@{step}" not in self.points:
                    learned = cell.proxies.at(step - first - 1)
                    result = learned.draw_as(cell.run, cell.run.load_model(step))
                    self.keep(f"{cell.key}@{step}", at=step - first, **self.measure(result, learned))
            arm, labels, seed, _ = cell.key.split("/")
            if arm != "policy":
                self.measure_best(f"{arm}/{labels}/{seed}/bestofn", cell.proxies.at(0))

    def measure(self, result: Drawing, learned: Start) -> dict[str, float]:
        """Gold and proxy score of a policy's texts, its distance from the start, and distinct-2 of the texts."""
        num, writer = self.samples, replace(learned, drawing=result)
        texts, decoded = writer.write(result.target.model, [()] * num, MEASURE_STREAM, "", None)
        gold, proxy = self.start.score(decoded), learned.score(decoded)
        kl = float(read_gaps(learned, result, [()] * num, texts).mean())
        return {
            "d": math.sqrt(max(kl, 0.0)),
            "gold": float(np.nanmean(gold)),
            "error": find_error(gold),
            "proxy": float(np.nanmean(proxy)),
            "distinct": distinct_ngrams([split_pieces(text) for text in decoded], 2, NGRAMS_PER_SAMPLE * num),
        }

    def measure_best(self, key: str, learned: Start) -> None:
        """The best of n by a proxy, without any training: from a pool of the start's texts that no proxy has seen."""
        if f"{key}@{BEST_OF[-1]}" in self.points:
            return
        pool = self.pool(int(key.split("/")[2]))
        gold = np.array([row["gold"] for row in pool])
        scores = learned.score([row["text"] for row in pool])
        frontier = Frontier(scores, num_bootstrap=0, seed=0)
        for n in BEST_OF:
            found, proxy = (best_of(scores, values, n, 500, 0) for values in (gold, scores))
            d = math.sqrt(float(find_best(frontier, n).kl[0]))
            error = max(np.nan_to_num(found.high - found.low) / 2 / Z, 1 / len(pool))
            self.keep(f"{key}@{n}", at=n, d=d, gold=found.mean, error=error, proxy=proxy.mean)

    def pool(self, seed: int) -> list[dict]:
        """Texts of the start with gold scores, kept; one without a score is left out."""
        if not (rows := self.read_lines(f"pool-{seed}.jsonl")):
            first = seed * self.num_pool
            _, texts = self.start.write(
                self.start.model, [()] * self.num_pool, POOL_STREAM, f"pool {seed}", None, first
            )
            rows = [
                {"text": text, "gold": float(score)}
                for text, score in zip(texts, self.start.score(texts), strict=True)
                if math.isfinite(score) and text.strip()
            ]
            self.write_lines(f"pool-{seed}.jsonl", rows)
        return rows

    # --- what is said of the points --------------------------------------------------------------------------------

    def summarise(self) -> dict:
        base = bootstrap_mean([row["gold"] for seed in self.seeds for row in self.pool(seed)], 1000, 0)
        ends = list(self.find_ends())
        variety = self.measure(self.start.drawing, self.start)["distinct"]
        return {
            "start": asdict(base),
            "start_distinct": variety,
            "fits": list(self.fit(base)),
            "ends": ends,
            "differences": list(compare_arms(ends)),
        }

    def group(self, *names: str) -> dict[tuple, list[dict]]:
        """Points by some of arm, labels, seed, method and policy (the kind of method)."""
        groups: dict[tuple, list[dict]] = {}
        for key, point in self.points.items():
            arm, labels, seed, method = key.split("@")[0].split("/")[:4]
            own = {"arm": arm, "labels": int(labels), "seed": int(seed), "method": method}
            own["policy"] = method.partition(":")[0]
            groups.setdefault(tuple(own[name] for name in names), []).append(point)
        return dict(sorted(groups.items()))

    def fit(self, base: Estimate) -> Iterator[dict]:
        """The forms of the gain in gold score over seeds and betas together, for each arm, number of labels and kind of policy."""
        for (arm, labels, policy), points in self.group("arm", "labels", "policy").items():
            own = [point for point in points if point["d"] > LEAST_D]
            if len(own) >= LEAST_POINTS:
                d, gold, errors = (
                    np.array([point[name] for point in own]) for name in ("d", "gold", "error")
                )
                forms = [asdict(form) for form in fit_forms(d, base.mean - gold, errors, held_out=HELD_OUT)]
                split = float(np.quantile(d, 1 - HELD_OUT, method="lower"))
                yield {
                    "arm": arm,
                    "labels": labels,
                    "policy": policy,
                    "points": len(own),
                    "split": split,
                    "largest": float(d.max()),
                    "forms": forms,
                }

    def find_ends(self) -> Iterator[dict]:
        """Where each policy ends: the last step, or the best of the most; a number for each seed."""
        for (arm, labels, method), points in self.group("arm", "labels", "method").items():
            most = max(point["at"] for point in points)
            last = {int(p["key"].split("/")[2]): p for p in points if p["at"] == most}
            rows = {
                name: [last[seed].get(name, math.nan) for seed in sorted(last)]
                for name in ("d", "gold", "proxy", "distinct")
            }
            rows["gap"] = [gold - proxy for gold, proxy in zip(rows["gold"], rows["proxy"], strict=True)]
            means = {name: asdict(pooled_t(values)) for name, values in rows.items()}
            yield {"arm": arm, "labels": labels, "method": method, "seeds": rows, **means}


def find_error(scores: np.ndarray) -> float:
    """The standard error of a mean of scores from 0 to 1; at least what one more text of score 1 would move it by."""
    return max(float(np.nanstd(scores)) / math.sqrt(len(scores)), 1 / len(scores))


def compare_arms(ends: list[dict]) -> Iterator[dict]:
    """Gold score of an arm minus that of another at one number of labels, the mean over RLOO's betas, by seed."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    for row in ends:
        if row["method"].startswith("rloo"):
            found.setdefault((row["arm"], row["labels"]), []).append(row["seeds"]["gold"])
    for labels in sorted({labels for _, labels in found}):
        for one, other in (("samples", "corpus"), ("policy", "corpus"), ("policy", "samples")):
            if (one, labels) in found and (other, labels) in found:
                gaps = np.mean(found[one, labels], 0) - np.mean(found[other, labels], 0)
                yield {"labels": labels, "arm": one, "minus": other, "gold": asdict(pooled_t(gaps.tolist()))}


def draw(grid: Grid, results: dict, path: Path) -> None:
    """A panel for each arm and number of labels: gold and proxy score of RLOO against d, with two forms; the best of n beside."""
    plt.rcParams.update({"svg.hashsalt": "overoptimisation", "svg.fonttype": "none"})
    labels = sorted({row["labels"] for row in results["ends"]})
    figure, axes = plt.subplots(
        len(labels),
        len(ARMS),
        figsize=(11, 1 + 3 * len(labels)),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for (row, num), (column, arm) in product(enumerate(labels), enumerate(ARMS)):
        axis = axes[row, column]
        draw_points(axis, grid.group("arm", "labels", "method"), arm, num)
        for fit in results["fits"]:
            if (fit["arm"], fit["labels"], fit["policy"]) == (arm, num, "rloo"):
                draw_forms(axis, fit, results["start"]["mean"])
        axis.axhline(results["start"]["mean"], color="0.7", linewidth=0.8, zorder=0)
        axis.set_title(f"{ARMS[arm]}, {num:,} labels", fontsize=9)
    # A form that fits small d may leave the range of scores on larger ones.
    highest = max(max(point["gold"] + Z * point["error"], point["proxy"]) for point in grid.points.values())
    axes[0, 0].set(xscale="log", ylim=(-0.05 * highest, 1.05 * highest))
    for axis in axes[-1]:
        axis.set_xlabel("d = sqrt(KL from the start, nats a text)")
    for axis in axes[:, 0]:
        axis.set_ylabel("score (lower is better)")
    handles = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_points(axis: "Axes", groups: dict[tuple, list[dict]], arm: str, num: int) -> None:
    methods = sorted({method for _, _, method in groups} - {"bestofn"})
    colors = {"bestofn": "0.6", **{method: f"C{place}" for place, method in enumerate(methods)}}
    for method, color in colors.items():
        own = groups.get((arm, num, method), [])
        d, gold, errors, proxy = (
            np.array([point[name] for point in own]) for name in ("d", "gold", "error", "proxy")
        )
        style = {"markersize": 3, "color": color, "linestyle": "none", "marker": "o"}
        axis.errorbar(d, gold, Z * errors, elinewidth=0.6, label=f"{method}: gold", **style)
        axis.plot(d, proxy, markerfacecolor="none", label=f"{method}: proxy", **style)


def draw_forms(axis: "Axes", fit: dict, base: float) -> None:
    places = np.geomspace(LEAST_D, fit["largest"], 80)
    for form, style, name in zip(fit["forms"], ("-", ":"), ("best", "rival"), strict=False):
        gain = FORMS[form["form"]](places, form["a"]["mean"], form["b"]["mean"])
        axis.plot(places, base - gain, style, color="0.2", linewidth=1)
        axis.plot([], [], style, color="0.2", label=f"form that is {name} on larger d")
    axis.axvline(fit["split"], color="0.8", linewidth=0.8, linestyle="--", label="larger d", zorder=0)


def show(own: dict) -> str:
    if math.isnan(own["mean"]):
        return "-"
    return f"{own['mean']:.3f} [{own['low']:.3f}, {own['high']:.3f}]"


def list_tables(results: dict) -> Iterator[str]:
    """In Markdown, for docs/lab/finetuning.md."""
    yield f"Start: {show(results['start'])}, distinct-2 {results['start_distinct']:.3f}\n"
    yield "| labels | arm | policy | d | gold | gold - proxy | distinct-2 |\n|---|---|---|---|---|---|---|"
    for row in sorted(results["ends"], key=lambda row: row["labels"]):
        cells = (show(row[name]) for name in ("d", "gold", "gap", "distinct"))
        yield f"| {row['labels']:,} | {ARMS[row['arm']]} | {row['method']} | {' | '.join(cells)} |"
    yield "\n| labels | arm | minus | gold |\n|---|---|---|---|"
    for row in results["differences"]:
        yield f"| {row['labels']:,} | {ARMS[row['arm']]} | {ARMS[row['minus']]} | {show(row['gold'])} |"
    yield (
        "\n| labels | arm | policy | points | best on larger d | error | best in | rival | error |\n|"
        + "---|" * 9
    )
    for row in results["fits"]:
        best, rival, _ = row["forms"]
        yield (
            f"| {row['labels']:,} | {ARMS[row['arm']]} | {row['policy']} | {row['points']} | {best['form']} | {best['error']:.4f} "
            f"| {best['wins']:.0%} | {rival['form']} | {rival['error']:.4f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="the folder of phf sweep")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=256, help="texts by which a policy is measured")
    parser.add_argument(
        "--pool", type=int, default=1024, help="texts of the start that the best of n are chosen from"
    )
    parser.add_argument("--figure", type=Path, help="default: OUT/overoptimisation.svg")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    grid = Grid(given.sweep, given.out, given.samples, given.pool)
    grid.measure_cells()
    results = grid.summarise()
    write_bytes(given.out / "results.json", json.dumps(results, indent=1).encode())
    draw(grid, results, given.figure or given.out / "overoptimisation.svg")
    print("\n".join(list_tables(results)))


if __name__ == "__main__":
    main()
