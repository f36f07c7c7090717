"""evaluation.json of format version 1 as version 2: for run folders that were written before `phf.results`.

It is the exact mapping from the nested parts of version 1 to measurements, and was the test of the code that writes them now.
"""

import json
import sys
from pathlib import Path

from phf.records import Estimate, Identity
from phf.results import Evaluation, Judge, Measurement, write_evaluation

NAN = float("nan")


def number(value):
    return NAN if value is None else float(value)


def estimate(value, count=None):
    if value is None or isinstance(value, int | float):
        return Estimate(number(value), NAN, NAN, count or 0)
    low, mean, high = (number(value.get(key)) for key in ("low", "mean", "high"))
    return Estimate(mean, low, high, value.get("count", count) or 0)


def row_measurements(row, mode, of):
    """One row of version 1: a mode (or steered mode) by one judge."""
    judge, scored = row["judge"], row["num_samples"] - row["num_unscored"]
    yield Measurement("score", estimate(row, row["num_samples"]), mode, judge, of)
    rate = Estimate(number(row["hit_rate"]), number(row["hit_low"]), number(row["hit_high"]), scored)
    yield Measurement("hit_rate", rate, mode, judge, of)
    worst = [number(row[f"expected_max_25{end}"]) for end in ("", "_low", "_high")]
    yield Measurement("expected_max_25", Estimate(*worst, scored), mode, judge, of)
    yield Measurement("num_unscored", estimate(row["num_unscored"], row["num_samples"]), mode, judge, of)
    if row.get("syntax_errors") is not None:
        yield Measurement(
            "syntax_errors", estimate(row["syntax_errors"], row["num_samples"]), mode, judge, of
        )


def mode_measurements(value, mode):
    """What version 1 says of a mode's samples, and of held-out text in it."""
    for name, figure in {**(value.get("degeneracy") or {}), **(value.get("diversity") or {})}.items():
        yield Measurement(name, estimate(figure), mode)
    for text, figure in (value.get("bits_per_byte") or {}).items():
        yield Measurement("bits_per_byte", estimate(figure), mode, of=text)


def list_measurements(old):
    for row in old["rows"]:
        scenario = row.get("scenario", "unprompted")
        yield from row_measurements(row, row["mode"], None if scenario == "unprompted" else scenario)
        if scenario != "unprompted":
            yield Measurement("distinct_2", estimate(row.get("distinct_2")), row["mode"], of=scenario)
    for mode, value in old["modes"].items():
        yield from mode_measurements(value, mode)
    for text, value in (old.get("labelled_bits_per_byte") or {}).items():
        yield Measurement("bits_per_byte", estimate(value), "labelled", of=text)
    for text, value in (old.get("control_gain") or {}).items():
        yield Measurement("control_gain", estimate(value), of=text)
    if calibration := old.get("calibration"):
        yield Measurement("calibration_error", estimate(calibration["error"]))
        for one in calibration["bins"]:
            yield Measurement("reliability", estimate(one["good"]), at=one["posterior"])
    for row in old["references"]:
        yield Measurement("reference", estimate(row), judge=row["judge"], of=row["name"])
        if row.get("cost") is not None:
            yield Measurement("reference_cost", estimate(row["cost"]), judge=row["judge"], of=row["name"])
    gaps = old.get("good_minus_bad") or {}
    for text, value in gaps.get("bits_per_byte", {}).items():
        yield Measurement("bits_per_byte", estimate(value), "good-bad", of=text)
    for name in ("kl", "blimp"):
        if name in gaps:
            yield Measurement(name, estimate(gaps[name]), "good-bad")
    for mode, value in old.get("kl", {}).get("modes", {}).items():
        yield Measurement("kl", estimate(value["per_token"]), mode)
        for name in ("per_sequence", "per_byte", "control_cost", "cut"):
            yield Measurement(f"kl_{name}", estimate(value[name]), mode)
        for name, error in value["standard_error"].items():
            yield Measurement("kl_standard_error", estimate(error), mode, of=name)
    if "kl" in old:
        yield Measurement("reference_entropy", estimate(old["kl"]["reference"]["entropy_per_token"]))
    for mode, value in old.get("blimp", {}).get("modes", {}).items():
        yield Measurement("blimp", estimate(value["accuracy"]), mode)
        for field, own in value["fields"].items():
            yield Measurement("blimp", estimate(own), mode, of=field)
        for paradigm, own in value["paradigms"].items():
            yield Measurement("blimp_paradigm", estimate(own), mode, of=paradigm)
    for task in old.get("harness", {}).get("tasks", []):
        mean, error, of = number(task["value"]), number(task["stderr"]), f"{task['task']}: {task['metric']}"
        found = Estimate(mean, mean - 1.96 * error, mean + 1.96 * error, task["num_questions"] or 0)
        yield Measurement("harness", found, task["mode"], of=of)
    for task in old.get("downstream", {}).get("tasks", []):
        of = f"{task['task']}: {task['metric']}"
        yield Measurement("downstream", estimate(task["score"]), task["prefix"], of=of)
        yield Measurement("downstream_baseline", estimate(task["baseline"]), task["prefix"], of=of)
    for mode, found in old.get("red_team", {}).get("modes", {}).items():
        for one in found["rounds"]:
            for name in ("mean", "best"):
                yield Measurement(
                    f"red_team_{name}", estimate(one[name]), mode, found["judge"], at=float(one["round"])
                )
    for probe in old.get("leaks", {}).get("probes", []):
        for name in ("baseline", "score", "difference"):
            yield Measurement(
                f"leak_{name}", estimate(probe[name]), probe["mode"], probe["judge"], probe["name"]
            )
    for mode, by_judge in old.get("in_context", {}).get("modes", {}).items():
        for judge, shots in by_judge.items():
            for one in shots:
                for name in ("baseline", "score", "difference"):
                    yield Measurement(
                        f"in_context_{name}", estimate(one[name]), mode, judge, at=float(one["shots"])
                    )
    for mode, by_judge in old.get("finetuned", {}).get("modes", {}).items():
        for judge, value in by_judge.items():
            for name in ("before", "after", "difference"):
                yield Measurement(f"finetuned_{name}", estimate(value[name]), mode, judge)
    for point in old.get("trajectory", []):
        for row in point["rows"]:
            if row.get("scenario", "unprompted") == "unprompted":
                found = estimate(row, row["num_samples"])
                yield Measurement("trajectory", found, row["mode"], row["judge"], at=float(point["step"]))
    for method in old["steering"]:
        mode = f"{method['mode']} + {method['spec']}"
        for row in method["rows"]:
            yield from row_measurements(row, mode, None)
            yield Measurement("steered_difference", estimate(row["difference"]), mode, row["judge"])
        yield from mode_measurements(method, mode)
        yield Measurement("passes_per_token", estimate(method["passes_per_token"]), mode)
    for method in old["steering"][:1]:
        yield Measurement("passes_per_token", estimate(method["plain_passes_per_token"]), method["mode"])


def convert_facts(old):
    facts = {}
    if old["scenarios"]:
        facts["scenarios"] = old["scenarios"]
    if "kl" in old:
        reference = {k: v for k, v in old["kl"]["reference"].items() if k != "entropy_per_token"}
        facts["kl"] = {"reference": reference, "num_sequences": old["kl"]["num_sequences"]}
    if "blimp" in old:
        facts["blimp"] = {k: v for k, v in old["blimp"].items() if k != "modes"}
    if "harness" in old:
        facts["harness"] = {"version": old["harness"]["version"]}
    if "downstream" in old:
        kept = ("task", "metric", "prefix", "seeds", "num_train", "num_dev", "cut_share")
        tasks = [{key: task[key] for key in kept} for task in old["downstream"]["tasks"]]
        facts["downstream"] = {"settings": old["downstream"]["settings"], "tasks": tasks}
    if "red_team" in old:
        found = {k: v for k, v in old["red_team"].items() if k != "modes"}
        modes = old["red_team"]["modes"]
        prompts = [
            {**p, "mode": mode, "judge": own["judge"]} for mode, own in modes.items() for p in own["prompts"]
        ]
        costs = {mode: own["costs"] for mode, own in modes.items()}
        facts["red_team"] = {**found, "prompts": prompts, "costs": costs}
    if "leaks" in old:
        facts["leaks"] = {probe["name"]: probe["description"] for probe in old["leaks"]["probes"]}
    if "finetuned" in old:
        facts["finetuned"] = {k: v for k, v in old["finetuned"].items() if k != "modes"}
    if old["steering"]:
        facts["steering"] = [{key: one[key] for key in ("spec", "mode", "facts")} for one in old["steering"]]
    return facts


def convert(old):
    """An `Evaluation` from the content of a file of version 1."""
    judges = [
        Judge(
            j["slug"], j["role"], j["unit"], j["display_scale"], j["hit_threshold"], Identity(**j["identity"])
        )
        for j in old["judges"]
    ]
    same = [
        "run",
        "objective",
        "seed",
        "step",
        "tokens_seen",
        "num_parameters",
        "config",
        "threshold",
        "notes",
        "samples_sha256",
        "left_out",
    ]
    return Evaluation(
        judges=judges,
        measures=[],
        measurements=list(list_measurements(old)),
        facts=convert_facts(old),
        **{key: old[key] for key in same},
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_evaluation(Path(name), convert(json.loads(Path(name).read_text())))
