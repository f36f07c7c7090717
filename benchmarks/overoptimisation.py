"""How far a trained reward model can be trusted, frozen or refreshed; and how many reward calls it takes to meet a rival run.

    python benchmarks/overoptimisation.py grid runs/mle -o grid [--grid benchmarks/overoptimisation.yaml]
    python benchmarks/overoptimisation.py cross runs/mle runs/conditional -o cross [--judge toxicity-lstm] [--steps 40] [--every 5]

`grid`: every cell of the YAML trains proxies on gold labels, then policies on the proxies; OUT/points.jsonl has gold and proxy score
against d = sqrt(KL from the start), OUT/results.json the forms fitted to smaller d and judged on larger ones. `cross`: RLOO from the first
run, evaluated every few steps, against the second run in its first mode. Both go on where they were stopped: runs resume, and a point that
is in the file is not measured again.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import torch
import yaml

from phf.api import Run, train_reward_model
from phf.config.evaluate import EvaluateConfig
from phf.config.finetune import FinetuneConfig, parse_method
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_run
from phf.files import write_bytes
from phf.finetune.fits import Learning, find_crossing, fit_forms
from phf.finetune.loop import finetune
from phf.finetune.pool import Pool
from phf.finetune.start import Start
from phf.generate.target import REDRAW
from phf.intervals import best_of, bootstrap_mean
from phf.objectives import modes_of
from phf.posterior.frontier import Frontier
from phf.posterior.frontier import best_of as find_best
from phf.reward_models import load_reward_model, score_samples

_LABEL_STREAM, _MEASURE_STREAM = 3, 2
_Z = 1.96


class Grid:
    """The cells over one start run, in a folder."""

    def __init__(self, run: str, out: Path, spec: dict) -> None:
        self.run, self.out, self.spec = run, out, spec
        self.gold = load_reward_model(spec["gold"])
        self.points_file = out / "points.jsonl"
        lines = self.points_file.read_text().splitlines() if self.points_file.exists() else []
        self.points = {point["key"]: point for point in map(json.loads, lines)}

    def config(self, method: str, seed: int, steps: int, reward: str | None = None, **more) -> FinetuneConfig:
        spec = self.spec
        return FinetuneConfig.model_validate(
            {
                "method": parse_method(method).model_dump(),
                "steps": steps,
                "texts": spec["texts"],
                "seed": seed,
                "reward": reward,
                "checkpoint_every": spec["every"],
                "keep_checkpoints": "all",
                "sampling": {"num_samples": spec["samples"]},
                **more,
            }
        )

    def keep(self, key: str, **point) -> None:
        """A point, once."""
        if key not in self.points:
            self.points[key] = {"key": key, **point}
            with self.points_file.open("a") as file:
                file.write(json.dumps(self.points[key]) + "\n")

    def run_cells(self) -> None:
        spec = self.spec
        for arm, num, seed in product(spec["arms"], spec["labels"], spec["seeds"]):
            for method in spec["policies"]:
                try:
                    if arm == "refreshed" and method.startswith("rloo"):
                        self.refresh(num, seed, method)
                    elif arm != "refreshed":
                        self.freeze(arm, num, seed, method)
                except PHFError as error:  # too few labels of one kind, say: the other cells go on
                    print(f"{arm}, {num} labels, seed {seed}, {method}: left out: {error}")

    def freeze(self, arm: str, num: int, seed: int, method: str) -> None:
        """One proxy, then a policy on it."""
        proxy = self.train_proxy(f"{arm}-{num}-{seed}", self.label(arm, num, seed, self.run, 0), seed)
        key = f"{arm}/{num}/{seed}/{method}"
        folder = self.out / "runs" / key.replace("/", "_").replace(":", "-")
        config = self.config(method, seed, self.spec["steps"], proxy, mode=None)
        made = finetune(self.run, folder, config, say=lambda line: None)
        if method.startswith("bestofn"):
            self.measure_best(key, made, config)
        else:
            self.measure_run(key, made, proxy)

    def refresh(self, num: int, seed: int, method: str) -> None:
        """A proxy for each round, on all labels so far; the policy goes on from where it is, and its KL penalty is from there."""
        rounds, place = self.spec["rounds"], self.run
        rows: list[str] = []
        for number in range(rounds):
            rows += self.label("samples", num // rounds, seed, place, number)
            proxy = self.train_proxy(
                f"refreshed-{num}-{seed}-{method.replace(':', '-')}-{number}", rows, seed
            )
            key = f"refreshed/{num}/{seed}/{method}/{number}"
            folder = self.out / "runs" / key.replace("/", "_").replace(":", "-")
            config = self.config(method, seed, max(1, self.spec["steps"] // rounds), proxy)
            made = finetune(place, folder, config, say=lambda line: None)
            self.measure_run(key, made, proxy)
            place = str(folder)

    def label(self, arm: str, num: int, seed: int, place: str, number: int) -> list[str]:
        """Texts with the gold judge's score as JSON lines."""
        if arm == "corpus":
            texts = self.read_segments(num, seed)
        else:
            start = Start.open(place, self.config("rloo", seed, 1), load_reward_model)
            indices = [index + (_LABEL_STREAM + number) * REDRAW for index in range(num)]
            written = start.drawing.write(start.model, [()] * num, indices)
            texts = [start.drawing.decode((), text) for text in written]
        scores = score_samples(self.gold, texts)
        pairs = [(text, score) for text, score in zip(texts, scores, strict=True) if math.isfinite(score)]
        return [
            json.dumps({"text": text, "label": min(max(float(score), 0.0), 1.0)}) for text, score in pairs
        ]

    def read_segments(self, num: int, seed: int) -> list[str]:
        from phf.attack.targets import Segments

        tokens = Run.open(self.run).data().tokens
        is_train = np.repeat(tokens.is_train, tokens.document_segments) & (tokens.segment_lengths > 0)
        chosen = np.random.default_rng(seed).permutation(np.flatnonzero(is_train))[:num]
        return [tokens.tokenizer.decode(ids) for ids in Segments(tokens, chosen)]

    def train_proxy(self, name: str, rows: list[str], seed: int) -> str:
        """The folder of a reward model trained on labels, a text once."""
        folder = self.out / "proxies" / name
        if not folder.exists():
            once = {json.loads(row)["text"]: row for row in rows}
            labels = self.out / "labels" / f"{name}.jsonl"
            write_bytes(labels, "".join(f"{row}\n" for row in once.values()).encode())
            folder.parent.mkdir(parents=True, exist_ok=True)
            train_reward_model(labels, folder, seed=seed)
        return str(folder)

    def measure_run(self, key: str, made: Run, proxy: str) -> None:
        """Gold and proxy score and d at each checkpoint, from the start of all."""
        start = Start.open(self.run, self.config("rloo", 0, 1), load_reward_model)
        steps = [step for step in made.steps if f"{key}@{step}" not in self.points]
        for step in steps:
            own = Start.open(f"{made.folder}@{step}", self.config("rloo", 0, 1), load_reward_model)
            self.keep(f"{key}@{step}", **self.measure(start, own, proxy))

    def measure(self, start: Start, own: Start, proxy: str) -> dict[str, float]:
        num = self.spec["samples"]
        indices = [index + _MEASURE_STREAM * REDRAW for index in range(num)]
        texts = own.drawing.write(own.model, [()] * num, indices)
        gaps = []
        with torch.no_grad():
            for first in range(0, num, 128):
                part = texts[first : first + 128]
                ours, theirs = (
                    one.drawing.log_probs(one.model, one.drawing.lay_out([()] * len(part), part))
                    .double()
                    .sum(1)
                    for one in (own, start)
                )
                gaps.append((ours - theirs).numpy())
        decoded = [own.drawing.decode((), text) for text in texts]
        gold, learned = (
            bootstrap_mean(score_samples(model, decoded), 500, 0)
            for model in (self.gold, load_reward_model(proxy))
        )
        return {
            "d": math.sqrt(max(float(np.concatenate(gaps).mean()), 0.0)),
            "gold": gold.mean,
            "error": (gold.high - gold.low) / 2 / _Z,
            "proxy": learned.mean,
        }

    def measure_best(self, key: str, made: Run, config: FinetuneConfig) -> None:
        """The best of n by the proxy, from the run's own pool."""
        start = Start.open(self.run, config, load_reward_model)
        pool = Pool.draw(start, made.folder, made.id)
        _, texts = pool.take(range(len(pool.texts)))
        gold = score_samples(self.gold, [start.drawing.decode((), text) for text in texts])
        frontier = Frontier(pool.scores, num_bootstrap=0, seed=0)
        for n in (2, 4, 8, 16, 32, 64):
            found, learned = (best_of(pool.scores, values, n, 500, 0) for values in (gold, pool.scores))
            self.keep(
                f"{key}@{n}",
                d=math.sqrt(float(find_best(frontier, n).kl[0])),
                gold=found.mean,
                error=(found.high - found.low) / 2 / _Z,
                proxy=learned.mean,
            )

    def fit(self) -> Iterator[dict]:
        """For each arm, number of labels and kind of policy: the forms of its gain in gold score, over seeds and betas together."""
        start = Start.open(self.run, self.config("rloo", 0, 1), load_reward_model)
        base = self.measure(start, start, self.spec["gold"])["gold"]
        groups: dict[tuple[str, str, str], list[dict]] = {}
        for key, point in self.points.items():
            arm, num, _, method = key.split("@")[0].split("/")[:4]
            if point["d"] > 0.05:
                groups.setdefault((arm, num, method.partition(":")[0]), []).append(point)
        for (arm, num, kind), points in sorted(groups.items()):
            d, gold, errors, proxy = (
                np.array([p[name] for p in points]) for name in ("d", "gold", "error", "proxy")
            )
            row = {"arm": arm, "labels": int(num), "policy": kind, "points": len(points), "start": base}
            farthest = int(d.argmax())
            row |= {"d": float(d[farthest]), "gold": float(gold[farthest]), "proxy": float(proxy[farthest])}
            if len(points) >= 6:
                row["forms"] = [asdict(form) for form in fit_forms(d, base - gold, errors)]
            yield row


def run_grid(given: argparse.Namespace) -> None:
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    grid = Grid(given.run, out, yaml.safe_load(Path(given.grid).read_text()))
    grid.run_cells()
    rows = list(grid.fit())
    write_bytes(out / "results.json", json.dumps(rows, indent=1).encode())
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "forms"}))
        for place, form in enumerate(row.get("forms", ())):
            name = ("best", "rival", "last")[place]
            print(
                f"  {name}: {form['form']}, error on larger d {form['error']:.4f}, best in {form['wins']:.0%} of the draws"
            )


def run_cross(given: argparse.Namespace) -> None:
    """RLOO's learning curve by the held-out judge, and where it meets the rival."""
    out = Path(given.out)
    settings = {"judges": [given.judge], "sampling": {"num_samples": given.samples}}
    config = EvaluateConfig.model_validate(settings)
    learning = FinetuneConfig.model_validate(
        {
            "method": parse_method(given.method).model_dump(),
            "steps": given.steps,
            "texts": given.texts,
            "checkpoint_every": given.every,
            "keep_checkpoints": "all",
            "judges": [given.judge],
        }
    )
    made = finetune(given.run, out / "rloo", learning)
    slug = load_reward_model(given.judge).identity.slug

    def read(run: Run, calls: float, step: int | None = None) -> Learning:
        mode = modes_of(run.config.objective)[0]
        found = evaluate_run(run, config, step=step, say=lambda line: None).results.find
        return Learning(
            calls,
            found("score", mode=mode, judge=slug),
            found("bits_per_byte", mode=mode, of="good").mean,
            found("distinct_2", mode=mode).mean,
        )

    first = Run.open(given.run)
    curve = [read(first, 0)]
    start = made.record["start"]["step"]
    curve += [read(made, (step - start) * given.texts, step) for step in made.steps]
    rival = read(Run.open(given.rival), 0)
    crossing = find_crossing(curve, rival.score, rival_bits=rival.bits, start_distinct=curve[0].distinct)
    write_bytes(
        out / "crossing.json",
        json.dumps(
            {
                "curve": [asdict(point) for point in curve],
                "rival": asdict(rival),
                "crossing": asdict(crossing),
            },
            indent=1,
        ).encode(),
    )
    for point in (*curve, rival):
        score = point.score
        print(
            f"{point.calls:6.0f} calls: {given.judge} {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}], "
            f"{point.bits:.3f} bits per byte, distinct-2 {point.distinct:.3f}"
        )
    calls = crossing.calls
    print(f"meets the rival (last line) after {calls.mean:,.0f} [{calls.low:,.0f}, {calls.high:,.0f}] calls")
    print(
        f"bits per byte and variety hold up to {crossing.fair_calls:,.0f} calls; fair in {crossing.fair_share:.0%} of the draws"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    grid = commands.add_parser("grid")
    grid.add_argument("run")
    grid.add_argument("-o", "--out", required=True)
    grid.add_argument("--grid", default=str(Path(__file__).with_suffix(".yaml")))
    grid.set_defaults(call=run_grid)
    cross = commands.add_parser("cross")
    cross.add_argument("run")
    cross.add_argument("rival")
    cross.add_argument("-o", "--out", required=True)
    cross.add_argument("--judge", default="toxicity-lstm")
    cross.add_argument("--method", default="rloo")
    for name, value in (("steps", 40), ("texts", 64), ("every", 5), ("samples", 512)):
        cross.add_argument(f"--{name}", type=int, default=value)
    cross.set_defaults(call=run_cross)
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
