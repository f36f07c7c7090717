"""MAUVE: its own number for given clusters, alike for alike sets, and embeddings that padding does not touch."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phf.evaluate.measures.mauve import Embedder, frontier_area, measure_mauve
from phf.records import Identity


def test_the_area_is_that_of_mauve_text() -> None:
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    assert frontier_area(p, q) == pytest.approx(0.27066310219797973)  # mauve-text 0.4.0, c = 5, 100 mixtures
    assert frontier_area(q, p) == pytest.approx(0.27066310219797973)
    assert frontier_area(p, p) == pytest.approx(1)
    assert frontier_area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.01


def test_alike_sets_are_near_and_others_far() -> None:
    rng = np.random.default_rng(0)
    human, alike = (rng.normal(size=(300, 8)).astype(np.float32) for _ in range(2))
    near = measure_mauve(alike, human, 0)
    far = measure_mauve(alike + 1, human, 0)
    assert near.low < near.mean < near.high
    assert far.high < 0.5 < near.low
    assert near == measure_mauve(alike, human, 0)
    assert np.isnan(measure_mauve(alike[:9], human[:9], 0).mean)


def test_the_interval_is_as_wide_as_other_draws_differ() -> None:
    rng = np.random.default_rng(1)
    found = [
        measure_mauve(
            rng.normal(size=(300, 4)).astype(np.float32), rng.normal(0.5, size=(300, 4)).astype(np.float32), 0
        )
        for _ in range(25)
    ]
    spread = np.std([estimate.mean for estimate in found], ddof=1)
    stated = np.mean([estimate.high - estimate.low for estimate in found]) / (2 * 1.96)
    assert 0.7 < stated / spread < 1.6


class Letters:
    """A tokenizer whose ids are letters."""

    def __call__(self, texts, **options):
        assert options == {"add_special_tokens": False, "split_special_tokens": True}
        return {"input_ids": [[ord(letter) % 50 + 1 for letter in text] for text in texts]}


def test_an_embedding_is_the_last_hidden_state_whatever_stands_beside_it() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    embedder = Embedder(model, Letters(), 0, Identity("letters", "1"))
    texts = ["abc", "", "a much longer text than the others", "zzzz"]
    together = embedder.embed(texts)
    for text, row in zip(texts, together, strict=True):
        ids = torch.tensor(
            [[0, *Letters()([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]]]
        )
        alone = model.model(ids).last_hidden_state[0, -1].detach().numpy()
        np.testing.assert_allclose(row, alone, atol=1e-5)
