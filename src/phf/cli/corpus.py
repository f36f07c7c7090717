"""`phf corpus`: build a corpus and look at it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    CorpusFolder,
    Segments,
    Verbs,
    check_choice,
    examples,
    print_json,
    say_unchanged,
    segment_kind,
)
from phf.errors import PHFError
from phf.files import to_path
from phf.terminal import hint, printable, quote, show_progress

if TYPE_CHECKING:
    from phf.corpus.manifests import SourceRecord
    from phf.corpus.store import Corpus

app = Verbs(
    help="Build a corpus and look at it.",
    epilog=examples("phf corpus build fortunes tweets -o corpus"),
    **SETTINGS,
)

ValidationFraction = Annotated[float, typer.Option(help="Share of documents held out, decided by text hash.")]
Format = Annotated[
    str, typer.Option("--format", "-f", help="dolma, phf, parquet, datasets or jsonl: see docs/exchange.md.")
]


@app.command("build", epilog=examples("phf corpus build texts.jsonl.gz python-source:stdlib,sympy -o corpus"))
def corpus_build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="JSONL, CSV or TSV (.gz, .zst), Parquet, Arrow, a folder or FOLDER:SPLIT, hf:ID, or python-source, fortunes, "
            "tweets (with :options).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", parser=to_path, help="The corpus folder to make, or its URL."
        ),
    ],
    text_field: Annotated[
        str | None, typer.Option(help="Field that holds the text; default: text, then content.")
    ] = None,
    validation_fraction: ValidationFraction = 0.05,
    max_documents: Annotated[int | None, typer.Option(help="Stop after this many documents.", min=1)] = None,
    as_json: AsJSON = False,
) -> None:
    """Read texts into a corpus folder: exact duplicates removed, split decided by the text's hash."""
    from phf.corpus.store import build_corpus
    from phf.folders import is_filled

    was_there = is_filled(out)
    with show_progress() as progress:
        corpus = build_corpus(
            sources,
            out,
            text_field=text_field,
            validation_fraction=validation_fraction,
            max_documents=max_documents,
            progress=progress,
        )
    say_unchanged(out, was_there)
    if as_json:
        print_json(_describe_corpus(corpus))
        return
    for source in corpus.manifest["sources"]:
        counts = ", ".join(f"{key} {value:,}" for key, value in source.items() if isinstance(value, int))
        print(f"{printable(source['spec'])}: {counts}")
        _name_bad_rows(source, corpus.path)
    print(f"{corpus.path}: {corpus.num_documents:,} documents")
    hint(f"next: phf annotate {quote(corpus.path)} --reward-model NAME")


@app.command(
    "balance",
    epilog=examples("phf corpus balance corpus -r toxicity-svm -s sentences --threshold 0.3 -o balanced"),
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
    as_json: AsJSON = False,
) -> None:
    """Keep every document with a bad segment and as many without, so that a small model sees enough of both."""
    from phf.annotate.annotation import Annotation
    from phf.corpus.store import Corpus
    from phf.curate.balance import balance_corpus
    from phf.folders import is_filled

    was_there = is_filled(out)
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
    say_unchanged(out, was_there)
    if as_json:
        print_json(_describe_corpus(balanced))
        return
    print(f"{balanced.path}: {balanced.num_documents:,} of {corpus.num_documents:,} documents")


@app.command(
    "export", epilog=examples("phf corpus export corpus -o dolma --format dolma -r toxicity-svm -s sentences")
)
def corpus_export(
    folder: CorpusFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    kind: Format,
    reward_model: Annotated[
        list[str] | None,
        typer.Option("--reward-model", "-r", help="Whose scores go along: a name or a slug; repeatable."),
    ] = None,
    segments: Annotated[
        list[str] | None,
        typer.Option("--segments", "-s", help="On which segments; once, or once for each reward model."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only one split: train or validation.")] = None,
) -> None:
    """Write documents and scores as Dolma, the PHF data sets, datasets, Parquet or JSONL have them."""
    from phf.annotate.annotation import Annotation
    from phf.corpus.store import Corpus
    from phf.curate.exchange import ExchangeFormat
    from phf.curate.exchange_export import export_corpus
    from phf.records import Split

    models, kinds = reward_model or [], segments or ["sentences"]
    if len(kinds) not in (1, len(models)):
        raise PHFError(
            f"{len(models)} reward models and {len(kinds)} kinds of segments are given; give --segments once, or once "
            "for each --reward-model"
        )
    pairs = zip(models, kinds * len(models) if len(kinds) == 1 else kinds, strict=False)
    corpus = Corpus.open(folder)
    annotations = [Annotation.open(corpus, model, segment_kind(name)) for model, name in pairs]
    with show_progress() as progress:
        path = export_corpus(
            corpus,
            out,
            check_choice("format", kind, get_args(ExchangeFormat)),
            annotations,
            split=None if split is None else check_choice("split", split, get_args(Split)),
            progress=progress,
        )
    print(f"{path}: see {path / 'README.md'} for what it holds")


@app.command(
    "import",
    epilog=examples(
        "phf corpus import hf:tomekkorbak/pile-detoxify --format phf --reward-model-name detoxify -o corpus"
    ),
)
def corpus_import(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of Dolma's, files of records, a folder of such or FOLDER:SPLIT, hf:ID.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The corpus folder to make.")],
    kind: Format,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="Which scores: a Dolma attribute or a column; repeatable. Default: all."),
    ] = None,
    reward_model_name: Annotated[
        list[str] | None,
        typer.Option(help="What gave the scores, once for each attribute. Default: the attribute's name."),
    ] = None,
    unit: Annotated[str, typer.Option(help="What a score counts, for example: probability.")] = "score",
    negate: Annotated[
        bool, typer.Option("--negate", help="The source's scores are higher = better.")
    ] = False,
    uncovered: Annotated[
        str | None,
        typer.Option(
            help="Dolma: text that no span covers has a score of 0, or is an error; default: unscored."
        ),
    ] = None,
    validation_fraction: ValidationFraction = 0.05,
    as_json: AsJSON = False,
) -> None:
    """Make a corpus with ready annotations from text that comes with scores."""
    from phf.curate.exchange import NO_SPAN, ExchangeFormat, Uncovered
    from phf.curate.exchange_import import import_corpus

    format_name: ExchangeFormat = check_choice("format", kind, get_args(ExchangeFormat))
    with show_progress() as progress:
        corpus, annotations = import_corpus(
            source,
            out,
            format_name,
            attributes=attribute or [],
            names=reward_model_name or [],
            unit=unit,
            negate=negate,
            uncovered=None
            if uncovered is None
            else check_choice("uncovered", uncovered, get_args(Uncovered)),
            validation_fraction=validation_fraction,
            progress=progress,
        )
    if as_json:
        print_json({**_describe_corpus(corpus), "annotations": [own.summarize() for own in annotations]})
        return
    (counts,) = corpus.manifest["sources"]
    print(
        f"{corpus.path}: "
        + ", ".join(f"{key} {value:,}" for key, value in counts.items() if type(value) is int)
    )
    _name_bad_rows(counts, corpus.path)
    for annotation in annotations:
        num_segments = sum(entry["num_segments"] for entry in annotation.shards)
        why = annotation.describe_unscored()
        print(f"{annotation.path}: {num_segments:,} segments, unscored: {printable(why) or 'none'}")
        if NO_SPAN in why:
            print(
                "training drops documents with unscored segments; if text without a span has a score of 0: --uncovered 0"
            )
    hint(f"next: phf corpus stats {quote(out)}; phf tokenize {quote(out)} --segments imported")


def _describe_corpus(corpus: "Corpus") -> dict[str, object]:
    counted = {name: corpus.manifest[name] for name in ("counts", "sources")}
    return {"path": str(corpus.path), "id": corpus.id, "num_documents": corpus.num_documents, **counted}


def _name_bad_rows(source: "SourceRecord", folder: Path) -> None:
    """Why rows are bad and files are left out, with the first of each that the manifest names."""
    kinds = (
        ("bad rows", source["bad_row_reasons"], source["first_bad_rows"]),
        ("left out", source.get("left_out_reasons", {}), source.get("first_left_out", [])),
    )
    for what, reasons, listed in kinds:
        for reason, count in reasons.items():
            first = next((f", the first {one['place']}" for one in listed if one["reason"] == reason), "")
            print(f"  {what}: {count:,} x {printable(reason + first)}")
        if sum(reasons.values()) > len(reasons):
            print(f"  every one is in {folder / 'bad_rows.jsonl'}")


@app.command("stats", epilog=examples("phf corpus stats corpus -r toxicity-svm --budget 30e6"))
def corpus_stats(
    folder: CorpusFolder,
    reward_model: Annotated[
        str | None,
        typer.Option("--reward-model", "-r", help="Only the annotations by this model: a name or a slug."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Whose tokens to count. Default: the first that fits."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Tokens of a run: how many epochs they make of what a rule keeps.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Counts, scores, what candidate thresholds and fractions would keep, the worst and best segments."""
    from phf.cli.stats import print_stats
    from phf.corpus.store import Corpus
    from phf.curate.stats import corpus_stats as measure

    with show_progress() as progress:
        stats = measure(
            Corpus.open(folder),
            reward_model=reward_model,
            tokenizer=tokenizer,
            budget=None if budget is None else round(budget),
            progress=progress,
        )
    if as_json:
        print_json(stats)
    else:
        print_stats(stats)
