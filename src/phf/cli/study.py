"""`phf study`: a file of arms, seeds and claims becomes runs and one page."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phf.cli.options import SETTINGS, AsJSON, Verbs, Wait, examples, print_json
from phf.terminal import complain, hint, make_table, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from phf.study.contrasts import Verdict
    from phf.study.plan import Plan

app = Verbs(**SETTINGS)


@app.command(
    epilog=examples(
        "phf study toxicity.yaml -o study --plan",
        "phf study toxicity.yaml -o study --workers 2",
    )
)
def study(
    file: Annotated[str, typer.Argument(metavar="STUDY.yaml", help="Arms, seeds, claims (docs/study.md).")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of runs, results and the page.")],
    workers: Annotated[int, typer.Option(help="Runs at a time, one thread each.", min=1)] = 1,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Say what would run and how long it takes, and stop.")
    ] = False,
    wait: Wait = False,
    as_json: AsJSON = False,
) -> None:
    """Train, evaluate and compare all arms of a study, and say of each claim whether it holds.

    What is done is kept in OUT/results, a small file for each run; the same command goes on from them, also on another machine.
    """
    from phf.study.plan import Plan, read_study

    if only_plan:
        plan = Plan.create(read_study(file), out)
        if as_json:
            print_json(
                {
                    "minutes": plan.minutes_left,
                    "missing": [run.id for run in plan.needed],
                    "cut": [run.id for run in plan.cut],
                }
            )
        else:
            _print_plan(plan, workers)
        return

    from phf.study.loop import run_study

    with show_progress() as progress:
        outcome = run_study(
            file, out, workers=workers, wait=wait, say=lambda line: say(printable(line)), progress=progress
        )
    if as_json:
        print_json({"page": str(outcome.page), "verdicts": outcome.verdicts, "failures": outcome.failures})
    else:
        _print_verdicts(outcome.verdicts)
    for name, failure in outcome.failures.items():
        complain(f"failed: {name}: {printable(failure)}")
    if outcome.failures:
        sys.exit(1)
    if not as_json:
        hint(f"next: open {quote(outcome.page)}")


def _print_plan(plan: "Plan", workers: int) -> None:
    table = make_table(
        f"{plan.minutes_left:.0f} minutes of one core, {plan.minutes_left / workers:.0f} with {workers} at a time"
    )
    for column in ("arm", "seeds done", "seeds to do", "minutes each", "left out"):
        table.add_column(column)
    for name in dict.fromkeys(run.name for run in (*plan.runs, *plan.cut)):
        done, missing, cut = (
            ", ".join(str(run.seed) for run in runs if run.name == name)
            for runs in ([run for run in plan.runs if run.result is not None], plan.needed, plan.cut)
        )
        minutes = next(plan.minutes[run.id] for run in (*plan.runs, *plan.cut) if run.name == name)
        table.add_row(name, done, missing, f"{minutes:.1f}", cut)
    print_table(table)


def _print_verdicts(verdicts: "list[Verdict]") -> None:
    table = make_table("What the study says, p Holm-corrected")
    for column in ("claim", "answer", "p"):
        table.add_column(column)
    for verdict in verdicts:
        table.add_row(
            printable(verdict.claim.text),
            verdict.answer,
            "" if verdict.p != verdict.p else f"{verdict.p:.2g}",
        )
    print_table(table)
