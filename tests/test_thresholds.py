"""Thresholds: by hand, with ties, at zero, and against a plain search (hypothesis)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf.errors import PHFError
from phf.records import BAD, GOOD, NO_LABEL
from phf.thresholds import (
    Threshold,
    condense,
    describe_epochs,
    mean_document_scores,
    resolve_good_fraction,
    resolve_keep_fraction,
    resolve_report_threshold,
    resolve_threshold,
)


def scores_of(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.int64)


def test_a_share_is_of_tokens_not_of_segments() -> None:
    scores = scores_of(0.1, 0.2, 0.3, 0.4)
    found = resolve_good_fraction(scores, np.array([10, 10, 10, 70]), 0.3)
    assert found.value == pytest.approx(0.3)
    assert (found.segment_share, found.token_share) == (0.75, pytest.approx(0.3))
    assert found.message == "threshold 0.3: 75 % of the segments, 30 % of the tokens are good"
    assert scores[2] <= np.float32(found.value), "the score at the threshold is good"


def test_ties_stay_together_and_a_moved_share_is_said() -> None:
    scores = scores_of(0, 0, 0, 0, 0, 0, 0, 0, 0.5, 1)
    found = resolve_good_fraction(scores, ones(10), 0.25)
    assert (found.value, found.token_share) == (0.0, 0.8)
    assert "asked for 25 %; 8 segments share the score at the threshold" in found.message
    near = resolve_good_fraction(scores, ones(10), 0.75)
    assert near.token_share == 0.8
    assert "asked for" not in near.message, "moved by less than a tenth"


def test_ties_at_a_threshold_below_the_place_asked_for_are_counted_in_parts() -> None:
    """30 % lie in the tie at 0.5; the nearest end is below it, where two scores are too near for the first pass."""
    near = np.nextafter(np.float32(0.1), np.float32(1))
    scores, tokens = scores_of(0, 0.1, near, near, 0.5), np.array([1, 4, 3, 2, 90])
    expected = resolve_good_fraction(scores, tokens, 0.3)
    assert "2 segments share the score at the threshold" in expected.message
    table, sums, counts = condense([(scores, tokens)], [0.3])
    assert resolve_good_fraction(table, sums, 0.3, counts=counts) == expected


def test_zero_is_a_threshold() -> None:
    found = resolve_threshold(scores_of(0, 0, 0.5), ones(3), 0.0)
    assert (found.value, found.segment_share) == (0.0, pytest.approx(2 / 3))
    assert resolve_threshold(scores_of(-1, 0.5), ones(2), 0.0).segment_share == 0.5


def test_a_score_equal_to_the_threshold_is_good() -> None:
    # float32(5.6e-4) is above the double 5.6e-4: comparing in doubles would call it bad.
    assert float(np.float32(5.6e-4)) > 5.6e-4
    found = resolve_threshold(scores_of(5.6e-4, 1), ones(2), 5.6e-4)
    assert found.segment_share == 0.5


def test_a_missing_score_is_neither_good_nor_bad() -> None:
    # A float32 score equal to the threshold is good, also where it comes as a double.
    for scores in (
        [5.6e-4, 1, np.nan],
        scores_of(5.6e-4, 1, np.nan),
        scores_of(5.6e-4, 1, np.nan).astype(float),
    ):
        threshold = Threshold(5.6e-4)
        assert threshold.is_good(scores).tolist() == [True, False, False]
        assert threshold.is_bad(scores).tolist() == [False, True, False]
        assert threshold.label(scores).tolist() == [GOOD, BAD, NO_LABEL]
        assert threshold.label(scores).dtype == np.uint8
    assert Threshold(5.6e-4).value == float(np.float32(5.6e-4))


@pytest.mark.parametrize("value", [1e38, -1e300, np.inf, np.nan])
def test_a_threshold_beyond_every_score_is_refused(value) -> None:
    for resolve in (resolve_threshold, lambda *rest: resolve_report_threshold(*rest, None)):
        with pytest.raises(PHFError, match=r"lies beyond every score \(±1e\+09\)"):
            resolve(scores_of(0.5, 0.97), ones(2), value)


def test_thresholds_that_separate_nothing_are_refused() -> None:
    scores = scores_of(0.5, 0.97)
    with pytest.raises(PHFError) as error:
        resolve_threshold(scores, ones(2), 1.3)
    assert str(error.value) == (
        "threshold 1.3 marks every segment good (highest score is 0.97); give good_fraction, or see "
        "'phf corpus stats DIR'"
    )
    with pytest.raises(PHFError, match=r"marks no document kept \(lowest score is 0.5\); give keep_fraction"):
        resolve_threshold(scores, ones(2), 0.4, unit="document")
    with pytest.raises(PHFError, match=r"every segment has the score 0\.5"):
        resolve_good_fraction(scores_of(0.5, 0.5), ones(2), 0.5)
    with pytest.raises(PHFError, match="1 of 2 training segments have no score"):
        resolve_good_fraction(scores_of(0.5, np.nan), ones(2), 0.5)
    with pytest.raises(PHFError, match=r"fraction 1\.5"):
        resolve_keep_fraction(scores, ones(2), 1.5)
    with pytest.raises(PHFError, match="the training split has no tokens"):
        resolve_threshold(scores_of(), ones(0), 0.5)


def test_a_fraction_of_one_keeps_everything() -> None:
    assert resolve_keep_fraction(scores_of(0.1, 0.9), ones(2), 1.0).token_share == 1
    assert resolve_keep_fraction(scores_of(0.5, 0.5), ones(2), 1.0).token_share == 1


def test_document_means_are_plain_means_over_segments() -> None:
    means = mean_document_scores(scores_of(0, 1, 0.5, np.nan, 1), np.array([2, 0, 1, 2]))
    np.testing.assert_array_equal(means, np.array([0.5, np.nan, 0.5, np.nan], np.float32))
    assert means.dtype == np.float32
    message = resolve_keep_fraction(means[[0, 2]], np.array([1, 3]), 1.0).message
    assert message == "threshold 0.5: 100 % of the documents, 100 % of the tokens are kept"


def test_epochs_at_the_budget() -> None:
    assert describe_epochs(0.25, 3_000_000, 12_000_000) == "the best 25 % make 4.0 epochs of 3.0M tokens"
    assert describe_epochs(1.0, 2_500, 1_250) == "all tokens make 0.5 epochs of 2.5k tokens"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 0.2, 0.7]), st.integers(1, 50)), min_size=2, max_size=30
    ),
    st.floats(0.01, 0.99),
)
def test_no_other_threshold_comes_nearer(pairs, fraction: float) -> None:
    scores = np.array([score for score, _ in pairs], np.float32)
    tokens = np.array([count for _, count in pairs])
    if len(set(scores.tolist())) == 1:
        return
    found = resolve_good_fraction(scores, tokens, fraction)
    assert found.token_share == tokens[scores <= np.float32(found.value)].sum() / tokens.sum()
    assert 0 < found.token_share < 1
    shares = [tokens[scores <= value].sum() / tokens.sum() for value in set(scores.tolist())]
    assert (
        abs(found.token_share - fraction)
        <= min(abs(share - fraction) for share in shares if share < 1) + 1e-12
    )
