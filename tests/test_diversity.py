"""Diversity: Self-BLEU against NLTK's BLEU, entropy against known values, best-of-n against all choices."""

import math
from itertools import combinations

import numpy as np
import pytest

from phf.evaluate.measures.diversity import measure_diversity, ngram_entropy, self_bleu
from phf.evaluate.measures.type_token_ratio import WINDOW, type_token_ratio
from phf.intervals import best_of


def random_texts(num: int, words: int, vocabulary: int, seed: int = 0) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [
        [f"w{word}" for word in rng.zipf(1.6, size=rng.integers(3, words)) % vocabulary] for _ in range(num)
    ]


def test_self_bleu_is_bleu_against_all_the_others() -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    pieces = [*random_texts(25, 40, 30), ["only", "here", "are", "these", "words"], ["w1"]]
    ours = self_bleu(pieces)
    for index, text in enumerate(pieces):
        others = [*pieces[:index], *pieces[index + 1 :]]
        if len(text) < 5:
            assert math.isnan(ours[index])
            continue
        smooth = bleu.SmoothingFunction().method1
        wanted = bleu.sentence_bleu(others, text, weights=[0.2] * 5, smoothing_function=smooth)
        assert ours[index] == pytest.approx(wanted, rel=1e-9)
    assert ours[-2] == 0, "no piece of it is found elsewhere"


def test_copies_have_self_bleu_1_and_one_text_has_none() -> None:
    assert self_bleu([["a", "b", "c", "d", "e"]] * 2) == pytest.approx([1, 1])
    assert math.isnan(self_bleu([["a"] * 9])[0])


def test_entropy_knows_a_uniform_source_and_does_not_grow_with_the_amount_of_text() -> None:
    alphabet = [chr(97 + letter) for letter in range(16)]
    assert ngram_entropy([alphabet], 1, 16, 0) == pytest.approx(4)
    assert ngram_entropy([["a"] * 50], 2, 40, 0) == 0
    assert math.isnan(ngram_entropy([["a"] * 5], 2, 5, 0))
    long = random_texts(400, 60, 500)
    assert ngram_entropy(long, 2, 500, 0) == pytest.approx(ngram_entropy(long[:100], 2, 500, 0), rel=0.03)


def test_diversity_tells_repeating_samples_from_varied_ones() -> None:
    varied = [" ".join(text) for text in random_texts(60, 40, 2000)]
    dull = [varied[0] + " " + varied[1]] * 60
    own, other = measure_diversity(varied, 100, 0), measure_diversity(dull, 100, 0)
    assert own.entropy_2 > other.entropy_2 + 1
    assert own.self_bleu_5.high < other.self_bleu_5.mean == pytest.approx(1)
    assert own == measure_diversity(varied, 100, 0)


def test_type_token_ratio_looks_at_windows_of_words() -> None:
    words = [f"w{number}" for number in range(WINDOW)]
    assert type_token_ratio(" ".join(words)) == 1
    assert type_token_ratio(" , ".join(words * 40)) == 1, (
        "each window holds each word once, however long the text"
    )
    assert type_token_ratio("Same same " * WINDOW) == 1 / WINDOW
    assert type_token_ratio(" ".join([*words, words[0]])) == 1
    assert type_token_ratio(" ".join([*words, words[-1]])) == pytest.approx(1 - 0.5 / WINDOW)
    assert math.isnan(type_token_ratio(" ".join(words[1:])))


def test_best_of_is_the_mean_over_all_choices() -> None:
    rng = np.random.default_rng(1)
    keys, values = rng.integers(0, 4, 9).astype(float), rng.normal(size=9)  # many ties
    for k in (1, 2, 3, 9):
        exact = []
        for choice in combinations(range(9), k):
            least = min(keys[list(choice)])
            exact.append(np.mean([values[i] for i in choice if keys[i] == least]))
        assert best_of(keys, values, k, 100, 0).mean == pytest.approx(np.mean(exact))
    distinct = rng.permutation(9).astype(float)
    for k in (1, 2, 3, 9):
        exact = [values[min(choice, key=lambda i: distinct[i])] for choice in combinations(range(9), k)]
        assert best_of(distinct, values, k, 100, 0).mean == pytest.approx(np.mean(exact))


def test_best_of_leaves_out_what_is_unscored_and_its_interval_covers() -> None:
    estimate = best_of([0.0, np.nan, 1.0], [5.0, 7.0, np.nan], 1, 100, 0)
    assert (estimate.mean, estimate.count) == (5, 1)
    assert math.isnan(best_of([0.0], [1.0], 2, 100, 0).mean)

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        keys = rng.normal(size=400)
        return keys, 10 + keys + rng.normal(size=400)

    truth = float(np.random.default_rng(7).normal(size=(40_000, 4)).min(axis=1).mean())
    hits = 0
    for trial in range(200):
        found = best_of(*draw(trial), 4, 200, trial)
        hits += found.low <= 10 + truth <= found.high
    assert 0.88 < hits / 200 < 0.99
