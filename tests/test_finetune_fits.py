"""Curves of finetuning recover a truth that is known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from phf.errors import PHFError
from phf.records import Estimate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from fits import FORMS, Learning, fall, find_crossing, find_fair_calls, fit_forms

TRUTHS = {"d(a - b d)": (0.2, 0.03), "d(a - b log d)": (0.2, 0.1), "a(1 - exp(-d/b))": (0.3, 1.0)}


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_form_that_made_the_points_predicts_the_larger_d(truth):
    d = np.linspace(0.3, 5, 16)
    rng = np.random.default_rng(0)
    gains = FORMS[truth](d, *TRUTHS[truth]) + 0.003 * rng.standard_normal(len(d))
    best, rival, _ = fit_forms(d, gains, np.full(len(d), 0.003))
    assert best.form == truth
    assert rival.form != truth
    assert best.error < rival.error
    assert best.wins > 0.9
    for found, expected in zip((best.a, best.b), TRUTHS[truth], strict=True):
        assert found.low <= expected <= found.high
        assert found.mean == pytest.approx(expected, rel=0.2)


def test_where_nothing_tells_the_forms_apart_none_wins_for_sure():
    """Small d: all three are nearly straight."""
    d = np.linspace(0.05, 0.3, 8)
    fits = fit_forms(d, 0.2 * d + 0.02 * np.sin(np.arange(8)), np.full(8, 0.02))
    assert max(form.wins for form in fits) < 0.9


def test_intervals_of_coefficients_hold_the_truth_as_often_as_they_say():
    d, held = np.linspace(0.3, 5, 14), 0
    for seed in range(40):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(len(d))
        fits = fit_forms(
            d, FORMS["d(a - b d)"](d, 0.2, 0.03) + noise, np.full(len(d), 0.01), num_draws=60, seed=seed
        )
        own = next(form for form in fits if form.form == "d(a - b d)")
        held += own.a.low <= 0.2 <= own.a.high
    assert held >= 34


def test_points_that_scatter_more_than_their_errors_say_have_wider_intervals():
    """As those of several seeds do: the stated error is a third of the true one."""
    d, held = np.linspace(0.3, 5, 14), 0
    for seed in range(40):
        noise = 0.03 * np.random.default_rng(seed).standard_normal(len(d))
        gains = FORMS["d(a - b d)"](d, 0.2, 0.03) + noise
        fits = fit_forms(d, gains, np.full(len(d), 0.01), num_draws=60, seed=seed)
        own = next(form for form in fits if form.form == "d(a - b d)")
        held += own.a.low <= 0.2 <= own.a.high
    assert held >= 34


def make_curve(seed: int, error: float = 0.004) -> list[Learning]:
    rng = np.random.default_rng(seed)
    calls = np.array([0, 200, 400, 800, 1200, 1600, 2000, 2560.0])
    scores = fall(calls, 0.22, 0.08, math.log(500), math.log(1.5)) + error * rng.standard_normal(len(calls))
    half = 1.96 * error
    return [
        Learning(
            call, Estimate(score, score - half, score + half, 512), 2.08 + call * 1e-5, 0.64 - call * 4e-5
        )
        for call, score in zip(calls, scores, strict=True)
    ]


def test_the_calls_at_which_a_curve_meets_a_rival():
    truth = 500 * ((0.22 - 0.08) / (0.12 - 0.08) - 1) ** (1 / 1.5)
    rival = Estimate(0.12, 0.117, 0.123, 512)
    held = 0
    for seed in range(20):
        found = find_crossing(
            make_curve(seed), rival, rival_bits=2.08, start_distinct=0.64, num_draws=100, seed=seed
        )
        held += found.calls.low <= truth <= found.calls.high
        assert found.calls.mean == pytest.approx(truth, rel=0.25)
    assert held >= 17
    assert found.limit.low < 0.08 < found.limit.high
    # distinct-2 falls below .9 x .64 at 1,600 calls, bits per byte rise by 1 % at 2,080.
    assert found.fair_calls == pytest.approx(1600)
    assert found.is_fair
    assert found.fair_share > 0.95


def test_a_rival_beyond_the_limit_is_never_met_and_a_worse_one_at_once():
    curve = make_curve(0)
    never = find_crossing(
        curve, Estimate(0.02, 0.019, 0.021, 512), rival_bits=2.08, start_distinct=0.64, num_draws=50
    )
    assert never.calls.mean == math.inf
    assert not never.is_fair or never.fair_calls == math.inf
    at_once = find_crossing(
        curve, Estimate(0.4, 0.39, 0.41, 512), rival_bits=2.08, start_distinct=0.64, num_draws=50
    )
    assert at_once.calls.mean == 0


def test_what_was_never_fair_is_not():
    curve = make_curve(0)
    assert find_fair_calls(curve, rival_bits=2.0, start_distinct=0.64) == 0
    assert find_fair_calls(curve, rival_bits=3.0, start_distinct=0.1) == math.inf


def test_too_few_points_are_refused():
    few = np.array([1.0, 2.0, 3.0])
    with pytest.raises(PHFError, match="too few"):
        fit_forms(few, few, few)
    with pytest.raises(PHFError, match="too few"):
        find_crossing(make_curve(0)[:2], Estimate(0.1, 0.1, 0.1, 1), rival_bits=2, start_distinct=1)
