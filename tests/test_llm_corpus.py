"""A corpus judged: budgets, kills, axes, and the student of a judge."""

import io
import json
import multiprocessing
import signal
import sqlite3
import sys
import time

import numpy as np
import pytest
from command_processes import start_command
from llm_server import (
    KEY,
    MULTI,
    answer_politely,
    complete,
    expect_score,
    make_corpus,
    own_cache,
    read_text,
    run_phf,
    serve,
    spec,
)

from phf.annotate.annotate import Annotation, annotate
from phf.config.budget import parse_budget
from phf.corpus.store import build_corpus
from phf.curate.sample import sample_documents
from phf.errors import PHFError
from phf.report.reward_page import summarise_reward_model
from phf.reward_models import load_reward_model
from phf.reward_models.llm.answers import Answer
from phf.reward_models.llm.store import AnswerStore
from phf.reward_training.distill import distill_reward_model
from phf.reward_training.labels import read_labels


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def rubric(tmp_path):
    path = tmp_path / "tone.yaml"
    path.write_text(MULTI)
    return path


def test_the_key_is_written_nowhere(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    corpus, _ = make_corpus(tmp_path, 3)
    with serve(key=KEY) as server:
        annotate(corpus, spec(server, key_env="MINE"), "document")
    files = [path for folder in (cache, corpus.path) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_budget_stops_cleanly_and_the_next_one_goes_on(tmp_path, capsys, monkeypatch):
    corpus, texts = make_corpus(tmp_path, 30)
    with serve() as server:
        given = ["annotate", corpus.path, "-r", spec(server), "-s", "document"]
        assert run_phf(monkeypatch, *given, "--budget", "12calls") == 2
        error = capsys.readouterr().err
        assert "toxicity: 30 calls (0 answers are kept already)" in error
        assert "the budget of 12calls is spent; every answer is kept" in error
        assert "Traceback" not in error
        assert server.num_paid == 12
        assert run_phf(monkeypatch, *given, "--budget", "1Mtokens") == 0
        assert "18 calls (12 answers are kept already)" in capsys.readouterr().err
        assert server.num_paid == 30
        assert run_phf(monkeypatch, *given, "--budget", "3USD") == 2
        assert "price_input" in capsys.readouterr().err
    assert run_phf(monkeypatch, "annotate", corpus.path, "-r", "pii", "--budget", "5calls") == 2
    assert "is for a language model" in capsys.readouterr().err
    scores = Annotation.open(corpus, spec(server), "document").join_shard(0)[2]
    assert len(scores) == len(texts)


def test_a_budget_holds_over_processes():
    with serve() as server:
        budget = parse_budget("10calls")
        context = multiprocessing.get_context("fork")
        workers = [
            context.Process(target=score_within, args=(spec(server), budget, half))
            for half in ([f"a{n}" for n in range(15)], [f"b{n}" for n in range(15)])
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert server.num_paid == 10


def score_within(spec, budget, texts):
    model = load_reward_model(spec)
    model.set_budget(budget)
    with pytest.raises(PHFError, match="is spent"):
        model.score_texts(texts)


def test_two_processes_that_want_the_same_answers_pay_once():
    texts = [f"text {number}" for number in range(20)]

    def reply(body, number):
        time.sleep(0.05)
        return answer_politely(body, number)

    with serve(reply) as server:
        load_reward_model(spec(server))
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=score_all, args=(spec(server), texts)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert server.num_paid == 20
        assert server.most_at_once > 1


def score_all(spec, texts):
    assert not np.isnan(load_reward_model(spec).score_texts(texts)).any()


def test_killed_three_times_every_answer_is_paid_once(tmp_path, cache):
    corpus, texts = make_corpus(tmp_path, 60)

    def reply(body, number):
        time.sleep(0.1)
        return answer_politely(body, number)

    with serve(reply) as server:
        given = ["annotate", corpus.path, "-r", spec(server, concurrency=4), "-s", "document"]
        for wanted in (5, 20, 35):
            command = start_command(*given, PHF_CACHE=str(cache), has_children=True)
            deadline = time.monotonic() + 60
            while server.num_paid < wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            command.send_signal(signal.SIGKILL)
            assert command.finish()[0] == -signal.SIGKILL
        code, error = start_command(*given, PHF_CACHE=str(cache), has_children=True).finish()
        assert code == 0, error
        assert {text: server.answered[text] for text in texts} == dict.fromkeys(texts, 1)
    scores = Annotation.open(corpus, given[3], "document").join_shard(0)[2]
    assert scores.tolist() == pytest.approx([expect_score(text) for text in texts])


def test_axes_are_annotations_of_their_own_from_one_answer(tmp_path, rubric):
    corpus, texts = make_corpus(tmp_path, 12)
    with serve() as server:
        whole = annotate(corpus, spec(server, rubric=rubric), "document")
        assert server.num_paid == 12
        rude = annotate(corpus, spec(server, rubric=f"{rubric}#rude"), "document")
        assert rude.num_scored_now == 0
        assert server.num_paid == 12
        found = {one.identity.name: one.join_shard(0)[2] for one in Annotation.list(corpus)}
    expected = np.array([expect_score(text) for text in texts])
    assert found["llm-tone-rude"] == pytest.approx(expected)
    assert found["llm-tone-clear"] == pytest.approx(1 - expected)
    assert whole.join_shard(0)[2] == pytest.approx(expected / 3 + 2 * (1 - expected) / 3)


def test_dry_run_asks_nothing_and_knows_what_is_kept(tmp_path, capsys, monkeypatch):
    corpus, texts = make_corpus(tmp_path, 10)
    with serve() as server:
        priced = spec(server, price_input=1, price_output=2)
        dry = ["annotate", corpus.path, "-r", priced, "-s", "document", "--dry-run", "--json"]
        assert run_phf(monkeypatch, *dry) == 0
        assert json.loads(capsys.readouterr().out)[0]["calls"] == 10
        assert server.bodies == []
        load_reward_model(priced).score_texts(texts[:4])
        asked = len(server.bodies)
        assert run_phf(monkeypatch, *dry) == 0
        assert len(server.bodies) == asked
    (plan,) = json.loads(capsys.readouterr().out)
    assert (plan["calls"], plan["kept"]) == (6, 4)
    assert plan["prompt_tokens"] == pytest.approx(6 * 200, rel=0.02)  # as the server has counted
    assert plan["money"] == pytest.approx((plan["prompt_tokens"] + 2 * plan["answer_tokens"]) / 1e6)
    assert not (corpus.path / "annotations").exists()


def test_a_minus_and_a_sum_take_a_judge(tmp_path):
    with serve() as server:
        own = expect_score("abc")
        assert load_reward_model(f"-{spec(server)}").score("abc", [3]) == pytest.approx([1 - own])
        both = load_reward_model(f"0.5*{spec(server)} + 2*pii")
        assert both.score("abc", [3]) == pytest.approx([own / 2])


def test_the_answers_survive_a_journal_that_ends_in_the_middle(cache):
    store = AnswerStore()
    for number in range(20):
        store.write(str(number), Answer(str(number % 5)))
    journal = cache / "answers" / "answers.sqlite-wal"
    copy = cache / "copy"
    copy.mkdir()
    (copy / "answers.sqlite").write_bytes((cache / "answers" / "answers.sqlite").read_bytes())
    (copy / "answers.sqlite-wal").write_bytes(journal.read_bytes()[:-500])
    kept = AnswerStore(copy).read([str(number) for number in range(20)])
    assert len(kept) == 19
    assert sqlite3.connect(copy / "answers.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_student_of_a_judge_has_its_cost_and_its_agreement_and_is_reviewed(tmp_path, capsys, monkeypatch):
    texts = [f"word{number % 7} word{number % 11} number {number}" for number in range(1500)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = build_corpus([str(source)], tmp_path / "corpus", validation_fraction=0)
    labels = tmp_path / "labels.jsonl"
    rows = [
        {"text": f"word{number % 7} label {number}", "label": int(number % 7 == 3)} for number in range(42)
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = tmp_path / "student"
    with serve(by_words) as server:
        judge = spec(server, price_input=1, price_output=1)
        teacher = load_reward_model(judge)
        documents, _ = sample_documents(corpus, "document", 1500, seed=0, scored_by=teacher.identity)
        people = read_labels(labels)
        found = distill_reward_model(documents, teacher, student, seed=0, segments="document", labels=people)
        assert server.num_paid == 1500 + 42
        asked = ["label", corpus.path, "--review", student, "-r", judge, "-s", "document"]
        out = tmp_path / "reviewed.jsonl"
        monkeypatch.setattr(sys, "stdin", io.StringIO("b\nq\n"))
        assert run_phf(monkeypatch, *asked, "-o", out) == 0
        unknown = [*asked[:5], judge.replace("toxicity", "pii"), *asked[6:]]
        assert run_phf(monkeypatch, *unknown, "-o", out) == 2
        assert "has no kept answer among 1,500 segments" in capsys.readouterr().err
        assert server.num_paid == 1500 + 42
    shown = {row.measure: row.estimate for row in found.measurements if row.at is None}
    assert shown["teacher_answers"].mean == 1500
    assert shown["teacher_tokens"].mean == 1500 * 201
    assert shown["teacher_money"].mean == pytest.approx(1500 * 201 / 1e6)
    assert shown["alpha"].low < shown["alpha"].mean < shown["alpha"].high
    assert shown["alpha"].mean > 0.9
    assert shown["teacher_people_spearman"].mean == pytest.approx(1)
    assert shown["teacher_people_alpha"].mean == pytest.approx(1)
    assert 0.9 < shown["student_people_alpha"].mean < 1
    assert found.teaching.target == "share of the scale"
    assert found.teaching.num_labels == 42
    assert any("the teacher's answers" in line for line in summarise_reward_model(found))
    (reviewed,) = map(json.loads, out.read_text().splitlines())
    apart = np.abs(
        np.array(load_reward_model(str(student)).score_texts(texts)) - ["word3" in text for text in texts]
    )
    assert apart[texts.index(reviewed["text"])] == pytest.approx(apart.max())


def by_words(body, number):
    level = 5 if "word3" in read_text(body) else 1
    return complete(str(level), [{"token": str(level), "logprob": 0.0}] if body.get("logprobs") else None)
