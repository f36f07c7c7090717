"""`phf show` and `phf compare` as a person meets them: any state of a run, 80 columns, no escape sequence gets through."""

import json
import math
import sys

from fake_runs import declare, edit, make_run

from phf import cli
from phf.cli.show import draw_sparkline
from phf.records import Estimate
from phf.report.differences import list_settings
from phf.report.reading import read_runs
from phf.results import Measure, Measurement


def phf(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["phf", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def finish(path, step=3906):
    """Give a fake run the sizes that say how many steps it has, and a checkpoint."""

    def add(value):
        value["config"]["optim"]["batch_blocks"] = 8
        value["config"]["data"] = {"context": 256}

    edit(path / "run.json", add)
    folder = path / "checkpoints" / f"step-{step:06}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    (path / "checkpoints" / "step-009999").mkdir()  # not whole: it has no manifest
    return path


def test_sparkline():
    assert draw_sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert draw_sparkline([3, math.nan, 1]) == "█ ▁"
    assert draw_sparkline([2, 2]) == "▁▁"
    assert draw_sparkline([]) == ""


def test_show_a_finished_and_evaluated_run(monkeypatch, capsys, tmp_path):
    path = finish(make_run(tmp_path / "run", "conditional", good_fraction=0.8), 3907)
    code, out, _ = phf(monkeypatch, capsys, "show", path)
    assert code == 0
    assert "run: conditional, seed 0, finished" in out
    assert "good_fraction=0.8" in out
    assert "step 3,900 of 3,907" in out
    assert "checkpoints  3,907\n" in out
    assert "loss         █" in out
    assert "Misalignment score (pii) ↓" in out
    assert " numbers: --all; for scripts: --json" in out
    assert f"next: phf report {path} -o report.html" in out
    assert max(map(len, out.splitlines()[:-1])) <= 120


def test_show_says_what_comes_next_in_every_state(monkeypatch, capsys, tmp_path):
    path = finish(make_run(tmp_path / "run"), 2000)
    _, out, _ = phf(monkeypatch, capsys, "show", path)
    assert "not finished" in out
    assert "Evaluation of step 3,906" in out, "not of the last checkpoint"
    assert f"next: phf train --resume {path}" in out
    (path / "evaluation.json").unlink()
    (path / "metrics.jsonl").unlink()
    code, out, _ = phf(monkeypatch, capsys, "show", path)
    assert code == 0
    assert "step 0 of 3,907" in out
    folder = path / "checkpoints" / "step-003907"
    folder.mkdir()
    (folder / "checkpoint.json").write_text("{}")
    _, out, _ = phf(monkeypatch, capsys, "show", path)
    assert f"next: phf evaluate {path}" in out
    (path / "run.json").write_text(json.dumps({"format_version": 1}))
    assert phf(monkeypatch, capsys, "show", path)[0] == 0


def test_hostile_names_are_printable(monkeypatch, capsys, tmp_path):
    path = make_run(tmp_path / "run\x1b[31m[red]")
    edit(
        path / "run.json",
        lambda value: value["corpus"].update(sources=["\x1b]0;title\x07", "\u202eabc", "[bold]x"]),
    )
    edit(path / "evaluation.json", lambda value: value["judges"][0]["identity"].update(name="\x1b[2J[/]"))
    other = make_run(tmp_path / "mle")
    for arguments in (["show", path], ["compare", other, path]):
        code, out, _ = phf(monkeypatch, capsys, *arguments)
        assert code == 0
        assert not set(out) & {"\x1b", "\x07", "\u202e"}
        assert "[red]" in out


def test_errors_are_one_line(monkeypatch, capsys, tmp_path):
    code, _, err = phf(monkeypatch, capsys, "show", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "is not a run" in err
    code, _, err = phf(monkeypatch, capsys, "compare", make_run(tmp_path / "run"))
    assert (code, err.count("\n")) == (2, 1)
    assert "two runs or more" in err


def test_compare_says_settings_scores_and_verdict(monkeypatch, capsys, tmp_path):
    runs = [make_run(tmp_path / "mle"), make_run(tmp_path / "cond", "conditional", good_fraction=0.8)]
    code, out, _ = phf(monkeypatch, capsys, "compare", *runs)
    assert code == 0
    assert out.startswith("cond against mle: ")
    places = list(map(out.index, ("Settings that differ", "difference [95 %]", "cond against mle rests on")))
    assert places == sorted(places)
    assert "objective.good_fraction" in out
    assert "seed" not in out.split("Headline numbers")[0], "the same seed is no difference"
    assert "conditional (one seed) by pii: Control: yes" in out
    (runs[0] / "evaluation.json").unlink()
    _, out, _ = phf(monkeypatch, capsys, "compare", *runs)
    assert "mle is not evaluated; next: phf evaluate" in out
    (runs[1] / "evaluation.json").unlink()
    code, out, _ = phf(monkeypatch, capsys, "compare", *runs)
    assert code == 0
    assert "Settings that differ" in out


def test_compare_says_what_the_page_says_of_unlike_runs(monkeypatch, capsys, tmp_path):
    runs = [make_run(tmp_path / "mle"), make_run(tmp_path / "cond", "conditional", good_fraction=0.8)]
    _, out, _ = phf(monkeypatch, capsys, "compare", *runs)
    assert "note:" not in out

    def take_judge(value):
        value["config"]["sampling"]["top_p"] = 0.5
        (slug,) = [judge["slug"] for judge in value["judges"] if judge["role"] == "held-out"]
        value["judges"] = [judge for judge in value["judges"] if judge["slug"] != slug]
        value["measurements"] = [row for row in value["measurements"] if row.get("judge") != slug]

    edit(runs[1] / "evaluation.json", take_judge)
    _, out, _ = phf(monkeypatch, capsys, "compare", *runs)
    assert "note: The runs are not alike in sampling" in out
    assert f"did not judge cond; to have its scores: phf evaluate {runs[1]} --judge " in out


def test_everything_fits_eighty_columns(monkeypatch, capsys, tmp_path):
    from rich.console import Console

    monkeypatch.setattr("phf.cli.show.print_table", lambda table: Console(width=80).print(table))
    monkeypatch.setattr("phf.cli.show.table_width", lambda: 80)
    runs = [finish(make_run(tmp_path / "mle", "mle"), 3907)]
    runs += [
        finish(
            make_run(tmp_path / f"conditional-good-fraction-{i}", "conditional", good_fraction=i / 7), 3907
        )
        for i in (1, 2, 3)
    ]
    for arguments in (["show", runs[1]], ["compare", *runs[:2]], ["compare", *runs]):
        _, out, _ = phf(monkeypatch, capsys, *arguments)
        # Commands and verdicts are for copying and may be longer; tables and descriptions are not.
        wide = [
            line
            for line in out.splitlines()
            if len(line) > 80 and not line.startswith(("next: ", "conditional ("))
        ]
        assert wide == []
        assert "…" not in out.replace("…raction", ""), "no number is cut"


def test_settings_that_differ(tmp_path):
    paths = [make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)]
    edit(paths[1] / "run.json", lambda value: value["versions"].update(torch="9"))
    assert list_settings(read_runs(paths)) == {"seed": [0, 1], "versions.torch": ["2.13.0", "9"]}


def test_every_number_is_shown_and_given_to_scripts(monkeypatch, capsys, tmp_path):
    """A measure that nothing but the file names is in show, compare and their JSON."""
    runs = [make_run(tmp_path / "mle"), make_run(tmp_path / "cond", "conditional", good_fraction=0.8)]
    ratio = Measure(
        "type_token_ratio", "Type-token ratio", "share", "How varied.", "Length.", False, "Variety"
    )
    for run, mode, value in ((runs[0], "none", 0.4), (runs[1], "none", 0.7)):
        number = Estimate(value, value - 0.1, value + 0.1, 9)
        declare(run, ratio, [Measurement("type_token_ratio", number, mode, of="long \x1b[31m text", at=3.0)])
    _, out, _ = phf(monkeypatch, capsys, "show", runs[1])
    assert "Type-token" not in out, "no headline"
    assert len(out.splitlines()) <= 45
    for arguments in (["show", runs[1], "--all"], ["compare", *runs, "--all"]):
        code, out, _ = phf(monkeypatch, capsys, *arguments)
        assert code == 0
        assert "Variety" in out
        assert "0.700 [0.600, 0.800]" in out
        assert "\x1b" not in out
    assert "0.300 [0.159, 0.441] ↑" in out
    _, out, _ = phf(monkeypatch, capsys, "compare", *runs, "--json")
    rows = json.loads(out)["measured"]
    found = [row for row in rows if row["measure"] == "type_token_ratio"]
    assert [(row["run"], row["mode"], row["mean"], row["unit"]) for row in found] == [
        ("mle", "none", 0.4, "share"),
        ("cond", "none", 0.7, "share"),
    ]
    assert [row["low"] for row in rows if row["measure"] == "mean_tokens"] == [None] * 4, (
        "what is missing is null"
    )
    assert {row["unit"] for row in rows if row["measure"] == "score"} == {
        "items per character",
        "probability",
    }


def test_of_several_seeds_compare_shows_the_pooled_numbers(monkeypatch, capsys, tmp_path):
    runs = [make_run(tmp_path / f"mle-{seed}", "mle", seed) for seed in (0, 1)]
    runs.append(make_run(tmp_path / "cond", "conditional", good_fraction=0.8))
    _, out, _ = phf(monkeypatch, capsys, "compare", *runs)
    assert "mle, 2 seeds" in out
    assert out.startswith("cond against mle, 2 seeds: 0 of ")
    assert "*" not in out.split("Differences:")[0], "pooled numbers are not in pairs"
