"""Degeneracy figures: known values, and comparable between models that write different amounts."""

import numpy as np
import pytest

from phf.evaluate.measures.degeneracy import (
    compression_ratio,
    distinct_ngrams,
    measure_degeneracy,
    repetition,
)
from phf.records import Sample


def make_samples(texts: list[str]) -> list[Sample]:
    return [Sample("none", index, text, len(text.split()), False) for index, text in enumerate(texts)]


def random_words(num: int, vocabulary: int, seed: int = 0) -> list[str]:
    return [f"w{i}" for i in np.random.default_rng(seed).zipf(1.5, size=num) % vocabulary]


def test_distinct_at_full_size_is_the_plain_ratio() -> None:
    pieces = [["a", "b", "a"], ["b", "a"]]
    assert distinct_ngrams(pieces, 1, 5) == pytest.approx(2 / 5)
    assert distinct_ngrams(pieces, 2, 3) == pytest.approx(
        2 / 3
    )  # ab, ba, ba; none crosses from one sample to the next
    assert distinct_ngrams(pieces, 1, 1) == pytest.approx(1)
    assert distinct_ngrams([["a", "b"]], 1, 1) == pytest.approx(1)


def test_distinct_is_the_average_over_random_cuts() -> None:
    words = random_words(400, 60)
    rng = np.random.default_rng(3)
    cuts = [len(set(rng.choice(words, 100, replace=False))) / 100 for _ in range(3000)]
    assert distinct_ngrams([words], 1, 100) == pytest.approx(np.mean(cuts), rel=0.01)


def test_distinct_does_not_fall_just_because_there_is_more_text() -> None:
    words = random_words(40_000, 500)
    short = distinct_ngrams([words[:3000]], 1, 1000)
    long = distinct_ngrams([words], 1, 1000)
    assert long == pytest.approx(short, rel=0.15)
    assert len(set(words)) / len(words) < 0.5 * len(set(words[:3000])) / 3000, "the plain ratio does fall"


def test_too_little_text_has_no_distinct() -> None:
    assert np.isnan(distinct_ngrams([["a", "b"]], 1, 3))
    assert np.isnan(distinct_ngrams([[], ["a"]], 2, 1))
    assert np.isnan(distinct_ngrams([["a", "b"], ["c", "d"]], 2, 3)), (
        "no n-gram crosses from sample to sample"
    )


def test_repetition_is_counted_within_a_sample() -> None:
    assert repetition([list("abcdabcd")]) == pytest.approx(1 / 5)
    assert repetition([list("abcd"), list("abcd")]) == 0
    assert repetition([list("aaaaaaaa"), list("abcdefgh"), ["a"]]) == pytest.approx(0.4)
    assert np.isnan(repetition([["a"]]))


def test_compression_tells_repeated_text_from_varied_text() -> None:
    varied = " ".join(random_words(5000, 2000))
    assert compression_ratio(["the same line"] * 500) < 0.05 < 0.2 < compression_ratio([varied])
    assert np.isnan(compression_ratio([]))
    assert np.isnan(compression_ratio(["", "  "]))


def test_measure_counts_length_and_emptiness() -> None:
    found = measure_degeneracy(make_samples(["one two three.", "", "  \n", "héé"]))
    assert found.mean_tokens == 1
    assert found.mean_characters == pytest.approx((14 + 0 + 3 + 3) / 4)
    assert found.empty_share == 0.5
    assert found.num_ngrams == 32
    assert np.isnan(found.distinct_1), "5 pieces are too few to compare"
    assert measure_degeneracy(make_samples(["a b a b a b a b"])).distinct_1 == pytest.approx(2 / 8)


def test_dull_samples_score_below_varied_ones() -> None:
    varied = measure_degeneracy(make_samples([" ".join(random_words(60, 4000, seed)) for seed in range(120)]))
    dull = measure_degeneracy(make_samples(["it is a very good day . " * 10] * 120))
    assert dull.distinct_2 < 0.1 * varied.distinct_2
    assert dull.repetition > 0.8 > varied.repetition
    assert dull.compression_ratio < varied.compression_ratio
