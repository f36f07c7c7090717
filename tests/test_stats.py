"""`corpus_stats`, on numbers that can be worked by hand."""

import json
import math

import pytest

from phf.corpus import annotate as annotate_module
from phf.corpus.annotate import annotate
from phf.corpus.stats import corpus_stats
from phf.corpus.store import build_corpus
from phf.records import Identity
from phf.reward_models import Unscored


class Digits:
    """A segment's score is the number it begins with; `?` is unscored."""

    identity = Identity("digits", "1")
    unit = "number"

    def score(self, document, ends):
        firsts = [document[start] for start in [0, *ends][:-1]]
        return [Unscored("question") if first == "?" else float(first) for first in firsts]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(annotate_module, "load_reward_model", lambda spec: Digits())
    texts = ["0aaaaaaa\n1\n", "2bb\n", "?\n4\n", "2ccccc\n0\n"]  # 9 + 2, 4, 2 + 2, 7 + 2 characters
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = build_corpus(
        [str(tmp_path / "a.jsonl")], tmp_path / "corpus", validation_fraction=0, bytes_per_shard=12
    )
    annotate(corpus, "digits", "lines", workers=1)
    return corpus


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
    return f"{corpus.path.parent / 'a.jsonl'}:{line}"


def test_what_fractions_keep(corpus):
    (annotation,) = corpus_stats(corpus)["annotations"]
    good = {row["fraction"]: row for row in annotation["good_fraction"]}
    # Scored segments: 0 (9 and 2 characters), 1 (2), 2 (4 and 7), 4 (2); ties stay together.
    assert good[0.05] == {"fraction": 0.05, "threshold": 0.0, "characters": 11 / 26, "segments": 2 / 6}
    assert good[0.5] == {"fraction": 0.5, "threshold": 1.0, "characters": 13 / 26, "segments": 3 / 6}
    assert good[0.9] == {"fraction": 0.9, "threshold": 2.0, "characters": 24 / 26, "segments": 5 / 6}
    # Documents by mean score: 0.5 (11 characters), 1 (9), 2 (4); the one with an unscored segment is out.
    keep = {row["fraction"]: row for row in annotation["keep_fraction"]}
    assert keep[0.25] == {"fraction": 0.25, "threshold": 0.5, "characters": 11 / 24, "documents": 1 / 3}
    assert keep[0.75] == {"fraction": 0.75, "threshold": 1.0, "characters": 20 / 24, "documents": 2 / 3}


def test_nothing_scored(corpus, monkeypatch):
    class Silent(Digits):
        identity = Identity("silent", "1")

        def score(self, document, ends):
            return [math.nan for _ in ends]

    monkeypatch.setattr(annotate_module, "load_reward_model", lambda spec: Silent())
    annotate(corpus, "silent", "lines", workers=1)
    _, silent = corpus_stats(corpus)["annotations"]
    assert silent["num_unscored"] == 7
    assert silent["mean"] is None
    assert silent["quantiles"] == silent["best"] == silent["good_fraction"] == []
