"""`phf attack`: what it costs to get bad mode back from a release."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from phf.cli.options import SETTINGS
from phf.terminal import print_table, printable, say, show_progress

if TYPE_CHECKING:
    from phf.release.attack.results import AttackResults

app = typer.Typer(**SETTINGS)


@app.command(
    epilog="Examples: phf attack release/ runs/conditional runs/mle runs/filtering -o attack --judge toxicity-lstm;  "
    "phf attack release/ runs/conditional -o attack --attack soft:tokens=8 --attack lora --num-texts 10 --num-texts 10000"
)
def attack(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="TARGET...", help="Releases and runs of one corpus, the unmodified run too."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for attack.json and attack.html.")],
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            metavar="KIND:KEY=VALUE",
            help="soft, finetune, lora (extra 'attack'), few-shot, prefix or lens; repeatable. "
            "Default: soft, soft:tokens=8, finetune, few-shot.",
        ),
    ] = None,
    num_texts: Annotated[
        list[int] | None,
        typer.Option(help="Bad texts that the attacker has; repeatable (default 10, 100, 1000)."),
    ] = None,
    num_seeds: Annotated[
        int | None,
        typer.Option(
            help="Draws of texts and samples (default 1; from 3 on, intervals are over them).", min=1
        ),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(help="Bad texts from a JSONL file (field text), in place of the run's corpus."),
    ] = None,
    judge: Annotated[
        list[str] | None, typer.Option(help="A held-out judge beside the annotator; repeatable.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="Samples at each step measured (default 128).", min=1)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as steps=[10,100,1000]."),
    ] = None,
) -> None:
    """Try to get bad mode back without <|bad|>, and say what it costs in bad texts and in steps.

    What is finished is kept: a stopped command goes on, and asking for more repeats nothing.
    """
    from phf.config import apply_overrides, parse, parse_spec
    from phf.config_attack import AttackConfig, AttackSuiteConfig

    given = {
        "attacks": [parse_spec(AttackConfig, spec, "--attack").model_dump() for spec in attacks or []],
        "num_texts": sorted(set(num_texts or [])),
        "num_seeds": num_seeds,
        "texts": texts,
        "judges": judge,
        "sampling": {"num_samples": num_samples or 128},
    }
    given = {key: value for key, value in given.items() if value}
    config = parse(AttackSuiteConfig, apply_overrides(given, settings or []), "phf attack")

    from phf.release.attack.suite import attack_targets
    from phf.report.rediscovery import write_rediscovery

    with show_progress() as progress:
        results = attack_targets(targets, out, config, say=say, progress=progress)
    write_rediscovery(results, out / "attack.html")
    print_table(_cost_table(results))
    for verdict in results.verdicts:
        if verdict.attack == "cheapest":
            print(printable(verdict.text))
    print(f"next: open {out / 'attack.html'}; every number is in {out / 'attack.json'}")


def _cost_table(results: "AttackResults") -> Table:
    """Bad texts that bring back half and nine tenths of bad mode, and the score with the most texts, by the annotator."""
    from phf.release.attack.rediscovery import LEVELS
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
