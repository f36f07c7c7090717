"""`phf attack`: what it costs to get bad mode back from a release."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from phf.cli.options import SETTINGS, derive_options, examples
from phf.terminal import print_table, printable, say, show_progress

if TYPE_CHECKING:
    from pydantic import BaseModel

app = typer.Typer(**SETTINGS)


def _declare_attacks() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config_attack import OPTIONS, AttackSuiteConfig

    return AttackSuiteConfig(), OPTIONS


@app.command(
    cls=derive_options(_declare_attacks),
    epilog=examples(
        "phf attack release/ runs/conditional runs/mle runs/filtering -o attack --judge toxicity-lstm",
        "phf attack release/ runs/conditional -o attack --attack soft:tokens=8 --attack lora --num-texts 10 --num-texts 10000",
    ),
)
def attack(
    ctx: typer.Context,
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="TARGET...", help="Releases and runs of one corpus, the unmodified run too."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for attack.json and attack.html.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as steps=[10,100,1000]."),
    ] = None,
) -> None:
    """Try to get bad mode back without <|bad|>, and say what it costs in bad texts and in steps.

    What is finished is kept: a stopped command goes on, and asking for more repeats nothing.
    """
    from phf.config import parse, parse_spec
    from phf.config_attack import AttackConfig, AttackSuiteConfig
    from phf.config_recipes import apply_overrides

    given = ctx.obj
    if "attacks" in given:
        given["attacks"] = [
            parse_spec(AttackConfig, spec, "--attack").model_dump() for spec in given["attacks"]
        ]
    if "num_texts" in given:
        given["num_texts"] = sorted(set(given["num_texts"]))
    config = parse(AttackSuiteConfig, apply_overrides(given, settings or []), "phf attack")

    from phf.release.attack import attack_targets
    from phf.report.rediscovery import write_rediscovery

    with show_progress() as progress:
        result = attack_targets(targets, out, config, say=say, progress=progress)
    write_rediscovery(result, out / "attack.html")
    print_table(_cost_table(result))
    for verdict in result["verdicts"]:
        if verdict["attack"] == "cheapest":
            print(printable(verdict["text"]))
    print(f"next: open {out / 'attack.html'}; every number is in {out / 'attack.json'}")


def _cost_table(result: dict[str, Any]) -> Table:
    """Bad texts that bring back half and nine tenths of bad mode, and the score with the most texts, by the annotator."""
    from phf.release.attack import describe_cost
    from phf.release.attack.rediscovery import LEVELS

    judge = result["judges"][0]
    half, most = LEVELS
    table = Table(
        title=f"Bad texts that bring back {half:.0%} and {most:.0%} of bad mode, with 95 % intervals",
        caption=f"score: {judge['slug']} x {judge['display_scale']:g}, with the most texts",
        caption_justify="left",
    )
    for column in ("target", "attack"):
        table.add_column(column)
    for column in (f"{half:.0%}", "steps", f"{most:.0%}", "score"):
        table.add_column(column, justify="right")
    for target in result["targets"]:
        start = target["modes"][target["start"]][judge["slug"]]
        name = f"{target['name']} ({'+'.join(target['forget'])})" if target["forget"] else target["name"]
        table.add_row(Text(printable(name)), "none", "", "", "", _format_score(start, judge))
        own = [
            row for row in result["best"] if (row["target"], row["judge"]) == (target["name"], judge["slug"])
        ]
        for most_texts in {row["attack"]: row for row in own}.values():  # the last, with the most texts
            costs = [
                row
                for level in LEVELS
                for row in result["rediscovery"]
                if (row["target"], row["attack"], row["judge"], row["level"])
                == (target["name"], most_texts["attack"], judge["slug"], level)
            ]
            cells = [describe_cost(cost) for cost in costs] or ["", ""]
            steps = str(costs[0]["steps"]) if costs and costs[0]["steps"] is not None else ""
            table.add_row(
                "", most_texts["attack"], cells[0], steps, cells[1], _format_score(most_texts["score"], judge)
            )
        table.add_section()
    return table


def _format_score(score: dict[str, float | None], judge: dict[str, Any]) -> str:
    values = [score[key] for key in ("mean", "low", "high")]
    mean, low, high = ("-" if value is None else f"{value * judge['display_scale']:.3g}" for value in values)
    return f"{mean} [{low}, {high}]"
