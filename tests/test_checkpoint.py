"""Checkpoints are written beside training: what lies on the disk is the step's own state, and a failed write is said."""

import resource
import signal
import sys
import time

import pytest
import torch
from command_processes import start_command
from compare_runs import assert_same_run, assert_same_tensors, quiet, read_tensors, train, write_recipe
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from phf.errors import PHFError
from phf.files import read_json
from phf.train import checkpoint, loop, sharded
from phf.train.checkpoint import checkpoint_folder, list_checkpoints, remove_checkpoint
from phf.train.distributed import Ranks
from phf.train.sharded import HostMemory, Part, TensorFiles, assign_owners


def slow_down(monkeypatch, seconds):
    """Every file of tensors takes some time to be written; returns the paths that were begun and finished."""
    begun, finished = [], []

    def slow_save(tensors, path, metadata):
        begun.append(path)
        time.sleep(seconds)
        save_file(tensors, path, metadata)
        finished.append(path)

    monkeypatch.setattr(sharded, "save_file", slow_save)
    return begun, finished


def test_a_checkpoint_holds_its_own_step_however_late_it_is_written(small_config, tmp_path, monkeypatch):
    config = small_config("objective.kind=awr", "keep_checkpoints=9")
    prompt = train(config, tmp_path / "prompt")
    begun, finished = slow_down(monkeypatch, 0.2)
    being_written = []
    late = loop.train(
        config,
        tmp_path / "late",
        say=quiet,
        progress=lambda _, done, total: being_written.append(len(begun) - len(finished)),
    )
    assert being_written[4:8] == [1] * 4, "steps 5 to 8 are taken while step 4 is written"
    for step in (4, 8, 12):
        manifests = (
            read_json(checkpoint_folder(run.folder, step) / "checkpoint.json") for run in (late, prompt)
        )
        assert next(manifests)["state"] == next(manifests)["state"]
        for kind in ("model", "optimizer", "value_head"):
            assert_same_tensors(*(read_tensors(run, step, kind) for run in (late, prompt)))


def test_a_signal_waits_for_its_checkpoint(small_config, tmp_path, monkeypatch):
    slow_down(monkeypatch, 0.2)

    def stop(description, done, total):
        if done == 6:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Stopped, match="saved at step 6"):
        loop.train(small_config(), tmp_path / "run", say=quiet, progress=stop)
    assert list_checkpoints(tmp_path / "run") == [4, 6]


@pytest.fixture
def limit_file_size(monkeypatch):
    """Returns a function after which no file may grow beyond some bytes, as if the disk were full."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # one that is cut off would be taken for whole
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("full_from", "failed", "last_step"), [(5, 8, 11), (11, 12, 12)])
def test_a_full_disk_stops_the_run_with_one_line(
    full_from, failed, last_step, small_config, tmp_path, limit_file_size
):
    config = small_config("validate_every=0")
    whole, folder, steps = train(config, tmp_path / "whole"), tmp_path / "run", []

    def fill(description, done, total):
        steps.append(done)
        if done == full_from:
            while failed - 4 not in list_checkpoints(folder):
                time.sleep(0.001)
            limit_file_size(30_000)
        if done > failed:
            time.sleep(0.1)

    with pytest.raises(
        PHFError, match=rf"step-{failed:06} could not be written: .*File too large.* --resume .*run'"
    ) as error:
        loop.train(config, folder, say=quiet, progress=fill)
    limit_file_size(resource.RLIM_INFINITY)
    assert "\n" not in str(error.value)
    assert steps[-1] <= last_step, "it does not train on until the next checkpoint"
    assert list_checkpoints(folder)[-1] == failed - 4
    assert_same_run(loop.resume(folder, say=quiet), whole)
    assert not list(folder.glob("checkpoints/.*")), "what was left half written is gone"


def hang_at_the_third_file():
    """Step 4's weights and optimizer states are written; step 8's first file is there, and then nothing."""
    count = iter(range(100))

    def hang(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if next(count) == 2:
            time.sleep(100)

    sharded.save_file = hang


def wait_for(path, command):
    while not path.exists():
        assert command.is_running, command.finish()
        time.sleep(0.002)


def test_killed_while_a_checkpoint_is_written_the_one_before_is_gone_on_from(small_config, tmp_path):
    config = small_config("keep_checkpoints=1")
    whole, folder = train(config, tmp_path / "whole"), tmp_path / "run"
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    command = start_command("train", recipe, "-o", folder, prepare=hang_at_the_third_file)
    wait_for(folder / "checkpoints/.step-000008.tmp/model.safetensors", command)
    command.send_signal(signal.SIGKILL)
    assert command.finish()[0] == -signal.SIGKILL
    assert list_checkpoints(folder) == [4]
    (folder / "checkpoints/.step-000002.tmp").mkdir()  # an earlier kill, while that one was removed
    said = []
    assert_same_run(loop.resume(folder, say=said.append), whole)
    assert "run: going on from step 4 of 12" in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000012"]


def test_a_checkpoint_half_removed_does_not_count(small_config, tmp_path, monkeypatch):
    run = train(small_config(), tmp_path / "run")

    def die(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(run.folder, 8)
    assert run.steps == [12]


def test_the_checkpoint_gone_on_from_is_not_written_again(small_config, tmp_path):
    run = train(small_config("keep_checkpoints=9"), tmp_path / "run")
    path = checkpoint_folder(run.folder, 8) / "checkpoint.json"
    before = path.stat()
    loop.resume(run.folder, step=8, say=quiet)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_checkpoint_of_one_process_is_a_plain_folder(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    folder = checkpoint_folder(run.folder, 12)
    assert {path.name for path in folder.iterdir()} - {"generation_config.json"} == {
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "checkpoint.json",
    }
    model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values())
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.model.embed_tokens.weight is model.lm_head.weight
    assert "lm_head.weight" not in load_file(folder / "model.safetensors"), "tied weights are written once"


def test_memory_for_copies_is_kept():
    memory, tensors = HostMemory(), {"a": torch.ones(3), "b": torch.zeros(2, 2).t()}
    first = memory.take_part(tensors, Ranks(), is_whole=True)
    tensors["a"].add_(1)
    second = memory.take_part(tensors, Ranks(), is_whole=True)
    assert [first.tensors[name].data_ptr() for name in "ab"] == [
        second.tensors[name].data_ptr() for name in "ab"
    ]
    assert second.tensors["a"].tolist() == [2, 2, 2]


def test_ranks_write_about_as_much_each():
    sizes = {"embedding": 100, "a": 10, "b": 40, "c": 50, "d": 10}
    assert assign_owners(sizes, 1) == dict.fromkeys(sizes, 0)
    assert assign_owners(sizes, 2) == {"embedding": 0, "a": 1, "b": 1, "c": 1, "d": 0}


def test_slices_of_any_ranks_are_joined_from_the_files_that_are_asked_for(tmp_path):
    whole = torch.arange(21.0).view(7, 3)
    for name, offset, piece in (("x-1", [0, 0], whole[:4]), ("x-2", [4, 0], whole[4:])):
        Part({"w": piece.contiguous()}, {"w": offset}).write(tmp_path / f"{name}.safetensors")
    Part({"w": torch.zeros(2)}, {"w": [0]}).write(tmp_path / "other")
    files = TensorFiles(tmp_path, "x*.safetensors")
    assert files.shapes == {"w": (7, 3)}
    target = torch.empty(7, 3)
    files.read_into({"w": target})
    assert torch.equal(target, whole)
    assert TensorFiles(tmp_path, "y*.safetensors").shapes == {}


def test_weights_of_another_architecture_are_refused(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    run.record["config"]["model"]["width"] = 64
    run.write()
    with pytest.raises(
        PHFError, match=r"weights in .*step-000008 do not fit the model of run.json: model\.embed"
    ):
        loop.resume(run.folder, step=8, say=quiet)
    assert run.steps == [8, 12]
