"""Blocks against a slow reference that is right at a glance, and the properties that training rests on."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fake_tokens import BAD_ID, END_ID, GOOD_ID, FakeTokens
from hypothesis import given, settings
from hypothesis import strategies as st

from phf.corpus.blocks import Blocks
from phf.corpus.store import build_corpus
from phf.corpus.tokens import cumulate, tokenize
from phf.errors import PHFError
from phf.records import BAD, CONTROL, END, GOOD, NO_LABEL, PAD, TEXT, Batch, DataRule

FIELDS = [field.name for field in fields(Batch)]


def reference_rows(tokens: FakeTokens, rule: DataRule, scores: np.ndarray, blocks: Blocks, epoch: int):
    """The rows of an epoch in the order of its stream, token by token. Takes only the two orders and the dropped
    control tokens from the plan."""
    plan = blocks._plan(epoch)
    first_segment = cumulate(tokens.document_segments)
    stream = []  # (id, kind, score, label)
    for page in plan.pages:
        stream.append((END_ID, END, np.nan, NO_LABEL))
        for k, ids in enumerate(tokens.documents[page]):
            segment = first_segment[page] + k
            label = rule.labels[segment]
            if plan.has_control[segment]:
                stream.append((GOOD_ID if label == GOOD else BAD_ID, CONTROL, np.nan, NO_LABEL))
            stream += [(i, TEXT, scores[segment], label) for i in ids]
    rows = []
    for start in range(0, len(stream), blocks.context):
        row = []
        position = 0
        for place in range(start, start + blocks.context):
            item = stream[place] if place < len(stream) else (END_ID, PAD, np.nan, NO_LABEL)
            if (
                place == len(stream) or item[1] == END
            ):  # the end after the last page stands in the padding's place
                position = 0 if blocks.isolate_documents else place - start
            target = (END_ID, PAD, np.nan, NO_LABEL)
            if place + 1 < len(stream):
                target = stream[place + 1]
            elif place + 1 == len(stream):
                target = (END_ID, END, np.nan, NO_LABEL)
            row.append((item[0], target[0], position, target[2], target[1], target[3]))
            position += 1
        rows.append(row)
    return rows


def assert_equal(found: Batch, rows: list) -> None:
    for index, name in enumerate(FIELDS):
        expected = [[cell[index] for cell in row] for row in rows]
        np.testing.assert_array_equal(getattr(found, name), np.array(expected), err_msg=name)


def assert_same(one: Batch, other: Batch) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@st.composite
def cases(draw):
    ids = st.integers(0, 899)
    segment = st.lists(ids, min_size=1, max_size=6)
    documents = draw(st.lists(st.lists(segment, max_size=5), min_size=1, max_size=12))
    is_train = np.array(draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents))), bool)
    keep = np.array(draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents))), bool)
    num_segments = sum(map(len, documents))
    labels = draw(
        st.lists(st.sampled_from([NO_LABEL, GOOD, BAD]), min_size=num_segments, max_size=num_segments)
    )
    k = next((k for k, document in enumerate(documents) if document), None)
    if k is None:
        documents, is_train, keep, k = (
            [*documents, [[7]]],
            np.append(is_train, True),
            np.append(keep, True),
            -1,
        )
        labels = [GOOD]
    is_train[k] = keep[k] = True
    rule = DataRule(keep, np.array(labels, np.uint8), draw(st.sampled_from([0.0, 0.3, 1.0])))
    tokens = FakeTokens(documents, is_train, draw(st.integers(1, 3)))
    scores = np.random.default_rng(0).random(tokens.num_segments).astype(np.float32)
    options = {
        "context": draw(st.integers(1, 9)),
        "seed": draw(st.integers(0, 3)),
        "isolate_documents": draw(st.booleans()),
    }
    return tokens, rule, scores, options


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(0, 3))
def test_blocks_are_those_of_the_reference(case, epoch) -> None:
    tokens, rule, scores, options = case
    blocks = Blocks(tokens, rule, scores, split="train", **options)
    rows = reference_rows(tokens, rule, scores, blocks, epoch)
    assert blocks.num_blocks == len(rows)
    order = blocks._plan(epoch).blocks
    assert sorted(order) == list(range(len(rows)))
    found = blocks.rows(epoch * len(rows) + np.arange(len(rows)))
    assert_equal(found, [rows[index] for index in order])
    in_order = list(blocks.iterate_in_order(10**9, batch_blocks=3))
    assert_equal(
        Batch(**{name: np.concatenate([getattr(batch, name) for batch in in_order]) for name in FIELDS}),
        reference_rows(tokens, rule, scores, blocks, 0),
    )


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 2))
def test_every_token_of_the_split_once_an_epoch(case, epoch) -> None:
    tokens, rule, scores, options = case
    blocks = Blocks(tokens, rule, scores, split="train", **options)
    batch = blocks.rows(epoch * blocks.num_blocks + np.arange(blocks.num_blocks))
    kept = [
        (document, labels)
        for document, labels, keep in zip(
            tokens.documents,
            np.split(rule.labels, np.cumsum(tokens.document_segments)[:-1]),
            rule.keep & tokens.is_train,
            strict=True,
        )
        if keep and document
    ]
    text = sorted(i for document, _ in kept for segment in document for i in segment)
    real = batch.kinds != PAD
    assert sorted(batch.targets[batch.kinds == TEXT]) == text
    assert sorted(batch.ids[real & (batch.ids < END_ID)]) == text
    assert (batch.ids[real] == END_ID).sum() == (batch.kinds == END).sum() == len(kept)
    num_labelled = sum(int((labels != NO_LABEL).sum()) for _, labels in kept)
    num_control = num_labelled - round(rule.drop_fraction * num_labelled)
    assert (batch.kinds == CONTROL).sum() == num_control
    assert real.sum() == blocks.num_tokens_per_epoch == len(text) + len(kept) + num_control


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 5), st.permutations(range(6)))
def test_a_step_depends_on_nothing_but_seed_and_step(case, batch_blocks, steps) -> None:
    tokens, rule, scores, options = case
    blocks = Blocks(tokens, rule, scores, split="train", **options)
    batches = {step: blocks.batch(step, batch_blocks) for step in steps}
    for step in range(6):
        fresh = Blocks(tokens, rule, scores, split="train", **options)
        assert_same(batches[step], fresh.batch(step, batch_blocks))
    whole = blocks.rows(np.arange(6 * batch_blocks))
    joined = {name: np.concatenate([getattr(batches[step], name) for step in range(6)]) for name in FIELDS}
    assert_same(whole, Batch(**joined))


def make_example(num_documents: int = 200, num_shards: int = 3):
    rng = np.random.default_rng(1)
    documents = [
        [rng.integers(0, 900, rng.integers(1, 12)).tolist() for _ in range(rng.integers(1, 9))]
        for _ in range(num_documents)
    ]
    tokens = FakeTokens(documents, rng.random(num_documents) < 0.9, num_shards)
    labels = rng.choice(np.array([GOOD, BAD], np.uint8), tokens.num_segments)
    scores = rng.random(tokens.num_segments).astype(np.float32)
    return tokens, DataRule(np.ones(num_documents, bool), labels, 0.1), scores


def test_conditional_with_every_token_dropped_is_mle() -> None:
    tokens, rule, scores = make_example()
    options = {"split": "train", "context": 32, "seed": 5}
    dropped = Blocks(tokens, replace(rule, drop_fraction=1.0), scores, **options)
    mle = Blocks(tokens, DataRule(rule.keep, np.zeros_like(rule.labels)), scores, **options)
    assert dropped.num_tokens_per_epoch == mle.num_tokens_per_epoch
    for step in (0, 3, 40):
        one, other = dropped.batch(step, 4), mle.batch(step, 4)
        assert not other.labels.any()
        assert one.labels.any()
        assert_same(replace(one, labels=other.labels), other)


def test_epochs_differ_in_pages_blocks_and_dropped_tokens() -> None:
    tokens, rule, scores = make_example()
    blocks = Blocks(tokens, rule, scores, split="train", context=32, seed=5)
    other_seed = Blocks(tokens, rule, scores, split="train", context=32, seed=6)
    for one, other in (
        (blocks._plan(0), blocks._plan(1)),
        (blocks._plan(0), other_seed._plan(0)),
    ):
        for name in ("pages", "blocks", "has_control"):
            assert (getattr(one, name) != getattr(other, name)).any(), name
    assert (blocks._plan(0).blocks != np.arange(blocks.num_blocks)).any()


def test_the_score_belongs_to_the_predicted_token() -> None:
    tokens = FakeTokens([[[1, 2], [3]]], np.array([True]))
    rule = DataRule(np.array([True]), np.array([GOOD, BAD], np.uint8))
    blocks = Blocks(tokens, rule, np.array([0.25, 0.75], np.float32), split="train", context=8, seed=0)
    batch = blocks.batch(0, 1)
    nan = np.nan
    assert batch.ids.tolist() == [[END_ID, GOOD_ID, 1, 2, BAD_ID, 3, END_ID, END_ID]]
    assert batch.targets.tolist() == [[GOOD_ID, 1, 2, BAD_ID, 3, END_ID, END_ID, END_ID]]
    assert batch.kinds.tolist() == [[CONTROL, TEXT, TEXT, CONTROL, TEXT, END, PAD, PAD]]
    np.testing.assert_array_equal(batch.scores, [[nan, 0.25, 0.25, nan, 0.75, nan, nan, nan]])
    assert batch.labels.tolist() == [[0, GOOD, GOOD, 0, BAD, 0, 0, 0]]
    assert batch.positions[0, :6].tolist() == [0, 1, 2, 3, 4, 5]
    assert {name: str(getattr(batch, name).dtype) for name in FIELDS} == {
        "ids": "int64",
        "targets": "int64",
        "positions": "int64",
        "scores": "float32",
        "kinds": "uint8",
        "labels": "uint8",
    }


def test_a_split_without_kept_tokens_is_refused() -> None:
    tokens, rule, scores = make_example(10)
    options = {"context": 32, "seed": 5}
    with pytest.raises(PHFError, match="no token of the train split is kept"):
        Blocks(tokens, replace(rule, keep=np.zeros(10, bool)), scores, split="train", **options)
    with pytest.raises(PHFError, match="scores"):
        Blocks(tokens, rule, scores[:-1], split="train", **options)
    missing = np.where(np.arange(len(scores)) == 3, np.float32(np.nan), scores)
    with pytest.raises(PHFError, match="1 kept segments have no score"):
        Blocks(tokens, rule, missing, split="train", **options)
    dropped = rule.keep & (np.arange(10) != np.searchsorted(np.cumsum(tokens.document_segments), 3, "right"))
    Blocks(tokens, replace(rule, keep=dropped), missing, split="train", **options)


def test_blocks_of_a_real_corpus_hold_its_text(tmp_path: Path) -> None:
    lines = [
        f'{{"text": "document {k} says <|bad|> and <|endoftext|>\\nthen é stops\\n"}}' for k in range(60)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    corpus = build_corpus([str(tmp_path / "texts.jsonl")], tmp_path / "corpus", bytes_per_shard=1000)
    assert len(corpus.shards) > 1
    cache = tokenize(corpus, "train:300", "lines")
    rule = DataRule(np.ones(60, bool), np.tile(np.array([GOOD, BAD], np.uint8), 60))
    blocks = Blocks(cache, rule, np.zeros(120, np.float32), split="train", context=16, seed=0)
    control = cache.tokenizer.control
    batches = list(blocks.iterate_in_order(10**9))
    ids = np.concatenate([batch.ids[batch.kinds != PAD] for batch in batches])
    assert (ids == control.bad).sum() == (ids == control.good).sum() == (ids == control.end).sum()
    pages = np.split(ids, np.flatnonzero(ids == control.end))[1:]
    texts = {cache.tokenizer.decode(page) for page in pages}
    assert texts == {document.text for document in corpus.iterate_documents("train")}
