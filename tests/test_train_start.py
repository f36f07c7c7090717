"""`--init RUN@STEP`: another run's weights, the next tokens, another objective."""

import numpy as np
import pytest
import torch
from compare_runs import assert_same_run, quiet, train, weights, without_speed
from safetensors.torch import load_file
from typer.testing import CliRunner

from phf.cli import app
from phf.errors import PHFError
from phf.files import write_json
from phf.records import RUN_VERSION, upgrade_run
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder
from phf.train.distributed import Ranks
from phf.train.run import Run
from phf.train.start import load_start_config


@pytest.fixture
def mle(small_config, tmp_path):
    """An MLE run of 12 steps with all its checkpoints: 4, 8, 12."""
    return train(small_config("objective.kind=mle", "keep_checkpoints=9"), tmp_path / "mle")


def start_from(run, step, *overrides):
    return load_start_config(None, list(overrides), f"{run.folder}@{step}")


def lines_from(run, step):
    return [line for line in without_speed(run) if line["step"] > step]


def test_mle_gone_on_with_by_mle_is_the_uninterrupted_run_bit_for_bit(mle, tmp_path):
    said = []
    run = loop.train(start_from(mle, 8), tmp_path / "further", say=said.append)
    assert lines_from(run, 8) == lines_from(mle, 8)
    assert lines_from(run, 0) == lines_from(run, 8), "the other run's steps are not taken again"
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(checkpoint_folder(one.folder, 12) / name) for one in (run, mle))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert (
        f"further: starts from {mle.folder} at step 8 (mle) and goes on with the next tokens of its data order: "
        "token 2,048 of 3,072, step 8" in said
    )
    assert "further: optimizer states: kept from mle" in said
    assert run.record["start"]["step"] == 8


def test_fresh_optimizer_states_make_another_run(mle, tmp_path):
    said = []
    config = load_start_config(None, [], f"{mle.folder}@8", reset_optimizer=True)
    run = loop.train(config, tmp_path / "fresh", say=said.append)
    assert "fresh: optimizer states: fresh" in said
    assert lines_from(run, 8) != lines_from(mle, 8)
    steps = load_file(checkpoint_folder(run.folder, 12) / "optimizer.safetensors")
    assert {float(value) for key, value in steps.items() if key.endswith(".step")} == {4.0}


def test_states_of_another_optimizer_are_not_kept(mle, tmp_path):
    said = []
    loop.train(start_from(mle, 8, "optim.name=muon"), tmp_path / "muon", say=said.append)
    assert "muon: optimizer states: fresh, because those of mle are adamw's" in said


def test_feedback_can_begin_in_the_middle(mle, tmp_path):
    config = start_from(mle, 8, "objective.kind=conditional", "objective.good_fraction=0.5", "tokens=12288")
    whole = train(config, tmp_path / "whole")
    assert whole.read_metrics()[0]["step"] == 9
    validation = [line["nll_all"] for line in whole.read_metrics() if line["kind"] == "validation"]
    assert validation[-1] < validation[0]
    before, after = (
        weights(mle, 8)["model.embed_tokens.weight"],
        weights(whole, 48)["model.embed_tokens.weight"],
    )
    assert before.shape == after.shape
    assert whole.load_model().config.control_tokens == [510, 511]

    # Stopped before its first checkpoint, it starts from the same weights again.
    def stop(description, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "stopped", say=quiet, progress=stop)
    assert_same_run(loop.resume(tmp_path / "stopped", say=quiet), whole)


def test_control_tokens_start_near_the_mean_unless_they_were_learned(
    mle, small_config, tmp_path, monkeypatch
):
    # With no step taken the rows are those that training would begin with.
    config = start_from(
        mle, 8, "objective.kind=conditional", "objective.good_fraction=0.5", "checkpoint_every=1"
    )
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    untrained = train(config, tmp_path / "conditional")
    rows = weights(untrained, 12)["model.embed_tokens.weight"]
    base = weights(mle, 8)["model.embed_tokens.weight"]
    assert torch.equal(rows[:510], base[:510])
    assert not torch.equal(rows[510:], base[510:])
    assert float((rows[510:] - base[:510].mean(dim=0)).abs().max()) < 0.2 * float(base[:510].std())
    again = train(start_from(untrained, 11), tmp_path / "again")
    assert torch.equal(weights(again, 12)["model.embed_tokens.weight"], rows), "learned rows are kept"


def test_what_does_not_fit_is_refused_before_anything_is_written(mle, small_config, tmp_path):
    out = tmp_path / "out"
    for place, overrides, message in (
        (f"{mle.folder}@5", [], "no checkpoint at step 5; it has 4, 8, 12"),
        (
            f"{mle.folder}@12",
            [],
            r"tokens=3072 is the whole budget, and .*mle has seen 3072 of it at step 12",
        ),
        (f"{mle.folder}@8", ["model.width=64"], "another architecture"),
        (str(tmp_path / "nothing"), [], "is not a run"),
    ):
        with pytest.raises(PHFError, match=message):
            train(load_start_config(None, overrides, place), out)
        assert not out.exists()


def test_any_step_can_be_started_from_where_all_checkpoints_are_kept(small_config, tmp_path):
    run = train(
        small_config("objective.kind=mle", "checkpoint_every=2", "keep_checkpoints=all"), tmp_path / "all"
    )
    assert run.steps == [2, 4, 6, 8, 10, 12]
    assert train(start_from(run, 2), tmp_path / "further").record["start"]["step"] == 2
    some = train(small_config("objective.kind=mle"), tmp_path / "some")
    with pytest.raises(
        PHFError, match=r"it has 8, 12: choose one of these, or train with keep_checkpoints=all"
    ):
        train(start_from(some, 4), tmp_path / "out")
    with pytest.raises(PHFError, match="keep_checkpoints=0"):
        small_config("keep_checkpoints=0")


def test_a_larger_batch_starts_at_its_next_whole_step_and_another_order_is_said(mle, tmp_path):
    said = []
    run = loop.train(start_from(mle, 8, "optim.batch_blocks=6", "seed=1"), tmp_path / "run", say=said.append)
    assert run.record["start"]["first_step"] == 6  # 2,048 tokens of 6 x 64 each: five steps and a third
    assert any(
        "reads its data from the beginning, for that run's data or seed was another" in line for line in said
    )


def test_the_command_needs_no_recipe(mle, tmp_path):
    out = tmp_path / "rwr"
    arguments = [
        "train",
        "objective.kind=rwr",
        "--init",
        f"{mle.folder}@8",
        "--reset-optimizer",
        "-o",
        str(out),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    run = Run.open(out)
    assert run.config.objective.kind == "rwr"
    assert run.config.start.reset_optimizer
    assert np.isfinite(run.read_metrics()[-1]["nll_all"])


def test_a_run_goes_on_with_other_settings_of_how_but_not_of_what(mle):
    with pytest.raises(
        PHFError, match=r"seed cannot change when a run goes on.* phf train --init .* seed=3 -o NEW"
    ):
        loop.resume(mle.folder, ["seed=3"], say=quiet)
    with pytest.raises(PHFError, match="log_every=0"):
        loop.resume(mle.folder, ["log_every=0"], say=quiet)
    before = (mle.folder / "run.json").read_text()
    loop.resume(mle.folder, ["log_every=3"], say=quiet)  # finished: nothing to go on with
    assert (mle.folder / "run.json").read_text() == before
    command = ["train", "--resume", f"{mle.folder}@4", "log_every=2", "optim.micro_batch_blocks=1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    run = Run.open(mle.folder)
    assert (run.config.log_every, run.config.optim.micro_batch_blocks) == (2, 1)
    assert run.is_finished
    assert [line["step"] for line in run.read_metrics() if line["kind"] == "train"] == [
        1,
        2,
        3,
        4,
        6,
        8,
        10,
        12,
    ]


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_command_that_is_restarted_keeps_later_checkpoints_and_takes_changes_as_they_are(
    name, mle, small_config, monkeypatch
):
    loop.resume(mle.folder, ["log_every=2"], step=8, say=quiet)
    assert mle.steps == [4, 8, 12]
    monkeypatch.setenv(name, "1")
    said = []
    loop.resume(mle.folder, step=4, say=said.append)  # its own later checkpoints are not removed
    assert mle.steps == [4, 8, 12]
    assert said == [f"{mle.folder} is finished: 12 steps"]
    # The command that began the run does not know of the change.
    loop.train(small_config("objective.kind=mle", "keep_checkpoints=9"), mle.folder, say=quiet)
    with pytest.raises(PHFError, match="was trained with other settings"):
        loop.train(small_config("objective.kind=mle", "seed=1"), mle.folder, say=quiet)


def test_a_change_that_does_not_work_is_not_kept(mle, monkeypatch):
    def refuse(*_):
        raise PHFError("not on this machine")

    monkeypatch.setattr(loop, "choose_data_parallel", refuse)
    before = (mle.folder / "run.json").read_text()
    with pytest.raises(PHFError, match="not on this machine"):
        loop.resume(mle.folder, ["data_parallel=fsdp"], step=8, say=quiet)
    assert (mle.folder / "run.json").read_text() == before


def test_a_run_of_format_version_1_has_todays_names():
    old = {"format_version": 1, "good": {"value": 0.25}, "threshold": None, "seed": 0}
    new = upgrade_run(old)
    assert new == {
        "format_version": 2, "threshold": {"value": 0.25}, "objective_threshold": None, "seed": 0
    }  # fmt: skip
    assert upgrade_run(new) is new


def test_a_run_of_a_newer_format_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {"format_version": RUN_VERSION + 1, "config": {}})
    with pytest.raises(PHFError, match=rf"run\.json has format version {RUN_VERSION + 1}; this phf reads"):
        Run.open(tmp_path)


def test_a_run_without_an_id_is_known_by_its_record(mle):
    assert mle.id == mle.record["id"]
    old = Run(mle.folder, {key: value for key, value in mle.record.items() if key != "id"})
    assert old.id == Run(mle.folder, dict(old.record)).id
    assert Run(mle.folder, {**old.record, "name": "other"}).id != mle.id


def test_what_another_run_has_trained_does_not_make_this_one_worth_compiling(small_config, monkeypatch):
    monkeypatch.setattr(loop.lm, "can_compile", lambda device: True)
    config = small_config("tokens=4_000_000")
    assert loop.choose_compile(config, 1_100_000, Ranks())
    start = {"tokens": 3_900_000}
    assert not loop.choose_compile(config, 1_100_000, Ranks(), start)
