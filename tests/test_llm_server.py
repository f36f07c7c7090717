"""A judge behind a server, however rude: what is asked, again and how often, and what an error says."""

import math
import time

import numpy as np
import pytest
from llm_server import (
    KEY,
    MULTI,
    answer_politely,
    be_rude,
    expect_score,
    judge_level,
    make_corpus,
    own_cache,
    read_text,
    serve,
    spec,
)

from phf.annotate.annotate import annotate
from phf.config.judges import EngineSettings
from phf.errors import PHFError
from phf.reward_models import Unscored, load_reward_model, score_samples
from phf.reward_models.llm.engines import _Courier
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import ScoringStoppedError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def rubric(tmp_path):
    path = tmp_path / "tone.yaml"
    path.write_text(MULTI)
    return path


def test_scores_of_a_server_with_log_probabilities_are_expected_levels():
    texts = [f"text {number}" for number in range(50)]
    with serve() as server:
        model = load_reward_model(spec(server, concurrency=7))
        scores = model.score_texts([*texts, texts[0], " \n"])
        assert scores[:50] == pytest.approx([expect_score(text) for text in texts])
        assert scores[50] == scores[0]
        assert scores[51].reason == "white space alone"
        assert server.num_paid == 50
        assert server.most_at_once <= 7
        assert load_reward_model(spec(server)).score_texts(texts) == scores[:50]
        assert server.num_paid == 50
        assert sum(server.answered.values()) == 51  # and one question whether there are log-probabilities


def refuse_logprobs(body, number):
    return (422, {}, b"unused field") if "logprobs" in body else answer_politely(body, number)


def test_without_log_probabilities_the_written_level_counts_and_is_another_identity():
    with serve(refuse_logprobs) as server:
        model = load_reward_model(spec(server))
        assert model.score_texts(["abc"]) == [(judge_level("abc") - 1) / 4]
        with pytest.raises(PHFError, match="gives no log-probabilities for m"):
            load_reward_model(spec(server, logprobs="required"))
    with serve() as server:
        assert load_reward_model(spec(server)).identity != model.identity
        assert load_reward_model(spec(server, logprobs="never")).identity == model.identity


def test_what_changes_an_answer_changes_the_identity_and_where_it_comes_from_does_not(rubric):
    with serve() as one, serve() as other:
        first = load_reward_model(spec(one)).identity
        assert load_reward_model(spec(other, concurrency=3, timeout=9)).identity == first
        others = [
            load_reward_model(spec(one, **change)).identity
            for change in (
                {"model": "n"},
                {"revision": "2"},
                {"temperature": 0.5},
                {"body": "{seed: 1}"},
                {"rubric": "pii"},
            )
        ]
        assert len({identity.id for identity in (first, *others)}) == 6


def test_a_rude_server_is_asked_until_it_answers_and_each_text_is_paid_once():
    texts = [f"text {number}" for number in range(80)]
    with serve(be_rude) as server:
        model = load_reward_model(spec(server, timeout=1))
        scores = model.score_texts(texts)
        prose = [isinstance(score, Unscored) for score in scores]
        assert 0 < sum(prose) < 20
        assert {score.reason for score in scores if isinstance(score, Unscored)} == {
            "no number in the answer"
        }
        for text, score, is_prose in zip(texts, scores, prose, strict=True):
            assert is_prose or score == pytest.approx(expect_score(text))
        assert all(server.answered[text] == 1 for text in texts)
        assert max(server.asked.values()) == 2
        again = model.score_texts(texts)
        assert [math.isnan(score) for score in again] == prose
        assert server.num_paid == 80


def test_a_text_that_the_engine_refuses_is_unscored_and_the_others_are_not():
    def reply(body, number):
        return (400, {}, b"context length") if "long" in read_text(body) else answer_politely(body, number)

    with serve(reply) as server:
        scores = load_reward_model(spec(server)).score_texts(["a", "long", "b"])
        assert scores[1].reason == "refused by the engine (400)"
        assert not np.isnan([scores[0], scores[2]]).any()


def test_errors_of_a_server_are_one_line_that_blames_no_document(tmp_path, monkeypatch):
    corpus, _ = make_corpus(tmp_path, 3)
    with serve(key=KEY) as server:
        with pytest.raises(PHFError, match="OPENAI_API_KEY, which is not set"):
            annotate(corpus, spec(server), "document")
        monkeypatch.setenv("MINE", "wrong")
        with pytest.raises(PHFError, match="MINE, which it refuses"):
            annotate(corpus, spec(server, key_env="MINE"), "document")
        monkeypatch.setenv("MINE", KEY)
        assert annotate(corpus, spec(server, key_env="MINE"), "document").num_scored_now == 3
    gone = spec(server, tries=1, logprobs="never")
    with pytest.raises(PHFError, match="no server answers at") as caught:
        annotate(corpus, gone, "document")
    assert "document" not in str(caught.value)
    with pytest.raises(PHFError, match="no server answers at"):
        score_samples(load_reward_model(gone), ["new"])
    with (
        serve(lambda body, number: (404, {}, b"no such model")) as server,
        pytest.raises(PHFError, match="404"),
    ):
        load_reward_model(spec(server))
    for wrong, says in (
        ("llm:toxicity", "names no model"),
        ("llm:toxicity,model=m,kind=server", "names no server"),
        ("llm:toxicity,modl=m", "did you mean 'model'"),
        ("llm:toxicity#rude,model=m,base_url=http://x/v1", "has no axis 'rude'"),
        ("llm:toxicity,model=m,base_url=x", "must begin with http"),
    ):
        with pytest.raises(PHFError, match=says):
            load_reward_model(wrong)


def test_an_outage_says_nothing_about_log_probabilities():
    with serve(lambda body, number: (503, {}, b"down")) as server:
        with pytest.raises(ScoringStoppedError, match="answers no first request"):
            load_reward_model(spec(server, tries=1))
        server.reply = answer_politely
        assert load_reward_model(spec(server)).identity.parameters["sampling"]["logprobs"]
    with serve(lambda body, number: (400, {}, b"wrong in any case")) as server:
        with pytest.raises(ScoringStoppedError, match="answers no first request"):
            load_reward_model(spec(server))
        assert [("logprobs" in body) for body in server.bodies] == [True, False]


def test_an_answer_that_drips_is_not_waited_for():
    def drip(body, number):
        def parts():
            for _ in range(40):
                yield b" "
                time.sleep(0.1)

        return 200, {}, parts()

    with serve(drip) as server:
        (score,) = load_reward_model(spec(server, timeout=0.5, tries=1, logprobs="never")).score_texts(["a"])
    assert score.reason == "no answer: ReadTimeout after 1 tries"  # all of it would be a damaged answer


def test_a_courier_whose_command_is_gone_waits_for_no_busy_server(cache):
    with serve(lambda body, number: (429, {"Retry-After": "60"}, b"later")) as server:
        engine = EngineSettings(kind="server", model="m", base_url=server.url, concurrency=2)
        courier = _Courier(engine, AnswerStore(), None)
        with courier:
            courier.send({"key": "a", "body": {"messages": [{"role": "user", "content": "| a"}]}})
            while not server.bodies:
                time.sleep(0.01)
            start = time.monotonic()
        assert time.monotonic() - start < 40
    assert AnswerStore().claim("a") == "mine"
