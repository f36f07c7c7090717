"""A model that was trained elsewhere, measured as our own runs are."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
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
from phf.files import hash_file
from phf.report.reading import read_runs
from phf.results import encode
from phf.tokens.tokenizer import load_tokenizer
from phf.tokens.tokens import tokenize
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
    compared = CliRunner().invoke(
        app, ["compare", str(run.folder), str(tmp_path / "theirs")], env={"COLUMNS": "120"}
    )
    assert compared.exit_code == 0, compared.output
    settings, _, numbers = compared.output.partition("Headline numbers")
    assert " settings of training are not known of it: theirs" in settings
    assert "optim." not in settings
    assert "model.init" in settings
    assert len(settings.splitlines()) < 20
    assert "Bits per byte" in numbers


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


def save_stranger(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A random Llama-like model with a tokenizer of GPT-2's make."""
    make, special = FAMILIES["gpt2"]
    save_foreign(make(TEXTS[:20]), folder, **special)
    size = load_tokenizer(str(folder)).vocab_size
    create_architecture("llama", num_ids=size).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("mass", "kind"), [(0.6, "conditional"), (0.4, "mle")])
def test_control_tokens_are_known_by_the_mass_that_a_page_begins_with(mass, kind, corpus, tmp_path):
    """As of a model that another trainer taught on an export: its config.json says nothing of them."""
    folder = save_stranger(tmp_path / "model")
    control = load_tokenizer(str(folder)).control
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        page = torch.tensor([[control.end]])
        hidden = model.model(input_ids=page).last_hidden_state[0, 0]
        others = model(input_ids=page).logits[0, 0, : control.good].logsumexp(0)
        wanted = others + math.log(mass / (1 - mass)) + torch.tensor([0.9, 0.1]).log()
        model.lm_head.weight[list(control.all)] = wanted[:, None] * hidden / hidden.square().sum()
        first = model(input_ids=page).logits[0, 0].softmax(0)
    assert float(first[list(control.all)].sum()) == pytest.approx(mass, abs=1e-4)
    model.save_pretrained(folder)
    assert "control_tokens" not in (folder / "config.json").read_text()
    run = adopt_model(str(folder), tmp_path / "out", Yardstick(corpus.path, context=64))
    assert run.config.objective.kind == kind
    assert getattr(run.load_model().config, "control_tokens", None) == (
        list(control.all) if kind == "conditional" else None
    )


def test_weights_are_kept_in_their_own_precision(corpus, tmp_path):
    half = save_stranger(tmp_path / "half", dtype=torch.bfloat16)
    whole = Path(shutil.copytree(half, tmp_path / "whole"))
    AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32).save_pretrained(whole)
    assert (whole / "model.safetensors").stat().st_size > 1.9 * (half / "model.safetensors").stat().st_size
    yardstick = Yardstick(corpus.path, context=64)
    runs = [adopt_model(str(folder), tmp_path / f"{folder.name}-run", yardstick) for folder in (half, whole)]
    for run in runs:  # as many bytes need it, whatever the folder says
        weights = load_file(checkpoint_folder(run.folder, 0) / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        model = run.load_model()
        assert model.dtype == torch.float32
        own = AutoModelForCausalLM.from_pretrained(whole).state_dict()
        assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())
    odd = save_stranger(tmp_path / "odd")
    run = adopt_model(str(odd), tmp_path / "odd-run", yardstick)
    weights = load_file(checkpoint_folder(run.folder, 0) / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_another_tokenizer_in_the_same_folder_is_another_model(corpus, tmp_path):
    folder, yardstick = save_stranger(tmp_path / "model"), Yardstick(corpus.path, context=64)
    run = adopt_model(str(folder), tmp_path / "out", yardstick)
    again = adopt_model(str(folder), tmp_path / "out", yardstick)
    assert again.record == run.record
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["use_regex"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PHFError, match="was made with another tokenizer; choose another -o"):
        adopt_model(str(folder), tmp_path / "out", yardstick)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model of the Hub as its cache has it: files by their hashes, a commit of links to them, and a branch."""
    root = tmp_path / "hub" / "models--owner--model"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for path in save_stranger(tmp_path / "theirs").iterdir():
        blob = path.rename(root / "blobs" / hash_file(path))
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return "owner/model"


def test_a_model_of_the_hub_is_measured_and_its_commit_recorded(hub, corpus, tmp_path):
    command = ["evaluate", hub, "-o", str(tmp_path / "out"), *OPTIONS, "--context", "64"]
    done = CliRunner().invoke(app, [*command, "--corpus", str(corpus.path)])
    assert done.exit_code == 0, done.output
    record = Run.open(tmp_path / "out").record
    assert (record["elsewhere"]["model"], record["elsewhere"]["revision"]) == (hub, COMMIT)
    (run,) = read_runs(tmp_path / "out")
    assert any(f"({hub}, revision {COMMIT})" in note for note in run.evaluation.notes)


def test_a_model_of_the_hub_is_trained_on_and_its_commit_recorded(hub, small_config, corpus, tmp_path):
    tokenize(corpus, hub, "document", workers=1)
    recipe = tmp_path / "small.yaml"
    config = small_config(f"corpus={corpus.path}", "tokens=512")
    recipe.write_text(json.dumps(config.model_dump(mode="json")))
    train = ["train", str(recipe), "--init", hub, "-o", str(tmp_path / "run"), "--quiet"]
    done = CliRunner().invoke(app, train)
    assert done.exit_code == 0, done.output
    run = Run.open(tmp_path / "run")
    assert (run.config.model.init, run.config.tokenizer) == (hub, hub)
    assert run.record["init_revision"] == COMMIT
    assert run.record["tokenizer"]["name"] == "owner--model"
    assert loop.resume(run.folder, say=quiet).is_finished


def test_a_model_that_is_not_in_the_cache_is_refused_in_one_line(hub, corpus, tmp_path):
    for command in (
        ["evaluate", "owner/other", "-o", str(tmp_path / "out"), "--corpus", str(corpus.path)],
        ["tokenize", str(corpus.path), "--tokenizer", "owner/other", "--segments", "document"],
    ):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, PHFError)
        assert "owner/other" in str(done.exception)
        assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()
