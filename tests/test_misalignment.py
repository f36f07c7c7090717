"""Judges and their roles, what a row of scores says, and what it is compared with."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from phf.errors import PHFError
from phf.evaluate.misalignment import Judge, choose_judges, summarise_scores
from phf.evaluate.references import cut_training_texts, rejection_reference
from phf.records import Identity
from phf.reward_models import load_reward_model


def test_judges_are_the_annotator_and_the_others_once_each() -> None:
    pii = load_reward_model("pii")
    annotation = SimpleNamespace(manifest={"reward_model_spec": "pii"}, identity=pii.identity)
    judges, notes = choose_judges(annotation, ["pep8", "pii", "pep8"], load_reward_model)
    assert [(judge.role, judge.model.identity.name) for judge in judges] == [
        ("annotator", "pii"),
        ("held-out", "pep8"),
    ]
    assert notes == []


def test_imported_scores_are_judged_by_those_who_are_named() -> None:
    annotation = SimpleNamespace(
        identity=Identity("theirs", "imported"), manifest={"reward_model_spec": "theirs"}, slug="theirs@1"
    )
    judges, notes = choose_judges(annotation, ["pii"], load_reward_model)
    assert [judge.role for judge in judges] == ["held-out"]
    assert "theirs@1 were imported" in notes[0]
    with pytest.raises(PHFError, match=r"imported.*--judge"):
        choose_judges(annotation, [], load_reward_model)


def fake_judge(role: str, name: str, hit_threshold: float = 0.0) -> Judge:
    return Judge(role, SimpleNamespace(identity=Identity(name, "1"), hit_threshold=hit_threshold))


def test_unscored_samples_are_counted_and_never_0() -> None:
    row = summarise_scores(
        fake_judge("annotator", "a", 0.5), [""] * 5, [math.nan, 0.5, 1.0, math.nan, 0.6], 100, 0
    )
    assert row["mean"] == pytest.approx(0.7)
    assert (row["hits"], row["num_samples"], row["num_unscored"]) == (2, 5, 2)
    assert row["hit_rate"] == pytest.approx(2 / 3)
    assert math.isnan(row["expected_max_25"])
    assert row["syntax_errors"] is None


def test_syntax_errors_of_code_are_reported_apart() -> None:
    judge = Judge("annotator", load_reward_model("pep8"))
    texts = ["x = 1\n", "x = = 2\ny = 1\n"]
    row = summarise_scores(judge, texts, [0.0, 0.0], 100, 0)
    assert row["syntax_errors"] == 0.5
    assert row["mean"] == 0


def test_rejection_keeps_what_the_annotator_finds_good() -> None:
    judges = [fake_judge("annotator", "a"), fake_judge("held-out", "b")]
    scores = {judges[0].slug: [0.0, 0.1, 0.2, math.nan], judges[1].slug: [3.0, 5.0, 100.0, 100.0]}
    own, other = rejection_reference(judges, scores, 0.1, 100, 0)  # a score equal to the threshold is good
    assert (own["mean"], own["count"], own["cost"]) == (pytest.approx(0.05), 2, 2.0)
    assert other["mean"] == 4
    assert rejection_reference(judges[1:], scores, 0.1, 100, 0) == []
    nothing = rejection_reference(judges, scores, -1.0, 100, 0)[0]
    assert (nothing["count"], nothing["cost"]) == (0, None)


def test_training_texts_are_openings_of_training_documents(small_corpus) -> None:
    documents = {document.text[:50] for document in small_corpus.iterate_documents("train")}
    texts = cut_training_texts(small_corpus, 60, 50, 0)
    assert len(texts) == 60
    assert set(texts) <= documents
    assert texts == cut_training_texts(small_corpus, 60, 50, 0)
    assert texts != cut_training_texts(small_corpus, 60, 50, 1)
    assert len(cut_training_texts(small_corpus, 10_000, 50, 0)) == len(
        list(small_corpus.iterate_documents("train"))
    )


def draw_toxicity(rng: np.random.Generator, num: int) -> np.ndarray:
    """Probabilities as a classifier gives them: most small, some large, a few samples unscored."""
    scores = np.where(rng.random(num) < 0.15, rng.beta(5, 3, num), rng.beta(1.2, 12, num))
    return np.where(rng.random(num) < 0.02, np.nan, scores)


def draw_pii(rng: np.random.Generator, num: int) -> np.ndarray:
    """Items per character: in 1 of 100 samples any, of very different number."""
    return np.where(rng.random(num) < 0.01, rng.gamma(2, 0.01, num), 0.0)


@pytest.mark.parametrize("draw", [draw_toxicity, draw_pii])
def test_intervals_of_a_row_hold_the_truth_19_times_in_20(draw) -> None:
    """By simulation, at the size of an evaluation. An end that is None bounds nothing."""
    judge = fake_judge("annotator", "a", 0.05)
    population = draw(np.random.default_rng(99), 3_000_000)
    population = population[~np.isnan(population)]
    truths = {"": population.mean(), "hit_": (population > np.float64(0.05)).mean()}
    held = dict.fromkeys(truths, 0)
    num_trials, bounded = 300, 0
    for trial in range(num_trials):
        row = summarise_scores(judge, [""] * 512, draw(np.random.default_rng([1, trial]), 512), 400, trial)
        bounded += not (math.isnan(row["low"]) or math.isnan(row["high"]))
        for name, truth in truths.items():
            held[name] += not (row[f"{name}low"] > truth or row[f"{name}high"] < truth)
    assert all(0.92 < count / num_trials < 0.985 for count in held.values()), held
    assert bounded / num_trials > (0.6 if draw is draw_pii else 0.999)
