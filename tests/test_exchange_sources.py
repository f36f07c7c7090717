"""Sources by URL: what fsspec reads is read like a file of this machine, and what it cannot is one line."""

import gzip
import json
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from phf.corpus.record_files import Record
from phf.corpus.rows import BadRow, LeftOut, Row
from phf.corpus.sources import iterate_records, iterate_source
from phf.corpus.store import build_corpus
from phf.errors import PHFError

TEXTS = ["one", "zwei ü😀\u2028", "three\n"]
JSONL = "".join(
    json.dumps({"id": f"d{n}", "text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)
).encode()


def encode(name):
    if name.endswith(".gz"):
        return gzip.compress(JSONL)
    if name.endswith(".zst"):
        return zstandard.compress(JSONL)
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in JSONL.splitlines()]), sink)
        return sink.getvalue().to_pybytes()
    return JSONL


@pytest.fixture(params=["memory", "file"])
def root(request, tmp_path):
    """The URL of an empty folder."""
    url = f"memory://{tmp_path.name}" if request.param == "memory" else tmp_path.as_uri()
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path, exist_ok=True)
    yield url
    files.rm(path, recursive=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file(root, name):
    url = f"{root}/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(encode(name))
    assert list(iterate_source(url)) == [Row(f"{url}:{n + 1}", text, f"d{n}") for n, text in enumerate(TEXTS)]
    assert list(iterate_records(url)) == [
        Record(f"{url}:{n + 1}", {"id": f"d{n}", "text": text, "n": n}) for n, text in enumerate(TEXTS)
    ]


def test_a_folder(root):
    for name in ("b/x.jsonl.gz", "a.parquet", "notes.txt", ".hidden/y.jsonl"):
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(encode(name))
    files = [f"{root}/{name}:{n}" for name in ("a.parquet", "b/x.jsonl.gz") for n in (1, 2, 3)]
    left_out = [LeftOut(f"{root}/.hidden", "hidden"), LeftOut(f"{root}/notes.txt", "no file of records")]
    for rows in (list(iterate_source(root)), list(iterate_records(root))):
        assert rows[:2] == left_out
        assert [row.place for row in rows[2:]] == files


def test_a_corpus_from_a_url(root, tmp_path_factory):
    url = f"{root}/a.jsonl.gz"
    with fsspec.open(url, "wb") as file:
        file.write(encode(url))
    corpus = build_corpus([url], tmp_path_factory.mktemp("out") / "corpus")
    assert [document.text for document in corpus.iterate_documents()] == TEXTS
    assert corpus.manifest["sources"][0]["spec"] == "a.jsonl.gz"


def test_what_is_not_there(root):
    with pytest.raises(
        PHFError, match=r"nothing\.jsonl' is not a file, a folder or a known name; give a path"
    ):
        iterate_source(f"{root}/nothing.jsonl")


def test_what_cannot_be_read(monkeypatch):
    with pytest.raises(PHFError, match=r"s4://b/x\.jsonl cannot be read"):
        iterate_source("s4://b/x.jsonl")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(PHFError, match=r"pip install 'phf\[remote\]'"):
        iterate_source("memory://x.jsonl")


def test_storage_that_does_not_answer(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(self, path, **kwargs):
        raise RuntimeError("403 Forbidden\nno credentials")

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    with pytest.raises(PHFError, match="cannot be reached: 403 Forbidden no credentials; check"):
        iterate_source("memory://x.jsonl")


def test_the_hubs_files_are_no_data_set(monkeypatch):
    """`hf://` is a URL (of fsspec's), `hf:ID` is a data set."""
    with pytest.raises(PHFError, match="hf://datasets/nobody/nothing"):
        iterate_source("hf://datasets/nobody/nothing.jsonl")
    with pytest.raises(PHFError, match="names no data set"):
        iterate_records("hf:")


def test_records_keep_bad_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n[]\n{"n"\n\xff\n')
    (tmp_path / "ignored.txt").write_text("text")
    found = list(iterate_records(str(tmp_path)))
    assert [row.reason if isinstance(row, BadRow) else row.fields for row in found] == [
        "no file of records",
        {"n": 1},
        "not a JSON object",
        "broken JSON",
        "not UTF-8",
    ]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(PHFError, match="holds no file of records"):
        iterate_records(str(tmp_path))
