"""A corpus on object storage: read and annotated by its URL, the same bytes as on a disk."""

import json
import sys

import fsspec
import pytest

from phf.annotate.annotate import Annotation, annotate, load_scores
from phf.cli import main
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError
from phf.files import find_local, read_json, to_path, write_json
from phf.tokens.tokens import tokenize


@pytest.fixture
def source(tmp_path):
    texts = [f"mail {n}@b.org. Ü😀 {'x' * (n % 50)}\n\nand so on" for n in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    yield str(tmp_path / "a.jsonl")
    files = fsspec.filesystem("memory")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def read_bytes(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("segments", ["sentences", "paragraphs"])
def test_object_storage_holds_the_bytes_of_a_disk(source, tmp_path, segments):
    local = build_corpus([source], tmp_path / "corpus", bytes_per_shard=8000, bytes_per_group=1000)
    annotation = annotate(local, "pii", segments, workers=1)
    remote = build_corpus([source], "memory://bucket/corpus", bytes_per_shard=8000, bytes_per_group=1000)
    assert str(remote.path) == "memory://bucket/corpus"
    calls = []
    stored = annotate(remote, "pii", segments, workers=1, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("annotating documents", 200, 200)
    files = fsspec.filesystem("memory")
    found = {name.removeprefix("/bucket/corpus/"): files.cat(name) for name in files.find("/bucket/corpus")}
    assert found == read_bytes(local.path)
    assert stored.slug == annotation.slug

    opened = Annotation.open(Corpus.open("memory://bucket/corpus"), "pii", segments)
    assert load_scores(opened.corpus, opened)[0].tolist() == load_scores(local, annotation)[0].tolist()
    assert annotate(remote, "pii", segments, workers=1).num_scored_now == 0
    shard = opened.path / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(PHFError, match=r"memory://bucket/.*00001\.parquet is damaged.*--verify"):
        load_scores(opened.corpus, opened)
    assert annotate(remote, "pii", segments, workers=1, verify=True).num_scored_now > 0
    assert files.cat(shard.path) == read_bytes(annotation.path)["00001.parquet"]


def test_two_workers_read_a_url(source, tmp_path):
    local = annotate(
        build_corpus([source], tmp_path / "corpus", bytes_per_shard=8000, bytes_per_group=1000),
        "pii",
        "lines",
        workers=1,
    )
    remote = build_corpus([source], f"file://{tmp_path}/remote", bytes_per_shard=8000, bytes_per_group=1000)
    stored = annotate(remote, "pii", "lines", workers=2)
    assert str(stored.path).startswith("file://")
    assert read_bytes(tmp_path / "remote" / "annotations" / stored.slug) == read_bytes(local.path)


def test_what_is_refused_is_one_line(source, tmp_path, monkeypatch):
    remote = build_corpus([source], "memory://bucket/corpus")
    assert build_corpus([source], "memory://bucket/corpus").id == remote.id, "as on a disk, it is there"
    with pytest.raises(PHFError, match="memory://bucket/corpus exists and is not empty; delete"):
        build_corpus([source], "memory://bucket/corpus", validation_fraction=0.5)
    (other := tmp_path / "other.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(PHFError, match=r"not empty; .* \(its documents/.* is not what this command makes\)"):
        build_corpus([str(other)], "memory://bucket/corpus")
    with pytest.raises(PHFError, match="memory://bucket/none holds no corpus"):
        Corpus.open("memory://bucket/none")
    with pytest.raises(PHFError, match=r"is not on a local disk.*copy the corpus to one"):
        tokenize(remote, "train:300", "lines")
    with pytest.raises(PHFError, match=r"nothing://b/c cannot be read \(.*pip install 'phf\[remote\]'"):
        Corpus.open("nothing://b/c")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(
        PHFError, match=r"memory://bucket/corpus cannot be read \(.*pip install 'phf\[remote\]'"
    ):
        Corpus.open("memory://bucket/corpus")


def test_storage_that_does_not_answer_is_one_line(source, monkeypatch):
    remote = build_corpus([source], "memory://bucket/corpus", bytes_per_shard=8000, bytes_per_group=1000)

    def refuse(*args, **options):
        raise RuntimeError("AccessDenied:\n you may not")

    monkeypatch.setattr(type(remote.path.fs), "put_file", refuse)
    with pytest.raises(
        PHFError, match="cannot be reached: AccessDenied: you may not; check the URL and your cred"
    ):
        annotate(remote, "pii", "lines", workers=1)
    monkeypatch.setattr(type(remote.path.fs), "isfile", refuse)
    with pytest.raises(
        PHFError, match="cannot be reached: AccessDenied: you may not; check the URL and your cred"
    ):
        Corpus.open("memory://bucket/corpus")
    monkeypatch.undo()


def test_a_copy_that_breaks_off_is_no_corpus(source, monkeypatch):
    files = fsspec.filesystem("memory")
    put_file = type(files).put_file

    def break_off(self, file, place, **options):
        if place.endswith("00001.parquet"):
            raise ConnectionResetError("gone")
        put_file(self, file, place, **options)

    monkeypatch.setattr(type(files), "put_file", break_off)
    with pytest.raises(PHFError, match="cannot be reached: gone"):
        build_corpus([source], "memory://bucket/corpus", bytes_per_shard=8000, bytes_per_group=1000)
    assert files.exists("/bucket/corpus/documents/00000.parquet")
    with pytest.raises(PHFError, match="holds no corpus"):
        Corpus.open("memory://bucket/corpus")
    monkeypatch.undo()


def test_paths_and_urls(tmp_path):
    assert to_path("a/b").as_posix() == "a/b"
    assert to_path(tmp_path) is tmp_path
    assert find_local(to_path(f"file://{tmp_path}/x")) == tmp_path / "x"
    assert find_local(to_path("memory://bucket/x")) is None
    for place in (f"file://{tmp_path}/x/y.json", "memory://bucket/y.json"):
        write_json(to_path(place), {"a": [1]})
        assert read_json(to_path(place)) == {"a": [1]}
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y.json"]


def test_the_command_line_takes_urls(source, tmp_path, monkeypatch, capsys):
    url = f"file://{tmp_path}/corpus"
    for line in (
        ["corpus", "build", source, "-o", url],
        ["annotate", url, "-r", "pii", "-s", "paragraphs", "--workers", "1", "--verify"],
    ):
        monkeypatch.setattr("sys.argv", ["phf", *line])
        main()
    output = capsys.readouterr().out
    assert f"{url}: 200 documents\nnext: phf annotate {url}" in output
    assert f"{url}/annotations/pii@" in output
    assert "scored 400 segments now" in output
