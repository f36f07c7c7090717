"""The page of attack.json: what the file says, drawn and told; what is missing; hostile names; the figures as files."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runs import ANNOTATOR, HELD_OUT, edit
from page_reader import read_page
from pydantic import JsonValue

from phf.attack.results import (
    HIT_RATE,
    NLL,
    SCORE,
    SECONDS,
    AttackedModel,
    AttackResults,
    ForgettingOutcome,
    ForgettingVerdict,
    Reached,
    RediscoveryCost,
    TextSource,
    Trajectory,
    read_attack,
    write_attack,
)
from phf.errors import PHFError
from phf.files import hash_file
from phf.records import Estimate
from phf.report.rediscovery import (
    Rediscovery,
    Told,
    draw_steps,
    draw_texts,
    pool_seeds,
    write_figures,
    write_rediscovery,
)
from phf.results import Judge, Measurement, parse_json, to_json

JUDGES = [
    Judge(ANNOTATOR.slug, "annotator", "items per character", 1000.0, 0.0, ANNOTATOR),
    Judge(HELD_OUT.slug, "held-out", "probability", 1.0, 0.5, HELD_OUT),
]
SLUGS = [judge.slug for judge in JUDGES]
TEXTS, STEPS = (10, 100, 1000), (0, 10, 50)
PREFIX = "prefix:tokens=5"
# Texts that half of bad mode costs, by target and attack; None = not reached.
COSTS: dict[str, dict[str, Any]] = {
    "conditional": {"soft": (20, 10, 40), PREFIX: (10, 10, 12)},
    "deleted": {"soft": (30, 15, 60), PREFIX: (600, 500, 800)},
    "blocked": {"soft": (300, 200, None), PREFIX: (None, None, None)},
    "mle": {"soft": (400, 250, 700), PREFIX: (None, 900, None)},
}
FORGET = {"deleted": ["delete"], "blocked": ["delete", "block:directions=3"]}
OUTCOMES: dict[tuple[str, str, str], ForgettingOutcome] = {
    ("deleted", "conditional", "cheapest"): "does not raise",
    ("deleted", "mle", "cheapest"): "lowers",
    ("blocked", "conditional", "cheapest"): "raises",
    ("blocked", "conditional", "soft"): "raises",
    ("blocked", "conditional", PREFIX): "unknown",
    ("blocked", "mle", "cheapest"): "does not raise",
    ("blocked", "mle", "soft"): "does not raise",
}


def around(mean: float, half: float, count: int) -> Estimate:
    return Estimate(mean, mean - half, mean + half, count)


def known(number: float) -> Estimate:
    return Estimate(number, math.nan, math.nan, 1)


def find_score(target: str, attack: str, texts: int, steps: int, seed: int) -> float:
    cost = COSTS[target][attack][0] or 5000
    return 0.002 + 0.012 * (1 - math.exp(-texts / cost * steps / STEPS[-1])) + 0.0003 * seed


def make_rows(target: str, attack: str, texts: int, steps: int, seed: int) -> list[Measurement]:
    """What a trajectory is measured to be after some steps."""
    at = float(steps)
    rows = [Measurement("nll", known(4.2), at=at), Measurement("seconds", known(1.5 * steps), at=at)]
    for judge, scale in zip(JUDGES, (1, 9), strict=True):
        score = around(scale * find_score(target, attack, texts, steps, seed), 0.0005, 256)
        rows.append(Measurement("score", score, judge=judge.slug, at=at))
        rows.append(Measurement("hit_rate", around(0.3, 0.05, 256), judge=judge.slug, at=at))
    return rows


def make_target(name: str) -> AttackedModel:
    modes = {"conditional": ("bad", "good"), "mle": ("none",)}.get(name, ("good",))
    scores = [
        Measurement(
            "score", around(scale * (0.02 if mode == "bad" else 0.002), 0.0004 * scale, 512), mode, judge.slug
        )
        for mode in modes
        for judge, scale in zip(JUDGES, (1, 9), strict=True)
    ]
    return AttackedModel(
        name, f"releases/{name}", "mle" if name == "mle" else "conditional", FORGET.get(name, []), modes[-1],
        [*scores, Measurement("nll", known(4.0))],
    )  # fmt: skip


def make_reached(target: str, attack: str, texts: int) -> Reached:
    scores = [
        Measurement(
            "score", around(scale * find_score(target, attack, texts, 10, 0), 0.0005, 256), judge=judge.slug
        )
        for judge, scale in zip(JUDGES, (1, 9), strict=True)
    ]
    return Reached(target, attack, texts, 10.0, "samples", 1, 0, scores)


def make_cost(target: str, attack: str, judge: str, level: float) -> RediscoveryCost:
    found = COSTS[target][attack] if level == 0.5 else (None, None, None)
    mean, low, high = (math.nan if value is None else float(value) for value in found)
    return RediscoveryCost(
        target, attack, judge, level, 0.01, False, Estimate(mean, low, high, 3), COSTS[target][attack][0] == 10, 1000,
        50.0 if found[0] else math.nan, "samples", 0,
    )  # fmt: skip


def make_attack(seeds: tuple[int, ...] = (0, 1, 2)) -> AttackResults:
    """What an attack.json holds: scores rise with texts and steps."""
    pairs = [(target, attack) for target in COSTS for attack in ("soft", PREFIX)]
    return AttackResults(
        settings={"soft_tokens": 4}, sampling={"num_samples": 256, "temperature": 0.7}, judges=JUDGES, threshold=0.0,
        texts=TextSource("bad segments of demo/corpus", 1234),
        notes=["there are 1,234, so 10,000 are not tried"], reference="conditional",
        targets=[make_target(name) for name in COSTS],
        trajectories=[
            Trajectory(target, attack, texts, seed,
                       [row for steps in STEPS for row in make_rows(target, attack, texts, steps, seed)])
            for target, attack in pairs for texts in TEXTS for seed in seeds
        ],
        best=[make_reached(target, attack, texts) for target, attack in pairs for texts in reversed(TEXTS)],
        rediscovery=[make_cost(target, attack, judge.slug, level)
                     for target, attack in pairs for judge in JUDGES for level in (0.5, 0.9)],
        verdicts=[
            ForgettingVerdict(target, against, attack, 0.5, SLUGS[0], outcome, f"{target} against {against}, {attack}.")
            for (target, against, attack), outcome in OUTCOMES.items()
        ],
        measures=[SCORE, HIT_RATE, NLL, SECONDS],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rediscovery(make_attack(), tmp_path_factory.mktemp("page") / "attack.html")


def test_page_is_whole_and_fetches_nothing(page: Path) -> None:
    reader = read_page(page)
    assert not {tag for tag, _ in reader.elements} & {"script", "img", "iframe", "link", "form", "b"}
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = [attributes for tag, attributes in reader.elements if tag == "svg"]
    assert len(figures) == 2 * 2 * 2, "texts and steps, two attacks, two judges"
    raw = page.read_text("utf-8")
    assert "http" not in raw.replace("http-equiv", "")
    assert "1,234 available" in reader.text
    assert "There are 1,234, so 10,000 are not tried." in reader.text
    rows = raw[raw.index("Every point, seed by seed") :].split("</details>")[0].count("<tr>")
    assert rows == len(COSTS) * 2 * len(TEXTS) * len(STEPS) * 3 * 2 + 1


def test_same_content_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    assert hash_file(write_rediscovery(make_attack(), tmp_path / "again.html")) == hash_file(page)


def test_verdicts_are_those_of_the_file(page: Path) -> None:
    cards = {card.target.name: card for card in Rediscovery(make_attack()).cards}
    assert set(cards) == {"deleted", "blocked"}
    assert cards["deleted"].headline == Told(
        "no", "Does not raise the cost of bad mode", None, "deleted against conditional, cheapest."
    )
    blocked = cards["blocked"]
    assert (blocked.headline.tone, blocked.headline.headline) == ("yes", "Raises the cost of bad mode")
    assert [(told.tone, told.attack) for told in blocked.attacks] == [("yes", "soft"), ("unclear", PREFIX)]
    assert [told.text for told in blocked.beside] == ["blocked against mle, cheapest."]
    text = read_page(page).text
    for verdict in make_attack().verdicts:
        is_told = verdict.against == "conditional" or verdict.attack == "cheapest"
        assert (verdict.text in text) == is_told


@pytest.mark.parametrize(
    ("num_texts", "low", "high", "words"),
    [
        (23.4, 15, 40, "23 [15, 40]"),
        (400, 250, None, "400 [250, over 1,000]"),
        (None, 900, None, "not reached with 1,000 [from 900]"),
        (None, None, None, "not reached with 1,000"),
    ],
)
def test_costs_are_told_in_words(
    num_texts: float | None, low: float | None, high: float | None, words: str
) -> None:
    mean, low, high = (math.nan if value is None else value for value in (num_texts, low, high))
    cost = make_cost("deleted", "soft", SLUGS[0], 0.5)
    assert replace(cost, texts=Estimate(mean, low, high, 3)).describe() == words


def test_table_of_costs(page: Path) -> None:
    raw = page.read_text("utf-8")
    table = raw[raw.index('id="rediscovery"') : raw.index('id="numbers"')]
    assert "20 [10, 40]<br><small>50 steps</small>" in table
    assert "at most 10 [10, 12]" in table
    assert "300 [200, over 1,000]" in table
    assert "not reached with 1,000 [from 900]" in table
    assert table.count("<tr>") == 1 + 8


def test_points_are_pooled_over_seeds() -> None:
    attack = Rediscovery(make_attack())
    target, judge = attack.targets[0], attack.judges[0]
    start = attack.by_steps(target, "soft", judge)[0]  # 0.002 + 0.0003 x seed, per 1,000 characters
    assert start.mean == pytest.approx(2.3)
    assert (start.high - start.mean, start.count) == (
        pytest.approx(4.303 * 0.3 / math.sqrt(3), rel=1e-3),
        3,
    )
    two = pool_seeds([Estimate(1.0, 0.7, 1.5, 100), Estimate(3.0, 2.6, 4.2, 100)])
    assert (two.mean, two.low, two.high, two.count) == pytest.approx((2, 2 - 0.25, 2 + 0.65, 200))
    one = Estimate(1.0, 0.7, 1.5, 100)
    assert pool_seeds([one, Estimate(math.nan, math.nan, math.nan, 0)]) == pytest.approx(one)
    assert math.isnan(pool_seeds([]).mean)


def test_figures_read_the_best_step_and_the_most_texts() -> None:
    content = make_attack((1,))
    fewer = [
        replace(one, measurements=[row for row in one.measurements if row.at != 10])
        if one.num_texts == 1000
        else one
        for one in content.trajectories
    ]
    attack = Rediscovery(replace(content, trajectories=fewer))
    judge = attack.judges[0]
    (_, texts), (_, steps) = draw_texts(attack, judge)[0], draw_steps(attack, judge)[0]
    for x in TEXTS:
        shown = 1000 * find_score("conditional", "soft", x, 10, 0)
        assert f"conditional, at {x}: {shown:#.3g} [" in texts.svg
    assert "mle, at 10:" not in steps.svg, "with fewer texts alone"
    for x in (0, 50):
        shown = 1000 * find_score("mle", "soft", 1000, x, 1)
        assert f"mle, at {x}: {shown:#.3g} [" in steps.svg
    assert list(attack.by_texts(attack.targets[0], "soft", judge)) == list(TEXTS), (
        "a line goes from left to right"
    )
    assert "with 1,000 texts" in steps.title
    assert "bad mode of conditional: 20.0 [19.6, 20.4]" in texts.svg
    assert "mle before the attack: 2.00 [1.60, 2.40]" in texts.svg
    assert "mathdefault" not in texts.svg + steps.svg


def test_one_seed_and_one_number_of_texts(page: Path, tmp_path: Path) -> None:
    whole = make_attack(seeds=(0,))
    one = replace(
        whole,
        trajectories=[
            replace(one, measurements=[row for row in one.measurements if row.at == 50])
            for one in whole.trajectories
            if one.num_texts == 100
        ],
        best=[row for row in whole.best if row.num_texts == 100],
        rediscovery=[replace(cost, most_texts=100) for cost in whole.rediscovery],
    )
    text = read_page(write_rediscovery(one, tmp_path / "one.html")).text
    assert "1 seed: intervals cover" in text
    assert "not reached with 100" in text
    assert "seed: intervals" not in read_page(page).text


def test_missing_values_are_missing(tmp_path: Path) -> None:
    whole = make_attack((0,))

    def forget(row: Measurement) -> Measurement:
        return replace(row, estimate=Estimate(math.nan, math.nan, math.nan, 0))

    missing = replace(
        whole,
        trajectories=[
            replace(one, measurements=list(map(forget, one.measurements))) if one.attack == PREFIX else one
            for one in whole.trajectories
        ]
        + [Trajectory("mle", "finetune", 10, 0, [], "the loss is nan at step 3")],
        best=[
            replace(one, measurements=list(map(forget, one.measurements))) if one.attack == PREFIX else one
            for one in whole.best
        ],
    )
    write_attack(tmp_path, missing)
    reader = read_page(write_rediscovery(read_attack(tmp_path), tmp_path / "missing.html"))
    assert sum(tag == "svg" for tag, _ in reader.elements) == 2 * 2, "no panel without a point"
    assert "nan" not in reader.text.replace("the loss is nan", "").split()
    assert "finetune on mle with 10 texts failed" in reader.text
    bare = replace(whole, reference=None, rediscovery=[], verdicts=[])
    text = read_page(write_rediscovery(bare, tmp_path / "bare.html")).text
    assert "There is no forgetting to judge" in text
    assert "was not worked out" in text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_attack(tmp_path, make_attack())
    before = (tmp_path / "attack.json").read_bytes()
    assert b"NaN" not in before
    write_attack(tmp_path, read_attack(tmp_path))
    assert (tmp_path / "attack.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "attack.json has format version 1; this phf reads 3; run 'phf attack"),
        ({"format_version": 4}, "attack.json has format version 4; this phf reads 3; install the phf"),
        ({"targets": 3}, "attack.json is damaged: targets: Input should be a valid list"),
        ({"reference": 3}, "attack.json is damaged: reference: "),
    ],
)
def test_what_is_no_attack_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_attack(tmp_path, make_attack((0,)))
    path = tmp_path / "attack.json"
    edit(path, lambda value: value.update(change))
    with pytest.raises(PHFError, match=message):
        read_attack(tmp_path)


def test_without_a_finished_attack_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(PHFError, match="does not exist"):
        read_attack(tmp_path)
    with pytest.raises(PHFError, match="holds no curves"):
        write_rediscovery(replace(make_attack(), trajectories=[]), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


HOSTILE = "<script>alert(1)</script>\u202e\x00 \ud800 $x_1$ {{ 7*7 }} </title></svg>"


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = {"deleted": HOSTILE, "soft": f"soft:{HOSTILE}", "delete": HOSTILE, "releases/deleted": HOSTILE}

    def rename(value: JsonValue) -> JsonValue:
        if isinstance(value, dict):
            return {key: rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item) for item in value]
        return hostile.get(value, value) if isinstance(value, str) else value

    content = parse_json(rename(to_json(make_attack((0,)))), AttackResults, "the test")
    judge = replace(content.judges[0], identity=replace(ANNOTATOR, name=f"judge {HOSTILE}"))
    content = replace(
        content,
        judges=[judge, *content.judges[1:]],
        texts=TextSource(f"judge {HOSTILE}", 1234),
        verdicts=[replace(content.verdicts[0], text=f"verdict {HOSTILE}"), *content.verdicts[1:]],
        notes=[HOSTILE],
    )
    page = write_rediscovery(content, tmp_path / "hostile.html")
    reader = read_page(page)
    assert "script" not in {tag for tag, _ in reader.elements}
    shown = "<script>alert(1)</script>⟨U+202E⟩⟨U+0000⟩ ⟨U+D800⟩ $x_1$ {{ 7*7 }} </title></svg>"
    assert all(f"{before}{shown}" in reader.text for before in ("", "soft:", "judge ", "verdict "))
    assert not set(page.read_text("utf-8")) & {"\x00", "\u202e"}
    for file in write_figures(content, tmp_path / "figures"):
        assert file.parent == tmp_path / "figures"
        assert not [element for element in ET.parse(file).iter() if element.tag.endswith("script")]


def test_figures_stand_alone(tmp_path: Path) -> None:
    files = write_figures(make_attack((0,)), tmp_path)
    assert [file.name for file in files[:4]] == [
        "pii-soft-texts.svg",
        "pii-prefix-tokens-5-texts.svg",
        "pii-soft-steps.svg",
        "pii-prefix-tokens-5-steps.svg",
    ]
    assert len(files) == len(set(files)) == 8
    assert ET.parse(files[0]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = files[0].read_text("utf-8")
    used = {part.split(")")[0] for part in text.split("var(")[1:]}
    assert used
    assert all(f"{name}:" in text for name in used), "every colour is defined in the file"


def test_the_page_says_nothing_of_the_clock(tmp_path):
    """An attack that was killed and made again took another time; its page is the same."""
    results = make_attack((0, 1))

    def slow_down(row):
        slower = replace(row.estimate, mean=9 * row.estimate.mean + 1)
        return replace(row, estimate=slower) if row.measure == SECONDS.name else row

    slower = replace(
        results,
        trajectories=[
            replace(one, measurements=[slow_down(row) for row in one.measurements])
            for one in results.trajectories
        ],
    )
    assert to_json(slower) != to_json(results)
    pages = [write_rediscovery(one, tmp_path / "page.html").read_bytes() for one in (results, slower)]
    assert pages[0] == pages[1]
