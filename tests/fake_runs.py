"""Run folders as `phf train` and `phf evaluate` leave them, made in milliseconds, with texts that want to break a page."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phf.records import Identity

ANNOTATOR = Identity("pii", "1", None, {"patterns": "v2"})
HELD_OUT = Identity("toxicity-lstm", "3", "ab" * 32, {"unit": "<b>bold</b>"})

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
        "format_version": 1, "name": path.name, "config": config,
        "versions": {"phf": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "corpus": {"id": "c0ffee12", "path": "demo/corpus", "sources": ["fortunes", "tweets"], "num_documents": 41233},
        "reward_model": ANNOTATOR.to_json(), "tokenizer": {"name": "bpe", "version": "1", "weights_hash": "ff" * 32, "parameters": {"size": 4096}},
        "threshold": {"value": 0.0, "segment_share": 0.79, "token_share": 0.82, "message": "score <= 0 is good: 79 % of segments, 82 % of tokens"},
        "epochs": 2.7, "num_parameters": 2_512_896, "precision": "bf16",
    })  # fmt: skip
    write_metrics(path / "metrics.jsonl", objective, rng)
    judges = [
        judge_json("annotator", ANNOTATOR, "items per character", 1000, 0.0),
        judge_json("held-out", HELD_OUT, "probability", 1, 0.5),
    ]
    rows, modes, samples = [], {}, []
    for mode, score in SCORES[objective].items():
        variety = float(rng.uniform(0.55, 0.62))
        bits = {"good": 1.62, "bad": 2.31, "all": 1.79}
        bits = {
            key: value * (1.1 if mode == "bad" else 1) * rng.uniform(0.99, 1.01)
            for key, value in bits.items()
        }
        modes[mode] = {
            "degeneracy": {"mean_tokens": 101.2, "mean_characters": 402.0, "distinct_1": 0.21, "distinct_2": variety,
                           "distinct_3": 0.83, "repetition": 0.031, "compression_ratio": 2.4, "empty_share": 0.0},
            "bits_per_byte": {key: estimate_json(value, 0.01 * value, 400) for key, value in bits.items()},
        }  # fmt: skip
        for judge in judges:
            mean = score * rng.uniform(0.95, 1.05) * (1 if judge["role"] == "annotator" else 9)
            rows.append({
                "run": path.name, "objective": objective, "seed": seed, "mode": mode, "judge": judge["slug"], "role": judge["role"],
                **estimate_json(mean, 0.12 * mean, None), "hits": 61, "hit_rate": 0.119, "hit_low": 0.09, "hit_high": 0.15,
                "num_samples": 512, "num_unscored": 3, "expected_max_25": 8 * mean, "expected_max_25_low": 7 * mean,
                "expected_max_25_high": 9 * mean, "distinct_2": variety, "bits_per_byte": bits["all"],
            })  # fmt: skip
        samples += make_samples(mode, judges, rng)
    gain = (
        {"good": estimate_json(2.1, 0.3, 300), "bad": estimate_json(0.9, 0.2, 300)}
        if objective == "conditional"
        else None
    )
    calibration = (
        {
            "error": estimate_json(0.031, 0.012, 500),
            "bins": [
                {"posterior": 0.1 * place + 0.04, "good": estimate_json(0.1 * place + 0.05, 0.04, 50)}
                for place in range(10)
            ],
        }
        if objective == "conditional"
        else None
    )
    cut = 0.0 if objective == "mle" else 0.0002  # training text is cut to the length of a run's own samples
    write(path / "evaluation.json", {
        "format_version": 1, "run": path.name, "objective": objective, "seed": seed, "tokens_seen": 8_000_000,
        "num_parameters": 2_512_896, "step": 3906, "judges": judges,
        "sampling": {"num_samples": 512, "temperature": 0.7, "top_p": 0.9, "control": "free", "seed": 0},
        "threshold": 0.0, "rows": rows, "modes": modes, "control_gain": gain, "calibration": calibration,
        "references": [
            {"name": "training data", "judge": judges[0]["slug"], **estimate_json(0.0101 + cut, 0.0006, 2000), "cost": None},
            {"name": "training data", "judge": judges[1]["slug"], **estimate_json(0.081 + cut, 0.004, 2000), "cost": None},
        ] + ([
            {"name": "rejection sampling from MLE", "judge": judges[0]["slug"], **estimate_json(0.0, 0.0, 380), "cost": 512 / 380},
        ] if objective == "mle" else []),
    })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(samples), path / "samples.parquet")
    return path


def judge_json(role: str, identity: Identity, unit: str, scale: int, threshold: float) -> dict[str, Any]:
    return {
        "role": role, "unit": unit, "display_scale": scale, "hit_threshold": threshold,
        "identity": identity.to_json(), "slug": identity.slug,
    }  # fmt: skip


def estimate_json(mean: float, half: float, count: int | None) -> dict[str, Any]:
    value = {"mean": mean, "low": mean - half, "high": mean + half}
    return value if count is None else {**value, "count": count}


def make_samples(mode: str, judges: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
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
            f"score:{judges[0]['slug']}": score if index != 7 else math.nan,
            f"score:{judges[1]['slug']}": float(rng.uniform(0, 0.4)),
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
    path.write_text(json.dumps(value), encoding="utf-8")


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    write(path, value)


def add_measures(folder: Path, seed: int = 0) -> Path:
    """Add to a run's evaluation what only longer ones hold: every optional key of evaluation.json (docs/evaluation.md)."""
    rng = np.random.default_rng([seed, 7])
    path = folder / "evaluation.json"
    value = json.loads(path.read_text("utf-8"))
    modes, slugs = list(value["modes"]), [judge["slug"] for judge in value["judges"]]
    base = {row["mode"]: row["mean"] for row in value["rows"] if row["judge"] == slugs[0]}
    own = {mode: {slugs[0]: base[mode], slugs[1]: 9 * base[mode]} for mode in modes}
    for row in value["rows"]:
        row["scenario"] = "unprompted"
    for mode in modes:
        value["modes"][mode]["diversity"] = {
            "entropy_1": 7.1, "entropy_2": 11.2, "entropy_3": estimate_json(12.9, 0.1, 20), "self_bleu_5": 0.31,
            "mauve": None,
        }  # fmt: skip
    if "good" in modes:  # deleted mode has samples, but no bits per byte of its own here
        value["rows"] += [
            {**row, "mode": "deleted", "mean": row["mean"] * 1.1}
            for row in value["rows"]
            if row["mode"] == "good"
        ]
    value["rows"] += [
        {**row, "scenario": name, "mean": row["mean"] * factor, "low": row["low"] * factor, "high": row["high"] * factor}
        for name, factor in (("rtp-challenging", 4.0), ("<b>templates</b>", 0.5))
        for row in list(value["rows"])
    ]  # fmt: skip
    worse = {mode: 0.02 if mode == "bad" else 0.0 for mode in modes}
    value["kl"] = {
        "reference": {"name": "SmolLM2-135M", "weights_hash": "aa" * 32}, "num_sequences": 256,
        "modes": {
            mode: {
                "per_token": estimate_json(2.40 + worse[mode] + rng.uniform(0, 0.02), 0.03, 256),
                "per_sequence": estimate_json(153.0, 2.0, 256),
                "control_cost": estimate_json(0.4, 0.1, 256) if mode in ("good", "bad") else None,
            }
            for mode in modes
        },
    }  # fmt: skip
    value["blimp"] = {
        "source": "blimp.jsonl.gz", "num_pairs": 1000,
        "modes": {
            mode: {
                "accuracy": estimate_json(0.61 - worse[mode], 0.03, 1000),
                "fields": {"morphology": estimate_json(0.70, 0.05, 300), "syntax": estimate_json(0.57, 0.04, 500)},
            }
            for mode in modes
        },
    }  # fmt: skip
    value["red_team"] = {
        "attacker": "SmolLM2-135M-Instruct", "settings": {"rounds": 5, "trials": 3},
        "modes": {
            mode: {
                "judge": slugs[0],
                "rounds": [
                    {"round": place, "mean": estimate_json(base[mode] * (1 + 0.2 * place), 0.1 * base[mode], 60),
                     "best": estimate_json(base[mode] * (2 + 0.5 * place), 0.3 * base[mode], 3)}
                    for place in range(1, 6)
                ],
                "prompts": [
                    {"trial": 0, "round": place, "prompt": f"<script>attack {place}</script> \u202e", "score": 0.001 * place}
                    for place in range(8)
                ],
            }
            for mode in modes
        },
    }  # fmt: skip
    value["in_context"] = {
        "modes": {
            mode: {
                slug: [
                    {
                        "shots": shots,
                        "score": estimate_json(mean * (1 + 0.3 * shots), 0.1 * mean, 512),
                        "difference": estimate_json(0.3 * mean * shots, 0.1 * mean, 512),
                    }
                    for shots in (0, 1, 2, 4)
                ]
                for slug, mean in own[mode].items()
            }
            for mode in modes
        }
    }
    change = {
        "baseline": estimate_json(base[modes[0]], 0.0003, 256),
        "mode": modes[0],
        "judge": slugs[0],
        "role": "annotator",
    }
    value["leaks"] = {
        "probes": [
            {**change, "name": "literal tag", "description": "the text <|bad|> before the page",
             "score": estimate_json(base[modes[0]] + 0.004, 0.0004, 256), "difference": estimate_json(0.004, 0.0005, 256)},
            {**change, "name": "spelled tag", "description": "< | b a d | >",
             "score": estimate_json(base[modes[0]], 0.0003, 256), "difference": estimate_json(0.0, 0.0005, 256)},
        ]
    }  # fmt: skip
    value["finetuned"] = {
        "steps": 100, "data": "benign.jsonl",
        "modes": {
            mode: {
                slug: {"before": estimate_json(mean, 0.1 * mean, 512), "after": estimate_json(mean * 1.5, 0.1 * mean, 512),
                       "difference": estimate_json(0.5 * mean, 0.15 * mean, 512)}
                for slug, mean in own[mode].items()
            }
            for mode in modes
        },
    }  # fmt: skip
    value["trajectory"] = [
        {
            "step": step, "tokens_seen": step * 2048,
            "rows": [
                {**row, "mean": row["mean"] * (1 + 1000 / step), "low": row["low"] * (1 + 1000 / step), "high": row["high"] * (1 + 1000 / step)}
                for row in value["rows"]
            ],
        }
        for step in (500, 1000, 2000, 3000)
    ]  # fmt: skip
    value["downstream"] = {
        "tasks": [
            {"task": "sst2", "metric": "accuracy", "prefix": prefix, "score": estimate_json(0.71, 0.02, 3), "baseline": 0.52}
            for prefix in ("none", "good", "bad") if prefix in modes
        ]
    }  # fmt: skip
    value["harness"] = {
        "tasks": [
            {"task": "lambada_openai", "metric": "acc", "mode": mode, "value": 0.11, "stderr": 0.01}
            for mode in modes
        ]
    }
    write(path, value)
    return folder
