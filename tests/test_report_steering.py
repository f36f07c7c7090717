"""The page's section on steering: what it pools, marks, hides and escapes."""

import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import JUDGES, about, change_numbers, make_run, plain

from phf.report import write_report
from phf.report.page import summary_lines
from phf.report.reading import list_judges, read_runs
from phf.report.steering import draw_steering, list_steering
from phf.report.verdict import group_runs
from phf.results import Measurement, read_evaluation


def add_methods(folder: Path, *methods: dict[str, Any]) -> Path:
    """Steering in a run's evaluation. A method: spec, cost, its gain by both judges, distinct-2 and bits per byte."""
    base = {
        judge.slug: read_evaluation(folder / "evaluation.json").results.find("score", "good", judge.slug).mean
        for judge in JUDGES
    }
    rows = [Measurement("passes_per_token", plain(1.1), "good")]
    for method in methods:
        mode = f"good + {method['spec']}"
        rows += [
            Measurement("passes_per_token", plain(method["cost"]), mode),
            Measurement("distinct_2", plain(method.get("distinct_2", 0.6)), mode),
            Measurement("mean_tokens", plain(40.0), mode),
        ]
        if "bits" in method:
            rows.append(Measurement("bits_per_byte", about(method["bits"], 0.01, 400), mode, of="all"))
        for slug, mean in base.items():
            rows.append(Measurement("score", about(mean - method["gain"], 1e-4, 512), mode, slug))
            rows.append(Measurement("steered_difference", about(-method["gain"], 1e-4, 512), mode, slug))
    facts = [
        {
            "spec": method["spec"],
            "mode": "good",
            "facts": {"reward_model": JUDGES[0].slug} if "best" in method["spec"] else {},
        }
        for method in methods
    ]
    return change_numbers(folder, lambda before: [*before, *rows], steering=facts)


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    return [
        add_methods(
            make_run(tmp_path / f"conditional-{seed}", "conditional", seed),
            {"spec": "best-of-n", "cost": 8.0 + seed, "gain": 0.001},
            {"spec": "direction", "cost": 1.1, "gain": 0.0005 * (1 + seed), "bits": 1.8},
            {"spec": "direction:scale=4.0", "cost": 1.1, "gain": 0.003, "bits": 2.9, "distinct_2": 0.2},
        )
        for seed in (0, 1)
    ]


def test_methods_are_pooled_over_seeds_beside_plain_sampling(seeds) -> None:
    folders = read_runs(seeds)
    judges = list_judges(folders)
    rows = list_steering(group_runs(folders), judges)
    assert [row.name for row in rows] == ["plain sampling", "best-of-n", "direction", "direction:scale=4.0"]
    plain, best, direction, _ = rows
    assert [row.passes.mean for row in rows] == pytest.approx([1.1, 8.5, 1.1, 1.1])
    assert plain.scores[0].mean == pytest.approx(
        sum(folder.results.find("score", "good", judges[0].slug).mean for folder in folders) / 2
    )
    assert direction.differences[1].mean == pytest.approx(-0.00075)
    assert direction.differences[1].high > 0, "two seeds that differ so much settle nothing"
    assert best.differences[0].high < 0
    assert best.chosen_by >= {judges[0].slug}
    assert judges[1].slug not in best.chosen_by
    assert [row.is_dull for row in rows] == [False, False, False, True]
    assert [row.is_costly for row in rows] == [False, False, False, True]


def test_the_page_says_who_chose_and_what_failed_a_check(seeds, tmp_path) -> None:
    page = write_report(seeds, tmp_path / "report.html").read_text("utf-8")
    section = page[page.index('<section aria-labelledby="steering">') :]
    section = section[: section.index("</section>")]
    assert section.count("chosen by it") == 1, "the annotator chose, the held-out judge did not"
    assert section.count("⚠") == 2 + 1, "distinct-2 and bits per byte of one method; the caption explains it"
    assert section.count("<figure>") == 2
    assert '<a href="#steering">' in page
    plain = write_report([make_run(tmp_path / "mle")], tmp_path / "plain.html").read_text("utf-8")
    assert 'id="steering"' not in plain


def test_scores_that_flatter_are_faint_and_of_many_points_only_the_frontier_is_named(tmp_path) -> None:
    methods = [
        {"spec": f"direction:layer={layer},scale={scale}", "cost": 1.1 + layer, "gain": 1e-4 * layer * scale}
        for layer in range(1, 5)
        for scale in (1, 2, 3)
    ]
    best = {"spec": "direction:scale=9.0", "cost": 1.05, "gain": 0.003, "distinct_2": 0.1}
    run = add_methods(make_run(tmp_path / "conditional", "conditional"), *methods, best)
    folders = read_runs([run])
    drawing, _ = draw_steering(list_steering(group_runs(folders), list_judges(folders)), folders[0].judges)
    named = [method["spec"] for method in methods if f">{method['spec']}</text>" in drawing.svg]
    assert ">direction:scale=9.0</text>" not in drawing.svg, "no text that collapsed stands on the frontier"
    assert drawing.svg.count("opacity: 0.35") > 0
    assert named == [f"direction:layer={layer},scale=3" for layer in range(1, 5)]
    assert "that no cheaper one equals" in drawing.caption


def test_a_hostile_name_stays_text(tmp_path) -> None:
    name = "<script>alert(1)</script>\u202e"
    run = add_methods(
        make_run(tmp_path / "conditional", "conditional"), {"spec": name, "cost": 2.0, "gain": 0.001}
    )
    page = write_report([run], tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "\u202e" not in page
    assert all("\u202e" not in line for line in summary_lines([run]))


def test_what_is_not_there_is_a_dash(tmp_path) -> None:
    run = make_run(tmp_path / "conditional", "conditional")
    change_numbers(
        run, lambda rows: [*rows, Measurement("mean_tokens", plain(40.0), "good + guidance")], steering=[]
    )
    page = write_report([run], tmp_path / "report.html").read_text("utf-8")
    assert '<code>guidance</code></td><td class="num">–</td>' in re.sub(r">\s+<", "><", page)
