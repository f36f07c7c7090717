"""The model's half of `phf dynamics`: ends of pages, its own labels, many pages in one context; and any causal model's folder."""

import json
import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from page_reader import read_page
from tiny_models import bytes_alone, tiny_llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from phf.config.dynamics import DynamicsConfig
from phf.dynamics.dynamics import measure_dynamics
from phf.dynamics.measures import (
    BITS_BY_POSITION,
    COMING_BACK,
    DIVERGENCE,
    OWN_HAZARD,
    RELAXATION,
    SCORE_BY_POSITION,
    TEXT_DIVERGENCE,
)
from phf.dynamics.own_view import describe_hazards, describe_relaxation
from phf.dynamics.positions import describe_positions, find_reach, place_segments
from phf.dynamics.subjects import Subject, open_subject
from phf.dynamics.symmetry import Triple, measure_symmetry, measure_texts
from phf.errors import PHFError
from phf.generate.target import Target
from phf.model import lm
from phf.report.dynamics import write_dynamics_page
from phf.results import Measurements

BEGIN, END = 0, 1
LETTERS = {"<s>": BEGIN, "</s>": END, " ": 2, ".": 3, "a": 4, "b": 5, "c": 6, "d": 7}


def save_foreign(folder: Path, model: transformers.PreTrainedModel, *, has_start: bool) -> Path:
    """A model of another make, with its tokenizer."""
    backend = Tokenizer(models.WordLevel(LETTERS, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"eos_token": "</s>", **({"bos_token": "<s>"} if has_start else {})}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=8, max_position_embeddings=48, bos_token_id=BEGIN, eos_token_id=END, **sizes
    )
    return save_foreign(tmp_path / "llama", LlamaForCausalLM(config), has_start=True)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=8, n_positions=48, n_embd=16, n_layer=1, n_head=2, bos_token_id=END, eos_token_id=END
    )
    return save_foreign(tmp_path / "gpt2", GPT2LMHeadModel(config), has_start=False)


SMALL = {
    "sampling": {"num_samples": 120, "max_new_tokens": 40},
    "num_bootstrap": 100,
    "triples": 12,
    "distances": [0, 2],
    "beginning": 1,
    "steps": 4,
    "streams": 3,
    "contexts": 2,
}


def test_any_causal_model_and_those_beside_it(llama, gpt2, tmp_path) -> None:
    notes: list[str] = []
    config = DynamicsConfig.model_validate(SMALL)
    found = measure_dynamics(llama, tmp_path / "out", config, beside=[gpt2], say=notes.append)
    assert found.judge is None
    assert math.isnan(found.threshold)
    results = found.results
    for measure in (DIVERGENCE, TEXT_DIVERGENCE):
        at = results.of(measure.name)[0].at
        for mode, of in (("untagged", "an end"), ("untagged", "nothing"), (None, "llama"), (None, "gpt2")):
            estimate = results.find(measure.name, mode, of=of, at=at)
            assert 0 < estimate.mean < math.log(2)
            assert estimate.low < estimate.high
        # Two makes of model: pages begin otherwise, so that they read other triples, and nothing is subtracted.
        assert results.find(measure.name, None, of="llama", at=at) == results.find(
            measure.name, "untagged", of="an end", at=at
        )
    assert results.of(BITS_BY_POSITION.name)
    assert not results.of(SCORE_BY_POSITION.name)
    assert any("no control tokens" in note for note in notes)
    assert "Nobody judged" in read_page(write_dynamics_page(found, tmp_path / "page.html")).text
    with pytest.raises(PHFError, match="two models are named llama"):
        measure_dynamics(llama, tmp_path / "other", config, beside=[llama])


def test_a_foreign_model_with_a_judge_is_a_chain_of_pages(gpt2, tmp_path) -> None:
    (tmp_path / "words.txt").write_text("ab\n")
    judge = {"judge": f"lexicon:{tmp_path / 'words.txt'}", "threshold": 0}
    config = DynamicsConfig.model_validate({**SMALL, **judge})
    found = measure_dynamics(gpt2, tmp_path / "out", config, say=lambda _: None)
    assert found.results.find("rate", "untagged", of="good -> end").count > 10
    assert not found.results.of("rate_of_data", "rate_excess")
    assert found.results.of(SCORE_BY_POSITION.name)
    assert any("reads no further than 48 tokens" in note for note in found.notes)
    assert max(row.at for row in found.results.of(BITS_BY_POSITION.name)) == 48
    assert str(tmp_path) not in json.dumps(found.settings)


def test_what_stands_between_pages(llama, gpt2) -> None:
    first, second = open_subject(llama), open_subject(gpt2)
    assert tuple(first.prefix("untagged")) == (BEGIN,)
    assert tuple(first.between("untagged")) == (END, BEGIN)
    assert tuple(second.prefix("untagged")) == tuple(second.between("untagged")) == (END,)


def enumerate_divergence(model: LlamaForCausalLM, pages: list[list[int]], steps: int, num: int) -> float:
    """Jensen-Shannon divergence of the two distributions over all texts of so many tokens."""
    texts = list(product(range(num), repeat=steps))
    laws = []
    for page in pages:
        rows = torch.tensor([[*page, *text] for text in texts])
        with torch.no_grad():
            logs = model(input_ids=rows).logits.double().log_softmax(-1)[:, len(page) - 1 : -1]
        laws.append(logs.gather(2, rows[:, len(page) :, None])[..., 0].sum(1).exp().numpy())
    middle = sum(laws) / 2
    return float(sum((law * np.log(law / middle)).sum() for law in laws) / 2)


def test_divergence_of_texts_is_that_of_the_enumerated_ones(llama) -> None:
    model = LlamaForCausalLM.from_pretrained(llama).eval()
    triple = Triple([4, 5, 2], [7, 7, 3], [6])
    found = measure_texts(model, [BEGIN], [END, BEGIN], [triple] * 1500, 3, 0)
    pages = [[BEGIN, *own, END, BEGIN, 6] for own in (triple.first, triple.second)]
    for steps in (1, 2, 3):
        exact = enumerate_divergence(model, pages, steps, len(LETTERS))
        column = found[:, steps - 1]
        assert abs(column.mean() - exact) < 4 * column.std() / math.sqrt(len(column)) + 1e-6
    assert exact > 1.2 * found[:, 0].mean()  # texts tell more than one token
    one = measure_symmetry(model, [BEGIN], [END, BEGIN], [triple], [1])
    assert found[:, 0] == pytest.approx(np.full(1500, one[0, 0]), rel=1e-4)


def test_where_documents_are_isolated_nothing_stands_before(llama) -> None:
    model = LlamaForCausalLM.from_pretrained(llama).eval()

    class Isolating(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
            starts = torch.where(input_ids == BEGIN, places, 0).cummax(1).values
            hidden = lm.hidden_states(model, input_ids, places - starts)
            return SimpleNamespace(logits=lm.head_logits(model, hidden))

    triples = [Triple([4, 5, 2], [7, 7, 3], [6, 5])]
    found = measure_symmetry(Isolating(), [BEGIN], [END, BEGIN], triples, [0, 1])
    assert found == pytest.approx(np.zeros((1, 2)), abs=1e-12)
    assert measure_symmetry(model, [BEGIN], [END, BEGIN], triples, [0, 1]).min() > 1e-5


class Source(torch.nn.Module):
    """A label, a letter that shows it, and the next label or the end: every probability is known.

    Attributes:
        fall: labels so far (ids) -> P(the next one is bad | the page goes on).
        ends: P(the page ends) behind each segment.
    """

    device = torch.device("cpu")

    def __init__(self, fall, ends: float = 0.1) -> None:
        super().__init__()
        self.tokenizer = bytes_alone()
        self.fall, self.ends = fall, ends
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int = 0) -> SimpleNamespace:
        control = self.tokenizer.control
        laws = torch.zeros(len(input_ids), 1, self.tokenizer.vocab_size)
        for row, page in enumerate(input_ids.tolist()):
            labels = [token for token in page if token in control.all]
            if page[-1] in control.all:
                laws[row, 0, self.tokenizer.encode("a" if page[-1] == control.good else "b")] = 1
                continue
            bad, end = self.fall(["gb"[label - control.good] for label in labels]), self.ends
            laws[row, 0, [control.good, control.bad, control.end]] = torch.tensor(
                [(1 - end) * (1 - bad), (1 - end) * bad, end]
            )
        return SimpleNamespace(logits=laws.log())

    def subject(self) -> Subject:
        targets = {mode: Target(mode, self, self.tokenizer, "sentences") for mode in ("good", "bad", "none")}
        return Subject("source", "key", targets, 64)


def order_one(labels: list[str]) -> float:
    return 0.2 if labels[-1:] != ["b"] else 0.7


def never_back(labels: list[str]) -> float:
    """Once bad, forever likely to be."""
    return 0.8 if "b" in labels else 0.2


def test_relaxation_of_sources_that_are_known() -> None:
    config = DynamicsConfig(prefixes=128, given=2, relaxation=3, num_bootstrap=500)
    found = Measurements(describe_relaxation(Source(order_one).subject(), config))
    harder, asymmetry = (
        found.find(COMING_BACK.name, "none", of=of) for of in ("to fall - to come back", "asymmetry")
    )
    assert harder.mean == pytest.approx(0.2 - 0.3, abs=1e-6)
    assert asymmetry.low < 0 < asymmetry.high
    assert asymmetry.high - asymmetry.low < 0.5
    behind = [found.find(RELAXATION.name, "none", of="2 good, 1 bad", at=at) for at in (1, 2, 3)]
    for own, exact in zip(behind, (0.7, 0.55, 0.475), strict=True):  # a + (1 - a - b) times the one before
        assert own.mean == pytest.approx(exact, abs=0.08)
        assert own.count == 128  # no page ends

    found = Measurements(describe_relaxation(Source(never_back).subject(), config))
    exact = sum(0.8 - (0.8**t * 0.2 + (1 - 0.8**t) * 0.8) for t in range(3))
    asymmetry = found.find(COMING_BACK.name, "none", of="asymmetry")
    assert abs(asymmetry.mean - exact) < asymmetry.high - asymmetry.low
    assert asymmetry.low > 1
    assert found.find(COMING_BACK.name, "none", of="to fall - to come back").mean == pytest.approx(
        0, abs=1e-6
    )


def test_own_hazards_of_a_source_that_is_known() -> None:
    def score(texts: list[str]) -> list[float]:
        return [float("b" in text) for text in texts]

    config = DynamicsConfig(prefixes=128, longest=10, num_bootstrap=300)
    found = Measurements(describe_hazards(Source(order_one).subject(), config, score, 0.5))
    for step, exact in (("good -> bad", 0.9 * 0.2), ("bad -> good", 0.9 * 0.3)):
        own, judged, gap = (
            found.find(OWN_HAZARD.name, "none", of=step + end)
            for end in ("", ", judged", ", own view - judged")
        )
        assert own.mean == pytest.approx(exact, abs=1e-6)
        assert judged.low < exact < judged.high
        assert gap.low < 0 < gap.high

    # A judge that takes half of the bad for good says otherwise.
    found = Measurements(
        describe_hazards(Source(order_one).subject(), config, lambda texts: [0.0] * len(texts), 0.5)
    )
    assert found.find(OWN_HAZARD.name, "none", of="good -> bad, own view - judged").low > 0.1


def test_numbers_by_position() -> None:
    tokenizer = bytes_alone()
    model = tiny_llama(tokenizer, seed=0, context=32)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # every id is as probable
    subject = Subject("uniform", "key", {"untagged": Target("untagged", model, tokenizer, "sentences")}, 32)
    config = DynamicsConfig(streams=4, contexts=3, num_bootstrap=100)
    rows = list(describe_positions(subject, "untagged", ["abcdefg"] * 200, config, None))
    assert [row.at for row in rows] == [8 * place for place in range(1, 13)]
    bits = math.log2(model.get_output_embeddings().weight.shape[0])
    assert [row.estimate.mean for row in rows] == pytest.approx([bits] * 12, rel=1e-5)
    end = tokenizer.control.end
    stream = [*tokenizer.encode("One. Two."), end, *tokenizer.encode("Three."), end, *tokenizer.encode("cut")]
    assert list(place_segments(subject, "untagged", stream)) == [("One.", 4), (" Two.", 9), ("Three.", 16)]
    scored = list(describe_positions(subject, "untagged", [], config, lambda texts: [0.5] * len(texts)))
    assert {row.estimate.mean for row in scored if row.estimate.count} == {0.5}


def test_how_far_a_model_reads(llama, gpt2) -> None:
    assert find_reach(open_subject(llama).targets["untagged"].model, 48, 150) == 150
    assert find_reach(open_subject(gpt2).targets["untagged"].model, 48, 150) == 48
