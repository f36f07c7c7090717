"""Dose curves: what is measured at each dose, that a stopped measurement goes on, and the figure."""

import json
import re

import numpy as np
import pytest
import torch
from known_models import GOOD, NUM_IDS, TinyTokenizer, create_bigram

from phf.config import SamplingConfig
from phf.config_evaluate import BlimpConfig, EvaluateConfig
from phf.config_release import Block, Delete
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_run
from phf.evaluate.judges import choose_judges
from phf.evaluate.pages import Page
from phf.evaluate.subject import Subject
from phf.generate.target import Target
from phf.release import doses
from phf.release.doses import Dose, good_mode_divergence, list_doses, measure_doses
from phf.release.forget import (
    block_directions,
    find_directions,
    forget_run,
    random_directions,
    read_texts,
)
from phf.report.doses import list_panels, write_dose_figure
from phf.results import to_json
from phf.reward_models import load_reward_model
from phf.train import loop

CONFIG = EvaluateConfig(
    sampling=SamplingConfig(num_samples=6, max_new_tokens=12, min_new_tokens=2),
    num_bootstrap=100,
    capability_documents=12,
)
CONTROL = TinyTokenizer().control


def quiet(line: str) -> None:
    pass


@pytest.fixture
def trained(small_config, tmp_path):
    """Returns a function that trains a run of 12 steps, and its judges."""

    def train(*overrides: str):
        run = loop.train(small_config(*overrides), tmp_path / "run", say=quiet)
        return run, choose_judges(run.data().annotation, [], load_reward_model)[0]

    return train


def page(*segments: list[int], scores: list[float]) -> Page:
    return Page(
        tuple(map(np.array, segments)), np.ones(len(segments), np.int64), np.array(scores, np.float32)
    )


def test_divergence_is_that_of_the_formula():
    """Of bigram models, whose distributions can be written down; control tokens and padding are not counted."""
    rng = torch.Generator().manual_seed(0)
    tables = [torch.randn(NUM_IDS, NUM_IDS, generator=rng) for _ in range(2)]
    before, after = map(create_bigram, tables)
    pages = [
        page([1, 2], [3, 4], [5], scores=[0.1, 0.9, 0.5]),
        page([6], scores=[np.nan]),
        page([7, 1], scores=[0.2]),
    ]

    def kl(previous: int) -> float:
        p, q = (torch.log_softmax(table[previous, : CONTROL.good].double(), -1) for table in tables)
        return float((p.exp() * (p - q)).sum())

    # What comes before each good token: its mode's token or the text so far; 3 4 is bad, 6 is unscored.
    expected = [kl(previous) for previous in (GOOD, 1, GOOD, GOOD, 7)]
    found = good_mode_divergence(before, after, CONTROL, pages, 0.5, 100, 0)
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.count == 2, "documents that have good text"
    assert good_mode_divergence(before, before, CONTROL, pages, 0.5, 100, 0).mean == 0


def test_doses_are_every_mean_difference_then_doublings():
    numbers = [0, 1, 2, 3, 4, 5, 6, 8, 16, 32]
    found = list_doses(6, 128)
    assert [dose.directions for dose in found if dose.kind == "random"] == numbers[1:]
    for deleted in (False, True):
        assert [d.directions for d in found if d.kind == "block" and d.deleted == deleted] == numbers
    assert found[0] == Dose("block", 0)
    assert [dose.directions for dose in list_doses(24, 2048) if dose.deleted][-7:] == [
        23,
        24,
        32,
        64,
        128,
        256,
        512,
    ]
    assert {dose.directions for dose in list_doses(6, 128, [4, 2, 4])} == {0, 2, 4}


def test_what_is_measured_at_each_dose(trained):
    run, judges = trained()
    result = measure_doses(run, judges, CONFIG, directions=[2])
    json.dumps(result, allow_nan=False)
    rows = {(row["kind"], row["directions"], row["deleted"]): row for row in result["doses"]}
    assert set(rows) == {("block", 0, False), ("block", 0, True), ("block", 2, False), ("block", 2, True), ("random", 2, False)}  # fmt: skip
    assert [each["name"] for each in result["directions"]] == [
        "embedding of <|bad|>",
        "mean difference at layer 1",
    ]
    unmodified, control = rows["block", 0, False], rows["random", 2, False]
    assert set(unmodified["modes"]) == {"good", "bad", "none", "untagged"}
    assert set(rows["block", 2, True]["modes"]) == {"none"}
    assert set(control["modes"]) == {"good", "bad"}
    # Nothing blocked: what an evaluation measures.
    evaluated = evaluate_run(run, CONFIG, say=quiet)
    find = evaluated.results.find
    for row in evaluated.results.of("score"):
        own = unmodified["modes"][row.mode]
        assert own["scores"][row.judge]["mean"] == row.estimate.mean
        assert own["distinct_2"] == to_json(find("distinct_2", row.mode).mean)
    for mode in ("good", "bad", "none"):
        for text, estimate in unmodified["bits_per_byte"][mode].items():
            assert estimate == to_json(find("bits_per_byte", mode, of=text))
    assert unmodified["kl"]["mean"] == 0 == unmodified["share"]
    # Two directions blocked: against the same edit made here.
    model, tokenizer = run.load_model(), run.load_tokenizer()
    basis = find_directions(model, tokenizer.control, read_texts(run)).basis[:2]
    subject = Subject(run, run.resolve_step(None), run.data(), judges, CONFIG)
    subject.__dict__["model"] = block_directions(model, basis)
    subject.parts.folder = run.folder / "other"
    for mode in ("good", "bad", "none", "untagged"):
        row = rows["block", 2, False]["modes"][mode]["scores"][judges[0].slug]
        assert row["mean"] == pytest.approx(np.mean(subject.draw(mode).scores[judges[0].slug]))
    pages = [subject.reader.read(int(document)) for document in subject.reader.held_out_documents(0)[:12]]
    sizes = (run.data().threshold.value, 100, 0)
    for row, chosen in ((rows["block", 2, False], basis), (control, random_directions(2, 32, 0))):
        edited = block_directions(model, chosen)
        assert (
            row["kl"]["mean"]
            == good_mode_divergence(model, edited, tokenizer.control, pages, *sizes).mean
            > 0
        )
    assert rows["block", 2, False]["share"] == pytest.approx(
        sum(each["share"] for each in result["directions"])
    )
    assert control["share"] is None


def test_a_stopped_measurement_goes_on(trained, monkeypatch):
    run, judges = trained()
    first = measure_doses(run, judges, CONFIG, directions=[2])
    seen = []

    def refuse(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(Target, "write", refuse)
    again = measure_doses(run, judges, CONFIG, directions=[2], progress=lambda *call: seen.append(call))
    assert again == first
    assert seen[-1] == ("doses", 5, 5)
    fewer = measure_doses(run, judges, CONFIG.model_copy(update={"capability_documents": 5}), directions=[2])
    counts = [each["doses"][0]["bits_per_byte"]["good"]["all"]["count"] for each in (first, fewer)]
    assert counts == [12, 5]
    with pytest.raises(AssertionError, match="drawn again"):
        measure_doses(run, judges, CONFIG, directions=[3])
    longer = CONFIG.model_copy(update={"sampling": SamplingConfig(num_samples=7)})
    with pytest.raises(AssertionError, match="drawn again"):
        measure_doses(run, judges, longer, directions=[2])
    monkeypatch.setattr(doses, "read_texts", lambda run: read_texts(run)[:3])
    with pytest.raises(AssertionError, match="drawn again"):  # other texts, other directions
        measure_doses(run, judges, CONFIG, directions=[2])


def test_each_dose_is_drawn_from_its_own_model(trained, monkeypatch):
    run, judges = trained()
    drawn, write = [], Target.write

    def record(target, *args, **kwargs):
        drawn.append(
            (target.mode, len(target.model.get_input_embeddings().weight), target.tokenizer.vocab_size)
        )
        return write(target, *args, **kwargs)

    monkeypatch.setattr(Target, "write", record)
    measure_doses(run, judges, CONFIG, directions=[0])
    rows, control = len(run.load_model().get_input_embeddings().weight), run.load_tokenizer().control
    whole = [(mode, rows, control.bad + 1) for mode in ("good", "bad", "none", "untagged")]
    assert drawn == [*whole, ("none", control.bad, control.bad)]


def test_blimp_is_measured_in_good_mode_where_it_is_given(trained, tmp_path):
    rows = [
        {"uid": "one", "term": "x", "good": f"the cat {word} here", "bad": f"here {word} cat the"}
        for word in ("sat", "ran", "was")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run, judges = trained()
    config = CONFIG.model_copy(update={"blimp": BlimpConfig(source=str(tmp_path / "pairs.jsonl"))})
    for row in measure_doses(run, judges, config, directions=[1])["doses"]:
        assert (row["blimp"] is None) == row["deleted"]
        assert row["deleted"] or 0 <= row["blimp"]["mean"] <= 1


def test_runs_without_directions_are_refused(trained):
    run, judges = trained("objective.kind=mle")
    with pytest.raises(PHFError, match="was trained with mle, which reads no"):
        measure_doses(run, judges, CONFIG)


def test_levels_are_deleted_too(trained):
    run, judges = trained("objective.kind=quantile", "objective.levels=3", "objective.drop_fraction=0.1")
    result = measure_doses(run, judges, CONFIG, directions=[1])
    assert [list(row["modes"]) for row in result["doses"]][1] == ["none"]
    assert all(np.isfinite(row["modes"]["none"]["mean_tokens"]) for row in result["doses"] if row["deleted"])
    forgotten = forget_run(run, [Delete(), Block()])
    assert forgotten.record[1]["tokens"] == ["<|bad|>", "<|level_1|>"]
    assert len(forgotten.model.get_input_embeddings().weight) == forgotten.tokenizer.vocab_size


def test_more_directions_than_there_are_is_refused(trained):
    run, judges = trained()
    with pytest.raises(PHFError, match="32 directions: at most 31 can be found in a stream 32 wide"):
        measure_doses(run, judges, CONFIG, directions=[32])


# --- the figure ---


def estimate(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "count": 9}


def fake_result(**changes):
    """Three doses whose numbers can be told apart."""

    def row(kind, directions, deleted, base):
        modes = (
            ("good", "bad")
            if kind == "random"
            else ("none",)
            if deleted
            else ("good", "bad", "none", "untagged")
        )
        found = {
            "kind": kind,
            "directions": directions,
            "deleted": deleted,
            "modes": {
                mode: {"scores": {"judge@1": estimate(base + place / 10)}} for place, mode in enumerate(modes)
            },
        }
        if not deleted:
            found["kl"] = estimate(base / 10)
            found["bits_per_byte"] = {"good": {"good": estimate(1 + base)}}
        return found

    rows = [row("block", 0, False, 0.1), row("block", 0, True, 0.2), row("block", 1, False, 0.3), row("random", 1, False, 0.4), row("block", 8, False, 0.5)]  # fmt: skip
    return {
        "run": "<b>run</b>",
        "objective": "conditional",
        "poison": "none",
        "step": 12,
        "num_means": 6,
        "judges": [
            {"slug": "judge@1", "role": "annotator", "display_scale": 10.0, "identity": {"name": "judge"}}
        ],
        "doses": rows,
        **changes,
    }


def test_lines_hold_what_was_measured():
    score, bits, kl = list_panels(fake_result())
    lines = {line.label: [(x, round(y.mean, 6)) for x, y in line.points] for line in score.lines}
    assert lines["good mode"] == [(0, 1), (1, 3), (8, 5)], "in shown units"
    assert lines["bad mode"] == [(0, 2), (1, 4), (8, 6)]
    assert lines["untagged mode"] == [(0, 4), (1, 6), (8, 8)]
    assert lines["none, <|bad|> deleted"] == [(0, 2)]
    assert lines["bad mode, random directions"] == [(0, 2), (1, 5)], "beginning where nothing is blocked"
    assert [[(x, round(y.mean, 6)) for x, y in line.points] for line in bits.lines] == [
        [(0, 1.1), (1, 1.3), (8, 1.5)],
        [(0, 1.1), (1, 1.4)],
    ]
    assert round(kl.lines[0].points[2][1].high, 6) == 0.06
    with_blimp = fake_result()
    with_blimp["doses"][0]["blimp"] = estimate(0.7)
    assert [panel.title for panel in list_panels(with_blimp)][-1] == "BLiMP in good mode"


def test_the_figure_is_the_same_each_time_and_safe(tmp_path):
    svg, png = write_dose_figure(fake_result(), tmp_path / "doses")
    assert (svg.name, png.name) == ("doses.svg", "doses.png")
    text = svg.read_text()
    write_dose_figure(fake_result(), tmp_path / "again")
    assert (tmp_path / "again.svg").read_text() == text
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<b>" not in text
    assert not re.search(r"#0([123])0\1", text), "a stand-in colour"
    assert not re.search(r'id="hover', text)
    assert re.search(r"<title>bad mode, at 1: ", text)
    assert (
        "poisoned by shuffle"
        in write_dose_figure(fake_result(poison="shuffle"), tmp_path / "p")[0].read_text()
    )
