"""`phf reward train --counterfactual`: the same text about another group has the same label."""

import json
import sys

import numpy as np
import pytest

from phf import cli
from phf.errors import PHFError
from phf.reward_models import load_reward_model
from phf.reward_training.counterfactual import NUM_COPIES, add_counterfactuals, read_terms
from phf.reward_training.evaluation import read_reward_evaluation
from phf.reward_training.labels import read_labels
from phf.reward_training.split import merge_duplicates
from phf.reward_training.train import train_reward_model

TERMS = "# who\nred, blue, light green\ncats, dogs\n"


@pytest.fixture
def terms(tmp_path):
    (tmp_path / "terms.txt").write_text(TERMS)
    return read_terms(tmp_path / "terms.txt")


def write(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("a red hat", {"a blue hat", "a light green hat"}),
        ("Red RED, redder", {"Blue BLUE, redder", "Light green LIGHT GREEN, redder"}),
        ("light green dogs", {"red cats", "blue cats"}),
        ("infra-red catsuit", {"infra-red catsuit"}),
    ],
)
def test_a_term_is_replaced_by_another_of_its_line_wherever_it_stands(terms, text, versions):
    rng = np.random.default_rng(0)
    assert {terms.swap(text, rng) for _ in range(30)} == versions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red\n", "line 1 has one term"),
        ("a, b\nc, B\n", "line 2 has 'B' again"),
        ("# no\n", "holds no terms"),
    ],
)
def test_files_of_terms_that_are_none(tmp_path, content, message):
    (tmp_path / "terms.txt").write_text(content)
    with pytest.raises(PHFError, match=message):
        read_terms(tmp_path / "terms.txt")
    with pytest.raises(PHFError, match=r"none\.txt does not exist"):
        read_terms(tmp_path / "none.txt")


def test_versions_keep_the_label_and_never_repeat_a_text(tmp_path, terms):
    labels = write(tmp_path / "labels.jsonl", [("red hats", 1), ("cats sleep", 0.25), ("a tree", 0)])
    train = merge_duplicates(read_labels(labels))
    more = add_counterfactuals(train, terms, seed=0, held_out=["Blue  hats"])
    assert more.texts == ["red hats", "cats sleep", "a tree", "light green hats", "dogs sleep"]
    assert more.targets.tolist() == [1, 0.25, 0, 1, 0.25]
    assert more.clusters[3:].tolist() == train.clusters[:2].tolist()
    assert len(more) <= (1 + NUM_COPIES) * len(train)


def make_biased_rows():
    """Labels of somebody to whom whatever is red is bad; `awful` is bad in truth."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1200):
        colour, awful = rng.choice(["red", "blue", "light green"]), number % 4 == 0
        biased = colour == "red" and rng.random() < 0.5
        rows.append((f"{'awful' if awful else 'fine'} {colour} things number {number}", int(awful or biased)))
    return rows


def test_training_with_them_takes_a_bias_out(tmp_path, terms):
    labels = read_labels(write(tmp_path / "labels.jsonl", make_biased_rows()))
    for name, given in (("plain", None), ("fair", terms)):
        train_reward_model(labels, tmp_path / name, seed=0, terms=given)
    gaps, plain = [], ["some fine {} things", "those {} things are fine"]
    for name in ("plain", "fair"):
        model = load_reward_model(str(tmp_path / name))
        red, blue = (model.score_texts([text.format(colour) for text in plain]) for colour in ("red", "blue"))
        gaps.append(np.mean(red) - np.mean(blue))
        assert np.mean(model.score_texts(["some awful blue things"])) > 0.5
    assert gaps[0] > 0.2
    assert abs(gaps[1]) < 0.1
    fair = read_reward_evaluation(tmp_path / "fair")
    assert fair.labels.num_train < 1000 < fair.labels.num_train + fair.labels.num_counterfactuals
    assert fair.reward_model.parameters["trained_on"]["counterfactual"] == terms.sha256
    assert read_reward_evaluation(tmp_path / "plain").labels.num_counterfactuals == 0


def test_the_command_takes_a_file_of_terms_and_refuses_pairs(tmp_path, monkeypatch, capsys):
    (tmp_path / "terms.txt").write_text(TERMS)
    write(tmp_path / "labels.jsonl", make_biased_rows()[:300])
    (tmp_path / "pairs.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    run = [
        "phf",
        "reward",
        "train",
        "--counterfactual",
        str(tmp_path / "terms.txt"),
        "-o",
        str(tmp_path / "model"),
    ]
    monkeypatch.setattr(sys, "argv", [*run, str(tmp_path / "labels.jsonl")])
    cli.main()
    monkeypatch.setattr(sys, "argv", [*run, str(tmp_path / "pairs.jsonl")])
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert "versions about other groups" in out
    assert "counterfactual terms are for labels and ratings alone" in err
