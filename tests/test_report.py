"""The report is opened the way a stranger's browser would: parsed, counted and searched for what must not be there."""

import itertools
import math
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_runs import (
    ANNOTATOR,
    HELD_OUT,
    change_numbers,
    declare,
    edit,
    make_run,
    set_number,
    write,
    write_samples,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import read_page
from rich.console import Console

from phf.errors import PHFError
from phf.records import Estimate, Identity
from phf.report import summary_rows, summary_table, write_report
from phf.report.reading import read_runs
from phf.report.samples import choose_samples, visible_text
from phf.report.verdict import find_mle, format_number, group_runs
from phf.results import MISSING, Judge, Measure, Measurement, read_evaluation, write_evaluation


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "mle"), make_run(folder / "conditional", "conditional", good_fraction=0.8)]


@pytest.fixture(scope="module")
def page(pair: list[Path]) -> Path:
    return write_report(pair, pair[0].parent / "report.html")


def test_page_has_no_script_and_fetches_nothing(page: Path) -> None:
    reader = read_page(page)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "img", "iframe", "link", "object", "embed", "form", "base", "image", "b"}
    links = [attributes["href"] for tag, attributes in reader.elements if tag == "a"]
    assert [link for link in links if not (link or "").startswith("#")] == [
        "https://arxiv.org/abs/2302.08582"
    ]
    ids = {attributes.get("id") for _, attributes in reader.elements}
    assert {(link or "")[1:] for link in links if (link or "").startswith("#")} <= ids
    for tag, attributes in reader.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert tag == "a" or "//" not in (value or ""), (tag, name, value)
            if name == "href" and tag != "a":
                assert (value or "").startswith("#")
    text = page.read_text("utf-8")
    assert text.count("http") == text.count("http-equiv") + 1
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_page_is_well_formed(page: Path) -> None:
    reader = read_page(page)
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {a["href"][1:] for tag, a in reader.elements if tag == "use" and a.get("href")}  # type: ignore[index]
    assert wanted <= set(ids)
    figures = [attributes for tag, attributes in reader.elements if tag == "svg"]
    assert len(figures) == 2 + 2 + 1 + 1 + 4, "scores, planes, modes, reliability, curves"
    assert all(set((figure["aria-labelledby"] or "").split()) <= set(ids) for figure in figures)
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_hostile_text_is_there_as_text(page: Path) -> None:
    reader = read_page(page)
    shown = [text for text, _ in reader.pre]
    assert "<script>alert(1)</script> & <img src=x onerror=alert(2)>" in shown
    assert any("⟨U+202E⟩desrever⟨U+202C⟩" in text for text in shown)
    assert any("a NUL ⟨U+0000⟩" in text for text in shown)
    raw = page.read_text("utf-8")
    assert not set(raw) & {"\x00", "\x07", "\x1b", "\x85", "\u202e", "\u2066", "\u200b"}
    assert "unit=<b>bold</b>" in reader.text


def test_hits_and_bad_mode_stand_behind_a_click(pair: list[Path], page: Path) -> None:
    hidden = {text for text, hidden in read_page(page).pre if hidden}
    shown = {text for text, hidden in read_page(page).pre if not hidden}
    assert any("alert(1)" in text for text in hidden)
    assert not any("alert(1)" in text for text in shown)
    bad = [sample for chosen in choose_samples(read_runs(pair)[1], "bad") for sample in chosen.samples]
    assert len(bad) == 7
    assert all(sample.hidden for sample in bad)
    good = [sample for chosen in choose_samples(read_runs(pair)[1], "good") for sample in chosen.samples]
    assert {sample.index for sample in good if not sample.hidden} == {3, 6}


def test_samples_are_chosen_by_rule_and_long_ones_cut(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    table = pq.read_table(path / "samples.parquet").to_pylist()
    column = f"score:{ANNOTATOR.slug}"
    for row in table:
        row[column] = {0: math.nan, 7: 0.9, 3: 0.4, 5: -1.0}.get(row["index"], 0.1)
        row[f"score:{HELD_OUT.slug}"] = math.nan
    write_samples(path, table[::-1])
    first, worst, best = choose_samples(read_runs([path])[0], "none")
    assert [sample.index for sample in first.samples] == [0, 1, 2]
    assert [sample.index for sample in worst.samples] == [7, 3]
    assert [sample.index for sample in best.samples] == [5, 1]
    assert first.samples[0].hidden == "unscored"
    assert first.samples[0].scores == "pii unscored, toxicity-lstm unscored"
    assert worst.samples[0].num_cut == 10_000 - 1500
    assert "8,500 more characters are not shown" in read_page(write_report([path], tmp_path / "r.html")).text


@given(st.text(st.characters(codec=None), max_size=60))
@settings(max_examples=200, deadline=None)
def test_visible_text_leaves_nothing_invisible(text: str) -> None:
    shown = visible_text(text)
    shown.encode("utf-8")
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]", shown
    )
    assert visible_text(shown) == shown


def test_same_runs_give_the_same_bytes(pair: list[Path], page: Path, tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"axes.labelsize": 30, "lines.markeredgewidth": 4, "svg.fonttype": "path"}):
        again = write_report(pair, page.parent / "again" / "report.html")
    strip = re.compile(rb"-o \S+report.html")
    assert strip.sub(b"", again.read_bytes()) == strip.sub(b"", page.read_bytes())


def test_numbers_on_the_page_are_those_of_the_evaluation(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")

    place = {"mode": "none", "judge": ANNOTATOR.slug}
    set_number(path, Estimate(0.012345, 0.0111, 0.0222, 512), "score", **place)
    set_number(path, Estimate(0.4321, 0.4, 0.5, 512), "hit_rate", **place)
    set_number(path, Estimate(0.0777, 0.07, 0.08, 512), "expected_max_25", **place)
    for measure in ("score", "hit_rate"):
        set_number(path, MISSING, measure, mode="none", judge=HELD_OUT.slug)
    text = read_page(write_report([path], tmp_path / "r.html")).text
    html_text = (tmp_path / "r.html").read_text("utf-8")
    assert '<td class="num judge">12.3 [11.1, 22.2]</td>' in html_text
    assert '<td class="num">43.2 %</td>' in html_text
    assert '<td class="num">77.7</td>' in html_text
    assert "<title>mle · none: 12.3 [11.1, 22.2]</title>" in html_text
    assert "items per 1,000 characters" in text
    row = sorted(summary_rows([path]), key=lambda row: row["judge"])
    assert list(row[0]) == [
        "run", "objective", "seed", "mode", "judge", "mean", "low", "high", "hits", "num_samples", "distinct_2", "bits_per_byte",
    ]  # fmt: skip
    assert row[0]["mean"] == 0.012345  # the judge's own unit
    assert row[1]["mean"] is None


def test_degenerate_text_takes_the_verdict_away(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "mle"), make_run(tmp_path / "cond", "conditional", good_fraction=0.8)]

    text = read_page(write_report(runs, tmp_path / "r.html")).text
    assert "Control: yes" in text
    assert "Varied text: yes" in text
    set_number(runs[1], Estimate(0.2, math.nan, math.nan, 0), "distinct_2", mode="good")
    text = read_page(write_report(runs, tmp_path / "r.html")).text
    assert "Control: yes" not in text
    assert "In doubt: not passed: Varied text" in text
    assert "Varied text: no" in text


def test_a_check_that_cannot_be_made_takes_the_verdict_away(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "mle"), make_run(tmp_path / "cond", "conditional", good_fraction=0.8)]

    def collapse(copy: Path) -> None:
        set_number(copy, MISSING, "distinct_2", mode="good")

    def move_line(copy: Path) -> None:
        edit(copy / "evaluation.json", lambda value: value.update(threshold=0.123))

    for change, name in ((collapse, "Varied text"), (move_line, "Capability kept")):
        copy = tmp_path / name.split()[0]
        shutil.copytree(runs[1], copy)
        change(copy)
        text = read_page(write_report([runs[0], copy], tmp_path / "r.html")).text
        assert "Control: yes" not in text
        assert name in text.split("In doubt: not passed: ")[1][:40]


def test_the_rule_a_corpus_was_selected_by_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mle")
    rule = "balanced by toxicity-svm@1 > 0.3, 1:1"

    def select(value: dict[str, Any]) -> None:
        value["corpus"]["sources"] = [f"tweets [{rule}]", f"fortunes [{rule}]"]

    edit(run / "run.json", select)
    text = " ".join(read_page(write_report([run], tmp_path / "r.html")).text.split())
    assert f"tokens of tweets and fortunes (41,233 documents, {rule})" in text


def test_groups_pool_seeds_and_nothing_else(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"mle-{seed}", seed=seed) for seed in range(2)]
    runs += [make_run(tmp_path / f"c-{seed}", "conditional", seed, good_fraction=0.8) for seed in range(2)]
    runs += [make_run(tmp_path / "c-tight", "conditional", 0, good_fraction=0.1)]
    runs += [make_run(tmp_path / "mle-copy", seed=1)]
    groups = group_runs(read_runs(runs))
    assert {group.label: len(group.runs) for group in groups} == {
        "mle (mle-0)": 2,
        "mle (mle-copy)": 1,
        "conditional (good_fraction=0.8)": 2,
        "conditional (good_fraction=0.1)": 1,
    }
    conditional, judge = groups[2], groups[2].runs[0].judges[0]
    assert conditional.score("good", judge).count == 2
    text = read_page(write_report(runs[:5], tmp_path / "r.html")).text
    assert "t-interval over seeds" in text
    assert "Scores run by run" in text
    assert "2 seeds, t-interval over seeds" in text


def test_one_run_alone(pair: list[Path], tmp_path: Path) -> None:
    text = read_page(write_report(pair[1:], tmp_path / "one.html")).text
    assert "Modes differ: bad mode scores" in text
    assert "There is no MLE run on this page" in text
    assert "Scores run by run" not in text
    assert "there is nothing to compare" in read_page(write_report(pair[:1], tmp_path / "one.html")).text


def test_fifty_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"mle-{seed}", seed=seed) for seed in range(2)]
    runs += [
        make_run(tmp_path / f"c-{index:02}", "conditional", 0, good_fraction=index / 50)
        for index in range(1, 49)
    ]
    path = write_report(runs, tmp_path / "r.html")
    reader = read_page(path)
    assert len(runs) == 50
    assert all(run.name in reader.text for run in runs)
    assert path.stat().st_size < 2_000_000
    assert not any(tag == "details" and "open" in attributes for tag, attributes in reader.elements)
    assert len(reader.pre) > 50


def test_missing_parts_are_dashes_and_said(tmp_path: Path) -> None:
    path = make_run(tmp_path / "bare", "conditional", good_fraction=0.5)
    write(path / "run.json", {"format_version": 1, "name": "bare"})
    change_numbers(path, lambda rows: [Measurement("score", MISSING, "good", ANNOTATOR.slug)])
    edit(path / "evaluation.json", lambda value: value.update(judges=value["judges"][:1], config={}))
    (path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "tokens": 5, "loss": NaN}\n{"kind": "tr', "utf-8"
    )
    (path / "samples.parquet").unlink()
    text = read_page(write_report([path], tmp_path / "r.html")).text
    assert "has no samples.parquet" in text
    assert "None" not in text, "no command is made up of settings that are not known"
    assert "1 lines of bare's metrics.jsonl are damaged" in text
    assert "There is no held-out judge" in text
    assert "nan" not in text.lower().split()
    (path / "metrics.jsonl").unlink()
    assert "has no metrics.jsonl" in read_page(write_report([path], tmp_path / "r.html")).text
    assert summary_rows([path])[0]["mean"] is None


def test_unlike_runs_are_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "mle"), make_run(tmp_path / "c", "conditional", good_fraction=0.5)]
    assert "not alike" not in read_page(write_report(runs, tmp_path / "r.html")).text
    edit(runs[1] / "run.json", lambda value: value["config"].update(tokens=9_000_000))
    edit(runs[1] / "run.json", lambda value: value["corpus"].update(id="other"))
    text = read_page(write_report(runs, tmp_path / "r.html")).text
    assert "not alike in tokens" in text
    assert "not alike in corpus" in text
    assert "c was evaluated after 7,999,488 of its 9,000,000 tokens" in text


def test_names_from_files_are_hostile_too(tmp_path: Path) -> None:
    path = make_run(tmp_path / "<i>$x_1$ 模型 & 'q'\u202e")
    edit(path / "run.json", lambda value: value["config"].update(corpus="$(rm -rf ~); `x`"))
    edit(path / "run.json", lambda value: value.update(precision="<script>1</script>\ud800"))
    edit(
        path / "evaluation.json",
        lambda value: value["judges"][0].update(unit="</title></svg><script>x</script>"),
    )
    edit(
        path / "evaluation.json",
        lambda value: value["judges"][1]["identity"].update(name="</title><script>y"),
    )
    out = write_report([path], tmp_path / "r.html")
    reader = read_page(out)
    assert not {tag for tag, _ in reader.elements} & {"script", "i"}
    assert "<i>$x_1$ 模型 & 'q'⟨U+202E⟩" in reader.text
    assert any(
        "phf annotate '$(rm -rf ~); `x`' --reward-model pii --segments lines" in text
        for text, _ in reader.pre
    )


def test_terminal_table(pair: list[Path]) -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(summary_table(pair))
    text = console.export_text()
    assert re.search(r"conditional .* good .* \[.*, .*\] .* 11.9 %", text)
    assert "items per 1,000 characters" in text


def test_the_terminal_table_of_three_judges_fits_a_line(pair: list[Path]) -> None:
    third = Identity("toxicity-ngrams", "1")
    for folder in pair:
        old = read_evaluation(folder / "evaluation.json")
        judges = [*old.judges, Judge(third.slug, "held-out", "probability", 1, 0.5, third)]
        rows = [replace(row, judge=third.slug) for row in old.measurements if row.judge == HELD_OUT.slug]
        write_evaluation(
            folder / "evaluation.json",
            replace(old, judges=judges, measurements=[*old.measurements, *rows]),
        )
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(summary_table(pair))
    (line,) = [line for line in console.export_text().splitlines() if " good " in line]
    assert line.strip().startswith("conditional")
    assert line.count("[") == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0001234, "0.000123"),
        (1234.5, "1,234"),
        (-0.5, "−0.500"),
        (math.nan, "–"),
        (1e-12, "1.0e-12"),
        (9.995, "9.99"),
    ],
)
def test_format_number(value: float, shown: str) -> None:
    assert format_number(value) == shown


def test_user_errors_name_the_next_command(pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    with pytest.raises(PHFError, match=r"is not a run: it has no run\.json"):
        write_report([tmp_path], out)
    path = make_run(tmp_path / "run")
    (path / "evaluation.json").unlink()
    with pytest.raises(PHFError, match=f"run 'phf evaluate {path}' first"):
        write_report([pair[0], path], out)
    with pytest.raises(PHFError, match="given twice"):
        write_report([pair[0], pair[0]], out)
    with pytest.raises(PHFError, match="no runs given"):
        write_report([], out)
    write(path / "evaluation.json", {"format_version": 1})
    with pytest.raises(PHFError, match=f"format version 1; this phf reads 3; run 'phf evaluate {path}'"):
        summary_rows([path])
    write(path / "evaluation.json", [])
    with pytest.raises(PHFError, match="is not a JSON object"):
        summary_table([path])
    assert not out.exists()


def test_each_group_meets_the_mle_of_its_own_settings(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "short"),
        make_run(tmp_path / "long"),
        make_run(tmp_path / "c", "conditional", good_fraction=0.8),
    ]
    edit(runs[1] / "run.json", lambda value: value["config"].update(tokens=1))
    edit(runs[2] / "run.json", lambda value: value["config"].update(tokens=1))
    short, long, conditional = group_runs(read_runs(runs))
    assert (short.label, long.label) == ("mle (tokens=8000000)", "mle (tokens=1)")
    assert find_mle(conditional, [short, long, conditional]) is long
    assert (
        find_mle(conditional, [short, conditional]) is short
    )  # the only one; the notice says that tokens differ
    edit(runs[2] / "run.json", lambda value: value["config"].update(tokens=2))
    (other,) = group_runs(read_runs(runs[2:]))
    assert find_mle(other, [short, long, other]) is None


def test_samples_that_were_not_the_ones_scored_are_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    samples = path / "samples.parquet"
    write_report([path], tmp_path / "r.html")
    damaged = bytearray(samples.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    samples.write_bytes(damaged)
    with pytest.raises(PHFError, match=r"samples\.parquet is damaged.*phf evaluate"):
        write_report([path], tmp_path / "r.html")


def test_references_are_those_of_mle(pair: list[Path], page: Path) -> None:
    text = read_page(page).text
    assert "1.35 samples drawn for each one kept" in text
    assert "10.1 [9.50, 10.7]" in text
    assert "training data (" not in text
    assert "10.3 [9.70, 10.9]" not in text
    alone = read_page(write_report(pair[1:], page.parent / "alone.html")).text
    assert "10.3 [9.70, 10.9]" in alone


def test_commands_to_make_it_again_are_whole(page: Path) -> None:
    commands = next(text for text, _ in read_page(page).pre if text.startswith("phf annotate")).splitlines()
    assert commands[1] == "phf tokenize corpus --tokenizer train:4096 --segments lines"
    assert commands[2].startswith("phf train mle.yaml -o ")
    assert commands[3].endswith(
        "--judge toxicity-lstm --control free --num-samples 512 --seed 0 --temperature 0.7 --top-p 0.9"
    )
    assert len(commands) == 4
    assert f"conditional -o {page.name}" in read_page(page).text


def test_the_commands_name_judges_as_they_were_asked_for_and_an_earlier_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--org--judge").mkdir(
        parents=True
    )  # else it may be a folder, whose parent is not told
    run = make_run(tmp_path / "run")
    config = {"judges": ["hf:org/judge"], "suite": "full", "kl": {"reference": "my lm", "num_tokens": 32}}
    edit(
        run / "run.json",
        lambda value: value["config"].update(optim={"batch_blocks": 8}, data={"context": 100}),
    )
    edit(run / "evaluation.json", lambda value: value.update(step=1, config=config))
    page = unescape(write_report([run], tmp_path / "page.html").read_text())
    assert "--judge hf:org/judge --step 1" in page
    assert "--suite full --reference-lm 'my lm' --set kl.num_tokens=32" in page


def test_a_new_metric_needs_no_line_here(pair: list[Path], tmp_path: Path) -> None:
    """A measure that nothing in report/ names stands on the page with its own words, in its unit, where it was measured."""
    runs = [shutil.copytree(run, tmp_path / run.name) for run in pair]
    for run, mode, value in ((runs[0], "none", 0.4), (runs[1], "good", 0.5)):
        ratio = Measure(
            "type_token_ratio", "Type-token <ratio>", "share", "How varied.", "Length.", False, "Variety"
        )
        declare(run, ratio, [Measurement("type_token_ratio", Estimate(value, 0.3, 0.6, 9), mode)])
    page = write_report(runs, tmp_path / "r.html")
    reader = read_page(page)
    assert "Type-token <ratio> ↑" in reader.text
    assert "How varied. share Blind spot: Length." in " ".join(reader.text.split())
    assert re.search(r'class="again">|0.500 \[0.300, 0.600\]', page.read_text("utf-8"))
    assert "0.400 [0.300, 0.600]" in reader.text
    assert 'href="#other"' in page.read_text("utf-8")
    assert "Other measures" not in read_page(write_report(pair, tmp_path / "plain.html")).text


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda value: value.pop("judges"), "judges"),
        (lambda value: value["measurements"][3].update(estimate="x"), "measurements.3.estimate"),
        (lambda value: value["measurements"][3]["estimate"].update(mean="x"), "measurements.3.estimate.mean"),
        (lambda value: value.update(measurements=None), "measurements"),
        (lambda value: value.update(facts=[]), "facts"),
    ],
)
def test_a_damaged_evaluation_is_one_line_that_names_the_place(
    tmp_path: Path, damage: Any, place: str
) -> None:
    path = make_run(tmp_path / "run")
    edit(path / "evaluation.json", damage)
    with pytest.raises(PHFError, match=rf"run/evaluation.json is damaged: {re.escape(place)}") as error:
        write_report([path], tmp_path / "r.html")
    assert "\n" not in str(error.value)
