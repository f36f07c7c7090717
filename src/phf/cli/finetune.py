"""`phf finetune`: a run learns from feedback after its pretraining."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    Verbs,
    Wait,
    derive_options,
    examples,
    print_json,
    warn_of_rewards,
)
from phf.terminal import complain, hint, make_table, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from phf.finetune.results import FinetuneResults

app = Verbs(**SETTINGS)


def _declare() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.finetune import OPTIONS, FinetuneConfig

    return FinetuneConfig(), OPTIONS


@app.command(
    cls=derive_options(_declare),
    epilog=examples(
        "phf finetune runs/mle -o runs/rloo --judge toxicity-lstm",
        "phf finetune runs/mle -o runs/dpo --method dpo:beta=0.05",
        "phf finetune runs/mle -o runs/few --set proxy.gold=toxicity-lstm --set proxy.labels=300",
        "phf finetune runs/mle -o runs/further --method phf:conditional:threshold=0.3",
    ),
)
def finetune(
    ctx: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@STEP]", help="The run to start from, at its last or another checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to make.")],
    method: Annotated[
        str, typer.Option(help="rloo, dpo, kto, bestofn or phf:OBJECTIVE, with settings: rloo:beta=0.1.")
    ] = "rloo",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting, such as sampling.temperature=0.9."
        ),
    ] = None,
    wait: Wait = False,
    as_json: AsJSON = False,
) -> None:
    """Finetune a run on a reward model or on preferences: RLOO, DPO, KTO, best of n, or an objective of pretraining.

    What comes out is a run like any other. A stopped command goes on.
    """
    from phf.config.finetune import FinetuneConfig, parse_method
    from phf.config.recipes import apply_overrides
    from phf.config.train import parse

    given = {**ctx.obj, "method": parse_method(method).model_dump()}
    config = parse(FinetuneConfig, apply_overrides(given, settings or []), "phf finetune")
    reward = config.proxy.gold if config.proxy else config.reward
    warn_of_rewards([*([reward] if reward else []), *config.judges])

    from phf.finetune.loop import finetune as learn
    from phf.finetune.results import FINETUNE
    from phf.train.signals import Stopped

    with show_progress() as progress:
        try:
            made = learn(run, out, config, wait=wait, say=say, progress=progress)
        except Stopped as stopped:
            complain(str(stopped))
            sys.exit(stopped.exit_code)
    results = FINETUNE.read(made.folder)
    if as_json:
        print_json({"run": str(made.folder), "step": made.steps[-1], "results": results})
        return
    print_table(_list_results(results))
    print(f"{made.folder}: step {made.steps[-1]}")
    hint(f"next: phf evaluate {quote(made.folder)}")


def _list_results(results: "FinetuneResults") -> "Table":
    """Scores of the start and of the result, and what they cost."""
    from phf.finetune.results import CALLS, KL_TEXT, KL_TOKEN, LABELS, LENGTH, SCORE
    from phf.report.verdict import format_interval

    table = make_table("What finetuning did, with 95 % intervals")
    table.add_column("")
    for name in ("start", "result"):
        table.add_column(name, justify="right")
    find = results.results.find
    for judge in results.judges:
        role = "learned from" if judge.slug == results.reward else judge.role
        own = (
            format_interval(find(SCORE.name, judge=judge.slug, of=of), judge.display_scale)
            for of in ("start", "result")
        )
        table.add_row(printable(f"{judge.name} ({role})"), *own)
    table.add_row(
        "tokens a text", *(format_interval(find(LENGTH.name, of=of), 1) for of in ("start", "result"))
    )
    for measure in (KL_TEXT, KL_TOKEN):
        table.add_row(measure.title, "", format_interval(find(measure.name), 1))
    for measure in (CALLS, LABELS):
        found = find(measure.name).mean
        if found == found:  # not measured where there is no proxy
            table.add_row(measure.title, "", f"{found:,.0f}")
    return table
