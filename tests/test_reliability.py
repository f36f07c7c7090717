"""The reliability plot and the lines of `phf evaluate` show what evaluation.json holds, and nothing where there is nothing."""

import math
import re

import pytest
from fake_runs import drop_measures, make_run, set_number

from phf.records import Estimate
from phf.report.page import summary_lines, write_report
from phf.report.reading import read_runs
from phf.report.reliability import Series, draw_control_reliability, draw_reliability
from phf.report.scores import tabulate_control
from phf.report.verdict import Group, group_runs, judge_group
from phf.results import Measurement


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    named = [("mle", "mle", 0), ("conditional-0", "conditional", 0), ("conditional-1", "conditional", 1)]
    return [make_run(folder / name, kind, seed) for name, kind, seed in named]


def hovers(svg):
    return re.findall(r"<g><title>(.*?)</title>", svg)


def test_every_bin_stands_where_its_numbers_say():
    bins = (
        Measurement("reliability", Estimate(0.75, 0.5, 0.9, 30), at=0.25),
        Measurement("reliability", Estimate(0.0, 0.0, 0.2, 10), at=1.0),
    )
    drawn = draw_reliability([Series("a <b>", bins)], "predicted", "came", "caption")
    assert hovers(drawn.svg) == [
        "a &lt;b&gt;: predicted 0.250, came 0.750, 30",
        "a &lt;b&gt;: predicted 1.00, came 0, 10",
    ]
    assert "a &lt;b&gt;: 40 segments" in drawn.svg
    # In the picture: the marks, relative to the diagonal from (0, 0) to (1, 1), and each with its interval.
    lines = [
        [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
        for path in re.findall(r'<path d="(M [\d. ]+ \nL [\d. ]+) \n" clip-path', drawn.svg)
    ]
    diagonal, path = [line for line in lines if line[0] != line[2] and line[1] != line[3]]
    left, bottom, right, top = diagonal
    assert path[0] < path[2], "from bin to bin"
    marks = [
        ((float(x) - left) / (right - left), (float(y) - bottom) / (top - bottom))
        for x, y in re.findall(
            r'<use href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--ink\)', drawn.svg
        )
    ]
    assert marks[:2] == [pytest.approx((0.25, 0.75), abs=1e-3), pytest.approx((1, 0), abs=1e-3)]
    vertical = [
        [(line[0] - left) / (right - left), *((y - bottom) / (top - bottom) for y in line[1::2])]
        for line in lines
        if line[0] == line[2]
    ]
    assert [pytest.approx(line, abs=1e-3) for line in vertical if line[1:] != [0, 1]][-2:] == [
        [0.25, 0.5, 0.9],
        [1.0, 0.0, 0.2],
    ]


def test_the_page_shows_all_runs_with_control(runs, tmp_path):
    drawn = draw_control_reliability(read_runs(runs))
    assert drawn is not None
    assert len(hovers(drawn.svg)) == 20
    assert "conditional-0: 500 segments" in drawn.svg
    assert "conditional-1: 500 segments" in drawn.svg
    page = write_report(runs, tmp_path / "report.html").read_text("utf-8")
    assert drawn.svg in page
    assert "Is control learned?" in page
    assert "0.0310 [0.0190, 0.0430]" in page
    assert "Control gain in training" in page


def test_where_nothing_is_measured_nothing_is_shown(tmp_path):
    mle = make_run(tmp_path / "mle")
    assert draw_control_reliability(read_runs([mle])) is None
    assert summary_lines([mle]) == []
    page = write_report([mle], tmp_path / "report.html").read_text("utf-8")
    assert "Is control learned?" not in page
    # An additive objective has a control gain, but writes no token that a posterior could be read from.
    run = make_run(tmp_path / "additive", "conditional")
    drop_measures(run, "calibration_error", "reliability")
    assert draw_control_reliability(read_runs([run])) is None
    assert [line.split(":")[1][:13] for line in summary_lines([run])] == [" control gain"]
    assert "Is control learned?" in write_report([run], tmp_path / "report.html").read_text("utf-8")


def test_a_gain_below_0_is_nowhere_called_control(tmp_path):
    """One rule: the line of `phf evaluate`, the page's table and the verdict agree about whether control is learned."""
    runs = [make_run(tmp_path / kind, kind) for kind in ("mle", "conditional")]
    for text, estimate in (
        ("good", Estimate(-0.008, -0.017, -0.001, 300)),
        ("bad", Estimate(0.2, 0.1, 0.3, 300)),
    ):
        set_number(runs[1], estimate, "control_gain", of=text)
    line = summary_lines(runs)[0]
    assert "−0.00800 [−0.0170, −0.00100]" in line
    assert line.endswith("not both intervals above 0: control is not learned")
    folders = read_runs(runs)
    (card,) = tabulate_control([Group(folders[1].label, (folders[1],))]).rows
    assert card.cells[-1].text == "no"
    mle, conditional = group_runs(folders)
    for judge in conditional.judges:
        assert judge_group(conditional, mle, judge).headline == "In doubt: not passed: Control gain"


def test_control_that_is_learned_is_never_no_control(tmp_path):
    """Good and bad mode overlap in their samples, the gain is above 0: both are said, in one verdict."""
    runs = [make_run(tmp_path / kind, kind) for kind in ("mle", "conditional")]
    for judge in read_runs(runs)[1].judges:
        for mode in ("good", "bad"):
            set_number(runs[1], Estimate(0.004, 0.003, 0.005, 512), "score", mode=mode, judge=judge.slug)
            set_number(runs[0], Estimate(0.004, 0.003, 0.005, 512), "score", mode="none", judge=judge.slug)
    mle, conditional = group_runs(read_runs(runs))
    headlines = {judge_group(conditional, mle, judge).headline for judge in conditional.judges}
    (headline,) = headlines
    assert headline.startswith("In doubt: the control gain says that control is learned, but the intervals")
    assert summary_lines(runs)[0].endswith("both intervals above 0: control is learned")
    set_number(runs[1], Estimate(0.1, -0.1, 0.3, 300), "control_gain", of="bad")
    mle, conditional = group_runs(read_runs(runs))
    assert judge_group(conditional, mle, conditional.judges[0]).headline.startswith("No control")


def test_the_lines_name_numbers_and_intervals(runs):
    assert summary_lines(runs)[:2] == [
        "conditional-0: control gain 2.10 [1.80, 2.40] nats per good segment, 0.900 [0.700, 1.10] per bad one; both intervals above "
        "0: control is learned",
        "conditional-0: calibration error 0.0310 [0.0190, 0.0430] on 500 segments (0: the model's own probability of good is right)",
    ]


def test_a_calibration_error_stands_beside_what_chance_gives(tmp_path):
    run = make_run(tmp_path / "conditional", "conditional")
    for measure, value, of in (
        ("plain", 0.05, None),
        ("by_chance", 0.029, "least"),
        ("by_chance", 0.076, "most"),
    ):
        number = Estimate(value, math.nan, math.nan, 500)
        set_number(run, number, f"calibration_error_{measure}", of=of)
    assert summary_lines([run])[1].endswith(
        "(0: the model's own probability of good is right; with chance 0.0500, and an exactly right posterior gives 0.0290 to 0.0760)"
    )
    assert "0.0290 to 0.0760" in write_report([run], tmp_path / "report.html").read_text("utf-8")
