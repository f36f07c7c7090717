"""E over own samples of grad log p = 0: exact on a source that can be enumerated, then the command over real folders."""

import json
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from release_runs import get_run
from transformers import LlamaConfig, LlamaForCausalLM

from phf import cli
from phf.config.online import LemmaConfig
from phf.config.train import parse
from phf.loops.lemma import Pages, find_effect, find_gradients
from phf.loops.lemma_cases import check_lemma
from phf.loops.results import LEMMA
from phf.results import to_json

LETTERS, END = 16, 16
"""Texts of up to two of 16 letters, then the end, or cut: 273 of them."""
ALLOWED = np.ones(END + 1, bool)
TEXTS = [
    [END, END],
    *([END, a, END] for a in range(LETTERS)),
    *([END, a, b] for a, b in product(range(LETTERS), repeat=2)),
]


def make_model(seed: int, scale: float = 0.35) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=END + 3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8, initializer_range=scale, tie_word_embeddings=False,
        bos_token_id=END, eos_token_id=END, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def token_probabilities(model, prefix: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prefix])).logits[0, -1, : len(ALLOWED)].double()
    return torch.softmax(logits, -1).numpy()


def filter_probabilities(probs: np.ndarray, temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    """As sampling cuts them, written down once more: the likeliest until their mass reaches top_p."""
    probs = probs ** (1 / temperature)
    probs = probs / probs.sum()
    order = np.argsort(-probs)
    kept = order[np.concatenate([[0.0], np.cumsum(probs[order])[:-1]]) < top_p]
    result = np.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


def text_probabilities(model, **filters: float) -> np.ndarray:
    """Of every text, as it is drawn."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[END, letter] for letter in range(LETTERS)])).logits
    probs = torch.softmax(logits[..., : len(ALLOWED)].double(), -1).numpy()
    first = filter_probabilities(probs[0, 0], **filters)
    second = [filter_probabilities(row, **filters) for row in probs[:, 1]]
    ended = [first[END], *(first[a] * second[a][END] for a in range(LETTERS))]
    found = np.array([*ended, *(first[a] * second[a][b] for a, b in product(range(LETTERS), repeat=2))])
    assert found.sum() == pytest.approx(1)
    return found


@cache
def text_gradients(seed: int) -> np.ndarray:
    """grad log p of every text: [texts, parameters]."""
    model, pages = make_model(seed), Pages(TEXTS, [1] * len(TEXTS))
    weights = [pages.weigh(row) for row in np.eye(len(TEXTS)).tolist()]
    return find_gradients(model, pages, weights, ALLOWED).double().numpy()


def squared(expected: np.ndarray) -> float:
    return float(expected @ expected)


def num_tokens() -> np.ndarray:
    return np.array([len(text) - 1 for text in TEXTS])


def scores() -> np.ndarray:
    return np.random.default_rng(3).random(len(TEXTS))


def test_each_case_by_exact_expectation() -> None:
    """Zero where the lemma says so, and above 0 where a rule breaks it: with 16 letters top-p .99 cuts something too."""
    model, gradients = make_model(0), text_gradients(0)
    own = text_probabilities(model)
    size = squared(own @ np.abs(gradients))
    assert squared(own @ gradients) < 1e-12 * size
    for filters in ({"temperature": 0.7}, {"top_p": 0.9}, {"top_p": 0.95}, {"top_p": 0.99}):
        cut = text_probabilities(model, **filters)
        assert squared(cut @ gradients) > 1e-7 * size, filters
        if "top_p" in filters:
            assert (cut == 0).any()
    stale = text_probabilities(make_model(0, scale=0.36))
    for weights in (own / num_tokens(), own * (scores() - own @ scores()), stale):
        assert squared(weights @ gradients) > 1e-6 * size
    # A data prompt: the first letter is drawn from elsewhere. In the loss it teaches; masked it does not.
    prompt = np.random.default_rng(4).dirichlet(np.ones(LETTERS))
    second = np.stack([token_probabilities(model, [END, a]) for a in range(LETTERS)])
    prompted = np.array([0.0, *(prompt * second[:, END]), *(prompt[:, None] * second[:, :LETTERS]).flatten()])
    pages = Pages(TEXTS, [1] * len(TEXTS))
    masked = find_gradients(model, pages, [pages.weigh(prompted.tolist(), [2] * len(TEXTS))], ALLOWED)[
        0
    ].numpy()
    assert squared(prompted @ gradients) > 1e-4 * size
    assert squared(masked) < 1e-12 * size


def test_the_gradient_is_that_of_the_renormalised_probability() -> None:
    """Ids that cannot be written have no share: else own samples would teach that they are not written."""
    model, blocked = make_model(1), ALLOWED.copy()
    blocked[[3, 5]] = False
    kept = [index for index, text in enumerate(TEXTS) if 3 not in text and 5 not in text]
    pages = Pages([TEXTS[index] for index in kept], [1] * len(kept))

    def renormalise(prefix: list[int]) -> np.ndarray:
        probs = token_probabilities(model, prefix) * blocked
        return probs / probs.sum()

    shares = [
        np.prod([renormalise(text[:place])[text[place]] for place in range(1, len(text))])
        for text in pages.rows
    ]
    assert sum(shares) == pytest.approx(1)
    (found,) = find_gradients(model, pages, [pages.weigh(shares)], blocked).numpy()
    (plain,) = find_gradients(model, pages, [pages.weigh(shares)], ALLOWED).numpy()
    assert squared(found) < 1e-12 * squared(plain)


def draw_gram(
    rng: np.random.Generator, probabilities: np.ndarray, gradients: np.ndarray, groups: int, size: int
):
    means = rng.multinomial(size, probabilities, groups) @ gradients / size
    return means @ means.T


def test_five_in_a_hundred_false_alarms_two_sided() -> None:
    own, gradients, rng = text_probabilities(make_model(0)), text_gradients(0), np.random.default_rng(0)
    found = [find_effect(draw_gram(rng, own, gradients, 32, 32), 32, 999, seed) for seed in range(200)]
    assert 0.03 <= np.mean([effect.p < 0.05 for effect in found]) <= 0.07
    values, errors = (np.array([getattr(effect, name) for effect in found]) for name in ("value", "error"))
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    assert errors.mean() == pytest.approx(values.std(), rel=0.3)


def test_the_least_effect_is_found_four_times_in_five() -> None:
    """Samples that are drawn so that |E g|^2 is just what was said to be seen; U is unbiased for it."""
    own, gradients, rng = text_probabilities(make_model(0)), text_gradients(0), np.random.default_rng(1)
    least = np.mean(
        [find_effect(draw_gram(rng, own, gradients, 32, 32), 32, 999, seed).least for seed in range(20)]
    )
    tilt = own * (scores() - own @ scores())
    tilted = own + tilt * np.sqrt(least / squared(tilt @ gradients))
    assert (tilted > 0).all()
    truth = squared(tilted / tilted.sum() @ gradients)
    found = [find_effect(draw_gram(rng, tilted, gradients, 32, 32), 32, 999, seed) for seed in range(100)]
    assert np.mean([effect.value for effect in found]) == pytest.approx(truth, rel=0.15)
    assert np.mean([effect.p < 0.05 for effect in found]) == pytest.approx(0.8, abs=0.12)


def test_a_case_of_a_run_and_what_is_kept(small_config, tmp_path, monkeypatch, capsys) -> None:
    run = get_run("conditional", small_config, tmp_path).folder
    config = parse(LemmaConfig, {"groups": 8, "group_size": 4, "max_new_tokens": 8, "flips": 999}, "test")
    said: list[str] = []
    found = check_lemma(run, tmp_path / "lemma", config, say=said.append)
    assert found.left_out.keys() == {"stale"}
    assert said[0].startswith("stale is left out: the run has no earlier checkpoint")
    assert to_json(LEMMA.read(tmp_path / "lemma")) == to_json(found)
    find = found.results.find
    for case in ("unfiltered", "data prompt masked", "own token", "shuffled"):
        effect = find("lemma_effect", of=case)
        assert abs(effect.mean) < 4 * (effect.high - effect.mean)
    assert find("lemma_effect", of="data prompt in the loss").low > 0
    assert find("lemma_p", of="data prompt in the loss").mean < 0.05  # of 8 groups there are but 128 flips
    assert 0 < find("lemma_share", of="data prompt in the loss").mean < 1
    out = tmp_path / "again"
    monkeypatch.setattr("sys.argv", ["phf", "online", "--check-lemma", str(run), "-o", str(out), "--case", "top-p .9", "--set", "groups=8", "--set", "group_size=2", "--set", "max_new_tokens=4"])  # fmt: skip
    cli.main()
    assert "top-p .9" in capsys.readouterr().out
    assert json.loads((out / "lemma.json").read_text())["cases"] == ["top-p .9"]
    assert "<script" not in (out / "lemma.html").read_text()
