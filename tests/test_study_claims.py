"""Claims of `phf study`: the grammar of contrasts, variances that are shrunk, and how often a verdict is wrong."""

import math

import numpy as np
import pytest

from phf.config.study import Claim
from phf.errors import PHFError
from phf.records import Estimate, Identity
from phf.results import Judge, Measurement
from phf.study.contrasts import Contrast, fit_variances, judge_claims
from phf.study.results import RunResults

JUDGES = [
    Judge(f"{name}@1", role, "probability", 1.0, 0.5, Identity(name, "1", {}))
    for name, role in (("svm", "annotator"), ("lstm", "held-out"))
]


def make_run(
    arm: str, seed: int, numbers: dict[tuple, float], scores=None, half: float = math.nan
) -> RunResults:
    """Numbers by (measure, mode, judge's slug, of)."""
    rows = [
        Measurement(measure, Estimate(mean, mean - half, mean + half, 100), mode, judge, of)
        for (measure, mode, judge, of), mean in numbers.items()
    ]
    return RunResults(arm, seed, "hash", 1.0, JUDGES, [], rows, scores or {}, {})


def claim(*contrasts: str, text: str = "It is so") -> Claim:
    return Claim(text=text, contrasts=contrasts)


def test_a_contrast_names_measure_judge_place_arms_and_ratio():
    found = Contrast.parse("reference[lstm](best of 16)@2.5 a+b.c/good > 0.45 mle/none+rejection:limit=0.3")
    assert (found.measure, found.judge, found.of, found.at) == ("reference", "lstm", "best of 16", 2.5)
    assert (found.arms, found.modes) == (("a+b.c", "mle"), ("good", "none+rejection:limit=0.3"))
    assert (found.ratio, found.is_below) == (0.45, False)
    assert Contrast.parse("bits a < b").ratio == 1
    for text in ("score a b", "score[svm] a < ", "score a < 0 b", "a < b", "score a = b"):
        with pytest.raises(PHFError, match="is not of the form"):
            Contrast.parse(text)


def test_what_a_run_does_not_have_is_said_with_what_it_has():
    runs = [make_run(arm, 0, {("score", "good", "svm@1", None): 0.1}) for arm in "ab"]
    for text, expected in (
        ("score[other] a/good < b/good", r"has no such number; it has score \[svm\]"),
        ("scores[svm] a/good < b/good", "its measures are score"),
        ("score[svm] a/bad < b/good", "no such number"),
    ):
        with pytest.raises(PHFError, match=expected):
            judge_claims([claim(text)], runs)
    zero = make_run("b", 0, {("score", "good", "svm@1", None): 0.0})
    with pytest.raises(PHFError, match="0 is not above 0"):
        judge_claims([claim("score[svm] a/good < b/good")], [runs[0], zero])


def draw(
    rng,
    sizes: dict[str, float],
    deviations: dict[str, float],
    errors: dict[str, float] | None = None,
    single: str = "",
) -> list[RunResults]:
    """Three seeds of each arm, one of those in `single`; `errors` are what texts leave open, relative."""
    runs = []
    for arm, size in sizes.items():
        for seed in range(1 if arm in single else 3):
            mean = size * math.exp(deviations[arm] * rng.standard_normal())
            half = 1.96 * mean * errors[arm] if errors else math.nan
            runs.append(make_run(arm, seed, {("score", "none", "svm@1", None): mean}, half=half))
    return runs


@pytest.mark.parametrize("case", ["alike", "as their texts", "unlike their texts"])
def test_intervals_hold_the_truth_and_false_alarms_are_rare(case):
    """Eight arms, five with three seeds and three with one; their seeds scatter alike, as much as their texts leave open, or anyhow up to fourfold."""
    rng, arms = np.random.default_rng(1), "abcdefgh"
    sizes = {arm: 0.05 + 0.03 * place for place, arm in enumerate(arms)}
    deviations = {arm: 0.1 if case == "alike" else 0.05 * 2 ** (place % 3) for place, arm in enumerate(arms)}
    errors = {arm: 0.7 * own if case == "as their texts" else 0.07 for arm, own in deviations.items()}
    claims = [claim(f"score[svm] {arm} < {sizes[arm] / sizes['a']:.6f} a") for arm in arms[1:]]
    held, any_wrong, repeats = np.zeros(7), 0, 300
    for _ in range(repeats):
        verdicts = judge_claims(claims, draw(rng, sizes, deviations, errors, single="fgh"))
        any_wrong += any(verdict.answer != "could not be told" for verdict in verdicts)
        for place, verdict in enumerate(verdicts):
            (tested,) = verdict.tested
            held[place] += tested.ratio.low <= sizes[arms[place + 1]] / sizes["a"] <= tested.ratio.high
    several, single = held[:4] / repeats, held[4:] / repeats
    assert 0.91 <= several.mean() <= 0.985, several
    assert single.mean() >= 0.92, single
    assert several.min() >= (0.82 if case == "unlike their texts" else 0.9), several
    assert any_wrong / repeats <= 0.075


def test_shrinking_lets_three_seeds_see_what_alone_they_do_not():
    rng, arms = np.random.default_rng(2), "abcdef"
    sizes = {arm: 0.1 if arm == "a" else 0.06 for arm in arms}
    claims = [claim(f"score[svm] {arm} < a") for arm in arms[1:]]
    together, alone = 0, 0
    for _ in range(100):
        runs = draw(rng, sizes, dict.fromkeys(arms, 0.12))
        together += sum(verdict.tested[0].p_for < 0.01 for verdict in judge_claims(claims, runs))
        alone += sum(judge_claims([one], runs)[0].tested[0].p_for < 0.01 for one in claims)
    assert together > 350
    assert alone < 300


@pytest.mark.parametrize(("freedom", "num"), [(4, 400), (40, 400)])
def test_the_common_variance_is_found_again(freedom, num):
    """Variances that scatter as s0^2 d0 / chi^2 around a common one (Smyth's prior), each seen with two degrees of freedom."""
    rng, found = np.random.default_rng(3), []
    for _ in range(20):
        truths = 0.04 * freedom / rng.chisquare(freedom, num)
        seen = truths * rng.chisquare(2, num) / 2
        found.append(fit_variances(seen.tolist(), [2] * num))
    variances, degrees = (np.array(part) for part in zip(*found, strict=True))
    assert np.median(variances) == pytest.approx(0.04, rel=0.15)
    assert np.median(degrees) == pytest.approx(freedom, rel=0.5)
    assert fit_variances([0.1], [2])[1] == 0
    assert fit_variances([0.1, 0.1, 0.1], [2, 2, 2]) == (
        pytest.approx(0.1 * 1.3, rel=0.4),
        3,
    )  # no more than they know


def test_a_sign_that_is_flipped_turns_the_row():
    rng = np.random.default_rng(4)
    runs = draw(rng, {"a": 0.02, "b": 0.2, "c": 0.21}, dict.fromkeys("abc", 0.05))
    below, above, level = judge_claims(
        [
            claim("score[annotator] a < 0.5 b"),
            claim("score[annotator] a > 0.5 b"),
            claim("score[annotator] b < c"),
        ],
        runs,
    )
    assert (below.answer, above.answer) == ("reproduced", "contradicted")
    assert below.p == above.p < 0.05
    assert level.answer == "could not be told"
    assert level.tested[0].detectable > 1
    both = judge_claims([claim("score[annotator] a < 0.5 b", "score[annotator] a > 0.5 b")], runs)[0]
    assert both.answer == "contradicted"  # one that fails is enough


def test_one_seed_stands_on_its_texts_sample_by_sample():
    """What makes texts hard for both runs falls out."""
    rng = np.random.default_rng(5)
    hard = rng.uniform(0.1, 0.9, 400)
    texts = {"a": 0.8 * hard + 0.01 * rng.standard_normal(400), "b": hard}
    runs = [
        make_run(
            arm,
            0,
            {("score", "none", "svm@1", None): own.mean()},
            {"none": {"svm@1": own.tolist()}},
            half=0.05 * own.mean(),
        )
        for arm, own in texts.items()
    ]
    (verdict,) = judge_claims([claim("score[svm] a < b")], runs)
    assert (verdict.answer, verdict.tested[0].basis) == ("reproduced", "texts")
    ratio = verdict.tested[0].ratio
    assert ratio.mean == pytest.approx(0.8, abs=0.01)
    assert ratio.high - ratio.low < 0.01  # unpaired, by the intervals given: .11
    (apart,) = judge_claims(
        [claim("score[svm] a < b")],
        [
            make_run(
                run.arm,
                0,
                {("score", "none", "svm@1", None): run.measurements[0].estimate.mean},
                half=0.05 * run.measurements[0].estimate.mean,
            )
            for run in runs
        ],
    )
    assert apart.tested[0].ratio.high - apart.tested[0].ratio.low == pytest.approx(
        0.8 * 2 * 0.05 * math.sqrt(2), rel=0.05
    )


def test_what_has_not_run_and_what_cannot_be_tested_is_no_answer():
    runs = [
        make_run("a", 0, {("score", "none", "svm@1", None): 0.1}),
        make_run("b", 1, {("score", "none", "svm@1", None): 0.1}),
    ]
    apart, untestable, bare = judge_claims(
        [claim("score[svm] a < b"), Claim(text="GLUE", why_not="too small"), claim("score[svm] a < a")], runs
    )
    assert (apart.answer, untestable.answer, untestable.note) == ("not run", "not testable here", "too small")
    assert (bare.answer, bare.note) == ("could not be told", "its runs give no variance to test by")
    assert all(math.isnan(own.p) for own in (apart, untestable, bare))
