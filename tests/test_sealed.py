"""What a run and an evaluation keep is sealed: a changed value, another run's file or lines are refused by name."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from compare_runs import quiet, train
from fake_annotations import annotate_by
from fake_runs import edit, make_run

from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.evaluate.parts import Parts
from phf.files import hash_json, read_sealed, write_sealed
from phf.report.reading import read_runs
from phf.results import read_evaluation
from phf.train import loop
from phf.train.metrics import METRICS, encode_lines, read_metrics
from phf.train.run import Run

LINES = [{"kind": "train", "step": step, "tokens": step, "loss": 1 / step} for step in range(1, 6)]


def test_every_changed_value_of_a_sealed_file_is_found(tmp_path):
    path = tmp_path / "file.json"
    content = {"format_version": 3, "mean": 0.5, "text": "é"}
    write_sealed(path, content)
    assert read_sealed(path, "make it again") == content
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with contextlib.suppress(PHFError):
            assert read_sealed(path, "make it again", sealed_in=3) == content, "only white space may change"


@pytest.mark.parametrize("text", ["[]", "3", "1" * 5000, "[" * 100_000, '{"a": NaN}', '{"a": "\\ud800"}', ""])
def test_what_is_no_sealed_object_is_one_line(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(PHFError, match="make it again") as error:
        read_sealed(tmp_path / "file.json", "make it again")
    assert "\n" not in str(error.value)


def test_a_file_without_a_seal_is_read_only_in_the_versions_that_had_none(tmp_path):
    path = tmp_path / "file.json"
    for version, is_read in (
        (1, True),
        (2, True),
        (3, False),
        (True, True),
        (4, True),
        ("2", False),
        (None, False),
    ):
        path.write_text(json.dumps({"format_version": version}))
        if is_read:
            read_sealed(path, "make it again", sealed_in=3)
        else:
            with pytest.raises(PHFError, match="damaged"):
                read_sealed(path, "make it again", sealed_in=3)


def test_a_number_in_an_evaluation_cannot_change_and_another_runs_is_refused(tmp_path):
    path = make_run(tmp_path / "run") / "evaluation.json"
    value = json.loads(path.read_text())
    value["measurements"][0]["estimate"]["mean"] /= 10
    path.write_text(json.dumps(value))
    with pytest.raises(PHFError, match=r"evaluation.json is damaged.*run 'phf evaluate"):
        read_evaluation(path)
    other = make_run(tmp_path / "other")
    for run in (path.parent, other):
        edit(run / "run.json", lambda value, run=run: value.update(id=run.name * 8))
    edit(other / "evaluation.json", lambda value: value.update(run_id="other" * 8))
    read_runs([other])
    shutil.copy(other / "evaluation.json", path)
    with pytest.raises(PHFError, match="is of another run"):
        read_runs([path.parent])


def test_a_damaged_part_is_made_again(tmp_path):
    parts = Parts(tmp_path, "subject")
    parts.measure("scores", 1, lambda: [0.5, 0.25], list[float])
    path = tmp_path / "scores.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.25", b"0.75"))
    assert parts.measure("scores", 1, lambda: [0.5, 0.25], list[float]) == [0.5, 0.25]
    assert path.read_bytes() == whole


def test_lines_of_metrics_are_bound_to_their_run_and_to_each_other(tmp_path):
    def write(*texts):
        (tmp_path / METRICS).write_text("".join(texts))
        found = read_metrics(tmp_path, "run")
        return [line["step"] for line in found.lines], found.num_damaged

    texts = encode_lines(LINES, "run")[0].splitlines(keepends=True)
    assert write(*texts) == ([1, 2, 3, 4, 5], 0)
    assert write(*texts[:2], texts[2].replace("0.3", "0.4"), *texts[3:]) == ([1, 2, 4, 5], 1)
    assert write(texts[0], *texts[2:]) == ([1, 4, 5], 1), "a line is gone, so the next one stands in no order"
    assert write(*texts[:3], "{half a line") == ([1, 2, 3], 1)
    other = encode_lines(LINES, "other")[0].splitlines(keepends=True)
    assert write(*other) == ([], 5)
    assert write(*texts[:2], *other[2:]) == ([1, 2], 3)
    assert write(*(json.dumps(line) + "\n" for line in LINES)) == ([1, 2, 3, 4, 5], 0), "of an older phf"
    assert write('{"kind": "train", "step": 1}\n', '{"kind": "train", "step": "x"}\n', "[]\n", "3\n") == (
        [1],
        3,
    )


def test_a_damaged_line_of_metrics_is_dropped_and_said_when_the_run_goes_on(small_config, tmp_path):
    run = train(small_config("log_every=1"), tmp_path / "run")
    steps = [line["step"] for line in run.read_metrics() if line["kind"] == "train"]
    path = run.folder / METRICS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("loss", "lost"), *lines[2:]]))
    said = []
    run = loop.resume(run.folder, step=8, say=said.append)
    assert any("1 damaged lines" in line and METRICS in line for line in said)
    assert len([line for line in run.read_metrics() if line["kind"] == "train"]) == len(steps) - 1
    assert read_metrics(run.folder, run.id).num_damaged == 0
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    (found,) = read_runs([run.folder], must_be_evaluated=False)
    assert found.has_lost_metrics


def test_a_changed_setting_or_another_runs_checkpoint_is_refused(small_config, tmp_path):
    run, other = (train(small_config(f"seed={seed}"), tmp_path / str(seed)) for seed in (0, 1))
    assert run.id != other.id
    last = run.folder / "checkpoints" / "step-000012"
    shutil.rmtree(last)
    shutil.copytree(other.folder / "checkpoints" / "step-000012", last)
    with pytest.raises(PHFError, match="step-000012 is of another run"):
        run.load_model()
    record = json.loads((run.folder / "run.json").read_text())
    record["config"]["seed"] = 7
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(PHFError, match=r"run.json is damaged"):
        Run.open(run.folder)


def test_a_run_does_not_go_on_with_scores_that_were_made_anew(small_config, tmp_path):
    corpus = Corpus.open(shutil.copytree(small_config().corpus, tmp_path / "corpus"))
    config = small_config(f"corpus={corpus.path}")
    run = train(config, tmp_path / "run")
    data = run.data()
    for path in data.annotation.path.parent.iterdir():
        shutil.rmtree(path)
    identity = data.annotation.identity
    annotate_by(corpus, identity, "document", lambda text: np.sin(len(text)), unit="probability")
    with pytest.raises(PHFError, match="trained on another annotation"):
        loop.resume(run.folder, step=8, say=quiet)


def test_parts_of_another_key_are_not_used(tmp_path):
    Parts(tmp_path, "one").measure("scores", 1, lambda: [1.0], list[float])
    assert Parts(tmp_path, "two").measure("scores", 1, lambda: [2.0], list[float]) == [2.0]
    assert "sha256" in json.loads((tmp_path / "scores.json").read_text())
    assert hash_json({"a": "\ud800"}), "half a pair has a hash"
