"""`phf dynamics`: a run as a Markov chain of pages, and how far the estimators are to be trusted."""

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

    from phf.chains.truths import Coverage
    from phf.dynamics.results import DynamicsResults

app = Verbs(**SETTINGS)


def _declare() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.dynamics import OPTIONS, DynamicsConfig

    return DynamicsConfig(), OPTIONS


@app.command(
    cls=derive_options(_declare),
    epilog=examples(
        "phf dynamics runs/conditional -o dynamics",
        "phf dynamics runs/conditional -o dynamics --mode good --num-samples 4000",
        "phf dynamics runs/mle runs/mle@500 runs/not-isolated -o dynamics",
        "phf dynamics models/llama -o dynamics --documents corpora/tweets",
        "phf dynamics --validate --trials 50",
    ),
)
def dynamics(
    ctx: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]", help="A run, RUN@STEP, a release, or the folder of any causal language model."
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BESIDE...]", help="Such models, too, for what the end of a page makes each forget."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for dynamics.json and dynamics.html.")
    ] = Path("dynamics"),
    validate: Annotated[
        bool, typer.Option("--validate", help="Hold each estimator against chains whose truth is known.")
    ] = False,
    trials: Annotated[int, typer.Option(min=1, help="Repeats of --validate.")] = 200,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as num_bootstrap=2000."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """How good text turns bad and comes back, whether pages forget, and what the end of a page is worth.

    What is finished is kept: a stopped command goes on, and asking for more repeats nothing.
    """
    if validate:
        _validate(trials, as_json)
        return
    if model is None:
        raise PHFError("give a run made by 'phf train', a model's folder, or --validate")
    from phf.config.dynamics import DynamicsConfig
    from phf.config.recipes import apply_overrides
    from phf.config.train import parse

    config = parse(DynamicsConfig, apply_overrides(ctx.obj, settings or []), "phf dynamics")
    warn_of_rewards([config.judge] if config.judge else [])
    from phf.dynamics.dynamics import measure_dynamics
    from phf.report.dynamics import write_dynamics_page

    with show_progress() as progress:
        results = measure_dynamics(model, out, config, beside=beside or (), say=say, progress=progress)
    write_dynamics_page(results, out / "dynamics.html")
    if as_json:
        print_json(results)
        return
    for table in list_chain(results):
        print_table(table)
    hint(f"next: open {quote(out / 'dynamics.html')}; every number is in {quote(out / 'dynamics.json')}")


def _validate(trials: int, as_json: bool) -> None:
    from phf.chains.truths import validate

    with show_progress() as progress:
        found = list(validate(trials, progress=progress))
    if as_json:
        print_json(found)
        return
    print_table(_list_coverage(found))


def _list_coverage(found: "list[Coverage]") -> Table:
    """What each estimator makes of each truth."""
    table = make_table(f"Estimators against known truths, {found[0].trials} repeats; 95 % intervals")
    for head in ("chain", "number"):
        table.add_column(head)
    for head in ("truth", "bias", "intervals that hold it", "rejected at .05"):
        table.add_column(head, justify="right")
    for row in found:
        share = f"{row.share:.3f}"
        table.add_row(
            row.source,
            row.name,
            "" if row.is_test else f"{row.truth:.4f}",
            "" if row.is_test else f"{row.bias:+.4f}",
            *(("", share) if row.is_test else (share, "")),
        )
    return table


def list_chain(results: "DynamicsResults") -> list[Table]:
    """What a dynamics.json says, in short."""
    tables = [*([] if results.judge is None else [_list_rates(results)]), _list_ends(results)]
    return [table for table in tables if table.row_count]


def compare_chains(several: "Sequence[DynamicsResults]") -> Table:
    """What is the models' own, side by side: of two with the difference, of more with the mean over them, as over seeds."""
    from phf.dynamics.measures import FAR_EXCESS, LAW_EXCESS, RATE_EXCESS
    from phf.intervals import difference_of_shares, pooled_t
    from phf.report.verdict import format_interval

    table = make_table("Model - data, with 95 % intervals")
    for head in ("mode", "number"):
        table.add_column(head)
    last = "second - first" if len(several) == 2 else "all, over models"
    for head in [*(own.run for own in several), *[last] * (len(several) > 1)]:
        table.add_column(Text(printable(head)), justify="right")
    wanted = [
        (row.measure, row.mode, row.of)
        for row in several[0].results.of(RATE_EXCESS.name, LAW_EXCESS.name, FAR_EXCESS.name)
        if all(own.results.find(row.measure, row.mode, of=row.of).count for own in several)
    ]
    for measure, mode, of in wanted:
        cells = [own.results.find(measure, mode, of=of) for own in several]
        if len(cells) == 2:
            cells.append(difference_of_shares(cells[1], cells[0]))
        elif len(cells) > 2:
            cells.append(pooled_t([cell.mean for cell in cells]))
        shown = (format_interval(cell, 1).replace(" [", "\n[") for cell in cells)
        table.add_row(mode, of or "far excess", *shown)
    return table


def _list_rates(results: "DynamicsResults") -> Table:
    """How often good segments turn bad and bad ones good, the model's and the data's."""
    from phf.dynamics.measures import FAR_EXCESS, RATE, RATE_EXCESS, RATE_OF_DATA
    from phf.report.verdict import format_interval

    table = make_table("How often a segment is followed by another kind, with 95 % intervals")
    for head in ("mode", "step"):
        table.add_column(head)
    for head in ("model", "data, same lengths", "model - data"):
        table.add_column(head, justify="right")
    find = results.results.find
    for mode in results.modes:
        for step in ("good -> bad", "bad -> good", "good -> end", "bad -> end"):
            cells = [find(measure.name, mode, of=step) for measure in (RATE, RATE_OF_DATA, RATE_EXCESS)]
            table.add_row(mode, step, *(format_interval(cell, 1) for cell in cells))
        if find(FAR_EXCESS.name, mode).count:
            table.add_row(mode, "far excess", format_interval(find(FAR_EXCESS.name, mode), 1), "", "")
    return table


def _list_ends(results: "DynamicsResults") -> Table:
    """What stood before an end, in texts: of each mode, and of models side by side."""
    from phf.dynamics.measures import TEXT_DIVERGENCE
    from phf.report.verdict import format_interval

    table = make_table("How much the next tokens depend on what stood before an end, in nats (0 to .69)")
    for head in ("model", "between"):
        table.add_column(head)
    rows = results.results.of(TEXT_DIVERGENCE.name)
    lengths = sorted({row.at for row in rows if row.at is not None})
    for length in lengths:
        table.add_column(f"{length:.0f} tokens", justify="right")
    for mode, of in dict.fromkeys((row.mode, row.of) for row in rows):
        cells = [results.results.find(TEXT_DIVERGENCE.name, mode, of=of, at=length) for length in lengths]
        names = (f"{results.run} {mode}", str(of)) if mode else (str(of), "an end")
        table.add_row(*names, *(format_interval(cell, 1) for cell in cells))
    return table
