"""Bits per byte and control gain: every text token is scored once, and nothing else is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_generate import BAD, END, GOOD, NUM_IDS, TinyTokenizer, create_bigram, create_llama, record_rows

from phf.control import ControlTokens
from phf.evaluate.measures.bits_per_byte import bits_per_byte
from phf.evaluate.measures.control_gain import control_gain
from phf.evaluate.pages import (
    Page,
    PageReader,
    mode_labels,
    segment_nll,
)
from phf.records import BAD as BAD_LABEL
from phf.records import GOOD as GOOD_LABEL
from phf.records import NO_LABEL

CONTROL = ControlTokens(END, GOOD, BAD)
VOCAB_SIZE = 12


def make_page(*segments: list[int], scores: list[float] | None = None) -> Page:
    return Page(
        tuple(np.array(segment) for segment in segments),
        np.array([len(segment) for segment in segments]),
        np.array(scores if scores is not None else [0.0] * len(segments), np.float32),
    )


def make_reader(
    documents: list[list[list[int]]], scores: list[float], *, context: int, num_shards: int = 2
) -> PageReader:
    """A reader over documents given as segments of ids; every token is one byte, even documents are held out."""
    shards = [
        [documents[number] for number in part]
        for part in np.array_split(np.arange(len(documents)), num_shards)
    ]
    is_train = np.array_split(np.arange(len(documents)) % 2 == 1, num_shards)
    lengths = [[len(segment) for document in own for segment in document] for own in shards]
    arrays = {
        "ids": [np.array([i for d in own for segment in d for i in segment], np.uint16) for own in shards],
        "segment_ends": [np.cumsum(own, dtype=np.int64) for own in lengths],
        "segment_bytes": [np.array(own, np.uint32) for own in lengths],
        "document_ends": [np.cumsum([len(document) for document in own], dtype=np.int64) for own in shards],
        "is_train": is_train,
    }
    tokens = SimpleNamespace(
        shards=[{"num_documents": len(own)} for own in shards],
        shard_segments=np.cumsum([0, *map(len, lengths)]),
        map_shard=lambda shard, kind: arrays[kind][shard],
        tokenizer=TinyTokenizer(),
    )
    return PageReader(tokens, np.array(scores, np.float32), context)


def label(scores: np.ndarray) -> np.ndarray:
    return np.where(scores <= 0.5, GOOD_LABEL, BAD_LABEL).astype(np.uint8)


def slow_nll(model, ids: list[int], position: int) -> float:
    """-log p(ids[position] | before) among the ids that are text (or the end), one at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:position]]), use_cache=False).logits[0, -1].double()
    text = [token for token in range(VOCAB_SIZE) if token not in (GOOD, BAD)]
    return float(torch.logsumexp(logits[text], 0) - logits[ids[position]])


@pytest.mark.parametrize(
    "labels", [[GOOD_LABEL, BAD_LABEL, GOOD_LABEL], [NO_LABEL] * 3, [NO_LABEL, BAD_LABEL, NO_LABEL]]
)
def test_segment_nll_is_that_of_its_text_tokens_alone(labels: list[int]) -> None:
    model = create_llama()
    page = make_page([1, 2, 3], [4], [5, 6])
    ids, owners = [END], [None]
    for index, (segment, label) in enumerate(zip(page.segments, labels, strict=True)):
        if label != NO_LABEL:
            ids.append(CONTROL.of_label(label))
            owners.append(None)
        ids += segment.tolist()
        owners += [index] * len(segment)
    expected = np.zeros(3)
    for position, owner in enumerate(owners):
        if owner is not None:
            expected[owner] += slow_nll(model, ids, position)
    (found,) = segment_nll(model, CONTROL, VOCAB_SIZE, [page], [np.array(labels, np.uint8)])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_padding_is_never_scored() -> None:
    """Fault 3 of the released code: its mask was shifted by one, and a padding token was scored."""
    model = create_llama()
    rng = np.random.default_rng(0)
    pages = [
        make_page(*(rng.integers(1, 10, size=n).tolist() for n in lengths))
        for lengths in ([3], [9, 4], [1], [30])
    ]
    labels = mode_labels(pages, "good")
    together = segment_nll(model, CONTROL, VOCAB_SIZE, pages, labels)
    for one, page, own in zip(together, pages, labels, strict=True):
        (other,) = segment_nll(model, CONTROL, VOCAB_SIZE, [page], [own])
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_conditional_model_does_not_pay_for_its_control_tokens() -> None:
    """Fault 3, second half: neither predicting them nor the mass kept for them may cost anything."""
    table = torch.randn(NUM_IDS, NUM_IDS, generator=torch.Generator().manual_seed(0))
    table[GOOD] = table[END]
    page = make_page([1, 2], [3])
    results = []
    for price in (-5.0, 5.0):
        table[:, [GOOD, BAD]] = price
        for mode in ("good", "none"):
            model = create_bigram(table)
            results += [segment_nll(model, CONTROL, VOCAB_SIZE, [page], mode_labels([page], mode))[0][0]]
    np.testing.assert_allclose(results, results[0], rtol=1e-5)


def test_bits_per_byte_of_a_uniform_model() -> None:
    model = create_bigram(torch.zeros(NUM_IDS, NUM_IDS))
    pages = [
        make_page([1, 2], [3], scores=[0.0, 0.2]),
        make_page([4, 5], scores=[0.1]),
        make_page([7], scores=[np.nan]),
    ]
    pages[0].num_bytes[:] = [4, 1]
    nll = segment_nll(model, CONTROL, VOCAB_SIZE, pages, mode_labels(pages, "good"))
    found = bits_per_byte(pages, nll, 0.1, 100, 0)
    bits = np.log2(10)  # nine text tokens and the end
    assert found["good"].mean == pytest.approx(4 * bits / 6)
    assert found["bad"].mean == pytest.approx(bits)
    assert found["all"].mean == pytest.approx(6 * bits / 8)
    assert [found[name].count for name in ("good", "bad", "all")] == [2, 1, 3]


def test_a_threshold_of_zero_is_a_threshold_and_a_missing_score_has_no_label() -> None:
    labels = make_page([1], [2], [3], scores=[0.0, 0.1, np.nan]).labels(0.0)
    assert labels.tolist() == [GOOD_LABEL, BAD_LABEL, NO_LABEL]


def test_pages_hold_the_segments_that_fit_with_control_tokens() -> None:
    documents = [[[1] * 4, [2] * 4, [3] * 4], [[4]], [[5] * 30, [6]], [[7], [8]], [[9], [1, 2]], []]
    reader = make_reader(documents, list(range(10)), context=11)
    assert sorted(reader.held_out_documents(0)) == [0, 2, 4]
    assert [segment.tolist() for segment in reader.read(0).segments] == [[1] * 4, [2] * 4]  # 1 + 5 + 5 = 11
    assert len(make_reader(documents, list(range(10)), context=10).read(0).segments) == 1
    cut = reader.read(2)
    assert [segment.tolist() for segment in cut.segments] == [[5] * 9]  # a first segment is cut: 1 + 1 + 9
    assert cut.num_bytes.tolist() == [len(" e" * 9)]
    last = reader.read(4)
    assert [segment.tolist() for segment in last.segments] == [[9], [1, 2]]
    assert last.scores.tolist() == [8, 9]
    assert last.num_bytes.tolist() == [1, 2]


def test_reading_pages_back_is_exact_for_any_number_of_shards() -> None:
    rng = np.random.default_rng(0)
    documents = [
        [rng.integers(1, 10, size=rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 5))]
        for _ in range(21)
    ]
    scores = list(range(sum(map(len, documents))))
    for num_shards in (1, 3, 21):
        reader = make_reader(documents, scores, context=1000, num_shards=num_shards)
        for index, document in enumerate(documents):
            assert [segment.tolist() for segment in reader.read(index).segments] == document


def test_control_gain_switches_one_token_and_keeps_the_context() -> None:
    table = torch.zeros(NUM_IDS, NUM_IDS)
    table[GOOD, 1], table[BAD, 1] = 2.0, -1.0  # after <|good|>, 1 is likelier than after <|bad|>
    table[GOOD, 2], table[BAD, 2] = 0.0, 0.5
    text = [token for token in range(VOCAB_SIZE) if token not in (GOOD, BAD)]
    model = create_bigram(table)
    calls = record_rows(model)
    documents = [[[1], [2], [1]]] * 40
    reader = make_reader(documents, [0.0, 1.0, 0.0] * 40, context=100)
    gain = control_gain(model, CONTROL, VOCAB_SIZE, reader, label, 15, 0)

    log_probs = torch.log_softmax(table[:, text], -1)
    at = {token: text.index(token) for token in (1, 2)}
    assert np.mean(gain["good"].gains) == pytest.approx(
        float(log_probs[GOOD, at[1]] - log_probs[BAD, at[1]]), rel=1e-4
    )
    assert np.mean(gain["bad"].gains) == pytest.approx(
        float(log_probs[BAD, at[2]] - log_probs[GOOD, at[2]]), rel=1e-4
    )
    assert (len(gain["good"].gains), len(gain["bad"].gains)) == (15, 15)
    own_good, switched_good, own_bad, switched_bad = calls
    assert own_bad[0].tolist() == [END, GOOD, 1, BAD]
    assert switched_bad[0].tolist() == [END, GOOD, 1, GOOD]
    assert any(row.tolist() == [END, GOOD, 1, BAD, 2, GOOD] for row in own_good)
    for own, switched in ((own_good, switched_good), (own_bad, switched_bad)):
        assert (own != switched).sum(dim=1).tolist() == [1] * 15


def test_a_model_without_control_has_a_gain_of_nothing_but_noise() -> None:
    model = create_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[BAD] = model.model.embed_tokens.weight[GOOD]
    reader = make_reader([[[1, 2], [3]]] * 20, [0.0, 1.0] * 20, context=50)
    gain = control_gain(model, CONTROL, VOCAB_SIZE, reader, label, 10, 0)
    assert np.mean(gain["good"].gains) == pytest.approx(0, abs=1e-6)
