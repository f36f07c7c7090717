"""Trackers get the lines of metrics.jsonl; one that is missing is said before anything is written."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from compare_runs import train

from phf.errors import PHFError
from phf.train.run import Run


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_every_number_by_step(name, small_config, tmp_path, monkeypatch):
    module, logged, ended, started = ModuleType(name), [], [], []
    module.init = lambda **settings: started.append(settings)
    module.log = lambda numbers, step: logged.append((step, numbers))
    module.finish = lambda: ended.append(True)
    monkeypatch.setitem(sys.modules, name, module)
    run = train(small_config(f"trackers=[{name}]"), tmp_path / "run")
    assert started[0]["name"] == "run"
    assert started[0]["resume"] == "allow"
    assert [step for step, _ in logged] == [line["step"] for line in run.read_metrics()]
    assert dict(logged)[1]["train/loss"] == run.read_metrics()[1]["loss"]
    assert "validation/nll_all" in logged[0][1]
    assert ended == [True]


def test_tensorboard_counts_tokens(small_config, tmp_path, monkeypatch):
    added = []
    writer = SimpleNamespace(
        add_scalar=lambda name, value, place: added.append((name, value, place)),
        flush=lambda: None,
        close=lambda: None,
    )
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder, purge_step: writer
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = train(small_config("trackers=[tensorboard]"), tmp_path / "run")
    assert ("train/loss", run.read_metrics()[1]["loss"], 256) in added


def test_a_missing_tracker_is_said_before_anything_is_written(small_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PHFError, match=r"tracker wandb is not installed; 'pip install phf\[wandb\]'"):
        train(small_config("trackers=[wandb]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trackers_end_with_a_run_that_fails(small_config, tmp_path, monkeypatch):
    module, ended = ModuleType("wandb"), []
    module.init, module.finish = lambda **settings: None, lambda: ended.append(True)

    def log(numbers, step):
        raise KeyboardInterrupt

    module.log = log
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(KeyboardInterrupt):
        train(small_config("trackers=[wandb]"), tmp_path / "run")
    assert ended == [True]
    assert Run.open(tmp_path / "run").steps == []
