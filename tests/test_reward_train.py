"""`phf reward train`: what is refused, what is held out, what the folder and the page hold."""

import json
import random
import re

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from phf import cli
from phf.errors import PHFError
from phf.report.reward_page import write_reward_page
from phf.reward_models import load_reward_model, score_samples
from phf.reward_models.linear import LinearRewardModel
from phf.reward_training.evaluation import read_reward_evaluation
from phf.reward_training.labels import read_labels
from phf.reward_training.measures import (
    list_reliability,
    measure_auroc,
    measure_calibration_error,
    measure_share,
    measure_spearman,
)
from phf.reward_training.train import train_reward_model

FILLER = ["the", "a", "man", "word", "day", "is", "was", "here"]


def write_text(rng: random.Random, bad: bool, place: int) -> str:
    word = rng.choice(["vile", "cruel", "nasty"] if bad else ["kind", "warm", "nice"])
    return " ".join([*rng.choices(FILLER, k=6), word, f"n{place}"])


def make_rows(num: int, seed: int = 0, noise: float = 0.1) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for place in range(num):
        bad = place % 2 == 0
        rows.append({"text": write_text(rng, bad, place), "label": int(bad != (rng.random() < noise))})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["phf", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as error:
        return int(error.code)
    return 0


def test_labels_to_a_folder_that_scores(tmp_path, monkeypatch, capsys):
    rows = [
        *make_rows(300),
        {"text": "  " + make_rows(300)[0]["text"].upper(), "label": 1},
        {"text": "no label"},
    ]
    labels = write(tmp_path / "labels.jsonl", rows)
    assert run(monkeypatch, "reward", "train", labels, "-o", tmp_path / "mine") == 0
    out, err = capsys.readouterr()
    assert "1 line hold no feedback: line 302" in err
    assert re.search(r"AUROC +0\.\d+ \[0\.\d+, ", out)
    assert f"next: phf annotate CORPUS --reward-model {tmp_path / 'mine'}" in out
    evaluation = read_reward_evaluation(tmp_path / "mine")
    counts, auroc = evaluation.labels, evaluation.results.find("auroc")
    assert counts.num_train + counts.num_held_out == 300
    assert (counts.num_duplicates, counts.num_bad_rows) == (1, 1)
    assert auroc.mean > 0.8
    assert auroc.count == counts.num_held_out
    model = load_reward_model(str(tmp_path / "mine"))
    assert model.identity == evaluation.reward_model
    LinearRewardModel(model.weights, model.features, slope=1.0, offset=0.0, name="other").save(
        tmp_path / "mine"
    )
    with pytest.raises(
        PHFError, match=r"evaluation.json is of another reward model \(mine@.*this one is other@"
    ):
        read_reward_evaluation(tmp_path / "mine")
    assert model.identity.parameters["trained_on"]["examples"] == counts.num_train
    good, bad = score_samples(model, ["the warm day", "the vile day"])
    assert good < 0.5 < bad
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.jsonl", "mine"]


def test_pairs_and_ratings(tmp_path):
    rng = random.Random(0)
    pairs = [
        {"chosen": write_text(rng, False, place), "rejected": write_text(rng, True, place)}
        for place in range(150)
    ]
    evaluation = train_reward_model(
        read_labels(write(tmp_path / "p.jsonl", pairs)), tmp_path / "pairs", seed=0
    )
    assert evaluation.results.find("pair_accuracy").mean > 0.9
    ratings = [{"text": row["text"], "rating": 5 - 4 * row["label"]} for row in make_rows(200)]
    evaluation = train_reward_model(
        read_labels(write(tmp_path / "r.jsonl", ratings)), tmp_path / "ratings", seed=0
    )
    assert evaluation.results.find("spearman").mean > 0.5
    for name in ("pairs", "ratings"):
        good, bad = score_samples(load_reward_model(str(tmp_path / name)), ["the warm day", "the vile day"])
        assert good < 0.5 < bad
        assert write_reward_page(tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (make_rows(40), "holds 40 different texts; at least 50 are needed: collect more with 'phf label'"),
        (make_rows(40) * 2, "holds 40 different texts"),
        (
            [{**row, "label": 0} for row in make_rows(80)],
            r"holds 0 bad \(label 1\) texts among 80; at least 20",
        ),
        ([{**row, "label": 1} for row in make_rows(80)], r"holds 0 good \(label 0\) texts among 80"),
        ([{"text": row["text"], "rating": 3} for row in make_rows(80)], "gives every text the same rating"),
        (
            [{"chosen": f"text {place}", "rejected": f"text {place + 1}"} for place in range(80)],
            r"only 0 examples would be held out \(pairs that share a text stay together\); at least 5 are needed",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(tmp_path, rows, message):
    labels = read_labels(write(tmp_path / "labels.jsonl", rows))
    with pytest.raises(PHFError, match=message) as caught:
        train_reward_model(labels, tmp_path / "out", seed=0)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]


def test_a_held_out_file_must_be_new_and_of_the_same_kind(tmp_path):
    labels = read_labels(write(tmp_path / "labels.jsonl", make_rows(100)))
    others = read_labels(write(tmp_path / "others.jsonl", make_rows(60, seed=1)))
    evaluation = train_reward_model(labels, tmp_path / "mine", seed=0, held_out=others)
    assert (evaluation.labels.num_train, evaluation.labels.num_held_out) == (100, 60)
    shared = [*make_rows(60, seed=1), {"text": make_rows(1)[0]["text"].title(), "label": 1}]
    with pytest.raises(PHFError, match=r"1 texts of .*others\.jsonl are also among the training labels"):
        train_reward_model(
            labels, tmp_path / "two", seed=0, held_out=read_labels(write(tmp_path / "others.jsonl", shared))
        )
    pair = write(tmp_path / "pairs.jsonl", [{"chosen": "a", "rejected": "b"}])
    with pytest.raises(PHFError, match=r"pairs\.jsonl holds pairs, .*labels\.jsonl labels"):
        train_reward_model(labels, tmp_path / "two", seed=0, held_out=read_labels(pair))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "forest"], "backend 'forest' is not known; choose linear, encoder"),
        (["--base", "x"], "--base x is for --backend encoder"),
        (["--backend", "encoder"], "give --base with a Hugging Face folder or id"),
        (["--backend", "encoder", "--base", "/nowhere"], "no folder '/nowhere'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, monkeypatch, capsys, options, message):
    labels = write(tmp_path / "labels.jsonl", make_rows(100))
    assert run(monkeypatch, "reward", "train", labels, "-o", tmp_path / "mine", *options) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]


def test_a_folder_that_is_not_empty_is_kept(tmp_path):
    labels = read_labels(write(tmp_path / "labels.jsonl", make_rows(100)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    with pytest.raises(PHFError, match="exists and is not empty"):
        train_reward_model(labels, tmp_path / "mine", seed=0)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


def test_the_page_is_escaped_repeatable_and_fetches_nothing(tmp_path):
    rows = make_rows(120)
    for row in rows:
        if row["label"]:
            row["text"] += " <script>alert(1)</script> \u202e"
    out = tmp_path / "<b>mine"
    train_reward_model(read_labels(write(tmp_path / "labels.jsonl", rows)), out, seed=0)
    page = write_reward_page(out).read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;mine" in page
    assert "\u202e" not in page
    assert not re.search(r"(src|href)=\"?https?:", page)
    assert page == write_reward_page(out).read_text()
    assert page.count("<svg") == 2


# --- measures -----------------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    scores = rng.random(500).round(2)
    bad = rng.random(500) < scores
    assert measure_auroc(scores, bad, seed=0).mean == pytest.approx(roc_auc_score(bad, scores))
    other = (scores + rng.random(500)).round(1)
    assert measure_spearman(scores, other, seed=0).mean == pytest.approx(spearmanr(scores, other).statistic)
    halves = [0, 1] * 50
    error = measure_calibration_error(
        [0.05] * 100 + [0.95] * 100, halves * 2, seed=0
    )  # too low here, too high there
    assert error.mean == pytest.approx(0.45, abs=0.01)
    right = measure_calibration_error(scores, bad, seed=0)
    assert right.low == 0, "what chance adds is taken off"
    assert np.isnan(measure_auroc(scores, np.zeros(500), seed=0).mean)
    assert measure_auroc([], [], seed=0).count == 0
    bins = list_reliability([0.0, 0.04, 1.0], [0, 1, 1])
    assert [(score, target.count, target.mean) for score, target in bins] == [(0.02, 2, 0.5), (1.0, 1, 1.0)]


def test_intervals_hold_the_truth_and_widen_with_clusters():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        bad = rng.random(200) < 0.5
        estimate = measure_auroc(rng.normal(size=200) + bad, bad, seed=seed)
        covered += estimate.low <= 0.7602 <= estimate.high  # Phi(1 / sqrt(2))
    assert covered >= 35
    flags = np.repeat(rng.random(50) < 0.5, 10)
    alone, clustered = (
        measure_share(flags, seed=0),
        measure_share(flags, seed=0, clusters=np.repeat(np.arange(50), 10)),
    )
    assert clustered.mean == alone.mean
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
