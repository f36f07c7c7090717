"""lm-evaluation-harness: the whole prefix reaches the model, is never scored, and no control token is in the softmax."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tiny_models import next_logits, tiny_llama

from phf.errors import PHFError
from phf.evaluate.measures.harness import create_harness_lm, measure_harness
from phf.model import lm
from phf.tokens.tokenizer import Tokenizer, train_tokenizer

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

ROWS = [
    {"question": "the cat", "choices": [" sleeps", " sleep"], "answer": 0},
    {"question": "the cats", "choices": [" sleeps", " sleep now and for ever"], "answer": 1},
    {"question": "a cat <|bad|>", "choices": [" sleeps", " sleep"], "answer": 0},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["the cats sleep the cat sleeps"] * 20), 259 + 10)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_llama(tokenizer, seed=0, context=32)
    model.lm_head.weight.data[tokenizer.control.good :] *= 2  # it likes control tokens and padding
    return model


@pytest.fixture
def seen(model):
    """The ids that reach the model while a test runs."""
    calls: list[torch.Tensor] = []

    def keep(_, args, kwargs) -> None:
        calls.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    yield calls
    handle.remove()


def write_task(folder: Path, name: str, **more) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
        **more,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))
    return str(folder / f"{name}.yaml")


def prefix_of(tokenizer: Tokenizer, mode: str) -> list[int]:
    control = tokenizer.control
    return [control.end, *{"good": [control.good], "bad": [control.bad]}.get(mode, [])]


def slow_log_prob(model, tokenizer: Tokenizer, page: list[int], continuation: list[int]) -> float:
    is_text = ~np.isin(np.arange(tokenizer.vocab_size), tokenizer.control.all)
    total = 0.0
    for place, token in enumerate(continuation):
        logits = next_logits(model, [*page, *continuation[:place]], tokenizer.vocab_size)
        total += logits[token] - logsumexp(logits[is_text])
    return total


@pytest.mark.parametrize("mode", ["good", "bad", "none"])
def test_a_task_of_ones_own(model, tokenizer, mode, tmp_path, monkeypatch, seen) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = write_task(tmp_path, "cats")
    measured = measure_harness(model, tokenizer, [task], [mode], seed=0)
    found = measured.measurements
    prefix = prefix_of(tokenizer, mode)
    right = 0
    for row in ROWS:
        start = tokenizer.encode(row["question"])
        scores = [
            slow_log_prob(
                model, tokenizer, [*prefix, *start], tokenizer.encode(row["question"] + choice)[len(start) :]
            )
            for choice in row["choices"]
        ]
        right += int(np.argmax(scores) == row["answer"])
    (only,) = found
    (own,) = measured.items
    assert (own.place, len(set(own.names))) == (only.place, 3)
    assert np.mean(own.values) == pytest.approx(right / 3)
    assert only.estimate.mean == pytest.approx(right / 3)
    assert (only.of, only.mode, only.estimate.count) == ("cats: acc", mode, 3)
    margin = 1.96 * np.sqrt(right / 3 * (1 - right / 3) / 2)
    assert only.estimate.low == pytest.approx(right / 3 - margin)
    assert only.estimate.high == pytest.approx(right / 3 + margin)
    for ids in (ids for ids in seen if ids.shape[1] > 1 and ids[0, 0] == tokenizer.control.end):
        assert (ids[:, : len(prefix)] == torch.tensor(prefix)).all()


@pytest.mark.parametrize("mode", ["good", "none"])
def test_log_likelihoods_one_by_one(model, tokenizer, mode, tmp_path, seen) -> None:
    """With context, without any, too long for the model, and rolling over several windows."""
    from lm_eval.api.instance import Instance

    tokenizer.save(tmp_path)
    wrapped = create_harness_lm(model, tokenizer, tmp_path, mode, batch_size=4)
    prefix, context = prefix_of(tokenizer, mode), 32
    pairs = [
        ("the cat", " sleeps"),
        ("", "the cats"),
        ("x" * 50, " sleep"),
        ("<|endoftext|>the", " cat<|good|>"),
    ]
    requests = [
        Instance("loglikelihood", {}, pair, number, metadata=("t", number, 1))
        for number, pair in enumerate(pairs)
    ]
    found = [value for value, _ in wrapped.loglikelihood(requests, disable_tqdm=True)]
    for (before, after), value in zip(pairs, found, strict=True):
        start = tokenizer.encode(before)
        rest = tokenizer.encode(before + after)[len(start) :]
        start = start[max(0, len(start) + len(rest) - 1 + len(prefix) - context) :]
        assert value == pytest.approx(slow_log_prob(model, tokenizer, [*prefix, *start], rest), abs=1e-3)
    for ids in seen:
        assert ids.shape[1] <= context
        assert (ids[:, : len(prefix)] == torch.tensor(prefix)).all()
        assert (ids == tokenizer.control.good).sum() == (len(prefix) - 1) * len(ids), (
            "text became a control token"
        )

    seen.clear()
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh "), 100))
    (rolled,) = wrapped.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", 0, 1))], disable_tqdm=True
    )
    rows = [row for found in seen for row in found.tolist()]
    ids, room, expected = tokenizer.encode(text), context + 1 - len(prefix), 0.0
    for start in range(0, len(ids), room):
        part = ids[start : start + room]
        before = ids[max(start - (room - len(part)), 0) : start]
        expected += slow_log_prob(model, tokenizer, [*prefix, *before], part)
    assert rolled == pytest.approx(expected, abs=1e-2)
    assert len(rows) == -(-len(ids) // room) > 2
    assert all(row[: len(prefix)] == prefix for row in rows)


def test_generation_starts_behind_the_prefix_and_writes_no_control_token(
    model, tokenizer, tmp_path, seen, monkeypatch
) -> None:
    from lm_eval.api.instance import Instance

    liked = model.lm_head.weight.data.clone()
    liked[tokenizer.control.good :] *= 40  # greedy decoding would take one of them at once
    monkeypatch.setattr(model.lm_head.weight, "data", liked)
    tokenizer.save(tmp_path)
    wrapped = create_harness_lm(model, tokenizer, tmp_path, "good", batch_size=4)
    settings = {"until": ["\n\n"], "max_gen_toks": 8}
    requests = [
        Instance("generate_until", {}, (prompt, settings), number, metadata=("t", number, 1))
        for number, prompt in enumerate(["the cat", "x" * 60])
    ]
    found = wrapped.generate_until(requests, disable_tqdm=True)
    assert all("<|" not in text for text in found)
    prefix = prefix_of(tokenizer, "good")
    firsts = [row for ids in seen if ids.shape[1] > 1 for row in ids.tolist()]
    assert len(firsts) == 2
    for row in firsts:
        own = row[row.index(tokenizer.control.good) - 1 :]
        assert own[:2] == prefix
        assert len(own) <= 32 - 8
    is_control = {*tokenizer.control.all, *range(tokenizer.vocab_size, model.config.vocab_size)}
    written = [row for ids in seen if ids.shape[1] == 1 for row in ids.tolist()]
    assert is_control.isdisjoint(token for row in written for token in row)


def test_an_additive_model_has_its_mode_folded_in(model, tokenizer, tmp_path, seen) -> None:
    from lm_eval.api.instance import Instance

    tokenizer.save(tmp_path)
    conditions = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    requests = [Instance("loglikelihood", {}, ("the", " cat"), 0, metadata=("t", 0, 1))]
    values = {}
    for mode in ("good", "bad", "none"):
        wrapped = create_harness_lm(model, tokenizer, tmp_path, mode, conditions=conditions)
        ((values[mode], _),) = wrapped.loglikelihood(requests, disable_tqdm=True)
    assert len(set(values.values())) == 3
    start = [tokenizer.control.end, *tokenizer.encode("the")]
    folded = lm.fold_condition(model, tokenizer.control, conditions[1])
    assert values["good"] == pytest.approx(
        slow_log_prob(folded, tokenizer, start, tokenizer.encode("the cat")[len(start) - 1 :]), abs=1e-3
    )
    assert values["none"] == pytest.approx(
        slow_log_prob(model, tokenizer, start, tokenizer.encode("the cat")[len(start) - 1 :]), abs=1e-3
    )


def test_what_cannot_be_done_is_one_line(model, tokenizer, tmp_path, monkeypatch) -> None:
    for tasks, message in (
        ([str(tmp_path / "no.yaml")], "does not exist"),
        ([write_task(tmp_path, "broken", dataset_kwargs={"data_files": "/nowhere"})], "broken"),
    ):
        with pytest.raises(PHFError, match=message) as caught:
            measure_harness(model, tokenizer, tasks, ["none"], seed=0)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(PHFError, match=r"pip install 'phf\[harness\]'"):
        measure_harness(model, tokenizer, ["x"], ["none"], seed=0)


def test_a_task_that_the_harness_does_not_know(model, tokenizer, monkeypatch) -> None:
    import lm_eval.tasks

    def manage_none(include_path, include_defaults):
        """Reading the harness's own ten thousand files takes ten seconds."""
        assert include_defaults, "a name may be one of its own"
        return manage(include_path=include_path, include_defaults=False)

    manage = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manage_none)
    with pytest.raises(PHFError, match="no-such-task-here"):
        measure_harness(model, tokenizer, ["no-such-task-here"], ["none"], seed=0)
