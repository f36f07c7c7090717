"""How many reward calls RLOO needs to meet pretraining with feedback, at equal bits per byte and variety.

    python benchmarks/crossing.py runs/mle runs/conditional runs/poisoned -o cross [--judge toxicity-lstm] [--seeds 0 1 2]

The first run has no feedback; RLOO starts from it and from the second one (in its first mode, good), with each seed, and all others stand
as they are, in their first mode. Where TRL is installed, DPO learns from the first run too, offline: from pairs of its own samples, two reward
calls each, as many a step as RLOO's. Every few steps, and of every run: score by the annotator and a held-out judge and distinct-2 of samples as
`phf evaluate` draws them, bits per byte of held-out good text in the mode; at the end also the score after 100 steps of benign finetuning, KL
from the start, tokens and FLOPs. OUT/results.json has all of it, OUT/crossing.svg the curves. A stopped command goes on.

Compute plan (1.1M parameters, one thread): 6 runs of RLOO of 40 x 2.3 + 15 CPU-seconds, 52 policies to measure of 15, 10 rounds of benign
finetuning of 40: 1,800 s, 30 CPU-minutes; DPO's 3 runs, 24 policies and 3 rounds are about 13 more. The columns that take longer are commands of their own (docs/finetune.md): `phf attack`, `phf infer`.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from fits import Learning, fall, find_crossing

from phf.api import Run
from phf.config.evaluate import BenignConfig
from phf.config.finetune import FinetuneConfig
from phf.config.train import SamplingConfig
from phf.evaluate.judges import choose_judges
from phf.evaluate.measures.bits_per_byte import bits_per_byte
from phf.evaluate.measures.degeneracy import distinct_ngrams
from phf.evaluate.measures.finetuned import finetune_benign
from phf.evaluate.pages import PageReader, mode_labels, segment_nll
from phf.evaluate.pieces import NGRAMS_PER_SAMPLE, split_pieces
from phf.files import write_bytes
from phf.finetune.loop import finetune
from phf.finetune.results import FINETUNE
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.objectives import modes_of
from phf.records import Estimate
from phf.reward_models import load_reward_model, score_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedModel

Z = 1.96
NUM_BOOTSTRAP = 1000
Found = dict[str, Estimate]


@dataclass
class Arm:
    """A run, or a method from one with a seed for each curve.

    Attributes:
        curves: by seed, what was found after so many reward calls; a run alone has one curve, of 0 calls.
        costs: reward calls once for a corpus and again for each run, tokens written, FLOPs beyond what pretraining without feedback takes.
    """

    name: str
    curves: dict[int, dict[int, Found]]
    costs: dict[str, float]

    def average(self, judge: str) -> list[Learning]:
        """One curve over seeds. Its errors are those of the samples or of the seeds, whichever is larger."""
        return [
            Learning(
                calls,
                pool([curve[calls][judge] for curve in self.curves.values()]),
                pool([curve[calls]["bits"] for curve in self.curves.values()]).mean,
                pool([curve[calls]["distinct"] for curve in self.curves.values()]).mean,
            )
            for calls in next(iter(self.curves.values()))
        ]

    def end(self, name: str) -> Estimate:
        """What was found at the end of all curves. Bits per byte of all seeds are of the same documents, whose error stays."""
        found = pool([list(curve.values())[-1][name] for curve in self.curves.values()])
        if name != "bits":
            return found
        own = next(iter(self.curves.values()))
        half = math.hypot(Z * find_error(list(own.values())[-1][name]), (found.high - found.low) / 2)
        return Estimate(found.mean, found.mean - half, found.mean + half, found.count)


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds, with the error of the samples or of the seeds, whichever is larger."""
    means, errors = (
        np.array([own.mean for own in estimates]),
        np.array([find_error(own) for own in estimates]),
    )
    spread = means.std(ddof=1) if len(means) > 1 else 0.0
    half = Z * max(float(np.sqrt((errors**2).mean())), float(spread)) / math.sqrt(len(means))
    return Estimate(float(means.mean()), float(means.mean()) - half, float(means.mean()) + half, len(means))


def find_error(own: Estimate) -> float:
    half = (own.high - own.low) / 2 / Z
    return half if math.isfinite(half) else 0.0


class Study:
    """All arms, in a folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out = given, Path(given.out)
        self.path = self.out / "policies.json"
        self.found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.data = Run.open(given.runs[0]).data()
        self.judges, _ = choose_judges(self.data.annotation, [given.judge], load_reward_model)
        self.sampling = SamplingConfig(num_samples=given.samples)
        reader = PageReader(self.data.tokens, self.data.scores, self.data.config.data.context)
        documents = reader.held_out_documents(0)[: given.documents]
        self.pages = [reader.read(int(document)) for document in documents]

    def keep(self, name: str, make: Callable[[], Found]) -> Found:
        """What a policy was found to be, measured once."""
        if name not in self.found:
            self.found[name] = {key: asdict(own) for key, own in make().items()}
            write_bytes(self.path, json.dumps(self.found, indent=1).encode())
            print(name, *(f"{key} {own['mean']:.4g}" for key, own in self.found[name].items()), flush=True)
        return {key: Estimate(**own) for key, own in self.found[name].items()}

    def measure(self, run: Run, step: int) -> Found:
        """Score, variety and bits per byte at a step."""
        target = self.open_target(run, step)
        texts = self.write(target)
        pieces = [split_pieces(text) for text in texts]
        size = target.tokenizer.vocab_size
        labels = mode_labels(self.pages, target.page_mode)
        nll = segment_nll(target.model, target.tokenizer.control, size, self.pages, labels)
        distinct = distinct_ngrams(pieces, 2, NGRAMS_PER_SAMPLE * len(pieces))
        return {
            **self.score(texts, ""),
            "distinct": Estimate(distinct, math.nan, math.nan, len(pieces)),
            "bits": bits_per_byte(self.pages, nll, self.data.threshold.value, NUM_BOOTSTRAP, 0)["good"],
        }

    def soften(self, run: Run, step: int) -> Found:
        """Score after benign finetuning."""
        model, _ = finetune_benign(run.load_model(step), run.data(), BenignConfig(steps=self.given.benign))
        return self.score(self.write(self.open_target(run, step, model)), "after_")

    def open_target(self, run: Run, step: int, model: "PreTrainedModel | None" = None) -> Target:
        config, tokenizer = run.config, run.load_tokenizer(step)
        mode = run.record["finetune"]["mode"] if run.record.get("finetune") else modes_of(config.objective)[0]
        return Target.create(
            mode, model or run.load_model(step), tokenizer, config.objective, config.segments
        )

    def write(self, target: Target) -> list[str]:
        return [sample.text for sample in target.write([()], self.sampling)]

    def score(self, texts: Sequence[str], prefix: str) -> Found:
        """By the annotator and the held-out judge."""
        return {
            f"{prefix}{role}": bootstrap_mean(score_samples(judge.model, texts), NUM_BOOTSTRAP, 0)
            for role, judge in zip(("annotator", "held_out"), self.judges, strict=True)
        }

    # --- arms ------------------------------------------------------------------------------------------------------

    def stand(self, place: str, has_feedback: bool) -> Arm:
        """A run as it is."""
        run = Run.open(place)
        step = run.resolve_step(None)
        found = self.keep(run.name, lambda: self.measure(run, step))
        found |= self.keep(f"{run.name}, softened", lambda: self.soften(run, step))
        calls = int(np.isfinite(self.data.scores).sum()) if has_feedback else 0
        return Arm(run.name, {0: {0: found}}, {"once": calls, "each": 0, "written": 0, "flops": 0})

    def learn(self, place: str, has_feedback: bool, method: str = "rloo") -> Arm:
        """A method from a run, with each seed."""
        given, start = self.given, self.stand(place, has_feedback)
        first = Run.open(place)
        curves, written = {}, []
        for seed in given.seeds:
            folder = self.out / f"{first.name}-{method}-{seed}"
            run = finetune(place, folder, self.configure(seed, method), say=lambda line: None)
            curves[seed] = {0: start.curves[0][0]}
            for step in run.steps:
                calls = (step - run.record["start"]["step"]) * given.texts
                found = self.keep(f"{run.name}@{step}", lambda r=run, s=step: self.measure(r, s))
                curves[seed][calls] = found
            found |= self.keep(f"{run.name}, softened", lambda r=run: self.soften(r, r.steps[-1]))
            results = FINETUNE.read(run.folder).results
            found["kl"] = results.find("finetune_kl_text")
            written.append(results.find("finetune_written").mean)
        # A token that is written passes the policy (DPO: the start) once, is read by the start, and is learned from: 2 + 2 + 6 FLOPs a
        # parameter.
        tokens = float(np.mean(written))
        each = {
            "each": given.steps * given.texts,
            "written": tokens,
            "flops": 10 * self.num_parameters * tokens,
        }
        return Arm(f"{first.name} + {method.upper()}", curves, {**start.costs, **each})

    @property
    def num_parameters(self) -> int:
        return int(Run.open(self.given.runs[0]).record["num_parameters"])

    def configure(self, seed: int, method: str) -> FinetuneConfig:
        """Good mode learns as it was trained, with its control token before every segment. DPO's pairs are the halves of RLOO's batches."""
        given = self.given
        shared = {
            "steps": given.steps,
            "seed": seed,
            "checkpoint_every": given.every,
            "keep_checkpoints": "all",
            "judges": [given.judge],
        }
        own = {
            "rloo": {
                "method": {"kind": "rloo", "beta": given.beta},
                "texts": given.texts,
                "sampling": {"num_samples": 256, "control": "forced"},
            },
            "dpo": {
                "method": {"kind": "dpo"},
                "texts": given.texts // 2,
                "pool": given.steps * given.texts,
                "sampling": {"num_samples": 256},
            },
        }
        return FinetuneConfig.model_validate({**shared, **own[method]})


def find_crossings(
    curves: Sequence[Arm], rivals: Sequence[Arm], start: Arm, num_draws: int = 500
) -> Iterator[dict]:
    """Where each curve meets each rival, by each judge: over all seeds, and of each seed alone."""
    distinct = start.end("distinct").mean
    for judge in ("held_out", "annotator"):
        for arm in curves:
            for rival in rivals:
                if arm.name.startswith(rival.name):  # itself, or what it starts from
                    continue
                wanted = rival.end(judge), rival.end("bits").mean

                def cross(own: Arm, num_draws: int, score=wanted[0], bits=wanted[1], judge=judge):
                    return find_crossing(
                        own.average(judge),
                        score,
                        rival_bits=bits,
                        start_distinct=distinct,
                        num_draws=num_draws,
                    )

                # Of a seed alone no interval is shown.
                seeds = [
                    cross(Arm(arm.name, {seed: curve}, arm.costs), 1).calls.mean
                    for seed, curve in arm.curves.items()
                ]
                found = cross(arm, num_draws)
                yield {
                    "judge": judge,
                    "curve": arm.name,
                    "rival": rival.name,
                    **asdict(found),
                    "seeds": seeds,
                }


def draw(arms: Sequence[Arm], curves: Sequence[Arm], crossings: Sequence[Mapping], path: Path) -> None:
    """Score, bits per byte and variety against reward calls; runs alone are lines, and crossings bars on them. Bits per byte of all are of
    the same documents: their own intervals would hide differences that are far surer."""
    plt.rcParams.update({"svg.hashsalt": "crossing", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained")
    names = ("held_out", "bits", "distinct")
    for color, arm in enumerate(arms):
        style = {"color": f"C{color}", "linewidth": 1}
        for axis, name in zip(axes, names, strict=True):
            if arm not in curves:
                own = arm.end(name)
                axis.axhline(own.mean, label=arm.name, **style)
                if name != "bits" and math.isfinite(own.low):
                    axis.axhspan(own.low, own.high, color=f"C{color}", alpha=0.12, linewidth=0)
                continue
            for curve in arm.curves.values():
                values = [found[name] for found in curve.values()]
                means = np.array([own.mean for own in values])
                errors = Z * np.array([find_error(own) * (name != "bits") for own in values])
                axis.errorbar(
                    list(curve),
                    means,
                    errors,
                    fmt="o",
                    markersize=3,
                    elinewidth=0.5,
                    label=f"{arm.name}",
                    color=f"C{color}",
                )
    draw_crossings(axes[0], arms, curves, [own for own in crossings if own["judge"] == "held_out"])
    for axis, title in zip(
        axes, ("score by the held-out judge", "bits per byte, good text", "distinct-2"), strict=True
    ):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("reward calls of a run")
    least = 0.9 * arms[0].end("distinct").mean
    axes[2].axhline(least, color="0.5", linestyle="--", linewidth=0.8, label="what is held equal")
    for arm in arms:
        if arm not in curves and arm is not arms[0]:
            axes[1].axhline(1.01 * arm.end("bits").mean, color="0.5", linestyle="--", linewidth=0.8)
    handles = dict(zip(*axes[2].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=8
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_crossings(
    axis: "Axes", arms: Sequence[Arm], curves: Sequence[Arm], crossings: Sequence[Mapping]
) -> None:
    """The fitted curves, and n_cross with its interval at the rival's score, as far as the axis goes."""
    most = max(max(curve) for arm in curves for curve in arm.curves.values())
    places = np.linspace(1, most, 200)
    for number, arm in enumerate(arms):
        own = [crossing for crossing in crossings if crossing["curve"] == arm.name]
        if own:
            fit = own[0]
            axis.plot(places, fall(places, *fit["shape"]), color=f"C{number}", linewidth=1)
        for crossing in own:
            calls = crossing["calls"]
            if math.isfinite(calls["mean"]) and 0 < calls["mean"] <= most:
                score = next(rival for rival in arms if rival.name == crossing["rival"]).end("held_out").mean
                ends = [calls["low"], min(calls["high"], most)]
                axis.plot(ends, [score, score], color=f"C{number}", linewidth=4, alpha=0.5)
                axis.plot([calls["mean"]], [score], "D", color=f"C{number}", markersize=5)


def show(own: Estimate | Mapping, digits: int = 3, most: float = math.inf) -> str:
    """A number with its interval; beyond `most` it is not known."""
    named = own if isinstance(own, dict) else asdict(own)
    mean, low, high = (
        f"> {most:,.0f}" if named[key] > most else f"{named[key]:,.{digits}f}"
        for key in ("mean", "low", "high")
    )
    return mean if math.isnan(named["low"]) else f"{mean} [{low}, {high}]"


def list_tables(
    arms: Sequence[Arm], crossings: Sequence[Mapping], num_parameters: int, tokens: int
) -> Iterator[str]:
    """In Markdown, for docs/finetune.md."""
    start, most = arms[0], max(next(iter(arms[-1].curves.values())))
    yield (
        "| arm | annotator | held-out | bits per byte | distinct-2, of the start's | after benign finetuning, held-out | KL a text "
        "| calls once | calls a run | over 10 runs | tokens written | FLOPs on top |\n|" + "---|" * 12
    )
    for arm in arms:
        last = list(next(iter(arm.curves.values())).values())[-1]
        share = arm.end("distinct").mean / start.end("distinct").mean
        cells = [show(arm.end(name)) for name in ("annotator", "held_out", "bits")]
        cells += [
            f"{share:.2f}",
            show(arm.end("after_held_out")),
            show(arm.end("kl"), 2) if "kl" in last else "",
        ]
        costs = arm.costs
        cells += [
            f"{costs['once']:,.0f}",
            f"{costs['each']:,.0f}",
            f"{costs['once'] + 10 * costs['each']:,.0f}",
        ]
        yield f"| {arm.name} | {' | '.join(cells)} | {costs['written']:,.0f} | {costs['flops']:.2g} |"
    yield f"\nPretraining is {6 * num_parameters * tokens:.2g} FLOPs (6 for each parameter and token).\n"
    yield "| judge | curve | meets | after calls | each seed alone | bits and variety hold up to | fair in |\n|---|---|---|---|---|---|---|"
    for own in crossings:
        seeds = ", ".join(show(Estimate(calls, math.nan, math.nan, 1), 0, most) for calls in own["seeds"])
        fair = "the end" if own["fair_calls"] == math.inf else f"{own['fair_calls']:,.0f}"
        yield (
            f"| {own['judge'].replace('_', '-')} | {own['curve']} | {own['rival']} | {show(own['calls'], 0, most)} | {seeds} | {fair} "
            f"| {own['fair_share']:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="without feedback, with feedback, others")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--judge", default="toxicity-lstm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--beta", type=float, default=0.05)
    sizes = {"steps": 40, "texts": 64, "every": 5, "samples": 512, "documents": 400, "benign": 100}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--figure", type=Path, help="default: OUT/crossing.svg")
    given = parser.parse_args()
    Path(given.out).mkdir(parents=True, exist_ok=True)
    study = Study(given)
    alone = [study.stand(place, has_feedback=number > 0) for number, place in enumerate(given.runs)]
    curves = [study.learn(place, has_feedback=number > 0) for number, place in enumerate(given.runs[:2])]
    if find_spec("trl"):
        curves.append(study.learn(given.runs[0], has_feedback=False, method="dpo"))
    else:
        print("offline DPO: left out without trl; pip install 'phf[rl]'")
    arms = [*alone, *curves]
    crossings = list(find_crossings(curves, [*alone[1:], curves[0]], alone[0]))
    tokens = Run.open(given.runs[0]).config.tokens
    results = {"arms": [asdict(arm) for arm in arms], "crossings": crossings}
    write_bytes(study.out / "results.json", json.dumps(results, indent=1).encode())
    draw(arms, curves, crossings, given.figure or study.out / "crossing.svg")
    print("\n".join(list_tables(arms, crossings, study.num_parameters, tokens)))


if __name__ == "__main__":
    main()
