"""`corpus_stats`, on numbers that can be worked by hand."""

import json
import math

import numpy as np
import pytest
from fake_annotations import annotate_by

from phf.annotate.annotation import Annotation, load_scores
from phf.corpus.store import build_corpus
from phf.curate.stats import FRACTIONS, corpus_stats
from phf.errors import PHFError
from phf.records import Identity
from phf.reward_models import Unscored
from phf.thresholds import resolve_good_fraction
from phf.tokens import tokens as token_cache
from phf.tokens.tokens import find_tokens, tokenize

DIGITS = Identity("digits", "1")


def read_first_digit(segment):
    return Unscored("question") if segment[0] == "?" else float(segment[0])


@pytest.fixture
def corpus(tmp_path):
    """Four documents in two shards; a line's score is the digit it begins with, `?` is unscored."""
    texts = ["0aaaaaaa\n1\n", "2bb\n", "?\n4\n", "2ccccc\n0\n"]  # 9 + 2, 4, 2 + 2, 7 + 2 characters
    corpus = make_corpus(tmp_path, texts, validation_fraction=0, bytes_per_shard=12)
    annotate_by(corpus, DIGITS, "lines", read_first_digit)
    return corpus


def make_corpus(folder, texts, **options):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_corpus([str(folder / "a.jsonl")], folder / "corpus", **options)


def test_stats(corpus):
    stats = corpus_stats(corpus)
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats
    assert stats["num_documents"] == 4
    assert stats["num_shards"] == 2
    (annotation,) = stats["annotations"]
    assert annotation["num_segments"] == 7
    assert annotation["num_unscored"] == 1
    assert annotation["unscored_reasons"] == {"question": 1}
    assert annotation["mean"] == 1.5
    assert annotation["quantiles"][0] == {"quantile": 0.0, "score": 0.0}
    assert annotation["quantiles"][-1] == {"quantile": 1.0, "score": 4.0}
    assert sum(annotation["histogram"]["counts"]) == 6
    assert annotation["best"][0] == {"score": 0.0, "document": corpus_id(corpus, 1), "text": "0aaaaaaa\n"}
    assert annotation["worst"][0] == {"score": 4.0, "document": corpus_id(corpus, 3), "text": "4\n"}


def corpus_id(corpus, line):
    return f"a.jsonl:{line}"


def rules(candidates):
    return {candidate.pop("rule"): candidate for candidate in candidates}


def test_of_a_corpus_larger_than_memory_they_are_the_same(tmp_path, monkeypatch):
    """Shards in files: scores with ties, near and far ones, some of them missing, in both splits."""
    rng = np.random.default_rng(0)
    near = np.nextafter(np.float32(0.3), np.float32(1))
    choice = [0.0, 0.1, 0.3, float(near), 0.5, *rng.exponential(1, 40).round(6)]
    texts = [
        "".join(f"{rng.choice(choice)!s} {'x' * rng.integers(9)}\n" for _ in range(rng.integers(1, 6)))
        for _ in range(150)
    ]
    corpus = make_corpus(tmp_path, [*texts, "?\n0.5\n"], validation_fraction=0.2, bytes_per_shard=1000)
    assert len(corpus.shards) > 4
    annotate_by(corpus, DIGITS, "lines", read_number)
    for tokenizer in (None, "train:262"):
        if tokenizer is not None:
            tokenize(corpus, tokenizer, "lines", workers=1)
        monkeypatch.setattr(token_cache, "WINDOW_ROWS", 10**9)
        (whole,) = corpus_stats(corpus, budget=10_000)["annotations"]
        monkeypatch.setattr(token_cache, "WINDOW_ROWS", 100)
        (parts,) = corpus_stats(corpus, budget=10_000)["annotations"]
        assert len(whole["good"]) > 5
        assert len(whole["keep"]) > 5
        assert parts["mean"] == pytest.approx(whole.pop("mean"), rel=1e-12)
        expected = [quantile["score"] for quantile in whole.pop("quantiles")]
        assert [quantile["score"] for quantile in parts["quantiles"]] == pytest.approx(expected, rel=1e-7)
        assert {key: parts[key] for key in whole} == whole


def read_number(segment):
    return Unscored("question") if segment[0] == "?" else float(segment.split()[0])


def test_what_candidates_keep(corpus):
    (annotation,) = corpus_stats(corpus)["annotations"]
    # The document with an unscored segment is out, as in training. Segments: 0 (9 and 2 characters), 1 (2), 2 (4 and 7);
    # ties stay together. Documents: 0 and 1; 2; 2 and 0.
    good = rules(annotation["good"])
    zero = {"threshold": 0.0, "segments": 2 / 5, "tokens": 11 / 24, "num_tokens": 3, "documents": 0}
    assert good["good_fraction=0.05"] == good["threshold=0"] == zero
    assert good["good_fraction=0.75"] == {
        "threshold": 1.0,
        "segments": 3 / 5,
        "tokens": 13 / 24,
        "num_tokens": 3,
        "documents": 1 / 3,
    }
    assert good["good_fraction=0.9"]["threshold"] == 1, "all would be no choice"
    # Documents by mean score: 0.5 (11 characters), 1 (9), 2 (4).
    keep = rules(annotation["keep"])
    assert "threshold=0" not in keep, "it would keep nothing"
    assert keep["keep_fraction=0.25"] == {
        "threshold": 0.5,
        "segments": 2 / 5,
        "tokens": 11 / 24,
        "num_tokens": 3,
        "documents": 1 / 3,
    }
    assert keep["keep_fraction=0.75"]["threshold"] == 1
    assert keep["keep_fraction=0.75"]["tokens"] == 20 / 24


def test_thresholds_are_those_that_an_objective_resolves(small_corpus):
    (annotation,) = corpus_stats(small_corpus)["annotations"]
    scores, num_segments = load_scores(small_corpus, Annotation.list(small_corpus)[0])
    tokens = find_tokens(small_corpus, "train:512", "document")
    used = np.repeat(tokens.is_train, num_segments)
    lengths = tokens.segment_lengths[used]
    good, keep = rules(annotation["good"]), rules(annotation["keep"])
    for fraction in FRACTIONS:  # a document is one segment here
        expected = resolve_good_fraction(scores[used], lengths, fraction)
        for found in (good[f"good_fraction={fraction:g}"], keep[f"keep_fraction={fraction:g}"]):
            assert (found["threshold"], found["segments"]) == (expected.value, expected.segment_share)
            assert found["tokens"] == expected.token_share
            assert found["num_tokens"] == lengths[scores[used] <= np.float32(expected.value)].sum()
    assert annotation["tokens"] == {
        "is_estimate": False,
        "basis": tokens.slug,
        "characters_per_token": None,
        "train": tokens.segment_lengths[used].sum(),
        "train_documents": tokens.is_train.sum(),
    }


def test_epochs_at_a_budget(small_corpus):
    (annotation,) = corpus_stats(small_corpus, budget=100_000)["annotations"]
    tokens = annotation["tokens"]
    assert annotation["epochs"] == 100_000 / (tokens["train"] + tokens["train_documents"])
    kept = rules(annotation["keep"])["keep_fraction=0.25"]
    num_documents = round(kept["documents"] * tokens["train_documents"])
    assert kept["epochs"] == 100_000 / (kept["num_tokens"] + num_documents)


def test_tokens_cut_in_other_places_give_an_estimate(corpus, small_corpus):
    estimate = corpus_stats(corpus)["annotations"][0]["tokens"]
    assert estimate["is_estimate"]
    assert estimate["basis"] is None
    assert estimate["train"] == round(29 / 4)
    tokens = tokenize(corpus, "train:260", "document")
    estimate = corpus_stats(corpus)["annotations"][0]["tokens"]
    assert estimate["is_estimate"]
    assert estimate["basis"] == tokens.slug
    assert estimate["train"] == tokens.num_tokens


def test_only_what_is_asked_for(corpus):
    assert len(corpus_stats(corpus, reward_model="digits")["annotations"]) == 1
    with pytest.raises(PHFError, match=r"no finished annotation by pep8 \(it has digits@"):
        corpus_stats(corpus, reward_model="pep8")
    with pytest.raises(PHFError, match="no tokens by gpt2; make them with: phf tokenize"):
        corpus_stats(corpus, tokenizer="gpt2")


def test_damaged_tokens_are_not_counted(corpus):
    tokens = tokenize(corpus, "train:260", "lines")
    assert not corpus_stats(corpus)["annotations"][0]["tokens"]["is_estimate"]
    path = tokens.path / "00000.segment_ends"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(PHFError, match="segment_ends is damaged"):
        corpus_stats(corpus)


def test_held_out_documents_are_in_the_distribution_alone(tmp_path):
    texts = [f"{number % 10}{'a' * number}" for number in range(100)]
    corpus = make_corpus(tmp_path, texts, validation_fraction=0.5)
    annotate_by(corpus, DIGITS, "document", read_first_digit)
    (annotation,) = corpus_stats(corpus)["annotations"]
    in_train = {document.text for document in corpus.iterate_documents("train")}
    assert 0 < len(in_train) < 100
    assert sum(annotation["histogram"]["counts"]) == 100
    zeros = [text for text in in_train if text.startswith("0")]
    assert rules(annotation["good"])["threshold=0"]["segments"] == len(zeros) / len(in_train)


def test_nothing_scored(corpus):
    annotate_by(corpus, Identity("silent", "1"), "lines", lambda segment: math.nan)
    _, silent = corpus_stats(corpus)["annotations"]
    assert silent["num_unscored"] == 7
    assert silent["unscored_reasons"] == {"no reason given": 7}
    assert silent["mean"] is None
    assert silent["quantiles"] == silent["best"] == silent["good"] == silent["keep"] == []


def test_printed_in_80_columns(corpus, monkeypatch, capsys):
    """What the corpus says is printed without its escape sequences and markup, and no number is cut."""
    from rich.console import Console

    from phf import terminal
    from phf.cli.stats import print_stats

    monkeypatch.setattr(terminal, "Console", lambda **_: Console(width=80, force_terminal=False))
    stats = corpus_stats(corpus, budget=1_000_000)
    stats["annotations"][0]["worst"][0]["text"] = "[red]\x1b]0;pwned\x07\r\n" + "long " * 60
    stats["annotations"][0]["worst"][0]["document"] = "[bold]" + "x" * 90 + ":17"
    print_stats(stats)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines[3:]) <= 80
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "[red]\\x1b]0;pwned" in text
    assert "xxx:17" in text
    assert "1 x question" in text
    assert "ESTIMATE" in text
    for row in (*stats["annotations"][0]["good"], *stats["annotations"][0]["keep"]):
        assert row["rule"] in text
        assert f"{row['tokens']:.1%}" in text
    assert json.loads(json.dumps(stats, allow_nan=False))["budget"] == 1_000_000
