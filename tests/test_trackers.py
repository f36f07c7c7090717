"""Trackers get the lines of metrics.jsonl; one that is missing is said before anything is written."""

import json
import sqlite3
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest
from compare_runs import train, write_recipe
from transformers import LlamaForCausalLM  # noqa: F401  its first import looks for trackers: before any is replaced

from phf.errors import PHFError
from phf.train.run import Run
from phf.train.sweep import run_command


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_trackers_hold_what_metrics_jsonl_holds(small_config, tmp_path):
    for package in ("tensorboard", "trackio", "wandb"):
        pytest.importorskip(package)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = write_recipe(small_config("trackers=[tensorboard,trackio,wandb]"), tmp_path / "recipe.yaml")
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    runs = []
    for seed in (0, 1):  # two folders with one name: trackers must not take them for one run
        folder = tmp_path / str(seed) / "run"
        command = ["train", str(recipe), f"seed={seed}", "-o", str(folder)]
        assert run_command(command, environment, str(tmp_path)) is None
        runs.append(Run.open(folder))

    for run in runs:
        events = EventAccumulator(str(run.folder / "tensorboard"))
        events.Reload()
        for kind, name in (("train", "loss"), ("validation", "nll_all"), ("validation", "control_gain")):
            lines = [line for line in run.read_metrics() if line["kind"] == kind]
            found = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
            assert found == [(line["tokens"], pytest.approx(line[name], rel=1e-6)) for line in lines]

    with sqlite3.connect(tmp_path / "trackio" / "phf.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert Counter(name for name, _, _ in rows) == {
        f"run-{run.record['id'][:8]}": len(run.read_metrics()) for run in runs
    }
    losses = {(name, step, json.loads(metrics).get("train/loss")) for name, step, metrics in rows}
    for run in runs:
        name = f"run-{run.record['id'][:8]}"
        trained = [line for line in run.read_metrics() if line["kind"] == "train"]
        assert {(name, line["step"], line["loss"]) for line in trained} <= losses

    for run in runs:
        (file,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{run.record['id']}.wandb")
        kept = file.read_bytes()
        for line in run.read_metrics():
            if line["kind"] == "train":
                assert json.dumps(line["loss"]).encode() in kept


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_get_every_number_by_step(name, small_config, tmp_path, monkeypatch):
    module, logged, ended, started = ModuleType(name), [], [], []
    module.init = lambda **settings: started.append(settings)
    module.log = lambda numbers, step: logged.append((step, numbers))
    module.finish = lambda: ended.append(True)
    monkeypatch.setitem(sys.modules, name, module)
    run = train(small_config(f"trackers=[{name}]"), tmp_path / "run")
    id = run.record["id"]
    assert started[0]["name"] == ("run" if name == "wandb" else f"run-{id[:8]}")
    assert started[0].get("id") == (id if name == "wandb" else None)
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
