"""The model's posterior that a segment is good: worked by hand, and right where a model has learned a toy source."""

import math

import numpy as np
import pytest
import torch
from test_capability import CONTROL, VOCAB_SIZE, label, make_page, make_reader
from test_generate import BAD, GOOD, NUM_IDS, create_bigram
from toy_source import CONTROL as TOY_CONTROL
from toy_source import SEGMENTS, ToySource, train

from phf.calibration import estimate_error
from phf.config.objectives import Conditional
from phf.evaluate.measures.calibration import (
    measure_calibration,
    segment_posteriors,
    summarise_calibration,
)
from phf.evaluate.pages import Page
from phf.records import GOOD as GOOD_LABEL


def create_model(prior: float):
    """After any text or the end, good against bad is `prior`; after good 1 is four times as likely as 2, after bad the other way."""
    table = torch.zeros(NUM_IDS, NUM_IDS)
    table[:, GOOD] = math.log(prior / (1 - prior))
    table[GOOD, 1], table[BAD, 2] = math.log(4), math.log(4)
    return create_bigram(table)


def test_the_posterior_by_hand() -> None:
    pages = [make_page([1]), make_page([2]), make_page([3]), make_page([1], [2])]
    labels = [np.array(own, np.uint8) for own in ([1], [2], [1], [1, 2])]
    found = segment_posteriors(create_model(0.25), CONTROL, VOCAB_SIZE, pages, labels)
    # Prior odds 1/3; likelihood ratio 4, 1/4, 1, 1/4.
    odds = np.array([4, 1 / 4, 1, 1 / 4]) / 3
    np.testing.assert_allclose(found, odds / (1 + odds), rtol=1e-4)


def test_the_own_label_of_the_segment_asked_about_is_not_looked_at() -> None:
    model, page = create_model(0.4), make_page([1], [2])
    one, other = (
        segment_posteriors(model, CONTROL, VOCAB_SIZE, [page], [np.array([1, own], np.uint8)])
        for own in (1, 2)
    )
    assert one == other


def test_calibration_error_by_hand_and_its_bins() -> None:
    posteriors = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    is_good = np.array([False, True, True, True, False])
    found = summarise_calibration(posteriors, is_good, 200, 0)
    assert found.plain == pytest.approx(math.sqrt((2 * (0.05 - 0.5) ** 2 + 3 * (2.9 / 3 - 2 / 3) ** 2) / 5))
    assert found.error.low <= found.error.mean < found.plain
    assert [(bin.posterior, bin.good.mean, bin.good.count) for bin in found.bins] == [
        (pytest.approx(0.05), 0.5, 2),
        (pytest.approx(2.9 / 3), pytest.approx(2 / 3), 3),
    ]
    assert found.bins[0].good.low < 0.5 < found.bins[0].good.high
    nothing = summarise_calibration(np.empty(0), np.empty(0, bool), 200, 0)
    assert nothing.error.count == 0
    assert math.isnan(nothing.error.mean)


def test_a_right_posterior_has_an_error_near_0_and_a_wrong_one_has_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(20_000)
    is_good = rng.random(20_000) < truth
    assert summarise_calibration(truth, is_good, 100, 0).error.mean < 0.02
    assert summarise_calibration(truth**3, is_good, 100, 0).error.mean > 0.15
    assert summarise_calibration(1 - truth, is_good, 100, 0).error.mean > 0.4


def right_posteriors(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    posteriors = rng.random(num)
    return posteriors, rng.random(num) < posteriors


def test_the_error_is_debiased_and_its_interval_holds_known_errors() -> None:
    """300 segments, a judge who finds so much less good than the posterior says; benchmarks/coverage.py has the long table."""
    for less in (0.0, 0.06):
        rngs = [np.random.default_rng([trial, 1]) for trial in range(60)]
        found = []
        for rng in rngs:
            posteriors = rng.uniform(less, 1, size=300)
            found.append(estimate_error(posteriors, rng.random(300) < posteriors - less, 100, 0))
        held = np.mean([error.low <= less <= error.high for error, _, _ in found])
        assert held >= 0.88
        assert max(error.low for error, _, _ in found) > 0, "it is not everything"
        assert np.median([error.mean for error, _, _ in found]) == pytest.approx(less, abs=0.03)
        assert np.mean([plain for _, plain, _ in found]) > less + 0.02, "chance is in it"
        inside = np.mean([least <= plain <= most for _, plain, (least, most) in found])
        assert inside >= 0.88 if less == 0 else inside < 0.88


def test_what_chance_gives_falls_with_the_number_of_segments() -> None:
    ranges = [
        estimate_error(*right_posteriors(np.random.default_rng(0), num), 300, 0)[2] for num in (300, 4800)
    ]
    assert ranges[0][0] > ranges[1][0] * 2
    assert ranges[0][1] / ranges[1][1] == pytest.approx(4, rel=0.25)


def test_numbers_in_clusters_have_an_interval_that_holds_too() -> None:
    """People's mean ratings, five segments of a document together; the plain bootstrap never held a true 0."""
    held, lows = [], []
    for trial in range(60):
        rng = np.random.default_rng([trial, 5])
        scores, of = rng.uniform(0.06, 1, 300), np.arange(300) // 5
        uniforms = np.stack([rng.random(300), rng.random(60)[of]])
        for less in (0.0, 0.06):
            error, _, _ = estimate_error(scores, (uniforms < scores - less).mean(axis=0), 100, 0, of)
            held.append(error.low <= less <= error.high)
            lows.append(error.low)
    assert np.mean(held) >= 0.88
    assert max(lows) > 0, "it is not everything"


def test_an_error_that_nothing_rules_out_has_no_upper_end() -> None:
    error, _, _ = estimate_error(np.full(300, 0.9999), np.ones(300, bool), 100, 0)
    assert error.low == 0
    assert math.isnan(error.high), "300 good segments do not tell .9999 from .99"


def test_held_out_segments_are_taken_as_they_come() -> None:
    documents = [[[1], [2], [1]], [[3]]] * 60
    reader = make_reader(documents, [0.0, 1.0, 0.0, np.nan] * 60, context=100)
    found = measure_calibration(create_model(0.25), CONTROL, VOCAB_SIZE, reader, label, 50, 100, 0)
    assert found.error.count == 50
    share = sum(bin.good.mean * bin.good.count for bin in found.bins) / 50
    assert 0.4 < share < 0.9, "two of three segments are good"


def test_a_trained_model_knows_the_posterior_of_a_noisy_judge() -> None:
    """A source whose labels are drawn: segment k is good with a probability of its own, which the posterior must find."""
    rng = np.random.default_rng(1)
    source = ToySource.make(1)
    first = np.array([SEGMENTS.index(document[0]) for document in source.tokens.documents])
    truth = np.linspace(0.05, 0.95, len(SEGMENTS))
    is_good = rng.random(len(first)) < truth[first]
    source.all_scores[:] = np.where(is_good, 0.0, 1.0)
    objective = source.resolve(Conditional(threshold=0.5, drop_fraction=0.0))
    *_, (_, model) = train(source, objective, 300)
    pages = [
        Page((np.array(segment),), np.array([len(segment)]), np.zeros(1, np.float32)) for segment in SEGMENTS
    ]
    labels = [np.array([GOOD_LABEL], np.uint8)] * len(pages)
    found = segment_posteriors(model, TOY_CONTROL, 7, pages, labels)
    shares = np.array([is_good[first == index].mean() for index in range(len(SEGMENTS))])
    assert np.abs(found - shares).mean() < 0.05
