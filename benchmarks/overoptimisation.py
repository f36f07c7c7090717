"""How far a trained reward model can be trusted: frozen on corpus text, frozen on samples of the start, or refreshed on the policy's own.

    python benchmarks/overoptimisation.py runs/mle -o grid [--grid benchmarks/overoptimisation.yaml] [--figure docs/images/overoptimisation.svg]

Every cell spends n labels of a gold judge on a proxy (`phf reward train`, gold scores as ratings), and RLOO learns from the proxy; the best
of n are chosen by it from one pool for each seed. OUT/points.jsonl has gold and proxy score against d = sqrt(KL from the start),
OUT/results.json what is said of them, OUT/costs.json the CPU-seconds of each arm. A stopped command goes on: pools, proxies and runs are
kept, and a point that is there is not measured again.

Compute plan of benchmarks/overoptimisation_small.yaml (1.1M parameters, one thread; CPU-seconds measured on a busy machine): one seed at
n = 300 cost 61 s for a frozen arm (20 steps of RLOO at 2.3, a proxy 2, four points of 128 texts 8) and 72 s for the refreshed one (four
proxies); a text to label takes 10 ms, and 256 texts a point 6 s more. 24 frozen arms x 67 + 12 refreshed x 80 + 3 seeds x (3,000 + 1,024) + 12 x 1,240
texts x .01 = 2,850 s: 48 CPU-minutes. That is bought by half the steps and half the samples of benchmarks/overoptimisation.yaml, not by fewer
arms, with a rate of 5e-4 so that they go as far; at 1e-3 all arms collapse into texts that no judge dislikes (d of 13 to 19). The whole
grid is about ten times as much.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import yaml
from fits import FORMS, fit_forms

from phf.api import Run, train_reward_model
from phf.attack.targets import Segments
from phf.config.finetune import FinetuneConfig, parse_method
from phf.errors import PHFError
from phf.evaluate.measures.degeneracy import distinct_ngrams
from phf.evaluate.pieces import NGRAMS_PER_SAMPLE, split_pieces
from phf.files import write_bytes
from phf.finetune.loop import finetune
from phf.finetune.measure import read_gaps
from phf.finetune.start import Start
from phf.generate.target import REDRAW
from phf.intervals import best_of, bootstrap_mean, pooled_t
from phf.posterior.frontier import Frontier
from phf.posterior.frontier import best_of as find_best
from phf.records import Estimate
from phf.reward_models import load_reward_model, score_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedModel

MEASURE_STREAM, LABEL_STREAM, POOL_STREAM = 2, 3, 900
Z = 1.96
LEAST_D, LEAST_POINTS, HELD_OUT = 0.05, 6, 0.4
ARMS = {
    "corpus": "frozen on corpus text",
    "samples": "frozen on samples of the start",
    "refreshed": "refreshed on the policy's samples",
}


class Grid:
    """The cells over one start run, in a folder."""

    def __init__(self, run: str, out: Path, spec: dict) -> None:
        self.run, self.out, self.spec = run, out, spec
        self.gold = load_reward_model(spec["gold"])
        self.start = Start.open(run, self.configure("rloo", 0, 1), load_reward_model)
        self.points = {point["key"]: point for point in self.read_lines("points.jsonl")}

    def read_lines(self, name: str) -> list[dict]:
        path = self.out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_lines(self, name: str, rows: list[dict]) -> None:
        write_bytes(self.out / name, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def configure(self, method: str, seed: int, steps: int, reward: str | None = None) -> FinetuneConfig:
        """Of a policy. What `phf finetune` measures at its end is not used, so it is small."""
        spec = self.spec
        return FinetuneConfig.model_validate(
            {
                "method": parse_method(method).model_dump(),
                "steps": steps,
                "texts": spec["texts"],
                "learning_rate": spec["learning_rate"],
                "seed": seed,
                "reward": reward or spec["gold"],
                "mode": "untagged",
                "checkpoint_every": spec["every"],
                "keep_checkpoints": "all",
                "num_bootstrap": 100,
                "sampling": {"num_samples": 16},
            }
        )

    @contextmanager
    def charge(self, what: str) -> Iterator[None]:
        """Adds the CPU-seconds of a part to OUT/costs.json, also where it fails; a kill loses those of its part."""
        begun = time.process_time()
        try:
            yield
        finally:
            path = self.out / "costs.json"
            costs = json.loads(path.read_text()) if path.exists() else {}
            costs[what] = costs.get(what, 0) + time.process_time() - begun
            write_bytes(path, json.dumps(costs, indent=1).encode())

    # --- texts with gold scores, and proxies trained on them -------------------------------------------------------

    def write(self, model: "PreTrainedModel", num: int, stream: int, seed: int) -> list[str]:
        """Texts of a policy."""
        drawing = self.start.drawing
        texts = drawing.write(model, [()] * num, list_indices(num, stream, seed))
        return [drawing.decode((), text) for text in texts]

    def label(self, name: str, make: Callable[[], list[str]]) -> list[dict]:
        """Texts with the gold judge's score, kept; a text without one is left out."""
        if not (rows := self.read_lines(f"labels/{name}.jsonl")):
            with self.charge("labels"):
                texts = make()
                scores = np.array(score_samples(self.gold, texts), np.float64)
            rows = [
                {"text": text, "gold": float(score)}
                for text, score in zip(texts, scores, strict=True)
                if math.isfinite(score) and text.strip()
            ]
            self.write_lines(f"labels/{name}.jsonl", rows)
        return rows

    def label_start(self, arm: str, seed: int) -> list[dict]:
        """Texts of the corpus or of the start: a smaller n is spent on the first of them."""
        num = max(self.spec["labels"])
        if arm == "corpus":
            return self.label(f"corpus-{seed}", lambda: self.read_segments(num, seed))
        return self.label(f"samples-{seed}", lambda: self.write(self.start.model, num, LABEL_STREAM, seed))

    def read_segments(self, num: int, seed: int) -> list[str]:
        tokens = Run.open(self.run).data().tokens
        is_train = np.repeat(tokens.is_train, tokens.document_segments) & (tokens.segment_lengths > 0)
        chosen = np.random.default_rng(seed).permutation(np.flatnonzero(is_train))[:num]
        return [tokens.tokenizer.decode(ids) for ids in Segments(tokens, chosen)]

    def train_proxy(self, name: str, rows: list[dict], seed: int) -> str:
        """The folder of a reward model trained on labels, a text once."""
        folder = self.out / "proxies" / name
        if not folder.exists():
            once = {row["text"]: 1 - row["gold"] for row in rows}  # ratings: higher is better
            labels = [{"text": text, "rating": rating} for text, rating in once.items()]
            self.write_lines(f"ratings/{name}.jsonl", labels)
            folder.parent.mkdir(parents=True, exist_ok=True)
            train_reward_model(self.out / f"ratings/{name}.jsonl", folder, seed=seed)
        return str(folder)

    # --- policies --------------------------------------------------------------------------------------------------

    def run_cells(self) -> None:
        spec, policies = self.spec, self.spec["policies"]
        if not find_spec("trl"):
            policies = [method for method in policies if not method.startswith(("dpo", "kto"))]
            if missing := set(spec["policies"]) - set(policies):
                print(
                    f"{', '.join(sorted(missing))}: left out without trl; pip install 'phf[rl]'", flush=True
                )
        for seed, num, arm in product(spec["seeds"], spec["labels"], ARMS):
            for method in policies:
                try:
                    with self.charge(f"{arm}, {num:,} labels"):
                        if arm != "refreshed":
                            self.freeze(arm, num, seed, method)
                        elif method.startswith("rloo"):
                            self.refresh(num, seed, method)
                except PHFError as error:  # too few labels of one kind, say: the other cells go on
                    print(f"{arm}, {num} labels, seed {seed}, {method}: left out: {error}", flush=True)

    def freeze(self, arm: str, num: int, seed: int, method: str) -> None:
        """One proxy, then a policy on it, and the best of n by it."""
        proxy = self.train_proxy(f"{arm}-{num}-{seed}", self.label_start(arm, seed)[:num], seed)
        self.measure_best(f"{arm}/{num}/{seed}/bestofn", proxy, seed)
        self.learn(f"{arm}/{num}/{seed}/{method}", self.run, method, self.spec["steps"], proxy)

    def refresh(self, num: int, seed: int, method: str) -> None:
        """A proxy for each round, on all labels so far; the policy goes on from where it is, and its KL penalty is from there."""
        rounds, place = self.spec["rounds"], self.run
        rows = self.label_start("samples", seed)[: num // rounds]
        for number in range(rounds):
            name = f"refreshed-{num}-{seed}-{method.replace(':', '-')}-{number}"
            if number:
                model, part = Run.open(place).load_model(), num // rounds
                stream = LABEL_STREAM + number
                rows = rows + self.label(name, lambda m=model, s=stream, p=part: self.write(m, p, s, seed))
            proxy = self.train_proxy(name, rows, seed)
            steps = max(1, self.spec["steps"] // rounds)
            place = self.learn(f"refreshed/{num}/{seed}/{method}/{number}", place, method, steps, proxy)

    def learn(self, key: str, place: str, method: str, steps: int, proxy: str) -> str:
        """A finetuned run, with a point at each of its checkpoints; returns its folder."""
        folder = self.out / "runs" / key.replace("/", "_").replace(":", "-")
        config = self.configure(method, int(key.split("/")[2]), steps, proxy)
        made = finetune(place, folder, config, say=lambda line: None)
        for step in made.steps:
            if f"{key}@{step}" not in self.points:
                found = self.measure(made.load_model(step), proxy, config.seed)
                self.keep(f"{key}@{step}", calls=(step - self.start.step) * self.spec["texts"], **found)
        return str(folder)

    def keep(self, key: str, **point: float) -> None:
        """A point, once."""
        self.points[key] = {"key": key, **point}
        self.write_lines("points.jsonl", list(self.points.values()))
        print(json.dumps(self.points[key]), flush=True)

    def measure(self, model: "PreTrainedModel", proxy: str, seed: int) -> dict[str, float]:
        """Gold and proxy score of a policy's texts, its distance from the start, and distinct-2 of the texts."""
        num, drawing = self.spec["samples"], self.start.drawing
        prompts = [()] * num
        texts = drawing.write(model, prompts, list_indices(num, MEASURE_STREAM, seed))
        decoded = [drawing.decode((), text) for text in texts]
        gold, learned = (
            np.array(score_samples(judge, decoded), np.float64)
            for judge in (self.gold, load_reward_model(proxy))
        )
        pieces = [split_pieces(text) for text in decoded]
        kl = float(read_gaps(self.start, model, prompts, texts).mean())
        return {
            "d": math.sqrt(max(kl, 0.0)),
            "gold": float(np.nanmean(gold)),
            "error": find_error(gold),
            "proxy": float(np.nanmean(learned)),
            "distinct": distinct_ngrams(pieces, 2, NGRAMS_PER_SAMPLE * num),
        }

    def measure_best(self, key: str, proxy: str, seed: int) -> None:
        """The best of n by a proxy, without any training: from a pool of the start's texts that no proxy has seen."""
        if f"{key}@{self.spec['best_of'][-1]}" in self.points:
            return
        pool = self.pool(seed)
        gold = np.array([row["gold"] for row in pool])
        scores = np.array(score_samples(load_reward_model(proxy), [row["text"] for row in pool]), np.float64)
        frontier = Frontier(scores, num_bootstrap=0, seed=0)
        for n in self.spec["best_of"]:
            found, learned = (best_of(scores, values, n, 500, 0) for values in (gold, scores))
            d = math.sqrt(float(find_best(frontier, n).kl[0]))
            error = max(np.nan_to_num(found.high - found.low) / 2 / Z, 1 / len(pool))
            self.keep(f"{key}@{n}", calls=n, d=d, gold=found.mean, error=error, proxy=learned.mean)

    def pool(self, seed: int) -> list[dict]:
        return self.label(
            f"pool-{seed}", lambda: self.write(self.start.model, self.spec["pool"], POOL_STREAM, seed)
        )

    # --- what is said of the points --------------------------------------------------------------------------------

    def summarise(self) -> dict:
        base = bootstrap_mean(
            [row["gold"] for seed in self.spec["seeds"] for row in self.pool(seed)], 1000, 0
        )
        ends = list(self.find_ends())
        variety = self.measure(self.start.model, self.spec["gold"], 0)["distinct"]
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
            most = max(point["calls"] for point in points)
            last = {int(p["key"].split("/")[2]): p for p in points if p["calls"] == most}
            rows = {
                name: [last[seed].get(name, math.nan) for seed in sorted(last)]
                for name in ("d", "gold", "proxy", "distinct")
            }
            rows["gap"] = [gold - proxy for gold, proxy in zip(rows["gold"], rows["proxy"], strict=True)]
            means = {name: asdict(pooled_t(values)) for name, values in rows.items()}
            yield {"arm": arm, "labels": labels, "method": method, "seeds": rows, **means}


def list_indices(num: int, stream: int, seed: int) -> list[int]:
    """Which random numbers texts are drawn with: others for each stream and seed."""
    return [index + (stream + 1000 * seed) * REDRAW for index in range(num)]


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
        for one, other in (("samples", "corpus"), ("refreshed", "corpus"), ("refreshed", "samples")):
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
    parser.add_argument("run")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--grid", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--figure", type=Path, help="default: OUT/overoptimisation.svg")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    grid = Grid(given.run, given.out, yaml.safe_load(given.grid.read_text()))
    grid.run_cells()
    results = grid.summarise()
    write_bytes(given.out / "results.json", json.dumps(results, indent=1).encode())
    draw(grid, results, given.figure or given.out / "overoptimisation.svg")
    print("\n".join(list_tables(results)))


if __name__ == "__main__":
    main()
