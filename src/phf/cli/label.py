"""`phf label`: human feedback, collected."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from phf.cli.options import (
    SETTINGS,
    AsJSON,
    Segments,
    Verbs,
    check_choice,
    examples,
    print_json,
    segment_kind,
)
from phf.errors import PHFError
from phf.terminal import hint, printable, quote, say

if TYPE_CHECKING:
    from phf.annotate.annotation import Annotation
    from phf.config.train import SegmentKind
    from phf.corpus.store import Corpus
    from phf.feedback.queue import Order

app = Verbs(**SETTINGS)


@app.command(
    epilog=examples(
        "phf label corpus -o labels.jsonl",
        "phf label corpus --review my-student -r llm:rubric.yaml,model=NAME -o reviewed.jsonl",
        "phf reward train labels.jsonl -o my-reward",
    )
)
def label(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A corpus folder made by 'phf corpus build'.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file of judgements (JSON Lines); goes on if it exists; default: a new labels.jsonl.",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option("--task", "-t", help="label (good or bad), rate (1 to 5) or pair (choose the better)."),
    ] = "label",
    segments: Segments = "sentences",
    order: Annotated[
        str, typer.Option(help="uncertain (what teaches most), random; by an annotation: balanced, worst.")
    ] = "uncertain",
    reward_model: Annotated[
        str | None,
        typer.Option("--reward-model", "-r", help="Whose annotation to begin from; default: any there is."),
    ] = None,
    review: Annotated[
        str | None,
        typer.Option(
            metavar="STUDENT",
            help="Instead of --order: the segments where this reward model and the judge of --reward-model differ most. A judge "
            "llm:... is asked nothing: its kept answers count.",
        ),
    ] = None,
    labeler: Annotated[
        str | None, typer.Option(help="Written beside each judgement; default: your user name.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the pool of segments.", min=0)] = 0,
    num: Annotated[
        int | None, typer.Option("--num", "-n", help="End after so many judgements.", min=1)
    ] = None,
    in_browser: Annotated[
        bool, typer.Option("--app", help="In the browser instead of the terminal (extra 'app').")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the browser's page, on this machine alone.")] = 7860,
    import_file: Annotated[
        Path | None,
        typer.Option("--import", help="Instead: turn an export of Argilla or Label Studio into -o."),
    ] = None,
    bad: Annotated[
        list[str] | None, typer.Option(help="Import: a choice that means bad (repeat for more).")
    ] = None,
    good: Annotated[list[str] | None, typer.Option(help="Import: a choice that means good.")] = None,
    question: Annotated[str | None, typer.Option(help="Import: the question to take.")] = None,
    field: Annotated[
        list[str] | None, typer.Option(help="Import: the field of the text; of a pair both, the first first.")
    ] = None,
    higher_is_worse: Annotated[
        bool, typer.Option("--higher-is-worse", help="Import: a high rating means bad.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Judge segments of a corpus: the labels a reward model is trained on.

    Keys: g b (or 1 to 5, or 1 2 for a pair), s skip, u undo, q quit. Every judgement is on the disk at once; the same
    command with -o goes on where it ended.
    """
    from phf.feedback.judgements import choose_file

    if import_file is None and folder is None:
        raise PHFError("no corpus is given; run: phf label DIR -o labels.jsonl (or --import FILE)")
    out = choose_file(out)
    if import_file is not None:
        _import(
            import_file, out, folder, bad or [], good or [], question, field or [], higher_is_worse, as_json
        )
        return
    if as_json:
        raise PHFError(
            "--json gives the counts of --import; a session writes its judgements to -o, as JSON Lines"
        )
    assert folder is not None
    from phf.corpus.store import Corpus
    from phf.feedback.judgements import Task
    from phf.feedback.queue import Order
    from phf.feedback.review import compare_judges
    from phf.feedback.session import open_session

    chosen_task: Task = check_choice("task", task, get_args(Task))
    chosen_order: Order = check_choice("order", order, get_args(Order))
    kind = segment_kind(segments)
    corpus = Corpus.open(folder)
    annotation = score = None
    if review is None:
        annotation = _find_annotation(corpus, kind, reward_model, chosen_order)
    elif reward_model is None:
        raise PHFError(f"--review {review} needs the judge to compare it with; add --reward-model llm:...")
    else:
        score, chosen_order = compare_judges(reward_model, review), "worst"
    with open_session(
        corpus,
        out,
        kind,
        task=chosen_task,
        order=chosen_order,
        annotation=annotation,
        score=score,
        seed=seed,
        labeler=labeler,
        num=num,
    ) as session:
        if session.file.repair is not None:
            say(printable(session.file.repair))
        if in_browser:
            from phf.feedback.label_app import serve

            serve(session, port=port, say=say)
        else:
            from phf.cli.label_terminal import label_in_terminal

            label_in_terminal(session)
    print(f"{out}: {session.describe()}")
    hint(f"next: phf reward train {quote(out)} -o REWARD_MODEL")


def _find_annotation(
    corpus: "Corpus", kind: "SegmentKind", reward_model: str | None, order: "Order"
) -> "Annotation | None":
    """The annotation to begin from: the one named, else the first there is; random order needs none."""
    from phf.annotate.annotation import Annotation

    if reward_model is not None:
        return Annotation.open(corpus, reward_model, kind)
    if order == "random":
        return None
    found = [annotation for annotation in Annotation.list(corpus) if annotation.segments == kind]
    if found:
        say(f"beginning from the annotation {found[0].slug}; --reward-model chooses another")
    return found[0] if found else None


def _import(
    path: Path,
    out: Path,
    folder: Path | None,
    bad: list[str],
    good: list[str],
    question: str | None,
    fields: list[str],
    higher_is_worse: bool,
    as_json: bool,
) -> None:
    from phf.feedback.label_import import import_labels

    if folder is not None:
        raise PHFError(f"--import {path} reads no corpus; leave {folder} out")
    imported = import_labels(
        path, out, bad=bad, good=good, question=question, fields=fields, higher_is_worse=higher_is_worse
    )
    if as_json:
        print_json(
            {
                "out": str(out),
                "format": imported.format,
                "question": imported.question,
                "num_judgements": len(imported.rows),
                "left_out": imported.count_reasons(),
                "unmapped": imported.unmapped,
            }
        )
        return
    for reason, count in imported.count_reasons().items():
        print(f"left out {count:,} x {printable(reason)}")
    for record, reason in imported.unmapped[:10]:
        print(f"  {printable(record)}: {printable(reason)}")
    if len(imported.unmapped) > 10:
        print(f"  and {len(imported.unmapped) - 10:,} more")
    if "rating" in imported.rows[0]:
        print(
            f"ratings: a higher one is taken as {'worse' if higher_is_worse else 'better'} (--higher-is-worse turns that)"
        )
    print(
        f"{out}: {len(imported.rows):,} judgements from {imported.format}, question {printable(imported.question)}"
    )
    hint(f"next: phf reward train {quote(out)} -o REWARD_MODEL")
