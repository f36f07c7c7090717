"""Verbs that look at what a run learned: sample, evaluate."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from phf.cli.options import SETTINGS, Runs, check_choice
from phf.terminal import print_table, printable, show_progress

app = typer.Typer(**SETTINGS)

Precision = Annotated[
    str, typer.Option(help="fp32, or bf16: faster, and a sample may change with the batch it is drawn in.")
]
Engine = Annotated[str, typer.Option(help="phf, or vllm (extra 'vllm').")]


@app.command(epilog="Example: phf sample runs/conditional --mode good --num-samples 5")
def sample(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    mode: Annotated[str, typer.Option(help="good, bad, none, untagged or deleted.")] = "good",
    num_samples: Annotated[int, typer.Option(min=1)] = 5,
    temperature: Annotated[float, typer.Option()] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    precision: Precision = "fp32",
    engine: Engine = "phf",
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
        "precision": precision,
        "engine": engine,
    }
    for drawn in sample_run(
        folder,
        check_choice("mode", mode, get_args(Mode)),
        parse(SamplingConfig, given, "phf sample"),
    ):
        print(f"--- {mode} {drawn.index}\n{printable(drawn.text)}")


@app.command(
    epilog="Examples: phf evaluate runs/mle runs/conditional --judge toxicity-lstm --num-samples 4096;  "
    "phf evaluate runs/* --suite full --scenario rtp --reference-lm HuggingFaceTB/SmolLM2-135M --blimp nyu-mll/blimp;  "
    "phf evaluate runs/* --attacker smollm2/ --set red_team.rounds=10 --set red_team.trials=10"
)
def evaluate(
    runs: Runs,
    suite: Annotated[
        str,
        typer.Option(
            help="quick; or full: also without control tokens in the model, earlier checkpoints, leaks, finetuning."
        ),
    ] = "quick",
    judge: Annotated[
        list[str] | None, typer.Option(help="A held-out judge beside the annotator; repeatable.")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="Prompts to continue: rtp, signatures, pii-templates ... or a JSONL; repeatable."),
    ] = None,
    reference_lm: Annotated[
        str | None,
        typer.Option(help="KL from this language model: folder, Hub id, .gguf, or JSONL of its texts."),
    ] = None,
    blimp: Annotated[str | None, typer.Option(help="BLiMP: a file, or nyu-mll/blimp.")] = None,
    attacker: Annotated[
        str | None, typer.Option(help="Red team with this language model: folder, Hub id or .gguf.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task of lm-evaluation-harness; repeatable (extra 'harness').")
    ] = None,
    glue: Annotated[
        list[str] | None,
        typer.Option(
            help="A classifier to finetune: folder with train.tsv and dev.tsv, or nyu-mll/glue:sst2."
        ),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(help="MAUVE against human text, by this language model's embeddings.")
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
    precision: Precision = "fp32",
    engine: Engine = "phf",
    step: Annotated[int | None, typer.Option(help="Which checkpoint (default: the last).", min=1)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as kl.num_sequences=4096."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Measure again what is there.")] = False,
) -> None:
    """Measure alignment and capability in each mode; writes evaluation.json and samples.parquet into each run.

    What is finished is kept: a stopped evaluation goes on, and asking for more repeats nothing.
    """
    from phf.config import apply_overrides, parse
    from phf.config_evaluate import EvaluateConfig

    sampling = {
        "num_samples": num_samples,
        "temperature": temperature,
        "top_p": top_p,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "control": control,
        "seed": seed,
        "precision": precision,
        "engine": engine,
    }
    given = {
        "suite": suite,
        "judges": judge or [],
        "sampling": {key: value for key, value in sampling.items() if value is not None},
        "scenarios": {"names": scenario or []},
        "kl": {"reference": reference_lm},
        "blimp": {"source": blimp},
        "embedder": embedder,
        "red_team": {"attacker": attacker},
        "harness": {"tasks": task or []},
        "downstream": {"tasks": glue or []},
    }
    config = parse(EvaluateConfig, apply_overrides(given, settings or []), "phf evaluate")

    from phf.evaluate import evaluate_runs
    from phf.report.page import summary_lines, summary_table

    with show_progress() as progress:
        results = evaluate_runs(runs, config, step=step, force=force, progress=progress)
    print_table(summary_table(runs))
    for line in summary_lines(runs):
        print(printable(line))
    reasons = [
        (f"{part.replace('_', ' ')}: {why}", result["run"])
        for result in results
        for part, why in result["left_out"].items()
    ]
    for reason in dict.fromkeys(reason for reason, _ in reasons):
        of = [run for other, run in reasons if other == reason]
        print(printable(f"not measured{'' if len(of) == len(runs) else ' of ' + ', '.join(of)}: {reason}"))
    print(f"next: phf report {' '.join(map(str, runs))} -o report.html")
