"""What longer evaluations hold, on the page: each number worked by hand, each section there only where it was measured."""

import copy
import dataclasses
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_runs import ANNOTATOR, HELD_OUT, add_measures, edit, make_run
from test_report import read_page

from phf.intervals import pooled_t
from phf.report import summary_rows, write_report
from phf.report.agreement import measure_agreement, spearman
from phf.report.attacks import list_prompts, tabulate_finetuned, tabulate_leaks, tabulate_red_team
from phf.report.capability import compare_modes, tabulate_tasks
from phf.report.plane import draw_plane, find_frontier
from phf.report.reading import list_judges, read_runs
from phf.report.samples import pair_samples
from phf.report.scaling import draw_budgets, draw_trajectory
from phf.report.scenarios import list_scenarios, tabulate_scenario
from phf.report.verdict import group_runs

SECTIONS = (
    "What do they write after prompts?",
    "Diversity",
    "How do capabilities differ between good and bad mode?",
    "What else can the models do?",
    "Does it hold under attack?",
    "Leaks of bad mode",
    "After finetuning on benign data",
    "against tokens seen",
)


def make_full(folder, name, kind="conditional", seed=0, **options):
    return add_measures(make_run(folder / name, kind, seed, **options), seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        make_full(folder, "mle", "mle"),
        *(make_full(folder, f"c-{seed}", seed=seed, good_fraction=0.8) for seed in (0, 1)),
    ]


@pytest.fixture(scope="module")
def groups(runs):
    return group_runs(read_runs(runs))


def swap_modes(run, key):
    """The run with good and bad mode exchanged under one key of its evaluation."""
    value = copy.deepcopy(run.evaluation)
    modes = value[key] if key == "modes" else value[key]["modes"]
    modes["good"], modes["bad"] = modes["bad"], modes["good"]
    return dataclasses.replace(run, evaluation=value)


def hovers(svg):
    return re.findall(r"<g><title>(.*?)</title>", svg)


def test_every_section_is_there_where_it_was_measured_and_only_there(runs, tmp_path):
    text = read_page(write_report(runs, tmp_path / "full.html")).text
    assert [section for section in SECTIONS if section not in text] == []
    bare = read_page(write_report([make_run(tmp_path / "bare")], tmp_path / "bare.html"))
    assert [section for section in SECTIONS if section in bare.text] == []
    headings = [tag for tag, _ in bare.elements if tag == "h2"]
    assert len(headings) == len(re.findall("<section", (tmp_path / "bare.html").read_text("utf-8")))


def test_headline_numbers_are_of_unprompted_samples_alone(tmp_path):
    path = make_run(tmp_path / "run")
    before = summary_rows([path])
    figure = draw_plane(group_runs(read_runs([path])), read_runs([path])[0].judges[0]).svg
    add_measures(path)
    assert summary_rows([path]) == before
    (run,) = read_runs([path])
    edit(path / "evaluation.json", lambda value: value.pop("kl"))
    assert draw_plane(group_runs(read_runs([path])), run.judges[0]).svg == figure
    assert list_scenarios([run]) == ["rtp-challenging", "<b>templates</b>"]
    (row,) = tabulate_scenario("rtp-challenging", group_runs([run]), list(run.judges))
    assert row.scores[0].mean == pytest.approx(4 * before[0]["mean"])
    assert row.mode == "none"


def test_samples_of_other_scenarios_are_not_shown_as_unprompted(tmp_path):
    path = make_run(tmp_path / "run")
    rows = pq.read_table(path / "samples.parquet").to_pylist()
    prompted = [{**row, "scenario": "rtp", "text": "PROMPTED"} for row in rows]
    own = [{**row, "scenario": None} for row in rows[:6]] + [
        {**row, "scenario": "unprompted"} for row in rows[6:]
    ]
    pq.write_table(pa.Table.from_pylist(prompted + own), path / "samples.parquet")
    (run,) = read_runs([path])
    assert run.sample_table("none")["index"].to_pylist() == list(range(12))
    assert "PROMPTED" not in write_report([path], tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("points", "frontier"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(2, 1), (1, 2), (2, 2), (3, 0.5), (3, 3)], [1, 0, 3]),
        ([(1, 1), (1, 2), (2, 1)], [0]),  # as low in one, higher in the other: dominated
        ([(1, 1), (1, 1)], [0, 1]),
    ],
)
def test_frontier(points, frontier):
    assert find_frontier(points) == frontier


def test_the_plane_takes_kl_where_all_have_it_from_one_reference(runs, groups, tmp_path):
    judge = groups[0].runs[0].judges[0]
    drawn = draw_plane(groups, judge)
    assert drawn.title == "Score by pii against KL from the reference"
    assert {title.split(": ")[0] for title in hovers(drawn.svg)} == {
        "mle · none", "conditional · good", "conditional · bad", "conditional · none",
    }  # fmt: skip
    # conditional's good mode has the better score; the frontier holds it, and MLE only if its KL is lower.
    kl = {group.label: group.measure("kl", "modes", group.target_mode, "per_token").mean for group in groups}
    expected = ["mle · none"] if kl["mle"] < kl["conditional"] else []
    assert (
        drawn.caption == f"On the frontier, by their means: {', '.join([*expected, 'conditional · good'])}."
    )
    for number, change in enumerate((
        lambda value: value.pop("kl"),
        lambda value: value["kl"].update(reference={"name": "another"}),
    )):  # fmt: skip
        other = make_full(tmp_path, f"other-{number}", "filtering")
        edit(other / "evaluation.json", change)
        assert draw_plane(group_runs(read_runs([*runs, other])), judge).title.endswith("bits per byte")


def test_a_crowded_plane_numbers_its_frontier(tmp_path):
    paths = [make_run(tmp_path / "mle")]
    paths += [make_run(tmp_path / f"c-{i}", "conditional", good_fraction=i / 10) for i in range(1, 9)]
    groups = group_runs(read_runs(paths))
    drawn = draw_plane(groups, groups[0].runs[0].judges[0])
    assert {title.split(": ")[0].rpartition(" · ")[2] for title in hovers(drawn.svg)} == {"good", "none"}
    assert drawn.caption.startswith("On the frontier, by their means: (1) ")


def test_good_against_bad_mode_is_taken_within_each_seed(groups):
    mle, conditional = groups
    assert compare_modes(mle) == []
    rows = {row.measure.name: row for row in compare_modes(conditional)}
    assert len(rows) == 5
    gaps = [
        run.bits_per_byte("good", "bad").mean - run.bits_per_byte("bad", "bad").mean
        for run in conditional.runs
    ]
    expected = pooled_t(gaps)
    assert rows["Bits per byte, bad text"].difference == expected
    assert rows["Bits per byte, bad text"].better == ("good" if expected.high < 0 else "")
    assert rows["BLiMP accuracy"].difference.mean == pytest.approx(0.02)
    assert rows["BLiMP accuracy"].better == "good", "higher is better"
    (worse,) = group_runs([swap_modes(run, "blimp") for run in conditional.runs])
    assert compare_modes(worse)[-1].better == "bad", "the last is BLiMP"
    (single,) = group_runs([conditional.runs[0]])
    assert math.isnan(compare_modes(single)[0].difference.low), "one seed gives no interval"
    assert math.isfinite(compare_modes(single)[0].difference.mean)
    gap = {"mean": -0.03, "low": -0.04, "high": -0.02, "count": 400}
    given = {
        **conditional.runs[0].evaluation,
        "good_minus_bad": {"bits_per_byte": {"good": gap}, "blimp": gap},
    }
    (single,) = group_runs([replace(conditional.runs[0], evaluation=given)])
    rows = {row.measure.name: row for row in compare_modes(single)}
    assert (rows["Bits per byte, good text"].difference.high, rows["Bits per byte, good text"].better) == (
        -0.02,
        "good",
    )
    assert rows["BLiMP accuracy"].better == "bad"


def test_tasks_keep_their_interval_for_one_seed_and_pool_it_over_several(groups):
    mle, conditional = groups
    (task,) = tabulate_tasks([mle], "harness")
    assert task.scores["none"].mean == 0.11
    assert task.scores["none"].high == pytest.approx(0.11 + 1.96 * 0.01)
    (task,) = tabulate_tasks([conditional], "downstream")
    assert list(task.scores) == ["good", "bad", "none"]
    assert (task.scores["good"].mean, task.scores["good"].count) == (0.71, 2)
    assert task.baseline.mean == 0.52


def test_attacks_are_read_by_judge_and_pooled(groups):
    judges = list_judges(run for group in groups for run in group.runs)
    rows = tabulate_red_team(groups, judges)
    assert [(row.group.label, row.mode, row.judge.name) for row in rows] == [
        ("mle", "none", "pii"), ("conditional", "good", "pii"), ("conditional", "bad", "pii"), ("conditional", "none", "pii"),
    ]  # fmt: skip
    means = [run.score("good", judges[0]).mean for run in groups[1].runs]
    assert rows[1].last == pooled_t([mean * 2.0 for mean in means]), "round 5: 1 + 0.2 x 5"
    assert rows[1].num_rounds == 5
    leaks = tabulate_leaks(groups, judges)
    assert [(row.group.label, row.name, row.verdict) for row in leaks] == [
        (label, name, verdict)
        for label in ("mle", "conditional")
        for name, verdict in (("literal tag", "worse"), ("spelled tag", "no change seen"))
    ]
    tuned = tabulate_finetuned(groups, judges)
    assert len(tuned) == (1 + 3) * 2
    assert all(row.verdict in ("worse", "no change seen") for row in tuned)
    assert tuned[0].difference.mean == pytest.approx(0.5 * tuned[0].before.mean)


def test_prompts_of_the_red_team_are_escaped_sorted_and_behind_a_click(runs, tmp_path):
    (run,) = read_runs(runs[:1])
    ((mode, prompts),) = list_prompts(run)
    assert mode == "none"
    assert [prompt.score for prompt in prompts] == ["7.00", "6.00", "5.00", "4.00", "3.00"]
    page = read_page(write_report(runs[:1], tmp_path / "r.html"))
    shown = [hidden for text, hidden in page.pre if text.startswith("<script>attack 7</script> ⟨U+202E⟩")]
    assert shown == [True]


def test_a_number_that_not_all_seeds_have_says_so(tmp_path):
    paths = [make_full(tmp_path, f"mle-{seed}", "mle", seed) for seed in range(3)]
    edit(paths[2] / "evaluation.json", lambda value: value.pop("blimp"))
    edit(paths[1] / "evaluation.json", lambda value: value.pop("blimp"))
    text = " ".join(read_page(write_report(paths, tmp_path / "r.html")).text.split())
    assert "0.610 1 of 3 seeds" in text
    assert "0.610 [0.580, 0.640] 1 of 3 seeds" not in text


def test_spearman_worked_by_hand():
    one = np.arange(20.0)
    assert spearman(one, one**3).mean == 1.0
    assert spearman(one, -one).mean == -1.0
    swapped = one.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    found = spearman(np.append(one, np.nan), np.append(swapped, 1.0))
    assert found.mean == pytest.approx(1 - 6 * 2 / (20 * (20**2 - 1)))
    assert found.count == 20
    r, z = found.mean, math.atanh(found.mean)
    half = 1.959964 * math.sqrt((1 + r * r / 2) / 17)
    assert (found.low, found.high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)))
    assert math.isnan(spearman(one, np.zeros(20)).mean), "one score for all"
    assert math.isnan(spearman(one[:9], one[:9]).mean), "too few"


def test_agreement_of_judges_worked_by_hand(tmp_path):
    path = make_run(tmp_path / "run")
    slugs = [ANNOTATOR.slug, HELD_OUT.slug]
    # hits above 0 (pii) and above 0.5 (lstm): both hit 3 times, the annotator alone once, neither 8 times; one is unscored.
    scores = [(0.1, 0.9)] * 3 + [(0.1, 0.1)] + [(0.0, 0.2)] * 8 + [(math.nan, 0.9)]
    rows = [
        {"mode": "none", "index": i, "text": "x", **{f"score:{slug}": value for slug, value in zip(slugs, pair, strict=True)}}
        for i, pair in enumerate(scores)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path / "samples.parquet")
    (row,) = measure_agreement(group_runs(read_runs([path])))
    assert row.mode == "all"
    assert row.both.mean == pytest.approx(11 / 12)
    assert (row.confirmed.mean, row.confirmed.count) == (0.75, 4)
    assert row.spearman.count == 12
    assert "Do the judges agree?" in write_report([path], tmp_path / "r.html").read_text("utf-8")


def test_modes_stand_side_by_side_at_the_same_index(runs):
    _, run, _ = read_runs(runs)
    pairs = pair_samples(run)
    assert [index for index, _ in pairs] == [0, 1, 2]
    assert [mode for mode, _ in pairs[0][1]] == ["good", "bad", "none"]
    assert all(shown.index == index for index, found in pairs for _, shown in found)
    assert all(shown.hidden for _, found in pairs for mode, shown in found if mode == "bad")
    assert pair_samples(read_runs(runs[:1])[0]) == []


def test_trajectory_ends_at_the_evaluation_and_budgets_make_a_line(runs, groups, tmp_path):
    judge = groups[0].runs[0].judges[0]
    drawn = draw_trajectory(groups, judge)
    assert drawn is not None
    titles = [title for title in hovers(drawn.svg) if title.startswith("mle · none")]
    assert [re.findall("at ([^:]*):", title)[0] for title in titles] == [
        "1.024",
        "2.048",
        "4.096",
        "6.144",
        "8",
    ]
    final = groups[0].score("none", judge).mean * judge.scale
    assert float(re.findall(": ([0-9.]+)", titles[-1])[0]) == pytest.approx(final, rel=0.01)
    assert float(re.findall(": ([0-9.]+)", titles[0])[0]) == pytest.approx(3 * final, rel=0.01), (
        "1 + 1000 / 500"
    )
    assert draw_budgets(groups, judge) is None
    long = make_run(tmp_path / "long")
    edit(long / "run.json", lambda value: value["config"].update(tokens=80_000_000))
    short = make_run(tmp_path / "short")
    drawn = draw_budgets(group_runs(read_runs([short, long])), judge)
    assert drawn is not None
    assert [re.findall("at ([^:]*):", title)[0] for title in hovers(drawn.svg)] == ["8", "80"]


def test_many_full_runs_stay_small(tmp_path):
    paths = [make_full(tmp_path, f"mle-{seed}", "mle", seed) for seed in range(2)]
    paths += [make_full(tmp_path, f"c-{i:02}", good_fraction=i / 50) for i in range(1, 13)]
    page = write_report(paths, tmp_path / "r.html")
    assert page.stat().st_size < 1_200_000
    assert "checks not passed" in read_page(page).text, "verdicts in a table"


def test_what_an_attack_does_not_say_is_left_out(runs, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(runs[0], path)
    edit(
        path / "evaluation.json",
        lambda value: value.update(
            {key: {"modes": value[key]["modes"]} for key in ("red_team", "finetuned")}
        ),
    )
    text = read_page(write_report([path], tmp_path / "r.html")).text
    assert "Red team" in text
    assert "Attacker:" not in text


NEW_KEYS = (
    "kl", "blimp", "red_team", "in_context", "leaks", "finetuned", "trajectory", "downstream", "harness",
)  # fmt: skip


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4])
def test_damaged_parts_are_dashes_and_no_crash(runs, tmp_path, depth):
    def damage(value, left, junk):
        if left == 0:
            return junk
        if isinstance(value, dict):
            return {key: damage(item, left - 1, junk) for key, item in value.items()}
        return [damage(item, left - 1, junk) for item in value] if isinstance(value, list) else value

    for number, junk in enumerate((None, "x")):
        path = tmp_path / f"run-{number}"
        shutil.copytree(runs[1], path)
        edit(
            path / "evaluation.json",
            lambda value, junk=junk: value.update({key: damage(value[key], depth, junk) for key in NEW_KEYS}),
        )
        assert "Verdict" in read_page(write_report([path], tmp_path / "r.html")).text
