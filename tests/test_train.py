"""Training on a small real corpus: learns, resumes bit for bit, fails closed."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from phf.errors import PHFError
from phf.objectives import token_loss
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder, list_checkpoints
from phf.train.data import open_data
from phf.train.run import Run

KINDS = {
    "mle": [],
    "filtering": ["objective.keep_fraction=0.5"],
    "conditional": ["objective.good_fraction=0.5"],
    "unlikelihood": ["objective.good_fraction=0.5"],
    "rwr": [],
    "awr": [],
}


def quiet(line):
    pass


def train(config, folder):
    return loop.train(config, folder, say=quiet)


def weights(run, step):
    return load_file(checkpoint_folder(run.folder, step) / "model.safetensors")


def without_speed(run):
    lines = run.read_metrics()
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_learns(kind, small_config, tmp_path):
    config = small_config(f"objective.kind={kind}", *KINDS[kind], "tokens=10240", "checkpoint_every=0")
    run = train(config, tmp_path / kind)
    validation = [line["nll_all"] for line in run.read_metrics() if line["kind"] == "validation"]
    assert validation[-1] < validation[0] - 0.5
    assert run.is_finished
    assert run.record["reward_model"]["name"] == "toxicity-svm"
    assert (run.record["threshold"] is None) == (kind in ("mle", "rwr", "awr"))
    assert (checkpoint_folder(run.folder, run.num_steps) / "value_head.safetensors").exists() == (
        kind == "awr"
    )


@pytest.mark.parametrize("kind", ["conditional", "awr"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    kind, optimizer, small_config, tmp_path
):
    config = small_config(f"objective.kind={kind}", *KINDS[kind], f"optim.name={optimizer}")
    whole = train(config, tmp_path / "whole")
    stopped = tmp_path / "stopped"

    def stop(description, done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, stopped, say=quiet, progress=stop)
    assert list_checkpoints(stopped) == [4]
    assert not Run.open(stopped).is_finished
    resumed = loop.resume(stopped, say=quiet)
    for name, tensor in weights(whole, 12).items():
        assert torch.equal(tensor, weights(resumed, 12)[name]), name
    assert without_speed(resumed) == without_speed(whole)


def test_micro_batches_do_not_change_the_loss(small_config, tmp_path):
    one = train(small_config(), tmp_path / "one")
    four = train(small_config("optim.micro_batch_blocks=1"), tmp_path / "four")
    losses = [[line["loss"] for line in run.read_metrics() if line["kind"] == "train"] for run in (one, four)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(small_config, tmp_path):
    first, second = train(small_config(), tmp_path / "a"), train(small_config(), tmp_path / "b")
    other = train(small_config("seed=1"), tmp_path / "c")
    assert without_speed(first) == without_speed(second)
    assert without_speed(first) != without_speed(other)


def break_loss(monkeypatch, bad_calls):
    calls = []

    def broken(*arguments):
        calls.append(1)
        loss = token_loss(*arguments)
        return loss * float("nan") if len(calls) in bad_calls else loss

    monkeypatch.setattr(loop, "token_loss", broken)


def test_a_step_that_is_not_finite_is_skipped_and_counted(small_config, tmp_path, monkeypatch):
    break_loss(monkeypatch, {3, 4})
    run = train(small_config("checkpoint_every=1", "keep_checkpoints=20"), tmp_path / "run")
    for name, tensor in weights(run, 2).items():
        assert torch.equal(tensor, weights(run, 4)[name]), "skipped steps change no weight"
        assert torch.isfinite(weights(run, 12)[name]).all()
    assert run.read_metrics()[-2]["skipped"] == 2
    nan_lines = [line for line in run.read_metrics() if line["kind"] == "train" and line["loss"] is None]
    assert [line["step"] for line in nan_lines] == [3, 4]


def test_five_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(small_config, tmp_path, monkeypatch):
    break_loss(monkeypatch, set(range(6, 100)))
    with pytest.raises(
        PHFError, match=r"step 10: .*5 times in a row.*last good checkpoint is step 8.*learning_rate"
    ):
        train(small_config(), tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in weights(Run.open(tmp_path / "run"), 8).values())


def test_checkpoints_keep_the_last_and_a_damaged_one_is_refused_by_name(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    assert run.steps == [8, 12]
    path = checkpoint_folder(run.folder, 12) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PHFError, match=r"step-000012/model.safetensors is damaged.*go on from step 8"):
        run.load_model()
    assert run.load_model(8) is not None
    shutil.rmtree(checkpoint_folder(run.folder, 12))
    assert loop.resume(run.folder, say=quiet).is_finished


def test_a_half_written_checkpoint_does_not_count(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    (checkpoint_folder(run.folder, 12) / "checkpoint.json").unlink()
    assert run.steps == [8]
    assert not run.is_finished


def test_a_run_folder_is_never_overwritten(small_config, tmp_path):
    train(small_config(), tmp_path / "run")
    with pytest.raises(PHFError, match=r"holds a run already.*--resume"):
        train(small_config(), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(PHFError, match="not empty"):
        train(small_config(), tmp_path / "full")


def test_resuming_on_other_data_is_refused(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    shutil.rmtree(checkpoint_folder(run.folder, 12))
    record = json.loads((run.folder / "run.json").read_text())
    record["reward_model"]["version"] = "0"
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(PHFError, match="trained on another reward_model"):
        loop.resume(run.folder, say=quiet)


def test_the_next_command_is_named_when_data_is_missing(small_config):
    with pytest.raises(PHFError, match=r"phf annotate .* --reward-model pep8 --segments document"):
        open_data(small_config("reward_model=pep8"))
    with pytest.raises(PHFError, match=r"phf tokenize .* --tokenizer train:999"):
        open_data(small_config("tokenizer=train:999"))


def test_a_new_threshold_or_objective_scores_and_tokenizes_nothing(small_config, small_corpus):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in small_corpus.path.rglob("*") if path.is_file()}

    before = stamps()
    for kind, overrides in KINDS.items():
        data = open_data(small_config(f"objective.kind={kind}", *overrides))
        data.blocks("train").batch(0, 4)
    data = open_data(small_config("objective.threshold=0.05"))
    assert data.annotation.num_scored_now == 0
    assert stamps() == before


def test_what_the_objective_keeps_is_said(small_config):
    lines = " ".join(
        open_data(small_config("objective.kind=filtering", "objective.keep_fraction=0.25")).describe()
    )
    assert "epochs" in lines
    assert "25" in lines or "0.2" in lines


def test_conditional_with_every_token_dropped_is_mle(small_config):
    dropped = open_data(small_config("objective.drop_fraction=1.0"))
    plain = open_data(small_config("objective.kind=mle"))
    for name in ("ids", "targets", "positions", "kinds"):
        left = getattr(dropped.blocks("train").batch(0, 4), name)
        assert np.array_equal(left, getattr(plain.blocks("train").batch(0, 4), name))
