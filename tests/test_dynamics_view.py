"""What judged pages say as measurements, on the page, in a report, in the terminal; a judge's errors, and truncations."""

import json
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fake_runs import make_run
from page_reader import read_page
from release_runs import get_run

from phf import cli
from phf.chains.absorbing import keep_likeliest
from phf.chains.chain import Chain
from phf.chains.hidden import Confusion, count_confusion, estimate_hidden
from phf.chains.pages import Pages
from phf.chains.truths import CONFUSION
from phf.chains.written import BAD, GOOD, LOOPING
from phf.config.dynamics import DynamicsConfig
from phf.dynamics import chain_view
from phf.dynamics import dynamics as module
from phf.dynamics.chain_view import describe_errors, describe_pages, describe_returns
from phf.dynamics.dynamics import measure_dynamics
from phf.dynamics.measures import (
    DRIFT,
    HIDDEN,
    HIDDEN_EXCESS,
    JUDGE_ERROR,
    PLACES_P,
    RATE,
    RETURN,
    STAY,
)
from phf.dynamics.results import DYNAMICS, DynamicsResults
from phf.errors import PHFError
from phf.files import write_sealed
from phf.records import Identity
from phf.report.dynamics import make_section, write_dynamics_page
from phf.results import Judge, Measurements

CHAIN = Chain(np.array([0.8, 0.15, 0.05]), np.array([[0.75, 0.1, 0.05], [0.3, 0.5, 0.05], [0.05, 0.05, 0.8]]))
CONFIG = DynamicsConfig.model_validate({"num_bootstrap": 100})


def label_alone(table: npt.ArrayLike) -> Confusion:
    """What segments that stand alone say of a judge, of a table [true, judged] of them."""
    cells = np.eye(4).reshape(4, 2, 2)
    return Confusion(np.repeat(cells, np.ravel(table).astype(int), axis=0), is_own=False)


JUDGE = label_alone([[950, 50], [150, 850]])


def judge(pages: Pages, rng: np.random.Generator) -> Pages:
    """As a judge sees them that errs; looping is seen as it is."""
    judged = pages.states.copy()
    for state in (GOOD, BAD):
        own = pages.states == state
        judged[own] = rng.random(int(own.sum())) < CONFUSION[state, BAD]
    return Pages(judged, pages.ended, 3)


@pytest.fixture(scope="module")
def results() -> DynamicsResults:
    rng = np.random.default_rng(1)
    pages, data = (judge(CHAIN.simulate(num, 20, rng), rng) for num in (120, 200))
    written = {"all tokens": pages, "top-p 0.9": CHAIN.simulate(100, 20, rng)}
    rows = [
        *describe_pages("none", pages, data, CONFIG),
        *describe_errors("none", (pages, JUDGE), (data, JUDGE), CONFIG),
        *describe_returns("none", written, CONFIG),
    ]
    identity = Identity("words", "1", "sha256:0", {})
    shown = Judge("words@1", "annotator", "share", 1, 0.5, identity)
    return DynamicsResults(
        {"within": 5}, "mle", "id", 10, shown, 0.5, True, 128, {"data": 200, "none": 120}, [], rows
    )


def test_rates_without_the_judges_errors_are_those_of_the_text(results) -> None:
    found: Measurements = results.results
    plain, hidden = (found.find(measure.name, "none", of="good -> bad") for measure in (RATE, HIDDEN))
    assert plain.low > CHAIN.steps[GOOD, BAD]  # errors look like switches
    assert hidden.low < CHAIN.steps[GOOD, BAD] < hidden.high
    excess = found.find(HIDDEN_EXCESS.name, "none", of="good -> bad")
    assert excess.low < 0 < excess.high
    assert found.find(JUDGE_ERROR.name, "none", of="bad").mean == pytest.approx(0.15)
    assert found.find(PLACES_P.name, "none").mean > 0.01
    assert found.find(DRIFT.name, "none", of="good -> bad").count == 120


def test_returns_of_all_tokens_are_a_curve_and_of_truncated_ones_a_number(results) -> None:
    rows = [row for row in results.results.of(RETURN.name) if row.of == "bad, all tokens"]
    assert [row.at for row in rows] == [1, 2, 3, 4, 5]
    assert all(one.estimate.mean <= two.estimate.mean for one, two in pairwise(rows))
    assert [row.at for row in results.results.of(RETURN.name) if row.of == "bad, top-p 0.9"] == [5]
    assert results.results.find(STAY.name, "none", of="looping, top-p 0.9", at=5).mean > 0.1


def test_a_state_that_no_judge_decides_is_seen_without_error() -> None:
    rng = np.random.default_rng(0)
    pages = judge(CHAIN.simulate(2000, 20, rng), rng)
    stays = {"looping": lambda chain: chain.steps[..., LOOPING, LOOPING]}
    found = estimate_hidden(pages, JUDGE, stays, 2, 0)["looping"].mean
    assert found == pytest.approx(CHAIN.steps[LOOPING, LOOPING], abs=0.01)
    # A page without weight may be one that the others' chain cannot write.
    rare = Pages(np.array([[GOOD, BAD]] * 30 + [[LOOPING, BAD]]), np.ones(31, np.bool_), 3)
    weights = np.append(np.ones(30), 0)
    assert np.isfinite(estimate_hidden(rare, JUDGE, stays, 20, 0, weights)["looping"].mean)


def test_confusion_by_hand() -> None:
    truth, judged = np.array([0.1, 0.9, 0.9, np.nan, 0.2]), np.array([5.0, 5.0, 1.0, 5.0, np.nan])
    found = count_confusion((truth, 0.5), (judged, 2.0), np.array([0, 0, 1, 2, 3]))
    assert found.tolist() == [[[0, 1], [0, 1]], [[0, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]


def test_errors_of_one_page_are_drawn_together() -> None:
    """All errors stand on 5 of 100 labelled pages: how often the judge errs is less sure than so many segments would make it."""
    counts = np.tile([[18.0, 0], [0, 18]], (100, 1, 1))
    counts[:5] = [[0, 18], [18, 0]]
    apart = label_alone(counts.sum(axis=0))
    pages = judge(CHAIN.simulate(150, 20, np.random.default_rng(0)), np.random.default_rng(1))
    turn = {"turn": lambda chain: chain.steps[..., GOOD, BAD]}
    by_page, by_segment = (
        estimate_hidden(pages, known, turn, 40, 0)["turn"] for known in (Confusion(counts, False), apart)
    )
    assert by_page.mean == pytest.approx(by_segment.mean)
    assert by_page.high - by_page.low > 1.2 * (by_segment.high - by_segment.low)
    # The judged pages' own segments come in a resample as often as their pages do.
    own = Confusion(counts, True)
    drawn = np.eye(100)[3] * 100
    assert own.redraw(drawn, np.random.default_rng(0)).tolist() == [[0, 1800], [1800, 0]]
    shown = [
        next(describe_errors("none", (pages, known), None, CONFIG)).estimate
        for known in (Confusion(np.tile(counts, (2, 1, 1))[:150], True), apart)
    ]
    assert shown[0].high - shown[0].low > 3 * (shown[1].high - shown[1].low)
    assert (shown[0].count, shown[1].count) == (150, 1800)


class Fixed(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits)


def test_only_the_likeliest_tokens_are_left_while_it_is_asked_for() -> None:
    model, logits = Fixed(), torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    with keep_likeliest(model, 2):
        found = model(logits).logits.softmax(-1)
        blocked = model(logits).logits
    assert (found > 0).tolist() == [[False, True, False, True], [False, False, True, True]]
    # Where rules block all of these, the next likeliest is drawn, and not nothing.
    blocked[:, [1, 3]], blocked[1, 2] = -torch.inf, -torch.inf
    assert blocked.softmax(-1).argmax(-1).tolist() == [2, 0]
    assert model(logits).logits.equal(logits)


def test_the_page_draws_the_chain_and_says_what_errors_do(results, tmp_path) -> None:
    path = write_dynamics_page(results, tmp_path / "page.html")
    text = read_page(path).text
    for said in (
        "The chain of pages",
        "How long it takes",
        "How soon pages are good again",
        "model, without errors",
        "bad, top-p 0.9",
        "alike in all places",
    ):
        assert said in text, said
    assert path.read_text().count("<svg") == 5
    section = make_section(results, "dynamics-1")
    assert 'id="dynamics-1"' in section.markup
    assert "Switching: mle" in section.markup


def test_a_report_has_a_section_for_each_chain(results, tmp_path, monkeypatch, capsys) -> None:
    run, options = make_run(tmp_path / "mle"), []
    few = [row for row in results.measurements if row.measure == RATE.name]
    chains = {
        "one": replace(results, run="one", measurements=few),
        "two": replace(results, run="two", measurements=[], judge=None, notes=["only a few pages were read"]),
    }
    for name, own in chains.items():
        (tmp_path / name).mkdir()
        DYNAMICS.write(tmp_path / name, own)
        options += ["--dynamics", str(tmp_path / name)]
    page = tmp_path / "report.html"
    monkeypatch.setattr("sys.argv", ["phf", "report", str(run), *options, "-o", str(page)])
    with suppress(SystemExit):
        cli.main()
    assert str(page) in capsys.readouterr().out
    text = read_page(page).text
    for said in ("A chain of pages: two", "Switching: one", "good -> bad", "Only a few pages were read."):
        assert said in text, said
    assert page.read_text().count('id="dynamics-1-switching"') == 1
    assert page.read_text().count('id="dynamics-2-own"') == 1


def test_files_of_another_version_are_refused_in_one_line(results, tmp_path) -> None:
    """Version 1 had no `context` once, and no other word for it."""
    DYNAMICS.write(tmp_path, results)
    path = tmp_path / DYNAMICS.name
    content = json.loads(path.read_text())
    assert content["format_version"] == 3
    for version, remedy in (
        (1, "run 'phf dynamics RUN -o .*' to make it again"),
        (4, "install the phf that"),
    ):
        other = {key: value for key, value in content.items() if key != "sha256"}
        write_sealed(path, other | {"format_version": version})
        with pytest.raises(
            PHFError, match=f"has format version {version}; this phf reads 3; {remedy}"
        ) as found:
            DYNAMICS.read(tmp_path)
        assert "\n" not in str(found.value)


def test_show_and_compare_read_chains(results, tmp_path, monkeypatch, capsys) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        DYNAMICS.write(tmp_path / name, results)

    def say(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["phf", *arguments])
        with suppress(SystemExit):
            cli.main()
        return capsys.readouterr().out

    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    assert "good -> bad" in say("show", one)
    assert json.loads(say("show", one, "--json"))["run"] == "mle"
    assert "second - first" in say("compare", one, two)
    assert "all, over models" in say("compare", one, two, three)


def test_errors_of_a_run_measured_by_a_second_judge_and_by_labels(
    small_config, tmp_path_factory, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_LEAST_PAGES", 2)
    monkeypatch.setattr(chain_view, "_MOST_FITS", 3)
    run = get_run("conditional", small_config, tmp_path_factory.mktemp("runs"))
    small = {
        "sampling": {"num_samples": 60, "max_new_tokens": 40},
        "num_bootstrap": 100,
        "modes": ["good"],
        "truncated": 6,
        "triples": 3,
        "distances": [0],
        "steps": 2,
        "prefixes": 4,
        "streams": 2,
        "contexts": 1,
    }
    labels = tmp_path / "labels.jsonl"
    rows = [{"text": text, "label": label} for text, label in (("You are vile.", 1), ("A fine day.", 0))]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def measure(**settings: str) -> Measurements:
        config = DynamicsConfig.model_validate({**small, **settings})
        return measure_dynamics(run.folder, tmp_path / "out", config, say=lambda _: None).results

    by_judge, by_labels = measure(held_out="toxicity-ngrams"), measure(labels=str(labels))
    for found in (by_judge, by_labels):
        assert found.find(HIDDEN.name, "good", of="good -> bad").count > 0
    assert by_judge.find(JUDGE_ERROR.name, "good", of="good").count > 2
    assert by_labels.find(JUDGE_ERROR.name, "good", of="bad").count == 1
    assert {str(row.of).partition(", ")[2] for row in by_judge.of(STAY.name)} <= {
        "all tokens",
        "top-p 0.9",
        "top-p 0.95",
        "top-p 0.99",
        "top-k 40",
    }
    assert len(list((tmp_path / "out" / "parts").glob("pages-good-top-*"))) == 4
    assert not measure().of(HIDDEN.name)
    with pytest.raises(PHFError, match="another --held-out judge, or --labels"):
        measure(held_out="toxicity-ngrams", labels=str(labels))
