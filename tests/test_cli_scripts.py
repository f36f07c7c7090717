"""The command line in a script: numbers as JSON with nothing else on stdout, quiet, -h, --version, completion."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import typer
from rich.table import Table

import phf
from phf import cli
from phf.demo import DemoResult
from phf.release.checks import Finding

WITHOUT_NUMBERS = {"report", "explore", "corpus export"}
SAMPLING = ["--num-samples", "4", "--max-new-tokens", "12"]
BUDGET = ["--set", "sampling.min_new_tokens=1"]


def call(*arguments):
    """Exit code, stdout and stderr of a command."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["phf", *map(str, arguments)]
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.argv = before
    return code, out.getvalue(), err.getvalue()


def read(*arguments):
    """What a command says with --json: all of its stdout."""
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def settings(small_corpus):
    return [
        f"corpus={small_corpus.path}", "reward_model=toxicity-svm", "segments=document", "tokenizer=train:512",
        "objective.threshold=null", "objective.good_fraction=0.5",
        "tokens=500", "model.preset=1M", "model.layers=1", "model.width=32", "model.heads=2", "data.context=64",
        "optim.batch_blocks=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A run folder made by `phf train --json`, evaluated."""
    folder = tmp_path_factory.mktemp("scripts") / "run"
    trained = read("train", "toxicity", *settings, "-o", folder)
    assert trained["run"] == str(folder)
    assert trained["step"] == trained["validation"]["step"] == 2
    rows = read("evaluate", folder, *SAMPLING, *BUDGET)
    assert {row["run"] for row in rows} == {"run"}
    assert {"measure", "mean", "low", "high"} <= rows[0].keys()
    return folder


def list_commands():
    def walk(command, path):
        if (below := getattr(command, "commands", None)) is None:
            yield " ".join(path), command
        for name, own in (below or {}).items():
            yield from walk(own, [*path, name])

    return dict(walk(typer.main.get_command(cli.app), []))


def test_every_command_that_prints_numbers_has_json_and_all_can_be_quiet():
    options = {
        name: {option for own in command.get_params(typer.Context(command)) for option in own.opts}
        for name, command in list_commands().items()
    }
    assert {name for name, own in options.items() if "--json" not in own} == WITHOUT_NUMBERS
    assert all("--quiet" in own for own in options.values())


@pytest.mark.parametrize("command", ["", "corpus", "release", *list_commands()])
def test_h_is_help(command):
    assert call(*command.split(), "-h") == call(*command.split(), "--help")
    assert call(*command.split(), "-h")[1].startswith("Usage: phf")


def test_the_version_is_said():
    assert call("--version") == (0, f"phf {phf.__version__}\n", "")


def test_a_shell_completes_commands():
    asked = {"_PHF_COMPLETE": "complete_bash", "COMP_WORDS": "phf corpus b", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'phf'; from phf.cli import main; main()"],
        env={**os.environ, **asked}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["build", "balance"]


def test_quiet_leaves_results_and_errors(tmp_path, small_corpus):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    loud = call("corpus", "build", tmp_path / "a.jsonl", "-o", tmp_path / "loud")
    assert "next: " in loud[1]
    assert loud[2] != ""
    for place, arguments in enumerate((["--quiet", "corpus", "build"], ["corpus", "build", "--quiet"])):
        code, out, err = call(*arguments, tmp_path / "a.jsonl", "-o", tmp_path / str(place))
        assert (code, err) == (0, "")
        assert out == loud[1].partition("next: ")[0].replace("loud", str(place))
    other = ("--max-documents", "1")
    code, out, err = call("corpus", "build", "--quiet", tmp_path / "a.jsonl", *other, "-o", tmp_path / "0")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert (
        call("annotate", small_corpus.path, "-r", "toxicity-svm", "-s", "document")[1].count("next: ") == 1
    ), "quiet is of one command"


def test_a_corpus_as_json(tmp_path, small_corpus):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": 3}\n')
    built = read("corpus", "build", tmp_path / "a.jsonl", "-o", tmp_path / "corpus")
    assert (built["num_documents"], built["sources"][0]["bad_row_reasons"]) == (
        2,
        {"text is not a string": 1},
    )
    model = ["-r", "toxicity-svm", "-s", "document"]
    scored = read("annotate", tmp_path / "corpus", *model, "--workers", "1")
    assert (scored["num_segments"], scored["num_scored_now"], scored["unscored"]) == (2, 2, {})
    tokens = read("tokenize", small_corpus.path, "-t", "train:512", "-s", "document")
    assert tokens["num_segments"] == small_corpus.num_documents
    assert read("corpus", "stats", tmp_path / "corpus")["annotations"][0]["num_segments"] == 2
    balanced = read(
        "corpus", "balance", small_corpus.path, *model, "--threshold", "0.5", "-o", tmp_path / "b"
    )
    assert 0 < balanced["num_documents"] < small_corpus.num_documents
    call("corpus", "export", tmp_path / "corpus", "-o", tmp_path / "out", "-f", "jsonl", *model)
    imported = read("corpus", "import", tmp_path / "out" / "data", "-o", tmp_path / "back", "-f", "jsonl")
    assert [own["num_segments"] for own in imported["annotations"]] == [2]


def test_a_run_as_json(run, settings, tmp_path):
    shown = read("show", run)
    compared = read("compare", run, shutil.copytree(run, tmp_path / "other"))["measured"]
    assert shown == [row for row in compared if row["run"] == "run"]
    assert len(compared) == 2 * len(shown)
    assert [sample["mode"] for sample in read("sample", run, *SAMPLING)] == ["good"] * 4
    plan = read("train", "toxicity", *settings, "--dry-run")
    assert plan["num_tokens"] == 2 * 4 * 64
    assert plan["seconds"] > 0


def test_a_release_as_json(run, tmp_path, monkeypatch):
    made = read("release", run, "-o", tmp_path / "release", "--license", "mit")
    assert made["num_bytes"] > 0
    upload = read("push", tmp_path / "release", "me/model")
    assert upload["sent_to"] is None
    assert sum(size for _, size in upload["files"]) > 0
    found = [Finding("tokenizer", "ok", "one"), Finding("text", "FAILED", "two")]
    monkeypatch.setattr("phf.api.verify_release", lambda *_, **__: iter(found))
    code, out, err = call("release", "verify", tmp_path / "release", "--json")
    assert (code, [own["outcome"] for own in json.loads(out)]) == (1, ["ok", "FAILED"])
    assert "1 check failed" in err


def test_an_attack_as_json(run, tmp_path):
    settings = ["steps=[1]", "sampling.min_new_tokens=1", "sampling.max_new_tokens=12"]
    small = ["--num-samples", "4", "--num-texts", "4", *(word for own in settings for word in ("--set", own))]
    results = read("attack", run, "-o", tmp_path / "attack", "--attack", "soft:tokens=2", *small)
    assert results["targets"][0]["name"] == "run"


def test_reward_models_as_json(tmp_path, monkeypatch):
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    rows = [
        {"text": f"{word} {i}", "label": int(word == "damn")} for i in range(60) for word in ("damn", "kind")
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = read("reward", "train", tmp_path / "labels.jsonl", "-o", tmp_path / "reward")
    assert made["reward_model"]["name"] == "reward"
    [check] = read("reward", "check", tmp_path / "reward")
    assert check["measurements"]
    monkeypatch.setattr("phf.reward_models.speed.CARDS", ())
    assert read("reward", "list") == []


def test_a_sweep_as_json(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "phf.train.sweep._launch", lambda launcher, commands, workers: [(c, "x") for c in commands]
    )
    code, out, err = call("sweep", "toxicity", *settings, "seed=0,1", "-o", tmp_path / "sweep", "--json")
    assert code == 1
    assert "failed: seed=0: x" in err
    assert json.loads(out)["settings"][0]["num_failed"] == 2


def test_a_demo_and_the_cache_as_json(tmp_path, monkeypatch):
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    assert read("cache", "clear") == {"path": str(tmp_path / "cache"), "num_bytes": 0, "left_alone": []}
    (tmp_path / "summary.json").write_text('[{"mode": "good"}]\n')
    result = DemoResult(Table(), tmp_path / "summary.json", tmp_path / "report.html", [])
    monkeypatch.setattr("phf.demo.run_demo", lambda *_, **__: result)
    assert read("demo") == [{"mode": "good"}]
