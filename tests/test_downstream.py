"""Finetuning as a classifier: the pretrained weights are in it, the prefix reaches it, and scores are GLUE's."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel

from phf.config.evaluate import DownstreamConfig
from phf.errors import PHFError
from phf.evaluate.measures import downstream
from phf.evaluate.measures.downstream import (
    ClassificationTask,
    LabelledText,
    constant_baseline,
    create_classifier,
    measure_downstream,
    read_task,
    score_answers,
)
from phf.results import Measurements
from phf.tokens.tokenizer import Tokenizer, train_tokenizer

SETTINGS = DownstreamConfig(epochs=4, batch_size=8, learning_rate=1e-2, num_seeds=2)
ONE_SEED = DownstreamConfig(num_seeds=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["good bad film the a was"] * 20), 259 + 8)


def make_task(metric="accuracy", num: int = 48) -> ClassificationTask:
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(2 * num):
        is_good = bool(rng.random() < 0.6)
        words = [*rng.choice(["the", "film", "was", "a"], rng.integers(1, 5)), "good" if is_good else "bad"]
        examples.append(
            LabelledText(
                (" ".join(words),),
                ("1.5" if is_good else "0.25") if metric == "pearson" else str(int(is_good)),
            )
        )
    return ClassificationTask("films", metric, tuple(examples[:num]), tuple(examples[num:]))


def test_a_task_is_learned_over_seeds_and_prefixes(tokenizer) -> None:
    model = tiny_llama(tokenizer, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []
    found = measure_downstream(
        model,
        tokenizer,
        [make_task()],
        ["none", "good"],
        SETTINGS,
        progress=lambda *c: calls.append(c),
    )
    assert calls[-1] == ("finetuning on films", 4, 4)
    rows, (none, _) = Measurements(found.measurements), found.facts
    assert [row.mode for row in rows.of("downstream")] == ["none", "good"]
    score, baseline = (
        rows.find(name, "none", of="films: accuracy") for name in ("downstream", "downstream_baseline")
    )
    assert score.mean == pytest.approx(np.mean(none["seeds"]))
    assert score.mean > baseline.mean + 0.1 > 0.6
    assert score.count == 2
    assert (none["num_train"], none["num_dev"], none["cut_share"]) == (48, 48, 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the pretrained weights stay as they are"
    again = measure_downstream(
        model, tokenizer, [make_task()], ["none"], SETTINGS.model_copy(update={"num_seeds": 1})
    )
    assert again.facts[0]["seeds"] == none["seeds"][:1]


def test_what_the_classifier_reads(tokenizer, monkeypatch) -> None:
    seen = []

    def keep(model, tokenizer, task, train, dev, settings, seed) -> np.ndarray:
        seen.append((train, dev))
        return np.zeros(len(dev))

    monkeypatch.setattr(downstream, "finetune_classifier", keep)
    task = ClassificationTask(
        "t",
        "accuracy",
        (LabelledText(("a<|bad|>", "the"), "no"), LabelledText(("was", "x" * 99), "yes")),
        (LabelledText(("a", "b"), "yes"),),
    )
    model = tiny_llama(tokenizer, seed=0, context=32)
    found = measure_downstream(model, tokenizer, [task], ["none", "good", "bad"], ONE_SEED)
    control = tokenizer.control
    for (train, dev), prefix in zip(
        seen, ([control.end], [control.end, control.good], [control.end, control.bad]), strict=True
    ):
        assert train[0] == {"input_ids": [*prefix, *tokenizer.encode("a<|bad|>\nthe")], "labels": 0}
        assert train[1]["input_ids"] == [*prefix, *tokenizer.encode("was\n" + "x" * 99)[: 32 - len(prefix)]]
        assert dev == [{"input_ids": [*prefix, *tokenizer.encode("a\nb")], "labels": 1}]
    assert [row.estimate.mean for row in found.measurements if row.measure == "downstream"] == [0, 0, 0]
    seen.clear()
    conditions = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    measure_downstream(model, tokenizer, [task], ["good"], ONE_SEED, conditions=conditions)
    assert seen[0][1][0]["input_ids"][:2] == [control.end, *tokenizer.encode("a")]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_trunk_is_the_pretrained_one_and_padding_is_not_read(tokenizer, kind) -> None:
    if kind == "llama":
        model = tiny_llama(tokenizer, seed=0)
    else:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=32, n_embd=16, n_layer=1, n_head=2,
                       bos_token_id=tokenizer.control.end, eos_token_id=tokenizer.control.end)
        ).eval()  # fmt: skip
    end = tokenizer.control.end
    classifier = create_classifier(model, 3, end).eval()
    ids = torch.tensor([[end, 4, 5, 6]])
    padded = torch.tensor([[end, 4, 5, 6, end, end]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, -1]
        alone = classifier(input_ids=ids).logits
        assert torch.allclose(alone[0], classifier.score(hidden), atol=1e-5)
        assert torch.allclose(alone, classifier(input_ids=padded, attention_mask=mask).logits, atol=1e-5)


def test_a_regression_and_a_cut_training_set(tokenizer) -> None:
    model = tiny_llama(tokenizer, seed=0)
    settings = DownstreamConfig(epochs=6, batch_size=8, learning_rate=1e-2, max_train=40, num_seeds=1)
    found = measure_downstream(model, tokenizer, [make_task("pearson")], ["none"], settings)
    score, baseline = (row.estimate for row in found.measurements)
    assert score.mean > 0.3
    assert baseline.mean == 0
    assert found.facts[0]["num_train"] == 40
    assert np.isnan(score.low)


def test_metrics_and_their_baselines() -> None:
    labels = ["0"] * 6 + ["1"] * 2
    dev = tuple(LabelledText(("x",), label) for label in labels)
    answers = np.array([0, 0, 0, 0, 0, 1, 1, 0], float)
    tasks = {metric: ClassificationTask("t", metric, dev, dev) for metric in ("accuracy", "f1", "mcc")}
    assert score_answers(tasks["accuracy"], answers) == 6 / 8
    assert score_answers(tasks["f1"], answers) == pytest.approx(1 / 2)
    assert score_answers(tasks["mcc"], answers) == pytest.approx((1 * 5 - 1 * 1) / np.sqrt(2 * 2 * 6 * 6))
    assert constant_baseline(tasks["accuracy"]) == 6 / 8
    assert constant_baseline(tasks["f1"]) == pytest.approx(2 * 0.25 / 1.25)
    assert constant_baseline(tasks["mcc"]) == 0


def test_glue_files(tmp_path) -> None:
    folder = tmp_path / "CoLA"
    folder.mkdir()
    (folder / "train.tsv").write_text('sentence\tlabel\nhe said "yes\t1\nhe yes\t0\n')
    (folder / "dev.tsv").write_text("sentence\tlabel\nhe\t0\n")
    task = read_task(str(folder))
    assert (task.name, task.metric, task.labels) == ("CoLA", "mcc", ["0", "1"])
    assert task.train[0] == LabelledText(('he said "yes',), "1")
    pair = tmp_path / "rte"
    pair.mkdir()
    for name in ("train", "validation"):
        (pair / f"{name}.tsv").write_text(
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
        )
    task = read_task(str(pair), "f1")
    assert (task.metric, task.labels) == ("f1", ["entailment", "not_entailment"])
    assert task.dev[1] == LabelledText(("c", "d"), "not_entailment")


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        (None, "sentence\tlabel\na\t1\n", "train.tsv does not exist"),
        ("sentence\tlabel\na\t1\n", None, "dev.tsv does not exist"),
        ("a\tb\n1\t2\n", "a\tb\n1\t2\n", "has the columns a, b"),
        ("sentence\tlabel\na\t1\nb\n", "sentence\tlabel\na\t1\n", "row 2 has too few"),
        ("sentence\tlabel\na\t1\nb\t1\n", "sentence\tlabel\na\t1\n", "has 1 labels"),
        ("sentence\tlabel\na\t1\nb\t0\n", "sentence\tlabel\na\t2\n", "label '2' in dev alone"),
        ("sentence\tlabel\n", "sentence\tlabel\na\t2\n", "0 training"),
    ],
)
def test_a_wrong_task_is_one_line(tmp_path, train, dev, message) -> None:
    for name, text in (("train.tsv", train), ("dev.tsv", dev)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(PHFError, match=message) as caught:
        read_task(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["/nowhere", "nowhere/glue-that-is-not:sst2"])
def test_a_task_that_is_not_there(source) -> None:
    with pytest.raises(PHFError, match="nowhere"):
        read_task(source)


def test_a_regression_needs_numbers(tmp_path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\na\tmuch\n")
    with pytest.raises(PHFError, match="'much' is no number"):
        read_task(str(tmp_path), "pearson")
