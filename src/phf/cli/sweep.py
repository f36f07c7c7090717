"""`phf sweep`: a grid of runs."""

import sys
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.markup import escape

from phf.cli.options import SETTINGS, AsJSON, Verbs, Wait, check_choice, examples, print_json
from phf.terminal import complain, hint, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from phf.records import Estimate
    from phf.train.sweep import PooledRuns

app = Verbs(**SETTINGS)


@app.command(
    epilog=examples(
        "phf sweep toxicity objective.kind=[mle,conditional,rwr] seed=0,1,2 -o sweep --workers 2",
        "phf sweep toxicity objective='[{kind: mle}, {kind: conditional, good_fraction: 0.5}]' -o sweep",
        "phf sweep finetunings.yaml -o finetunings",
    )
)
def sweep(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Overrides; several values make the grid."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that holds the runs.")],
    workers: Annotated[int, typer.Option(help="Runs at a time, one thread each.", min=1)] = 1,
    launcher: Annotated[
        str,
        typer.Option(
            help="local, slurm (one job a run; SBATCH_PARTITION, SBATCH_TIMELIMIT, SBATCH_GPUS say what a job gets; submitit's "
            "time limit is 5 minutes) or ray (one task a run, on all of the cluster)."
        ),
    ] = "local",
    wait: Wait = False,
    as_json: AsJSON = False,
) -> None:
    """Train every run of a grid over shared annotations and tokens. Resumable; failed runs are listed, not fatal.

    An option that only some objectives have goes with the kind, as in the second example. Lists may stand in the recipe, under `sweep`.
    A recipe with `finetune: RUN` has the settings of `phf finetune`.
    """
    from phf.train.sweep import Launcher, run_sweep, summarize

    kind = check_choice("launcher", launcher, get_args(Launcher))
    with show_progress() as progress:
        outcomes = run_sweep(
            recipe,
            overrides or [],
            out,
            workers=workers,
            launcher=kind,
            wait=wait,
            say=lambda line: say(printable(line)),
            progress=progress,
        )
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    rows = summarize(outcomes)
    if as_json:
        print_json({"runs": [str(outcome.cell.folder) for outcome in outcomes], "settings": rows})
    else:
        _print_losses(rows)
    for outcome in failed:
        complain(f"failed: {outcome.cell.folder.name}: {printable(str(outcome.failure))}")
    if failed:
        sys.exit(1)
    if not as_json:
        verb = "evaluate" if _list_known(rows) else "compare"  # finetuning ends with its measurements
        hint(f"next: phf {quote(verb)} {' '.join(quote(outcome.cell.folder) for outcome in outcomes)}")


def _list_known(rows: "list[PooledRuns]") -> list[str]:
    """Losses that a run has; finetuned ones have none."""
    from phf.train.sweep import LOSSES

    return [loss for loss in LOSSES if any(row.losses[loss].count for row in rows)]


def _print_losses(rows: "list[PooledRuns]") -> None:
    from rich.table import Table

    known = _list_known(rows)
    title = "Validation NLL a token at the end, in nats (95 % interval over seeds)"
    table = Table(title=title if known else None)
    for column in ("run", "finished", *known):
        table.add_column(column)
    for row in rows:
        name = " ".join(row.overrides) or "all seeds"
        losses = [_format(row.losses[loss]) for loss in known]
        table.add_row(escape(name), f"{row.num_finished} of {row.num_finished + row.num_failed}", *losses)
    print_table(table)


def _format(estimate: "Estimate") -> str:
    if estimate.count == 0:
        return "-"
    interval = "" if isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return escape(f"{estimate.mean:.3f}{interval}")
