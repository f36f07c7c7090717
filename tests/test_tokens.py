"""The token cache: whole documents, split only where a segment ends, the same bytes always, damage refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from phf.annotate.annotate import annotate
from phf.corpus import store
from phf.corpus.segment import segment_ends
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError
from phf.tokens import tokens
from phf.tokens.splitter import Splitter
from phf.tokens.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from phf.tokens.tokens import TokenCache, find_tokens, tokenize

SOURCES = [
    path.read_text(encoding="utf-8")
    for room in (store, tokens)
    for path in sorted(Path(room.__file__).parent.glob("*.py"))
]
STRANGE = [
    "A <|bad|> line.\n<|good|>\n\n<|endoftext|>\n",
    "日本語の文。\nもう一つ。 👩‍👩‍👧\n\n\n   é",
    "x",
    "\n\n\n",
    "one line without an end",
    " leading\r\nand\ttabs\x00\n",
]
SPEC = "train:400"


def write_corpus(folder: Path, texts: list[str], **sizes: int) -> Corpus:
    folder.mkdir()
    source = folder / "texts.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return build_corpus(
        [str(source)], folder / "corpus", bytes_per_shard=25_000, validation_fraction=0.2, **sizes
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("tokens") / "data"
    return write_corpus(folder, STRANGE + SOURCES, bytes_per_group=4000)  # several row groups a shard


@pytest.fixture
def fresh(corpus: Corpus, tmp_path: Path) -> Corpus:
    """A copy of the corpus, for tests that write to it."""
    shutil.copytree(corpus.path, tmp_path / "corpus", ignore=shutil.ignore_patterns("tokens"))
    return Corpus.open(tmp_path / "corpus")


def train_gpt2(folder: Path, texts: list[str]) -> Path:
    """A tokenizer with GPT-2's pattern, by which nearly every line of code ends inside a token."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "gpt2"
    return load_tokenizer(str(train_gpt2(folder, [*SOURCES[:3], "日本語\n    日本語 👩‍👩‍👧 " * 40])))


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def split_slowly(tokenizer: Tokenizer, text: str, ends: list[int]) -> tuple[list[int], list[int]]:
    """Ids and number of tokens of each segment, one token at a time."""
    byte_ends = [len(text[:end].encode()) for end in ends]
    ids: list[int] = []
    lengths = [0] * len(ends)
    place = 0
    for index in tokenizer.encode(text):
        piece = tokenizer.pieces[index]
        cuts = [end - place for end in byte_ends if place < end < place + len(piece)]
        parts = [piece[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(piece)], strict=True)]
        for part in parts:
            new = tokenizer.encode_piece(part) if cuts else [index]
            segment = next(k for k, end in enumerate(byte_ends) if place < end)
            ids += new
            lengths[segment] += len(new)
            place += len(part)
    return ids, lengths


@st.composite
def documents(draw):
    letters = st.sampled_from([*"ab \n\té日👩\u200d", "    ", "def ", "\n    ", "日本語", "<|bad|>"])
    texts = draw(st.lists(st.lists(letters, max_size=25).map("".join), min_size=1, max_size=5))
    ends = [
        sorted({*draw(st.lists(st.integers(1, len(text)), max_size=6)), len(text)}) if text else []
        for text in texts
    ]
    return texts, ends


@settings(max_examples=200, deadline=None)
@given(documents())
def test_only_tokens_that_straddle_a_segment_end_are_split(gpt2: Tokenizer, case) -> None:
    texts, ends = case
    expected = [split_slowly(gpt2, text, document) for text, document in zip(texts, ends, strict=True)]
    num_segments = np.array([len(document) for document in ends])
    flat = np.array([end for document in ends for end in document], np.int64)
    ids, lengths, num_bytes = Splitter(gpt2).tokenize(texts, num_segments, flat)
    assert ids.tolist() == [index for document, _ in expected for index in document]
    assert lengths.tolist() == [length for _, document in expected for length in document]
    segments = [
        text[start:stop]
        for text, document in zip(texts, ends, strict=True)
        for start, stop in zip([0, *document[:-1]], document, strict=False)
    ]
    assert num_bytes.tolist() == [len(segment.encode()) for segment in segments]
    parts = np.split(ids, np.cumsum(lengths)[:-1]) if segments else []
    assert [gpt2.decode(part) for part in parts] == segments


@pytest.mark.parametrize("kind", ["lines", "sentences", "document"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_cache_holds_the_text_of_every_segment(
    corpus: Corpus, gpt2: Tokenizer, tmp_path: Path, kind, foreign: bool
) -> None:
    spec = SPEC
    if foreign:
        gpt2.save(tmp_path / "gpt2")
        spec = str(tmp_path / "gpt2")
    cache = tokenize(corpus, spec, kind)
    assert len(cache.ids) == len(corpus.shards) > 1
    texts = list(corpus.iterate_documents())
    segments, split = [], []
    for document in texts:
        ends = segment_ends(document.text, kind)
        split.append(len(ends))
        segments += [document.text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert cache.document_segments.tolist() == split
    assert cache.is_train.tolist() == [document.split == "train" for document in texts]
    assert cache.split_mask("validation").tolist() == [document.split == "validation" for document in texts]
    assert {True, False} == set(cache.is_train.tolist())
    ids = np.concatenate(cache.ids)
    assert cache.segment_lengths.min() >= 1
    parts = np.split(ids, np.cumsum(cache.segment_lengths)[:-1])
    assert [cache.tokenizer.decode(part) for part in parts] == segments
    assert cache.segment_bytes.tolist() == [len(segment.encode()) for segment in segments]
    assert (cache.num_documents, cache.num_segments, cache.num_tokens) == (
        len(texts),
        len(segments),
        len(ids),
    )
    assert cache.shard_starts.tolist() == [0, *np.cumsum([len(shard) for shard in cache.ids])]
    assert cache.segment_lengths.sum() == len(ids)
    control = cache.tokenizer.control
    assert not np.isin(ids, [control.end, control.good, control.bad]).any()
    assert cache.ids[0].dtype == np.uint16


def test_the_bytes_do_not_depend_on_workers_or_interruptions(
    fresh: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_files(tokenize(fresh, SPEC, "lines", workers=1).path)
    calls: list[tuple[str, int, int]] = []

    def record(*call) -> None:
        calls.append(call)

    for workers, survives in ((1, 1), (3, 2), (4, 0)):
        shutil.rmtree(fresh.path / "tokens")
        num_manifests = 0

        def replace_or_die(path, target, replace=Path.replace, survives=survives):
            nonlocal num_manifests
            num_manifests += target.name == "manifest.json"
            if num_manifests == survives + 2:  # the first one lists no shard
                raise KeyboardInterrupt  # the files are there, the entry is not
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            with pytest.raises(KeyboardInterrupt):
                tokenize(fresh, SPEC, "lines", workers=workers)
        folder = next((fresh.path / "tokens").iterdir())
        with pytest.raises(PHFError, match=rf"is not finished \({survives} of \d+ shards\)"):
            TokenCache.open(folder)
        (folder / ".00000.ids.x.tmp").write_bytes(b"left over")
        calls.clear()
        cache = tokenize(fresh, SPEC, "lines", workers=workers, progress=record)
        assert read_files(cache.path) == expected
        todo = sum(shard.num_documents for shard in fresh.shards[survives:])
        assert calls[-1] == ("tokenizing documents", todo, todo)
        calls.clear()
        tokenize(fresh, SPEC, "lines", progress=record)
        assert calls == [], "a finished cache is opened, not made again"


def test_a_flipped_byte_is_refused_by_name(fresh: Corpus) -> None:
    cache = tokenize(fresh, SPEC, "lines")
    assert TokenCache.open(cache.path).num_tokens == cache.num_tokens
    files = [name for name, data in read_files(cache.path).items() if data]
    assert {name.split(".")[-1] for name in files} == {
        "ids",
        "segment_ends",
        "document_ends",
        "segment_bytes",
        "is_train",
        "json",
    }
    for name in files:
        path = cache.path / name
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 2):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            for read in (lambda: TokenCache.open(cache.path), lambda: tokenize(fresh, SPEC, "lines")):
                with pytest.raises(PHFError, match=Path(name).name):
                    read()
        path.unlink()
        with pytest.raises(PHFError, match=Path(name).name):
            TokenCache.open(cache.path)
        path.write_bytes(data)
    tokenize(fresh, SPEC, "lines")


def test_a_tokenizer_is_trained_once_and_on_the_training_split_alone(
    fresh: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(texts, vocab_size):
        seen.append(list(texts))
        return train_tokenizer(iter(seen[-1]), vocab_size)

    monkeypatch.setattr(tokens, "train_tokenizer", train)
    lines = tokenize(fresh, SPEC, "lines")
    document = tokenize(fresh, "train:0400", "document")
    assert len(seen) == 1
    assert set(seen[0]) == {document.text for document in fresh.iterate_documents("train")}
    assert lines.tokenizer.identity == document.tokenizer.identity
    assert lines.slug != document.slug
    assert lines.slug.startswith("train-400@")
    shutil.rmtree(fresh.path / "tokens")
    assert tokenize(fresh, SPEC, "lines").slug == lines.slug
    tokenize(fresh, SPEC, "lines", training_bytes=60_000)
    assert 0 < len(seen[2]) < len(seen[0])


def test_tokens_and_annotation_of_the_same_segments_have_the_same_hash(fresh: Corpus) -> None:
    annotation = annotate(fresh, "pii", "sentences", workers=1)
    assert tokenize(fresh, SPEC, "sentences").segment_ends_hash == annotation.segment_ends_hash
    assert tokenize(fresh, SPEC, "lines").segment_ends_hash != annotation.segment_ends_hash


def test_finding_tokens(fresh: Corpus, tmp_path: Path) -> None:
    with pytest.raises(PHFError, match=r"has no tokens by train:400 on lines; make them with: phf tokenize "):
        find_tokens(fresh, SPEC, "lines")
    cache = tokenize(fresh, SPEC, "lines")
    assert find_tokens(fresh, SPEC, "lines").slug == cache.slug
    other = write_corpus(tmp_path / "other", STRANGE)
    shutil.copytree(fresh.path / "tokens", other.path / "tokens")
    with pytest.raises(PHFError, match="is stale: it was made from other documents"):
        find_tokens(other, SPEC, "lines")


def test_a_tokenizer_that_loses_a_segment_is_refused(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "words")
    corpus = write_corpus(tmp_path / "data", ["a b\nc\n", "a\n\nb\n"])
    with pytest.raises(PHFError, match=r"gives no token to a segment of document .*texts.jsonl:2"):
        tokenize(corpus, str(tmp_path / "words"), "lines")
    cache = tokenize(corpus, str(tmp_path / "words"), "document")
    assert cache.segment_lengths.tolist() == [3, 2]


def test_metaspace_tokens_are_split_between_their_letters(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("<eos>", 0.0), ("▁the", -1.0), *((letter, -5.0) for letter in "▁theo")]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "unigram")
    tokenizer = load_tokenizer(str(tmp_path / "unigram"))
    ids, lengths, num_bytes = tokens.Splitter(tokenizer).tokenize(
        ["the theo", "o"], np.array([3, 1]), np.array([2, 6, 8, 1])
    )
    segments = [
        [tokenizer.pieces[index] for index in part] for part in np.split(ids, np.cumsum(lengths)[:-1])
    ]
    assert segments == [["▁", "t", "h"], ["e", "▁", "t", "h"], ["e", "o"], ["▁", "o"]]
    assert num_bytes.tolist() == [2, 4, 2, 1]


@pytest.mark.parametrize("spec", ["train:", "train:many", "train:-5", "train:100"])
def test_a_wrong_vocabulary_size_is_refused(fresh: Corpus, spec: str) -> None:
    with pytest.raises(PHFError, match=r"train:4096|the least is 259"):
        tokenize(fresh, spec, "lines")
    with pytest.raises(PHFError, match="workers 0 must be at least 1"):
        tokenize(fresh, SPEC, "lines", workers=0)
