"""One self-contained HTML page from run folders, and the same numbers as rows and as a table for the terminal."""

import math
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from rich.table import Table

from phf.files import write_bytes
from phf.records import Estimate
from phf.report.figures import OBJECTIVE_COLOURS, Reference, list_drawings
from phf.report.reading import (
    Judge,
    RunFolder,
    as_dict,
    as_estimate,
    as_float,
    as_list,
    list_judges,
    lookup,
    mode_rank,
    read_runs,
)
from phf.report.reliability import draw_control_reliability
from phf.report.samples import choose_samples, visible_text
from phf.report.verdict import (
    Group,
    check_group,
    find_mle,
    flatten,
    format_number,
    group_runs,
    judge_group,
)

_MODE_NOTES = {
    "good": "every page starts with the control token <|good|>, and <|bad|> is blocked: what one would release.",
    "bad": "the mirror image: starts with <|bad|>, and <|good|> is blocked: shows whether the token steers at all.",
    "none": "no control token is given; the model writes what it likes.",
    "untagged": "no control token is given, and both are blocked.",
}
_OPEN_RUNS = 4
"""With more runs than this, the samples of each run stand behind a click."""


def write_report(runs: list[Path], out: Path) -> Path:
    """Write the page that compares runs: one HTML file, no script, nothing fetched; the same runs give the same bytes.

    Args:
        runs: run folders that were trained and evaluated.
        out: the file to write.

    Returns:
        `out`.

    Raises:
        PHFError: a folder is no run, or has no evaluation (the message names the command that makes it).
    """
    folders = read_runs(runs)
    text = make_environment().get_template("page.html").render(_describe(folders, out))
    # A lone surrogate cannot be encoded; visible_text has already shown those that stand in samples.
    write_bytes(out, text.encode("utf-8", "replace"))
    return out


def summary_rows(runs: list[Path]) -> list[dict[str, Any]]:
    """One row per run, mode and judge: the numbers of `evaluation.json`, in the judge's own unit; None if missing.

    Raises:
        PHFError: see `write_report`.
    """
    return [
        {
            "run": run.label,
            "objective": run.objective,
            "seed": run.seed,
            "mode": row.get("mode"),
            "judge": row.get("judge"),
            **{key: _json_number(row.get(key)) for key in ("mean", "low", "high")},
            "hits": row.get("hits"),
            "num_samples": row.get("num_samples"),
            **{key: _json_number(row.get(key)) for key in ("distinct_2", "bits_per_byte")},
        }
        for run in read_runs(runs)
        for row in run.rows
    ]


def summary_table(runs: list[Path]) -> Table:
    """The headline numbers for the terminal, a row per run and mode, the interval of each judge beside its mean.

    Raises:
        PHFError: see `write_report`.
    """
    folders = read_runs(runs)
    judges = list_judges(folders)
    units = "; ".join(f"{visible_text(judge.name)}: {judge.shown_unit}" for judge in judges)
    table = Table(title="Misalignment score, lower is better", caption=units, caption_justify="left")
    table.add_column("run")
    table.add_column("mode")
    for judge in judges:
        table.add_column(f"{visible_text(judge.name)}\n({judge.role})", justify="right")
        table.add_column("hits", justify="right")
    table.add_column("bits per\nbyte", justify="right")
    table.add_column("distinct-2", justify="right")
    styles = {"good": "blue", "bad": "yellow"}
    for run in folders:
        for number, mode in enumerate(run.modes):
            cells = [
                _plain(run.label) if number == 0 else "",
                f"[{styles.get(mode, 'default')}]{_plain(mode)}[/]",
            ]
            for judge in judges:
                row = run.row(mode, judge)
                cells += [
                    _format_interval(run.score(mode, judge), judge.scale),
                    _percent(row.get("hit_rate")),
                ]
            bits, variety = run.bits_per_byte(mode).mean, run.degeneracy(mode, "distinct_2")
            table.add_row(*cells, format_number(bits), format_number(variety))
        table.add_section()
    return table


def summary_lines(runs: list[Path]) -> list[str]:
    """Control gain and calibration of each run with good and bad mode, a line each, for the terminal.

    Raises:
        PHFError: see `write_report`.
    """
    lines = []
    for run in read_runs(runs):
        label, error = visible_text(run.label), run.calibration_error
        if as_dict(run.evaluation.get("control_gain")):
            good, bad = (_format_interval(run.control_gain(text)) for text in ("good", "bad"))
            lines.append(
                f"{label}: control gain {good} nats per good segment, {bad} per bad one (above 0 on both: control is learned)"
            )
        if math.isfinite(error.mean):
            lines.append(
                f"{label}: calibration error {_format_interval(error)} on {error.count:,} segments "
                "(0: the model's own probability of good is right)"
            )
    return lines


def _plain(text: str) -> str:
    """Text that rich does not read as markup."""
    return visible_text(text).replace("[", r"\[")


def make_environment() -> jinja2.Environment:
    """Templates of this folder, everything in them escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files("phf.report") / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "number": lambda value: format_number(as_float(value)),
        "percent": _percent,
        "count": _format_count,
        "interval": _format_interval,
    }
    return environment


def _finalize(value: Any) -> Any:
    """What a template prints: strings from run folders with nothing invisible in them, absence as a dash."""
    if value is None:
        return "–"
    # Markup is ours (the figures); everything else may come from a file.
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible_text(value)


def _describe(runs: list[RunFolder], out: Path) -> dict[str, Any]:
    """All that the template prints."""
    groups = group_runs(runs)
    runs = [run for group in groups for run in group.runs]  # seeds of one configuration beside each other
    judges = list_judges(runs)
    references = _list_references(runs)
    scores, planes, curves = list_drawings(runs, groups, references)
    reliability = draw_control_reliability(runs)
    controls = [] if reliability is None else [reliability]
    for drawing in (*scores, *planes, *controls, *curves):
        assert "<script" not in drawing.svg, "a figure holds markup that we did not draw"
    modes = sorted({mode for run in runs for mode in run.modes}, key=lambda mode: (mode_rank(mode), mode))
    return {
        "css": Markup((resources.files("phf.report") / "page.css").read_text("utf-8")),  # noqa: S704 - our own file
        "runs": runs,
        "groups": groups,
        "judges": judges,
        "reference_rows": _tabulate_references(references, judges),
        "objectives": list(dict.fromkeys(group.objective for group in groups)),
        "known_objectives": list(OBJECTIVE_COLOURS),
        "modes": [(mode, _MODE_NOTES.get(mode, "")) for mode in modes],
        "facts": _state_facts(runs),
        "sampling": as_dict(runs[0].evaluation.get("sampling")),
        "cards": _list_cards(groups, judges),
        "pooled": any(len(group.runs) > 1 for group in groups),
        "notices": _list_notices(runs, groups, judges),
        "scores": [(drawing, Markup(drawing.svg)) for drawing in scores],  # noqa: S704 - drawn by us
        "planes": [(drawing, Markup(drawing.svg)) for drawing in planes],  # noqa: S704
        "controls": [(drawing, Markup(drawing.svg)) for drawing in controls],  # noqa: S704
        "curves": [(drawing, Markup(drawing.svg)) for drawing in curves],  # noqa: S704
        "choose_samples": choose_samples,
        "open_samples": len(runs) <= _OPEN_RUNS,
        "config_yaml": lambda run: yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "commands": lambda run: _list_commands(run, runs, out),
        "flatten": flatten,
        "lookup": lookup,
        "as_dict": as_dict,
        "as_list": as_list,
        "gains": [run for run in runs if as_dict(run.evaluation.get("control_gain"))],
        "counts": lambda run, mode, key: [run.row(mode, judge).get(key) for judge in run.judges],
        "scaled": lambda value, judge: format_number(as_float(value) * judge.scale),
    }


def _state_facts(runs: list[RunFolder]) -> dict[str, Any]:
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


def _list_references(runs: list[RunFolder]) -> list[Reference]:
    """References of the MLE runs, or of the first run if there is none; where they differ, the name says whose it is.

    Training text is cut to the length of a run's own samples, so every run has its own; MLE's is the one to compare.
    """
    mles = [run for run in runs if run.objective == "mle"] or runs[:1]
    found: dict[tuple[str, str, Estimate, str], str] = {}
    for run in mles:
        for value in map(as_dict, as_list(run.evaluation.get("references"))):
            cost = value.get("cost")
            if isinstance(cost, int | float):
                cost = f"{format_number(cost)} samples drawn for each one kept"
            name, judge = str(value.get("name")), str(value.get("judge"))
            found.setdefault((name, judge, as_estimate(value), str(cost or "")), run.label)
    names = [(name, judge) for name, judge, _, _ in found]
    return [
        Reference(name if names.count((name, judge)) == 1 else f"{name} ({label})", judge, estimate, cost)
        for (name, judge, estimate, cost), label in found.items()
    ]


def _tabulate_references(
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


def _list_cards(groups: list[Group], judges: list[Judge]) -> list[dict[str, Any]]:
    """A card per objective that is compared with MLE: the verdict of each judge, then the checks."""
    cards = []
    for group in groups:
        if group.objective == "mle":
            continue
        mle = find_mle(group, groups)
        seeds = [run.seed for run in group.runs]
        own = [
            judge
            for judge in judges
            if any(judge.key == other.key for run in group.runs for other in run.judges)
        ]
        cards.append(
            {
                "label": group.label,
                "basis": (
                    f"{len(seeds)} seeds, t-interval over seeds"
                    if len(seeds) > 1
                    else "one seed: the intervals cover the drawing of samples, not the training of another model"
                ),
                "verdicts": [(judge, judge_group(group, mle, judge)) for judge in own],
                "checks": check_group(group, mle),
            }
        )
    return cards


def _list_notices(runs: list[RunFolder], groups: list[Group], judges: list[Judge]) -> list[str]:
    """What a sceptic should know before reading on: unlike runs, missing files, unfinished training."""
    notices = []
    if not any(group.objective == "mle" for group in groups):
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
        "sampling": ("evaluation", "sampling"),
        "where good text ends": ("evaluation", "threshold"),
        "precision": ("run", "precision"),
    }
    for name, (file, *keys) in compared.items():
        values = [lookup(run.run if file == "run" else run.evaluation, *keys) for run in runs]
        if any(value != values[0] for value in values):
            notices.append(f"The runs are not alike in {name}: a difference between them may come from that.")
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


def _list_commands(run: RunFolder, runs: list[RunFolder], out: Path) -> str:
    """The commands that make this run and this page again, from the configuration printed above them."""
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
        ["phf", "report", *(str(other.path) for other in runs), "-o", str(out)],
    ]
    return "\n".join(shlex.join(map(str, step)) for step in steps)


def _list_evaluate_options(run: RunFolder) -> list[Any]:
    """Judges and sampling of an evaluation as options of `phf evaluate` (the batch size is not one)."""
    judges = [
        option for judge in run.judges if judge.role == "held-out" for option in ("--judge", judge.name)
    ]
    sampling = as_dict(run.evaluation.get("sampling"))
    names = ("num_samples", "temperature", "top_p", "min_new_tokens", "max_new_tokens", "control", "seed")
    given = [(name, sampling[name]) for name in names if name in sampling]
    return [*judges, *(part for name, value in given for part in (f"--{name.replace('_', '-')}", value))]


def _format_interval(estimate: Estimate, scale: float = 1.0) -> str:
    mean, low, high = (format_number(value * scale) for value in (estimate.mean, estimate.low, estimate.high))
    return mean if low == high == "–" else f"{mean} [{low}, {high}]"


def _format_count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else "–"


def _percent(value: Any) -> str:
    value = as_float(value)
    return f"{format_number(value * 100, 2 if value < 0.0995 else 3)} %" if math.isfinite(value) else "–"


def _json_number(value: Any) -> float | None:
    value = as_float(value)
    return value if math.isfinite(value) else None
