"""`phf corpus`: build a corpus and look at it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from phf.cli.options import SETTINGS, CorpusFolder, Segments, segment_kind
from phf.terminal import printable, show_progress

app = typer.Typer(
    help="Build a corpus and look at it.",
    epilog="Example: phf corpus build fortunes tweets -o corpus",
    **SETTINGS,
)


@app.command("build", epilog="Example: phf corpus build texts.jsonl.gz python-source:stdlib,sympy -o corpus")
def corpus_build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="JSONL(.gz, .zst), Parquet, a folder, hf:ID, or python-source, fortunes, tweets (with :options).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The corpus folder to make.")],
    text_field: Annotated[
        str | None, typer.Option(help="Field that holds the text; default: text, then content.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of documents held out, decided by text hash.")
    ] = 0.05,
    max_documents: Annotated[int | None, typer.Option(help="Stop after this many documents.", min=1)] = None,
) -> None:
    """Read texts into a corpus folder: exact duplicates removed, split decided by the text's hash."""
    from phf.corpus.store import build_corpus

    with show_progress() as progress:
        corpus = build_corpus(
            sources,
            out,
            text_field=text_field,
            validation_fraction=validation_fraction,
            max_documents=max_documents,
            progress=progress,
        )
    for source in corpus.manifest["sources"]:
        counts = ", ".join(f"{key} {value:,}" for key, value in source.items() if isinstance(value, int))
        print(f"{printable(source['spec'])}: {counts}")
    print(
        f"{corpus.path}: {corpus.num_documents:,} documents; next: phf annotate {corpus.path} --reward-model NAME"
    )


@app.command(
    "balance",
    epilog="Example: phf corpus balance corpus -r toxicity-svm -s sentences --threshold 0.3 -o balanced",
)
def corpus_balance(
    folder: CorpusFolder,
    reward_model: Annotated[str, typer.Option("--reward-model", "-r", help="Whose annotation to go by.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The corpus folder to make.")],
    threshold: Annotated[float, typer.Option(help="A segment with a score above this is bad.")],
    segments: Segments = "sentences",
    ratio: Annotated[
        float, typer.Option(help="Documents without a bad segment per document with one.")
    ] = 1.0,
    max_characters: Annotated[int | None, typer.Option(help="Leave longer documents out.", min=1)] = None,
    drop_near_duplicates: Annotated[
        bool, typer.Option(help="Leave out documents that repeat earlier ones.")
    ] = False,
) -> None:
    """Keep every document with a bad segment and as many without, so that a small model sees enough of both."""
    from phf.corpus.annotation import Annotation
    from phf.corpus.balance import balance_corpus
    from phf.corpus.store import Corpus

    corpus = Corpus.open(folder)
    annotation = Annotation.open(corpus, reward_model, segment_kind(segments))
    with show_progress() as progress:
        balanced = balance_corpus(
            corpus,
            annotation,
            out,
            threshold=threshold,
            ratio=ratio,
            max_characters=max_characters,
            drop_near_duplicates=drop_near_duplicates,
            progress=progress,
        )
    print(f"{balanced.path}: {balanced.num_documents:,} of {corpus.num_documents:,} documents")


@app.command("stats", epilog="Example: phf corpus stats corpus")
def corpus_stats(folder: CorpusFolder) -> None:
    """Counts, score quantiles, what candidate fractions would keep, the worst and best segments."""
    from phf.corpus.stats import corpus_stats as measure
    from phf.corpus.store import Corpus

    stats = measure(Corpus.open(folder))
    for split, counts in stats["counts"].items():
        print(f"{split}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for source in stats["sources"]:
        print(
            f"source {printable(source['spec'])}: {source['num_documents']:,} documents, {source['num_bad_rows']:,} bad rows"
        )
    if not stats["annotations"]:
        print(f"no annotation yet; next: phf annotate {folder} --reward-model NAME")
    for annotation in stats["annotations"]:
        _print_annotation(annotation)


def _print_annotation(stats: dict[str, Any]) -> None:
    """Quantiles, a histogram, what fractions keep, and the extremes of one annotation."""
    print(f"\n{stats['slug']} on {stats['segments']}: {stats['num_segments']:,} segments, {stats['unit']}")
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in stats["unscored_reasons"].items())
    print(f"  unscored: {stats['num_unscored']:,} {reasons}")
    print("  quantiles: " + ", ".join(f"{q['quantile']:.0%} {q['score']:.4g}" for q in stats["quantiles"]))
    counts, edges = stats["histogram"]["counts"], stats["histogram"]["edges"]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        print(f"  {low:9.4g} to {high:9.4g} {count:10,} {'#' * round(40 * count / max(counts))}")
    for name in ("good_fraction", "keep_fraction"):
        for kept in stats[name]:
            share = kept["characters"]
            print(
                f"  {name}={kept['fraction']:g}: threshold {kept['threshold']:.4g} keeps {share:.1%} of the characters"
            )
    for name in ("best", "worst"):
        for example in stats[name]:
            text = " ".join(printable(example["text"]).split())
            print(f"  {name} {example['score']:.4g} {printable(example['document'])}: {text[:100]}")
