"""Killed, stopped, out of memory, damaged: a run goes on as if nothing had happened, or says what to do."""

import random
import signal

import pytest
import torch
from command_processes import start_command, wait_for_step
from compare_runs import assert_same_run, quiet, train, write_recipe
from typer.testing import CliRunner

from phf.cli import app
from phf.errors import PHFError
from phf.train import gradients, loop
from phf.train.checkpoint import checkpoint_folder
from phf.train.data import open_data
from phf.train.run import Run
from phf.train.signals import Stopped, StopSignals


def signal_at_step(process, folder, step, number):
    """Send a signal once the run has logged a step; its exit code and stderr."""
    wait_for_step(folder, step, process)
    process.send_signal(number)
    return process.finish()


@pytest.mark.slow
def test_a_run_killed_and_stopped_at_random_steps_is_the_uninterrupted_one_bit_for_bit(
    small_config, tmp_path
):
    rng = random.Random(0)
    per_epoch = open_data(small_config()).training_blocks().num_tokens_per_epoch
    per_step = 16 * 64
    config = small_config(
        "optim.batch_blocks=16",
        f"tokens={3 * per_epoch}",
        "model.width=64",
        "model.layers=2",
        "validate_every=7",
        "checkpoint_every=10",
    )
    whole = train(config, tmp_path / "whole")
    epoch_end, num_steps = per_epoch // per_step, whole.num_steps
    assert epoch_end < num_steps / 3
    folder = tmp_path / "stopped"
    recipe = write_recipe(config, tmp_path / "recipe.yaml")

    first = epoch_end - rng.randint(2, 8)
    code, errors = signal_at_step(start_command("train", recipe, "-o", folder), folder, first, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "Traceback" not in errors

    # SIGTERM saves where it is: nothing is lost, and nobody takes the run for finished.
    second = 2 * epoch_end + rng.randint(1, 8)
    code, errors = signal_at_step(start_command("train", "--resume", folder), folder, second, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    stopped_at = Run.open(folder).steps[-1]
    assert second <= stopped_at < num_steps
    assert errors.splitlines()[-1] == (
        f"stopped: stopped and saved at step {stopped_at} of {num_steps}; go on with 'phf train --resume {folder}'"
    )
    assert Run.open(folder).read_metrics()[-1]["step"] == stopped_at

    third = stopped_at + rng.randint(2, 8)
    code, errors = signal_at_step(start_command("train", "--resume", folder), folder, third, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in errors

    assert_same_run(loop.resume(folder, say=quiet), whole)


def test_the_first_ctrl_c_is_noted_and_the_second_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_in_the_last_step_finishes_the_run(small_config, tmp_path):
    def stop(description, done, total):
        if done == total:
            signal.raise_signal(signal.SIGTERM)

    assert loop.train(small_config(), tmp_path / "run", say=quiet, progress=stop).is_finished


def test_an_earlier_checkpoint_can_be_gone_on_from(small_config, tmp_path):
    config = small_config("keep_checkpoints=9", "validate_every=4")
    whole, other = train(config, tmp_path / "whole"), train(config, tmp_path / "other")
    damaged = checkpoint_folder(other.folder, 12) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(PHFError, match=r"model.safetensors is damaged.*--resume .*other@8'"):
        other.load_model()
    said = []
    resumed = loop.resume(other.folder, step=4, say=said.append)
    assert [line for line in said if "removed" in line] == [
        f"other: removed the later checkpoint at step {step}" for step in (8, 12)
    ]
    assert_same_run(resumed, whole)
    with pytest.raises(PHFError, match="no checkpoint at step 5; it has 4, 8, 12"):
        loop.resume(other.folder, step=5, say=quiet)


def test_the_command_takes_a_run_and_a_step(small_config, tmp_path):
    config = small_config("keep_checkpoints=9")
    whole, other = train(config, tmp_path / "whole"), train(config, tmp_path / "other")
    result = CliRunner().invoke(app, ["train", "--resume", f"{other.folder}@8"])
    assert result.exit_code == 0, result.output
    assert "going on from step 8 of 12" in result.output
    assert_same_run(Run.open(other.folder), whole)


def limit_memory(monkeypatch, max_blocks, error):
    """No micro-batch of more than `max_blocks` blocks finds memory, as if in the middle of the forward pass."""
    sizes = []
    loss_sum = gradients.loss_sum

    def limited(model, value_head, data, batch, precision):
        sizes.append(len(batch.ids))
        if len(batch.ids) > max_blocks:
            raise error
        return loss_sum(model, value_head, data, batch, precision)

    monkeypatch.setattr(gradients, "loss_sum", limited)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    error, small_config, tmp_path, monkeypatch
):
    config = small_config("optim.batch_blocks=12")
    whole = train(config, tmp_path / "whole")
    asked = train(small_config("optim.batch_blocks=12", "optim.micro_batch_blocks=3"), tmp_path / "asked")
    sizes = limit_memory(monkeypatch, 4, error)
    said = []
    run = loop.train(config, tmp_path / "limited", say=said.append)
    assert sizes[:7] == [12, 6, 3, 3, 3, 3, 3]
    assert [line for line in said if "memory" in line] == [
        f"limited: out of memory with micro-batches of {size} blocks: going on with {size // 2}; "
        "batch and loss stay the same"
        for size in (12, 6)
    ]
    assert_same_run(run, asked)
    losses = [
        [line["loss"] for line in one.read_metrics() if line["kind"] == "train"] for one in (run, whole)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_gradients_of_micro_batches_that_fitted_are_not_counted_twice(small_config, tmp_path, monkeypatch):
    asked = train(small_config("optim.micro_batch_blocks=1"), tmp_path / "asked")
    loss_sum, calls = gradients.loss_sum, []

    def limited(*arguments):
        calls.append(1)
        if len(calls) == 2:  # the second half of the first batch
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss_sum(*arguments)

    monkeypatch.setattr(gradients, "loss_sum", limited)
    assert_same_run(train(small_config("optim.micro_batch_blocks=2"), tmp_path / "limited"), asked)


def test_a_resumed_run_remembers_the_size_that_memory_allowed(small_config, tmp_path, monkeypatch):
    sizes = limit_memory(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory."))
    whole = train(small_config(), tmp_path / "whole")
    stopped = tmp_path / "stopped"

    def stop(description, done, total):
        if done == 7:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match=r"saved at step 7 of 12; go on with 'phf train --resume .*stopped'"):
        loop.train(small_config(), stopped, say=quiet, progress=stop)
    sizes.clear()
    assert_same_run(loop.resume(stopped, say=quiet), whole)
    assert max(sizes) == 2, "the size that failed is not tried again"


def test_out_of_memory_at_one_block_says_so(small_config, tmp_path, monkeypatch):
    limit_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(
        PHFError, match=r"out of memory with micro-batches of 1 block of 64 tokens; give a smaller"
    ):
        train(small_config(), tmp_path / "run")


def test_another_error_is_not_taken_for_a_lack_of_memory(small_config, tmp_path, monkeypatch):
    limit_memory(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(small_config(), tmp_path / "run")
