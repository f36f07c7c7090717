"""What the numbers allow one to say: verdicts worked by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runs import make_run

from phf.records import Estimate
from phf.report.reading import read_runs
from phf.report.verdict import Group, describe_plainly, judge_control, judge_plain, pool


def test_control_verdicts_worked_by_hand() -> None:
    def estimate(mean: float, half: float = 0.1) -> Estimate:
        return Estimate(mean, mean - half, mean + half, 512)

    def headline(good: Estimate, bad: Estimate, mle: Estimate | None, *failed: str) -> str:
        return judge_control(good, bad, mle, failed).headline

    one, two, three = estimate(1), estimate(2), estimate(3)
    assert (
        headline(one, three, two)
        == "Control: yes. Good mode scores 0.50 × MLE; bad mode scores 3.00 × good mode"
    )
    assert "good < MLE < bad" in judge_control(one, three, two).detail
    assert headline(one, two, estimate(1.95)).startswith("Control: yes. Good mode scores 0.51 × MLE")
    assert "good lies below both" in judge_control(one, two, estimate(1.95)).detail
    assert headline(one, two, estimate(2.1)) == "In doubt: bad mode shares part of good mode’s gain over MLE"
    assert headline(one, two, three).startswith("Artefact")
    assert headline(two, one, three).startswith("Artefact")
    assert headline(one, estimate(1.1), three).startswith("Artefact")
    assert headline(three, one, two).startswith("Reversed")
    assert headline(one, estimate(1.15), one).startswith("No control")
    touching = Estimate(1.0, 0.5, 1.5, 512), Estimate(2.0, 1.5, 2.5, 512)
    assert headline(*touching, None).startswith("No control")
    assert (
        headline(one, three, None)
        == "Modes differ: bad mode scores 3.00 × good mode; no MLE run to compare with"
    )
    assert headline(two, three, one).endswith("but good mode is worse than MLE")
    assert headline(one, three, estimate(1.15)).endswith("but good mode is level with MLE")
    assert headline(one, three, two, "Varied text", "Control gain") == (
        "In doubt: not passed: Varied text, Control gain"
    )
    nan = Estimate(math.nan, math.nan, math.nan, 0)
    assert headline(nan, three, two) == "Not measured"
    assert headline(one, Estimate(3, math.nan, math.nan, 1), two) == "Not measured"
    assert headline(one, three, nan).startswith("Modes differ")
    zero = Estimate(0.0, 0.0, 0.0, 512)
    assert (
        headline(zero, one, estimate(0.5))
        == "Control: yes. Good mode scores 0.00 × MLE; bad mode scores 1.00 above good mode"
    )


def test_plain_verdicts_worked_by_hand() -> None:
    low, high = Estimate(1, 0.8, 1.2, 9), Estimate(2, 1.8, 2.2, 9)
    assert judge_plain(low, high).headline == "Better: 0.50 × MLE, and its interval lies below"
    assert judge_plain(high, low).headline == "Worse: 2.00 × MLE, and its interval lies above"
    assert judge_plain(low, Estimate(1.3, 1.1, 1.5, 9)).headline.startswith("No difference")
    assert judge_plain(low, high, ["Varied text"]).headline == "In doubt: not passed: Varied text"
    assert judge_plain(low, None).headline.startswith("No MLE run")
    assert judge_plain(low, high, scale=1000).detail == "1,000 [800, 1,200], MLE 2,000 [1,800, 2,200]."


def test_pooling_is_a_t_interval_over_seeds() -> None:
    estimates = [Estimate(value, value - 0.1, value + 0.1, 512) for value in (1.0, 2.0, 3.0)]
    pooled = pool(estimates)
    assert (pooled.mean, pooled.count) == (2.0, 3)
    assert pooled.high - pooled.mean == pytest.approx(
        4.302653 / math.sqrt(3), abs=1e-5
    )  # t(0.975, 2) s / sqrt(3), s = 1
    assert pool(estimates[:1]) == estimates[0]
    # One of two seeds has a number: it stands, but its interval over samples is none over seeds.
    lone = pool([*estimates[:1], Estimate(math.nan, 0, 0, 0)])
    assert (lone.mean, lone.count) == (1.0, 1)
    assert math.isnan(lone.low)
    assert math.isnan(lone.high)
    two = pool([*estimates[:2], Estimate(math.nan, 0, 0, 0)])
    assert (two.mean, two.count) == (1.5, 2)
    assert math.isnan(pool([]).mean)


def test_the_plain_sentence_says_what_the_verdicts_say(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / kind, kind) for kind in ("mle", "conditional", "filtering")]
    mle, conditional, filtering = (Group(run.objective, (run,)) for run in read_runs(folders))
    shares = [conditional.score("good", judge).mean / mle.score("none", judge).mean for judge in mle.judges]
    assert shares == pytest.approx([0.4, 0.4], abs=0.03)
    end = "as bad as that of plain training, by both judges."
    assert describe_plainly(conditional, mle) == f"Text of conditional in good mode is about two fifths {end}"
    assert describe_plainly(filtering, mle) == f"Text of filtering is about three fifths to two thirds {end}"
    assert describe_plainly(replace(mle, label="again"), mle) == (
        "That text of again is less bad than that of plain training is shown by no judge; the verdicts say why."
    )
    assert describe_plainly(conditional, None) == ""
