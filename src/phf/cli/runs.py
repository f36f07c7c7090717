"""Verbs that make a run, look at it, or do everything once: train, report, demo."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from phf.cli.options import SETTINGS, AsJSON, Runs, Verbs, Wait, examples, print_json
from phf.errors import PHFError
from phf.terminal import complain, hint, print_table, quote, say, show_progress

app = Verbs(**SETTINGS)


@app.command(
    epilog=examples(
        "phf train --resume runs/mle",
        "phf train --resume runs/mle optim.micro_batch_blocks=8",
        "phf train default reward_model=calm:score model.preset=1M -o runs/conditional",
        "phf train toxicity objective.kind=mle keep_checkpoints=all -o runs/mle",
        "phf train --init runs/mle@500 objective.kind=conditional objective.good_fraction=0.5 -o runs/finetuned",
        "torchrun --nproc-per-node 8 -m phf train toxicity -o runs/eight",
    )
)
def train(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides, such as seed=1.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run folder to make.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[@STEP]", help="Go on with this run from its last checkpoint, or from STEP's."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[@STEP]|FOLDER|HUB_ID",
            help="Start from this run's weights, on the next tokens; without a RECIPE, with its config. Or from a Hugging Face "
            "model, by folder or Hub id, with its tokenizer.",
        ),
    ] = None,
    reset_optimizer: Annotated[bool, typer.Option(help="With --init: fresh optimizer states.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would cost; write nothing.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(help="With --dry-run: time on this GPU (H100, A100, ...); default: this CPU."),
    ] = None,
    processes: Annotated[int, typer.Option(help="With --dry-run: number of GPUs.", min=1)] = 1,
    mfu: Annotated[
        float | None,
        typer.Option(
            help="With --dry-run: share of the peak assumed (0.4; this CPU is timed).", min=0.01, max=1
        ),
    ] = None,
    wait: Wait = False,
    as_json: AsJSON = False,
) -> None:
    """Train a model with an objective that uses the scores."""
    from phf.config.recipes import describe_recipe, list_recipes

    overrides = overrides or []
    if recipe is not None and "=" in recipe and not Path(recipe).exists():  # no recipe, overrides alone
        overrides = [recipe, *overrides]
        recipe = None
    if resume is not None:
        if recipe is not None or out is not None or init is not None:
            raise PHFError("--resume takes the run, and perhaps KEY=VALUE: the rest is in its run.json")
    elif recipe is None and init is None:
        raise PHFError(f"give a recipe ({', '.join(list_recipes())}, or a .yaml file), or --resume RUN")
    elif out is None and not dry_run:
        raise PHFError(f"give the run folder to make, such as -o runs/{Path(recipe or 'finetuned').stem}")

    if recipe is not None:
        from phf.config.train import load_train_config

        load_train_config(
            recipe, overrides
        )  # a mistyped key is said at once, not after seconds of importing torch

    from phf.train.start import load_start_config, parse_place

    if dry_run:
        from phf.results import encode
        from phf.train.plan import plan_run

        if resume is not None:
            raise PHFError("--dry-run sizes up a new run; give its RECIPE instead of --resume")
        config = load_start_config(recipe, overrides, init, reset_optimizer=reset_optimizer)
        plan = plan_run(config, gpu=gpu, num_ranks=processes, mfu=mfu)
        if as_json:
            totals = {
                "num_tokens": plan.num_tokens,
                "seconds": plan.seconds,
                "memory_bytes": plan.memory.total,
            }
            print_json({**encode(plan), **totals})
        else:
            if recipe in list_recipes():
                print(f"{describe_recipe(recipe)}\n")
            print("\n".join(plan.describe()))
        return

    from phf.train import loop
    from phf.train.distributed import RankLostError
    from phf.train.signals import Stopped

    with show_progress() as progress:
        try:
            if resume is not None:
                folder, step = parse_place(resume)
                run = loop.resume(folder, overrides, step=step, wait=wait, say=say, progress=progress)
            else:
                assert out is not None
                config = load_start_config(recipe, overrides, init, reset_optimizer=reset_optimizer)
                run = loop.train(config, out, wait=wait, say=say, progress=progress)
        except Stopped as stopped:
            complain(str(stopped))
            sys.exit(stopped.exit_code)
        except RankLostError as error:
            complain(f"error: {error}")
            os._exit(2)  # an ordinary exit may wait for threads that wait for the lost process
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process speaks for all
        if as_json:
            last = run.read_last_validation()
            print_json({"run": str(run.folder), "step": run.num_steps, "validation": last})
            return
        print(f"{run.folder}: step {run.num_steps}")
        hint(f"next: phf evaluate {quote(run.folder)}")


@app.command(
    epilog=examples(
        "phf report runs/mle runs/conditional -o report.html",
        "phf report loops/conditional loops/shuffled loops/human -o loops.html",
    )
)
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    posterior: Annotated[
        Path | None, typer.Option(help="Show what scores cost, too: a folder made by 'phf infer'.")
    ] = None,
    loop: Annotated[
        list[Path] | None,
        typer.Option(help="Show rounds on own text, too: a folder made by 'phf online'; repeatable."),
    ] = None,
    lemma: Annotated[
        Path | None,
        typer.Option(help="Show what own samples teach, too: a folder made by 'phf online --check-lemma'."),
    ] = None,
    dynamics: Annotated[
        list[Path] | None,
        typer.Option(
            help="Show a model as a chain of pages, too: a folder made by 'phf dynamics'; repeatable."
        ),
    ] = None,
) -> None:
    """Write one self-contained page that compares runs, or the loops of 'phf online'."""
    from phf.loops.results import LEMMA, LOOP

    if LOOP.is_in_all(runs):
        from phf.report.loops import write_loops_page

        print(write_loops_page([LOOP.read(folder) for folder in runs], out))
        return
    from phf.report.page import write_report

    sections = []
    if posterior is not None:
        from phf.posterior.results import POSTERIOR
        from phf.report.posterior import make_section

        sections.append(make_section(POSTERIOR.read(posterior)))
    if loop:
        from phf.report import loops

        sections.append(loops.make_section([LOOP.read(folder) for folder in loop]))
    if lemma is not None:
        from phf.report.loops import make_lemma_section

        sections.append(make_lemma_section(LEMMA.read(lemma)))
    if dynamics:
        from phf.dynamics.results import DYNAMICS
        from phf.report import dynamics as chains

        read = [DYNAMICS.read(folder) for folder in dynamics]
        sections += [chains.make_section(own, f"dynamics-{place}") for place, own in enumerate(read, start=1)]
    print(write_report(runs, out, sections=sections))


@app.command(epilog=examples("phf demo -o demo", "phf demo -o demo --seeds 3"))
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.")] = Path("demo"),
    objectives: Annotated[
        str,
        typer.Option(help="'default' (mle and conditional), 'paper' (its six), 'all', or kinds: mle,rwr."),
    ] = "default",
    seed: Annotated[int, typer.Option(help="Seed of training and sampling.", min=0)] = 0,
    seeds: Annotated[
        int, typer.Option(help="So many seeds, from --seed on; intervals are then over them.", min=1)
    ] = 1,
    tokens: Annotated[
        int | None, typer.Option(help="Training budget in tokens (default: the recipe's).", min=1)
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Samples per mode.", min=1)] = 512,
    as_json: AsJSON = False,
) -> None:
    """From raw text to a measured comparison: corpus, annotation, tokens, training, evaluation, report. Resumable."""
    from phf.demo import run_demo

    with show_progress() as progress:
        result = run_demo(
            out,
            objectives=objectives,
            seed=seed,
            num_seeds=seeds,
            tokens=tokens,
            num_samples=num_samples,
            say=say,
            progress=progress,
        )
    if as_json:
        print(result.summary.read_text(encoding="utf-8"), end="")
        return
    print_table(result.table)
    print(f"summary: {result.summary}\npage:    {result.page}")
