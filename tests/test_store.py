"""The corpus on disk: whole or absent, the same bytes for the same input, damage refused by name."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from phf.corpus.store import Corpus, build_corpus, read_manifest, write_manifest
from phf.errors import PHFError
from phf.folders import lock_folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_bytes(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def corpus(tmp_path):
    """200 documents in several shards and groups, one duplicate, one bad row, one id used twice."""
    rows = [{"text": f"Text {number}: ü{'x' * number}\n", "id": f"row {number}"} for number in range(200)]
    rows += [rows[3], {"text": 5}, {"text": "another text", "id": "row 7"}]
    return build_corpus(
        [write_rows(tmp_path / "a.jsonl", rows)],
        tmp_path / "corpus",
        bytes_per_shard=8000,
        bytes_per_group=1000,
    )


def test_documents_come_back(corpus):
    documents = list(corpus.iterate_documents())
    assert len(documents) == corpus.num_documents == 201
    assert documents[5].text == "Text 5: üxxxxx\n"
    assert documents[5].text_hash == hashlib.sha256(documents[5].text.encode()).hexdigest()
    assert documents[5].source == "a.jsonl"
    assert [document.id for document in documents[:200]] == [f"row {number}" for number in range(200)]
    assert documents[200].id == "a.jsonl:203"  # its own id is another's
    assert len(corpus.shards) > 2
    with corpus.open_shard(0) as file:
        assert file.num_row_groups > 2
    tables = [corpus.read_shard(index, ["id"]) for index in range(len(corpus.shards))]
    assert sum(map(len, tables)) == 201
    assert tables[0].column_names == ["id"]


def test_manifest_counts(corpus):
    (source,) = corpus.manifest["sources"]
    assert source == {
        "spec": "a.jsonl",
        "num_rows": 203,
        "num_documents": 201,
        "num_duplicates": 1,
        "num_replaced_ids": 1,
        "num_bad_rows": 1,
        "bad_row_reasons": {"text is not a string": 1},
        "first_bad_rows": [{"place": "a.jsonl:202", "reason": "text is not a string"}],
        "num_left_out": 0,
        "left_out_reasons": {},
        "first_left_out": [],
    }
    bad_rows = [json.loads(line) for line in (corpus.path / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["place"] for row in bad_rows] == ["a.jsonl:202"]
    for split in ("train", "validation"):
        texts = [document.text for document in corpus.iterate_documents(split)]
        assert corpus.manifest["counts"][split] == {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "bytes": sum(len(text.encode()) for text in texts),
        }
    assert sum(shard.num_bytes for shard in corpus.shards) == sum(
        counts["bytes"] for counts in corpus.manifest["counts"].values()
    )


def test_the_split_depends_on_the_text_alone(tmp_path):
    texts = [f"text number {number}" for number in range(4000)]
    first = write_rows(tmp_path / "first.jsonl", [{"text": text} for text in texts])
    second = write_rows(
        tmp_path / "second.jsonl", [{"content": text, "id": text[::-1]} for text in texts[::-2]]
    )
    splits = [
        {document.text: document.split for document in build_corpus([source], out).iterate_documents()}
        for source, out in ((first, tmp_path / "a"), (second, tmp_path / "b"))
    ]
    assert all(splits[0][text] == split for text, split in splits[1].items())
    share = sum(split == "validation" for split in splits[0].values()) / 4000
    assert 0.04 < share < 0.06
    everything = build_corpus([first], tmp_path / "c", validation_fraction=0)
    assert {document.split for document in everything.iterate_documents()} == {"train"}


def test_the_same_input_gives_the_same_bytes(corpus, tmp_path):
    again = build_corpus(
        [str(tmp_path / "a.jsonl")], tmp_path / "again", bytes_per_shard=8000, bytes_per_group=1000
    )
    assert read_bytes(corpus.path) == read_bytes(again.path)
    assert again.id == corpus.id
    shorter = build_corpus([str(tmp_path / "a.jsonl")], tmp_path / "short", max_documents=7)
    assert shorter.num_documents == 7
    assert shorter.id != corpus.id


def test_duplicates_across_sources_are_dropped(tmp_path):
    first = write_rows(tmp_path / "first.jsonl", [{"text": "x"}, {"text": "y"}])
    second = write_rows(tmp_path / "second.jsonl", [{"text": "y"}, {"text": "z"}])
    corpus = build_corpus([first, second, first], tmp_path / "corpus")
    assert [document.text for document in corpus.iterate_documents()] == ["x", "y", "z"]
    assert [source["num_duplicates"] for source in corpus.manifest["sources"]] == [0, 1, 2]


def test_a_failed_build_leaves_nothing(tmp_path):
    good = write_rows(tmp_path / "good.jsonl", [{"text": "x"}])
    empty = write_rows(tmp_path / "empty.jsonl", [])
    with pytest.raises(PHFError, match=r"empty\.jsonl' is empty"):
        build_corpus([good, empty], tmp_path / "out" / "corpus")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(PHFError, match="did you mean 'tweets'"):
        build_corpus([good, "tweet"], tmp_path / "elsewhere" / "corpus")
    assert not (tmp_path / "elsewhere").exists()


def test_a_killed_build_leaves_no_corpus_and_can_be_repeated(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [{"text": f"text {number}"} for number in range(100)])
    script = (
        "import sys, time; from phf.corpus.store import build_corpus\n"
        "def wait(*_): print(flush=True); time.sleep(60)\n"
        "build_corpus([sys.argv[1]], sys.argv[2], progress=wait)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, source, tmp_path / "corpus"], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"\n"  # all is written but the name
    with pytest.raises(PHFError, match="another process is building"):
        build_corpus([source], tmp_path / "corpus")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "corpus").exists()
    assert len(list(tmp_path.iterdir())) == 2
    assert build_corpus([source], tmp_path / "corpus").num_documents == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "corpus"]


def test_what_build_refuses(corpus, tmp_path):
    source = str(tmp_path / "a.jsonl")
    with pytest.raises(PHFError, match="exists and is not empty; delete it or choose another"):
        build_corpus([source], corpus.path)
    with pytest.raises(PHFError, match="exists and is not empty"):
        build_corpus([source], source)
    with pytest.raises(PHFError, match=r"validation_fraction 1\.0 must be"):
        build_corpus([source], tmp_path / "b", validation_fraction=1.0)
    with pytest.raises(PHFError, match="max_documents 0 must be"):
        build_corpus([source], tmp_path / "b", max_documents=0)
    with pytest.raises(PHFError, match="no source is given"):
        build_corpus([], tmp_path / "b")
    with pytest.raises(PHFError, match="holds no corpus; make one with: phf corpus build"):
        Corpus.open(tmp_path)


def test_a_flipped_byte_in_a_shard_is_refused_by_name(corpus):
    path = corpus.path / corpus.shards[1].file
    flip_byte(path, path.stat().st_size // 2)
    damaged = Corpus.open(corpus.path)
    damaged.read_shard(0)
    with pytest.raises(PHFError, match=r"documents/00001\.parquet is damaged"):
        damaged.read_shard(1)
    path.unlink()
    with pytest.raises(PHFError, match=r"documents/00001\.parquet is missing"):
        list(Corpus.open(corpus.path).iterate_documents())


def test_every_flipped_byte_in_a_manifest_is_refused_by_name(corpus):
    path = corpus.path / "manifest.json"
    original = path.read_bytes()
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 0x01
        path.write_bytes(changed)
        with pytest.raises(PHFError, match=r"manifest\.json is (damaged|not valid JSON)"):
            Corpus.open(corpus.path)


def test_a_newer_format_is_refused(corpus):
    path = corpus.path / "manifest.json"
    write_manifest(path, {**read_manifest(path, "make it again"), "format_version": 99})
    with pytest.raises(PHFError, match="has format version 99, this phf reads 1"):
        Corpus.open(corpus.path)


def test_a_lock_ends_with_its_holder(tmp_path):
    with lock_folder(tmp_path, "writing"), pytest.raises(PHFError, match="another process is writing"):
        lock_folder(tmp_path, "writing").__enter__()
    lock_folder(tmp_path, "writing").__enter__()
