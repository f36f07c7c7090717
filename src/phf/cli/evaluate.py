"""Verbs that look at what a run learned: sample, evaluate."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from phf.cli.options import SETTINGS, Runs, check_choice
from phf.terminal import print_table, printable, say, show_progress

app = typer.Typer(**SETTINGS)

Precision = Annotated[
    str, typer.Option(help="fp32, or bf16: faster, and a sample may change with the batch it is drawn in.")
]
Engine = Annotated[str, typer.Option(help="phf, or vllm (extra 'vllm').")]

_BAD_MODE = (
    "bad mode is for research: it asks the model for the text that its training called bad, to see what it learned and "
    "what a release must not give away; a folder made by 'phf release' does not offer it"
)


@app.command(
    epilog="Examples: phf sample runs/conditional --mode good --num-samples 5;  "
    'phf sample runs/conditional --steer guidance:scale=2 --control forced --prompt "You are";  '
    "phf sample runs/mle --mode none --steer best-of-n:n=16.  "
    "Methods (docs/steering.md): control, guidance, direction, lookahead, best-of-n, rejection, smc."
)
def sample(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    mode: Annotated[str, typer.Option(help="good, bad, none, untagged or deleted.")] = "good",
    steer: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Steer by KIND:key=value,..., such as guidance:scale=2."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text to continue; repeatable.")
    ] = None,
    control: Annotated[
        str, typer.Option(help="Control tokens after the first: free, prefix or forced.")
    ] = "free",
    num_samples: Annotated[int, typer.Option(min=1)] = 5,
    temperature: Annotated[float, typer.Option()] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    precision: Precision = "fp32",
    engine: Engine = "phf",
) -> None:
    """Print texts that a run's model writes."""
    from phf.config import SamplingConfig, parse, parse_spec
    from phf.config_steer import SteerConfig
    from phf.records import Mode

    given = {
        "control": control,
        "num_samples": num_samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min(10, max_new_tokens),
        "seed": seed,
        "precision": precision,
        "engine": engine,
    }
    sampling = parse(SamplingConfig, given, "phf sample")
    chosen = check_choice("mode", mode, get_args(Mode))
    method = parse_spec(SteerConfig, steer, "--steer") if steer is not None else None

    from phf.evaluate.rollouts import sample_run
    from phf.evaluate.steer_run import steer_run

    if chosen == "bad":
        say(_BAD_MODE)
    if method is None:
        samples = sample_run(folder, chosen, sampling, prompts=prompt or [])
    else:
        with show_progress() as progress:
            steered = steer_run(folder, chosen, sampling, method, prompts=prompt or [], progress=progress)
        samples = steered.samples
        facts = [f"{name} {_show_fact(value)}" for name, value in steered.facts.items()]
        cost = f"{steered.passes_per_token:.1f} forward passes per token"
        say(printable(f"{steer}: {'; '.join([cost, *facts])}"))
    for drawn in samples:
        print(f"--- {mode} {drawn.index}\n{printable(drawn.prompt + drawn.text)}")


def _show_fact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_show_fact, value))
    if isinstance(value, dict):
        return _show_fact([part for name, own in value.items() for part in (name, own)])
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@app.command(
    epilog="Examples: phf evaluate runs/mle runs/conditional --judge toxicity-lstm --num-samples 4096;  "
    "phf evaluate runs/* --suite full --scenario rtp --reference-lm HuggingFaceTB/SmolLM2-135M --blimp nyu-mll/blimp;  "
    "phf evaluate runs/* --attacker smollm2/ --set red_team.rounds=10 --set red_team.trials=10;  "
    "phf evaluate runs/* --steer guidance:scale=2 --steer best-of-n:n=8 --judge toxicity-lstm"
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
    steer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="A method of steering beside plain sampling, such as guidance:scale=2; repeatable.",
        ),
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
        "steer": steer or [],
    }
    config = parse(EvaluateConfig, apply_overrides(given, settings or []), "phf evaluate")

    from phf.evaluate.evaluation import evaluate_runs
    from phf.report.page import summary_lines, summary_table

    with show_progress() as progress:
        results = evaluate_runs(runs, config, step=step, force=force, progress=progress)
    print_table(summary_table(runs))
    for line in summary_lines(runs):
        print(printable(line))
    reasons = [
        (f"{part.replace('_', ' ')}: {why}", result.run)
        for result in results
        for part, why in result.left_out.items()
    ]
    for reason in dict.fromkeys(reason for reason, _ in reasons):
        of = [run for other, run in reasons if other == reason]
        print(printable(f"not measured{'' if len(of) == len(runs) else ' of ' + ', '.join(of)}: {reason}"))
    print(f"next: phf report {' '.join(map(str, runs))} -o report.html")
