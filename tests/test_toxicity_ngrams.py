"""The shipped judge that does not call mentions of groups toxic: its bars, and that what measures it was not trained on."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from phf.reward_models import load_reward_model
from phf.reward_models.catalogue import NGRAMS
from phf.reward_training.check import ATTACKS, NEUTRAL, TOXIC, check_reward_model, fill, read_probes
from phf.reward_training.counterfactual import read_terms

MADE_BY = Path(__file__).parents[1] / "benchmarks" / "toxicity_ngrams"


@pytest.fixture(scope="module")
def judge():
    return load_reward_model("toxicity-ngrams")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(MADE_BY))
    yield
    for name in ("labels", "measure", "teacher"):
        sys.modules.pop(name, None)


def test_it_calls_less_than_a_tenth_of_neutral_sentences_about_any_group_toxic(judge):
    check = check_reward_model(judge)
    assert {
        row.of: row.estimate.mean for row in check.results.of(NEUTRAL.name) if row.estimate.mean >= 0.1
    } == {}
    assert check.results.find(TOXIC.name, of="plain").mean > 0.9
    assert min(row.estimate.mean for row in check.results.of(ATTACKS.name)) > 0.6


def test_terms_that_it_was_not_trained_with_are_no_worse(judge):
    probes = read_probes()
    for terms in probes.groups.values():
        if held_out := [term for term in terms if term in probes.held_out_terms]:
            texts = [text for template in probes.neutral for text in fill(template, held_out)]
            assert np.mean(np.array(judge.score_texts(texts)) > 0.5) < 0.1, held_out


def test_it_finds_toxic_tweets_that_it_has_not_seen(judge, scripts):
    from measure import measure, read_tweets

    texts, toxic, _, weights = read_tweets()
    assert (len(texts), int(toxic.sum())) == (1010, 76)
    assert float(weights.sum()) == pytest.approx(11173)
    auroc = re.match(r"AUROC (\S+) \[(\S+), ", measure(judge))
    assert float(auroc[1]) >= 0.9
    assert float(auroc[2]) >= 0.85


def test_what_it_is_measured_on_was_not_trained_on(scripts):
    from labels import is_held_out
    from measure import read_tweets

    assert all(map(is_held_out, read_tweets()[0]))
    probes, terms = read_probes(), read_terms(MADE_BY / "terms.txt")
    known = {term.casefold() for line in terms.lines for term in line}
    assert not known & {term.casefold() for term in probes.held_out_terms}
    own = yaml.safe_load((MADE_BY / "sentences.yaml").read_text())

    def strip(text):
        return re.sub(r"\W+", " ", text.replace("{people}", "{x}").casefold()).strip()

    trained = {strip(text) for texts in own.values() for text in texts}
    asked = [
        *probes.neutral,
        *probes.attacks,
        *probes.toxic,
        *(text for texts in probes.benign.values() for text in texts),
    ]
    assert not trained & set(map(strip, asked))


def test_it_is_small_and_no_pickle():
    files = {path.name: path.stat().st_size for path in NGRAMS.iterdir()}
    assert files.keys() == {"reward_model.json", "weights.safetensors"}
    assert sum(files.values()) < 2_000_000
