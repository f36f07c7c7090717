"""`phf infer`: the posterior that feedback methods aim at, and how far each is from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from phf.cli.options import SETTINGS, AsJSON, Verbs, derive_options, examples, print_json, warn_of_rewards
from phf.terminal import hint, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from phf.posterior.results import PosteriorResults

app = Verbs(**SETTINGS)


def _declare() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.infer import OPTIONS, InferConfig

    return InferConfig(), OPTIONS


@app.command(
    cls=derive_options(_declare),
    epilog=examples(
        "phf infer runs/mle runs/conditional runs/filtering -o posterior --judge toxicity-lstm",
        "phf infer runs/mle runs/conditional runs/quantile -o posterior --optimism --returns --values",
        "phf infer runs/mle runs/conditional -o posterior --steer guidance:scale=2 --beta 0.1 --beta 0.02",
    ),
)
def infer(
    ctx: typer.Context,
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="An MLE run, or the folder of any causal language model.")
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN...]", help="Runs and releases over the same vocabulary."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for posterior.json and posterior.html.")
    ] = Path("posterior"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as particles=128."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """The least KL from a base model that a score costs, and what runs, modes and methods pay for theirs.

    What is finished is kept: a stopped command goes on, and asking for more repeats nothing.
    """
    from phf.config.infer import InferConfig
    from phf.config.recipes import apply_overrides
    from phf.config.steer import SteerConfig
    from phf.config.train import parse, parse_spec

    given = ctx.obj
    if "steers" in given:
        given["steers"] = [parse_spec(SteerConfig, spec, "--steer").model_dump() for spec in given["steers"]]
    config = parse(InferConfig, apply_overrides(given, settings or []), "phf infer")

    warn_of_rewards(config.judges)
    from phf.posterior.infer import infer as measure
    from phf.report.posterior import write_posterior_page

    with show_progress() as progress:
        results = measure(base, runs or [], out, config, say=say, progress=progress)
    write_posterior_page(results, out / "posterior.html")
    if as_json:
        print_json(results)
        return
    print_table(list_policies([results]))
    hint(f"next: open {quote(out / 'posterior.html')}; every number is in {quote(out / 'posterior.json')}")


def list_policies(several: "Sequence[PosteriorResults]") -> Table:
    """What each policy scores, spends, and spends beyond the frontier; of several base models, pooled over them.

    Raises:
        PHFError: see `pool_policies`.
    """
    from phf.posterior.results import pool_policies
    from phf.report.verdict import format_interval

    policies, judges = pool_policies(several), several[0].judges
    annotator = judges[0]
    of = "the base model" if len(several) == 1 else f"their base models, over {len(several)} of these"
    table = Table(
        title=f"What a score costs, in nats a text from {of}, with 95 % intervals",
        caption=f"excess: beyond the least that the score by {annotator.name} costs",
        caption_justify="left",
    )
    table.add_column("policy")
    for judge in judges:
        table.add_column(f"{judge.name}\n({judge.role})", justify="right")
    table.add_column("KL", justify="right")
    table.add_column("excess", justify="right")
    for policy in policies:
        find = policy.results.find
        table.add_row(
            Text(printable(policy.name)),
            *(format_interval(find("score", judge=judge.slug), judge.display_scale) for judge in judges),
            format_interval(find("kl_from_base"), 1),
            format_interval(find("excess_kl", judge=annotator.slug), 1),
        )
    return table
