"""Stopped at any moment, a training says what is true: how to go on. It finds its corpus where that has been moved."""

import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest
import torch
from command_processes import start_command
from compare_runs import assert_same_run, quiet, train, write_recipe
from transformers import GPT2Config, GPT2LMHeadModel

from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.folders import LOCK_FILE
from phf.train import gradients, loop
from phf.train.run import Run


def hang(*arguments, **options):
    time.sleep(60)


def hang_before_the_record():
    loop.create_model_and_head = hang


def hang_before_the_first_step():
    loop.open_loggers = hang


def hang_in_the_sixth_step():
    compute, count = gradients.Gradients.compute, iter(range(100))
    gradients.Gradients.compute = lambda *arguments: hang() if next(count) == 5 else compute(*arguments)


def wait_for(condition, command):
    wait_until(lambda: condition() or not command.is_running)
    assert condition(), command.finish()


def wait_until(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_its_record_the_same_command_begins_again(number, small_config, tmp_path):
    folder = tmp_path / "run"
    arguments = ["train", write_recipe(small_config(), tmp_path / "recipe.yaml"), "-o", folder]
    command = start_command(*arguments, prepare=hang_before_the_record)
    wait_for((folder / LOCK_FILE).exists, command)
    time.sleep(0.3)
    command.send_signal(number)
    code, errors = command.finish()
    assert (code, errors.splitlines()[-1]) == (128 + number, "stopped; the same command goes on from here")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("prepare", "reached", "numbers"),
    [
        (hang_before_the_first_step, "run.json", [signal.SIGINT]),
        (hang_before_the_first_step, "run.json", [signal.SIGTERM]),
        (hang_in_the_sixth_step, '"train", "step": 5,', [signal.SIGINT, signal.SIGINT]),
    ],
)
def test_stopped_without_saving_it_says_how_to_go_on_and_that_is_so(
    prepare, reached, numbers, small_config, tmp_path
):
    whole, folder = train(small_config(), tmp_path / "whole"), tmp_path / "run"
    recipe = write_recipe(small_config(), tmp_path / "recipe.yaml")
    command = start_command("train", recipe, "-o", folder, prepare=prepare)
    if reached == "run.json":
        wait_for((folder / reached).exists, command)
    else:
        wait_for(lambda: reached in read_text(folder / "metrics.jsonl"), command)
    for number in numbers:
        time.sleep(0.5)
        command.send_signal(number)
    code, errors = command.finish()
    assert (code, errors.splitlines()[-1]) == (
        128 + numbers[-1],
        f"stopped; go on with 'phf train --resume {folder}'",
    )
    assert "Traceback" not in errors
    assert_same_run(loop.resume(folder, say=quiet), whole)


def read_text(path):
    return path.read_text() if path.exists() else ""


def test_killed_before_its_record_the_same_command_trains(small_config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".run.json.0123abcd.tmp", LOCK_FILE):
        (folder / name).write_text('{"form')
    run = train(small_config(), folder)
    assert run.is_finished
    assert not list(folder.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_takes_its_trainings_with_it(number, small_config, tmp_path):
    config = small_config("objective.kind=mle", "tokens=1e9", "compile=off", "checkpoint_every=0")
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    sweep = start_command("sweep", recipe, "seed=0,1", "-o", tmp_path / "sweep")
    run = tmp_path / "sweep" / "seed=0"
    wait_for(lambda: read_text(run / "metrics.jsonl").count("\n") > 20, sweep)
    trainer = Path("/proc") / str(json.loads((run / LOCK_FILE).read_text())["pid"])
    assert trainer.exists()
    sweep.send_signal(number)
    code, errors = sweep.finish()
    if number == signal.SIGTERM:
        assert code == 128 + number
        assert errors.splitlines()[-1] == "stopped; the same command goes on from here"
    wait_until(lambda: not trainer.exists())
    assert Run.open(run).steps, "it has saved"
    assert not (run / LOCK_FILE).exists()
    assert not (tmp_path / "sweep" / "seed=1").exists()


def test_the_files_of_a_run_have_the_mode_that_the_umask_wants(small_config, tmp_path):
    before = os.umask(0o027)
    try:
        run = train(small_config(), tmp_path / "run")
    finally:
        os.umask(before)
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {"0o640"}


@pytest.fixture
def moved(small_config, small_corpus, tmp_path, monkeypatch):
    """A stopped run whose corpus was named by a relative path, and the place where that is; another working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_corpus.path, tmp_path / "project" / "corpus")
    run = train(small_config("corpus=project/corpus"), Path("project/runs/run"))
    shutil.rmtree(run.folder / "checkpoints" / "step-000012")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_a_corpus_is_found_from_the_runs_folder(moved):
    shutil.move(moved, moved.with_name("renamed"))
    run = Run.open(moved.with_name("renamed") / "runs" / "run")
    assert run.find_corpus() == moved.with_name("renamed") / "corpus"
    assert run.data().corpus.id == run.corpus_id
    assert loop.resume(run.folder, say=quiet).is_finished


def test_a_corpus_that_was_moved_alone_is_named(moved, small_config, tmp_path):
    run, new = Run.open(moved / "runs" / "run"), tmp_path / "elsewhere" / "new"
    shutil.move(moved / "corpus", new)
    remedy = rf"project/corpus holds no corpus any more; .*: phf train --resume {run.folder} corpus=NEW"
    with pytest.raises(PHFError, match=remedy):
        run.data()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "x"}\n{"text": "y"}\n')
    other = build_corpus([rows], moved / "corpus", validation_fraction=0)
    with pytest.raises(PHFError, match=rf"{other.path} is another corpus \({other.id}\) than"):
        loop.resume(run.folder, f"corpus={other.path}", say=quiet)
    assert loop.resume(run.folder, f"corpus={new}", say=quiet).is_finished
    assert Run.open(run.folder).config.corpus == str(new)
    assert Run.open(run.folder).id == run.id
    shutil.move(new, tmp_path / "newer")
    said = []
    loop.resume(run.folder, f"corpus={tmp_path / 'newer'}", say=said.append)
    assert "its corpus is now looked for at" in said[0]
    assert Run.open(run.folder).data().corpus.id == run.corpus_id
    Run.open(run.folder).check_config(small_config(f"corpus={tmp_path / 'newer'}"))


def test_the_model_that_a_run_starts_from_is_found_from_its_folder_and_another_is_refused(
    small_config, small_corpus, tmp_path, monkeypatch
):
    project, renamed = tmp_path / "project", tmp_path / "renamed"
    monkeypatch.chdir(project.parent)
    shutil.copytree(small_corpus.path, project / "corpus")
    for seed in (0, 1):
        torch.manual_seed(seed)
        GPT2LMHeadModel(
            GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=1, n_head=2)
        ).save_pretrained(project / f"gpt2-{seed}")
    run = train(small_config("corpus=project/corpus", "model.init=project/gpt2-0"), Path("project/runs/run"))
    kept = shutil.copytree(run.folder / "checkpoints" / "step-000012", tmp_path / "kept")
    project.rename(renamed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    last = renamed / "runs" / "run" / "checkpoints" / "step-000012"
    shutil.rmtree(last)
    run = loop.resume(renamed / "runs" / "run", say=quiet)
    assert (last / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()
    assert run.config.model.init == "project/gpt2-0"
    shutil.rmtree(last)
    shutil.rmtree(renamed / "gpt2-0")
    (renamed / "gpt2-1").rename(renamed / "gpt2-0")
    with pytest.raises(PHFError, match=r"model.init=project/gpt2-0 is not the model that .* started from"):
        loop.resume(run.folder, say=quiet)
    assert Run.open(run.folder).load_model(8) is not None, "to read the run it is not needed"
    assert run.data() is not None
