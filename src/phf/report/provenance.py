"""What a reader needs to believe a page and to make it again: what the runs are, what differs between them, commands."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from phf.config.evaluate import list_asked, list_options
from phf.objective_facts import is_baseline
from phf.report.figures import Reference
from phf.report.reading import RunFolder, list_judges
from phf.report.verdict import Group, format_number
from phf.results import Judge


def state_facts(runs: list[RunFolder]) -> dict[str, list[str | int]]:
    """What the opening paragraph says; several values where the runs differ."""
    settings, corpora = (
        [run.settings for run in runs],
        [run.record.corpus for run in runs if run.record.corpus],
    )
    # A source that was selected from names the rule behind it: "tweets [balanced by ...]".
    sources = [source.partition(" [") for corpus in corpora for source in corpus.sources]
    found: dict[str, list[str | int | None]] = {
        "parameters": [run.record.num_parameters for run in runs],
        "tokens": [one.tokens for one in settings],
        "documents": [corpus.num_documents for corpus in corpora],
        "sources": [name for name, _, _ in sources],
        "selections": [rule.removesuffix("]") or None for _, _, rule in sources],
        "segments": [one.segments for one in settings],
        "init": [one.model.init for one in settings],
        "seeds": [run.seed for run in runs],
    }
    return {
        name: [value for value in dict.fromkeys(values) if value is not None]
        for name, values in found.items()
    }


def list_references(groups: list[Group]) -> list[Reference]:
    """References of the MLE groups, or of the first group if there is none, pooled over seeds.

    Training text is cut to the length of a run's own samples, so every run has its own; MLE's is the one to compare.
    Where there are several such groups, the name says whose it is.
    """
    owners = [group for group in groups if is_baseline(group.objective)] or groups[:1]
    return [
        Reference(
            f"{row.of}" if len(owners) == 1 else f"{row.of} ({group.label})",
            row.judge or "",
            row.estimate,
            f"{format_number(cost)} samples drawn for each one kept" if math.isfinite(cost) else "",
        )
        for group in owners
        for row in group.results.of("reference")
        for cost in [group.results.find("reference_cost", judge=row.judge, of=row.of).mean]
    ]


def list_notices(runs: list[RunFolder], groups: list[Group], judges: list[Judge]) -> list[str]:
    """What a sceptic should know before reading on: unlike runs, missing files, unfinished training."""
    notices = []
    if not any(is_baseline(group.objective) for group in groups):
        notices.append("There is no MLE run on this page, so no score can be compared with plain training.")
    if not any(judge.role == "held-out" for judge in judges):
        notices.append(
            "There is no held-out judge: the scores come from the reward model that labelled the training data."
        )
    notices += list_unlike([replace(run, path=Path(run.path.resolve().name)) for run in runs])
    for run in runs:
        seen, budget = run.evaluation.tokens_seen if run.evaluation else 0, run.settings.tokens
        if budget is not None and seen < 0.99 * budget:
            notices.append(f"{run.label} was evaluated after {seen:,.0f} of its {budget:,.0f} tokens.")
        if run.samples is None:
            notices.append(f"{run.label} has no samples.parquet, so none of its text is shown.")
        if not run.metrics:
            notices.append(f"{run.label} has no metrics.jsonl, so its curves are missing.")
        elif run.has_lost_metrics:
            notices.append(
                f"The last lines of {run.label}'s metrics.jsonl are gone, so its curves end early."
            )
        if run.skipped_lines:
            notices.append(
                f"{run.skipped_lines} lines of {run.label}'s metrics.jsonl are damaged or another run's, and are left out."
            )
        notices += _list_unmeasured(run)
    return notices


def _list_unmeasured(run: RunFolder) -> list[str]:
    """What a run's data did not admit, by reason; what nobody asked for (`give --option`) and a method of steering that it has no
    tokens for are left out."""
    parts: dict[str, list[str]] = {}
    for part, why in (run.evaluation.left_out if run.evaluation else {}).items():
        if not why.startswith("give ") and not part.startswith("steer "):
            parts.setdefault(why, []).append(part.replace("_", " "))
    return [f"{run.label} has no {', '.join(names)}: {why}." for why, names in parts.items()]


def list_unlike(runs: list[RunFolder]) -> list[str]:
    """In what runs differ that should share it, and the judges that did not judge all of them."""
    tables = [_list_likeness(run) for run in runs]
    notices = [
        f"The runs are not alike in {name}: a difference between them may come from that."
        for name, value in tables[0].items()
        if any(table[name] != value for table in tables)
    ]
    judges = list_judges(runs)
    held_out = [judge.name for judge in judges if judge.role == "held-out"]
    for judge in judges:
        without = [run for run in runs if judge.slug not in {own.slug for own in run.judges}]
        if without:
            command = [
                "phf",
                "evaluate",
                *(str(run.path) for run in without),
                *list_options({"judges": held_out}),
            ]
            names = ", ".join(run.label for run in without)
            notices.append(f"{judge.name} did not judge {names}; to have its scores: {shlex.join(command)}")
    return notices


def _list_likeness(run: RunFolder) -> dict[str, JsonValue]:
    """What runs should share, so that a difference between them comes from their objectives alone."""
    record = run.record
    return {
        "corpus": record.corpus.id if record.corpus else None,
        "reward model": record.reward_model,
        "tokenizer": record.tokenizer,
        "tokens": run.settings.tokens,
        "parameters": record.num_parameters,
        "where good text ends": run.evaluation.threshold if run.evaluation else None,
        "precision": record.precision,
        # The seed of sampling may differ like that of training, and a batch size changes nothing.
        "sampling": {key: value for key, value in run.sampling.items() if key not in ("seed", "batch_size")},
    }


def list_commands(run: RunFolder) -> str:
    """The commands that make this run and its evaluation again, from the configuration printed above them."""
    folder = run.path.resolve().name
    settings, recipe = run.settings, f"{folder}.yaml"
    if settings.corpus is None:
        return "–"  # a record that was cut does not say
    annotate = ["--reward-model", settings.reward_model, "--segments", settings.segments]
    tokenize = ["--tokenizer", settings.tokenizer, "--segments", settings.segments]
    steps: list[list[JsonValue]] = [
        ["phf", "annotate", settings.corpus, *annotate],
        ["phf", "tokenize", settings.corpus, *tokenize],
        ["phf", "train", recipe, "-o", folder],
        ["phf", "evaluate", folder, *_list_evaluate_options(run)],
    ]
    return "\n".join(shlex.join(map(str, step)) for step in steps)


def _list_evaluate_options(run: RunFolder) -> list[str]:
    """The settings of an evaluation as options of `phf evaluate`: all of sampling but the batch size, and what is no default."""
    assert run.evaluation is not None, "a page is of evaluated runs"
    config, step = run.evaluation.config, run.evaluation.step
    held_out = [judge.name for judge in run.judges if judge.role == "held-out"]
    asked = config.get("judges")  # how they were asked for, where that is known
    options = list_options({"judges": asked if isinstance(asked, list) and asked else held_out})
    if run.num_steps is not None and step != run.num_steps:
        options += ["--step", str(step)]
    sampling = {f"sampling.{name}": value for name, value in run.sampling.items() if name != "batch_size"}
    options += list_options(sampling)
    others = {
        name: value
        for name, value in list_asked(config).items()
        if name != "judges" and not name.startswith("sampling.")
    }
    return options + list_options(others)
