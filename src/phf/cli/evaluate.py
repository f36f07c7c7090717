"""Verbs that look at what a run learned: sample, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    Runs,
    Verbs,
    Wait,
    check_choice,
    derive_options,
    examples,
    print_json,
    warn_of_rewards,
)
from phf.errors import PHFError
from phf.terminal import hint, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from pydantic import BaseModel

app = Verbs(**SETTINGS)


def _declare_sampling() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.train import SAMPLING_OPTIONS, SamplingConfig

    options = {name: option for name, option in SAMPLING_OPTIONS.items() if name != "min_new_tokens"}
    return SamplingConfig(num_samples=5), options


def _declare_evaluation() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.evaluate import OPTIONS, EvaluateConfig

    return EvaluateConfig(), OPTIONS


_BAD_MODE = (
    "bad mode is for research: it asks the model for the text that its training called bad, to see what it learned and "
    "what a release must not give away; a folder made by 'phf release' does not offer it"
)


@app.command(
    cls=derive_options(_declare_sampling),
    epilog=examples(
        "phf sample runs/conditional --mode good --num-samples 5",
        'phf sample runs/conditional --steer guidance:scale=2 --control forced --prompt "You are"',
        "phf sample runs/mle --mode none --steer best-of-n:n=16",
    ),
)
def sample(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    mode: Annotated[str, typer.Option(help="good, bad, none, untagged or deleted.")] = "good",
    steer: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Steer by KIND:key=value,..., such as guidance:scale=2 (docs/steering.md): control, guidance, direction, "
            "lookahead, best-of-n, rejection or smc.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text to continue; repeatable.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Print texts that a run's model writes."""
    from phf.config.steer import SteerConfig
    from phf.config.train import SamplingConfig, parse, parse_spec
    from phf.records import Mode

    given = {**ctx.obj, "min_new_tokens": min(10, ctx.obj["max_new_tokens"])}
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
    if as_json:
        print_json(samples)
        return
    for drawn in samples:
        print(f"--- {mode} {drawn.index}\n{printable(drawn.prompt + drawn.text)}")


def _show_fact(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_show_fact, value))
    if isinstance(value, dict):
        return _show_fact([part for name, own in value.items() for part in (name, own)])
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@app.command(
    cls=derive_options(_declare_evaluation),
    epilog=examples(
        "phf evaluate runs/mle runs/conditional --judge toxicity-lstm --num-samples 4096",
        "phf evaluate runs/* --suite full --scenario rtp --reference-lm HuggingFaceTB/SmolLM2-135M --blimp nyu-mll/blimp",
        "phf evaluate runs/* --attacker smollm2/ --set red_team.rounds=10 --set red_team.trials=10",
        "phf evaluate runs/* --steer guidance:scale=2 --steer best-of-n:n=8 --judge toxicity-lstm",
        "phf evaluate HuggingFaceTB/SmolLM2-135M -o runs/smollm2 --corpus calm",
    ),
)
def evaluate(
    ctx: typer.Context,
    runs: Runs,
    step: Annotated[int | None, typer.Option(help="Which checkpoint (default: the last).", min=1)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as kl.num_sequences=4096."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Measure again what is there.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="For a model that phf did not train: the run folder to make of it."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="CORPUS", help="With -o: whose held-out texts and scores it is measured on."),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="With -o: which annotation, if the corpus has several.")
    ] = None,
    segments: Annotated[str | None, typer.Option(help="With -o: of that annotation.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="With -o: good text ends at this score (default: half of the training tokens are good)."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="With -o: tokens of a held-out page; 256 by default.", min=8)
    ] = None,
    wait: Wait = False,
    as_json: AsJSON = False,
) -> None:
    """Measure alignment and capability in each mode; writes evaluation.json and samples.parquet into each run.

    What is finished is kept: a stopped evaluation goes on, and asking for more repeats nothing. A model that was trained elsewhere
    (a folder, or a Hub id) is measured alike: with -o, --corpus.
    """
    from phf.config.evaluate import EvaluateConfig
    from phf.config.recipes import apply_overrides
    from phf.config.train import SegmentKind, parse

    config = parse(EvaluateConfig, apply_overrides(ctx.obj, settings or []), "phf evaluate")
    foreign = [place for place in runs if not (place / "run.json").is_file()]
    if out is not None and (len(runs) != 1 or not foreign or corpus is None):
        raise PHFError(
            "-o OUT takes one model that phf did not train, and --corpus CORPUS; runs are evaluated in their own folders"
        )
    if out is None and (corpus or reward_model or segments or (threshold, context) != (None, None)):
        raise PHFError(
            "--corpus, --reward-model, --segments, --threshold and --context are for a model that phf did not train; give -o OUT too"
        )
    if out is None and foreign:
        from phf.train.start import may_be_of_the_hub

        place, is_model = foreign[0], (foreign[0] / "config.json").is_file()
        if is_model or may_be_of_the_hub(str(place)):
            what = (
                "is a model that phf did not train"
                if is_model
                else "is no run here; if it is a model of the Hub"
            )
            raise PHFError(f"{place} {what}: phf evaluate {quote(place)} -o OUT --corpus CORPUS")

    warn_of_rewards(config.judges)
    from phf.evaluate.evaluation import evaluate_runs
    from phf.report.page import summary_lines, summary_table
    from phf.report.reading import read_runs
    from phf.report.tables import list_measured

    with show_progress() as progress:
        if out is not None:
            from phf.train.elsewhere import Yardstick, adopt_model

            kind = None if segments is None else check_choice("segments", segments, get_args(SegmentKind))
            yardstick = Yardstick(str(corpus), reward_model, kind, threshold, context or 256)
            runs = [adopt_model(str(runs[0]), out, yardstick, progress=progress).folder]
        results = evaluate_runs(runs, config, step=step, force=force, wait=wait, say=say, progress=progress)
    if as_json:
        print_json(list_measured(read_runs(runs)))
        return
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
    hint(f"next: phf report {' '.join(map(quote, runs))} -o report.html")
