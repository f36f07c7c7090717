"""`phf attack`: what it costs to get bad mode back from a release."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from phf.cli.options import SETTINGS, AsJSON, Verbs, derive_options, examples, print_json, warn_of_rewards
from phf.terminal import hint, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from pydantic import BaseModel

    from phf.attack.results import AttackResults

app = Verbs(**SETTINGS)


def _declare_attacks() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.attack import OPTIONS, AttackSuiteConfig

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
    as_json: AsJSON = False,
) -> None:
    """Try to get bad mode back without <|bad|>, and say what it costs in bad texts and in steps.

    What is finished is kept: a stopped command goes on, and asking for more repeats nothing.
    """
    from phf.config.attack import AttackConfig, AttackSuiteConfig
    from phf.config.recipes import apply_overrides
    from phf.config.train import parse, parse_spec

    given = ctx.obj
    if "attacks" in given:
        given["attacks"] = [
            parse_spec(AttackConfig, spec, "--attack").model_dump() for spec in given["attacks"]
        ]
    if "num_texts" in given:
        given["num_texts"] = sorted(set(given["num_texts"]))
    config = parse(AttackSuiteConfig, apply_overrides(given, settings or []), "phf attack")

    warn_of_rewards(config.judges)
    from phf.attack.suite import attack_targets
    from phf.report.rediscovery import write_rediscovery

    with show_progress() as progress:
        results = attack_targets(targets, out, config, say=say, progress=progress)
    write_rediscovery(results, out / "attack.html")
    if as_json:
        print_json(results)
        return
    print_table(_cost_table(results))
    for verdict in results.verdicts:
        if verdict.attack == "cheapest":
            print(printable(verdict.text))
    hint(f"next: open {quote(out / 'attack.html')}; every number is in {quote(out / 'attack.json')}")


def _cost_table(results: "AttackResults") -> Table:
    """Bad texts that bring back half and nine tenths of bad mode, and the score with the most texts, by the annotator."""
    from phf.attack.rediscovery import LEVELS
    from phf.report.verdict import format_interval

    judge = results.judges[0]
    half, most = LEVELS
    table = Table(
        title=f"Bad texts that bring back {half:.0%} and {most:.0%} of bad mode, with 95 % intervals",
        caption=f"score: {judge.slug} x {judge.display_scale:g}, with the most texts",
        caption_justify="left",
    )
    for column in ("target", "attack"):
        table.add_column(column)
    for column in (f"{half:.0%}", "steps", f"{most:.0%}", "score"):
        table.add_column(column, justify="right")
    costs = {
        (one.target, one.attack, one.level): one for one in results.rediscovery if one.judge == judge.slug
    }
    for target in results.targets:
        name = f"{target.name} ({'+'.join(target.forget)})" if target.forget else target.name
        start = format_interval(target.score(target.start, judge.slug), judge.display_scale)
        table.add_row(Text(printable(name)), "none", "", "", "", start)
        own = {
            row.attack: row for row in results.best if row.target == target.name
        }  # the last, with the most texts
        for attack, row in own.items():
            first, second = (costs.get((target.name, attack, level)) for level in LEVELS)
            table.add_row(
                "",
                attack,
                first.describe() if first else "",
                f"{first.steps:,.0f}" if first and first.is_reached else "",
                second.describe() if second else "",
                format_interval(row.score(judge.slug), judge.display_scale),
            )
        table.add_section()
    return table
