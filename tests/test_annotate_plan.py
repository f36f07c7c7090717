"""What annotating would cost, by a sample: `phf annotate --dry-run`."""

import time

import pytest
from test_annotate import Fake, make_corpus

from phf.annotate import scorer
from phf.annotate.annotate import annotate
from phf.annotate.plan import plan_annotation
from phf.terminal import format_duration


def test_a_plan_scores_a_sample_and_says_what_the_whole_would_take(tmp_path, monkeypatch):
    class Slow(Fake):
        def score(self, document, ends):
            time.sleep(0.002)
            return super().score(document, ends)

    corpus, model = make_corpus(tmp_path), Slow()
    monkeypatch.setattr(scorer, "load_reward_model", lambda spec: model)
    plan = plan_annotation(corpus, "fake", "lines", workers=2, seconds=0.05)
    assert not (corpus.path / "annotations").exists(), "nothing is written"
    assert 0 < plan.sample_documents < plan.num_documents == 201
    assert model.num_segments == plan.sample_segments + 1, "and a first text, that the rate leaves out"
    whole = plan.seconds * plan.num_documents / plan.sample_documents / 2
    assert any(f"about {format_duration(whole)} by 2 workers" in line for line in plan.describe())
    everything = plan_annotation(corpus, "fake", "lines", workers=1, seconds=60)
    assert everything.sample_documents == everything.num_documents
    assert everything.sample_bytes == everything.num_bytes
    written = annotate(corpus, "fake", "lines", workers=1).path
    assert everything.file_bytes == pytest.approx(
        sum(f.stat().st_size for f in written.glob("*.parquet")), rel=0.7
    )
