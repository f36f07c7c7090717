"""BLiMP: what counts as a win, what is read, how sure it is."""

import gzip
import json

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tiny_models import next_logits, tiny_llama

from phf.errors import PHFError
from phf.evaluate.measures.blimp import (
    MinimalPair,
    choose_pairs,
    measure_blimp,
    paradigm_accuracy,
    read_blimp,
)
from phf.records import Estimate
from phf.results import Measurements
from phf.tokens.tokenizer import Tokenizer, train_tokenizer

SIZES = {"num_bootstrap": 200, "seed": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["the cats sleep the cat sleeps"] * 20), 259 + 10)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_llama(tokenizer, seed=0)
    model.lm_head.weight.data[tokenizer.control.good :] *= 2
    return model


def make_pairs(num: int) -> list[MinimalPair]:
    rng = np.random.default_rng(0)
    words = ["the", "cat", "cats", "sleep", "sleeps", "a", "dog"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(2 * num)]
    return [
        MinimalPair(f"paradigm{i % 4}", f"field{i % 2}", good, bad)
        for i, (good, bad) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]


@pytest.mark.parametrize("mode", ["good", "bad", "none"])
def test_a_win_is_the_likelier_whole_sentence(model, tokenizer, mode) -> None:
    """One id at a time; the sentences of a batch differ in length, so a scored padding token would show."""
    control = tokenizer.control
    prefix = [control.end, *{"good": [control.good], "bad": [control.bad]}.get(mode, [])]
    is_text = ~np.isin(np.arange(tokenizer.vocab_size), control.all)

    def log_prob(text: str) -> float:
        ids, total = list(prefix), 0.0
        for token in tokenizer.encode(text):
            logits = next_logits(model, ids, tokenizer.vocab_size)
            total += logits[token] - logsumexp(logits[is_text])
            ids.append(token)
        return total

    pairs = make_pairs(24)
    wins = np.array([log_prob(pair.good) > log_prob(pair.bad) for pair in pairs])
    assert 0 < wins.sum() < 24
    measured = measure_blimp(model, tokenizer, pairs, [mode], **SIZES)
    (items,), rows = measured.items, measured.measurements
    found = Measurements(rows)
    assert (items.values, len(set(items.names))) == (wins.astype(float).tolist(), 24)
    uneven = measure_blimp(model, tokenizer, pairs[:-3], [mode], **SIZES)
    (items,), (whole, *_) = uneven.items, uneven.measurements
    assert np.mean(items.values) == pytest.approx(whole.estimate.mean), "each paradigm weighs the same"
    paradigms = {row.of: row.estimate.mean for row in found.of("blimp_paradigm")}
    assert {row.mode for row in rows} == {mode}
    names = np.array([pair.paradigm for pair in pairs])
    assert paradigms == {name: wins[names == name].mean() for name in sorted(set(names))}
    assert found.find("blimp", mode).mean == pytest.approx(np.mean(list(paradigms.values())))
    assert found.find("blimp", mode, of="field0").mean == pytest.approx(wins[::2].mean())


def test_the_same_sentence_twice_is_a_tie(model, tokenizer) -> None:
    pairs = [MinimalPair("p", "f", "the cat", "the cat")] * 2
    found = Measurements(
        measure_blimp(model, tokenizer, pairs, ["good", "bad", "none"], **SIZES).measurements
    )
    assert found.find("blimp", "none") == Estimate(0.5, 0.5, 0.5, 2)
    assert found.find("blimp", "good-bad").mean == 0
    alone = Measurements(measure_blimp(model, tokenizer, pairs, ["none", "good"], **SIZES).measurements)
    assert not [row for row in alone if row.mode == "good-bad"]


def test_good_minus_bad_is_paired(model, tokenizer) -> None:
    pairs = make_pairs(40)
    found = Measurements(measure_blimp(model, tokenizer, pairs, ["good", "bad"], **SIZES).measurements)
    gap, ends = found.find("blimp", "good-bad"), [found.find("blimp", mode) for mode in ("good", "bad")]
    assert gap.mean == pytest.approx(ends[0].mean - ends[1].mean)
    assert gap.low <= gap.mean <= gap.high


def test_paradigms_weigh_the_same_and_the_interval_covers() -> None:
    """The true accuracy of unequal paradigms, from 400 benchmarks of 30 pairs each."""
    rng = np.random.default_rng(0)
    truth = np.array([0.95, 0.5, 0.7])
    paradigms = np.repeat(["a", "b", "c"], 30)
    hits = 0
    for draw in range(400):
        wins = (rng.random(90) < np.repeat(truth, 30)).astype(float)
        found = paradigm_accuracy(wins, paradigms, 200, draw)
        hits += found.low <= truth.mean() <= found.high
    assert 0.90 <= hits / 400 <= 0.98
    unequal = paradigm_accuracy(np.array([1.0] * 8 + [0.0] * 2), np.array(["a"] * 8 + ["b"] * 2), 100, 0)
    assert unequal.mean == 0.5
    assert np.isnan(paradigm_accuracy(np.ones(3), np.array(["a", "a", "b"]), 100, 0).low)


def test_a_draw_of_pairs_depends_on_the_seed_and_on_nothing_else() -> None:
    pairs = make_pairs(40)
    chosen = choose_pairs(pairs, 3, 0)
    assert len(chosen) == 12
    assert chosen == choose_pairs(pairs[::-1][::-1], 3, 0)
    assert chosen != choose_pairs(pairs, 3, 1)
    alone = [pair for pair in pairs if pair.paradigm == "paradigm2"]
    assert choose_pairs(alone, 3, 0) == [pair for pair in chosen if pair.paradigm == "paradigm2"]
    assert sorted(map(str, choose_pairs(pairs, 0, 0))) == sorted(map(str, pairs))


def test_files_of_either_spelling(tmp_path) -> None:
    own = {"uid": "p", "term": "f", "good": "a, b", "bad": "b"}
    theirs = {
        "UID": "p",
        "linguistics_term": "f",
        "sentence_good": "a, b",
        "sentence_bad": "b",
        "pairID": "1",
    }
    pair = MinimalPair("p", "f", "a, b", "b")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(json.dumps(own).encode()))
    (tmp_path / "y.jsonl").write_text(json.dumps(theirs) + "\n\n" + json.dumps(own))
    (tmp_path / "z.csv").write_text('UID,linguistics_term,sentence_good,sentence_bad\np,f,"a, b",b\n')
    assert read_blimp(str(tmp_path / "x.jsonl.gz")) == [pair]
    assert read_blimp(str(tmp_path / "y.jsonl")) == [pair, pair]
    assert read_blimp(str(tmp_path / "z.csv")) == [pair]
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(theirs) + "\n")
    assert read_blimp(str(folder)) == [pair]  # by datasets, as a Hub id is


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"uid": "p", "term": "f", "good": "a"}', "row 1 has no bad or sentence_bad"),
        ("x.jsonl", b"[1]", "row 1 is no object"),
        ("x.jsonl", b"{", "cannot be read"),
        ("x.jsonl", b"\xff", "cannot be read"),
        ("x.jsonl", b"", "holds no pair"),
        ("x.csv.gz", b"no gzip", "cannot be read"),
        ("x.txt", b"a", "ends in .txt"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, name, data, message) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PHFError, match=message) as caught:
        read_blimp(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("source", ["./nowhere.jsonl", "nowhere/blimp-that-is-not"])
def test_what_is_not_there(source) -> None:
    with pytest.raises(PHFError, match="nowhere"):
        read_blimp(source)


def test_a_sentence_longer_than_the_context_is_refused(tokenizer) -> None:
    model = tiny_llama(tokenizer, seed=0, context=8)
    pairs = [MinimalPair("p", "f", "x" * 9, "y")] * 2
    with pytest.raises(PHFError, match="9 tokens does not fit"):
        measure_blimp(model, tokenizer, pairs, ["none"], **SIZES)
    assert torch.is_grad_enabled()
