"""Golden files: pages of stored runs come out byte for byte, and the losses, weights and samples of every objective too.

A change that means to change one of them makes them again, `python tests/make_golden.py`, and says so in its commit.
"""

import contextlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from golden_runs import OBJECTIVES
from make_golden import GOLDEN, PAGES, RUNS, copy_inputs, describe_machine, measure_objectives, plain_terminal

from phf.config.objectives import built_in_kinds
from phf.files import hash_file, read_json

AGAIN = "if that is meant, make the golden files again with 'python tests/make_golden.py' and say so in the commit"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what pages are made from: some are written beside it."""
    folder = tmp_path_factory.mktemp("golden")
    copy_inputs(folder)
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_the_same(name: str, inputs: Path) -> None:
    with contextlib.chdir(inputs), plain_terminal():
        found = PAGES[name]()
    check_text(name, found)


def check_text(name: str, found: str) -> None:
    wanted = (GOLDEN / name).read_text("utf-8")
    if found != wanted:
        lines = zip_longest(wanted.splitlines(), found.splitlines())
        number, (old, new) = next((i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1])
        pytest.fail(f"{GOLDEN / name}, line {number}:\n- {old}\n+ {new}\n{AGAIN}", pytrace=False)


def test_kept_samples_are_those_that_the_evaluation_speaks_of() -> None:
    for run in RUNS:
        assert (
            hash_file(GOLDEN / run / "samples.parquet")
            == read_json(GOLDEN / run / "evaluation.json")["samples_sha256"]
        )


def test_no_golden_file_names_a_machine_and_all_are_small() -> None:
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        for place in (b"/tmp/", b"/home/", b"/root/", bytes(GOLDEN.parents[1])):
            assert place not in path.read_bytes(), path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("objectives"))
        yield measure_objectives(folder)


def test_every_objective_has_golden_losses() -> None:
    assert list(OBJECTIVES) == list(built_in_kinds()) == list(read_json(GOLDEN / "losses.json")["objectives"])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_losses_and_weights_are_the_same(kind: str, measured: dict[str, Any]) -> None:
    """To the last digit on the machine that made them; on another one, arithmetic rounds in another order: to 1e-4."""
    golden = read_json(GOLDEN / "losses.json")
    own, found = golden["objectives"][kind], measured["objectives"][kind]
    if golden["machine"] == describe_machine():
        assert found["losses"] == own["losses"], AGAIN
        assert found["weights"] == own["weights"], AGAIN
    else:
        assert found["losses"] == pytest.approx(own["losses"], rel=1e-4), AGAIN


def test_samples_are_the_same(measured: dict[str, Any]) -> None:
    golden = read_json(GOLDEN / "losses.json")
    if golden["machine"] != describe_machine():
        pytest.skip("another machine rounds in another order, after which a sample may be another one")
    assert json.dumps(measured["samples"], indent=1) == json.dumps(golden["samples"], indent=1), AGAIN
