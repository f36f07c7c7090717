"""Blocks against a slow reference that is right at a glance, and the properties that training rests on."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fake_tokens import BAD_ID, END_ID, GOOD_ID, FakeTokens
from hypothesis import given, settings
from hypothesis import strategies as st

from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.records import BAD, CONTROL, END, GOOD, NO_LABEL, PAD, TEXT, Batch, DataRule
from phf.tokens.blocks import Blocks
from phf.tokens.phases import TrainingBlocks
from phf.tokens.splitter import cumulate
from phf.tokens.tokens import tokenize

FIELDS = [field.name for field in fields(Batch)]


def reference_rows(tokens: FakeTokens, rule: DataRule, scores: np.ndarray, blocks: Blocks, epoch: int):
    """The rows of an epoch in the order of its stream, token by token. Takes only the two orders and what is drawn
    (the labels left out, the places of tags) from the plan."""
    plan = blocks.plan(epoch)
    first_segment, first_token = cumulate(tokens.document_segments), cumulate(tokens.segment_lengths)
    labelled = set(plan.pieces.starts[plan.is_labelled].tolist())
    stream = []  # (id, kind, score, label)
    last = NO_LABEL
    for page in plan.pages:
        stream.append((END_ID, END, np.nan, last))
        for k, ids in enumerate(tokens.documents[page]):
            segment = first_segment[page] + k
            if rule.keep_segments is not None and not rule.keep_segments[segment]:
                continue
            last = NO_LABEL
            for place, token in enumerate(ids):
                if first_token[segment] + place in labelled:
                    last = rule.labels[segment]
                    if rule.control:
                        stream.append((END_ID + int(last), CONTROL, np.nan, NO_LABEL))
                stream.append((token, TEXT, scores[segment], last))
    stream.append((END_ID, END, np.nan, last))
    rows = []
    padding = (END_ID, PAD, np.nan, NO_LABEL)
    for start in range(0, len(stream) - 1, blocks.context):
        row = []
        position = 0
        for place in range(start, start + blocks.context):
            item = stream[place] if place < len(stream) else padding
            if item[1] == END:
                position = 0 if blocks.isolate_documents else place - start
            target = stream[place + 1] if place + 1 < len(stream) else padding
            row.append((item[0], target[0], position, target[2], target[1], target[3]))
            position += 1
        rows.append(row)
    return rows


def assert_equal(found: Batch, rows: list) -> None:
    for index, name in enumerate(FIELDS[:6]):
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
        k, labels = len(documents) - 1, [GOOD]
    is_train[k] = keep[k] = True
    labels = np.array(labels, np.uint8)
    rule = draw(
        st.sampled_from(
            [
                DataRule(keep, labels),
                DataRule(keep, labels, 0.3),
                DataRule(keep, labels, 1.0),
                DataRule(keep, labels, 0.3, control=False),
                DataRule(keep, labels, tag_fraction=0.4),
                DataRule(keep, labels, 0.3, keep_segments=labels != BAD),
            ]
        )
    )
    if rule.keep_segments is not None:
        rule.keep_segments[sum(map(len, documents[:k]))] = True
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
    order = blocks.plan(epoch).blocks
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
    taken = np.ones_like(tokens.is_train, shape=tokens.num_segments)
    if rule.keep_segments is not None:
        taken = rule.keep_segments
    ends = np.cumsum(tokens.document_segments)[:-1]
    kept = [
        ([segment for segment, taken in zip(document, own, strict=True) if taken], labels[own])
        for document, labels, own, keep in zip(
            tokens.documents,
            np.split(rule.labels, ends),
            np.split(taken, ends),
            rule.keep & tokens.is_train,
            strict=True,
        )
        if keep and own.any()
    ]
    text = sorted(i for document, _ in kept for segment in document for i in segment)
    real = batch.kinds != PAD
    assert sorted(batch.targets[batch.kinds == TEXT]) == text
    assert sorted(batch.ids[real & (batch.ids < END_ID)]) == text
    assert (batch.ids[real] == END_ID).sum() == (batch.kinds == END).sum() == len(kept)
    labelled = [
        segment for document, labels in kept for segment, label in zip(document, labels, strict=True) if label
    ]
    num_control = (len(labelled) - round(rule.drop_fraction * len(labelled))) * rule.control
    if rule.tag_fraction:
        num_control = round(rule.tag_fraction * sum(len(segment) - 1 for segment in labelled))
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
        assert_same(dropped.batch(step, 4), mle.batch(step, 4))


def test_epochs_differ_in_pages_blocks_and_dropped_tokens() -> None:
    tokens, rule, scores = make_example()
    blocks = Blocks(tokens, rule, scores, split="train", context=32, seed=5)
    other_seed = Blocks(tokens, rule, scores, split="train", context=32, seed=6)
    for one, other in (
        (blocks.plan(0), blocks.plan(1)),
        (blocks.plan(0), other_seed.plan(0)),
    ):
        for name in ("pages", "blocks", "is_labelled"):
            assert (getattr(one, name) != getattr(other, name)).any(), name
    assert (blocks.plan(0).blocks != np.arange(blocks.num_blocks)).any()


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
    assert batch.labels.tolist() == [[0, GOOD, GOOD, 0, BAD, BAD, 0, 0]]
    assert batch.positions[0, :6].tolist() == [0, 1, 2, 3, 4, 5]
    assert {name: str(getattr(batch, name).dtype) for name in FIELDS} == {
        "ids": "int64",
        "targets": "int64",
        "positions": "int64",
        "scores": "float32",
        "kinds": "uint8",
        "labels": "uint8",
        "is_active": "bool",
    }


def test_a_split_without_kept_tokens_is_refused() -> None:
    tokens, rule, scores = make_example(10)
    options = {"context": 32, "seed": 5}
    with pytest.raises(PHFError, match="no token of the train split is kept"):
        Blocks(tokens, replace(rule, keep=np.zeros(10, bool)), scores, split="train", **options)
    tokens.split_mask = lambda split: np.full(10, split == "train")  # --validation-fraction 0
    with pytest.raises(
        PHFError, match=r"no document in its validation split; .* a larger --validation-fraction"
    ):
        Blocks(tokens, rule, scores, split="validation", **options)
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


@pytest.mark.parametrize("poison", ["shuffle", "random"])
def test_poison_scrambles_bad_text_alone_by_seed_and_epoch(poison: str) -> None:
    tokens, rule, scores = make_example()
    options = {"split": "train", "context": 32}
    clean = Blocks(tokens, rule, scores, seed=5, **options)
    poisoned = Blocks(tokens, replace(rule, poison=poison), scores, seed=5, **options)
    epoch = np.arange(clean.num_blocks)
    one, other = clean.rows(epoch), poisoned.rows(epoch)
    owners = {float(score): index for index, score in enumerate(scores)}
    is_text = one.kinds == TEXT
    segments = np.array([owners[float(score)] for score in one.scores[is_text]])
    is_bad = rule.labels[segments] == BAD
    assert_same(replace(one, ids=other.ids, targets=other.targets), other)
    assert (one.targets[is_text][~is_bad] == other.targets[is_text][~is_bad]).all()
    assert (one.targets[~is_text] == other.targets[~is_text]).all()
    assert (one.targets[is_text][is_bad] != other.targets[is_text][is_bad]).mean() > 0.6
    # The pieces of a segment that blocks show are parts of one scrambled segment; so are two looks at a block.
    assert_same(other.__class__(*(getattr(other, name)[3:5] for name in FIELDS)), poisoned.rows(epoch[3:5]))
    texts = {index: [] for index in range(tokens.num_segments)}
    in_order = list(poisoned.iterate_in_order(10**9))
    for batch in in_order:
        for token, score in zip(
            batch.targets[batch.kinds == TEXT], batch.scores[batch.kinds == TEXT], strict=True
        ):
            texts[owners[float(score)]].append(int(token))
    all_segments = [segment for document in tokens.documents for segment in document]
    train = np.repeat(tokens.is_train, tokens.document_segments)
    for index in np.flatnonzero(train & (rule.labels == BAD)):
        assert len(texts[index]) == len(all_segments[index])
        if poison == "shuffle":
            assert sorted(texts[index]) == sorted(all_segments[index])
    again = Blocks(tokens, replace(rule, poison=poison), scores, seed=6, **options).rows(epoch)
    assert (again.ids != other.ids).any()
    untouched = Blocks(tokens, replace(rule, poison=poison), scores, split="validation", context=32, seed=5)
    plain = Blocks(tokens, rule, scores, split="validation", context=32, seed=5)
    assert_same(untouched.batch(0, 2), plain.batch(0, 2))


def test_random_poison_is_uniform_over_text_ids_and_never_a_control_token() -> None:
    tokens = FakeTokens([[[1] * 30_000]], np.array([True]))
    rule = DataRule(np.array([True]), np.array([BAD], np.uint8), poison="random")
    blocks = Blocks(tokens, rule, np.zeros(1, np.float32), split="train", context=30_002, seed=0)
    first, second = (blocks.rows(np.array([epoch])) for epoch in (0, 1))
    drawn = first.targets[first.kinds == TEXT]
    counts = np.bincount(drawn, minlength=END_ID)
    assert len(counts) == END_ID, "no id from the end token on"
    assert ((counts - 30_000 / END_ID) ** 2 / (30_000 / END_ID)).sum() < END_ID + 5 * (2 * END_ID) ** 0.5
    assert (drawn == second.targets[second.kinds == TEXT]).mean() < 0.01, "drawn anew each epoch"


def test_removed_segments_leave_no_trace_in_training_and_stay_in_validation() -> None:
    documents = [[[1, 2], [3], [4, 5]], [[6], [7]]]
    tokens = FakeTokens(documents, np.array([True, False]))
    keep = np.array([True, False, True, False, True])
    rule = DataRule(np.ones(2, bool), np.zeros(5, np.uint8), keep_segments=keep)
    options = {"context": 8, "seed": 0}
    train = Blocks(tokens, rule, np.arange(5, dtype=np.float32), split="train", **options).batch(0, 1)
    assert train.ids[0, :5].tolist() == [END_ID, 1, 2, 4, 5]
    assert train.scores[0, :4].tolist() == [0, 0, 2, 2]
    held_out = Blocks(tokens, rule, np.arange(5, dtype=np.float32), split="validation", **options).batch(0, 1)
    assert held_out.ids[0, :3].tolist() == [END_ID, 6, 7]


def test_tags_stand_inside_bad_segments_at_their_share_and_move_each_epoch() -> None:
    tokens, rule, scores = make_example()
    labels = np.where(rule.labels == BAD, BAD, NO_LABEL).astype(np.uint8)
    rule = DataRule(rule.keep, labels, tag_fraction=0.25)
    blocks = Blocks(tokens, rule, scores, split="train", context=64, seed=5)
    one, other = (blocks.rows(epoch * blocks.num_blocks + np.arange(blocks.num_blocks)) for epoch in (0, 1))
    train = np.repeat(tokens.is_train, tokens.document_segments)
    taggable = (tokens.segment_lengths - 1)[train & (labels == BAD)].sum()
    for batch in (one, other):
        tags = batch.kinds == CONTROL
        assert (batch.targets[tags] == BAD_ID).all()
        assert tags.sum() == round(0.25 * taggable)
        assert not (tags[:, 1:] & (batch.kinds == END)[:, :-1]).any(), "never before a page's first token"
    assert (one.targets != other.targets).any()
    assert (blocks.plan(0).pieces.starts != blocks.plan(1).pieces.starts).any()


def test_the_same_part_of_an_epoch_is_the_same_documents_under_every_rule() -> None:
    tokens, rule, scores = make_example(1000)
    owners = {float(score): index for index, score in enumerate(scores)}
    filtered = replace(rule, keep=np.random.default_rng(3).random(1000) < 0.5)
    halves = []
    for one in (DataRule(rule.keep, np.zeros_like(rule.labels)), rule, filtered):
        blocks = Blocks(tokens, one, scores, split="train", context=32, seed=5, shuffle_blocks=8)
        half = blocks.rows(np.arange(blocks.num_blocks // 2))
        found = {owners[float(s)] for s in np.unique(half.scores[half.kinds == TEXT])}
        halves.append(found)
    mle, conditional, filtering = halves
    assert len(mle ^ conditional) < 0.03 * len(mle)
    assert len(filtering - mle) < 0.05 * len(filtering)
    assert len(mle) < 0.55 * tokens.num_segments


def test_phases_go_on_where_the_one_before_has_stopped() -> None:
    tokens, rule, scores = make_example()
    plain = Blocks(
        tokens,
        DataRule(rule.keep, np.zeros_like(rule.labels)),
        scores,
        split="train",
        context=32,
        seed=5,
        is_active=False,
    )
    own = Blocks(tokens, rule, scores, split="train", context=32, seed=5)
    blocks = TrainingBlocks([(0, plain), (20, own), (50, plain)])
    batch = blocks.batch(0, 70)
    assert batch.is_active.tolist() == [False] * 20 + [True] * 30 + [False] * 20
    offset = round(20 / plain.num_blocks * own.num_blocks)
    later = round((offset + 30) / own.num_blocks * plain.num_blocks)
    assert offset > 20, "control tokens make an epoch longer"
    parts = [plain.rows(np.arange(20)), own.rows(offset + np.arange(30)), plain.rows(later + np.arange(20))]
    for name in FIELDS:
        np.testing.assert_array_equal(
            getattr(batch, name), np.concatenate([getattr(part, name) for part in parts]), err_msg=name
        )
    for step in (3, 0, 6):  # a step depends on nothing but itself
        assert_same(
            blocks.batch(step, 10), Batch(*(getattr(batch, n)[10 * step : 10 * step + 10] for n in FIELDS))
        )
    # Another run that goes on from a row of this one reads what this one would have read.
    for row in (10, 20, 33, 60):
        rest = TrainingBlocks(
            [(0, plain), (20, own), (50, plain)], first_row=row, first_epoch=blocks.place(row)
        )
        assert_same(rest.rows(np.arange(row, 70)), blocks.rows(np.arange(row, 70)))
    assert blocks.epochs(19 * 32) == pytest.approx(19 / plain.num_blocks)
