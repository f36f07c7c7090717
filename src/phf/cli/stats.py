"""`phf corpus stats` as a person reads it, in 80 columns or more."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from phf.terminal import make_table, print_table, printable, quote

if TYPE_CHECKING:
    from phf.curate.spread import Histogram
    from phf.curate.stats import AnnotationStats, Candidate, Example, Stats

_BAR = 30  # columns of the longest bar of a histogram
_DOCUMENT = 24  # characters of a document's id


def print_stats(stats: "Stats") -> None:
    """Print what `phf.curate.stats.corpus_stats` found."""
    for split, counts in stats["counts"].items():
        print(f"{split}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for source in stats["sources"]:
        print(
            f"source {printable(str(source['spec']))}: {source['num_documents']:,} documents, "
            f"{source['num_bad_rows']:,} bad rows"
        )
    if not stats["annotations"]:
        print(f"no annotation yet; next: phf annotate {quote(stats['path'])} --reward-model NAME")
    for annotation in stats["annotations"]:
        _print_annotation(annotation, stats["budget"])


def _print_annotation(stats: "AnnotationStats", budget: int | None) -> None:
    print(
        f"\n{stats['slug']}: {stats['num_segments']:,} segments ({stats['segments']}), unit {printable(stats['unit'])}"
    )
    if stats["num_unscored"]:
        print(f"unscored: {stats['num_unscored']:,}")
        for reason, count in sorted(stats["unscored_reasons"].items(), key=lambda item: -item[1]):
            print(f"  {count:,} x {printable(reason)}")
    if not stats["quantiles"]:
        return
    print_table(_tabulate_quantiles(stats))
    print_table(_tabulate_histogram(stats["histogram"]))
    for line in _describe_tokens(stats, budget):
        print(line)
    candidates = {
        "Segments at or below a threshold are good (conditional, unlikelihood)": stats["good"],
        "Documents with a mean score at or below it are kept (filtering)": stats["keep"],
    }
    for heading, rules in candidates.items():
        if rules:
            print_table(_tabulate_candidates(heading, rules))
    print_table(tabulate_examples("The worst segments", stats["worst"]))
    print_table(tabulate_examples("The best segments", stats["best"]))


def _tabulate_quantiles(stats: "AnnotationStats") -> Table:
    table = make_table(f"Scores: mean {stats['mean']:.4g}, and quantiles")
    for quantile in stats["quantiles"]:
        table.add_column(f"{quantile['quantile']:.0%}", justify="right", no_wrap=True)
    table.add_row(*(f"{quantile['score']:.3g}" for quantile in stats["quantiles"]))
    return table


def _tabulate_histogram(histogram: "Histogram") -> Table:
    table = make_table()
    for heading in ("from", "to", "segments"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    edges, counts = histogram["edges"], histogram["counts"]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        table.add_row(f"{low:.3g}", f"{high:.3g}", f"{count:,}", "█" * -(-_BAR * count // max(counts)))
    return table


def _describe_tokens(stats: "AnnotationStats", budget: int | None) -> Iterator[str]:
    tokens = stats["tokens"]
    if not tokens["is_estimate"]:
        yield f"training split: {tokens['train']:,} tokens, counted by {tokens['basis']}"
    else:
        yield f"training split: {tokens['train']:,} tokens, an ESTIMATE; 'phf tokenize' counts them"
        basis = f", as in {tokens['basis']}" if tokens["basis"] is not None else ""
        yield f"  ({tokens['characters_per_token']:.3g} characters per token{basis})"
    if budget is not None:
        yield f"a run of {budget:,} tokens makes {stats['epochs']:.3g} epochs over all of it"
    if stats["num_unscored"]:
        yield "below: without documents that have an unscored segment; training drops them"


def _tabulate_candidates(heading: str, candidates: "list[Candidate]") -> Table:
    table = make_table(heading)
    table.add_column("rule", no_wrap=True)
    for name in ("threshold", "segments", "documents", "tokens", "of all"):
        table.add_column(name, justify="right", no_wrap=True)
    has_epochs = "epochs" in candidates[0]
    if has_epochs:
        table.add_column("epochs", justify="right", no_wrap=True)
    for kept in candidates:
        cells = [
            kept["rule"],
            f"{kept['threshold']:.4g}",
            f"{kept['segments']:.1%}",
            f"{kept['documents']:.1%}",
            f"{kept['num_tokens']:,}",
            f"{kept['tokens']:.1%}",
        ]
        table.add_row(*cells, *([f"{kept['epochs']:.3g}"] if has_epochs else []))
    return table


def tabulate_examples(heading: str, examples: "list[Example]") -> Table:
    """Segments with their scores and documents, a line each."""
    table = make_table(heading)
    table.expand = True
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("document", no_wrap=True)
    table.add_column("text", overflow="ellipsis", no_wrap=True, ratio=1)  # what is left of the line
    for example in examples:
        name, text = printable(example["document"]), printable(" ".join(example["text"].split()))
        # The end of an id (FILE:LINE) tells more than its beginning.
        table.add_row(
            f"{example['score']:.3g}",
            Text(name if len(name) <= _DOCUMENT else f"…{name[1 - _DOCUMENT :]}"),
            Text(text),
        )
    return table
