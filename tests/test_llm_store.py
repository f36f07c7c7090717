"""Answers that were paid for are kept, claimed by one process at a time, and counted."""

import multiprocessing
import time

import pytest
from llm_server import (
    own_cache,
)

from phf.config.budget import Budget, Spent, parse_budget
from phf.errors import PHFError
from phf.reward_models.convert import clear_cache
from phf.reward_models.llm.answers import Answer
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import ScoringStoppedError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return own_cache(tmp_path, monkeypatch)


def test_a_claim_holds_while_its_process_lives_and_no_longer(cache):
    store = AnswerStore()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=claim_and_wait, args=(theirs,))
    other.start()
    assert ours.recv() == "mine"
    assert store.claim("a") == "another's"
    other.kill()
    other.join()
    assert store.claim("a") == "mine"
    assert (
        store.claim("a") == "mine"
    )  # a second thread of this process never asks for the same: its caller holds each key once
    store.write("a", Answer("3"))
    assert store.claim("a") == "answered"
    assert store.read(["a", "b"]) == {"a": Answer("3")}
    store.close()
    assert [path.name for path in (cache / "answers").glob("*.claim")] == []


def claim_and_wait(pipe):
    pipe.send(AnswerStore().claim("a"))
    time.sleep(60)


def test_answers_outlive_phf_cache_clear(cache):
    store = AnswerStore()
    store.write("a", Answer("3", [("3", {"3": -0.5})], 7, 1))
    assert clear_cache() == (0, [])
    assert AnswerStore().read(["a"])["a"].tokens == [("3", {"3": -0.5})]


def test_a_damaged_store_is_one_line(cache):
    (cache / "answers").mkdir(parents=True)
    (cache / "answers" / "answers.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ScoringStoppedError, match="where paid answers are kept"):
        AnswerStore()


def test_budgets_are_read_and_counted():
    assert [
        (budget.kind, budget.amount) for budget in map(parse_budget, ("5k", "2Mtokens", "3.50USD", "1calls"))
    ] == [("calls", 5000.0), ("tokens", 2e6), ("money", 3.5), ("calls", 1.0)]
    with pytest.raises(PHFError, match=r"5000calls, 2Mtokens or 3.50USD"):
        parse_budget("plenty")
    store, budget = AnswerStore(), Budget("tokens", 100, "100tokens")
    assert store.spend(budget, Spent(1, 80))
    assert not store.spend(budget, Spent(1, 80))
    assert store.spend(budget, Spent(0, -70), at_most=False)
    assert store.spend(budget, Spent(1, 80))
    assert not store.spend(budget, Spent(1, 11))
    assert store.spend(budget, Spent(1, 11), at_most=False)
