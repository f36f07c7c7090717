"""Verbs that look at runs in the terminal, finished and evaluated or not: show, compare. Everything fits 80 columns."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from phf.cli.options import SETTINGS, Runs, examples
from phf.errors import PHFError
from phf.terminal import print_table, printable

if TYPE_CHECKING:
    from phf.records import Estimate
    from phf.report.reading import Judge, RunFolder
    from phf.report.verdict import Group

app = typer.Typer(**SETTINGS)

_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE = 32
"""Columns of a sparkline."""
_WIDTH, _LABEL = 80, 12
"""Columns of a line, and of the names on the left."""
_MAX_COLUMNS = 3
"""With more runs than this, settings stand under one another instead of side by side."""
_STYLES = {"good": "blue", "bad": "yellow"}


@app.command(epilog=examples("phf show runs/conditional"))
def show(folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Say what a run is, how far it is, how its loss went, what was measured and what to do next."""
    from phf.report.reading import read_runs
    from phf.report.steering import list_steering_lines

    (run,) = read_runs([folder], must_be_evaluated=False)
    state = "finished" if run.is_finished else "not finished"
    print(f"{printable(run.label)}: {printable(run.objective)}, seed {_show_value(run.seed)}, {state}")
    for name, text in _describe(run):
        head = f"  {name:{_LABEL}} "
        print(textwrap.fill(printable(text), _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)))
    if run.evaluation:
        print_table(_tabulate_evaluation(run))
        for line in list_steering_lines(run):
            print(textwrap.fill(printable(line), _WIDTH, subsequent_indent="  "))
    print(f"next: {printable(_name_next(run))}")


@app.command(epilog=examples("phf compare runs/mle runs/conditional"))
def compare(runs: Runs) -> None:
    """Say in what runs differ: settings first, then scores, capability and verdicts, against the first run."""
    from phf.report.reading import list_judges, read_runs
    from phf.report.verdict import group_runs

    if len(runs) < 2:
        raise PHFError("give two runs or more to compare; 'phf show RUN' is about one")
    folders = read_runs(runs, must_be_evaluated=False)
    _print_settings(folders)
    evaluated = [run for run in folders if run.evaluation]
    if evaluated:
        for judge in list_judges(evaluated):
            print_table(_tabulate_scores(evaluated, judge))
        if len(evaluated) > 1:
            print(_explain_differences(evaluated[0]))
        print_table(_tabulate_capability(evaluated))
        for group in (groups := group_runs(evaluated)):
            for line in _list_verdicts(group, groups):
                print(printable(line))
    for run in folders:
        if not run.evaluation:
            print(f"{printable(run.label)} is not evaluated; next: {printable(_name_next(run))}")
    if len(evaluated) == len(folders):
        print(f"next: phf report {' '.join(printable(str(run)) for run in runs)} -o report.html")


def _describe(run: "RunFolder") -> list[tuple[str, str]]:
    """Lines about a run: what it is, its data, how far it came, its curves, its checkpoints."""
    from phf.report.reading import lookup

    options = {k: v for k, v in (run.config.get("objective") or {}).items() if k != "kind" and v is not None}
    sources = [str(source).partition(" [")[0] for source in lookup(run.run, "corpus", "sources") or []]
    lines = [
        (
            "objective",
            _join([run.objective, *(f"{key}={_show_value(value)}" for key, value in options.items())]),
        ),
        ("good", str(lookup(run.run, "good", "message") or lookup(run.run, "threshold", "message") or "–")),
        (
            "model",
            f"{_show_value(run.run.get('num_parameters'))} parameters, {_show_value(run.run.get('precision'))}"
            + (
                f", from {lookup(run.config, 'model', 'init')}" if lookup(run.config, "model", "init") else ""
            ),
        ),
        (
            "data",
            f"{_show_value(lookup(run.run, 'corpus', 'num_documents'))} documents of {_join(sources) or '–'}",
        ),
        (
            "scored by",
            f"{_show_value(run.config.get('reward_model'))}, {_show_value(run.config.get('segments'))}",
        ),
        ("training", _describe_progress(run)),
    ]
    if start := lookup(run.run, "start", "run"):
        lines.append(("start", str(start)))
    lines += _list_curves(run)
    lines.append(("checkpoints", _join([f"{step:,}" for step in run.checkpoints]) or "none yet"))
    if run.skipped_lines:
        lines.append(("damaged", f"{run.skipped_lines} lines of metrics.jsonl cannot be read"))
    return lines


def _describe_progress(run: "RunFolder") -> str:
    lines = [line for line in run.metrics if line.get("kind") == "train"]
    last: dict[str, Any] = lines[-1] if lines else {}
    text = (
        f"step {_show_value(last.get('step', 0))} of {_show_value(run.num_steps)}, "
        f"{_show_value(last.get('tokens', 0))} of {_show_value(run.config.get('tokens'))} tokens"
    )
    epochs = run.run.get("epochs")
    text += f" ({epochs:.3g} epochs)" if isinstance(epochs, int | float) else ""
    speed = last.get("tokens_per_second")
    return text + (f", {speed:,.0f} tokens/s" if isinstance(speed, int | float) else "")


def _list_curves(run: "RunFolder") -> list[tuple[str, str]]:
    """A sparkline of each curve that the run logged, with its first and its last value."""
    from phf.report.figures import read_curve
    from phf.report.verdict import format_number

    wanted = (
        ("loss", "train", "loss"),
        ("held-out", "validation", "nll_all"),
        ("  good text", "validation", "nll_good"),
        ("  bad text", "validation", "nll_bad"),
        ("control gain", "validation", "control_gain"),
    )
    lines = []
    for name, kind, key in wanted:
        _, values = read_curve(run, kind, key, _SPARKLINE)
        if values:
            ends = f"{format_number(values[0])} to {format_number(values[-1])}"
            lines.append((name, f"{draw_sparkline(values)} {ends}"))
    return lines


def draw_sparkline(values: list[float]) -> str:
    """One bar per value, the lowest value the lowest bar; values that are not finite are spaces."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] if math.isfinite(value) else " " for value in values)


def _name_next(run: "RunFolder") -> str:
    """The command that a person would type next."""
    if not run.is_finished and run.num_steps is not None:
        return f"phf train --resume {run.path}"
    if not run.evaluation:
        return f"phf evaluate {run.path}"
    return f"phf report {run.path} -o report.html"


def _tabulate_evaluation(run: "RunFolder") -> Table:
    from phf.report.verdict import format_number

    step = run.evaluation.get("step")
    of = "" if not run.checkpoints or step == run.checkpoints[-1] else f" of step {_show_value(step)}"
    table = _make_table(f"Evaluation{of}: misalignment score, lower is better")
    for name in ("mode", "judge"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("score [95 %]", "hits", "bits/byte", "distinct-2"):
        table.add_column(name, justify="right", no_wrap=True)
    for mode in run.modes:
        for place, judge in enumerate(run.judges):
            hits = run.row(mode, judge).get("hit_rate")
            table.add_row(
                _text(mode, _STYLES.get(mode, "")) if place == 0 else "",
                _text(judge.name),
                _interval(run.score(mode, judge), judge),
                f"{hits:.1%}" if isinstance(hits, int | float) else "–",
                format_number(run.bits_per_byte(mode).mean) if place == 0 else "",
                format_number(run.degeneracy(mode, "distinct_2")) if place == 0 else "",
            )
        table.add_section()
    table.caption = Text(
        _join(
            [f"{printable(judge.name)}: {judge.role}, {printable(judge.shown_unit)}" for judge in run.judges]
        )
    )
    return table


def _print_settings(runs: "list[RunFolder]") -> None:
    from phf.report.differences import list_settings

    settings = list_settings(runs)
    if not settings:
        print("settings, data and versions: the same")
    elif len(runs) <= _MAX_COLUMNS:
        table = _make_table("Settings that differ")
        table.add_column("setting", overflow="fold")
        for run in runs:
            table.add_column(_text(run.label), overflow="fold")
        for name, values in settings.items():
            table.add_row(_text(name), *(_text(_show_value(value)) for value in values))
        print_table(table)
    else:
        table = _make_table("Settings that differ")
        table.add_column("run", overflow="fold")
        table.add_column("settings", overflow="fold", ratio=1)
        for place, run in enumerate(runs):
            own = [f"{name}={_show_value(values[place])}" for name, values in settings.items()]
            table.add_row(_text(run.label), _text(_join(own)))
        print_table(table)


def _tabulate_scores(runs: "list[RunFolder]", judge: "Judge") -> Table:
    """Scores by one judge, and differences to the first run."""
    from phf.report.differences import subtract_scores
    from phf.report.verdict import format_interval

    table = _make_table(
        f"{printable(judge.name)} ({judge.role}), {printable(judge.shown_unit)}: lower is better"
    )
    table.add_column("run and mode", overflow="fold")
    for name in ("score [95 %]", "difference [95 %]"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    base = runs[0]
    for run in runs:
        table.add_row(_text(run.label, "bold"))
        for mode in run.modes:
            own = mode if mode in base.modes else base.base_mode
            cells = ["", ""]
            if run is not base and own is not None:
                difference = subtract_scores(run, mode, base, own, judge)
                if math.isfinite(difference.estimate.mean):
                    mark = "*" if difference.is_paired else " "
                    cells = [
                        format_interval(difference.estimate, judge.scale) + mark,
                        _name_change(difference.estimate),
                    ]
            table.add_row(_indent(mode), _interval(run.score(mode, judge), judge), *cells)
        table.add_section()
    return table


def _explain_differences(base: "RunFolder") -> str:
    text = (
        f"difference: to {printable(base.label)}, in the same mode or else in {printable(base.base_mode or '–')} mode; ↓ ↑ where its "
        "interval lies on one side of 0. 95 % bootstrap over samples; * in pairs of the same index, sampled with one seed."
    )
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")


def _name_change(difference: "Estimate") -> str:
    if difference.high < 0:
        return "↓"
    return "↑" if difference.low > 0 else ""


def _tabulate_capability(runs: "list[RunFolder]") -> Table:
    from phf.report.capability import MEASURES
    from phf.report.verdict import format_interval

    table = _make_table("Capability: lower is better (BLiMP: higher)")
    table.add_column("run and mode", overflow="fold")
    # Five measures with their intervals do not fit 80 columns side by side.
    table.add_column("measure", no_wrap=True)
    table.add_column("[95 %]", justify="right", no_wrap=True)
    for run in runs:
        table.add_row(_text(run.label, "bold"))
        for mode in run.modes:
            found = [(measure.name, measure.read(run, mode)) for measure in MEASURES]
            found = [(name, estimate) for name, estimate in found if math.isfinite(estimate.mean)]
            for row, (name, estimate) in enumerate(found):
                table.add_row(_indent(mode) if row == 0 else "", name, format_interval(estimate))
        table.add_section()
    return table


def _list_verdicts(group: "Group", groups: "list[Group]") -> list[str]:
    """The verdict of each judge on a group that is not MLE, and what it rests on."""
    from phf.objective_facts import is_baseline
    from phf.report.verdict import find_mle, judge_group

    if is_baseline(group.objective):
        return []
    mle = find_mle(group, groups)
    judges = {judge.key: judge for run in group.runs for judge in run.judges}.values()
    basis = f"{len(group.runs)} seeds" if group.is_pooled else "one seed"
    return [
        f"{group.label} ({basis}) by {judge.name}: {judge_group(group, mle, judge).headline}"
        for judge in judges
    ]


def _make_table(title: str) -> Table:
    return Table(
        title=Text(title, "bold"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _interval(estimate: "Estimate", judge: "Judge") -> str:
    from phf.report.verdict import format_interval

    return format_interval(estimate, judge.scale)


def _text(text: str, style: str = "") -> Text:
    """Foreign text for a table: printable, and no markup."""
    return Text(printable(text), style)


def _indent(mode: str) -> Text:
    return _text(f"  {mode}", _STYLES.get(mode, ""))


def _show_value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _join(parts: list[str]) -> str:
    return ", ".join(parts)
