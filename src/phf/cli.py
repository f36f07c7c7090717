"""The verbs. Each is one call into the package; what computes is imported inside, so that `phf --help` is quick."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from phf.errors import PHFError
from phf.terminal import say, show_progress

Segments = Annotated[
    str, typer.Option("--segments", "-s", help="What gets one score: lines, sentences or document.")
]
Workers = Annotated[
    int | None, typer.Option(help="Processes; default: one per core. Never changes a byte.", min=1)
]
CorpusFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A corpus folder made by 'phf corpus build'.")
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders made by 'phf train'.")]

_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "add_completion": False}
app = typer.Typer(
    help="Pretrain language models with human feedback: score a corpus once, train on the scores, measure, report.",
    epilog="Start here: phf demo -o demo",
    **_SETTINGS,
)
corpus_app = typer.Typer(
    help="Build a corpus and look at it.",
    epilog="Example: phf corpus build fortunes tweets -o corpus",
    **_SETTINGS,
)
reward_app = typer.Typer(help="Reward models.", epilog="Example: phf reward list", **_SETTINGS)
app.add_typer(corpus_app, name="corpus")
app.add_typer(reward_app, name="reward")


@corpus_app.command(
    "build", epilog="Example: phf corpus build texts.jsonl.gz python-source:stdlib,sympy -o corpus"
)
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
        print(f"{_printable(source['spec'])}: {counts}")
    print(
        f"{corpus.path}: {corpus.num_documents:,} documents; next: phf annotate {corpus.path} --reward-model NAME"
    )


@corpus_app.command(
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
    annotation = Annotation.open(corpus, reward_model, _segment_kind(segments))
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


@corpus_app.command("stats", epilog="Example: phf corpus stats corpus")
def corpus_stats(folder: CorpusFolder) -> None:
    """Counts, score quantiles, what candidate fractions would keep, the worst and best segments."""
    from phf.corpus.stats import corpus_stats as measure
    from phf.corpus.store import Corpus

    stats = measure(Corpus.open(folder))
    for split, counts in stats["counts"].items():
        print(f"{split}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for source in stats["sources"]:
        print(
            f"source {_printable(source['spec'])}: {source['num_documents']:,} documents, {source['num_bad_rows']:,} bad rows"
        )
    if not stats["annotations"]:
        print(f"no annotation yet; next: phf annotate {folder} --reward-model NAME")
    for annotation in stats["annotations"]:
        _print_annotation(annotation)


@reward_app.command("list", epilog="Example: phf reward list")
def reward_list() -> None:
    """The reward models that come with phf, with what they cannot see."""
    from phf.reward_models import list_reward_models

    for card in list_reward_models():
        print(f"{card.name}: {card.description}")
        print(f"  blind to: {card.blind_spots}\n  licence {card.licence}; {card.install}")


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

    kind = _segment_kind(segments)
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

    kind = _segment_kind(segments)
    with show_progress() as progress:
        tokens = tokenize_corpus(Corpus.open(folder), tokenizer, kind, workers=workers, progress=progress)
    print(f"{tokens.path}: {tokens.num_tokens:,} tokens in {tokens.num_segments:,} segments")
    print(f"next: phf train RECIPE corpus={folder} tokenizer={tokenizer} segments={kind} -o RUN")


@app.command(
    epilog="Examples: phf train toxicity objective.kind=mle -o runs/mle;  phf train --resume runs/mle;  "
    "a RECIPE is a shipped name or a .yaml file"
)
def train(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides, such as seed=1.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run from its last checkpoint.")] = None,
) -> None:
    """Train a model with an objective that uses the scores."""
    from phf.config import list_recipes, load_train_config

    if resume is not None:
        if recipe is not None or out is not None:
            raise PHFError("--resume takes the run alone: its config is in its run.json")
    elif recipe is None:
        raise PHFError(f"give a recipe ({', '.join(list_recipes())}, or a .yaml file), or --resume RUN")
    elif out is None:
        raise PHFError(f"give the run folder to make, such as -o runs/{Path(recipe).stem}")
    config = load_train_config(recipe, overrides or []) if recipe is not None else None

    from phf.train import loop

    with show_progress() as progress:
        if resume is not None:
            run = loop.resume(resume, say=say, progress=progress)
        else:
            assert config is not None
            assert out is not None
            run = loop.train(config, out, say=say, progress=progress)
    print(f"{run.folder}: step {run.num_steps}; next: phf evaluate {run.folder}")


@app.command(epilog="Example: phf sample runs/conditional --mode good --num-samples 5")
def sample(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    mode: Annotated[str, typer.Option(help="good, bad, none or untagged.")] = "good",
    num_samples: Annotated[int, typer.Option(min=1)] = 5,
    temperature: Annotated[float, typer.Option()] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.9,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print texts that a run's model writes."""
    from phf.config import SamplingConfig, parse
    from phf.evaluate import sample_run

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
        _check_choice("mode", mode, ("good", "bad", "none", "untagged")),
        parse(SamplingConfig, given, "phf sample"),
    ):
        print(f"--- {mode} {drawn.index}\n{_printable(drawn.text)}")


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
    from phf.config import EvaluateConfig, parse

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
    from phf.report.page import summary_table

    with show_progress() as progress:
        evaluate_runs(runs, config, force=force, progress=progress)
    _print_table(summary_table(runs))
    print(f"next: phf report {' '.join(map(str, runs))} -o report.html")


@app.command(epilog="Example: phf report runs/mle runs/conditional -o report.html")
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained page that compares runs."""
    from phf.report.page import write_report

    print(write_report(runs, out))


@app.command(epilog="Example: phf demo -o demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.")] = Path("demo"),
    objectives: Annotated[
        str, typer.Option(help="'default' (mle and conditional), 'all', or kinds: mle,rwr.")
    ] = "default",
    seed: Annotated[int, typer.Option(help="Seed of training and sampling.", min=0)] = 0,
    tokens: Annotated[
        int | None, typer.Option(help="Training budget in tokens (default: the recipe's).", min=1)
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Samples per mode.", min=1)] = 512,
) -> None:
    """From raw text to a measured comparison: corpus, annotation, tokens, training, evaluation, report. Resumable."""
    from phf.demo import run_demo

    with show_progress() as progress:
        result = run_demo(
            out,
            objectives=objectives,
            seed=seed,
            tokens=tokens,
            num_samples=num_samples,
            say=say,
            progress=progress,
        )
    _print_table(result.table)
    print(f"summary: {result.summary}\npage:    {result.page}")


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
            text = " ".join(_printable(example["text"]).split())
            print(f"  {name} {example['score']:.4g} {_printable(example['document'])}: {text[:100]}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise PHFError(f"{name} '{value}' is not known; choose {', '.join(choices)}")
    return value


def _segment_kind(text: str) -> Any:
    return _check_choice("segments", text, ("lines", "sentences", "document"))


def _printable(text: str) -> str:
    """Model text on a terminal: no escape sequences, no overrides of the reading direction."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    Console(width=max(console.width, 120) if not console.is_terminal else None).print(table)


def main() -> None:
    """The `phf` command: user errors are one line on stderr and exit code 2; anything else is a bug and shows itself."""
    try:
        app(standalone_mode=False)
    except PHFError as error:
        _fail(str(error))
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a bare `phf` or `phf corpus`: the help is the answer
            print(message)
            sys.exit(2)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "phf"
        _fail(f"{message.rstrip('.')}; see '{command} --help'")
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{place}{error.strerror or error}; check the path, its permissions and the space on the disk")
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"error: {_printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
