"""The demo end to end, small: real text, real judges, all six objectives; resumable; the promised files."""

import json

import pytest
from command_processes import warm_starts

from phf import demo, processes
from phf.config.objectives import built_in_kinds
from phf.config.train import load_train_config
from phf.errors import PHFError

SUMMARY_KEYS = {
    "run",
    "objective",
    "seed",
    "mode",
    "judge",
    "mean",
    "low",
    "high",
    "hits",
    "num_samples",
    "distinct_2",
    "bits_per_byte",
}
SMALL = {"tokens": 9_000, "num_samples": 26, "say": lambda line: None}


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "SOURCES", ("fortunes:offensive",))
    patch.setattr(processes.multiprocessing, "get_context", warm_starts)
    out = tmp_path_factory.mktemp("demo")
    yield out, demo.run_demo(out, objectives="paper", **SMALL)
    patch.undo()


def stamps(folder):
    """When each data file was written, and what each manifest says."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".html" and path.name != ".lock"
    ]
    return {path: path.read_bytes() if path.suffix == ".json" else path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_leaves_a_summary_with_one_row_per_run_mode_and_judge(small_demo):
    out, result = small_demo
    rows = json.loads((out / "summary.json").read_text())
    assert {frozenset(row) for row in rows} == {frozenset(SUMMARY_KEYS)}
    assert {row["objective"] for row in rows} == set(demo.choose_objectives("paper"))
    modes = {(row["objective"], row["mode"]) for row in rows}
    assert {
        ("conditional", "good"),
        ("conditional", "bad"),
        ("conditional", "none"),
        ("mle", "none"),
    } <= modes
    assert {row["judge"].split("@")[0] for row in rows} == {
        "toxicity-svm",
        "toxicity-lstm",
        "toxicity-ngrams",
    }
    assert len({(row["run"], row["mode"], row["judge"]) for row in rows}) == len(rows)
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)
    assert all(0.5 < row["bits_per_byte"] < 8 for row in rows)
    assert "<html" in result.page.read_text()


@pytest.mark.slow
def test_a_second_run_repeats_nothing(small_demo):
    out, _ = small_demo
    before = stamps(out)
    demo.run_demo(out, objectives="paper", **SMALL)
    assert stamps(out) == before


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(small_demo):
    out, _ = small_demo
    with pytest.raises(PHFError, match=r"mle-seed0 was trained with other settings; choose another -o"):
        demo.run_demo(out, objectives="mle", **{**SMALL, "tokens": 12_000})


def test_objectives_are_named_default_all_or_by_kind():
    assert demo.choose_objectives("default") == ("mle", "conditional")
    assert len(demo.choose_objectives("paper")) == 6
    assert demo.choose_objectives("all") == tuple(built_in_kinds())
    assert demo.choose_objectives("rwr,mle") == ("rwr", "mle")
    with pytest.raises(
        PHFError, match=r"objective 'foo' is not known; choose default, paper, all, or some of mle,filtering"
    ):
        demo.choose_objectives("mle,foo")
    with pytest.raises(PHFError, match="objective 'custom' is not known"):
        demo.choose_objectives("custom")


def test_the_recipe_is_what_the_demo_trains():
    class Corpus:
        path = "somewhere"

    config = demo.demo_config("conditional", Corpus(), seed=3)
    assert config == load_train_config(demo.RECIPE, ["corpus=somewhere", "seed=3"])
