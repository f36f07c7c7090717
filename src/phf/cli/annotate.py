"""`phf annotate` and `phf tokenize`: the expensive steps, done once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    Budget,
    CorpusFolder,
    EngineName,
    RayAddress,
    Segments,
    Verbs,
    Workers,
    check_choice,
    examples,
    print_json,
    segment_kind,
    warn_of_rewards,
)
from phf.cli.stats import tabulate_examples
from phf.terminal import hint, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from phf.annotate.annotation import Annotation

app = Verbs(**SETTINGS)

_NUM_SHOWN = 3
"""Segments at each end of the scores, by which a person sees whether they are the right way round."""


@app.command(epilog=examples("phf annotate corpus --reward-model toxicity-svm --segments sentences"))
def annotate(
    folder: CorpusFolder,
    reward_model: Annotated[
        str,
        typer.Option(
            "--reward-model",
            "-r",
            help="A name from 'phf reward list', your own module:function, hf:ID#LABEL, '0.7*NAME + 0.3*NAME'; higher = worse, "
            "a minus in front turns a reward round.",
        ),
    ],
    segments: Segments = "sentences",
    workers: Workers = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that each Ray worker holds.", min=0)] = 0.0,
    budget: Budget = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds for 1 MB of text after which a reward model counts as hung.")
    ] = 1800.0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte on disk; score again what is damaged.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another phf that writes the same annotation.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Score a sample and say what the whole would take; write nothing."),
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Score every segment once. Resumable; a finished annotation is never scored again."""
    from phf.annotate.annotate import Engine
    from phf.annotate.annotate import annotate as annotate_corpus
    from phf.annotate.plan import estimate_calls
    from phf.config.recipes import read_recipe
    from phf.corpus.store import Corpus
    from phf.reward_models.catalogue import list_reward_models

    warn_of_rewards([reward_model])
    kind = segment_kind(segments)
    chosen: Engine = check_choice("engine", engine, get_args(Engine))
    if estimates := estimate_calls(Corpus.open(folder), reward_model, kind):
        if dry_run and as_json:
            print_json(estimates)
            return
        for estimate in estimates:
            (print if dry_run else say)(printable(estimate.describe()))
    if estimates and dry_run:
        return
    if dry_run:
        from phf.annotate.plan import plan_annotation
        from phf.results import encode

        plan = plan_annotation(Corpus.open(folder), reward_model, kind, workers=workers)
        if as_json:
            print_json(encode(plan))
        else:
            print(printable("\n".join(plan.describe())))
        return
    with show_progress() as progress:
        annotation = annotate_corpus(
            Corpus.open(folder),
            reward_model,
            kind,
            workers=workers,
            engine=chosen,
            ray_address=ray_address,
            gpus_per_worker=gpus_per_worker,
            timeout=timeout,
            verify=verify,
            wait=wait,
            isolated=True,
            budget=budget,
            progress=progress,
        )
    if as_json:
        print_json(annotation.summarize())
        return
    print(f"{annotation.path}: scored {annotation.num_scored_now:,} segments now")
    if annotation.num_scored_now > 0 and all(card.name != reward_model for card in list_reward_models()):
        _show_direction(annotation, reward_model)
    _say_what_is_known(annotation.identity.slug, reward_model)
    hint(
        f"next: phf tokenize {quote(folder)} --tokenizer {read_recipe('default')['tokenizer']} --segments {kind}"
    )
    hint(f"then: {_training(folder, reward_model, kind)}")


def _show_direction(annotation: "Annotation", spec: str) -> None:
    """The ends of the scores of a reward model whose direction is its user's to say, and the question that they answer."""
    from phf.curate.stats import find_extremes

    worst, best = find_extremes(annotation, _NUM_SHOWN)
    if not worst:
        return
    print_table(tabulate_examples("The worst segments (highest scores)", worst))
    print_table(tabulate_examples("The best segments (lowest scores)", best))
    turned = spec[1:] if spec.startswith("-") else f"-{spec}"
    remedy = (
        "a minus turns a component round: 0.7*-SPEC"
        if "components" in annotation.manifest
        else f"phf annotate {quote(annotation.corpus.path)} -r {quote(turned)} -s {annotation.segments}"
    )
    print(printable(f"is this the right way round? a score is higher = worse; if not: {remedy}"))


def _say_what_is_known(slug: str, spec: str) -> None:
    """What the judge makes of sentences about groups of people, or how to find out."""
    from phf.reward_training.check import describe_check, find_check

    if (check := find_check(slug)) is None:
        print(printable(f"what it makes of sentences about groups of people: phf reward check '{spec}'"))
    elif check.suits:
        print(printable(f"{check.reward_model.name} {describe_check(check)}: phf reward check '{spec}'"))


@app.command(epilog=examples("phf tokenize corpus --tokenizer train:4096 --segments sentences"))
def tokenize(
    folder: CorpusFolder,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", help="train:SIZE, a folder, or a Hub id.")
    ] = "train:4096",
    segments: Segments = "sentences",
    workers: Workers = None,
    as_json: AsJSON = False,
) -> None:
    """Turn documents into token ids once, with segment ends. Resumable."""
    from phf.annotate.annotation import Annotation
    from phf.corpus.store import Corpus
    from phf.tokens.recovery import MAX_LOST_SHARE, describe_loss
    from phf.tokens.tokens import tokenize as tokenize_corpus

    kind = segment_kind(segments)
    with show_progress() as progress:
        corpus = Corpus.open(folder)
        tokens = tokenize_corpus(corpus, tokenizer, kind, workers=workers, progress=progress)
    if loss := describe_loss(tokens.lost or {}, tokens.num_characters, tokens.tokenizer.name):
        say(f"warning: {printable(loss)}; above {100 * MAX_LOST_SHARE:g} % there are no bits per byte")
    if as_json:
        counts = {
            "num_tokens": tokens.num_tokens,
            "num_segments": tokens.num_segments,
            "num_lost_characters": sum((tokens.lost or {}).values()),
        }
        print_json(
            {"path": str(tokens.path), "tokenizer": tokens.manifest["tokenizer"], "segments": kind, **counts}
        )
        return
    print(f"{tokens.path}: {tokens.num_tokens:,} tokens in {tokens.num_segments:,} segments")
    found = [own.manifest["reward_model_spec"] for own in Annotation.list(corpus) if own.segments == kind]
    if not found:
        hint(f"next: phf annotate {quote(folder)} --reward-model NAME --segments {kind}")
    for spec in dict.fromkeys(found):
        hint(f"next: {_training(folder, spec, kind, tokenizer)}")


def _training(folder: Path, reward_model: str, segments: str, tokenizer: str = "") -> str:
    """The command that trains on an annotation, with each setting that a recipe may have otherwise."""
    settings = {
        "corpus": str(folder),
        "reward_model": reward_model,
        "segments": segments,
        "tokenizer": tokenizer,
    }
    words = [quote(f"{key}={value}") for key, value in settings.items() if value]
    return f"phf train default {' '.join(words)} model.preset=1M -o runs/conditional"
