"""`phf explore`: a corpus or a run in the browser."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from phf.cli.options import SETTINGS, Verbs, check_choice, examples
from phf.terminal import say

app = Verbs(**SETTINGS)


@app.command(epilog=examples("phf explore corpus", "phf explore runs/conditional --labels labels.jsonl"))
def explore(
    place: Annotated[
        str, typer.Argument(metavar="CORPUS|RUN", help="A folder made by 'phf corpus build' or 'phf train'.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Where the label tab stores judgements; goes on if it exists; default: a new labels.jsonl.",
        ),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", "-t", help="Of the label tab: label, rate or pair (see 'phf label').")
    ] = "label",
    port: Annotated[int, typer.Option(help="Of the page.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to serve the page at; any but 127.0.0.1 opens it to others.")
    ] = "127.0.0.1",
) -> None:
    """Look at documents and their scores, at samples, write with the model, and label (extra 'app')."""
    from phf.explore.app import serve
    from phf.explore.explorer import open_explorer
    from phf.feedback.app_server import check_address
    from phf.feedback.judgements import Task

    chosen_task: Task = check_choice("task", task, get_args(Task))
    check_address(host, port)
    serve(open_explorer(place, labels, chosen_task), host=host, port=port, say=say)
