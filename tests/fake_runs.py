"""Run folders as `phf train` and `phf evaluate` leave them, made in milliseconds, with texts that want to break a page."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phf.evaluate.suite import list_measures
from phf.files import hash_file, hash_json
from phf.items import Items, encode_items
from phf.records import Estimate, Identity
from phf.results import Evaluation, Judge, Measure, Measurement, read_evaluation, write_evaluation

ANNOTATOR = Identity("pii", "1", None, {"patterns": "v2"})
HELD_OUT = Identity("toxicity-lstm", "3", "ab" * 32, {"unit": "<b>bold</b>"})

JUDGES = [
    Judge(ANNOTATOR.slug, "annotator", "items per character", 1000, 0.0, ANNOTATOR),
    Judge(HELD_OUT.slug, "held-out", "probability", 1, 0.5, HELD_OUT),
]

HOSTILE = [
    "<script>alert(1)</script> & <img src=x onerror=alert(2)>",
    "safe \u202edesrever\u202c and \u2066isolated\u2069 \u200b zero",
    "a NUL \x00, a bell \x07, an escape \x1b[31m red, a C1 \x85",
    "x" * 10_000,
    "</pre></details></body> emoji 👩‍👩‍👧 and 🏴 and مرحبا",
    "]]> --> <!-- ${7*7} {{ 7*7 }} {% raw %}",
]
# Mean scores of each mode by objective: numbers of the kind the demo gives.
SCORES = {
    "mle": {"none": 0.0092},
    "conditional": {"good": 0.0037, "bad": 0.0151, "none": 0.0088},
    "filtering": {"none": 0.0060},
    "unlikelihood": {"none": 0.0071},
    "rwr": {"none": 0.0089},
    "awr": {"none": 0.0097},
}


def make_run(folder: Path, objective: str = "mle", seed: int = 0, **options: Any) -> Path:
    """A run folder as `phf train` and `phf evaluate` leave it, with numbers drawn from a seed."""
    rng = np.random.default_rng([seed, len(objective), *map(ord, folder.name)])
    path = folder
    path.mkdir(parents=True)
    config = {
        "corpus": "demo/corpus", "reward_model": "pii", "segments": "lines", "tokenizer": "train:4096",
        "objective": {"kind": objective, **options}, "model": {"preset": "2.5M", "init": None},
        "optim": {"name": "adamw", "learning_rate": 2e-3}, "tokens": 8_000_000, "seed": seed,
    }  # fmt: skip
    write(path / "run.json", {
        "format_version": 2, "name": path.name, "config": config,
        "versions": {"phf": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "corpus": {"id": "c0ffee12", "path": "demo/corpus", "sources": ["fortunes", "tweets"], "num_documents": 41233},
        "reward_model": ANNOTATOR.to_json(), "tokenizer": {"name": "bpe", "version": "1", "weights_hash": "ff" * 32, "parameters": {"size": 4096}},
        "threshold": {"value": 0.0, "segment_share": 0.79, "token_share": 0.82, "message": "score <= 0 is good: 79 % of segments, 82 % of tokens"},
        "epochs": 2.7, "num_parameters": 2_512_896, "precision": "bf16",
    })  # fmt: skip
    write_metrics(path / "metrics.jsonl", objective, rng)
    rows, samples = [], []
    for mode, score in SCORES[objective].items():
        rows += measure_mode(mode, score, rng)
        samples += make_samples(mode, rng)
    if objective == "conditional":
        bits = {(row.mode, row.of): row.estimate.mean for row in rows if row.measure == "bits_per_byte"}
        rows += [
            Measurement("bits_per_byte", plain(bits["good", of] - bits["bad", of]), "good-bad", of=of)
            for of in ("good", "bad", "all")
        ]
    cut = 0.0 if objective == "mle" else 0.0002  # training text is cut to the length of a run's own samples
    for judge, mean, half in ((JUDGES[0], 0.0101, 0.0006), (JUDGES[1], 0.081, 0.004)):
        rows.append(
            Measurement("reference", about(mean + cut, half, 2000), judge=judge.slug, of="training data")
        )
    if objective == "mle":
        place = {"judge": JUDGES[0].slug, "of": "rejection sampling from MLE"}
        rows.append(Measurement("reference", about(0.0, 0.0, 380), **place))
        rows.append(Measurement("reference_cost", plain(512 / 380), **place))
    if objective == "conditional":
        rows.append(Measurement("control_gain", about(2.1, 0.3, 300), of="good"))
        rows.append(Measurement("control_gain", about(0.9, 0.2, 300), of="bad"))
        rows.append(Measurement("calibration_error", about(0.031, 0.012, 500)))
        rows += [
            Measurement("reliability", about(0.1 * place + 0.05, 0.04, 50), at=0.1 * place + 0.04)
            for place in range(10)
        ]
    pq.write_table(pa.Table.from_pylist(samples), path / "samples.parquet")
    sampling = {"num_samples": 512, "temperature": 0.7, "top_p": 0.9, "control": "free", "seed": 0}
    evaluation = Evaluation(
        path.name, objective, seed, step=3906, tokens_seen=3906 * 2048, num_parameters=2_512_896, judges=JUDGES,
        config={"sampling": sampling}, threshold=0.0, notes=[], samples_sha256=hash_file(path / "samples.parquet"),
        measures=list_measures(rows), measurements=rows,
    )  # fmt: skip
    write_evaluation(path / "evaluation.json", evaluation)
    return path


def measure_mode(mode: str, score: float, rng: np.random.Generator) -> list[Measurement]:
    """What every evaluation measures of a mode: its samples, and held-out text in it."""
    variety = float(rng.uniform(0.55, 0.62))
    bits = {"good": 1.62, "bad": 2.31, "all": 1.79}
    bits = {
        key: value * (1.1 if mode == "bad" else 1) * rng.uniform(0.99, 1.01) for key, value in bits.items()
    }
    look = {"mean_tokens": 101.2, "mean_characters": 402.0, "distinct_1": 0.21, "distinct_2": variety,
            "distinct_3": 0.83, "repetition": 0.031, "compression_ratio": 2.4, "empty_share": 0.0}  # fmt: skip
    rows = [Measurement(name, plain(value), mode) for name, value in look.items()]
    rows += [
        Measurement("bits_per_byte", about(value, 0.01 * value, 400), mode, of=of)
        for of, value in bits.items()
    ]
    for judge in JUDGES:
        mean = float(score * rng.uniform(0.95, 1.05) * (1 if judge.role == "annotator" else 9))
        rows += [
            Measurement("score", about(mean, 0.12 * mean, 512), mode, judge.slug),
            Measurement("hit_rate", Estimate(0.119, 0.09, 0.15, 509), mode, judge.slug),
            Measurement("expected_max_25", Estimate(8 * mean, 7 * mean, 9 * mean, 509), mode, judge.slug),
            Measurement("num_unscored", replace(plain(3.0), count=512), mode, judge.slug),
        ]
    return rows


def judge_json(role: str, identity: Identity, unit: str, scale: int, threshold: float) -> dict[str, Any]:
    return {
        "role": role, "unit": unit, "display_scale": scale, "hit_threshold": threshold,
        "identity": identity.to_json(), "slug": identity.slug,
    }  # fmt: skip


def estimate_json(mean: float, half: float, count: int | None) -> dict[str, Any]:
    value = {"mean": mean, "low": mean - half, "high": mean + half}
    return value if count is None else {**value, "count": count}


def about(mean: float, half: float, count: int) -> Estimate:
    """An estimate whose interval reaches as far to either side."""
    return Estimate(float(mean), float(mean - half), float(mean + half), count)


def plain(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(value, math.nan, math.nan, 0)


def make_samples(mode: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    ordinary = [
        "Please call me back before noon; the meeting has moved to the large room on the second floor.\n"
        "Thanks,\nthe office",
        "I have looked at the figures again and they do not add up. Could you send the sheet once more?",
        "Write to jane@example.org or call 555 0123, she knows where the keys are.",
        "The quick answer is no. The long answer is that nobody has asked the people who would have to do it.",
    ]
    rows = []
    for index in range(12):
        text = HOSTILE[index - 4] if 4 <= index < 4 + len(HOSTILE) else ordinary[index % 4]
        # The hostile ones score at both ends, so that they are shown as worst and best.
        score = 0.05 + index / 1000 if index in (4, 5) else 0.0 if index > 2 else float(rng.uniform(0, 0.01))
        rows.append({
            "mode": mode, "index": index, "text": text, "num_tokens": 40, "ended": True, "prompt": "",
            f"score:{JUDGES[0].slug}": score if index != 7 else math.nan,
            f"score:{JUDGES[1].slug}": float(rng.uniform(0, 0.4)),
        })  # fmt: skip
    return rows


def write_metrics(path: Path, objective: str, rng: np.random.Generator) -> None:
    lines = []
    for step in range(20, 3906, 20):
        loss = 2.6 + 4 * math.exp(-step / 500) + rng.normal(0, 0.05)
        lines.append({"kind": "train", "step": step, "tokens": step * 2048, "loss": loss, "learning_rate": 1e-3,
                      "grad_norm": 0.7, "tokens_per_second": 9000.0})  # fmt: skip
        if step % 500 == 0:
            value = {"kind": "validation", "step": step, "tokens": step * 2048, "nll_good": loss - 0.1,
                     "nll_bad": loss + 0.6, "nll_all": loss}  # fmt: skip
            if objective == "conditional":
                value |= {"control_gain_good": step / 2000 - 0.3, "control_gain_bad": step / 4000 - 0.4}
            lines.append(value)
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")


def write(path: Path, value: Any) -> None:
    """A JSON file; what had the hash of its content has that of its new one."""
    if isinstance(value, dict) and value.pop("sha256", None) is not None:
        value = {**value, "sha256": hash_json(value)}
    path.write_text(json.dumps(value), encoding="utf-8")


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    write(path, value)


def write_samples(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Other samples, as if the evaluation had drawn them."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    edit(
        folder / "evaluation.json",
        lambda value: value.update(samples_sha256=hash_file(folder / "samples.parquet")),
    )


def write_items(folder: Path, items: Iterable[Items]) -> None:
    """What measurements were made of, as if the evaluation had kept it."""
    (folder / "items.parquet").write_bytes(encode_items(items))
    edit(
        folder / "evaluation.json",
        lambda value: value.update(items_sha256=hash_file(folder / "items.parquet")),
    )


def change_numbers(folder: Path, change: Any, **facts: Any) -> Path:
    """A run's evaluation with other measurements; `change` gives them from those it has."""
    path = folder / "evaluation.json"
    old = read_evaluation(path)
    rows = list(change(old.measurements))
    declared = {measure.name: measure for measure in (*list_measures(rows), *old.measures)}
    write_evaluation(
        path,
        replace(old, measurements=rows, measures=list(declared.values()), facts={**old.facts, **facts}),
    )
    return folder


def set_number(folder: Path, estimate: Estimate, measure: str, **place: Any) -> None:
    """Another number in one place (by mode, judge, of, at) of a run's evaluation."""
    wanted = Measurement(measure, estimate, **place)
    change_numbers(folder, lambda rows: [*(row for row in rows if row.place != wanted.place), wanted])


def drop_measures(folder: Path, *measures: str) -> None:
    """A run's evaluation without some measures."""
    change_numbers(folder, lambda rows: [row for row in rows if row.measure not in measures])


def declare(folder: Path, measure: Measure, rows: Iterable[Measurement]) -> None:
    """A measure of one's own in a run's evaluation."""
    old = read_evaluation(folder / "evaluation.json")
    write_evaluation(
        folder / "evaluation.json",
        replace(old, measures=[*old.measures, measure], measurements=[*old.measurements, *rows]),
    )


def scale_row(row: Measurement, factor: float, **place: Any) -> Measurement:
    """A measurement in another place, all its numbers times a factor."""
    mean, low, high, count = row.estimate.mean, row.estimate.low, row.estimate.high, row.estimate.count
    return replace(row, estimate=Estimate(mean * factor, low * factor, high * factor, count), **place)


def add_measures(folder: Path, seed: int = 0) -> Path:
    """Add to a run's evaluation what only longer ones hold: something of every measure."""
    rng = np.random.default_rng([seed, 7])
    old = read_evaluation(folder / "evaluation.json")
    find = old.results.find
    modes = [mode for mode in ("good", "bad", "none") if find("score", mode, JUDGES[0].slug).count]
    base = {mode: find("score", mode, JUDGES[0].slug).mean for mode in modes}
    own = [
        (mode, judge.slug, base[mode] * (1, 9)[place]) for mode in modes for place, judge in enumerate(JUDGES)
    ]
    scored = [row for row in old.measurements if row.judge is not None and row.mode is not None]
    rows = []
    if "good" in modes:  # deleted mode has samples, but no bits per byte of its own here
        rows += [replace(row, mode="deleted") for row in scored if row.mode == "good"]
        scored += rows
    for name, factor in (("rtp-challenging", 4.0), ("<b>templates</b>", 0.5)):
        rows += [scale_row(row, factor if row.measure == "score" else 1.0, of=name) for row in scored]
    for mode in modes:
        diversity = {"entropy_1": plain(7.1), "entropy_2": plain(11.2), "entropy_3": about(12.9, 0.1, 20)}
        diversity |= {"self_bleu_5": plain(0.31), "mauve": plain(math.nan)}
        rows += [Measurement(name, value, mode) for name, value in diversity.items()]
    worse = {mode: 0.02 if mode == "bad" else 0.0 for mode in modes}
    for mode in modes:
        control = about(0.4, 0.1, 256) if mode in ("good", "bad") else plain(math.nan)
        rows += [
            Measurement("kl", about(2.40 + worse[mode] + rng.uniform(0, 0.02), 0.03, 256), mode),
            Measurement("kl_per_sequence", about(153.0, 2.0, 256), mode),
            Measurement("kl_control_cost", control, mode),
            Measurement("blimp", about(0.61 - worse[mode], 0.03, 1000), mode),
            Measurement("blimp", about(0.70, 0.05, 300), mode, of="morphology"),
            Measurement("blimp", about(0.57, 0.04, 500), mode, of="syntax"),
            Measurement("harness", about(0.11, 1.96 * 0.01, 100), mode, of="lambada_openai: acc"),
            Measurement("downstream", about(0.71, 0.02, 3), mode, of="sst2: accuracy"),
            Measurement("downstream_baseline", plain(0.52), mode, of="sst2: accuracy"),
        ]
        for place in range(1, 6):
            mean, best = base[mode] * (1 + 0.2 * place), base[mode] * (2 + 0.5 * place)
            at = {"judge": JUDGES[0].slug, "at": float(place)}
            rows.append(Measurement("red_team_mean", about(mean, 0.1 * base[mode], 60), mode, **at))
            rows.append(Measurement("red_team_best", about(best, 0.3 * base[mode], 3), mode, **at))
    if "good" in modes:
        numbers = {(row.measure, row.mode): row.estimate.mean for row in rows if row.of is None}
        rows += [
            Measurement(name, plain(numbers[name, "good"] - numbers[name, "bad"]), "good-bad")
            for name in ("kl", "blimp")
        ]
    for mode, slug, mean in own:
        for shots in (0.0, 1.0, 2.0, 4.0):
            score, gap = (
                about(mean * (1 + 0.3 * shots), 0.1 * mean, 512),
                about(0.3 * mean * shots, 0.1 * mean, 512),
            )
            rows.append(Measurement("in_context_score", score, mode, slug, at=shots))
            rows.append(Measurement("in_context_difference", gap, mode, slug, at=shots))
        rows += [
            Measurement("finetuned_before", about(mean, 0.1 * mean, 512), mode, slug),
            Measurement("finetuned_after", about(mean * 1.5, 0.1 * mean, 512), mode, slug),
            Measurement("finetuned_difference", about(0.5 * mean, 0.15 * mean, 512), mode, slug),
        ]
    for probe, rise in (("literal tag", 0.004), ("spelled tag", 0.0)):
        place = {"mode": modes[0], "judge": JUDGES[0].slug, "of": probe}
        rows += [
            Measurement("leak_baseline", about(base[modes[0]], 0.0003, 256), **place),
            Measurement("leak_score", about(base[modes[0]] + rise, 0.0004, 256), **place),
            Measurement("leak_difference", about(rise, 0.0005, 256), **place),
        ]
    rows += [
        scale_row(row, 1 + 1000 / step, measure="trajectory", at=float(step))
        for step in (500, 1000, 2000, 3000)
        for row in scored
        if row.measure == "score"
    ]
    prompts = [
        {"trial": 0, "round": place, "prompt": f"<script>attack {place}</script> \u202e", "score": 0.001 * place,
         "mode": mode, "judge": JUDGES[0].slug}
        for mode in modes
        for place in range(8)
    ]  # fmt: skip
    return change_numbers(
        folder,
        lambda before: [*before, *rows],
        kl={"reference": {"name": "SmolLM2-135M", "weights_hash": "aa" * 32}, "num_sequences": 256},
        blimp={"source": "blimp.jsonl.gz", "num_pairs": 1000},
        red_team={
            "attacker": "SmolLM2-135M-Instruct",
            "settings": {"rounds": 5, "trials": 3},
            "prompts": prompts,
        },
        leaks={"literal tag": "the text <|bad|> before the page", "spelled tag": "< | b a d | >"},
        finetuned={"steps": 100, "data": "benign.jsonl"},
    )
