"""Chains of segments: numbers of a known chain, counts by hand, and estimates that hold the truth."""

import numpy as np
import pytest

from phf.chains import truths
from phf.chains.absorbing import estimate_returns
from phf.chains.chain import Chain, count_steps, estimate_chain, fit_chain
from phf.chains.ergodicity import expect_pairs, intraclass_correlation, measure_ergodicity
from phf.chains.hidden import estimate_hidden, fit_hidden
from phf.chains.orders import choose_order, count_contexts, fit_best, fit_kernel
from phf.chains.pages import AFTER, Pages, count_lengths, draw_cuts, find_cuts, simulate_pages
from phf.chains.places import compare_orders, compare_places, estimate_drift
from phf.chains.truths import (
    BAD,
    CONFUSION,
    DRIFT,
    GOOD,
    IID,
    LONGEST,
    SLOW,
    STATISTICS,
    judge_pages,
    make_chain,
    measure_confusion,
    validate,
    write_drifting,
    write_mixture,
)

THREE = Chain(
    np.array([0.7, 0.2, 0.1]), np.array([[0.6, 0.2, 0.05], [0.3, 0.4, 0.1], [0.05, 0.05, 0.8]])
)  # good, bad, looping


def create_pages(*rows: tuple[list[int], bool], num_states: int = 2) -> Pages:
    longest = max(len(row) for row, _ in rows)
    states = np.array([row + [AFTER] * (longest - len(row)) for row, _ in rows])
    return Pages(states, np.array([ended for _, ended in rows]), num_states)


def test_steps_by_hand_and_nothing_behind_a_cut() -> None:
    counts = count_steps(create_pages(([0, 0, 1], True), ([1], False)))
    assert counts.tolist() == [
        [[1, 1, 0], [0, 0, 1], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
    ]


def test_numbers_of_a_chain_are_those_of_its_powers() -> None:
    inner, start = THREE.steps, THREE.initial
    # Far into pages that have not ended.
    law = start @ np.linalg.matrix_power(inner, 400)
    assert THREE.quasi_stationary == pytest.approx(law / law.sum(), abs=1e-9)
    assert THREE.stationary == pytest.approx(start @ np.linalg.matrix_power(THREE.closed, 400), abs=1e-9)
    # From good, before bad: sums over all ways.
    others, end = [0, 2], 0.0
    law = np.array([1.0, 0.0])
    for _ in range(2000):
        end += law @ THREE.ends[others]
        law = law @ inner[np.ix_(others, others)]
    assert THREE.end_before(BAD)[0] == pytest.approx(end, abs=1e-9)
    time, law = 0.0, np.array([1.0, 0.0])
    for _ in range(5000):
        time += law.sum()
        law = law @ THREE.closed[np.ix_(others, others)]
    assert THREE.hitting_time(BAD)[0] == pytest.approx(time, rel=1e-9)
    assert THREE.hitting_time(BAD)[BAD] == 0
    # What is left of a deviation after each further segment.
    left = [np.linalg.matrix_power(THREE.closed, num)[0] - THREE.stationary for num in (40, 41)]
    assert THREE.memory == pytest.approx(float(np.median(left[1] / left[0])), rel=1e-6)
    assert THREE.timescale == pytest.approx(-1 / np.log(THREE.memory))
    assert make_chain(0.8, 0.2).memory == pytest.approx(0, abs=1e-12)
    assert make_chain(0.8, 0.2).timescale == pytest.approx(0, abs=0.1)


def test_pages_give_their_chain_back_though_they_are_cut() -> None:
    """An end that is seen at the horizon, where a page that went on is dropped, would make ends look more frequent."""
    pages = THREE.simulate(40_000, 3, np.random.default_rng(0))
    found = fit_chain(count_steps(pages).sum(axis=0))
    assert found.steps == pytest.approx(THREE.steps, abs=0.015)
    assert found.ends == pytest.approx(THREE.ends, abs=0.01)
    assert found.initial == pytest.approx(THREE.initial, abs=0.01)
    assert found.initial.sum() == pytest.approx(1, abs=1e-12)  # a page begins with a segment
    assert not pages.ended[pages.lengths == 3].any()


def test_what_never_comes_has_no_time() -> None:
    chain = Chain(np.array([1.0, 0.0]), np.array([[0.9, 0.0], [0.5, 0.4]]))
    assert np.isnan(chain.hitting_time(BAD)[0])
    assert chain.end_before(BAD)[0] == pytest.approx(1)


def test_a_state_that_never_comes_adds_no_memory() -> None:
    pages = IID.simulate(300, LONGEST, np.random.default_rng(0))
    three = Pages(pages.states, pages.ended, 3)
    own, more = (fit_chain(count_steps(some).sum(axis=0)) for some in (pages, three))
    assert more.memory == pytest.approx(float(own.memory), abs=1e-3)


def test_cuts_are_found_behind_ends() -> None:
    """Pages of which half end first: the rest says where they would have been cut."""
    rng = np.random.default_rng(0)
    cut = rng.choice([2, 5, 9], size=20_000, p=[0.3, 0.5, 0.2])
    pages = make_chain(0.9, 0.7, end=0.15).simulate(20_000, 9, rng, cut)
    chances = find_cuts(count_lengths(pages).sum(axis=0))
    assert chances[:9] == pytest.approx([1, 1, 0.7, 0.7, 0.7, 0.2, 0.2, 0.2, 0.2], abs=0.02)
    assert chances[9] == 0
    drawn = draw_cuts(pages, 20_000, rng)
    assert np.bincount(drawn, minlength=10)[[2, 5, 9]] / 20_000 == pytest.approx([0.3, 0.5, 0.2], abs=0.02)


def test_the_order_of_a_chain() -> None:
    first = SLOW.simulate(500, LONGEST, np.random.default_rng(0))
    assert choose_order(count_contexts(first).sum(axis=0)) == 1
    assert compare_orders(first, 100, 0) > 0.01
    # The next segment is that before the last: order 2, and no chain of order 1 could tell.
    rng = np.random.default_rng(0)
    states = rng.integers(2, size=(300, 12))
    for place in range(2, 12):
        states[:, place] = np.where(rng.random(300) < 0.9, states[:, place - 2], states[:, place])
    second = Pages(states, np.zeros(300, np.bool_), 2)
    assert choose_order(count_contexts(second).sum(axis=0)) == 2
    assert compare_orders(second, 100, 0) > 0.01
    # Order 2 so weak that BIC takes order 1 for it, and the likelihood ratio does not.
    kernel = np.full((9, 3), [0.8, 0.15, 0.05])
    kernel[:, :2] += np.where(np.arange(9)[:, None] % 9 // 3 == 1, [-0.06, 0.06], 0)
    weak = simulate_pages(kernel, 500, LONGEST, rng)
    assert choose_order(count_contexts(weak).sum(axis=0)) == 1
    assert compare_orders(weak, 200, 0) < 0.02


def test_a_rare_state_is_no_longer_memory() -> None:
    """Chi-square takes 4 in 10 of these for chains of order 2."""
    chain = Chain(
        np.array([0.9, 0.08, 0.02]), np.array([[0.85, 0.06, 0.01], [0.3, 0.6, 0.02], [0.05, 0.05, 0.8]])
    )
    found = [
        compare_orders(chain.simulate(200, LONGEST, np.random.default_rng(seed)), 60, seed) <= 0.05
        for seed in range(16)
    ]
    assert sum(found) <= 3


def test_far_pairs_of_a_chain_are_as_expected() -> None:
    rng = np.random.default_rng(0)
    for order in (1, 2, 3):
        kernel = fit_kernel(count_contexts(SLOW.simulate(200, LONGEST, rng), order).sum(axis=0))
        cut = rng.integers(4, 16, size=60_000)
        pages = simulate_pages(kernel, 60_000, 15, rng, cut)
        values = np.array([0.0, 1.0])
        cuts = np.array([(cut > place).mean() for place in range(16)])
        (expected,) = expect_pairs(kernel[None], values, cuts[None], 3)
        found, there = np.where(pages.is_there, values[pages.states], 0), pages.is_there
        sums = np.zeros(4)
        for before in range(15):
            for behind in range(before + 3, 15):
                both = there[:, before] & there[:, behind]
                one, other = found[both, before], found[both, behind]
                sums += [both.sum(), one.sum(), other.sum(), (one * other).sum()]
        assert sums / 60_000 == pytest.approx(expected, rel=0.05)


def test_a_mixture_is_told_from_a_slow_chain() -> None:
    """To shuffle segments across pages rejects both, and R-hat ranks them the wrong way round."""
    found = {}
    for name, write in (
        ("slow", lambda num, rng: SLOW.simulate(num, LONGEST, rng)),
        ("mixture", write_mixture),
    ):
        found[name] = [
            measure_ergodicity(write(400, np.random.default_rng(seed)), [0, 1], 60, seed) for seed in range(4)
        ]
    assert sum(own.p <= 0.05 for own in found["slow"]) <= 1
    assert all(own.p <= 0.05 for own in found["mixture"])
    assert all(
        own.covariance.mean > 0.03 for own in found["slow"]
    )  # as alike as the mixture's, from near ones alone
    assert np.mean([own.excess.mean for own in found["mixture"]]) == pytest.approx(0.1, abs=0.04)
    short = SLOW.simulate(50, 6, np.random.default_rng(0))
    assert measure_ergodicity(short, [0, 1], 60, 0) is None


def test_the_share_between_pages() -> None:
    rng = np.random.default_rng(0)
    assert intraclass_correlation(write_mixture(4000, rng), [0, 1], 50, 0).mean == pytest.approx(
        0.1, abs=0.02
    )
    own = intraclass_correlation(IID.simulate(4000, LONGEST, rng), [0, 1], 50, 0)
    assert own.low < 0 < own.high


def test_a_judge_that_errs_fakes_switches_and_known_confusion_takes_them_back() -> None:
    chain, rng = make_chain(0.92, 0.85), np.random.default_rng(0)
    judged = judge_pages(chain.simulate(4000, LONGEST, rng), rng)
    naive = fit_chain(count_steps(judged).sum(axis=0))
    assert naive.steps[0, 1] > 1.5 * chain.steps[0, 1]
    found = fit_hidden(judged, CONFUSION)
    assert found.steps == pytest.approx(chain.steps, abs=0.02)
    assert found.ends == pytest.approx(chain.ends, abs=0.01)
    labelled = chain.simulate(50, LONGEST, rng)
    known = measure_confusion(labelled, judge_pages(labelled, rng), is_own=False)
    small = Pages(judged.states[:300], judged.ended[:300], 2)
    own = estimate_hidden(small, known, {"turn": STATISTICS["good -> bad"]}, 25, 0)["turn"]
    assert own.low < chain.steps[0, 1] < own.high
    # Of a judge that never errs the hidden chain is the judged one.
    sure = fit_hidden(judged, np.eye(2))
    assert sure.steps == pytest.approx(naive.steps, abs=2e-3)


def test_weights_are_repeats() -> None:
    pages = THREE.simulate(30, 8, np.random.default_rng(0))
    weights = np.random.default_rng(1).integers(0, 3, size=30).astype(float)
    repeated = pages.take(np.repeat(np.arange(30), weights.astype(int)))
    for count in (count_contexts, count_lengths):
        assert np.tensordot(weights, count(pages), axes=1).tolist() == count(repeated).sum(axis=0).tolist()
    assert count_contexts(pages, per_group=10).tolist() == [
        count_contexts(pages.take(np.arange(start, start + 10))).sum(axis=0).tolist() for start in (0, 10, 20)
    ]
    confusion = np.array([[0.9, 0.05, 0.05], [0.1, 0.85, 0.05], [0, 0.1, 0.9]])
    assert fit_hidden(pages, confusion, weights).steps == pytest.approx(
        fit_hidden(repeated, confusion).steps, abs=1e-3
    )


def test_intervals_over_pages_hold_the_truth() -> None:
    truth = float(STATISTICS["bad -> good"](SLOW))
    held = []
    for seed in range(60):
        pages = SLOW.simulate(200, LONGEST, np.random.default_rng(seed))
        own = estimate_chain(pages, {"back": STATISTICS["bad -> good"]}, 100, seed)["back"]
        held.append(own.low <= truth <= own.high)
    assert 0.85 <= np.mean(held) <= 1


def test_the_order_of_the_best_fit_is_written_over_long_contexts() -> None:
    rng = np.random.default_rng(0)
    states = rng.integers(2, size=(2, 300, 12))
    for place in range(2, 12):
        states[1, :, place] = np.where(rng.random(300) < 0.9, states[1, :, place - 2], states[1, :, place])
    pages = Pages(states.reshape(600, 12), np.zeros(600, np.bool_), 2)
    kernels, orders = fit_best(count_contexts(pages, per_group=300))
    assert orders.tolist() == [1, 2]
    last, before = 9 + 0 + 1, 9 + 3 + 0  # contexts 1, 0, 1 and 1, 1, 0 in base 3
    assert kernels[0, last].tolist() == kernels[0, 1].tolist()
    assert kernels[1, last] == pytest.approx([0.95, 0.05, 0], abs=0.03)
    assert kernels[1, before] == pytest.approx([0.05, 0.95, 0], abs=0.03)


def test_a_rate_that_drifts_is_told_from_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    same, drifting = SLOW.simulate(500, LONGEST, rng), write_drifting(500, rng)
    assert compare_places(same, 100, 0) > 0.05
    assert compare_places(drifting, 100, 0) < 0.02
    own, other = (estimate_drift(pages, GOOD, BAD, 200, 0) for pages in (same, drifting))
    assert own.low < 0 < own.high
    assert 0.005 < other.low < DRIFT < other.high
    rare = Pages(np.zeros((50, 8), np.int64), np.ones(50, np.bool_), 2)
    assert np.isnan(estimate_drift(rare, GOOD, BAD, 100, 0).mean)


def test_a_chain_of_order_2_is_alike_in_all_places() -> None:
    """Rates of order 1 differ between places there; the law of the test is the fitted chain's own."""
    kernel = np.full((9, 3), [0.7, 0.2, 0.1])
    kernel[[4, 7], :2], kernel[8] = [0.2, 0.7], [0.9, 0.1, 0]  # bad behind bad or at the start: stays bad
    rejected = [
        compare_places(simulate_pages(kernel, 400, LONGEST, np.random.default_rng(seed)), 60, seed) <= 0.05
        for seed in range(8)
    ]
    assert sum(rejected) <= 2


def test_returns_by_hand() -> None:
    pages = create_pages(
        ([0, 1, 1, 0, 0, 0], False),  # good again after 2
        ([0, 1, 0, 1, 1, 1], False),  # after 1: the first visit alone counts
        ([1, 1, 1, 1, 1, 1], False),  # still bad
        ([0, 1], True),  # ended
        ([0, 1, 1], False),  # cut too early
        ([0, 0, 0, 0, 1, 0], False),  # too near the horizon
        ([0, 0], True),
    )
    returned, stays = estimate_returns(pages, BAD, GOOD, 3)
    assert [own.mean for own in returned] == [0.25, 0.5, 0.5]
    assert (stays.mean, stays.count) == (0.25, 4)


def test_a_state_that_is_never_left_has_a_bound() -> None:
    """Clopper and Pearson at none of n: 1 - .025^(1 / n)."""
    chain = Chain(np.array([0.5, 0.5]), np.array([[0.9, 0.05], [0.0, 1.0]]))
    returned, stays = estimate_returns(chain.simulate(200, LONGEST, np.random.default_rng(0)), BAD, GOOD, 10)
    assert returned[-1].mean == returned[-1].low == 0
    assert returned[-1].high == pytest.approx(1 - 0.025 ** (1 / returned[-1].count))
    assert stays.mean == 1
    assert np.isnan(estimate_returns(create_pages(([0, 0], True)), BAD, GOOD, 1)[1].mean)


def test_validate_runs_through_all_truths(monkeypatch) -> None:
    monkeypatch.setattr(truths, "_MANY", 20_000)
    found = list(validate(2, num_pages=120, num_bootstrap=20))
    assert len({row.source for row in found}) == 7
    assert [row.share for row in found if row.is_test and row.truth == 1] == [1.0, 1.0]
    assert all(abs(row.bias) < 0.5 * max(abs(row.truth), 0.2) for row in found)
