"""Two processes (gloo): the run of one process, and exact when a rank dies."""

import shutil
import signal
import socket

import pytest
import torch
from command_processes import start_command, wait_for_step
from compare_runs import assert_same_run, train, weights, write_recipe

from phf.errors import PHFError
from phf.train.data import open_data
from phf.train.distributed import Ranks, choose_data_parallel, is_restart, join_ranks
from phf.train.run import Run


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(size, *arguments, **environment):
    """`phf train` in several processes with the environment that torchrun gives them."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        **environment,
    }
    return [
        start_command("train", *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(size)
    ]


def finish(processes):
    """Exit codes and stderr of each rank."""
    ends = [process.finish() for process in processes]
    return [code for code, _ in ends], [errors for _, errors in ends]


def run_ranks(size, *arguments, **environment):
    codes, errors = finish(start_ranks(size, *arguments, **environment))
    assert codes == [0] * size, "\n".join(errors)
    return errors


def losses(run):
    return [line["loss"] for line in run.read_metrics() if line["kind"] == "train"]


def assert_like(run, other, tolerance):
    """The same loss curve and weights, up to rounding."""
    assert losses(run) == pytest.approx(losses(other), rel=tolerance)
    ours, theirs = weights(run, run.num_steps), weights(other, other.num_steps)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=50 * tolerance)


@pytest.mark.slow
def test_two_processes_are_one_and_survive_the_death_of_either(small_config, tmp_path):
    config = small_config(
        "objective.kind=awr",
        "tokens=30720",
        "optim.micro_batch_blocks=1",
        "validate_every=20",
        "checkpoint_every=20",
    )
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    one = train(config, tmp_path / "one")
    errors = run_ranks(2, recipe, "-o", tmp_path / "two")
    two = Run.open(tmp_path / "two")
    assert_like(two, one, 2e-4)
    assert errors[1] == "", "the first rank speaks for all"
    folder = tmp_path / "killed"
    processes = start_ranks(2, recipe, "-o", folder)
    wait_for_step(folder, 47, processes[0])
    processes[1].send_signal(signal.SIGKILL)
    codes, errors = finish(processes)
    assert codes == [2, -signal.SIGKILL]
    assert errors[0].splitlines()[-1].startswith("error: rank 0 lost its connection to the other processes")
    # The same command, as torchrun --max-restarts starts it, goes on; it is the undisturbed run of two, bit for bit.
    errors = run_ranks(2, recipe, "-o", folder, TORCHELASTIC_RESTART_COUNT="1")
    assert "going on from step 40 of 120" in errors[0]
    assert_same_run(Run.open(folder), two)


@pytest.mark.slow
def test_sharded_processes_are_one_and_resume_exactly(small_config, tmp_path):
    config = small_config(
        "objective.kind=awr",
        "tokens=7680",
        "optim.micro_batch_blocks=1",
        "data_parallel=fsdp",
        "keep_checkpoints=9",
    )
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    run_ranks(2, recipe, "-o", tmp_path / "two")
    two = Run.open(tmp_path / "two")
    assert_like(two, train(config, tmp_path / "one"), 2e-4)
    assert two.load_model() is not None
    folder = tmp_path / "stopped"
    shutil.copytree(two.folder, folder)
    run_ranks(2, "--resume", f"{folder}@12")
    assert_same_run(Run.open(folder), two)
    run_ranks(1, "--resume", f"{folder}@12")
    assert_like(Run.open(folder), two, 2e-4)


@pytest.mark.slow
def test_a_stop_reaches_all_ranks_and_one_process_goes_on_in_the_same_order(small_config, tmp_path):
    config = small_config("tokens=30720", "checkpoint_every=20")
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    folder = tmp_path / "run"
    processes = start_ranks(2, recipe, "-o", folder)
    wait_for_step(folder, 33, processes[0])
    processes[1].send_signal(signal.SIGTERM)  # one rank alone
    codes, _ = finish(processes)
    assert codes == [143, 143]
    assert 33 <= Run.open(folder).steps[-1] < 120
    errors = run_ranks(1, "--resume", folder)
    assert "going on from step" in errors[0]
    assert_like(Run.open(folder), train(config, tmp_path / "one"), 2e-4)


def test_the_ranks_rows_make_the_batch_of_one_process(small_config):
    blocks = open_data(small_config()).blocks("train")
    whole = blocks.batch(5, 8)
    for size in (1, 2, 4, 8):
        parts = [blocks.rows(Ranks(rank, size).rows(5, 8)).ids for rank in range(size)]
        assert (torch.cat([torch.from_numpy(part) for part in parts]).numpy() == whole.ids).all()


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(
            PHFError, match=r"batch_blocks=4 does not divide among 3 processes; give a multiple of 3"
        ),
        join_ranks(4),
    ):
        pass


def test_a_restart_is_told_by_torchrun_or_slurm(monkeypatch):
    assert not is_restart()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert not is_restart()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_restart()


def test_a_restart_with_other_settings_is_refused(small_config, tmp_path, monkeypatch):
    train(small_config(), tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(small_config(), tmp_path / "run").is_finished
    with pytest.raises(PHFError, match="was trained with other settings"):
        train(small_config("seed=1"), tmp_path / "run")


def test_small_models_are_replicated():
    assert choose_data_parallel("auto", 10**9, Ranks()) == "none"
    assert choose_data_parallel("auto", 10**9, Ranks(0, 2)) == "ddp"
    assert choose_data_parallel("fsdp", 10**6, Ranks(0, 2)) == "fsdp"
