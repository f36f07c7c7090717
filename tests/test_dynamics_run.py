"""`phf dynamics` over a run: what it measures, keeps, says and refuses, and its page."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from page_reader import read_page
from release_runs import get_run

from phf import cli
from phf.chains.switching import compare_rates
from phf.chains.written import (
    AFTER,
    BAD,
    GOOD,
    LOOPING,
    Pages,
    Segmented,
    cut_page,
    judge_pages,
    match_lengths,
)
from phf.config.dynamics import DynamicsConfig
from phf.dynamics import dynamics as module
from phf.dynamics import measures
from phf.dynamics.dynamics import measure_dynamics
from phf.dynamics.measures import DIVERGENCE, RATE, RATE_EXCESS, RATE_OF_DATA
from phf.dynamics.results import DYNAMICS
from phf.dynamics.symmetry import Triple, choose_triples, jensen_shannon, measure_symmetry
from phf.errors import PHFError
from phf.generate.target import Target
from phf.report.dynamics import write_dynamics_page
from phf.results import to_json

SMALL = DynamicsConfig.model_validate(
    {
        "sampling": {"num_samples": 80, "max_new_tokens": 60},
        "num_bootstrap": 100,
        "triples": 8,
        "truncated": 10,
        "distances": [0, 2],
        "steps": 2,
        "prefixes": 12,
        "streams": 4,
        "contexts": 1,
    }
)


@pytest.fixture
def run(small_config, tmp_path_factory, monkeypatch):
    """Hardly trained: few of its pages have a whole sentence."""
    monkeypatch.setattr(module, "_LEAST_PAGES", 2)
    return get_run("conditional", small_config, tmp_path_factory.mktemp("runs"))


def test_a_run_as_a_chain_beside_its_data(run, tmp_path, monkeypatch, capsys) -> None:
    found = measure_dynamics(run.folder, tmp_path / "out", SMALL, say=lambda _: None)
    assert to_json(DYNAMICS.read(tmp_path / "out")) == to_json(found)
    assert found.modes[:2] == ["good", "bad"]
    assert found.num_pages["good"] > 0
    own, data, excess = (
        found.results.find(measure.name, "good", of="good -> end")
        for measure in (RATE, RATE_OF_DATA, RATE_EXCESS)
    )
    assert excess.mean == pytest.approx(own.mean - data.mean)
    assert {row.of for row in found.results.of(DIVERGENCE.name)} == {"an end", "nothing"}
    measured = {row.measure for row in found.results}
    own_view = (measures.TEXT_DIVERGENCE, measures.OWN_HAZARD, measures.RELAXATION, measures.COMING_BACK)
    by_position = (measures.BITS_BY_POSITION, measures.SCORE_BY_POSITION)
    assert {row.name for row in (*own_view, *by_position)} <= measured
    assert any("no control tokens" in note for note in found.notes) is False
    page = write_dynamics_page(found, tmp_path / "page.html")
    text = read_page(page).text
    assert "How does" in text
    assert "good -> bad" in text
    # What is kept is not drawn again, and gives the same bytes.
    before = (tmp_path / "out" / "dynamics.json").read_bytes()
    monkeypatch.setattr(Target, "write", None)
    measure_dynamics(run.folder, tmp_path / "out", SMALL, say=lambda _: None)
    assert (tmp_path / "out" / "dynamics.json").read_bytes() == before


def test_what_is_refused(run, tmp_path, monkeypatch) -> None:
    for settings, message in (
        ({"modes": ["deleted"]}, "has no deleted mode; give one of: good, bad"),
        ({"judge": "toxicity-lstm"}, "did not annotate this corpus.*give --threshold"),
    ):
        config = DynamicsConfig.model_validate(settings)
        with pytest.raises(PHFError, match=message):
            measure_dynamics(run.folder, tmp_path / "out", config)
    monkeypatch.setattr(module, "_LEAST_PAGES", 81)
    with pytest.raises(PHFError, match="of 80 pages have a whole segment; give a larger --num-samples"):
        measure_dynamics(run.folder, tmp_path / "out", SMALL)
    with pytest.raises(PHFError, match="give a folder made by 'phf dynamics"):
        DYNAMICS.read(tmp_path)


def test_the_command(run, tmp_path, monkeypatch, capsys) -> None:
    def start(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["phf", *arguments])
        try:
            cli.main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        return 0

    small = ("--num-samples", "80", "--max-new-tokens", "60", "--triples", "4", "--truncated", "5")
    small += tuple(
        f"--set={setting}" for setting in ("num_bootstrap=100", "prefixes=4", "streams=2", "steps=2")
    )
    assert start("dynamics", str(run.folder), "-o", str(tmp_path / "out"), "--mode", "good", *small) == 0
    assert "good -> bad" in capsys.readouterr().out
    assert (tmp_path / "out" / "dynamics.html").is_file()
    assert start("dynamics") == 2
    assert "give a run made by 'phf train', a model's folder, or --validate" in capsys.readouterr().err


def test_pages_are_cut_into_whole_segments() -> None:
    text = "One is here. Two is here. Three is here."
    assert cut_page(text, True, "sentences", 20) == Segmented(
        ["One is here.", " Two is here.", " Three is here."], True
    )
    assert cut_page(text, False, "sentences", 20).segments == ["One is here.", " Two is here."]
    assert cut_page(text, True, "sentences", 3) == Segmented(
        ["One is here.", " Two is here.", " Three is here."], False
    )  # what stands behind the horizon is not looked at
    assert cut_page("One", False, "sentences", 3).segments == []


def test_states_of_pages() -> None:
    said = "the same four words again and again"
    pages = [
        Segmented(["fine", "BAD text", "fine"], True),
        Segmented([said, said, "BAD", "UNKNOWN", "fine"], True),
        Segmented(["UNKNOWN"], True),
        Segmented([], False),
    ]

    def score(texts: list[str]) -> list[float]:
        return [math.nan if text == "UNKNOWN" else float("BAD" in text) for text in texts]

    found = judge_pages(pages, score, 0.5, 4)
    assert found.pages.states.tolist() == [[GOOD, BAD, GOOD, AFTER], [GOOD, LOOPING, BAD, AFTER]]
    assert found.pages.ended.tolist() == [True, False]
    assert (found.num_empty, found.num_unscored) == (2, 2)


def test_data_is_weighed_to_the_lengths_of_the_model() -> None:
    def create(*lengths: int) -> Pages:
        states = np.array([[GOOD] * length + [AFTER] * (4 - length) for length in lengths])
        return Pages(states, np.array([length < 4 for length in lengths]), 3)

    weights = match_lengths(create(1, 1, 1, 2, 3), create(1, 2, 2, 4))
    assert weights == pytest.approx([5 / 12] * 3 + [2.5, 0])


def test_a_rate_that_was_never_seen_is_bounded_and_one_without_its_state_is_missing() -> None:
    pages = Pages(np.full((50, 1), GOOD), np.ones(50, np.bool_), 3)
    found = {name: numbers for name, *numbers in compare_rates(pages, pages, 100, 0)}
    own, _, excess = found["good -> bad"]
    assert own.mean == own.low == 0
    assert 0.02 < own.high < 0.1
    assert excess.low < -0.02 < 0.02 < excess.high
    assert math.isnan(found["bad -> good"][0].mean)


def test_divergence_is_0_for_one_law_and_log_2_for_disjoint_ones() -> None:
    first = torch.tensor([0.0, -200.0, -200.0])
    second = torch.tensor([-200.0, 0.0, -200.0])
    assert float(jensen_shannon(torch.stack([first, first]))) == pytest.approx(0, abs=1e-6)
    assert float(jensen_shannon(torch.stack([first, second]))) == pytest.approx(math.log(2))


class LastPage(torch.nn.Module):
    """The next token depends on the sum of the ids since the last end: on nothing that stood before it."""

    END, device = 9, torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        sums = torch.zeros(input_ids.shape, dtype=torch.long)
        for row, page in enumerate(input_ids.tolist()):
            total = 0
            for place, token in enumerate(page):
                total = 0 if token == self.END else total + token
                sums[row, place] = total
        return SimpleNamespace(logits=torch.nn.functional.one_hot(sums % 10, 10).float())


def test_a_model_that_reads_only_the_last_page_forgets_what_stood_before() -> None:
    triples = [Triple([1, 2], [3, 4], [5, 6])]
    behind = measure_symmetry(LastPage(), [LastPage.END], [LastPage.END], triples, (0, 1))
    without = measure_symmetry(LastPage(), [LastPage.END], [], triples, (0, 1))
    assert behind == pytest.approx(np.zeros((1, 2)), abs=1e-9)
    assert without.min() > 1e-3


def test_triples_have_few_lengths() -> None:
    documents = [list(range(place, 2 * place + 5)) for place in range(60)]
    found = choose_triples(documents, 20, 64, 4, np.random.default_rng(0))
    lengths = {len(own.first) for own in found if len(own.first) > 8}
    assert len(found) >= 15
    assert lengths <= {16, 24, 32, 40, 48, 56, 64}


def test_triples_are_of_different_documents_of_one_length() -> None:
    documents = [[place] * (3 + place) for place in range(12)]
    found = choose_triples(documents, 5, 6, 4, np.random.default_rng(0))
    assert len(found) == 4
    used = [own[0] for triple in found for own in (triple.first, triple.second, triple.following)]
    assert (
        len(set(used)) == 12
    )  # a document is in one triple, so that resampling these is resampling documents
    for triple in found:
        assert len(triple.first) == len(triple.second) <= 6
        assert len(triple.following) == 4
        assert len({triple.first[0], triple.second[0], triple.following[0]}) == 3
