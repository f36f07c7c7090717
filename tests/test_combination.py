"""Weighted sums of reward models."""

import json
import math

import numpy as np
import pytest

from phf.errors import PHFError
from phf.reward_models import Unscored, load_reward_model, score_documents, score_samples
from phf.reward_models.combination import Combination, Component

TEXTS = ["you damn idiot", "mail a@b.org", "hello there", "10.0.0.1 is damn slow"]


def test_a_combination_is_the_weighted_sum_of_stored_scores():
    model = load_reward_model("0.7*toxicity-svm + 30*pii")
    svm, pii = (np.float32(score_samples(load_reward_model(name), TEXTS)) for name in ("toxicity-svm", "pii"))
    expected = 0.7 * svm.astype(np.float64) + 30 * pii.astype(np.float64)
    assert score_samples(model, TEXTS) == expected.tolist()
    assert np.array_equal(model.combine([svm, pii]), expected)
    assert model.combine([svm, pii]).dtype == np.float64
    assert (model.unit, model.display_scale, model.hit_threshold) == ("weighted sum", 1.0, 0.35)


def test_segments_of_many_documents_keep_their_places():
    model = load_reward_model("1*pii+2*toxicity-svm")
    documents = [("a@b.org damn", [7, 12]), ("", []), ("hello", [2, 5])]
    scores = score_documents(model, documents)
    assert [len(row) for row in scores] == [2, 0, 2]
    assert scores[2] == model.score(*documents[2])
    assert scores[0][0] == pytest.approx(
        1 / 7 + 2 * load_reward_model("toxicity-svm").score("a@b.org", [7])[0]
    )


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("0.7*pii + 0.3*pep8", [(0.7, "pii"), (0.3, "pep8")]),
        ("0.7*pii+0.3*pep8", [(0.7, "pii"), (0.3, "pep8")]),
        (" 1e+1 * pii +.5*pep8 + 2e-1*pep8-fast", [(10, "pii"), (0.5, "pep8"), (0.2, "pep8-fast")]),
        ("1*lexicon:a+b/phase.txt+1e-2*pii", [(1, "lexicon:a+b/phase.txt"), (0.01, "pii")]),
    ],
)
def test_how_a_combination_is_written(tmp_path, monkeypatch, spec, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    (tmp_path / "a+b/phase.txt").write_text("darn")
    assert [(part.weight, part.spec) for part in load_reward_model(spec).components] == parts


def test_the_identity_follows_weights_and_components():
    specs = ["0.7*pii + 0.3*pep8", "0.6*pii + 0.3*pep8", "0.7*pii + 0.3*pep8-fast"]
    identities = [load_reward_model(spec).identity for spec in specs]
    assert len({identity.id for identity in identities}) == len(specs)
    assert identities[0] == load_reward_model("0.70*pii+3e-1*pep8").identity
    assert identities[0].name == "pii+pep8"
    assert [part["weight"] for part in identities[0].parameters["components"]] == [0.7, 0.3]
    reward_models = [part["reward_model"] for part in identities[0].parameters["components"]]
    assert reward_models == [load_reward_model(name).identity.to_json() for name in ("pii", "pep8")]
    json.dumps(identities[0].to_json(), allow_nan=False)


def test_what_one_component_leaves_unscored_is_unscored():
    model = load_reward_model("1*pii + 1*pep8")
    scores = model.score("x = 1\ny = 2\nprint 'a'\n", [12, 22])
    assert scores[0] == 0.0
    assert isinstance(scores[1], Unscored)
    assert scores[1].reason == "does not parse"
    assert math.isnan(model.combine([np.float32([0.5]), np.float32([np.nan])])[0])


def test_a_sample_is_trimmed_by_every_component():
    model = load_reward_model("1*pii + 1*pep8")
    assert model.trim_sample("x = 1\ny = f(") == "x = 1\n"
    assert score_samples(model, ["x=1\ny = 'a@b.org"]) == [0.25]  # what pep8 cuts off, pii does not see


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0.5*pii", "combines one reward model; write 'pii' alone"),
        ("0.5*pii + 0.5*pii", "'pii' and 'pii' are one reward model; add their weights"),
        ("0.7*pep8 + pii", r"'pii' has no weight; write '1\*pii'"),
        ("pep8 + pii", "'pep8' has no weight"),
        ("x*pii + 1*pep8", "weight 'x' of 'pii' is no number"),
        ("0*pii + 1*pep8", "weight 0 of 'pii' must be above 0 and at most 1e"),
        ("-1*pii + 1*pep8", "weight -1 of 'pii' must be"),
        ("inf*pii + 1*pep8", "weight inf of 'pii' must be"),
        ("1e300*pii + 1*pep8", "weight 1e300 of 'pii' must be"),
        ("nan*pii + 1*pep8", "weight nan of 'pii' must be"),
        ("0.5*0.5*pii + 1*pep8", "holds a combination itself; multiply it out"),
        ("0.5*(1*pii + 1*pep8)", "holds a combination itself"),
        ("1*pii + 1*pep9", "no reward model is named 'pep9'; did you mean pep8"),
    ],
)
def test_wrong_combinations_are_said(spec, message):
    with pytest.raises(PHFError, match=message) as error:
        load_reward_model(spec)
    assert "\n" not in str(error.value)


def test_a_combination_that_hides_behind_a_name_is_refused():
    inner = load_reward_model("1*pii + 1*pep8")
    with pytest.raises(PHFError, match="'mine' is itself a combination"):
        Combination([Component(1, "mine", inner), Component(1, "pii", load_reward_model("pii"))])
