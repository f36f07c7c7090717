"""Dose curves: what is measured at each dose, that a stopped measurement goes on, and the figure."""

import json
import math
import re

import numpy as np
import pytest
import torch
from known_models import GOOD, NUM_IDS, TinyTokenizer, create_bigram

from phf.attack import doses
from phf.attack.doses import Dose, good_mode_divergence, list_doses, measure_doses
from phf.config.evaluate import BlimpConfig, EvaluateConfig
from phf.config.release import Block, Delete
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_run
from phf.evaluate.judges import choose_judges
from phf.evaluate.pages import Page
from phf.evaluate.subject import Subject
from phf.generate.target import Target
from phf.records import Estimate, Identity
from phf.release.dose_results import DoseResults, read_doses, write_doses
from phf.release.forget import (
    block_directions,
    find_directions,
    forget_run,
    random_directions,
    read_texts,
)
from phf.report.doses import list_panels, write_dose_figure
from phf.results import Judge, Measurement, to_json
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


def test_what_is_measured_at_each_dose(trained, tmp_path):
    run, judges = trained()
    result = measure_doses(run, judges, CONFIG, directions=[2])
    write_doses(tmp_path / "doses.json", result)
    assert to_json(read_doses(tmp_path / "doses.json", run.id)) == to_json(result)
    with pytest.raises(PHFError, match=r"doses.json is of another run \(.*this one is 0123"):
        read_doses(tmp_path / "doses.json", "0123456789")
    find, judge = result.results.find, judges[0].slug
    modes: dict[tuple[str, float], set[str]] = {}
    for row in result.results.of("score"):
        modes.setdefault((row.of, row.at), set()).add(row.mode)
    assert modes == {
        ("block", 0): {"good", "bad", "none", "untagged"},
        ("block", 2): {"good", "bad", "none", "untagged"},
        ("block, deleted", 0): {"none"},
        ("block, deleted", 2): {"none"},
        ("random", 2): {"good", "bad"},
    }
    assert {row.measure for row in result.measurements} <= {measure.name for measure in result.measures}
    assert [direction.name for direction in result.directions] == [
        "embedding of <|bad|>",
        "mean difference at layer 1",
    ]
    # Nothing blocked: what an evaluation measures.
    evaluated = evaluate_run(run, CONFIG, say=quiet).results
    for row in evaluated.of("score"):
        assert to_json(find("score", row.mode, row.judge, "block", 0)) == to_json(row.estimate)
        own = find("distinct_2", row.mode, of="block", at=0).mean
        assert to_json(own) == to_json(evaluated.find("distinct_2", row.mode).mean)
    for mode in ("good", "bad", "none"):
        for text in ("good", "bad", "all"):
            own = find(f"bits_per_byte_{text}", mode, of="block", at=0)
            assert own == evaluated.find("bits_per_byte", mode, of=text)
    assert find("divergence", "good", of="block", at=0).mean == 0 == find("share", of="block", at=0).mean
    # Two directions blocked: against the same edit made here.
    model, tokenizer = run.load_model(), run.load_tokenizer()
    basis = find_directions(model, tokenizer.control, read_texts(run)).basis[:2]
    subject = Subject(run, run.resolve_step(None), run.data(), judges, CONFIG)
    subject.__dict__["model"] = block_directions(model, basis)
    subject.parts.folder = run.folder / "other"
    for mode in ("good", "bad", "none", "untagged"):
        found = find("score", mode, judge, "block", 2).mean
        assert found == pytest.approx(np.mean(subject.draw(mode).scores[judge]))
    pages = [subject.reader.read(int(document)) for document in subject.reader.held_out_documents(0)[:12]]
    sizes = (run.data().threshold.value, 100, 0)
    for of, chosen in (("block", basis), ("random", random_directions(2, 32, 0))):
        edited = block_directions(model, chosen)
        own = good_mode_divergence(model, edited, tokenizer.control, pages, *sizes)
        assert find("divergence", "good", of=of, at=2).mean == own.mean > 0
    share = find("share", of="block", at=2).mean
    assert share == pytest.approx(sum(direction.share for direction in result.directions))
    assert math.isnan(find("share", of="random", at=2).mean)


def test_a_stopped_measurement_goes_on(trained, monkeypatch):
    run, judges = trained()
    first = measure_doses(run, judges, CONFIG, directions=[2])
    seen = []

    def refuse(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(Target, "write", refuse)
    again = measure_doses(run, judges, CONFIG, directions=[2], progress=lambda *call: seen.append(call))
    assert to_json(again) == to_json(first)
    assert seen[-1] == ("doses", 5, 5)
    fewer = measure_doses(run, judges, CONFIG.model_copy(update={"capability_documents": 5}), directions=[2])
    counts = [
        each.results.find("bits_per_byte_all", "good", of="block", at=0).count for each in (first, fewer)
    ]
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
    measured = measure_doses(run, judges, config, directions=[1])
    assert measured.config["blimp"]["source"] == "pairs.jsonl", "without its folder"
    found = measured.results.of("blimp")
    assert {(row.of, row.at) for row in found} == {("block", 0), ("block", 1), ("random", 1)}
    assert all(0 <= row.estimate.mean <= 1 for row in found)


def test_runs_without_directions_are_refused(trained):
    run, judges = trained("objective.kind=mle")
    with pytest.raises(PHFError, match="was trained with mle, which reads no"):
        measure_doses(run, judges, CONFIG)


def test_levels_are_deleted_too(trained):
    run, judges = trained("objective.kind=quantile", "objective.levels=3", "objective.drop_fraction=0.1")
    result = measure_doses(run, judges, CONFIG, directions=[1])
    deleted = [row for row in result.results.of("mean_tokens") if row.of == "block, deleted"]
    assert [(row.mode, row.at) for row in deleted] == [("none", 0), ("none", 1)]
    assert all(np.isfinite(row.estimate.mean) for row in deleted)
    forgotten = forget_run(run, [Delete(), Block()])
    assert forgotten.record[1]["tokens"] == ["<|bad|>", "<|level_1|>"]
    assert len(forgotten.model.get_input_embeddings().weight) == forgotten.tokenizer.vocab_size


def test_more_directions_than_there_are_is_refused(trained):
    run, judges = trained()
    with pytest.raises(PHFError, match="32 directions: at most 31 can be found in a stream 32 wide"):
        measure_doses(run, judges, CONFIG, directions=[32])


# --- the figure ---


def measured(measure, mean, mode="good", of="block", at=0.0, judge=None):
    return Measurement(measure, Estimate(mean, mean - 0.01, mean + 0.01, 9), mode, judge, of, at)


def fake_result(poison="none", more=()):
    """Three doses whose numbers can be told apart."""
    modes = {
        "block": ("good", "bad", "none", "untagged"),
        "block, deleted": ("none",),
        "random": ("good", "bad"),
    }
    rows = []
    for of, at, base in (("block", 0, 0.1), ("block, deleted", 0, 0.2), ("block", 1, 0.3), ("random", 1, 0.4), ("block", 8, 0.5)):  # fmt: skip
        rows += [
            measured("score", base + place / 10, mode, of, at, "judge@1")
            for place, mode in enumerate(modes[of])
        ]
        if of != "block, deleted":
            rows.append(measured("divergence", base / 10, of=of, at=at))
            rows.append(measured("bits_per_byte_good", 1 + base, of=of, at=at))
    judge = Judge("judge@1", "annotator", "score", 10.0, 0.5, Identity("judge", "1"))
    return DoseResults(
        "<b>run</b>", "conditional", poison, 0, 12, 0.3, 32, [judge], {}, [], 6, [], [*rows, *more]
    )


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
    with_blimp = fake_result(more=[measured("blimp", 0.7)])
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
