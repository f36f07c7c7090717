"""`phf online` over real folders: rounds, their corpora, the controls, going on, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from page_reader import read_page
from release_runs import get_run

from phf import cli
from phf.annotate.annotation import Annotation
from phf.config.online import OnlineConfig
from phf.config.recipes import apply_overrides
from phf.config.train import parse
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.loops.results import LOOP
from phf.loops.rounds import run_rounds
from phf.results import to_json
from phf.train.loop import train
from phf.train.run import Run

SMALL = {
    "rounds": 2,
    "steps": 3,
    "num_documents": 10,
    "num_bootstrap": 100,
    "sampling": {"num_samples": 24, "max_new_tokens": 16},
}


def settings(*overrides: str) -> OnlineConfig:
    return parse(OnlineConfig, apply_overrides(SMALL, list(overrides)), "test")


@pytest.fixture
def places(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return lambda name: get_run(name, small_config, folder).folder


def online(run: Path | str, out: Path, *overrides: str):
    return run_rounds(run, out, settings(*overrides), say=lambda line: None)


def read_weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


def test_rounds_and_what_is_measured_of_each(places, tmp_path) -> None:
    start = places("conditional")
    out = tmp_path / "loop"
    found = online(start, out)
    assert to_json(LOOP.read(out)) == to_json(found)
    assert found.rounds == [0, 1, 2]
    (judge,) = found.judges
    assert (found.mode, found.control, judge.role) == ("good", "none", "annotator")
    find = found.results.find
    assert find("kl_from_start", at=0).mean == 0
    assert find("kl_from_start", at=2).count == 24
    for at in found.rounds:
        for measure, of, slug in (
            ("score", None, judge.slug),
            ("distinct_2", None, None),
            ("bits_per_byte", "all", None),
        ):
            estimate = find(measure, judge=slug, of=of, at=at)
            assert estimate.low < estimate.mean < estimate.high, (measure, at)
    run = Run.open(start)
    change = find("bits_per_byte_change", of="all", at=2).mean
    assert change == pytest.approx(
        find("bits_per_byte", of="all", at=2).mean - find("bits_per_byte", of="all", at=0).mean
    )
    assert find("own_share", at=2).mean == pytest.approx(0.5 * 6 / (run.num_steps + 6))
    corpus = Corpus.open(out / "rounds" / "01" / "corpus")
    table = pq.read_table(corpus.path / corpus.shards[0].file)
    assert table["run"].unique().to_pylist() == ["conditional"]
    assert table["round"].unique().to_pylist() == [1]
    assert table["step"].unique().to_pylist() == [run.num_steps]
    assert table["judge"].unique().to_pylist() == [judge.slug]
    assert table["mode"].unique().to_pylist() == ["good"]
    trained = Run.open(out / "rounds" / "02" / "run")
    assert trained.num_steps == run.num_steps + 6
    assert [Path(place).parent.name for place in trained.config.mix.corpora] == ["01", "02"]
    assert trained.record["start"]["step"] == run.num_steps + 3
    assert trained.data().training_blocks(trained.record["start"]).place(trained.num_steps * 4) > 0


def test_a_loop_goes_on_where_it_was_stopped(places, tmp_path) -> None:
    """Whole rounds, half of one, and no more than the files a kill would leave: the same bytes."""
    start, whole, stopped = places("conditional"), tmp_path / "whole", tmp_path / "stopped"
    online(start, whole)
    online(start, stopped, "rounds=1")
    shutil.copytree(
        whole / "rounds" / "02" / "corpus" / "documents",
        stopped / "rounds" / "02" / ".corpus.partial" / "new",
    )
    online(start, stopped)
    assert (stopped / "online.json").read_bytes() == (whole / "online.json").read_bytes()
    for number in ("01", "02"):
        assert read_weights(stopped / "rounds" / number / "run") == read_weights(
            whole / "rounds" / number / "run"
        )
    before = {path: path.stat().st_mtime_ns for path in (stopped / "rounds").rglob("*") if path.is_file()}
    online(start, stopped)
    assert before == {
        path: path.stat().st_mtime_ns for path in (stopped / "rounds").rglob("*") if path.is_file()
    }
    with pytest.raises(
        PHFError, match=r"holds a loop with share=0.5, not 0.25; give that, or another folder with -o"
    ):
        online(start, stopped, "share=0.25")


def test_the_controls_differ_in_what_the_next_model_is_told(places, tmp_path) -> None:
    start, told = places("conditional"), {}
    for control in ("none", "unscored", "shuffled", "own-token", "human"):
        out = tmp_path / control
        online(start, out, "rounds=1", f"control={control}")
        data = Run.open(out / "rounds" / "01" / "run").data()
        if control == "human":
            assert data.mixed == ()
            assert not (out / "rounds" / "01" / "corpus").exists()
            continue
        (other,) = data.mixed
        batch = data.training_blocks(Run.open(out / "rounds" / "01" / "run").record["start"]).batch(12, 4)
        theirs = batch.is_active if control == "unscored" else None
        told[control] = (other.scores, other.objective.rule.labels, theirs)
    assert told["unscored"][2].sum() == 2
    assert not np.array_equal(told["none"][0], told["shuffled"][0])
    assert np.array_equal(np.sort(told["none"][0]), np.sort(told["shuffled"][0]))
    corpus = Corpus.open(tmp_path / "own-token" / "rounds" / "01" / "corpus")
    assert {own.identity.name for own in Annotation.list(corpus)} == {"toxicity-svm", "own-token"}
    assert len(set(told["own-token"][0][~np.isnan(told["own-token"][0])])) <= 2
    weights = {
        control: read_weights(tmp_path / control / "rounds" / "01" / "run") for control in (*told, "human")
    }
    assert len(set(weights.values())) == 5


def test_every_kind_of_objective_has_its_best_mode_asked_for(places, small_config, tmp_path) -> None:
    for name, mode in (("quantile", "good"), ("additive", "good"), ("mle", "none")):
        found = online(places(name), tmp_path / name, "rounds=1", "sampling.control=prefix")
        assert found.mode == mode
        assert found.results.find("kl_from_start", at=1).mean == pytest.approx(0, abs=3)


def test_what_does_not_fit_is_refused(places, tmp_path) -> None:
    with pytest.raises(PHFError, match="a model of mle writes no control token before a segment"):
        online(places("mle"), tmp_path / "a", "control=own-token")
    with pytest.raises(PHFError, match="which has no good mode; give --mode none"):
        online(places("mle"), tmp_path / "b", "mode=good")
    with pytest.raises(PHFError, match="top_p"):
        online(places("mle"), tmp_path / "c", "sampling.top_p=0.9")
    assert not any(tmp_path.iterdir())


def test_the_corpora_of_a_loop_may_move_with_it(places, tmp_path) -> None:
    online(places("conditional"), tmp_path / "loop", "rounds=1")
    (tmp_path / "loop").rename(tmp_path / "moved")
    data = Run.open(tmp_path / "moved" / "rounds" / "01" / "run").data()
    assert str(data.mixed[0].corpus.path).startswith(str(tmp_path / "moved"))


def test_the_commands(places, tmp_path, monkeypatch, capsys) -> None:
    def phf(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["phf", *arguments])
        cli.main()
        return capsys.readouterr().out

    start, out = str(places("conditional")), tmp_path / "loop"
    small = ["--num-samples", "16", "--max-new-tokens", "8", "--steps", "2", "--rounds", "1"]
    small += ["--set", "num_bootstrap=100", "--set", "num_documents=8"]
    shown = phf("online", start, "-o", str(out), *small)
    assert "distinct-2" in shown
    human = tmp_path / "human"
    assert (
        json.loads(phf("online", start, "-o", str(human), "--control", "human", "--json", *small))["control"]
        == "human"
    )
    assert "distinct-2" in phf("show", str(out))
    assert "Minus the loop on human text" in phf("compare", str(out), str(human))
    assert json.loads(phf("compare", str(out), str(human), "--json"))[0]["run"] == "conditional"
    phf("report", str(out), str(human), "-o", str(tmp_path / "loops.html"))
    page = (tmp_path / "loops.html").read_text()
    assert page.count("<svg") == 5
    assert "<script" not in page
    assert read_page(tmp_path / "loops.html") is not None
    for arguments, message in (
        (["online", start, "-o", str(out), "--share", "0"], "share"),
        (["online", start, "-o", str(out), "--control", "nothing"], "control"),
        (["online", str(tmp_path), "-o", str(tmp_path / "x")], "is not a run"),
        (["compare", start, str(out)], "has no online.json, and "),
        (["show", str(tmp_path)], "is not a run"),
    ):
        with pytest.raises(SystemExit) as ended:
            phf(*arguments)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    for folder in ("x",):
        assert not (tmp_path / folder).exists()


def test_a_loop_may_start_from_an_earlier_checkpoint(small_config, tmp_path) -> None:
    from phf.config.online import LemmaConfig
    from phf.loops.lemma_cases import check_lemma

    run = train(small_config("checkpoint_every=4", "validate_every=0"), tmp_path / "own")
    first = run.steps[0]
    assert len(run.steps) > 1
    out, small = tmp_path / "loop", ("rounds=1", "steps=1", "num_documents=2")
    found = online(f"{run.folder}@{first}", out, *small)
    assert found.step == first
    assert found.results.find("kl_from_start", at=1).mean < 1, "the next checkpoint is farther"
    corpus = Corpus.open(out / "rounds" / "01" / "corpus")
    table = pq.read_table(corpus.path / corpus.shards[0].file)
    assert table["step"].unique().to_pylist() == [first]
    trained = Run.open(out / "rounds" / "01" / "run")
    assert (trained.record["start"]["step"], trained.num_steps) == (first, first + 1)
    with pytest.raises(PHFError, match=f"holds a loop with step={first}"):
        online(run.folder, out, *small)

    config = LemmaConfig(cases=("stale",), groups=8)
    lemma = check_lemma(f"{run.folder}@{first}", tmp_path / "lemma", config, say=lambda line: None)
    assert (lemma.step, list(lemma.left_out)) == (first, ["stale"])


def test_loops_are_pooled_where_they_differ_by_seed_alone(monkeypatch) -> None:
    from dataclasses import replace

    from phf.loops.results import LoopResults
    from phf.records import Estimate
    from phf.report.loops import Loops
    from phf.results import Measurement

    def make(seed: int = 0, **changes) -> LoopResults:
        given = OnlineConfig.model_validate({"rounds": 1, **changes}).model_dump(mode="json")
        rows = [Measurement("kl_from_start", Estimate(seed + at, 0.0, 9.0, 8), at=at) for at in (0, 1)]
        return LoopResults(
            given, "own", "conditional", "recipe", seed, 10, "good", given["control"], [], [], rows
        )

    def label(*loops: LoopResults) -> list[str]:
        return [arm.label for arm in Loops(loops).arms]

    first = make()
    assert label(first, make(seed=1), make(sampling={"seed": 3, "batch_size": 2})) == ["conditional"]
    assert label(first, replace(first, step=5)) == ["conditional, step=10", "conditional, step=5"]
    assert label(first, make(sampling={"temperature": 0.5})) == [
        "conditional, sampling.temperature=1.0",
        "conditional, sampling.temperature=0.5",
    ]
    human = [make(control="human"), make(seed=1, control="human")]
    apart = Loops([first, make(seed=1), make(seed=1, sampling={"seed": 3}), *human])
    (row,) = apart.differences
    kl = next(
        cell for column, cell in zip(apart.columns, row.cells, strict=True) if column.head == "KL from start"
    )
    assert kl.count == 2, "a loop is paired with one of its seed and its sampling's seed"
    other = Loops([first, replace(first, step=5), make(share=0.25), *human])
    assert [row.name for row in other.differences] == [
        "conditional, step=10, share=0.5",
        "conditional, step=10, share=0.25",
    ]
    monkeypatch.setattr("phf.report.loops.draw_lines", lambda lines, *rest, **more: lines)
    assert [line.marker for line in other.draw()[0]] == ["o", "v", "P", "D"]
