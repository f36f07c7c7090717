"""Verbs that look at what a run learned: sample, evaluate."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from phf.cli.options import SETTINGS, Runs, check_choice
from phf.terminal import print_table, printable, show_progress

app = typer.Typer(**SETTINGS)


@app.command(epilog="Example: phf sample runs/conditional --mode good --num-samples 5")
def sample(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    mode: Annotated[str, typer.Option(help="good, bad, none, untagged or deleted.")] = "good",
    num_samples: Annotated[int, typer.Option(min=1)] = 5,
    temperature: Annotated[float, typer.Option()] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print texts that a run's model writes."""
    from phf.config import SamplingConfig, parse
    from phf.evaluate import sample_run
    from phf.records import Mode

    given = {
        "num_samples": num_samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min(10, max_new_tokens),
        "seed": seed,
    }
    for drawn in sample_run(
        folder,
        check_choice("mode", mode, get_args(Mode)),
        parse(SamplingConfig, given, "phf sample"),
    ):
        print(f"--- {mode} {drawn.index}\n{printable(drawn.text)}")


@app.command(
    epilog="Example: phf evaluate runs/mle runs/conditional --judge toxicity-lstm --num-samples 4096"
)
def evaluate(
    runs: Runs,
    judge: Annotated[
        list[str] | None, typer.Option(help="A held-out judge beside the annotator; repeatable.")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="Samples per mode (default 512).", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="Default 0.7.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default 0.9.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Default 10.", min=0)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default 128.", min=1)] = None,
    control: Annotated[
        str | None, typer.Option(help="Control tokens after the first: free, prefix or forced.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling seed (default 0).", min=0)] = None,
    force: Annotated[bool, typer.Option(help="Evaluate again although a result is there.")] = False,
) -> None:
    """Measure alignment and capability in each mode; writes evaluation.json and samples.parquet into each run."""
    from phf.config import parse
    from phf.config_evaluate import EvaluateConfig

    given = {
        "num_samples": num_samples,
        "temperature": temperature,
        "top_p": top_p,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "control": control,
        "seed": seed,
    }
    sampling = {key: value for key, value in given.items() if value is not None}
    config = parse(EvaluateConfig, {"judges": judge or [], "sampling": sampling}, "phf evaluate")

    from phf.evaluate import evaluate_runs
    from phf.report.page import summary_lines, summary_table

    with show_progress() as progress:
        evaluate_runs(runs, config, force=force, progress=progress)
    print_table(summary_table(runs))
    for line in summary_lines(runs):
        print(printable(line))
    print(f"next: phf report {' '.join(map(str, runs))} -o report.html")
