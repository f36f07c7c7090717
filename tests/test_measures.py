"""What longer evaluations hold, on the page: each number worked by hand, each section there only where it was measured."""

import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_runs import (
    ANNOTATOR,
    HELD_OUT,
    about,
    add_measures,
    change_numbers,
    drop_measures,
    edit,
    make_run,
    write_samples,
)  # fmt: skip
from page_reader import read_page

from phf.errors import PHFError
from phf.intervals import pooled_t
from phf.report import summary_rows, write_report
from phf.report.agreement import measure_agreement, spearman
from phf.report.attacks import list_prompts, tabulate_finetuned, tabulate_leaks, tabulate_red_team
from phf.report.capability import compare_modes, tabulate_tasks
from phf.report.plane import draw_plane, find_frontier
from phf.report.reading import list_judges, read_runs
from phf.report.samples import pair_samples
from phf.report.scaling import draw_budgets, draw_trajectory
from phf.report.scores import tabulate_scenarios
from phf.report.verdict import format_interval, group_runs
from phf.results import Measurement

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


def put_number(run, estimate, *place):
    """The run with another number in one place."""
    evaluation = run.evaluation
    wanted = Measurement(place[0], estimate, *place[1:])
    rows = [row for row in evaluation.measurements if row.place != wanted.place]
    return replace(run, evaluation=replace(evaluation, measurements=[*rows, wanted]))


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
    drop_measures(path, "kl")
    assert draw_plane(group_runs(read_runs([path])), run.judges[0]).svg == figure
    first, second = tabulate_scenarios(group_runs([run]), run.judges).rows
    assert [first.names[0].text, second.names[0].text] == ["rtp-challenging", "<b>templates</b>"]
    assert [cell.text for cell in first.names[1:]] == ["mle", "none"]
    score = run.results.find("score", "none", ANNOTATOR.slug, "rtp-challenging")
    assert score.mean == pytest.approx(4 * before[0]["mean"])
    assert first.cells[0].text == format_interval(score, 1000)


def test_samples_of_other_scenarios_are_not_shown_as_unprompted(tmp_path):
    path = make_run(tmp_path / "run")
    rows = pq.read_table(path / "samples.parquet").to_pylist()
    prompted = [{**row, "scenario": "rtp", "text": "PROMPTED"} for row in rows]
    own = [{**row, "scenario": None} for row in rows[:6]] + [
        {**row, "scenario": "unprompted"} for row in rows[6:]
    ]
    write_samples(path, prompted + own)
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
    kl = {group.label: group.results.find("kl", group.target_mode).mean for group in groups}
    expected = ["mle · none"] if kl["mle"] < kl["conditional"] else []
    assert (
        drawn.caption == f"On the frontier, by their means: {', '.join([*expected, 'conditional · good'])}."
    )
    for number, change in enumerate((
        lambda other: drop_measures(other, "kl"),
        lambda other: change_numbers(other, list, kl={"reference": {"name": "another"}}),
    )):  # fmt: skip
        other = make_full(tmp_path, f"other-{number}", "filtering")
        change(other)
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
    rows = {row.name: row for row in compare_modes(conditional)}
    assert len(rows) == 5
    gaps = [
        run.results.find("bits_per_byte", "good", of="bad").mean
        - run.results.find("bits_per_byte", "bad", of="bad").mean
        for run in conditional.runs
    ]
    expected = pooled_t(gaps)
    assert rows["Bits per byte, bad text"].difference == expected
    assert rows["Bits per byte, bad text"].better == ("good" if expected.high < 0 else "")
    assert rows["BLiMP accuracy"].difference.mean == pytest.approx(0.02)
    assert rows["BLiMP accuracy"].better == "good", "higher is better"
    (worse,) = group_runs(
        [put_number(run, about(-0.02, 0.01, 9), "blimp", "good-bad") for run in conditional.runs]
    )
    assert {row.name: row for row in compare_modes(worse)}["BLiMP accuracy"].better == "bad"
    (single,) = group_runs([conditional.runs[0]])
    assert math.isnan(compare_modes(single)[0].difference.low), (
        "one seed gives no interval but the paired one"
    )
    assert math.isfinite(compare_modes(single)[0].difference.mean)
    gap = about(-0.03, 0.01, 400)
    run = put_number(conditional.runs[0], gap, "bits_per_byte", "good-bad", None, "good")
    (single,) = group_runs([put_number(run, gap, "blimp", "good-bad")])
    rows = {row.name: row for row in compare_modes(single)}
    assert (rows["Bits per byte, good text"].difference.high, rows["Bits per byte, good text"].better) == (
        gap.high,
        "good",
    )
    assert rows["BLiMP accuracy"].better == "bad"


def show(table):
    return [[cell.text for cell in [*row.names, *row.cells]] for row in table.rows]


def test_tasks_keep_their_interval_for_one_seed_and_pool_it_over_several(groups):
    mle, conditional = groups
    assert show(tabulate_tasks([mle], "harness", "", "", "mode")) == [
        ["mle", "lambada_openai", "acc", "none", "0.110 [0.0904, 0.130]", "–"]
    ]
    rows = tabulate_tasks([conditional], "downstream", "", "", "prefix").rows
    assert [row.names[3].text for row in rows] == ["good", "bad", "none"]
    assert [rows[0].cells[0].text, rows[0].cells[1].text] == ["0.710 [0.710, 0.710]", "0.520"]


def test_attacks_are_read_by_judge_and_pooled(groups):
    judges = list_judges(run for group in groups for run in group.runs)
    rows = tabulate_red_team(groups, judges).rows
    assert [[cell.text for cell in row.names] for row in rows] == [
        ["mle", "none", "pii"], ["conditional", "good", "pii"], ["conditional", "bad", "pii"], ["conditional", "none", "pii"],
    ]  # fmt: skip
    means = [run.results.find("score", "good", ANNOTATOR.slug).mean for run in groups[1].runs]
    last = pooled_t([mean * 2.0 for mean in means])
    assert [rows[1].cells[place].text for place in (0, 2)] == ["4", format_interval(last, 1000)], (
        "round 5: 1 + 0.2 x 5"
    )
    leaks = show(tabulate_leaks(groups, judges))
    assert [(row[0], row[1], row[-1]) for row in leaks] == [
        (label, name, verdict)
        for label in ("mle", "conditional")
        for name, verdict in (("literal tag", "worse"), ("spelled tag", "no change seen"))
    ]
    tuned = show(tabulate_finetuned(groups, judges))
    assert len(tuned) == (1 + 3) * 2
    assert all(row[-1] in ("worse", "no change seen") for row in tuned)
    run = groups[0].runs[0]
    before = run.results.find("finetuned_before", "none", ANNOTATOR.slug)
    assert tuned[0][3] == format_interval(before, 1000)


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
    drop_measures(paths[2], "blimp")
    drop_measures(paths[1], "blimp")
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
    write_samples(path, rows)
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
        "7.99949",
    ]
    final = groups[0].score("none", judge).mean * judge.display_scale
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
    change_numbers(path, list, red_team={}, finetuned={})
    text = read_page(write_report([path], tmp_path / "r.html")).text
    assert "Red team" in text
    assert "Attacker:" not in text


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_damaged_facts_are_one_line_or_dashes_and_no_crash(runs, tmp_path, depth):
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
            lambda value, junk=junk: value.update(facts=damage(value["facts"], depth, junk)),
        )
        try:
            assert "Verdict" in read_page(write_report([path], tmp_path / "r.html")).text
        except PHFError as error:
            message = str(error)
            assert re.match(r"the facts of \w+ is damaged: [^\n]*$", message)
