"""Intervals cover what they claim to cover, and missing scores stay missing."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom

from phf.intervals import (
    _measure_maxima,
    bootstrap_mean,
    bootstrap_ratio,
    clopper_pearson,
    expected_max,
    pooled_t,
    wilson,
)


def coverage(interval, truth: float, draw, num: int = 400) -> float:
    hits = 0
    for trial in range(num):
        estimate = interval(draw(np.random.default_rng(trial)), trial)
        hits += estimate.low <= truth <= estimate.high
    return hits / num


def test_bootstrap_interval_covers_the_mean_19_times_in_20() -> None:
    share = coverage(lambda x, seed: bootstrap_mean(x, 300, seed), 1.0, lambda rng: rng.exponential(size=150))
    assert 0.90 < share < 0.98


def test_bootstrap_ratio_covers_the_ratio_of_sums_not_the_mean_of_ratios() -> None:
    def draw(rng: np.random.Generator) -> np.ndarray:
        size = rng.integers(
            1, 50, size=100
        )  # small documents are worse: the mean of ratios is another number
        return np.stack([size * (1 + 3 / size) + rng.normal(size=100) * np.sqrt(size), size])

    truth = 1 + 3 / 25.0
    assert 0.90 < coverage(lambda x, seed: bootstrap_ratio(x[0], x[1], 300, seed), truth, draw) < 0.98


def test_wilson_covers_and_knows_published_values() -> None:
    estimate = wilson(8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 100).low == pytest.approx(0, abs=1e-12)
    assert wilson(0, 100).high == pytest.approx(0.0370, abs=1e-4)
    assert wilson(100, 100).high == pytest.approx(1)
    share = coverage(lambda hits, _: wilson(int(hits), 80), 0.1, lambda rng: rng.binomial(80, 0.1))
    assert 0.91 < share < 0.99


def test_pooled_t_knows_the_table_and_covers() -> None:
    estimate = pooled_t([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.high - 2 == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert 0.91 < coverage(lambda x, _: pooled_t(x), 0.0, lambda rng: rng.normal(size=3)) < 0.99


def test_expected_max_is_the_mean_over_all_choices() -> None:
    values = np.random.default_rng(0).normal(size=9)
    for k in (1, 2, 4, 9):
        exact = np.mean([max(choice) for choice in combinations(values, k)])
        assert expected_max(values, k, 100, 0).mean == pytest.approx(exact)
    assert expected_max(values, 1, 100, 0).mean == pytest.approx(values.mean())


def test_expected_max_interval_covers() -> None:
    truth = np.random.default_rng(0).normal(size=(200_000, 5)).max(axis=1).mean()
    share = coverage(lambda x, seed: expected_max(x, 5, 200, seed), truth, lambda rng: rng.normal(size=200))
    assert 0.88 < share < 0.99


@pytest.mark.parametrize("sizes", ["one size", "many sizes"])
def test_expected_max_interval_covers_rare_hits(sizes) -> None:
    """5 % hits among 256 samples; benchmarks/coverage.py has the long table."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        hits = rng.random(256) < 0.05
        return hits * (rng.exponential(size=256) if sizes == "many sizes" else 1.0)

    rng = np.random.default_rng(0)
    # The largest of a binomial number of exponential hits; with one size, whether there is any.
    truth = 1 - 0.95**25
    if sizes == "many sizes":
        truth = np.mean([np.sum(1 / np.arange(1, num + 1)) for num in rng.binomial(25, 0.05, size=50_000)])
    share = coverage(lambda x, seed: expected_max(x, 25, 200, seed), truth, draw, num=300)
    assert 0.92 < share < 0.985


def test_the_error_of_an_expected_max_is_the_jackknifes() -> None:
    values = np.random.default_rng(0).exponential(size=(2, 30))
    maxima, errors = _measure_maxima(values, 5)
    for row, maximum, error in zip(values, maxima, errors, strict=True):
        left = [expected_max(np.delete(row, place), 5, 10, 0).mean for place in range(30)]
        assert maximum == pytest.approx(expected_max(row, 5, 10, 0).mean)
        assert error == pytest.approx(np.sqrt(29 / 30 * np.square(left - np.mean(left)).sum()))


def test_an_expected_max_that_too_few_hits_carry_has_no_upper_end() -> None:
    few = expected_max([0.0] * 510 + [0.4, 0.9], 25, 300, 0)
    assert 0 < few.mean < 0.1
    assert np.isnan(few.high)
    whole = expected_max(np.random.default_rng(0).random(25), 25, 300, 0)
    assert np.isnan([whole.low, whole.high]).all(), "of all values together there is but one maximum"
    two = expected_max([0.0] * 500 + [0.5] * 12, 25, 300, 0)
    hits = wilson(12, 512)
    assert (two.low, two.high) == pytest.approx(
        [0.5 * (1 - (1 - end) ** 25) for end in (hits.low, hits.high)]
    )


def test_a_missing_score_is_left_out_and_never_counts_as_zero() -> None:
    values = [np.nan, 2.0, np.nan, *np.linspace(2, 4, 21), 4.0]
    estimate = bootstrap_mean(values, 100, 0)
    assert (estimate.mean, estimate.count) == (3.0, 23)
    assert 2.5 < estimate.low < 2.9 < 3.1 < estimate.high < 3.5
    assert expected_max(values, 23, 100, 0).mean == 4
    assert pooled_t([np.nan, 1.0, 3.0]).count == 2


@pytest.mark.parametrize("values", [[0.0] * 50, [0.1] * 3, [0.0] * 49 + [1.0], [3.0]])
def test_too_few_values_apart_from_the_rest_bound_nothing(values) -> None:
    estimate = bootstrap_mean(values, 1000, 0)
    assert (estimate.mean, estimate.count) == (pytest.approx(np.mean(values)), len(values))
    assert np.isnan(estimate.high)


@pytest.mark.parametrize(
    "estimate",
    [
        bootstrap_mean([np.nan], 100, 0),
        bootstrap_ratio([1.0], [0.0], 100, 0),
        wilson(0, 0),
        pooled_t([]),
        expected_max([], 25, 100, 0),
    ],
)
def test_nothing_to_estimate_from_is_nan_and_count_0(estimate) -> None:
    assert np.isnan([estimate.mean, estimate.low, estimate.high]).all()
    assert estimate.count == 0


def test_one_value_has_no_interval() -> None:
    for estimate in (bootstrap_mean([3.0], 100, 0), pooled_t([3.0])):
        assert estimate.mean == 3
        assert np.isnan([estimate.low, estimate.high]).all()
    short = expected_max([1.0, 2.0], 25, 100, 0)
    assert np.isnan(short.mean)
    assert short.count == 2


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks() -> None:
    values = np.random.default_rng(1).normal(size=5000)
    first = bootstrap_mean(values, 1000, 7)
    assert first == bootstrap_mean(values, 1000, 7)
    assert first != bootstrap_mean(values, 1000, 8)
    assert first.high - first.low == pytest.approx(2 * 1.96 * values.std() / 5000**0.5, rel=0.1)


def test_exact_intervals_of_shares_hold_every_truth() -> None:
    """The chance that one holds the truth, summed over all counts, and the bound at none of n."""
    num = 30
    for truth in (0.001, 0.02, 0.3, 0.97):
        chances = binom.pmf(np.arange(num + 1), num, truth)
        found = [clopper_pearson(hits, num) for hits in range(num + 1)]
        assert chances[[own.low <= truth <= own.high for own in found]].sum() >= 0.95
    assert clopper_pearson(0, 100).high == pytest.approx(1 - 0.025**0.01)
    assert clopper_pearson(100, 100).high == 1
    assert np.isnan(clopper_pearson(0, 0).mean)
