"""`phf sweep`: a resumable grid, failures listed, any launcher."""

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from compare_runs import quiet, train, write_recipe
from tiny_architectures import create_architecture
from typer.testing import CliRunner

from phf.cli import app
from phf.config.train import load_train_config
from phf.errors import PHFError
from phf.train import loop, sweep
from phf.train.run import Run
from phf.train.sweep import parse_grid, plan_sweep, run_sweep, summarize


@pytest.fixture
def recipe(small_config, tmp_path):
    return str(write_recipe(small_config("objective.kind=mle"), tmp_path / "recipe.yaml"))


@pytest.fixture
def in_process(monkeypatch):
    """Commands run in this process; returns the list of those that were run."""
    commands = []

    def run_command(arguments, environment, folder=None, lifeline=None):
        commands.append(arguments)
        if arguments[1] == "--resume":
            loop.resume(arguments[2], say=quiet)
        else:
            train(load_train_config(arguments[1], []), arguments[3])

    monkeypatch.setattr(sweep, "run_command", run_command)
    return commands


def test_lists_make_the_grid_and_single_values_are_shared(tmp_path):
    fixed, cells = plan_sweep(["tokens=100", "objective.kind=[mle, rwr]", "seed=0,1"], tmp_path)
    assert fixed == ["tokens=100"]
    assert [cell.folder.name for cell in cells] == [
        f"objective.kind={kind}_seed={seed}" for kind in ("mle", "rwr") for seed in (0, 1)
    ]
    assert parse_grid(["a=[1.5e-3, x]", "b={c: 1, d: 2}"]) == (["b={c: 1, d: 2}"], [["a=0.0015", "a=x"]])
    _, swept = parse_grid(["objective=[{kind: mle}, {kind: rwr, beta: 2}]"])
    assert swept == [["objective={kind: mle}", "objective={beta: 2, kind: rwr}"]]


def test_names_are_safe_and_tell_runs_apart(tmp_path):
    _, cells = plan_sweep(["corpus=a/b,a:b", f"x=[{'y' * 200}, {'y' * 201}]"], tmp_path)
    names = [cell.folder.name for cell in cells]
    assert len(set(names)) == 4
    assert all("/" not in name and len(name) < 200 for name in names)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "nothing to sweep"),
        (["seed"], "not of the form"),
        (["seed=[]"], "is empty"),
        (["a=[1"], "YAML"),
    ],
)
def test_a_grid_that_is_none_is_refused(overrides, message, tmp_path):
    with pytest.raises(PHFError, match=message):
        plan_sweep(overrides, tmp_path)


def test_a_model_that_cannot_be_trained_is_said_before_the_first_run(
    small_config, in_process, tmp_path, monkeypatch
):
    create_architecture("opt", num_ids=512).save_pretrained(tmp_path / "opt")
    recipe = write_recipe(
        small_config("objective.kind=mle", f"model.init={tmp_path / 'opt'}"), tmp_path / "recipe.yaml"
    )
    said: list[str] = []

    def launch(launcher, commands, workers):
        said.append("begins")
        yield from ((cell, "not run here") for cell in commands)

    monkeypatch.setattr(sweep, "_launch", launch)
    grid = ["data.isolate_documents=[true,false]", "model.width=[null,33]", "seed=[0,1]"]
    outcomes = run_sweep(str(recipe), grid[:1] + grid[2:], tmp_path / "sweep", say=said.append)
    refused = [line for line in said[: said.index("begins")] if "cannot be trained" in line]
    assert len(refused) == 2
    assert all("isolate_documents=true_seed" in line and "see each other" in line for line in refused)
    assert "2 to train" in said[said.index("begins") - 1]
    assert ["see each other" in str(outcome.failure) for outcome in outcomes] == [True, True, False, False]
    preset = write_recipe(small_config("objective.kind=mle"), tmp_path / "preset.yaml")
    outcomes = run_sweep(str(preset), grid[1:], tmp_path / "widths", say=said.append)
    assert ["must be a multiple of 2" in str(outcome.failure) for outcome in outcomes] == [
        False,
        False,
        True,
        True,
    ]


def test_a_failed_run_is_listed_and_the_same_command_trains_the_rest(
    recipe, small_config, in_process, tmp_path
):
    out, grid = tmp_path / "sweep", ["optim.name=adamw,sgd", "seed=0,1"]
    train(small_config("objective.kind=mle", "seed=1"), tmp_path / "alone")
    outcomes = run_sweep(recipe, grid, out, say=quiet)
    failures = {o.cell.folder.name: o.failure for o in outcomes if o.failure is not None}
    assert failures.keys() == {"optim.name=sgd_seed=0", "optim.name=sgd_seed=1"}
    assert "optim.name='sgd': input should be 'adamw' or 'muon'" in failures["optim.name=sgd_seed=0"]
    assert len(in_process) == 2
    run = Run.open(out / "optim.name=adamw_seed=1")
    assert run.read_metrics()[-1]["nll_all"] == Run.open(tmp_path / "alone").read_metrics()[-1]["nll_all"]
    in_process.clear()
    assert all(
        o.failure is None for o in run_sweep(recipe, ["optim.name=[adamw]", "seed=0,1,2"], out, say=quiet)
    )
    assert [command[-1].rsplit("seed=")[-1] for command in in_process] == ["2"], (
        "what is finished is not trained again"
    )

    adamw, sgd = summarize(outcomes)
    values = [Run.open(o.cell.folder).read_metrics()[-1]["nll_all"] for o in outcomes[:2]]
    assert (adamw.num_finished, adamw.num_failed, sgd.num_finished, sgd.num_failed) == (2, 0, 0, 2)
    assert adamw.losses["nll_all"].mean == pytest.approx(sum(values) / 2)
    assert adamw.losses["nll_all"].low < min(values)
    assert sgd.losses["nll_all"].count == 0


def test_a_stopped_run_goes_on_and_another_config_is_refused(recipe, small_config, in_process, tmp_path):
    out = tmp_path / "sweep"
    run_sweep(recipe, ["seed=0,1"], out, say=quiet)
    shutil.rmtree(out / "seed=1" / "checkpoints" / "step-000012")
    in_process.clear()
    assert all(o.failure is None for o in run_sweep(recipe, ["seed=0,1"], out, say=quiet))
    assert in_process == [["train", "--resume", str(out / "seed=1")]]
    outcomes = run_sweep(recipe, ["seed=0,1", "tokens=6144"], out, say=quiet)
    assert all("was trained with other settings" in o.failure for o in outcomes)


def test_a_crash_is_a_failure_with_its_last_line(recipe, tmp_path):
    assert sweep.run_command(["train", "nonsense", "-o", str(tmp_path / "x")], {}).startswith(
        "recipe 'nonsense'"
    )


def test_the_command_prints_a_table_and_fails_if_a_run_did(recipe, in_process, tmp_path):
    result = CliRunner().invoke(
        app, ["sweep", recipe, "seed=0,1", "-o", str(tmp_path / "a"), "--workers", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "2 of 2" in result.output
    assert "next: phf evaluate" in result.output
    result = CliRunner().invoke(app, ["sweep", recipe, "tokens=3072,x", "-o", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert "failed: tokens=x: recipe: tokens='x'" in result.output


def test_slurm_jobs_go_through_submitit(recipe, in_process, tmp_path, monkeypatch):
    # A stand-in with submitit's interface (AutoExecutor, batch, submit, job.result): there is no Slurm here.
    calls = []

    class Executor:
        def __init__(self, folder, cluster):
            assert cluster == "slurm"
            calls.append(folder)

        def update_parameters(self, **parameters):
            calls.append(parameters)

        def batch(self):
            from contextlib import nullcontext

            return nullcontext()

        def submit(self, function, *arguments):
            failed = "seed=1" in arguments[0][-1]
            return SimpleNamespace(
                job_id="7",
                exception=lambda: RuntimeError("Job (task=0) failed\nnode fell over") if failed else None,
                result=lambda: function(*arguments),
            )

    module = ModuleType("submitit")
    module.AutoExecutor = Executor
    monkeypatch.setitem(sys.modules, "submitit", module)
    outcomes = run_sweep(recipe, ["seed=0,1"], tmp_path / "out", launcher="slurm", workers=5, say=quiet)
    assert [o.failure for o in outcomes] == [None, "job 7: node fell over"]
    assert calls[1]["slurm_array_parallelism"] == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning:submitit")
def test_a_real_submitit_trains_one_run_and_lists_the_other(recipe, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    with pytest.raises(PHFError, match=r"launcher slurm finds no Slurm here \(no srun\)"):
        run_sweep(recipe, ["seed=0,1"], tmp_path / "none", launcher="slurm", say=quiet)
    executor = submitit.AutoExecutor  # its jobs as processes here, in place of Slurm's
    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: executor(folder, cluster="local"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed=1").write_text("in the way, which only the job finds out")
    monkeypatch.chdir(tmp_path)
    finished, failed = run_sweep(recipe, ["seed=0,1"], Path("out"), launcher="slurm", say=quiet)
    assert finished.failure is None
    assert Run.open(Path("out/seed=0")).is_finished
    assert failed.failure is not None
    assert "out/seed=1" in failed.failure


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_real_ray_trains_one_run_and_lists_the_other(recipe, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed=1").write_text("in the way, which only the task finds out")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # the sweep lets it be
    try:
        monkeypatch.chdir(tmp_path)  # Ray's workers were started somewhere else
        finished, failed = run_sweep(recipe, ["seed=0,1"], Path("out"), launcher="ray", say=quiet)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert finished.failure is None
    assert Run.open(Path("out/seed=0")).is_finished
    assert failed.failure is not None
    assert "out/seed=1" in failed.failure
    assert "\n" not in failed.failure


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed_says_how(launcher, package, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PHFError, match=rf"needs {package}; 'pip install phf\[{launcher}\]'"):
        run_sweep(recipe, ["seed=0,1"], tmp_path / "out", launcher=launcher, say=quiet)


def test_groups_that_make_one_folder_are_refused(recipe, tmp_path):
    """What is no list stands in no folder's name: one group would take the place of the other."""
    value = yaml.safe_load(Path(recipe).read_text())
    value["sweep"] = [{"objective.kind": kind, "seed": [0, 1]} for kind in ("mle", "rwr")]
    (tmp_path / "grids.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(
        PHFError, match=r"two groups of sweep both make seed=0.*such as objective\.kind: \[mle\]"
    ):
        run_sweep(tmp_path / "grids.yaml", [], tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()
