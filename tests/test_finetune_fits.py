"""Curves of finetuning recover a truth that is known: the fits, and what the scripts of docs/finetune.md say by them."""

import math
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from phf.errors import PHFError
from phf.records import Estimate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import crossing
import overoptimisation
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


def test_a_form_that_fits_the_smaller_d_best_loses_where_it_does_not_predict_the_larger():
    """A parabola up to .6, which levels off beyond: the parabola's own fit is exact, and falls where the points stay."""
    near, far = np.linspace(0.1, 0.6, 9), np.linspace(1, 4, 6)
    gains = 0.3 * np.concatenate([near - near**2 / 2, -np.expm1(-far)])
    best, *others = fit_forms(np.concatenate([near, far]), gains, np.full(15, 0.001))
    assert best.form == "a(1 - exp(-d/b))"
    parabola = next(form for form in others if form.form == "d(a - b d)")
    assert best.error < parabola.error / 5


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


CALLS = range(0, 2561, 320)
COSTS = {"once": 0.0, "each": 2560.0, "written": 1e5, "flops": 1e12}


def make_arm(name: str, scores: dict[int, list[float]], error: float = 0.003) -> crossing.Arm:
    """Scores by seed, at each of `CALLS` or of a run alone; bits per byte rise by .5 % in all, distinct-2 falls by a twentieth."""

    def find(score: float, calls: int) -> crossing.Found:
        def about(mean: float, error: float) -> Estimate:
            return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error, 512)

        bare = Estimate(0.64 * (1 - 0.05 * calls / 2560), math.nan, math.nan, 512)
        judged = {key: about(score, error) for key in ("held_out", "annotator", "after_held_out")}
        return {**judged, "bits": about(2.08 * (1 + 0.005 * calls / 2560), 0.02), "distinct": bare}

    curves = {
        seed: {calls: find(score, calls) for calls, score in zip(CALLS, own, strict=False)}
        for seed, own in scores.items()
    }
    return crossing.Arm(name, curves, COSTS)


def learn(name: str, half: float, seeds: int = 3) -> crossing.Arm:
    """Curves that fall from .22 to .08 and are half there after so many calls, with noise."""
    rng, calls = np.random.default_rng(0), np.array(CALLS, float)
    truth = fall(calls, 0.22, 0.08, math.log(half), math.log(1.5))
    return make_arm(
        name, {seed: (truth + 0.003 * rng.standard_normal(len(calls))).tolist() for seed in range(seeds)}
    )


def test_the_script_says_where_each_curve_meets_each_rival_and_where_none_does():
    start, met, beyond = (
        make_arm(*own) for own in (("mle", {0: [0.22]}), ("a", {0: [0.12]}), ("b", {0: [0.02]}))
    )
    slow, quick = learn("mle + RLOO", 500), learn("mle + DPO", 250)
    found = list(crossing.find_crossings([slow, quick], [met, beyond, slow], start, num_draws=100))
    own = {(row["judge"], row["curve"], row["rival"]): row for row in found}
    assert len(own) == 2 * 5, "no curve meets itself"
    for half, curve in ((500, slow), (250, quick)):
        truth = half * ((0.22 - 0.08) / (0.12 - 0.08) - 1) ** (1 / 1.5)
        row = own["held_out", curve.name, "a"]
        assert row["calls"]["low"] <= truth <= row["calls"]["high"]
        assert row["calls"]["mean"] == pytest.approx(truth, rel=0.15)
        assert row["seeds"] == pytest.approx([truth] * 3, rel=0.3)
        assert row["fair_calls"] == math.inf
        assert own["held_out", curve.name, "b"]["calls"]["mean"] == math.inf
    lines = list(crossing.list_tables([start, met, beyond, slow, quick], found, 10**6, 10**7))
    (row,) = (line for line in lines if line.startswith("| held-out | mle + RLOO | b |"))
    assert "> 2,560 [> 2,560, > 2,560] | > 2,560, > 2,560, > 2,560 | the end |" in row
    assert "inf" not in "".join(lines)


def test_seeds_that_scatter_widen_what_is_said_of_their_mean():
    alike, apart = (
        crossing.pool([Estimate(mean, mean - 0.01, mean + 0.01, 9) for mean in means])
        for means in ([0.1, 0.1, 0.1], [0.0, 0.1, 0.2])
    )
    assert alike.mean == pytest.approx(apart.mean)
    assert alike.high - alike.mean == pytest.approx(0.01 / math.sqrt(3))
    assert apart.high - apart.mean == pytest.approx(1.96 * 0.1 / math.sqrt(3))


def test_offline_dpo_spends_as_many_reward_calls_a_step():
    given = Namespace(steps=40, texts=64, every=5, beta=0.05, judge="toxicity-lstm")
    dpo, rloo = (crossing.Study.configure(SimpleNamespace(given=given), 0, kind) for kind in ("dpo", "rloo"))
    assert dpo.pool == dpo.steps * dpo.texts * 2 == rloo.steps * rloo.texts
    assert (dpo.sampling.control, rloo.sampling.control) == ("prefix", "forced")


def make_points(gain: float, form: str, seed: int) -> dict[str, dict]:
    """RLOO's points of two arms, of which the second has more gain by a half at each d, from a base of .3."""
    rng, points = np.random.default_rng(seed), {}
    for arm, factor in (("corpus", 1.0), ("samples", 1.5)):
        for beta in ("0", "0.05"):
            for step, d in enumerate(np.linspace(0.3, 5, 8)):
                gold = 0.3 - factor * gain * FORMS[form](d, *TRUTHS[form]) + 0.002 * rng.standard_normal()
                point = {"at": step, "d": d, "gold": gold, "proxy": gold - 0.1, "error": 0.002}
                points[f"{arm}/300/{seed}/rloo:beta={beta}@{step}"] = {
                    "key": f"{arm}/300/{seed}/rloo:beta={beta}@{step}",
                    **point,
                }
    return points


@pytest.mark.parametrize("form", TRUTHS)
def test_the_grid_says_which_form_predicts_larger_d_and_what_arms_differ_by(form):
    grid = overoptimisation.Grid.__new__(overoptimisation.Grid)
    grid.points = {key: own for seed in range(3) for key, own in make_points(0.4, form, seed).items()}
    fits = list(grid.fit(Estimate(0.3, 0.29, 0.31, 3000)))
    assert [(fit["arm"], fit["points"], fit["policy"]) for fit in fits] == [
        ("corpus", 48, "rloo"),
        ("samples", 48, "rloo"),
    ]
    for fit, factor in zip(fits, (0.4, 0.6), strict=True):
        assert fit["forms"][0]["form"] == form
        assert fit["split"] < fit["largest"]
        assert fit["forms"][0]["a"]["mean"] == pytest.approx(factor * TRUTHS[form][0], rel=0.15)
    ends = list(grid.find_ends())
    assert [len(end["seeds"]["gold"]) for end in ends] == [3] * 4
    assert all(end["gap"]["mean"] == pytest.approx(0.1) for end in ends)
    (difference,) = overoptimisation.compare_arms(ends)
    truth = -0.2 * float(FORMS[form](5.0, *TRUTHS[form]))
    assert (difference["arm"], difference["minus"]) == ("samples", "corpus")
    assert difference["gold"]["low"] <= truth <= difference["gold"]["high"]
    assert difference["gold"]["mean"] == pytest.approx(truth, abs=0.005)
