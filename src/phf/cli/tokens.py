"""`phf tokens export`: what a run would read, for other engines."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    EngineName,
    RayAddress,
    Verbs,
    check_choice,
    examples,
    print_json,
)
from phf.errors import PHFError
from phf.terminal import hint, quote, say, show_progress

app = Verbs(
    help="What a run would read, for other engines.",
    epilog=examples("phf tokens export default reward_model=toxicity-svm -o exported --format datasets"),
    **SETTINGS,
)


@app.callback()
def _tokens() -> None:
    """One command alone would stand for the group."""


@app.command(
    epilog=examples(
        "phf tokens export default reward_model=toxicity-svm -o exported --format datasets",
        "phf tokens export demo corpus=demo/corpus objective.kind=masking objective.threshold=0.3 -o exported --format olmo",
        "phf tokens export demo corpus=demo/corpus objective.kind=rwr -o exported --format mds --epochs 2",
    )
)
def export(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, or a YAML file: as of 'phf train'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make, or to go on with.")],
    kind: Annotated[
        str,
        typer.Option("--format", help="datasets, olmo, megatron (nanotron too), litdata (LitGPT) or mds."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides, such as seed=1.")
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over what the objective keeps; default: the budget in the recipe's tokens.", min=0
        ),
    ] = None,
    shard_tokens: Annotated[
        int | None,
        typer.Option(help="Model inputs in a shard (default: 16,777,216), in whole blocks.", min=1),
    ] = None,
    engine: EngineName = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            help="With --engine ray: processes; default: as many as the cluster has room for.", min=1
        ),
    ] = None,
    ray_address: RayAddress = None,
    as_json: AsJSON = False,
) -> None:
    """Write the training blocks of a run, control tokens in, in the order of 'phf train', for another engine."""
    from phf.annotate.annotate import Engine
    from phf.annotate.ray_pool import RayPool
    from phf.config.train import load_train_config
    from phf.integrations.formats import ExportFormat

    chosen: ExportFormat = check_choice("format", kind, get_args(ExportFormat))
    where: Engine = check_choice("engine", engine, get_args(Engine))
    if where == "local" and (workers, ray_address) != (None, None):
        raise PHFError(
            "--workers and --ray-address are of --engine ray, and this is local; give --engine ray with them"
        )
    ray = RayPool(workers, ray_address) if where == "ray" else None
    config = load_train_config(recipe, overrides or [])
    from phf.integrations.export import export_blocks

    with show_progress() as progress:
        manifest = export_blocks(
            config, out, chosen, epochs=epochs, shard_tokens=shard_tokens, ray=ray, progress=progress
        )
    for line in manifest["lost"]:
        say(f"note: {line}")
    if as_json:
        shown = ("format", "num_blocks", "context", "vocab_size", "token_type", "lost")
        print_json({"out": str(out), **{key: manifest[key] for key in shown}})
        return
    num_tokens = manifest["num_blocks"] * manifest["context"]
    print(
        f"{out}: {manifest['num_blocks']:,} blocks of {manifest['context']:,} tokens, {num_tokens:,} in all"
    )
    hint(f"how {kind} reads it: docs/own_trainer.md; its tokenizer: {quote(out / 'tokenizer')}")
