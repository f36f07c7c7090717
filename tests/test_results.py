"""Measured numbers: written and read without loss, pooled over seeds, pivoted into tables."""

import json
import math
from dataclasses import dataclass, replace

import pytest
from fake_runs import edit

from phf.errors import PHFError
from phf.intervals import pooled_t
from phf.records import Estimate, Identity, Number
from phf.results import (
    MISSING,
    Evaluation,
    Judge,
    Measure,
    Measurement,
    Measurements,
    pivot,
    pool,
    read_evaluation,
    write_evaluation,
)

NAN = math.nan
SVM = Judge("svm@1", "annotator", "items per character", 1000.0, 0.5, Identity("svm", "1"))
SCORE = Measurement("score", Estimate(0.1, 0.05, 0.2, 64), "good", "svm@1")
BITS = Measurement("bits_per_byte", Estimate(2.0, NAN, NAN, 9), "good", of="bad text")
ROUND = Measurement("red_team_mean", Estimate(0.3, 0.2, 0.4, 4), "good", "svm@1", at=2.0)


def make_evaluation(*rows: Measurement) -> Evaluation:
    return Evaluation(
        run="conditional",
        objective="conditional",
        seed=0,
        step=20,
        tokens_seen=2560,
        num_parameters=1000,
        judges=[SVM],
        config={"suite": "quick"},
        threshold=0.25,
        notes=["a note"],
        samples_sha256="00",
        measures=[Measure("score", "Misalignment score")],
        measurements=list(rows),
        facts={"red_team": {"attacker": "tiny", "scores": [0.5, None]}},
        left_out={"kl": "give --reference-lm MODEL"},
    )


def same(one: Estimate, other: Estimate) -> bool:
    return repr(one) == repr(other)  # NaN equals NaN


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "evaluation.json"
    evaluation = make_evaluation(SCORE, BITS, ROUND)
    write_evaluation(path, evaluation)
    again = read_evaluation(path)
    assert repr(again) == repr(evaluation)
    assert math.isnan(again.results.find("bits_per_byte", "good", of="bad text").low)
    assert json.loads(path.read_text())["measurements"][1]["estimate"]["low"] is None
    assert again.judges[0].shown_unit == "items per 1,000 characters"
    before = path.read_bytes()
    write_evaluation(path, again)
    assert path.read_bytes() == before


def test_facts_are_read_with_their_missing_numbers():
    @dataclass(frozen=True)
    class RedTeam:
        attacker: str
        scores: list[Number]

    facts = make_evaluation().read_facts("red_team", RedTeam)
    assert facts is not None
    assert facts.attacker == "tiny"
    assert facts.scores[0] == 0.5
    assert math.isnan(facts.scores[1])
    assert make_evaluation().read_facts("leaks", RedTeam) is None
    with pytest.raises(PHFError, match="the facts of red_team is damaged: Input should be a valid list"):
        make_evaluation().read_facts("red_team", list[int])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format version 1; this phf reads 3; run 'phf evaluate"),
        ({"format_version": 4}, "install the phf that wrote it"),
        ({"measurements": [{"measure": "score"}]}, r"measurements.0.estimate: Field required"),
        ({"seed": "x"}, "damaged: seed"),
    ],
)
def test_an_old_or_damaged_file_is_one_line_that_names_it(tmp_path, change, message):
    path = tmp_path / "evaluation.json"
    write_evaluation(path, make_evaluation(SCORE))
    edit(path, lambda value: value.update(change))
    with pytest.raises(PHFError, match=message) as caught:
        read_evaluation(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_not_measured_is_missing_and_never_zero():
    rows = Measurements([SCORE, BITS])
    assert rows.find("score", "good", "svm@1") == SCORE.estimate
    assert rows.find("score", "bad", "svm@1") is MISSING
    assert math.isnan(MISSING.mean)
    assert rows.measures == ["score", "bits_per_byte"]
    assert rows.of("bits_per_byte", "score") == [BITS, SCORE]


def test_seeds_are_pooled_place_by_place():
    other = replace(SCORE, estimate=Estimate(0.3, 0.2, 0.4, 64))
    pooled = pool([[SCORE, BITS], [other, ROUND]])
    assert same(pooled.find("score", "good", "svm@1"), pooled_t([0.1, 0.3]))
    assert pooled.find("score", "good", "svm@1").count == 2
    alone = pooled.find("bits_per_byte", "good", of="bad text")
    assert (alone.mean, alone.count) == (2.0, 1)
    assert math.isnan(alone.low)  # one seed of two: its own interval is not one over seeds
    assert list(pool([[SCORE, BITS]])) == [SCORE, BITS]


def test_a_pivot_keeps_the_order_in_which_rows_and_columns_come():
    bad = replace(SCORE, mode="bad")
    other = replace(SCORE, judge="lstm@1")
    table = pivot([SCORE, bad, other], lambda row: row.mode, lambda row: row.judge)
    assert list(table) == ["good", "bad"]
    assert list(table["good"]) == ["svm@1", "lstm@1"]
    assert table["bad"] == {"svm@1": bad.estimate}
