"""Tests of differences, against other ways to the same number and by simulation: how often they cry wolf, how often they see."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from phf.records import Estimate
from phf.significance import (
    ALPHA,
    Difference,
    benjamini_hochberg,
    compare_apart,
    compare_hits,
    compare_paired,
    compare_seeds,
    correct,
    holm,
)

REPEATS = 2000
FEW = {"num_bootstrap": 400}


def draw_sparse(rng, num, rate):
    """Scores of which few are not 0, as of a good model."""
    return (rng.random(num) < rate) * rng.exponential(size=num)


SHAPES = {
    "normal": lambda rng: (rng.normal(size=60), rng.normal(size=60)),
    "few not 0, either side": lambda rng: (draw_sparse(rng, 150, 0.04), draw_sparse(rng, 150, 0.04)),
    "long tails": lambda rng: tuple(rng.exponential(size=60) ** 2 for _ in "12"),
    "skewed gaps": lambda rng: (np.exp(rng.normal(size=80)), np.full(80, math.exp(0.5))),
    "a dozen": lambda rng: (rng.normal(size=12), rng.normal(size=12)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_hold_0_and_tests_cry_wolf_as_often_as_they_say(shape):
    """Where the truth is 0. Of gaps that are 0 but for a few on either side the bootstrap-t alone gives .10 false alarms."""
    rng = np.random.default_rng(len(shape))
    found = [compare_paired(*SHAPES[shape](rng), **FEW, seed=repeat) for repeat in range(REPEATS)]
    held = [
        one.estimate.low <= 0 <= one.estimate.high
        for one in found
        if not math.isnan(one.estimate.low + one.estimate.high)
    ]
    assert len(held) > 0.9 * REPEATS
    assert 0.94 <= np.mean(held) <= 0.985
    alarms = np.mean([one.p <= ALPHA for one in found])
    assert 0.02 <= alarms <= 0.06
    assert np.mean([one.p <= 0.2 for one in found]) == pytest.approx(0.185, abs=0.04)


def test_an_interval_leaves_out_0_where_the_test_says_so():
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 0.6, 300):
        found = compare_paired(rng.normal(size=40) + shift, rng.normal(size=40), **FEW)
        if not 0.04 < found.p < 0.06:  # at the edge resamples are counted in two ways
            assert (found.p <= ALPHA) == (not found.estimate.low <= 0 <= found.estimate.high)


def test_ratios_are_of_sums_and_clusters_are_drawn_whole():
    rng = np.random.default_rng(1)
    own, other, sizes = rng.normal(size=50), rng.normal(size=50), rng.integers(1, 9, 50)
    found = compare_paired(own, other, sizes, **FEW)
    assert found.estimate.mean == pytest.approx((own.sum() - other.sum()) / sizes.sum())
    whole = compare_paired(own, other, sizes, np.repeat(np.arange(10), 5), **FEW)
    assert whole.estimate.mean == pytest.approx(found.estimate.mean)
    assert (found.estimate.count, whole.estimate.count) == (50, 10)

    def alarm(clusters):
        gaps = np.repeat(rng.normal(size=20), 5) + 0.3 * rng.normal(size=100)
        return compare_paired(gaps, np.zeros(100), clusters=clusters, **FEW).p <= ALPHA

    names = np.repeat(np.arange(20), 5)
    assert np.mean([alarm(names) for _ in range(500)]) <= 0.08
    assert np.mean([alarm(None) for _ in range(500)]) > 0.25, "what hangs together is no 100 items"
    weighted = [
        compare_paired(rng.normal(size=80) * sizes, rng.normal(size=80) * sizes, sizes, **FEW).p <= ALPHA
        for sizes in (rng.integers(1, 30, 80) for _ in range(REPEATS // 2))
    ]
    assert 0.02 <= np.mean(weighted) <= 0.065


def test_what_is_the_same_everywhere_is_no_difference():
    same = compare_paired([0.2, 0.4, 0.7], [0.2, 0.4, 0.7])
    assert (same.p, same.sign, same.estimate.mean) == (1.0, 0, 0.0)
    assert math.isnan(same.detectable), "nothing says how gaps scatter"
    assert same.needed(0.1) is None
    one = compare_paired([0.2, math.nan], [0.1, 0.3])
    assert (one.test, one.estimate.count) == ("none", 1)
    assert math.isnan(one.p)


def test_hits_by_mcnemars_exact_test():
    rng = np.random.default_rng(2)
    for _ in range(50):
        own, other = rng.random(40) < 0.3, rng.random(40) < 0.5
        gained, lost = int((own & ~other).sum()), int((other & ~own).sum())
        found = compare_paired(own, other)
        assert found.test == "McNemar"
        assert found.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
        assert found.estimate.mean == pytest.approx(own.mean() - other.mean())
    assert compare_paired(own, other * 0.5).test == "paired", "what is no hit has another test"

    def draw():
        first = rng.random(150)
        return compare_hits(first < 0.2, (first + rng.normal(0, 0.1, 150)) % 1 < 0.2)

    found = [draw() for _ in range(REPEATS)]
    assert 0.015 <= np.mean([one.p <= ALPHA for one in found]) <= 0.055
    assert 0.935 <= np.mean([one.estimate.low <= 0 <= one.estimate.high for one in found]) <= 0.98


def test_seeds_by_students_t():
    rng = np.random.default_rng(3)
    own, other = rng.normal(size=4), rng.normal(size=4)
    paired = compare_seeds(dict(enumerate(own)), dict(enumerate(other)))
    assert (paired.test, paired.estimate.count) == ("paired seeds", 4)
    oracle = stats.ttest_rel(own, other)
    assert paired.p == pytest.approx(oracle.pvalue)
    assert (paired.estimate.low, paired.estimate.high) == pytest.approx(tuple(oracle.confidence_interval()))
    apart = compare_seeds(dict(enumerate(own)), {seed + 9: value for seed, value in enumerate(other[:3])})
    oracle = stats.ttest_ind(own, other[:3], equal_var=False)
    assert (apart.test, apart.is_paired) == ("seeds", False)
    assert apart.p == pytest.approx(oracle.pvalue)
    assert (apart.estimate.low, apart.estimate.high) == pytest.approx(tuple(oracle.confidence_interval()))
    alarms = [
        compare_seeds(dict(enumerate(rng.normal(size=3))), {0: rng.normal()}).p <= ALPHA
        for _ in range(REPEATS)
    ]
    assert np.mean(alarms) == pytest.approx(ALPHA, abs=0.015), "one seed against several"
    assert compare_seeds({0: 1.0}, {0: 2.0}).test == "none"
    assert compare_seeds({0: 1.0, 1: math.nan}, {0: 2.0, 1: 1.0}).estimate.count == 1


def test_numbers_that_nothing_links_by_their_intervals():
    rng = np.random.default_rng(4)

    def estimate(size):
        values = rng.normal(size=size)
        low, high = stats.t.interval(0.95, size - 1, values.mean(), stats.sem(values))
        return Estimate(float(values.mean()), float(low), float(high), size)

    found = [compare_apart(estimate(60), estimate(90)) for _ in range(REPEATS)]
    assert np.mean([one.p <= ALPHA for one in found]) == pytest.approx(ALPHA, abs=0.015)
    assert all((one.p <= ALPHA) == (not one.estimate.low <= 0 <= one.estimate.high) for one in found)
    bare = compare_apart(Estimate(1.0, math.nan, math.nan, 9), estimate(60))
    assert (bare.test, math.isnan(bare.p)) == ("none", True)


POWERS = {
    "paired": (lambda rng, d: compare_paired(rng.normal(d, 1, 200), np.zeros(200), **FEW), 0.0),
    "seeds": (
        lambda rng, d: compare_seeds(dict(enumerate(rng.normal(d, 1, 3))), dict.fromkeys(range(3), 0.0)),
        0.1,
    ),
    "unpaired": (lambda rng, d: compare_apart(wide(rng.normal(d, 0.1)), wide(rng.normal(0, 0.1))), 0.0),
}


def wide(mean):
    return Estimate(mean, mean - 0.196, mean + 0.196, 100)


@pytest.mark.parametrize("name", POWERS)
def test_what_is_called_detectable_is_seen_four_times_in_five(name):
    draw, _ = POWERS[name]
    rng = np.random.default_rng(5)
    sizes = {"paired": Difference(Estimate(0, 0, 0, 200), "paired", error=200**-0.5, spread=1.0),
             "seeds": Difference(Estimate(0, 0, 0, 3), "paired seeds", error=3**-0.5, spread=1.0, degrees=2),
             "unpaired": compare_apart(wide(0.0), wide(0.0))}  # fmt: skip
    size = sizes[name].detectable
    assert sizes[name].needed(size) in (sizes[name].estimate.count, sizes[name].estimate.count + 1)
    assert sizes[name].needed(size / 2) > 1.5 * sizes[name].estimate.count
    assert np.mean([draw(rng, size).p <= ALPHA for _ in range(REPEATS // 2)]) == pytest.approx(0.8, abs=0.045)


@pytest.mark.parametrize(
    ("num", "discordant"), [(100, 0.2), (512, 0.05), (512, 0.3), (2000, 0.02), (512, 0.0)]
)
def test_detectable_shares_are_seen_four_times_in_five(num, discordant):
    found = Difference(Estimate(0, 0, 0, num), "McNemar", spread=discordant)
    size, rng = found.detectable, np.random.default_rng(6)
    assert found.needed(size) in (num, num + 1)
    share = max(discordant, size)
    counts = rng.multinomial(num, [(share + size) / 2, (share - size) / 2, 1 - share], REPEATS)
    seen = np.mean([stats.binom.cdf(min(row[:2]), sum(row[:2]), 0.5) <= ALPHA / 2 for row in counts])
    assert 0.785 <= seen <= 0.9
    assert math.isnan(Difference(Estimate(0, 0, 0, 5), "McNemar", spread=0.0).detectable), (
        "five pairs show nothing"
    )


def test_corrections_for_many_tests():
    rng = np.random.default_rng(7)
    for num in (1, 2, 5, 40):
        p_values = np.round(rng.random(num) ** 3, 2)  # with ties
        np.testing.assert_allclose(benjamini_hochberg(p_values), stats.false_discovery_control(p_values))
    p_values = rng.random(6) ** 3

    def reject_together(chosen):
        """Bonferroni's p-value of the hypothesis that all of some are true."""
        return min(1.0, len(chosen) * min(p_values[place] for place in chosen))

    closed = [  # Holm's is the closed test of Bonferroni's
        max(
            reject_together(chosen)
            for size in range(1, 7)
            for chosen in itertools.combinations(range(6), size)
            if place in chosen
        )
        for place in range(6)
    ]
    np.testing.assert_allclose(holm(p_values), closed)
    for method in (benjamini_hochberg, holm):
        with_gap = method([0.01, math.nan, 0.2])
        np.testing.assert_array_equal(np.isnan(with_gap), [False, True, False])
        np.testing.assert_allclose(
            with_gap[[0, 2]], method([0.01, 0.2]), err_msg="what is no test does not count"
        )
        assert len(method([])) == 0


def test_false_alarms_among_many_are_as_rare_as_promised():
    rng = np.random.default_rng(8)
    shares, any_alarm = [], []
    for _ in range(REPEATS):
        p_values = np.append(2 * stats.norm.sf(np.abs(rng.normal(3, 1, 10))), rng.random(20))
        told = benjamini_hochberg(p_values) <= ALPHA
        shares.append(told[10:].sum() / max(told.sum(), 1))
        any_alarm.append((holm(p_values)[10:] <= ALPHA).any())
    assert np.mean(shares) == pytest.approx(ALPHA * 20 / 30, abs=0.008)
    assert 0.025 <= np.mean(any_alarm) <= 0.05
    one, other = correct(
        [Difference(Estimate(1, 0, 2, 9), "paired", 0.04), Difference(Estimate(-1, 0, 2, 9), "paired", 0.03)]
    )
    assert (one.sign, other.sign) == (1, -1)
    many = correct(
        [
            Difference(Estimate(1, 0, 2, 9), "paired", 0.04),
            *[Difference(Estimate(1, 0, 2, 9), "paired", 0.5)] * 9,
        ]
    )
    assert many[0].sign == 0, "one of ten comes by chance"
