"""A model that was trained elsewhere, measured as our own runs are."""

import json
import shutil
from pathlib import Path

import pytest
from test_tokenizer import TEXTS, save_foreign
from tiny_architectures import create_architecture
from tokenizer_families import FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from phf.cli import app
from phf.config.evaluate import EvaluateConfig
from phf.config.train import SamplingConfig
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_run
from phf.report.reading import read_runs
from phf.results import encode
from phf.tokens.tokenizer import load_tokenizer
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder
from phf.train.elsewhere import Yardstick, adopt_model
from phf.train.run import Run

CONFIG = EvaluateConfig(
    sampling=SamplingConfig(num_samples=8, max_new_tokens=16),
    num_bootstrap=100,
    capability_documents=6,
    gain_segments=6,
    data_samples=20,
)
OPTIONS = [
    "--num-samples",
    "4",
    "--max-new-tokens",
    "12",
    "--set",
    "capability_documents=4",
    "--set",
    "data_samples=9",
]


def quiet(line: str) -> None:
    pass


def save_again(run: Run, folder: Path) -> Path:
    """What a stranger has of a run: its model and tokenizer as transformers saves them."""
    source = checkpoint_folder(run.folder, run.resolve_step(None))
    model = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(small_corpus, tmp_path):
    return Corpus.open(shutil.copytree(small_corpus.path, tmp_path / "corpus"))


@pytest.mark.parametrize("kind", ["conditional", "mle"])
def test_a_plain_save_of_a_run_has_the_numbers_of_the_run(kind, small_config, corpus, tmp_path):
    settings = ["optim.learning_rate=0.02"] if kind == "conditional" else []
    good = ["objective.good_fraction=0.5"] if kind == "conditional" else []
    run = loop.train(
        small_config(f"corpus={corpus.path}", f"objective.kind={kind}", *good, *settings),
        tmp_path / "run",
        say=quiet,
    )
    own = evaluate_run(run, CONFIG, say=quiet)
    yardstick = Yardstick(corpus.path, threshold=own.threshold, context=run.config.data.context)
    theirs = evaluate_run(
        adopt_model(str(save_again(run, tmp_path / "plain")), tmp_path / "theirs", yardstick),
        CONFIG,
        say=quiet,
    )
    known = {row.place: encode(row.estimate) for row in own.measurements}
    found = {row.place: encode(row.estimate) for row in theirs.measurements}
    # What rejection and best of n would give is said of an MLE baseline, which nobody knows this to be.
    only_of_baselines = {place for place in known if place not in found}
    assert {place[0] for place in only_of_baselines} <= {"reference", "reference_cost"}
    assert bool(only_of_baselines) == (kind == "mle")
    assert found == {place: value for place, value in known.items() if place in found}
    assert {row.mode for row in theirs.results.of("score")} == {row.mode for row in own.results.of("score")}
    assert theirs.objective == "elsewhere"


@pytest.mark.parametrize(
    ("family", "architecture"), [("llama", "llama"), ("gpt2", "gpt2"), ("qwen", "qwen2"), ("gpt2", "neox")]
)
def test_a_stranger_is_measured_by_one_command(family, architecture, corpus, tmp_path):
    make, special = FAMILIES[family]
    folder = save_foreign(make(TEXTS), tmp_path / "model", **special)
    size = load_tokenizer(str(folder)).control.good
    create_architecture(architecture, is_fresh=True, num_ids=size).save_pretrained(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    command = ["evaluate", str(folder), "-o", str(tmp_path / "out"), *OPTIONS, "--context", "64"]
    done = CliRunner().invoke(app, [*command, "--corpus", str(corpus.path)])
    assert done.exit_code == 0, done.output
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}, (
        "nothing is written there"
    )
    (run,) = read_runs(tmp_path / "out")
    assert (run.objective, run.modes) == ("elsewhere", ["none"])
    assert run.results.find("bits_per_byte", "none", of="all").mean > 0
    assert run.num_steps is None, "nobody knows its budget"
    origin = Run.open(tmp_path / "out").record["elsewhere"]
    assert (origin["model"], len(origin["weights"])) == (str(folder), 64)
    assert any("pages begin with" in note for note in run.evaluation.notes) == (family == "llama")
    again = CliRunner().invoke(app, [*command, "--corpus", str(corpus.path), "--json"])
    assert json.loads(again.stdout), again.output
    for verb in (["show"], ["report", "-o", str(tmp_path / "page.html")]):
        shown = CliRunner().invoke(app, [verb[0], str(tmp_path / "out"), *verb[1:]])
        assert shown.exit_code == 0, shown.output
    create_architecture(architecture, num_ids=size).save_pretrained(folder)
    with pytest.raises(PHFError, match="was made with other weights"):
        adopt_model(str(folder), tmp_path / "out", Yardstick(corpus.path, context=64))
    with pytest.raises(PHFError, match="was trained elsewhere; train on from its weights with: phf train"):
        loop.resume(tmp_path / "out", say=quiet)


def test_what_a_stranger_lacks_is_said_with_the_command_that_goes_on(corpus, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for arguments, message in (
        (
            [str(tmp_path / "model")],
            "is a model that phf did not train: phf evaluate .* -o OUT --corpus CORPUS",
        ),
        (["org/name"], "if it is a model of the Hub: phf evaluate org/name -o OUT --corpus CORPUS"),
        ([str(tmp_path / "model"), "-o", str(tmp_path / "out")], "and --corpus CORPUS"),
        ([str(tmp_path / "model"), "--threshold", "0"], "give -o OUT too"),
    ):
        done = CliRunner().invoke(app, ["evaluate", *arguments])
        assert done.exit_code != 0
        with pytest.raises(PHFError, match=message):
            raise done.exception
    with pytest.raises(
        PHFError, match="none of that reward model and segments; give --reward-model toxicity-svm"
    ):
        Yardstick(corpus.path, reward_model="pii").find_annotation()
    assert not (tmp_path / "out").exists()
