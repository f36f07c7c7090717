"""Makes `tests/golden` again: `python tests/make_golden.py` (about a minute; `--only-pages` leaves the runs as they are).

Three small runs are trained and evaluated with everything that `phf evaluate` measures; of each the files that pages are
made from are kept, without weights. All pages and tables of those files, and the losses of every objective, lie beside them.
On one machine all files come out the same again, so `git diff tests/golden` shows what a change of the code changed.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow.parquet as pq
import torch
from golden_runs import OBJECTIVES, hash_weights, make_corpus, read_losses, train_objective
from rich.console import Console

from phf import cli
from phf.annotate.annotate import annotate
from phf.attack.results import read_attack, write_attack
from phf.config.evaluate import EvaluateConfig
from phf.config.release import Delete
from phf.config.train import SamplingConfig, parse
from phf.evaluate.evaluation import evaluate_runs
from phf.evaluate.rollouts import sample_run
from phf.files import read_json
from phf.release.card import render_card
from phf.release.folder import write_release
from phf.release.record import read_record
from phf.report.page import summary_lines, summary_rows, summary_table, write_report
from phf.report.rediscovery import write_rediscovery
from phf.report.reward_page import write_reward_page
from phf.reward_training.distill import distill_reward_model
from phf.reward_training.evaluation import read_reward_evaluation, write_reward_evaluation
from phf.reward_training.labels import read_labels
from phf.reward_training.train import train_reward_model
from phf.train.checkpoint import checkpoint_folder
from phf.train.metrics import encode_lines
from phf.train.run import Run

GOLDEN = Path(__file__).parent / "golden"
RUNS = [Path("runs/mle-0"), Path("runs/conditional-0"), Path("runs/conditional-1")]
REWARD_MODELS = [Path("reward/labels"), Path("reward/distilled")]
STEPS = 160
"""Of a golden run: after fewer it writes no address, and all its scores by the annotator are 0."""
MODES = {"mle": ("none",), "conditional": ("good", "bad", "none", "untagged")}

# --- runs ---------------------------------------------------------------------------------------------------------


def make_runs() -> None:
    """Train and evaluate the golden runs in a folder of their own, and keep what pages are made from."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["PHF_CACHE"] = str(Path(folder) / "cache")
        corpus = make_corpus(Path("corpus"))
        annotate(corpus, "pii", "lines", workers=1)
        settings = {"reward_model": "pii", "optim": {"batch_blocks": 8, "learning_rate": 2e-2}}
        settings |= {"model": {"preset": "1M", "layers": 1, "width": 32, "heads": 2}, "data": {"context": 64}}
        sizes = {"good": {"threshold": 0.0}, "tokens": STEPS * 8 * 64, "validate_every": 40, "log_every": 10}
        sizes |= {"checkpoint_every": STEPS // 2}
        line = {"threshold": 0.0}
        for path in RUNS:
            kind, _, seed = path.name.partition("-")
            objective = {"kind": kind, **(line if kind == "conditional" else {})}
            with same_id(path.name):
                train_objective(corpus, kind, path, **settings, **sizes, objective=objective, seed=int(seed))
        other = train_objective(corpus, "mle", Path("reference"), **settings, tokens=10 * 8 * 64, seed=9)
        evaluate_runs(RUNS, configure(str(checkpoint_folder(other.folder, 10))), say=quiet)
        write_release(Run.open(RUNS[1]), Path("release"), forget=[Delete()], license="mit")
        for path in RUNS:
            keep_run(path, GOLDEN / path)
        write_compact(Path("release/phf.json"), GOLDEN / "release" / "phf.json")
        make_reward_models(Path("reward"))
        for path in REWARD_MODELS:
            write_compact(path / "evaluation.json", GOLDEN / path / "evaluation.json")
    from test_rediscovery_page import make_attack  # written by hand, with every outcome that a page tells

    with tempfile.TemporaryDirectory() as folder:
        write_attack(Path(folder), make_attack((0, 1)))
        write_compact(Path(folder) / "attack.json", Path(folder) / "compact.json")
        content = (Path(folder) / "compact.json").read_bytes()
    (GOLDEN / "attack.json.gz").write_bytes(gzip.compress(content, mtime=0))


@contextlib.contextmanager
def same_id(name: str) -> Iterator[None]:
    """The id that a run draws is the same each time: of its name."""
    with mock.patch("phf.train.run.uuid4", return_value=uuid.uuid5(uuid.NAMESPACE_OID, name)):
        yield


def configure(model: str) -> EvaluateConfig:
    """Everything that can be measured, as little of it as shows; a tiny model stands in for the big language models."""
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("Write to", "Please", "Call Ann on"))
    )
    pairs = [
        {"uid": uid, "good": f"The {noun} {good}.", "bad": f"The {noun} {bad}.", "term": term}
        for uid, good, bad, term in (("late", "is late", "are late", "agreement"), ("noon", "has sent", "sent has", "order"))
        for noun in ("key", "train", "river", "garden", "report", "poem")
    ]  # fmt: skip
    Path("blimp.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rng = random.Random(1)
    for name in ("train.tsv", "dev.tsv"):
        Path("films").mkdir(exist_ok=True)
        rows = [
            (f"the {rng.choice(('key', 'river'))} is {word}", word == "late")
            for word in ["late", "here"] * 12
        ]
        with Path("films", name).open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows(
                [("sentence", "label"), *((text, int(label)) for text, label in rows)]
            )
    questions = [
        {"question": f"The {noun}", "choices": [" is late", " are late"], "answer": 0}
        for noun in ("key", "train")
    ]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    task = {
        "task": "agreement", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(Path("questions.jsonl").absolute())}},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    Path("agreement.yaml").write_text(json.dumps(task))
    given = {
        "suite": "full", "judges": ["toxicity-svm"], "num_bootstrap": 100, "capability_documents": 16, "gain_segments": 16,
        "data_samples": 60, "leak_samples": 16, "embedder": model, "benign": {"steps": 3},
        "sampling": {"num_samples": 40, "min_new_tokens": 4, "max_new_tokens": 24},
        "scenarios": {"names": ["prompts.jsonl"], "continuations": 4, "scores_prompt": True},
        "kl": {"reference": model, "num_sequences": 16, "num_tokens": 12},
        "blimp": {"source": "blimp.jsonl"},
        "red_team": {"attacker": model, "trials": 2, "rounds": 2, "prompts_per_round": 4, "continuations": 4},
        "harness": {"tasks": ["agreement.yaml"]},
        "downstream": {"tasks": ["./films"], "num_seeds": 2, "epochs": 1, "batch_size": 8},
        "steer": ["guidance:scale=2", "best-of-n:n=2"],
    }  # fmt: skip
    return parse(EvaluateConfig, given, "golden")


def write_compact(source: Path, target: Path) -> None:
    """Copy a JSON file with a line for each item of its lists of objects: small, and a difference shows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(read_json(source), sort_keys=True, ensure_ascii=False)
    target.write_text(text.replace("}, {", "},\n{") + "\n", "utf-8")


def keep_run(source: Path, target: Path) -> None:
    """Copy what pages are made from; the speed of the machine is written over."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "samples.parquet", "items.parquet"):
        shutil.copyfile(source / name, target / name)
    write_compact(source / "evaluation.json", target / "evaluation.json")
    run = Run.open(source)
    lines = [
        {**line, "tokens_per_second": 1000} if line["kind"] == "train" else line
        for line in run.read_metrics()
    ]
    (target / "metrics.jsonl").write_text(encode_lines(lines, run.id)[0])
    for manifest in source.glob("checkpoints/*/checkpoint.json"):
        kept = target / manifest.relative_to(source)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("{}\n")  # that it is there says that the checkpoint is whole


def make_reward_models(folder: Path) -> None:
    """A reward model from labels, and one from a teacher, whose speeds are written over."""
    from test_distill import WordTeacher, make_documents
    from test_reward_train import make_rows

    folder.mkdir()
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(240)))
    train_reward_model(read_labels(Path("labels.jsonl")), folder / "labels", seed=0)
    distill_reward_model(make_documents(700), WordTeacher(), folder / "distilled", seed=0, segments="lines")
    fix_speeds(folder / "distilled")


def fix_speeds(folder: Path) -> None:
    """Replace measured times, and what follows from them, by 0.25."""
    evaluation = read_reward_evaluation(folder)
    taught = evaluation.teaching
    speed = replace(
        taught.speed, teacher_segments=0.25, teacher_bytes=0.25, student_segments=0.25, student_bytes=0.25
    )
    cost = replace(taught.cost, machine_flops_per_cpu_second=0.25, student=0.25, teacher=0.25)
    write_reward_evaluation(folder, replace(evaluation, teaching=replace(taught, speed=speed, cost=cost)))


def quiet(line: str) -> None:
    pass


# --- pages --------------------------------------------------------------------------------------------------------


def render_command(*arguments: str) -> str:
    """What a command prints into a pipe."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = ["phf", *arguments]
    try:
        with contextlib.redirect_stdout(out):
            cli.main()
    finally:
        sys.argv = argv
    return out.getvalue()


def render_summary() -> str:
    """The tables that `phf evaluate` ends with."""
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(RUNS))
    return console.file.getvalue() + "".join(line + "\n" for line in summary_lines(RUNS))


def render_samples() -> str:
    """How many samples each run kept, and a hash of them: texts, scores and all."""
    found = {}
    for path in RUNS:
        rows = pq.read_table(path / "samples.parquet").to_pylist()
        content = json.dumps(rows, sort_keys=True).encode()
        found[str(path)] = {"rows": len(rows), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(found, indent=1) + "\n"


def render_card_of_release() -> str:
    return render_card(read_record(Path("release")), examples={"an engine": "What it needs."})


def render_file(path: Path) -> str:
    """A page, each of its figures replaced by a hash, which keeps goldens small and their differences readable."""

    def fold(figure: re.Match[str]) -> str:
        return f"<svg sha256={hashlib.sha256(figure[0].encode()).hexdigest()}>"

    return re.sub(r"<svg.*?</svg>", fold, path.read_text("utf-8"), flags=re.DOTALL)


PAGES: dict[str, Callable[[], str]] = {
    "report.html": lambda: render_file(write_report(RUNS, Path("report.html"))),
    "rediscovery.html": lambda: render_file(write_rediscovery(read_attack(Path()), Path("rediscovery.html"))),
    **{f"{path}.html": lambda path=path: render_file(write_reward_page(path)) for path in REWARD_MODELS},
    "release/README.md": render_card_of_release,
    **{f"show/{path.name}.txt": lambda path=path: render_command("show", str(path)) for path in RUNS},
    "compare.txt": lambda: render_command("compare", *map(str, RUNS)),
    "evaluate.txt": render_summary,
    "rows.json": lambda: json.dumps(summary_rows(RUNS), indent=1) + "\n",
    "samples.json": render_samples,
}
"""Each golden page and what makes it, in a folder that holds what `copy_inputs` copies."""


def copy_inputs(folder: Path) -> None:
    """Copy the files that pages are made from."""
    for name in ("runs", "reward", "release"):
        shutil.copytree(GOLDEN / name, folder / name, ignore=shutil.ignore_patterns("*.html", "*.md"))
    (folder / "attack.json").write_bytes(gzip.decompress((GOLDEN / "attack.json.gz").read_bytes()))


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """A pipe of 120 columns, whatever the person's own terminal is."""
    before = dict(os.environ)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "120"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_pages() -> None:
    """Write every golden page."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), plain_terminal():
        copy_inputs(Path(folder))
        for name, render in PAGES.items():
            (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name).write_text(render(), "utf-8")


# --- losses -------------------------------------------------------------------------------------------------------


def describe_machine() -> dict[str, str]:
    """What the last digit of a float depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cpu": names[0] if names else platform.processor(),
    }


def measure_objectives(folder: Path) -> dict[str, dict[str, Any]]:
    """The losses, the weights' hash and the first samples of a tiny run on each objective, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        corpus = make_corpus(folder / "corpus")
        runs = {kind: train_objective(corpus, kind, folder / kind) for kind in OBJECTIVES}
        return {
            "objectives": {
                kind: {"losses": read_losses(run), "weights": hash_weights(run)} for kind, run in runs.items()
            },
            "samples": {
                f"{kind} {mode}": hash_texts(runs[kind], mode) for kind in MODES for mode in MODES[kind]
            },
        }
    finally:
        torch.set_num_threads(threads)


def hash_texts(run: Run, mode: str) -> str:
    """SHA-256 of the first four texts that a run writes in a mode."""
    sampling = SamplingConfig(num_samples=4, min_new_tokens=4, max_new_tokens=16)
    texts = [sample.text for sample in sample_run(run.folder, mode, sampling)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def make_losses() -> None:
    """Write the losses of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_objectives(Path(folder))
    text = json.dumps({"machine": describe_machine(), **measured}, indent=1)
    (GOLDEN / "losses.json").write_text(text + "\n")


def main() -> None:
    warnings.simplefilter("ignore")
    if "--only-pages" not in sys.argv:
        torch.set_num_threads(1)
        shutil.rmtree(GOLDEN, ignore_errors=True)
        make_runs()
        make_losses()
    make_pages()


if __name__ == "__main__":
    main()
