"""Verbs that look at runs in the terminal, finished and evaluated or not: show, compare. Everything fits 80 columns."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from phf.cli.dynamics import compare_chains, list_chain
from phf.cli.infer import list_policies
from phf.cli.online import compare_loops, list_rounds
from phf.cli.options import SETTINGS, AsJSON, Runs, Verbs, examples, print_json
from phf.errors import PHFError
from phf.terminal import hint, make_table, print_table, printable, quote, table_width

if TYPE_CHECKING:
    from phf.report.compared import ComparedNumber
    from phf.report.reading import FinetuneFacts, RunFolder
    from phf.report.tables import Table as MeasureTable
    from phf.report.verdict import Group
    from phf.results import Judge, Measure

app = Verbs(**SETTINGS)

_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE = 32
"""Columns of a sparkline."""
_WIDTH, _WIDE, _LABEL = 80, 100, 12
"""Columns of a line, of a terminal with room for three numbers and their intervals, and of the names on the left."""
_MAX_COLUMNS = 3
"""With more runs than this, settings stand under one another instead of side by side."""


All = Annotated[bool, typer.Option("--all", help="Every number, not the headlines alone.")]


@app.command(epilog=examples("phf show runs/conditional", "phf show loops/conditional", "phf show dynamics"))
def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    everything: All = False,
    as_json: AsJSON = False,
) -> None:
    """Say what a run is, how far it is, how its loss went, what was measured and what to do next; or of a loop, each round, or of a chain of pages, its rates."""
    from phf.dynamics.results import DYNAMICS
    from phf.loops.results import LOOP

    if DYNAMICS.is_in(folder):
        chain = DYNAMICS.read(folder)
        if as_json:
            print_json(chain)
        else:
            for table in list_chain(chain):
                print_table(table)
        return
    if LOOP.is_in(folder):
        loop = LOOP.read(folder)
        if as_json:
            print_json(loop)
        else:
            print_table(list_rounds(loop))
        return
    from phf.report.reading import read_runs
    from phf.report.steering import list_steering_lines
    from phf.report.tables import list_measured
    from phf.report.verdict import Group

    (run,) = read_runs([folder], must_be_evaluated=False)
    if as_json:
        print_json(list_measured([run]))
        return
    state = "finished" if run.is_finished else "not finished"
    print(f"{printable(run.label)}: {printable(run.objective)}, seed {_show_value(run.seed)}, {state}")
    for name, text in _describe(run):
        head = f"  {name:{_LABEL}} "
        print(textwrap.fill(printable(text), _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)))
    if run.evaluation:
        _print_measures(Group(run.label, (run,)), everything)
        for line in list_steering_lines(run):
            print(textwrap.fill(printable(line), _WIDTH, subsequent_indent="  "))
    hint(f"next: {_name_next(run)}")


@app.command(
    epilog=examples(
        "phf compare runs/mle runs/conditional",
        "phf compare runs/mle runs/conditional --detect 0.01",
        "phf compare posterior-seed0 posterior-seed1",
    )
)
def compare(
    runs: Runs,
    everything: All = False,
    detect: Annotated[
        float | None,
        typer.Option(
            help="Say how many samples, texts or seeds would show a difference of this size, in the table's units."
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Say in what runs differ: what is told apart and what could not have been, settings, numbers and verdicts, against the first run; or what loops did, policies of several base models, or chains of pages."""
    from phf.dynamics.results import DYNAMICS
    from phf.loops.results import LOOP
    from phf.posterior.results import POSTERIOR

    if DYNAMICS.is_in_all(runs):
        chains = [DYNAMICS.read(folder) for folder in runs]
        if as_json:
            print_json(chains)
        else:
            print_table(compare_chains(chains))
        return
    if POSTERIOR.is_in_all(runs):
        several = [POSTERIOR.read(folder) for folder in runs]
        if as_json:
            print_json(several)
        else:
            print_table(list_policies(several))
        return
    if LOOP.is_in_all(runs):
        loops = [LOOP.read(folder) for folder in runs]
        if as_json:
            print_json(loops)
        else:
            for table in compare_loops(loops):
                print_table(table)
        return
    from phf.report.compared import describe_compared
    from phf.report.comparison import compare_runs, compare_with_first, list_verdicts, name_groups
    from phf.report.provenance import list_unlike
    from phf.report.reading import read_runs
    from phf.report.verdict import group_runs

    if len(runs) < 2:
        raise PHFError("give two runs or more to compare; 'phf show RUN' is about one")
    if detect is not None and not 0 < detect < math.inf:
        raise PHFError(
            f"--detect is {detect:g}; give the size of a difference above 0, such as --detect 0.01"
        )
    if as_json:
        print_json(compare_runs(runs, everything=everything, detect=detect))
        return
    folders = read_runs(runs, must_be_evaluated=False)
    evaluated = [run for run in folders if run.evaluation]
    groups = group_runs(evaluated)
    named = name_groups(groups, evaluated[0]) if evaluated else []
    compared = compare_with_first(named, everything)
    for line in describe_compared(compared):
        print(textwrap.fill(printable(line), _WIDTH, subsequent_indent="  "))
    _print_settings(folders)
    if evaluated:
        _print_comparison(named, compared, everything, detect)
        for group in groups:
            for line in list_verdicts(group, groups):
                print(printable(line))
        for notice in list_unlike(evaluated):
            print(printable(f"note: {notice}"))
    for run in folders:
        if not run.evaluation:
            print(f"{printable(run.label)} is not evaluated; next: {_name_next(run)}")
    if len(evaluated) == len(folders):
        hint(f"next: phf report {' '.join(map(quote, runs))} -o report.html")


def _describe(run: "RunFolder") -> list[tuple[str, str]]:
    """Lines about a run: what it is, its data, how far it came, its curves, its checkpoints."""
    record, settings, corpus = run.record, run.settings, run.record.corpus
    given = record.config.get("objective")
    options = (
        {key: value for key, value in given.items() if key != "kind" and value is not None}
        if isinstance(given, dict)
        else {}
    )
    sources = [source.partition(" [")[0] for source in (corpus.sources if corpus else [])]
    init = f", from {settings.model.init}" if settings.model.init else ""
    lines = [
        (
            "objective",
            _join([run.objective, *(f"{key}={_show_value(value)}" for key, value in options.items())]),
        ),
        ("good", (record.threshold and record.threshold.message) or "–"),
        ("model", f"{_show_value(record.num_parameters)} parameters, {_show_value(record.precision)}{init}"),
        (
            "data",
            f"{_show_value(corpus.num_documents if corpus else None)} documents of {_join(sources) or '–'}",
        ),
        ("scored by", f"{_show_value(settings.reward_model)}, {_show_value(settings.segments)}"),
        ("training", _describe_progress(run)),
    ]
    if record.start and record.start.run:
        lines.append(("start", record.start.run))
    if record.finetune:
        lines.append(("finetuned", _describe_finetuning(record.finetune)))
    lines += _list_curves(run)
    lines.append(("checkpoints", _join([f"{step:,}" for step in run.checkpoints]) or "none yet"))
    if run.skipped_lines:
        lines.append(("damaged", f"{run.skipped_lines} lines of metrics.jsonl are damaged or another run's"))
    if run.has_lost_metrics:
        lines.append(
            ("damaged", "the last lines of metrics.jsonl are gone: its curves end before the last checkpoint")
        )
    return lines


def _describe_finetuning(facts: "FinetuneFacts") -> str:
    """The method with its settings, what was learned from, and the other settings that have no default worth a name."""
    method = facts.settings.get("method")
    given = {key: value for key, value in method.items() if key != "kind"} if isinstance(method, dict) else {}
    spec = ",".join(f"{key}={_show_value(value)}" for key, value in given.items() if value is not None)
    size = " x ".join(_show_value(facts.settings.get(key)) for key in ("steps", "texts"))
    return f"{facts.method}:{spec}, in mode {facts.mode}, on {facts.source}, {size} texts"


def _describe_progress(run: "RunFolder") -> str:
    last = next((line.numbers for line in reversed(run.metrics) if line.kind == "train"), {})
    text = (
        f"step {last.get('step', 0):,.0f} of {_show_value(run.num_steps)}, "
        f"{last.get('tokens', 0):,.0f} of {_show_value(run.settings.tokens)} tokens"
    )
    text += f" ({run.record.epochs:.3g} epochs)" if run.record.epochs is not None else ""
    return text + (f", {last['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in last else "")


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
        ("score", "train", "score"),
        ("KL a text", "train", "kl_text"),
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
    if not run.is_finished and run.record.finetune:
        return f"the 'phf finetune' that began it, with -o {quote(run.path)}: it goes on"
    if not run.is_finished and run.num_steps is not None:
        return f"phf train --resume {quote(run.path)}"
    if not run.evaluation:
        return f"phf evaluate {quote(run.path)}"
    return f"phf report {quote(run.path)} -o report.html"


def _print_measures(group: "Group", everything: bool) -> None:
    """What was measured of one run: measures down, modes across."""
    from phf.report.reading import is_steered
    from phf.report.tables import list_headlines, tabulate_measures

    (run,) = group.runs
    assert run.evaluation is not None
    step = run.evaluation.step
    of = "" if not run.checkpoints or step == run.checkpoints[-1] else f" of step {_show_value(step)}"
    title = f"Evaluation{of}: ↓ lower is better, ↑ higher is better"
    if not everything:
        measures, is_wanted = list_headlines([group])
        _print_shaped(tabulate_measures([group], measures, "", is_wanted), title, skip=1)
        print(_explain_units(run.judges))
        print(f"all {len(run.results):,} numbers: --all; for scripts: --json")
        return
    print(title)
    for name, measures in _group_measures([group]).items():
        _print_shaped(tabulate_measures([group], measures, name), name, skip=1)
        steered = tabulate_measures([group], measures, name, lambda row: is_steered(row.mode or ""))
        _print_shaped(steered, f"{name}, steered", skip=1)
    print(_explain_units(run.judges))


def _print_shaped(
    table: "MeasureTable", title: str, *, skip: int = 0, max_columns: int | None = None
) -> None:
    """A table for this terminal: as many numbers with their intervals side by side as it has room for, or so many."""
    from phf.report.tables import to_terminal

    max_columns = max_columns or (3 if table_width() >= _WIDE else 2)
    for shown in to_terminal(table, title=title, skip=skip, max_columns=max_columns):
        print_table(shown)


def _group_measures(groups: "list[Group]") -> "dict[str, list[Measure]]":
    """The measures of groups under their headings."""
    from phf.report.tables import Catalogue

    found: dict[str, list[Measure]] = {}
    for measure in Catalogue.of(groups).measures.values():
        if any(group.results.of(measure.name) for group in groups):
            found.setdefault(measure.group, []).append(measure)
    return found


def _explain_units(judges: "list[Judge]") -> str:
    text = "; ".join(
        f"{printable(judge.name)}: {judge.role}, {printable(judge.shown_unit)}" for judge in judges
    )
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")


def _print_settings(runs: "list[RunFolder]") -> None:
    from phf.report.differences import list_settings

    settings = list_settings(runs)
    foreign = [place for place, run in enumerate(runs) if run.num_steps is None]  # trained elsewhere
    unknown = {
        name
        for name, values in settings.items()
        if foreign and all(values[place] is None for place in foreign)
    }
    if unknown:
        names = _join([runs[place].label for place in foreign])
        line = f"trained elsewhere, so {len(unknown)} settings of training are not known of it: {names}"
        print(textwrap.fill(printable(line), _WIDTH, subsequent_indent="  "))
        settings = {
            name: values
            for name, values in settings.items()
            if name not in unknown or len({str(value) for value in values if value is not None}) > 1
        }
    if not settings:
        print("settings, data and versions: the same")
        return
    table = make_table("Settings that differ")
    if len(runs) <= _MAX_COLUMNS:
        table.add_column("setting", overflow="fold")
        for run in runs:
            table.add_column(_text(run.label), overflow="fold")
        for name, values in settings.items():
            table.add_row(_text(name), *(_text(_show_value(value)) for value in values))
    else:
        table.add_column("run", overflow="fold")
        table.add_column("settings", overflow="fold", ratio=1)
        for place, run in enumerate(runs):
            own = [f"{name}={_show_value(values[place])}" for name, values in settings.items()]
            table.add_row(_text(run.label), _text(_join(own)))
    print_table(table)


def _print_comparison(
    groups: "list[Group]", compared: "list[ComparedNumber]", everything: bool, detect: float | None
) -> None:
    """What was measured of several runs (measures and modes down, runs across), and on what their differences rest."""
    from phf.report.compared import explain_tests, tabulate_comparison, tabulate_tests
    from phf.report.comparison import list_wanted
    from phf.report.reading import list_judges

    measures, is_wanted = list_wanted(groups, everything)
    shown = _group_measures(groups) if everything else {"Headline numbers": measures}
    for name, own in shown.items():
        _print_shaped(tabulate_comparison(groups, own, name, is_wanted, compared), name)
    print(_explain_units(list_judges(run for group in groups for run in group.runs)))
    if not compared:
        return
    if len(groups) == 2 or everything or detect is not None:
        for table in tabulate_tests(compared, detect, with_difference=len(groups) > 2):
            _print_shaped(table, f"What {table.name} rests on", max_columns=5)
        print(textwrap.fill(printable(explain_tests(compared)), _WIDTH, subsequent_indent="  "))
    else:
        print("↓ ↑: told apart from the first; on what that rests: --all, or --json")


def _text(text: str, style: str = "") -> Text:
    """Foreign text for a table: printable, and no markup."""
    return Text(printable(text), style)


def _show_value(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _join(parts: list[str]) -> str:
    return ", ".join(parts)
