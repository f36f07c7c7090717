"""Verbs for what leaves the machine: release (with verify and doses), push."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from phf.cli.options import SETTINGS, AsJSON, Verbs, derive_options, examples, print_json
from phf.errors import PHFError
from phf.terminal import complain, hint, printable, quote, say, show_progress

if TYPE_CHECKING:
    from pydantic import BaseModel


class _ReleaseGroup(TyperGroup):
    """`phf release RUN -o DIR`: what names no command of the group is for `make`, which nobody has to write."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in front where it was left out."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["make", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options of `make`, then the commands."""
        self.commands["make"].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


app = Verbs(**SETTINGS)
release_app = Verbs(
    cls=_ReleaseGroup,
    help="Publish a run as a plain Hugging Face folder: phf release RUN -o DIR.",
    subcommand_metavar="RUN -o DIR | COMMAND ...",
    epilog=examples(
        "phf release runs/conditional -o release --license apache-2.0",
        "phf release runs/conditional -o release --forget block --forget delete",
        "phf release verify release --run runs/conditional",
        "phf release doses runs/conditional -o doses.json",
    ),
    **SETTINGS,
)
app.add_typer(release_app, name="release")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A release made by 'phf release RUN -o DIR'.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by 'phf train'.")]


@release_app.command(
    epilog=examples(
        "phf release runs/conditional -o release --license apache-2.0",
        "phf release runs/conditional -o release --forget block:directions=3 --forget delete",
        "phf release runs/conditional -o research --forget none",
    )
)
def make(
    folder: RunFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The release folder to make, or to replace.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="How bad mode is forgotten, repeatable: delete (always, unless none is given), block, block:directions=N, poison.",
        ),
    ] = None,
    license: Annotated[
        str, typer.Option(help="The licence, as the Hub writes it: apache-2.0, mit, cc-by-4.0, ...")
    ] = "unknown",
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also model.gguf, for llama.cpp (extra 'gguf').")
    ] = False,
    step: Annotated[int | None, typer.Option(help="Which checkpoint (default: the last).", min=1)] = None,
    mle: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The MLE run that the card's verdict compares with.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """What 'phf release RUN -o DIR' does: write a run's model as a plain Hugging Face folder."""
    from phf.api import release
    from phf.release.record import read_record

    methods = [spec for spec in forget or [] if spec != "none"]
    if "none" not in (forget or []) and "delete" not in methods:
        methods.append("delete")  # bad mode stays only for those who say so
    with show_progress() as progress:
        written = release(
            folder, out, methods, license=license, step=step, gguf=gguf, mle=mle, progress=progress
        )
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    if as_json:
        print_json({"path": str(written), "num_bytes": size})
    else:
        record = read_record(written)
        measured = "" if record.evaluation else ", which was not evaluated: the card has no numbers"
        print(f"{written}: {size / 1e6:,.1f} MB, of step {record.run.step:,}{measured}")
        hint(f"next: phf release verify {quote(written)} --run {quote(folder)}")
    if license == "unknown":
        say("without --license the folder cannot be pushed")


@release_app.command(
    epilog=examples("phf release verify release --run runs/conditional", "phf release verify downloaded")
)
def verify(
    folder: Folder,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run it was made from, to compare with.")
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Texts drawn from release and run.", min=2)] = 256,
    seed: Annotated[int, typer.Option(help="Of these texts.", min=0)] = 0,
    as_json: AsJSON = False,
) -> None:
    """Check a release: files, tokenizer, logits and text, by plain transformers in a process without phf."""
    from phf.api import verify_release

    findings = []
    with show_progress() as progress:
        for check in verify_release(folder, run=run, num_samples=num_samples, seed=seed, progress=progress):
            findings.append(check)
            if not as_json:
                print(printable(f"{check.outcome:<9}  {check.name}: {check.detail}"), flush=True)
    failed = sum(check.outcome == "FAILED" for check in findings)
    if as_json:
        print_json(findings)
    if failed:
        complain(f"{folder}: {failed} {'check' if failed == 1 else 'checks'} failed")
        raise typer.Exit(1)
    if not as_json:
        hint(f"next: phf attack {quote(folder)}, then phf push {quote(folder)} USER/NAME")


def _declare_measures() -> "tuple[BaseModel, dict[str, str]]":
    from phf.config.evaluate import OPTIONS, EvaluateConfig

    sampling = ("sampling.num_samples", "sampling.min_new_tokens", "sampling.max_new_tokens")
    keys = ("judges", "blimp.source", "kl.reference", *sampling)
    return EvaluateConfig(), {key: OPTIONS[key] for key in keys}


@release_app.command(
    cls=derive_options(_declare_measures),
    epilog=examples(
        "phf release doses runs/conditional -o doses.json --judge toxicity-lstm --blimp blimp.jsonl.gz"
    ),
)
def doses(
    ctx: typer.Context,
    folder: RunFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; a figure goes beside it.")],
    directions: Annotated[
        list[int] | None, typer.Option(help="Numbers of directions, repeatable; default: all doses.", min=0)
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint (default: the last).", min=1)] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure every mode and capability before and after each dose of blocking and deleting."""
    from phf.attack.doses import measure_doses
    from phf.config.evaluate import EvaluateConfig
    from phf.config.train import parse
    from phf.evaluate.judges import choose_judges
    from phf.release.dose_results import write_doses
    from phf.report.doses import write_dose_figure
    from phf.reward_models import load_reward_model
    from phf.train.run import Run

    if out.suffix != ".json" or out.is_dir():
        raise PHFError(f"-o {out} must be a file that ends in .json; the figures are written beside it")
    config = parse(EvaluateConfig, ctx.obj, "phf release doses")
    run = Run.open(folder)
    judges, notes = choose_judges(run.data().annotation, config.judges, load_reward_model)
    for note in notes:
        say(note)
    with show_progress() as progress:
        result = measure_doses(run, judges, config, directions=directions, step=step, progress=progress)
    write_doses(out, result)
    figures = write_dose_figure(result, out)
    if as_json:
        print_json(result)
        return
    print(f"{out}, {', '.join(map(str, figures))}")
    hint(f"next: phf release {quote(folder)} -o DIR --forget block:directions=N")


@app.command(epilog=examples("phf push release me/my-model", "phf push release me/my-model --yes --public"))
def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The repository: USER/NAME.")],
    public: Annotated[bool, typer.Option("--public/--private", help="Whether anyone may read it.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload; without it nothing leaves the machine.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Upload a release to the Hugging Face Hub: a dry run unless --yes is given, private unless --public is."""
    from phf.release.push import plan_upload, push_release

    upload = plan_upload(folder, repo, is_public=public)
    if as_json:
        print_json(
            {**asdict(upload), "folder": str(folder), "sent_to": push_release(upload) if yes else None}
        )
        return
    print("\n".join(upload.describe()))
    if not yes:
        print(
            f"nothing was sent; next: phf push {quote(folder)} {quote(repo)}{' --public' if public else ''} --yes"
        )
        return
    print(push_release(upload))
