"""`phf reward`: what says how bad a text is."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    Budget,
    Segments,
    Verbs,
    check_choice,
    examples,
    print_json,
    say_unchanged,
    segment_kind,
    warn_of_rewards,
)
from phf.errors import PHFError
from phf.files import to_path
from phf.terminal import hint, make_table, print_table, printable, quote, say, show_progress

if TYPE_CHECKING:
    from rich.console import Group

    from phf.reward_models.speed import CardStatus
    from phf.reward_training.check import RewardCheck
    from phf.reward_training.evaluation import RewardEvaluation

app = Verbs(help="Reward models.", epilog=examples("phf reward list"), **SETTINGS)


@app.command("list", epilog=examples("phf reward list"))
def reward_list(
    measure: Annotated[bool, typer.Option("--measure", help="Measure the speeds again.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Every way to name a reward model: what a score means, how fast it is here, what it cannot see."""
    from rich.console import Group

    from phf.reward_models.catalogue import FORMS
    from phf.reward_models.llm.rubric import list_rubrics
    from phf.reward_models.speed import describe_reward_models

    with show_progress() as progress:
        statuses = list(describe_reward_models(measure=measure, progress=progress))
    if as_json:
        print_json(statuses)
        return
    parts = [_lay_out_card(status) for status in statuses]
    for form in FORMS:
        parts.append(_lay_out(form.form, {"score": form.description, "blind to": form.blind_spots}))
        if form.form.startswith("llm:"):
            parts += map(_lay_out_rubric, list_rubrics())
    print_table(Group(*parts))


@app.command(
    "check",
    epilog=examples(
        "phf reward check toxicity-svm",
        "phf reward check my-reward shouting:score --json",
        "phf reward check hf:unitary/toxic-bert --threshold 0.3 -o checks.json",
    ),
)
def reward_check(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Reward models, named as for annotate.")
    ],
    threshold: Annotated[
        float | None, typer.Option(help="Toxic is what scores above it; default: the judge's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for the checks, as JSON.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Say how often a toxicity judge calls harmless sentences toxic: by group of people, negated, quoted; and what it misses."""
    from phf.reward_models import load_reward_model
    from phf.reward_training.check import check_reward_model, keep_check, write_checks

    checks = []
    with show_progress() as progress:
        for model in map(load_reward_model, models):
            checks.append(check_reward_model(model, threshold=threshold, progress=progress))
            if threshold is None:
                keep_check(checks[-1])
    if out is not None:
        write_checks(out, checks)
    if as_json:
        print_json(checks)
        return
    for check in checks:
        _print_check(check)


def _print_check(check: "RewardCheck") -> None:
    from phf.reward_training.check import describe_check, list_rows

    print(printable(f"{check.reward_model.name} {describe_check(check)}"))
    if not check.suits:
        return
    table = make_table(f"toxic: above {check.threshold:g}; 95 % intervals")
    for head in ("", "", "share"):
        table.add_column(head, justify="right" if head else "left")
    last = ""
    for title, of, shown, _ in list_rows(check):
        table.add_row("" if title == last else title, of, shown)
        last = title
    print_table(table)
    if check.num_unscored:
        print(f"{check.num_unscored:,} sentences have no score and are left out")


Out = Annotated[
    Path, typer.Option("--out", "-o", help="The folder to make; it is then a reward model's name.")
]
Seed = Annotated[int, typer.Option(min=0, help="Decides what is held out, and the order of training.")]
Name = Annotated[str | None, typer.Option(help="What to call it; default: the folder's name.")]


@app.command(
    "train",
    epilog=examples(
        "phf reward train labels.jsonl -o my-reward",
        "phf reward train labels.jsonl --counterfactual terms.txt -o my-reward",
    ),
)
def reward_train(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="JSON Lines (.gz, .zst): text and label (1 = bad), text and rating (higher = better), or chosen and "
            "rejected.",
        ),
    ],
    out: Out,
    backend: Annotated[
        str, typer.Option(help="linear (seconds on a CPU), or encoder (finetunes --base; extra 'encoder').")
    ] = "linear",
    base: Annotated[str | None, typer.Option(help="For encoder: a Hugging Face folder or id.")] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Labels to measure on; default: a fifth of LABELS, which is then not trained on."),
    ] = None,
    counterfactual: Annotated[
        Path | None,
        typer.Option(
            metavar="TERMS",
            help="A file of terms, those of a line may stand for one another (gay, straight, Muslim, ...): texts trained on are "
            "repeated with other terms and the same label.",
        ),
    ] = None,
    seed: Seed = 0,
    name: Name = None,
    as_json: AsJSON = False,
) -> None:
    """Train a reward model from human feedback, and measure it on feedback held out."""
    from phf.folders import is_filled
    from phf.reward_training.counterfactual import read_terms
    from phf.reward_training.labels import describe_bad_rows, read_labels
    from phf.reward_training.train import train_reward_model

    was_there = is_filled(out)
    kind = check_choice("backend", backend, ("linear", "encoder"))
    if base is not None and backend == "linear":
        raise PHFError(f"--base {base} is for --backend encoder; leave one of the two out")
    given = read_labels(labels)
    others = read_labels(held_out) if held_out is not None else None
    for read in filter(None, (given, others)):
        if read.bad_rows:
            say(printable(describe_bad_rows(read.path, read.bad_rows)))
    terms = read_terms(counterfactual) if counterfactual is not None else None
    with show_progress() as progress:
        evaluation = train_reward_model(
            given,
            out,
            backend=kind,
            base=base,
            held_out=others,
            terms=terms,
            seed=seed,
            name=name,
            progress=progress,
        )
    say_unchanged(out, was_there)
    _print_evaluation(evaluation, out, "CORPUS", as_json=as_json)


@app.command(
    "distill",
    epilog=examples(
        "phf reward distill --teacher toxicity-lstm --corpus corpus -o toxicity-student",
        "phf reward distill --teacher llm:rubric.yaml,model=NAME,base_url=http://localhost:8000/v1 --corpus corpus --budget 20kcalls -o student",
        "phf reward distill --teacher llm:toxicity,model=NAME --corpus corpus --labels labels.jsonl -o student",
    ),
)
def reward_distill(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="The slow reward model, as for annotate.")],
    corpus: Annotated[
        Path, typer.Option("--corpus", "-c", parser=to_path, metavar="DIR", help="Where to take texts from.")
    ],
    out: Out,
    num_segments: Annotated[
        int,
        typer.Option(min=1, help="About how many segments the teacher scores; a fifth is held out."),
    ] = 100_000,
    segments: Segments = "sentences",
    threshold: Annotated[
        float | None, typer.Option(help="A segment is bad above this score; default: the teacher's own.")
    ] = None,
    model_size: Annotated[
        str, typer.Option(help="Parameters of the language model whose training the cost is compared with.")
    ] = "124M",
    budget: Budget = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="What people said of texts ('phf label', labels or ratings): how far teacher and student agree with them."
        ),
    ] = None,
    seed: Seed = 0,
    name: Name = None,
    as_json: AsJSON = False,
) -> None:
    """Train a fast student of a slow reward model, and say how far the two agree and what annotating costs."""
    from phf.config.budget import parse_budget
    from phf.corpus.store import Corpus
    from phf.curate.sample import sample_documents
    from phf.folders import is_filled
    from phf.reward_models import load_reward_model
    from phf.reward_models.llm.judge import list_judges, set_budget
    from phf.reward_training.distill import distill_reward_model
    from phf.reward_training.labels import describe_bad_rows, read_labels

    warn_of_rewards([teacher])
    was_there = is_filled(out)
    num_parameters = _parse_size(model_size)
    kind = segment_kind(segments)
    model = load_reward_model(teacher)
    if budget is not None:
        set_budget(model, parse_budget(budget))
    people = None if labels is None else read_labels(labels)
    if people is not None and people.bad_rows:
        say(printable(describe_bad_rows(people.path, people.bad_rows)))
    with show_progress() as progress:
        for judge in list_judges(model):
            judge.progress = progress
        documents, annotation = sample_documents(
            Corpus.open(corpus), kind, num_segments, seed=seed, scored_by=model.identity, progress=progress
        )
        say(f"teacher's scores: {annotation or f'{model.identity.name} scores the sample now'}")
        evaluation = distill_reward_model(
            documents,
            model,
            out,
            seed=seed,
            segments=kind,
            labels=people,
            threshold=threshold,
            num_parameters=num_parameters,
            name=name,
            progress=progress,
        )
    say_unchanged(out, was_there)
    _print_evaluation(evaluation, out, f"{corpus} --segments {kind}", as_json=as_json)


def _print_evaluation(evaluation: "RewardEvaluation", out: Path, corpus: str, *, as_json: bool) -> None:
    from phf.report.reward_page import summarise_reward_model, write_reward_page

    page = write_reward_page(out)
    if as_json:
        print_json(evaluation)
        return
    print("\n".join(map(printable, summarise_reward_model(evaluation))))
    print(page)
    hint(f"next: phf annotate {quote(corpus)} --reward-model {quote(out)}")


def _parse_size(text: str) -> float:
    """A number of parameters such as 124M or 1.3B."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text)
    if match is None or float(match[1]) == 0:
        raise PHFError(f"model size '{text}' is no number of parameters; write it as 124M or 1.3B")
    return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]


def _lay_out_card(status: "CardStatus") -> "Group":
    lines = {"score": status.card.description, "blind to": status.card.blind_spots}
    if (speed := status.speed) is None:
        lines["missing"] = status.problem
    else:
        lines["speed"] = (
            f"{speed.segments_per_second:,.0f} segments/s, {speed.bytes_per_second / 1e6:,.2f} MB/s here: "
            f"1 GB in {1e9 / speed.bytes_per_second / 60:,.0f} min"
        )
        lines["identity"] = speed.identity
        from phf.reward_training.check import describe_check, find_check

        if (check := find_check(speed.identity)) is not None and check.suits:
            lines["groups"] = describe_check(check)
    lines["licence"] = status.card.licence
    return _lay_out(status.card.name, lines)


def _lay_out_rubric(name: str) -> "Group":
    """A rubric of phf's own: what it asks, and the two ends of its scale."""
    from phf.reward_models.llm.rubric import read_rubric

    lines = {}
    for key, axis in read_rubric(name).axes.items():
        levels = sorted(axis.levels, key=axis.scale)
        lines[key] = f"{axis.question} 0: {axis.levels[levels[0]]}; 1: {axis.levels[levels[-1]]}"
    return _lay_out(f"llm:{name}", lines)


def _lay_out(name: str, lines: dict[str, str]) -> "Group":
    """A name, and under it a line for each thing, wrapped behind its key."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for key, value in lines.items():
        grid.add_row(Text(key, style="dim"), Text(value))
    return Group(Text(name, style="bold"), Padding(grid, (0, 0, 1, 2)))
