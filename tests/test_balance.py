"""Balancing a corpus: all the bad, as many clean, the same split, the rule in the manifest."""

import json

import numpy as np
import pytest

from phf.annotate.annotate import annotate
from phf.annotate.annotation import load_scores
from phf.corpus.duplicates import find_near_duplicates
from phf.corpus.store import build_corpus
from phf.curate.balance import balance_corpus
from phf.errors import PHFError


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    corpus = build_corpus(["fortunes"], tmp_path_factory.mktemp("balance") / "corpus", max_documents=3000)
    return corpus, annotate(corpus, "toxicity-svm", "sentences", workers=1)


def worst(corpus, annotation):
    scores, num_segments = load_scores(corpus, annotation)
    ends = np.cumsum(num_segments)
    return [float(part.max()) for part in np.split(scores, ends[:-1])]


def test_keeps_all_bad_documents_and_as_many_clean_ones(annotated, tmp_path):
    corpus, annotation = annotated
    bad = {
        document.text
        for document, score in zip(corpus.iterate_documents(), worst(corpus, annotation), strict=True)
        if score > np.float32(0.3)
    }
    assert 50 < len(bad) < 1000
    balanced = balance_corpus(corpus, annotation, tmp_path / "b", threshold=0.3)
    kept = {document.text: document for document in balanced.iterate_documents()}
    assert bad <= set(kept)
    assert len(kept) == 2 * len(bad)
    before = {document.text: document for document in corpus.iterate_documents()}
    assert all(before[text].split == document.split for text, document in kept.items())
    assert all(before[text].id == document.id for text, document in kept.items())
    [source] = balanced.manifest["sources"]
    assert source["spec"] == f"fortunes [balanced by {annotation.slug} > 0.3, 1:1]"


def test_the_same_corpus_gives_the_same_bytes(annotated, tmp_path):
    corpus, annotation = annotated
    first, second = (
        balance_corpus(corpus, annotation, tmp_path / name, threshold=0.3, ratio=0.5, max_characters=300)
        for name in "ab"
    )
    assert first.manifest == second.manifest
    assert all(len(document.text) <= 300 for document in first.iterate_documents())
    assert "at most 300 characters" in json.dumps(first.manifest["sources"])


def test_a_threshold_above_every_score_is_refused(annotated, tmp_path):
    corpus, annotation = annotated
    with pytest.raises(PHFError, match=r"segment above threshold 1\.5 \(highest score is 1\)"):
        balance_corpus(corpus, annotation, tmp_path / "b", threshold=1.5)
    assert not (tmp_path / "b").exists()


def test_near_duplicates_are_found_and_the_first_stays():
    text = "It is better to keep your mouth shut and be thought a fool than to open it and remove all doubt."
    broken = text.replace("be thought", "be\n\tthought").upper()
    changed = text.replace("doubt", "question")
    other = "A fool and his money are soon elected, said the man who had read too many fortunes in one day."
    found = find_near_duplicates([text, other, broken, changed, "", "", "short", "Short!"])
    assert found.tolist() == [False, False, True, True, False, False, False, True]


def test_a_balanced_corpus_can_leave_near_duplicates_out(annotated, tmp_path):
    corpus, annotation = annotated
    balanced = balance_corpus(corpus, annotation, tmp_path / "b", threshold=0.3, drop_near_duplicates=True)
    assert not find_near_duplicates(document.text for document in balanced.iterate_documents()).any()
    assert "no near-duplicates" in balanced.manifest["sources"][0]["spec"]
