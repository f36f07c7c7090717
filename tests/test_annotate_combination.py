"""Annotating a weighted sum: each component once, the sum from what lies on disk."""

import json

import numpy as np
import pytest

from phf.annotate.annotate import Annotation, annotate, load_scores
from phf.annotate.annotation import read_annotation_manifest
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.reward_models import load_reward_model, score_documents

MODELS = """
import math

def capitals(texts):
    return [sum(map(str.isupper, text)) / len(text) for text in texts]

def exclamations(texts):
    return [math.nan if "?" in text else float(text.count("!")) for text in texts]

def large(texts):
    return [1e9 for _ in texts]
"""
SPEC = "0.7*both:capitals + 2*both:exclamations"


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.py").write_text(MODELS)
    texts = [f"HELLO {n}. What{'?' * (n % 3 == 0)} is{'!' * (n % 5)}\nThe rest. Ü" for n in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_corpus(["a.jsonl"], "corpus", bytes_per_shard=900, bytes_per_group=300)


def test_the_sum_is_that_of_the_model_and_components_are_reused(corpus):
    assert len(corpus.shards) > 2
    alone = annotate(corpus, "both:capitals", "sentences", workers=1)
    annotation = annotate(corpus, SPEC, "sentences", workers=1)
    assert annotation.num_scored_now == alone.num_scored_now  # the other component alone
    model = load_reward_model(SPEC)
    expected = []
    for index in range(len(corpus.shards)):
        with corpus.open_shard(index) as file:
            groups = [
                corpus.read_segments(index, group, ["text"], "sentences")
                for group in range(file.num_row_groups)
            ]
        for rows, ends in groups:
            expected += score_documents(model, list(zip(rows["text"].to_pylist(), ends, strict=True)))
    scores, num_segments = load_scores(corpus, annotation, "drop")
    assert num_segments.tolist() == [len(document) for document in expected]
    np.testing.assert_array_equal(scores, np.concatenate(expected).astype(np.float32))
    assert annotation.identity == model.identity
    assert annotation.segment_ends_hash == alone.segment_ends_hash

    manifest = read_annotation_manifest(annotation.path)
    assert [part["weight"] for part in manifest["components"]] == [0.7, 2.0]
    assert manifest["components"][0]["annotation"] == alone.slug
    assert manifest["components"][0]["reward_model"] == alone.identity.to_json()
    missing = load_reward_model("both:exclamations").identity.name
    reasons = [entry["reasons"] for entry in manifest["shards"]]
    assert all(set(counts) <= {f"no score by {missing}"} for counts in reasons)
    assert sum(sum(counts.values()) for counts in reasons) == np.isnan(scores).sum() > 0

    again = annotate(corpus, "0.1*both:capitals + 5*both:exclamations", "sentences", workers=1)
    assert again.num_scored_now == 0
    assert again.slug != annotation.slug
    assert annotate(corpus, SPEC, "sentences", workers=1).num_scored_now == 0
    assert len(Annotation.list(corpus)) == 4


def test_bytes_do_not_depend_on_workers(corpus):
    results = []
    for workers in (1, 2):
        path = annotate(corpus, SPEC, "lines", workers=workers).path
        results.append({file.name: file.read_bytes() for file in path.iterdir()})
        path.rename(corpus.path / f"with {workers}")
    assert results[0] == results[1]


def test_a_sum_that_is_too_large_is_refused(corpus):
    with pytest.raises(PHFError, match=r"lies beyond ±1e\+09; choose smaller weights"):
        annotate(corpus, "1*both:capitals + 9e8*both:large", "lines", workers=1)


def test_a_damaged_component_is_refused_by_name_and_mended(corpus):
    component = annotate(corpus, "both:capitals", "lines", workers=1)
    shard = component.path / "00001.parquet"
    data = bytearray(shard.read_bytes())
    data[60] ^= 1
    shard.write_bytes(data)
    with pytest.raises(PHFError, match=r"00001\.parquet is damaged.*--verify"):
        annotate(corpus, SPEC, "lines", workers=1)
    load_scores(corpus, annotate(corpus, SPEC, "lines", workers=1, verify=True), "drop")
