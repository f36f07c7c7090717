"""`phf annotate` and `phf tokenize`: the expensive steps, done once."""

from typing import Annotated, get_args

import typer

from phf.cli.options import SETTINGS, CorpusFolder, Segments, Workers, check_choice, examples, segment_kind
from phf.terminal import printable, show_progress

app = typer.Typer(**SETTINGS)


@app.command(epilog=examples("phf annotate corpus --reward-model toxicity-svm --segments sentences"))
def annotate(
    folder: CorpusFolder,
    reward_model: Annotated[
        str,
        typer.Option("--reward-model", "-r", help="A name from 'phf reward list', or '0.7*NAME + 0.3*NAME'."),
    ],
    segments: Segments = "sentences",
    workers: Workers = None,
    engine: Annotated[
        str, typer.Option(help="local: this machine; ray: a Ray cluster. Never changes a byte.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (auto, HOST:6379); default: start one here.")
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that each Ray worker holds.", min=0)] = 0.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds for 1 MB of text after which a reward model counts as hung.")
    ] = 1800.0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte on disk; score again what is damaged.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another phf that writes the same annotation.")
    ] = False,
) -> None:
    """Score every segment once. Resumable; a finished annotation is never scored again."""
    from phf.annotate.annotate import Engine
    from phf.annotate.annotate import annotate as annotate_corpus
    from phf.corpus.store import Corpus

    kind = segment_kind(segments)
    chosen: Engine = check_choice("engine", engine, get_args(Engine))
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
            progress=progress,
        )
    print(f"{annotation.path}: scored {annotation.num_scored_now:,} segments now")
    _say_what_is_known(annotation.identity.slug, reward_model)
    print(f"next: phf tokenize {folder} --segments {kind}")


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
) -> None:
    """Turn documents into token ids once, with segment ends. Resumable."""
    from phf.corpus.store import Corpus
    from phf.tokens.tokens import tokenize as tokenize_corpus

    kind = segment_kind(segments)
    with show_progress() as progress:
        tokens = tokenize_corpus(Corpus.open(folder), tokenizer, kind, workers=workers, progress=progress)
    print(f"{tokens.path}: {tokens.num_tokens:,} tokens in {tokens.num_segments:,} segments")
    print(f"next: phf train RECIPE corpus={folder} tokenizer={tokenizer} segments={kind} -o RUN")
