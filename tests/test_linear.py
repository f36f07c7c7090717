"""The linear reward model: its n-grams are scikit-learn's, its fit is scikit-learn's, its scores know no batches."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from phf.errors import PHFError
from phf.files import write_json
from phf.reward_models import load_reward_model, score_documents
from phf.reward_models.linear import L2, _count_ngrams, _minimise, fit_linear, fit_linear_pairs, list_heaviest
from phf.reward_models.ngrams import PIECE, Features, read_batches
from phf.reward_models.trained import load_trained

ALL = Features((1, 2), (3, 4))
GOOD, BAD, FILLER = (
    ["kind", "warm", "nice", "calm"],
    ["vile", "cruel", "nasty", "rude"],
    ["the", "a", "man", "word", "day", "is", "was"],
)


def write_texts(num: int, seed: int = 0) -> tuple[list[str], list[float]]:
    rng = random.Random(seed)
    labels = [float(place % 3 == 0) for place in range(num)]
    return [
        " ".join(rng.choices(FILLER, k=7) + rng.choices(BAD if bad else GOOD, k=1)) for bad in labels
    ], labels


def list_ngrams(texts, features) -> list[Counter]:
    """What `find_ngrams` finds in each text, by the characters of the spans."""
    found = [Counter() for _ in texts]
    for batch in read_batches(texts):
        for ngrams in batch.find_ngrams(features):
            for row, piece in enumerate(ngrams.pieces.tolist()):
                found[batch.owners[piece]][ngrams.kind, batch.read(ngrams, row)] += 1
    return found


TEXTS = [
    "You're  a FOOL!!",
    "",
    " ",
    "a",
    "no-one, no one",
    "naïve 日本語 ß İstanbul",
    "1 2\n\n3",
    "\x00\ud800 x",
    "🙂 ok",
]


WORD = r"(?:[^\W_]|['’])+"


def test_ngrams_are_those_of_scikit_learn():
    words = CountVectorizer(token_pattern=WORD, ngram_range=(1, 2)).build_analyzer()
    characters = CountVectorizer(analyzer="char", ngram_range=(3, 4)).build_analyzer()
    for text, found in zip(TEXTS, list_ngrams(TEXTS, ALL), strict=True):
        of: dict[str, Counter] = {"words": Counter(), "characters": Counter()}
        for (kind, name), count in found.items():
            of[kind][" ".join(re.findall(WORD, name)) if kind == "words" else name] += count
        assert of["words"] == Counter(words(text))
        spaced = f" {' '.join(text.split())} " if text.strip() else ""
        assert of["characters"] == Counter(characters(spaced))


def test_an_ngram_has_the_same_bucket_wherever_it_stands_and_others_another():
    buckets: dict[tuple[str, str], set[int]] = {}
    texts = ["the cat sat", "a cat, the cat", "x " * 500 + "cat", "tac", "the  cat"]
    for batch in read_batches(texts):
        for ngrams in batch.find_ngrams(ALL):
            for row, bucket in enumerate(ngrams.buckets.tolist()):
                name = (
                    " ".join(batch.read(ngrams, row).replace(",", " ").split())
                    if ngrams.kind == "words"
                    else batch.read(ngrams, row)
                )
                buckets.setdefault((ngrams.kind, name), set()).add(bucket)
    assert all(len(places) == 1 for places in buckets.values())
    assert len(set.union(*buckets.values())) == len(buckets)  # words and characters apart: "cat" is both


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=12), st.randoms())
def test_scores_do_not_depend_on_the_batch(model, texts, rng):
    alone = [model.score_texts([text])[0] for text in texts]
    order = list(range(len(texts)))
    rng.shuffle(order)
    assert model.score_texts([texts[place] for place in order]) == [alone[place] for place in order]


@pytest.fixture(scope="module")
def model():
    return fit_linear(*write_texts(300), seed=0, name="mine")


def test_long_texts_are_read_in_pieces_whatever_stands_beside_them(model):
    long = "the vile man " * (3 * PIECE // 13)
    alone = model.score_texts([long])
    assert model.score_texts(["x" * 100_000, long, "y", long])[1::2] == alone * 2
    assert alone[0] > 0.5


def test_features_are_counts_over_the_root_of_their_number():
    row = _count_ngrams(["b a a", ""], Features((1,), ()))
    assert sorted(row.toarray()[0][row.indices]) == pytest.approx([1 / 3**0.5, 2 / 3**0.5])
    assert row[1].nnz == 0


def test_the_fit_is_that_of_scikit_learn():
    texts, labels = write_texts(200)
    labels[:20] = [1 - label for label in labels[:20]]
    matrix = _count_ngrams(texts, Features())
    weights, bias = _minimise(matrix, np.asarray(labels), 0.1, intercept=True)
    expected = LogisticRegression(C=10, tol=1e-8, max_iter=5000).fit(matrix.astype(float), labels)
    np.testing.assert_allclose(matrix @ weights + bias, expected.decision_function(matrix), atol=0.05)


def test_soft_labels_are_probabilities():
    texts = ["apple pear"] * 50 + ["plum fig"] * 50
    model = fit_linear(texts, [0.8] * 50 + [0.3] * 50, seed=0)
    assert model.score_texts(["apple pear", "plum fig"]) == pytest.approx([0.8, 0.3], abs=0.03)


def test_it_learns_and_a_seed_gives_the_same_bytes(model):
    texts, labels = write_texts(200, seed=1)
    scores = np.asarray(model.score_texts(texts))
    assert (scores[np.asarray(labels) == 1].min() > 0.5) & (scores[np.asarray(labels) == 0].max() < 0.5)
    again = fit_linear(*write_texts(300), seed=0, name="mine")
    assert again.identity == model.identity
    assert fit_linear(*write_texts(300), seed=1, name="mine").identity != model.identity
    assert {trial.l2 for trial in model.trials} == set(L2)


def test_of_a_pair_the_chosen_text_gets_the_lower_score():
    texts, labels = write_texts(300)
    good = [text for text, bad in zip(texts, labels, strict=True) if not bad]
    bad = [text for text, bad in zip(texts, labels, strict=True) if bad]
    model = fit_linear_pairs(good[: len(bad)], bad, seed=0)
    low, high = model.score_texts(good), model.score_texts(bad)
    assert max(low) < min(high)
    assert np.median([*low[: len(bad)], *high]) == pytest.approx(0.5, abs=1e-3)  # an ordinary text


def test_of_features_within_one_error_the_cheapest_are_taken():
    texts, labels = write_texts(300)
    equal = Features((1,), (), 18), Features((1,), (), 19)
    for features in (equal, equal[::-1]):
        assert fit_linear(texts, labels, seed=0, features=features).features == features[0]
    cheap, dear = Features((1,), ()), Features((1, 2), (3, 4, 5))
    assert fit_linear(texts, labels, seed=0, features=(cheap, dear)).features == cheap
    spelt = [
        text.replace("vile", f"v1le{place}")
        .replace("cruel", f"cru3l{place}")
        .replace("nasty", f"n4sty{place}")
        for place, text in enumerate(texts)
    ]
    spelt = [text.replace("rude", f"rud3{place}") for place, text in enumerate(spelt)]
    good = [
        text if bad else f"{text.rsplit(' ', 1)[0]} k{place}"
        for place, (text, bad) in enumerate(zip(spelt, labels, strict=True))
    ]
    assert fit_linear(good, labels, seed=0, features=(cheap, dear)).features == dear


def test_settings_are_chosen_on_a_random_part_of_labels_that_come_sorted():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(FILLER, k=5)) for _ in range(300)]  # nothing to learn
    model = fit_linear(texts, [0.0] * 150 + [1.0] * 150, seed=0, num_selection=100)
    assert min(trial.loss for trial in model.trials) > 0.6  # ln 2 but for chance; 0 if all were of one class


def test_it_comes_back_from_disk_and_damage_is_refused(model, tmp_path):
    folder = tmp_path / "mine"
    model.save(folder)
    again = load_reward_model(str(folder))
    assert again.identity == model.identity
    document = "You vile man. A nice day."
    assert score_documents(again, [(document, [13, 25])]) == score_documents(model, [(document, [13, 25])])
    value = {**json.loads((folder / "reward_model.json").read_text()), "format_version": 1}
    del value["sha256"]  # as an older phf has written it
    write_json(folder / "reward_model.json", value)
    assert load_trained(folder).identity == model.identity
    model.save(folder)
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PHFError, match=r"weights\.safetensors is damaged"):
        load_trained(folder)
    path = folder / "reward_model.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "hit_threshold": 0.1}))
    with pytest.raises(PHFError, match="is damaged: its content does not have the hash"):
        load_trained(folder)
    path.write_text('{"format_version": 9}')
    with pytest.raises(
        PHFError, match="has format version 9; this phf reads 2; install the phf that wrote it"
    ):
        load_trained(folder)
    path.write_text('{"format_version": 1, "kind": "linear"}')
    with pytest.raises(PHFError, match="is damaged"):
        load_trained(folder)
    with pytest.raises(PHFError, match=r"holds no reward_model\.json"):
        load_trained(tmp_path)


def test_the_heaviest_ngrams_are_named(model):
    texts, _ = write_texts(300)
    bad, good = list_heaviest(model, texts, 15)
    assert {item.text for item in bad if item.kind == "words"} == set(BAD)
    assert {item.text for item in good if item.kind == "words"} == set(GOOD)
    assert all(item.weight > 0 for item in bad)
    assert [item.weight for item in good] == sorted(item.weight for item in good)
    assert next(item for item in bad if item.text == "vile").count == sum("vile" in text for text in texts)


@pytest.mark.parametrize("labels", [[], [2.0], [float("nan")], [-0.1]])
def test_wrong_labels_are_refused(labels):
    with pytest.raises(PHFError, match=r"there must be one in \[0, 1\]"):
        fit_linear(["text"], labels, seed=0)
