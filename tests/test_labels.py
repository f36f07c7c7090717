"""Reading human feedback: polarity, one kind per file, bad rows counted with their lines; and what is held out."""

import gzip
import json

import numpy as np
import pytest
import zstandard

from phf.errors import PHFError
from phf.reward_training.labels import BadLine, describe_bad_rows, read_labels
from phf.reward_training.split import check_apart, hash_text, merge_duplicates, split_examples


def write(path, *rows, end=b""):
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows) + end
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_labels_say_how_bad(tmp_path, name):
    rows = [
        {"text": "rude", "label": 1, "labeler": "x"},
        {"text": "kind", "label": 0},
        {"text": "so-so", "label": 0.5},
    ]
    labels = read_labels(write(tmp_path / name, *rows))
    assert (labels.kind, labels.texts, labels.targets.tolist()) == (
        "labels",
        ["rude", "kind", "so-so"],
        [1, 0, 0.5],
    )


@pytest.mark.parametrize(
    ("bad", "good"),
    [("bad", "Good"), ("yes", "no"), ("TRUE", "false"), ("Toxic", "non-toxic"), (True, False)],
)
def test_labels_in_words(tmp_path, bad, good):
    labels = read_labels(
        write(tmp_path / "a.jsonl", {"text": "rude", "label": bad}, {"text": "kind", "label": good})
    )
    assert labels.targets.tolist() == [1, 0]
    rows = [
        {"text": "rude", "label": bad},
        {"text": "kind", "label": good},
        {"text": "x", "label": "perhaps"},
    ]
    assert read_labels(write(tmp_path / "b.jsonl", *rows)).bad_rows == [
        BadLine(3, "label is no number, nor good, bad, yes, no, true or false")
    ]


def test_labels_in_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nrude,1\nkind,good\nso-so,0.5\n?,perhaps\n")
    labels = read_labels(path)
    assert (labels.kind, labels.texts, labels.targets.tolist()) == (
        "labels",
        ["rude", "kind", "so-so"],
        [1, 0, 0.5],
    )
    assert [row.line for row in labels.bad_rows] == [5]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compressed_labels_that_are_cut_short_are_refused(tmp_path, name):
    path = write(tmp_path / name, *({"text": f"text {i} {i * i}", "label": i % 2} for i in range(200)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PHFError, match=r"a\.jsonl\.(gz|zst) is damaged or cut short"):
        read_labels(path)


def test_the_best_rating_is_the_lowest_target(tmp_path):
    rows = [{"text": str(rating), "rating": rating} for rating in (5, 1, 3, 4)]
    assert read_labels(write(tmp_path / "a.jsonl", *rows)).targets.tolist() == [0, 1, 0.5, 0.25]


def test_pairs_keep_which_text_was_chosen(tmp_path):
    labels = read_labels(write(tmp_path / "a.jsonl", {"chosen": "kind", "rejected": "rude"}))
    assert (labels.kind, labels.texts, labels.rejected) == ("pairs", ["kind"], ["rude"])


def test_bad_rows_are_listed_with_line_and_reason(tmp_path):
    rows = [
        {"text": "fine", "label": 0},
        {"text": "x"},
        {"text": " ", "label": 1},
        {"text": "x", "label": 7},
        {"text": "x", "label": None},
        {"text": 3, "label": 1},
        {"text": "x", "label": 1, "rating": 2},
        ["x"],
    ]
    end = (
        b'{"text": "\xff", "label": 1}\n\nno JSON\n{"text": "x", "label": 1e999}\n'
        + b'{"text": "x", "label": '
        + b"9" * 400
        + b"}"
    )
    with pytest.raises(PHFError, match=r"11 lines hold no feedback.*each line must be"):
        read_labels(write(tmp_path / "half.jsonl", *rows, end=end))
    labels = read_labels(write(tmp_path / "a.jsonl", *rows, end=end + b'\n{"text": "fine", "label": 0}' * 11))
    assert labels.texts == ["fine"] * 12
    assert labels.bad_rows == [
        BadLine(2, "no text and label, text and rating, or chosen and rejected"),
        BadLine(3, "text is no text, or an empty one"),
        BadLine(4, "label is outside 0 to 1 (1 = bad); is it a rating?"),
        BadLine(5, "label is no finite number"),
        BadLine(6, "text is no text, or an empty one"),
        BadLine(7, "both labels and ratings"),
        BadLine(8, "not a JSON object"),
        BadLine(9, "not UTF-8"),
        BadLine(11, "broken JSON"),
        BadLine(12, "label is no finite number"),
        BadLine(13, "label is no finite number"),
    ]
    ratings = b'{"text": "x", "rating": 1e308}\n{"text": "x", "rating": -1e308}\n{"text": "x", "rating": 2}\n'
    found = read_labels(write(tmp_path / "ratings.jsonl", {"text": "y", "rating": 1e9}, {"text": "z", "rating": -1e9}, end=ratings))  # fmt: skip
    assert found.targets.tolist() == [0, 1, pytest.approx(0.5)]
    assert [row.reason for row in found.bad_rows] == ["rating is beyond ±1e+09"] * 2
    described = describe_bad_rows(labels.path, labels.bad_rows)
    assert "11 lines hold no feedback: line 2 (no text" in described
    assert described.endswith("and 8 more")


def test_files_that_cannot_be_used_are_said(tmp_path):
    with pytest.raises(PHFError, match="does not exist; give JSON Lines"):
        read_labels(tmp_path / "none.jsonl")
    with pytest.raises(PHFError, match="is no file"):
        read_labels(tmp_path)
    with pytest.raises(PHFError, match=r'is empty; each line must be {"text", "label"}'):
        read_labels(write(tmp_path / "empty.jsonl"))
    with pytest.raises(PHFError, match=r"1 line hold no feedback: line 1 \(not a JSON object\); each line"):
        read_labels(write(tmp_path / "bad.jsonl", 3))
    with pytest.raises(PHFError, match="line 1 holds labels, line 2 pairs"):
        read_labels(
            write(tmp_path / "two.jsonl", {"text": "a", "label": 1}, {"chosen": "a", "rejected": "b"})
        )
    short = write(tmp_path / "short.jsonl.gz", {"text": "a", "label": 1})
    short.write_bytes(short.read_bytes()[:-9])
    with pytest.raises(PHFError, match="damaged or cut short"):
        read_labels(short)


def test_duplicates_are_merged_and_conflicts_counted(tmp_path):
    rows = [
        {"text": text, "label": label}
        for text, label in (("A  b", 1), ("a b\n", 0), ("ａ b", 1), ("c", 0), ("c", 0))
    ]
    examples = merge_duplicates(read_labels(write(tmp_path / "a.jsonl", *rows)))
    assert examples.texts == ["A  b", "c"]
    assert examples.targets == pytest.approx([2 / 3, 0])
    assert (examples.num_duplicates, examples.conflicts) == (3, ("A  b",))


def test_no_text_is_on_both_sides(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"chosen": f"text {a}", "rejected": f"TEXT  {b}"}
        for a, b in rng.integers(3000, size=(1000, 2))
        if a != b
    ]
    examples = merge_duplicates(read_labels(write(tmp_path / "a.jsonl", *rows)))
    train, held_out = split_examples(examples, seed=0)
    assert len(train) + len(held_out) == len(examples)
    assert 0.1 < len(held_out) / len(examples) < 0.3
    sides = [{hash_text(text) for text in (*side.texts, *side.rejected)} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    check_apart(train, held_out, "b.jsonl")
    with pytest.raises(
        PHFError, match=r"texts of b.jsonl are also among the training labels .*, such as 'text"
    ):
        check_apart(train, train, "b.jsonl")


def test_a_text_keeps_its_side_when_labels_are_added(tmp_path):
    rows = [{"text": f"text {place}", "label": place % 2} for place in range(200)]
    few, many = (
        merge_duplicates(read_labels(write(tmp_path / "a.jsonl", *rows[:num]))) for num in (100, 200)
    )
    held_out = split_examples(few, seed=3)[1].texts
    assert held_out == [text for text in split_examples(many, seed=3)[1].texts if int(text.split()[1]) < 100]
    assert held_out != split_examples(few, seed=4)[1].texts
