"""`phf annotate` and `phf tokenize`: the expensive steps, done once."""

from typing import Annotated

import typer

from phf.cli.options import SETTINGS, CorpusFolder, Segments, Workers, segment_kind
from phf.terminal import show_progress

app = typer.Typer(**SETTINGS)


@app.command(epilog="Example: phf annotate corpus --reward-model toxicity-svm --segments sentences")
def annotate(
    folder: CorpusFolder,
    reward_model: Annotated[str, typer.Option("--reward-model", "-r", help="A name from 'phf reward list'.")],
    segments: Segments = "sentences",
    workers: Workers = None,
) -> None:
    """Score every segment once. Resumable; a finished annotation is never scored again."""
    from phf.corpus.annotate import annotate as annotate_corpus
    from phf.corpus.store import Corpus

    kind = segment_kind(segments)
    with show_progress() as progress:
        annotation = annotate_corpus(
            Corpus.open(folder), reward_model, kind, workers=workers, progress=progress
        )
    print(f"{annotation.path}: scored {annotation.num_scored_now:,} segments now")
    print(f"next: phf tokenize {folder} --segments {kind}")


@app.command(epilog="Example: phf tokenize corpus --tokenizer train:4096 --segments sentences")
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
    from phf.corpus.tokens import tokenize as tokenize_corpus

    kind = segment_kind(segments)
    with show_progress() as progress:
        tokens = tokenize_corpus(Corpus.open(folder), tokenizer, kind, workers=workers, progress=progress)
    print(f"{tokens.path}: {tokens.num_tokens:,} tokens in {tokens.num_segments:,} segments")
    print(f"next: phf train RECIPE corpus={folder} tokenizer={tokenizer} segments={kind} -o RUN")
