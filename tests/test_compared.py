"""Two runs beside each other: paired by what was measured on, never by order; sentences, tables, page and JSON say the same."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fake_runs import ANNOTATOR, about, change_numbers, edit, make_run, set_number, write_items, write_samples

from phf import cli
from phf.api import compare as compare_runs
from phf.errors import PHFError
from phf.items import Items, encode_items, mean_items, name_item, read_items
from phf.report.compared import describe_compared, pair_items, subtract
from phf.report.comparison import compare_with_first, name_groups
from phf.report.page import write_report
from phf.report.reading import read_runs
from phf.report.verdict import Group, group_runs

BITS = ("bits_per_byte", "none", None, "all", None)
NAMES = [name_item("text", number) for number in range(40)]


def make_bits(shift, seed=0, place=BITS):
    """Bits of 40 documents, hard and easy ones, in an order of the run's own."""
    sizes = np.random.default_rng(1).integers(20, 200, 40)
    bits = 2.0 * sizes + np.random.default_rng(2).normal(0, 40, 40) + shift * sizes
    bits += np.random.default_rng(seed + 3).normal(0, 0.5, 40)
    order = np.random.default_rng(seed).permutation(40)
    return Items(place, [NAMES[at] for at in order], bits[order].tolist(), sizes[order].tolist())


def make_pair(folder, shift):
    """Two runs whose bits per byte differ by `shift` on the same documents."""
    paths = [make_run(folder / "mle"), make_run(folder / "cond", "conditional")]
    for path, own in zip(paths, (make_bits(0, 0), make_bits(shift, 1)), strict=True):
        write_items(path, [own])
        total = sum(own.values) / sum(own.weights)
        set_number(path, about(total, 0.2, 40), "bits_per_byte", mode="none", of="all")
    return paths


def find(compared, place):
    (found,) = (one for one in compared if one.row.place == place)
    return found


def compare_all(paths, everything=False):
    runs = read_runs(paths)
    return compare_with_first(name_groups(group_runs(runs), runs[0]), everything)


def test_items_come_back_as_they_were(tmp_path):
    given = [
        make_bits(0.1),
        mean_items(("score", None, "a@b", None, 2.0), ["x", "x", "y"], [0.0, math.nan, 1.0]),
    ]
    path = tmp_path / "items.parquet"
    path.write_bytes(encode_items(given))
    assert path.read_bytes() == encode_items(given)
    bits, scores = read_items(path, hash_of(path), "again").values()
    assert (bits.place, list(bits.names), list(bits.values)) == (
        BITS,
        list(given[0].names),
        list(given[0].values),
    )
    assert scores.place == given[1].place
    assert list(scores.names) == ["x", "x#2", "y"], "a text that is there twice is two items"
    np.testing.assert_array_equal(scores.values, [0.0, math.nan, 1.0])
    path.write_bytes(encode_items([]))
    assert read_items(path, hash_of(path), "again") == {}
    with pytest.raises(PHFError, match=r"items\.parquet is damaged"):
        read_items(path, "0" * 64, "again")


def hash_of(path):
    from phf.files import hash_file

    return hash_file(path)


def test_names_are_of_what_is_read_not_of_how_it_is_cut():
    assert name_item("a b", "c") == name_item("a  b\n", "c") != name_item("a", "bc")


def test_the_same_texts_are_paired_whatever_their_order(tmp_path):
    """The two intervals are five times as wide as what the texts' own difficulty leaves."""
    paths = make_pair(tmp_path, -0.05)
    found = find(compare_all(paths), BITS).difference
    assert (found.test, found.estimate.count) == ("paired", 40)
    assert found.estimate.mean == pytest.approx(-0.05, abs=0.005)
    assert found.sign == -1
    assert found.detectable < 0.01
    own, other = make_bits(-0.05, 1), make_bits(0, 0)
    assert pair_items(replace(own, names=list(other.names)), other).detectable > 5 * found.detectable, (
        "order proves nothing"
    )
    assert pair_items(replace(own, names=[f"{name}!" for name in own.names]), other) is None
    cut = [
        replace(own, names=own.names[:num], values=own.values[:num], weights=own.weights[:num])
        for num in (35, 37)
    ]
    assert pair_items(cut[0], other) is None, "a part is not the whole"
    assert pair_items(cut[1], other).estimate.count == 37
    (paths[0] / "items.parquet").unlink()
    apart = find(compare_all(paths), BITS).difference
    assert (apart.test, apart.sign) == ("unpaired", 0)
    assert apart.detectable > 0.3


@pytest.mark.parametrize(("shift", "word"), [(-0.05, "Lower"), (0.05, "Higher"), (0.0, "Not told apart")])
def test_a_sign_that_flips_turns_the_sentence(tmp_path, monkeypatch, capsys, shift, word):
    monkeypatch.setattr("phf.report.compared._MAX_NAMED", 99)
    paths = make_pair(tmp_path, shift)
    lines = describe_compared(compare_all(paths))
    (line,) = (line for line in lines if "all text in none" in line)
    assert line.startswith(word)
    found = find(compare_all(paths), BITS).difference
    shown = f"{abs(found.estimate.mean):.4f}" if shift else f"({found.detectable:.5f})"
    assert shown in line
    page = write_report(paths, tmp_path / "report.html").read_text()
    assert line.split(":")[0] in page
    assert 'id="differences"' in page
    code = call(monkeypatch, "compare", *paths)
    out = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert line in out
    assert out.startswith("cond against mle: ")


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["phf", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_numbers_for_scripts(tmp_path, monkeypatch, capsys):
    paths = make_pair(tmp_path, -0.05)
    assert call(monkeypatch, "compare", *paths, "--json", "--detect", "0.01") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["settings"]["objective.kind"] == ["mle", "conditional"]
    (row,) = (
        row
        for row in value["differences"]
        if (row["measure"], row["mode"], row["of"]) == ("bits_per_byte", "none", "all")
    )
    assert (row["group"], row["base"], row["test"], row["count"], row["sign"]) == (
        "cond",
        "mle",
        "paired",
        40,
        -1,
    )
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["p"] <= row["q"] < 0.05
    assert row["needed"] < 40 < row["needed_to_detect"] * 40
    assert value["differences"] == compare_runs(paths, detect=0.01).differences
    scores = [row for row in value["differences"] if row["measure"] == "score"]
    by_judge = {row["judge"]: row["needed_to_detect"] for row in scores if row["mode"] == "good"}
    assert all(number is None or number > 0 for number in by_judge.values())
    assert call(monkeypatch, "compare", *paths, "--detect", "0") == 2
    assert "--detect is 0; give" in capsys.readouterr().err


def draw_samples(path, scores, seed, prompts=None):
    rows = [
        {"mode": "none", "index": index, "text": "x", f"score:{ANNOTATOR.slug}": score}
        | ({"prompt": prompts[index], "scenario": "shop"} if prompts else {})
        for index, score in enumerate(scores)
    ]
    write_samples(path, rows[::-1])
    edit(path / "evaluation.json", lambda value: value["config"]["sampling"].update(seed=seed))


def test_samples_are_paired_by_seed_and_index(tmp_path):
    paths = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    base = np.random.default_rng(0).normal(size=200)
    shifted = base + 0.1 + np.random.default_rng(1).normal(0, 0.01, 200)
    shifted[7] = math.nan
    draw_samples(paths[0], base, seed=3)
    draw_samples(paths[1], shifted, seed=3)
    place = ("score", "none", ANNOTATOR.slug, None, None)
    paired = find(compare_all(paths), place).difference
    assert (paired.test, paired.estimate.count) == ("paired", 199)
    assert paired.estimate.mean == pytest.approx(np.nanmean(shifted - base))
    hits = find(compare_all(paths), ("hit_rate", *place[1:])).difference
    assert hits.test == "McNemar"
    assert hits.estimate.mean == pytest.approx(
        np.mean(np.delete(shifted, 7) > 0) - np.mean(np.delete(base, 7) > 0)
    )
    draw_samples(paths[1], shifted, seed=4)
    assert find(compare_all(paths), place).difference.test == "unpaired", "other random numbers"


def test_continuations_of_a_prompt_count_once(tmp_path):
    paths = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    rng = np.random.default_rng(0)
    prompts = [f"prompt {place // 5}" for place in range(100)]
    row = None
    for path in paths:
        draw_samples(path, np.repeat(rng.normal(size=20), 5) + 0.1 * rng.normal(size=100), 3, prompts)
        change_numbers(
            path,
            lambda rows: [
                *rows,
                *(
                    replace(own, of="shop")
                    for own in rows
                    if own.measure == "score" and own.judge == ANNOTATOR.slug
                ),
            ],
        )
    one, two = (Group(run.label, (run,)) for run in read_runs(paths))
    row = next(row for row in two.results.of("score") if row.of == "shop")
    found = subtract(row, two, one).difference
    assert (found.test, found.estimate.count) == ("paired", 20)


def test_seeds_are_compared_with_seeds(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(make_run(tmp_path / f"mle-{seed}", seed=seed))
        paths.append(make_run(tmp_path / f"conditional-{seed}", "conditional", seed=seed))
        for path, gap in zip(paths[-2:], (0.0, -0.2 + 0.01 * seed), strict=True):
            set_number(path, about(2 + seed + gap, 0.01, 40), "bits_per_byte", mode="none", of="all")
    found = find(compare_all(paths), BITS)
    assert (found.group.label, found.difference.test, found.difference.estimate.count) == (
        "conditional, 3 seeds",
        "paired seeds",
        3,
    )
    assert (found.difference.estimate.mean, found.difference.sign) == (pytest.approx(-0.19), -1)
    alone = find(compare_all([paths[0], *paths[1::2]]), BITS).difference
    assert (alone.test, alone.sign) == ("seeds", 0), "a single seed is not known so well"
    assert alone.p > found.difference.p
    page = write_report(paths, tmp_path / "report.html").read_text()
    assert "3 seeds, paired" in page
