"""`phf online`: rounds on a model's own text, and the lemma behind them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from phf.cli.options import SETTINGS, AsJSON, Verbs, derive_options, examples, print_json, warn_of_rewards
from phf.errors import PHFError
from phf.terminal import hint, make_table, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from phf.loops.results import LoopResults
    from phf.records import Estimate

app = Verbs(**SETTINGS)


def _declare() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.online import ONLINE_OPTIONS, OnlineConfig

    return OnlineConfig(), ONLINE_OPTIONS


@app.command(
    cls=derive_options(_declare),
    epilog=examples(
        "phf online runs/conditional --rounds 4 -o loops/conditional --judge toxicity-lstm",
        "phf online runs/conditional --rounds 4 --control shuffled -o loops/shuffled --judge toxicity-lstm",
        "phf report loops/conditional loops/shuffled -o loops.html",
        "phf online --check-lemma runs/conditional -o lemma --case unfiltered --case 'top-p .95'",
    ),
)
def online(
    ctx: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@STEP]", help="The run to go on from, at its last or another checkpoint."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write; default: loop, or lemma.")
    ] = None,
    lemma: Annotated[
        bool,
        typer.Option(
            "--check-lemma",
            help="In place of rounds: whether the mean gradient of log p over own samples is 0, case by case. --mode, --seed and "
            "--set (groups=64, cases=[...]) are its settings.",
        ),
    ] = False,
    cases: Annotated[
        list[str] | None, typer.Option("--case", help="With --check-lemma: these cases alone; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as schedule=constant."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Let a run write, score it, train it on what it wrote, and measure each round.

    What is finished is kept: a stopped command goes on, and one with more rounds repeats nothing.
    """
    from phf.config.online import OnlineConfig
    from phf.config.recipes import apply_overrides
    from phf.config.train import parse

    if lemma:
        given = {"seed": ctx.obj["sampling"]["seed"], "mode": ctx.obj.get("mode")}
        given |= {"cases": cases} if cases else {}
        _check_lemma(run, out or Path("lemma"), apply_overrides(given, settings or []), as_json)
        return
    if cases:
        raise PHFError("--case belongs to --check-lemma: rounds have no cases")
    out = out or Path("loop")
    config = parse(OnlineConfig, apply_overrides(ctx.obj, settings or []), "phf online")
    warn_of_rewards(config.judges)
    from phf.loops.rounds import run_rounds

    with show_progress() as progress:
        results = run_rounds(run, out, config, say=say, progress=progress)
    if as_json:
        print_json(results)
        return
    print_table(list_rounds(results))
    hint(f"next: phf report {quote(out)} -o loops.html, with its controls beside it")


def _check_lemma(run: str, out: Path, given: "dict[str, object]", as_json: bool) -> None:
    from phf.config.online import LemmaConfig
    from phf.config.train import parse
    from phf.loops.lemma_cases import check_lemma
    from phf.report.loops import tabulate_lemma, write_lemma_page

    config = parse(LemmaConfig, given, "phf online --check-lemma")
    with show_progress() as progress:
        results = check_lemma(run, out, config, say=say, progress=progress)
    write_lemma_page(results, out / "lemma.html")
    if as_json:
        print_json(results)
        return
    heads, rows = tabulate_lemma(results)
    title = f"{results.run}, {results.mode} mode: |E grad log p|^2 over own samples"
    print_table(_tabulate(title, "case", heads, [(row.name, row.cells) for row in rows]))
    hint(f"next: open {quote(out / 'lemma.html')}")


def list_rounds(loop: "LoopResults") -> Table:
    """What each round of a loop came to."""
    from phf.report.loops import Loops

    found = Loops([loop])
    title = f"{loop.run}, {loop.mode} mode, {loop.control if loop.control != 'none' else 'scored'}: rounds on own text"
    rows = [(str(at), [column.find(loop.results, at) for column in found.columns]) for at in loop.rounds]
    return _tabulate(title, "round", [column.head for column in found.columns], rows)


def compare_loops(loops: "Sequence[LoopResults]") -> list[Table]:
    """Loops at their last common round, and each minus the human control."""
    from phf.report.loops import Loops

    found = Loops(loops)
    heads = [column.head for column in found.columns]
    tables = [
        _tabulate(
            f"After round {found.last}", "loop", heads, [(row.name, row.cells) for row in found.list_last()]
        )
    ]
    if found.differences:
        rows = [(row.name, row.cells) for row in found.differences]
        tables.append(_tabulate("Minus the loop on human text", "loop", heads, rows))
    return tables


def _tabulate(title: str, first: str, heads: list[str], rows: "list[tuple[str, list[Estimate]]]") -> Table:
    from phf.report.verdict import format_interval

    table = make_table(title)
    table.add_column(first)
    for head in heads:
        table.add_column(head.replace(", ", ",\n").replace(" from ", "\nfrom "), justify="right")
    for name, cells in rows:
        table.add_row(
            Text(printable(name)), *(format_interval(cell, 1).replace(" [", "\n[") for cell in cells)
        )
    return table
