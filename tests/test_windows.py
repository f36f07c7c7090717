"""Corpora of many windows: the blocks of each epoch, thresholds found part by part, and a run that reads them."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from fake_annotations import annotate_by
from hypothesis import given, settings
from hypothesis import strategies as st

from phf.annotate.annotate import annotate
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.evaluate.pages import PageReader
from phf.records import PAD, TEXT, Batch, Identity
from phf.reward_models import Unscored
from phf.thresholds import condense, resolve_good_fraction, resolve_levels, resolve_threshold
from phf.tokens import tokens as token_cache
from phf.tokens.scores import ShardScores
from phf.tokens.splitter import cumulate
from phf.tokens.tokens import TokenCache, tokenize
from phf.train.data import open_data
from phf.train.distributed import Ranks
from phf.train.loop import resume, train
from phf.train.run import Run


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-4, 4, width=16).map(lambda x: x / 3), min_size=2, max_size=60),
    st.integers(0, 9),
    st.floats(0.01, 1),
)
def test_thresholds_of_parts_are_those_of_the_whole(values, seed, fraction) -> None:
    scores = np.array(values, np.float32) + np.float32(0)  # one name for 0 and -0
    rng = np.random.default_rng(seed)
    if seed % 2:  # close together: in one bin of the first pass
        scores = np.nextafter(np.float32(0.3), np.float32(1)) * (1 + scores * np.float32(1e-6))
        scores[0] = -1  # so that this bin is not the first one, which is always counted one by one
    tokens = rng.integers(1, 9, len(scores))
    parts = list(zip(np.array_split(scores, 3), np.array_split(tokens, 3), strict=True))
    value = float(rng.choice(scores))

    def resolve(table, counts):
        found = []
        for ask in (
            lambda: resolve_good_fraction(*table, fraction, counts=counts),
            lambda: resolve_threshold(*table, value, counts=counts),
            lambda: resolve_levels(*table, 3, counts=counts),
        ):
            try:
                found.append(ask())
            except PHFError as error:
                found.append(str(error))
        return found

    *table, counts = condense(parts, [fraction, 1 / 3, 2 / 3], [value])
    assert resolve(table, counts) == resolve((scores, tokens), None)
    assert len(table[0]) <= len(scores)


@pytest.fixture(scope="module")
def shard_corpus(tmp_path_factory):
    """300 fortunes in some ten shards, scored by lines."""
    folder = tmp_path_factory.mktemp("shards") / "corpus"
    corpus = build_corpus(
        ["fortunes:offensive"], folder, validation_fraction=0.2, max_documents=300, bytes_per_shard=6_000
    )
    annotate(corpus, "toxicity-svm", "lines", workers=1)
    tokenize(corpus, "train:300", "lines", workers=1)
    return corpus


@pytest.fixture(scope="module")
def tied_corpus(tmp_path_factory):
    """150 numbered documents of lines in some ten shards: scores with many ties, near and far ones, and some missing."""
    folder = tmp_path_factory.mktemp("tied")
    near = float(np.nextafter(np.float32(0.3), np.float32(1)))
    rng = np.random.default_rng(0)
    with (folder / "a.jsonl").open("w") as file:
        for number in range(150):
            scores = rng.choice([0.0, 0.1, 0.3, near, 0.5, 2.0], rng.integers(1, 6)).tolist()
            lines = [f"{score!s} of {number:03} {'x' * rng.integers(9)}\n" for score in scores]
            text = "".join(["? no score\n"] * (number % 17 == 0) + lines)
            file.write(json.dumps({"text": text}) + "\n")
    corpus = build_corpus(
        [folder / "a.jsonl"], folder / "corpus", validation_fraction=0.2, bytes_per_shard=1000
    )
    annotate_by(corpus, Identity("tied", "1"), "lines", read_score)
    tokenize(corpus, "train:270", "lines", workers=1)
    return corpus


def read_score(segment):
    return Unscored("question") if segment[0] == "?" else float(segment.split()[0])


@pytest.fixture
def in_windows(shard_corpus, small_config, monkeypatch):
    """Makes a config, and data of it: of one window, or of several."""
    monkeypatch.setattr(token_cache, "WINDOW_ROWS", 500)

    def open_config(*overrides: str, rows: int = 500):
        config = small_config(
            f"corpus={shard_corpus.path}",
            "segments=lines",
            "tokenizer=train:300",
            "data.context=16",
            *overrides,
        )
        monkeypatch.setattr(token_cache, "WINDOW_ROWS", rows)
        data = open_data(config)
        assert (data.windows is None) == (rows > 10**6)
        return data

    return open_config


@pytest.fixture
def of_ties(in_windows, tied_corpus):
    """The same of the tied corpus, without the documents that hold an unscored line."""
    return lambda *overrides, rows=100: in_windows(
        f"corpus={tied_corpus.path}",
        *("reward_model=tied", "tokenizer=train:270", "data.missing=drop", *overrides),
        rows=rows,
    )


KINDS = [
    ("conditional", "objective.drop_fraction=0.1"),
    ("filtering", "objective={kind: filtering, keep_fraction: 0.5}"),
    ("removal", "objective={kind: removal, good_fraction: 0.5}"),
    ("tagging", "objective={kind: tagging, good_fraction: 0.5}"),
    ("quantile", "objective={kind: quantile, levels: 3}"),
    ("rwr", "objective={kind: rwr}"),
    ("awr", "objective={kind: awr, normalize: rank}"),
]


@pytest.mark.parametrize(("kind", "override"), KINDS)
def test_windows_hold_what_one_window_holds(in_windows, kind, override) -> None:
    whole, parts = in_windows(override, rows=10**9), in_windows(override)
    for name in ("threshold", "levels", "kept_share"):
        assert getattr(parts.objective, name) == getattr(whole.objective, name)
    assert parts.threshold == whole.threshold
    assert parts.scores_hash == whole.scores_hash
    if kind == "rwr":
        assert parts.objective.effective_share == pytest.approx(whole.objective.effective_share)
        assert parts.objective.reward_scale.mean == pytest.approx(whole.objective.reward_scale.mean)
    one, many = whole.active_blocks, parts.active_blocks
    assert many.num_windows > 2
    for epoch in (0, 1):
        texts = []
        for blocks in (one, many):
            batch = blocks.rows(epoch * blocks.num_blocks + np.arange(blocks.num_blocks))
            assert (batch.kinds != PAD).sum() == blocks.num_tokens_per_epoch
            is_text = batch.kinds == TEXT
            texts.append(
                Counter(zip(batch.targets[is_text].tolist(), batch.scores[is_text].tolist(), strict=True))
            )
        assert texts[0] == texts[1], "every token once an epoch, with its score"
    # What an epoch draws anew differs by rounding once a window.
    assert abs(one.num_tokens_per_epoch - many.num_tokens_per_epoch) <= many.num_windows
    found = [
        sum((batch.kinds == TEXT).sum() for batch in data.validation_blocks.iterate_in_order(10**9))
        for data in (whole, parts)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "override",
    [
        "objective.good_fraction=0.62",  # between the near ones
        "objective={kind: masking, threshold: 0.3}",
        "objective={kind: filtering, keep_fraction: 0.3}",
        "objective={kind: quantile, levels: 4}",
        "objective={kind: awr, normalize: none}",
    ],
)
def test_ties_and_unscored_lines_resolve_as_in_one_window(of_ties, override) -> None:
    whole, parts = of_ties(override, rows=10**9), of_ties(override)
    assert parts.active_blocks.num_windows > 3
    for name in ("threshold", "levels", "kept_share", "reward_scale"):
        assert getattr(parts.objective, name) == getattr(whole.objective, name), name
    assert parts.threshold == whole.threshold
    assert parts.num_dropped_documents == whole.num_dropped_documents == 9
    assert parts.scores_hash == whole.scores_hash
    assert parts.describe()[:-1] == whole.describe()[:-1]


def test_each_document_once_an_epoch(of_ties, tied_corpus) -> None:
    """In blocks that hold a window each, so that pages are whole."""
    data = of_ties("data.context=8192", "optim.batch_blocks=1", "tokens=100_000")
    blocks, tokenizer = data.active_blocks, data.tokens.tokenizer
    texts = [document.text for document in tied_corpus.iterate_documents("train")]
    expected = sorted(text for text in texts if "?" not in text)
    assert blocks.num_blocks == blocks.num_windows > 3
    orders = []
    for epoch in range(3):
        batch = blocks.rows(epoch * blocks.num_blocks + np.arange(blocks.num_blocks))
        is_text = batch.kinds == TEXT
        found = []
        for ids, own in zip(batch.targets, is_text, strict=True):
            ends = np.flatnonzero(~own & (ids == tokenizer.control.end))
            for first, stop in pairwise([0, *(ends + 1).tolist()]):
                if page := tokenizer.decode(ids[first:stop][own[first:stop]]):
                    found.append(page)
        assert sorted(found) == expected
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]


def test_any_number_of_ranks_reads_one_stream(in_windows) -> None:
    """Over the edges of windows and of the epoch, each rank from its own start, as after a crash."""
    blocks = in_windows().active_blocks
    _, starts = blocks._order(0)
    for edge in (*starts[1:].tolist(), blocks.num_blocks):
        step = (edge - 3) // 6
        first = 6 * step
        expected = blocks.rows(np.arange(first, first + 12))
        for size in (1, 2, 3):
            for rank in range(size):
                fresh = in_windows().active_blocks
                for later in (step + 1, step):
                    rows = Ranks(rank, size).rows(later, 6)
                    assert_same(
                        fresh.rows(rows), select(expected, slice(rows[0] - first, rows[-1] + 1 - first))
                    )


def test_a_block_follows_from_seed_and_step(in_windows) -> None:
    blocks = in_windows().active_blocks
    fresh = in_windows().active_blocks  # the rule is resolved: read from the corpus's folder
    indices = np.arange(0, 3 * blocks.num_blocks, 7)
    expected = blocks.rows(indices)
    for rank in (1, 0):  # any rank's share, in any order
        assert_same(fresh.rows(indices[rank::2]), select(expected, slice(rank, None, 2)))
    other = in_windows("seed=1").active_blocks
    assert (other.rows(indices[:8]).ids != expected.ids[:8]).any()
    assert blocks.num_blocks > 50
    for row in range(0, 2 * blocks.num_blocks, 5):
        assert blocks.block_at(blocks.epochs_at(row)) == row
    orders = {tuple(blocks._order(epoch)[0].tolist()) for epoch in range(6)}
    assert len(orders) > 2, "windows are shuffled in each epoch"


def select(batch: Batch, rows: slice) -> Batch:
    return Batch(*(getattr(batch, name)[rows] for name in Batch.__slots__))


def assert_same(one: Batch, other: Batch) -> None:
    for name in Batch.__slots__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_the_same_part_of_an_epoch_under_every_rule(in_windows) -> None:
    """An objective that starts late goes on with the windows that the one before it has not read."""
    one, other = in_windows().active_blocks, in_windows(KINDS[1][1]).active_blocks
    order, starts = one._order(0)
    for place in range(1, len(order)):
        assert other.block_at(one.epochs_at(int(starts[place]))) == other._order(0)[1][place]


def test_only_one_window_is_read(in_windows, monkeypatch) -> None:
    data = in_windows("optim.batch_blocks=2")
    fresh = in_windows("optim.batch_blocks=2")  # resolved: nothing of the corpus but what the batch needs
    read = []
    plain = TokenCache.select
    monkeypatch.setattr(
        TokenCache, "select", lambda self, shards: read.append(list(shards)) or plain(self, shards)
    )
    batch = fresh.training_blocks().batch(0, 2)
    assert len(read) == 1
    assert len(read[0]) < len(data.tokens.shards)
    assert_same(batch, data.training_blocks().batch(0, 2))


def read_epoch(open_config) -> None:
    blocks = open_config().active_blocks
    blocks.rows(np.arange(blocks.num_blocks))


def test_pages_of_windows_are_those_of_the_whole(in_windows) -> None:
    whole, parts = in_windows(rows=10**9), in_windows()
    one, other = PageReader.of(whole), PageReader.of(parts)
    assert isinstance(other.scores, ShardScores)
    np.testing.assert_array_equal(one.held_out_documents(3), other.held_out_documents(3))
    is_held_out = ~whole.tokens.is_train & (whole.tokens.document_segments > 0)
    assert sorted(one.held_out_documents(0)) == np.flatnonzero(is_held_out).tolist()
    starts = cumulate(whole.tokens.document_segments)
    token_starts = cumulate(whole.tokens.segment_lengths)
    ids = np.concatenate(whole.tokens.ids)
    for document in range(0, whole.tokens.num_documents, 3):
        page, again = one.read(document), other.read(document)
        first = starts[document]
        stop = first + len(page.segments)
        text = np.concatenate(page.segments)
        np.testing.assert_array_equal(text, ids[token_starts[first] :][: len(text)])
        np.testing.assert_array_equal(page.scores, whole.scores[first:stop])
        for own, theirs in zip(page.segments, again.segments, strict=True):
            np.testing.assert_array_equal(own, theirs)
        np.testing.assert_array_equal(page.num_bytes, again.num_bytes)
        np.testing.assert_array_equal(page.scores, again.scores)


def test_damage_is_found_where_it_is_read(in_windows, shard_corpus) -> None:
    data = in_windows()
    for path, text in (
        (next((shard_corpus.path / "tokens").glob("*/scores/*/00000.scores")), "is damaged: SHA-256"),
        (next((shard_corpus.path / "tokens").glob("*/00000.ids")), "is damaged: SHA-256"),
    ):
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        try:
            with pytest.raises(PHFError, match=text):
                read_epoch(in_windows)
        finally:
            path.write_bytes(whole)
    assert data.windows is not None


def test_a_run_stops_and_resumes_in_windows(in_windows, tmp_path) -> None:
    data = in_windows(
        "data.context=192", "tokens=12288", "objective.start=0.1", "keep_checkpoints=all", rows=1
    )
    config = data.config
    edges = data.active_blocks._order(0)[1] / config.optim.batch_blocks
    ends = [any(first < edge < first + 8 for edge in edges) for first in (0, 8)]
    assert all(ends), f"windows end before and after step 8, from which it goes on: {edges}"
    whole = train(config, tmp_path / "whole")
    stopped = train(config, tmp_path / "stopped")
    resume(stopped.folder, step=8)
    assert read_losses(whole) == read_losses(Run.open(stopped.folder))
    assert whole.record["window_rows"] == 1
    older = Run.open(whole.folder)
    del older.record["window_rows"]  # by a phf that laid such a corpus out in one piece
    with pytest.raises(PHFError, match="another window_rows: none, now 1"):
        older.data()


def read_losses(run: Run) -> list[object]:
    return [line.get("loss") for line in run.read_metrics()]
