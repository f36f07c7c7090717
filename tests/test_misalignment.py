"""Judges and their roles, what a row of scores says, and what it is compared with."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, choose_judges
from phf.evaluate.measures.misalignment import measure_scores
from phf.evaluate.measures.references import rejection_reference
from phf.evaluate.openings import cut_openings
from phf.records import Identity
from phf.reward_models import load_reward_model


def test_judges_are_the_annotator_and_the_others_once_each() -> None:
    pii = load_reward_model("pii")
    annotation = SimpleNamespace(manifest={"reward_model_spec": "pii"}, identity=pii.identity, slug="pii@1")
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


def fake_judge(role: str, name: str, hit_threshold: float = 0.0) -> LoadedJudge:
    return LoadedJudge(role, SimpleNamespace(identity=Identity(name, "1"), hit_threshold=hit_threshold))


def summarise(judge: LoadedJudge, texts, scores, num_bootstrap: int, seed: int):
    rows = measure_scores(judge, texts, scores, "good", num_bootstrap, seed)
    assert {(row.mode, row.judge, row.of) for row in rows} == {("good", judge.slug, None)}
    return {row.measure: row.estimate for row in rows}


def test_unscored_samples_are_counted_and_never_0() -> None:
    row = summarise(fake_judge("annotator", "a", 0.5), [""] * 5, [math.nan, 0.5, 1.0, math.nan, 0.6], 100, 0)
    assert row["score"].mean == pytest.approx(0.7)
    assert (row["score"].count, row["num_unscored"].mean) == (5, 2)
    assert (row["hit_rate"].mean, row["hit_rate"].count) == (pytest.approx(2 / 3), 3)
    assert math.isnan(row["expected_max_25"].mean)
    assert "syntax_errors" not in row


def test_syntax_errors_of_code_are_reported_apart() -> None:
    judge = LoadedJudge("annotator", load_reward_model("pep8"))
    texts = ["x = 1\n", "x = = 2\ny = 1\n"]
    row = summarise(judge, texts, [0.0, 0.0], 100, 0)
    assert row["syntax_errors"].mean == 0.5
    assert row["score"].mean == 0


def test_rejection_keeps_what_the_annotator_finds_good() -> None:
    judges = [fake_judge("annotator", "a"), fake_judge("held-out", "b")]
    scores = {judges[0].slug: [0.0, 0.1, 0.2, math.nan], judges[1].slug: [3.0, 5.0, 100.0, 100.0]}
    own, cost, other, _ = rejection_reference(
        judges, scores, 0.1, 100, 0
    )  # a score equal to the threshold is good
    assert (own.judge, other.judge) == tuple(judge.slug for judge in judges)
    assert (own.estimate.mean, own.estimate.count) == (pytest.approx(0.05), 2)
    assert (cost.measure, cost.estimate.mean) == ("reference_cost", 2.0)
    assert other.estimate.mean == 4
    assert rejection_reference(judges[1:], scores, 0.1, 100, 0) == []
    nothing = rejection_reference(judges, scores, -1.0, 100, 0)
    assert [(row.measure, row.estimate.count) for row in nothing] == [("reference", 0)] * 2


def test_training_texts_are_openings_of_training_documents(small_corpus) -> None:
    documents = {document.text[:50] for document in small_corpus.iterate_documents("train")}
    texts = cut_openings(small_corpus, 60, 50, 0)
    assert len(texts) == 60
    assert set(texts) <= documents
    assert texts == cut_openings(small_corpus, 60, 50, 0)
    assert texts != cut_openings(small_corpus, 60, 50, 1)
    assert len(cut_openings(small_corpus, 10_000, 50, 0)) == len(
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
    truths = {"score": population.mean(), "hit_rate": (population > np.float64(0.05)).mean()}
    held = dict.fromkeys(truths, 0)
    num_trials, bounded = 300, 0
    for trial in range(num_trials):
        row = summarise(judge, [""] * 512, draw(np.random.default_rng([1, trial]), 512), 400, trial)
        bounded += not (math.isnan(row["score"].low) or math.isnan(row["score"].high))
        for name, truth in truths.items():
            held[name] += not (row[name].low > truth or row[name].high < truth)
    assert all(0.92 < count / num_trials < 0.985 for count in held.values()), held
    assert bounded / num_trials > (0.6 if draw is draw_pii else 0.999)
