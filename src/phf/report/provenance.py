"""What a reader needs to believe a page and to make it again: what the runs are, what differs between them, commands."""

import math
import shlex
from pathlib import Path
from typing import Any

from phf.config_evaluate import EvaluateConfig, list_options
from phf.objective_facts import is_baseline
from phf.records import Estimate
from phf.report.figures import Reference
from phf.report.reading import Judge, RunFolder, as_dict, as_estimate, as_float, as_list, lookup
from phf.report.verdict import Group, flatten, format_number, pool_tables


def state_facts(runs: list[RunFolder]) -> dict[str, Any]:
    """What the opening paragraph says; a set of values where the runs differ."""

    def each(*keys: str) -> list[Any]:
        values = [lookup(run.run, *keys) for run in runs]
        return list(
            dict.fromkeys(
                str(value) if isinstance(value, list | dict) else value
                for value in values
                if value is not None
            )
        )

    # A source that was selected from names the rule behind it: "tweets [balanced by ...]".
    sources = [
        str(source).partition(" [")
        for run in runs
        for source in as_list(lookup(run.run, "corpus", "sources"))
    ]
    return {
        "parameters": each("num_parameters"),
        "tokens": each("config", "tokens"),
        "documents": each("corpus", "num_documents"),
        "sources": list(dict.fromkeys(name for name, _, _ in sources)),
        "selections": list(dict.fromkeys(rule.removesuffix("]") for _, _, rule in sources if rule)),
        "segments": each("config", "segments"),
        "init": each("config", "model", "init"),
        "seeds": list(dict.fromkeys(run.seed for run in runs if run.seed is not None)),
    }


def list_references(groups: list[Group]) -> list[Reference]:
    """References of the MLE groups, or of the first group if there is none, pooled over seeds.

    Training text is cut to the length of a run's own samples, so every run has its own; MLE's is the one to compare.
    Where there are several such groups, the name says whose it is.
    """
    owners = [group for group in groups if is_baseline(group.objective)] or groups[:1]
    references = []
    for group in owners:
        tables: list[dict[tuple[str, str], Estimate]] = []
        costs: list[dict[tuple[str, str], Estimate]] = []
        for run in group.runs:
            found = {
                (str(value.get("name")), str(value.get("judge"))): value
                for value in map(as_dict, as_list(run.evaluation.get("references")))
            }
            tables.append({key: as_estimate(value) for key, value in found.items()})
            costs.append({key: as_estimate(value.get("cost")) for key, value in found.items()})
        cost = pool_tables(costs)
        references += [
            Reference(
                name if len(owners) == 1 else f"{name} ({group.label})",
                judge,
                estimate,
                _describe_cost(cost[name, judge].mean),
            )
            for (name, judge), estimate in pool_tables(tables).items()
        ]
    return references


def _describe_cost(cost: float) -> str:
    return f"{format_number(cost)} samples drawn for each one kept" if math.isfinite(cost) else ""


def tabulate_references(
    references: list[Reference], judges: list[Judge]
) -> list[tuple[str, str, dict[str, Estimate]]]:
    """A row per reference: name, cost, and the estimate of each judge by its key."""
    rows: dict[tuple[str, str], dict[str, Estimate]] = {}
    for reference in references:
        row = rows.setdefault(
            (reference.name, reference.cost), {judge.key: as_estimate(None) for judge in judges}
        )
        row |= {
            judge.key: reference.estimate for judge in judges if reference.judge in (judge.key, judge.name)
        }
    return [(name, cost, row) for (name, cost), row in rows.items()]


def list_notices(runs: list[RunFolder], groups: list[Group], judges: list[Judge]) -> list[str]:
    """What a sceptic should know before reading on: unlike runs, missing files, unfinished training."""
    notices = []
    if not any(is_baseline(group.objective) for group in groups):
        notices.append("There is no MLE run on this page, so no score can be compared with plain training.")
    if not any(judge.role == "held-out" for judge in judges):
        notices.append(
            "There is no held-out judge: the scores come from the reward model that labelled the training data."
        )
    compared = {
        "corpus": ("run", "corpus", "id"),
        "reward model": ("run", "reward_model"),
        "tokenizer": ("run", "tokenizer"),
        "tokens": ("run", "config", "tokens"),
        "parameters": ("run", "num_parameters"),
        "where good text ends": ("evaluation", "threshold"),
        "precision": ("run", "precision"),
    }
    for name, (file, *keys) in compared.items():
        values = [lookup(run.run if file == "run" else run.evaluation, *keys) for run in runs]
        if any(value != values[0] for value in values):
            notices.append(f"The runs are not alike in {name}: a difference between them may come from that.")
    # The seed of sampling may differ like that of training, and a batch size changes nothing.
    samplings = [
        {k: v for k, v in as_dict(run.evaluation.get("sampling")).items() if k not in ("seed", "batch_size")}
        for run in runs
    ]
    if any(sampling != samplings[0] for sampling in samplings):
        notices.append("The runs are not alike in sampling: a difference between them may come from that.")
    for run in runs:
        seen, budget = as_float(run.evaluation.get("tokens_seen")), as_float(run.config.get("tokens"))
        if seen < 0.99 * budget:
            notices.append(f"{run.label} was evaluated after {seen:,.0f} of its {budget:,.0f} tokens.")
        if run.samples is None:
            notices.append(f"{run.label} has no samples.parquet, so none of its text is shown.")
        if not run.metrics:
            notices.append(f"{run.label} has no metrics.jsonl, so its curves are missing.")
        if run.skipped_lines:
            notices.append(
                f"{run.skipped_lines} lines of {run.label}'s metrics.jsonl cannot be read and are left out."
            )
    return notices


def make_report_command(runs: list[RunFolder], out: Path) -> str:
    """The command that makes the page again."""
    return shlex.join(["phf", "report", *(str(run.path) for run in runs), "-o", str(out)])


def list_commands(run: RunFolder) -> str:
    """The commands that make this run and its evaluation again, from the configuration printed above them."""
    config = run.config
    corpus, recipe, folder = str(config.get("corpus")), f"{run.path.name}.yaml", str(run.path)
    steps: list[list[Any]] = [
        [
            "phf",
            "annotate",
            corpus,
            "--reward-model",
            config.get("reward_model"),
            "--segments",
            config.get("segments"),
        ],
        [
            "phf",
            "tokenize",
            corpus,
            "--tokenizer",
            config.get("tokenizer"),
            "--segments",
            config.get("segments"),
        ],
        ["phf", "train", recipe, "-o", folder],
        ["phf", "evaluate", folder, *_list_evaluate_options(run)],
    ]
    return "\n".join(shlex.join(map(str, step)) for step in steps)


def _list_evaluate_options(run: RunFolder) -> list[str]:
    """The settings of an evaluation as options of `phf evaluate`: all of sampling but the batch size, and what is no default."""
    sampling = as_dict(run.evaluation.get("sampling"))
    config = as_dict(run.evaluation.get("config"))
    held_out = [judge.name for judge in run.judges if judge.role == "held-out"]
    judges = as_list(config.get("judges")) or held_out  # how they were asked for, where that is known
    options = list_options({"judges": judges})
    step = run.evaluation.get("step")
    if isinstance(step, int) and run.num_steps is not None and step != run.num_steps:
        options += ["--step", str(step)]
    options += list_options({f"sampling.{name}": v for name, v in sampling.items() if name != "batch_size"})
    defaults = flatten(EvaluateConfig().model_dump(mode="json"))
    others = {
        name: value
        for name, value in flatten(config).items()
        if name != "judges" and not name.startswith("sampling.") and value != defaults.get(name)
    }
    return options + list_options(others)
