"""The path of somebody's own reward function: every line printed, and every error, names what comes next as it can be typed."""

import json
import shlex

import numpy as np
import pytest
from typer.testing import CliRunner

from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation, load_scores
from phf.cli import app
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.evaluate.judges import choose_judges
from phf.reward_models import Unscored, load_reward_model, score_samples
from phf.reward_models.wording import find_good_word
from phf.tokens.tokens import find_tokens, tokenize
from phf.train.start import load_start_config

TONE = """
import math

def score(texts):
    return [text.count("!") / len(text) for text in texts]

def reward(texts):
    return [math.nan if "unknown" in text else 1 - text.count("!") / len(text) for text in texts]

def chance(texts):
    return reward(texts)

chance.unit = "probability"
chance.hit_threshold = 0.25
"""


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus of 60 texts in the current folder, and functions of its user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tone.py").write_text(TONE)
    texts = [
        f"Text number {number} of a few words. It ends\x1b[31m{'!' * (number % 7)}" for number in range(60)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_corpus(["texts.jsonl"], tmp_path / "corpus")


def invoke(*arguments):
    """What a command prints, stderr included."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def read_hint(printed, start):
    """The settings of the command to train with that a line shows."""
    [line] = [line for line in printed.splitlines() if line.startswith(f"{start}: phf train")]
    words = shlex.split(line)
    assert words[:4] == [f"{start}:", "phf", "train", "default"]
    assert "model.preset=1M" in words
    return [word for word in words if "=" in word]


def test_annotate_and_tokenize_say_how_to_train_on_what_they_made(corpus):
    printed = invoke("annotate", "corpus", "-r", "tone:score", "--workers", "1")
    assert "next: phf tokenize corpus --tokenizer train:2048 --segments sentences" in printed
    config = load_start_config("default", read_hint(printed, "then"), None)
    assert (config.reward_model, config.tokenizer) == ("tone:score", "train:2048")
    printed = invoke("tokenize", "corpus", "-t", "train:300", "--workers", "1")
    config = load_start_config("default", read_hint(printed, "next"), None)
    assert (config.corpus, config.model.preset) == ("corpus", "1M")
    Annotation.open(corpus, config.reward_model, config.segments)
    find_tokens(corpus, config.tokenizer, config.segments)


def test_tokens_without_scores_say_that_scores_come_next(corpus):
    printed = invoke("tokenize", "corpus", "-t", "train:300", "--workers", "1")
    assert "next: phf annotate corpus --reward-model NAME --segments sentences" in printed


def test_a_missing_annotation_proposes_those_that_the_corpus_has(corpus):
    with pytest.raises(
        PHFError, match=r"\(it has none at all\); make it with: phf annotate .* --reward-model toxicity-svm"
    ):
        Annotation.open(corpus, "toxicity-svm", "sentences")
    annotate(corpus, "tone:score", "sentences", workers=1)
    with pytest.raises(PHFError, match=r"which is reward_model=tone:score\); give that, or make it with"):
        Annotation.open(corpus, "toxicity-svm", "sentences")
    with pytest.raises(PHFError, match=r"which is reward_model=tone:score segments=sentences\)"):
        Annotation.open(corpus, "tone:score", "lines")
    annotate(corpus, "0.5*tone:score + 0.5*pii", "sentences", workers=1)
    with pytest.raises(PHFError, match=r"'reward_model=0\.5\*tone:score \+ 0\.5\*pii'.*; give one of these"):
        Annotation.open(corpus, "toxicity-svm", "sentences")


def test_a_recipe_that_names_no_reward_model_asks_for_that_of_the_corpus(corpus):
    annotate(corpus, "tone:score", "sentences", workers=1)
    with pytest.raises(
        PHFError, match=r"recipe default names no reward model.*reward_model=tone:score\); give that"
    ):
        load_start_config("default", [], None)


def test_missing_tokens_propose_those_that_the_corpus_has(corpus):
    tokenize(corpus, "train:300", "sentences", workers=1)
    with pytest.raises(
        PHFError,
        match=r"no tokens by train:4096 on sentences; it has tokenizer=train:300: give that, or make",
    ):
        find_tokens(corpus, "train:4096", "sentences")


# Direction


def test_the_ends_of_own_scores_are_shown_with_the_question(corpus):
    printed = invoke("annotate", "corpus", "-r", "tone:score", "--workers", "1")
    worst, _, best = printed.partition("The best segments")
    assert worst.count("!!!!!!") == 3
    assert "!" not in best.partition("is this")[0]
    assert "\x1b" not in printed
    assert "is this the right way round?" in printed
    assert "phf annotate corpus -r -tone:score -s sentences" in printed
    assert "right way round" not in invoke("annotate", "corpus", "-r", "tone:score"), "nothing was scored now"
    assert "right way round" not in invoke("annotate", "corpus", "-r", "pii", "--workers", "1")


def test_a_minus_turns_a_reward_into_a_score(corpus):
    printed = invoke("annotate", "corpus", "-r", "-tone:reward", "--workers", "1")
    assert "sounds as if" not in printed
    assert "phf annotate corpus -r tone:reward -s sentences" in printed
    turned, given = (
        annotate(corpus, spec, "sentences", workers=1) for spec in ("-tone:reward", "tone:reward")
    )
    assert turned.slug != given.slug
    assert turned.slug.startswith("minus-tone.reward@")
    assert Annotation.open(corpus, "-tone:reward", "sentences").slug == turned.slug
    (ours, _), (theirs, _) = (load_scores(corpus, annotation) for annotation in (turned, given))
    assert np.array_equal(ours, -theirs)
    for annotation, others in ((turned, ["tone:reward"]), (given, ["-tone:reward"])):
        judges, notes = choose_judges(annotation, others, load_reward_model)
        assert ([judge.role for judge in judges], notes) == (["annotator", "held-out"], [])
    config = load_start_config("default", read_hint(printed, "then"), None)
    assert config.reward_model == "-tone:reward"


def test_a_turned_probability_is_one_and_what_is_unscored_stays_so(corpus):
    model, turned = load_reward_model("tone:chance"), load_reward_model("-tone:chance")
    texts = ["calm", "loud!", "unknown"]
    for reward, score in zip(score_samples(model, texts), score_samples(turned, texts), strict=True):
        assert score == pytest.approx(1 - reward, nan_ok=True)
    assert turned.unit == "probability"
    assert turned.hit_threshold == 0.75
    assert load_reward_model("-tone:reward").hit_threshold == -0.5
    assert score_samples(turned, [""])[0] != score_samples(turned, [""])[0]
    assert isinstance(score_samples(load_reward_model("-pii"), [""])[0], Unscored)


def test_a_component_is_turned_and_a_whole_sum_is_not(corpus):
    plain, turned = (
        load_reward_model("0.5*tone:score + 0.5*pii"),
        load_reward_model("0.5*-tone:score + 0.5*pii"),
    )
    assert plain.identity.id != turned.identity.id
    assert score_samples(turned, ["loud!"]) == pytest.approx([-0.1])
    with pytest.raises(PHFError, match=r"weight -0\.5 of 'tone:score' must be above 0 and at most 1e"):
        load_reward_model("-0.5*tone:score + 0.5*pii")


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("tone:reward", "reward"),
        ("rewards:politeness", "rewards"),
        ("nice:is_safe", "safe"),
        ("tone:KindReward", "Reward"),
        ("hf:org/model#SAFE", "SAFE"),
        ("hf:org/model@main#hate,not-toxic", "not-toxic"),
        ("0.5*pii + 0.5*tone:reward", "reward"),
        ("-tone:reward", None),
        ("0.5*pii + 0.5*-tone:reward", None),
        ("hf:org/model#-SAFE", None),
        ("hf:org/reward-model#toxic", None),
        ("my_reward_model:score", None),
        ("RewardModels:bad", None),
        ("tone:score", None),
        ("runs/my-reward", None),
        ("lexicon:good.txt", None),
        ("toxicity-svm", None),
    ],
)
def test_a_name_that_says_reward_is_noticed(spec, word):
    assert find_good_word(spec) == word


def test_a_name_that_says_reward_is_warned_of_before_anything_is_scored(corpus):
    lines = invoke("annotate", "corpus", "-r", "tone:reward", "--workers", "1").splitlines()
    [first] = [line for line in lines if line.startswith("warning")]
    assert "tone:reward sounds as if higher were better (reward)" in first
    assert first.endswith("-tone:reward")
    assert lines.index(first) < min(n for n, line in enumerate(lines) if "scored" in line)
