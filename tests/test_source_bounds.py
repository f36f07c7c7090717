"""Files that are not what they seem: without an end, too deep, too long, unreadable in a column that nobody wants. And odd ones
that are fine.
"""

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from phf.corpus import record_files, rows, store
from phf.corpus.record_files import Record
from phf.corpus.rows import MAX_BYTES, BadRow, Row
from phf.corpus.sources import iterate_records, iterate_source
from phf.corpus.store import Corpus, build_corpus
from phf.curate.exchange_import import import_corpus
from phf.errors import PHFError
from phf.evaluate.measures.scenarios import load_scenario
from phf.reward_training.labels import read_labels

FAR = pa.array([10**6, 2**31 - 1], pa.int32()).cast(pa.date32())  # the second is no date that Python has


@pytest.fixture
def small_bound(monkeypatch):
    for module in (rows, record_files):
        monkeypatch.setattr(module, "MAX_BYTES", 1 << 16)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "tsv.zst"])
def test_a_line_without_end_is_refused(tmp_path, small_bound, monkeypatch, ending):
    monkeypatch.setattr(record_files, "_CHUNK", 1 << 12)
    path = tmp_path / f"bomb.{ending}"
    data = b'{"text": "x"}\ntext\n' + bytes(10 << 20)
    path.write_bytes(
        gzip.compress(data)
        if ending[-2:] == "gz"
        else zstandard.compress(data)
        if ending[-3:] == "zst"
        else data
    )
    with pytest.raises(PHFError, match=rf"bomb\.{ending}:3 is longer than 0 MB, so no line of records"):
        list(iterate_source(str(path), None if "jsonl" in ending else '{"text": "x"}'))


def test_what_is_decompressed_at_a_time_is_bounded(tmp_path):
    """Eight kilobytes of zstandard hold a quarter of a gigabyte of zeros."""
    path = tmp_path / "bomb.jsonl.zst"
    compressor = zstandard.ZstdCompressor().compressobj()
    path.write_bytes(b"".join(compressor.compress(bytes(1 << 26)) for _ in range(4)) + compressor.flush())
    assert path.stat().st_size < 1 << 16
    with path.open("rb") as file:
        sizes = [len(piece) for piece in record_files._decompress(file, path.name)]
    assert sum(sizes) == 1 << 28
    assert max(sizes) <= MAX_BYTES


def test_a_text_that_is_too_large_is_a_bad_row(tmp_path, small_bound):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("x" * (1 << 16))
    (tmp_path / "d" / "b.txt").write_text("x" * ((1 << 16) + 1))
    assert [getattr(row, "reason", "") for row in iterate_source(str(tmp_path / "d"))] == [
        "",
        "larger than 128 MB",
    ]


def test_json_that_python_does_not_take(tmp_path):
    path = tmp_path / "a.jsonl"
    deep = "[" * 10_000 + "]" * 10_000
    path.write_text(
        f'{{"text": "a", "n": {deep}}}\n{{"text": "b", "n": {"9" * 5000}}}\n{{"text": "c", "id": {"9" * 4000}}}\n'
    )
    assert list(iterate_source(str(path))) == [
        BadRow(f"{path}:1", "broken JSON"),
        BadRow(f"{path}:2", "broken JSON"),
        Row(f"{path}:3", "c", "9" * 4000),
    ]
    (tmp_path / "doc.json").write_text(deep)
    assert list(iterate_source(f"nlp-corpus:{tmp_path}"))[-1] == BadRow("nlp-corpus:doc", "broken JSON")


def test_bad_rows_without_end_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MAX_BAD_ROWS", 50)
    (tmp_path / "a.jsonl").write_text("x\n" * 100)
    with pytest.raises(PHFError, match=r"yields no text: all 50 rows are bad \(50 x broken JSON\)"):
        build_corpus(tmp_path / "a.jsonl", tmp_path / "corpus")


def test_columns_that_are_not_used_are_not_read(tmp_path):
    ends = pa.array([{"ends": [3], "scores": [0.5]}] * 2)
    columns = {"text": ["one", "two"], "prompt": ["one", "two"], "label": [0, 1], "score": ends, "day": FAR}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    feather = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(feather), pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    for file in (path, feather):
        assert [row.text for row in iterate_source(str(file))] == ["one", "two"]
        assert load_scenario(str(file)).prompts == ("one", "two")
        _, (annotation,) = import_corpus(str(file), tmp_path / f"corpus{file.suffix}", "parquet")
        assert annotation.identity.name == "score"
        with pytest.raises(
            PHFError, match=rf"a\{file.suffix}, column 'day', holds a value that cannot be read \(days"
        ):
            list(iterate_source(str(file), "day"))
        with pytest.raises(PHFError, match="column 'day'"):
            list(iterate_records(str(file)))
    assert read_labels(path).texts == ["one", "two"]


def test_a_damaged_column_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    text = [f"text {n}" * 50 for n in range(500)]
    pq.write_table(
        pa.table({"text": text, "noise": text[::-1]}), path, compression="snappy", use_dictionary=False
    )
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset + 200
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    assert len(list(iterate_source(str(path)))) == 500
    with pytest.raises(PHFError, match=r"a\.parquet cannot be read as Parquet \(column 'noise': "):
        list(iterate_records(str(path)))


@pytest.mark.parametrize("compression", ["none", "brotli", "zstd"])
def test_parquet_as_others_write_it(tmp_path, compression):
    texts = ["one", None, "zwei \u00fc\u2028\x00", "", "one"]
    rows = [("one", 1), ("zwei \u00fc\u2028\x00", 3), ("one", 5)]
    for number, kind in enumerate(
        (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.string())
    ):
        path = tmp_path / f"{number}.parquet"
        table = pa.table({"text": pa.array(texts).cast(kind), "day": [datetime.date(1, 1, 1)] * 5})
        pq.write_table(table, path, compression=compression, row_group_size=2)
        found = list(iterate_source(str(path)))
        assert [
            (row.text, int(row.place.rpartition(":")[2])) for row in found if isinstance(row, Row)
        ] == rows
        assert [row.reason for row in found if isinstance(row, BadRow)] == ["no text", "text is empty"]


def test_json_lines_as_others_write_them(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "byte order mark"}\r',
        b'{"text": "a", "score": NaN, "far": -Infinity}',
        b'{"text": "first", "text": "last"}',
        '{"text": "nul \\u0000 and \u2028 and \x85"}'.encode(),
        b'  {"text": "spaces"}  ',
    ]
    expected = ["byte order mark", "a", "last", "nul \x00 and \u2028 and \x85", "spaces"]
    data = b"\n".join(lines)
    for name, content in (
        ("a.jsonl", data),
        ("a.jsonl.gz", gzip.compress(data[:40]) + gzip.compress(data[40:])),
        ("a.jsonl.zst", zstandard.compress(data[:40]) + zstandard.compress(data[40:])),
    ):
        (tmp_path / name).write_bytes(content)
        assert [row.text for row in iterate_source(str(tmp_path / name))] == expected
        assert next(iterate_records(str(tmp_path / name))) == Record(
            f"{tmp_path / name}:1", {"text": "byte order mark"}
        )


def test_a_line_of_thirty_megabytes(tmp_path):
    text = "long \u00fc " * (30 << 17)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "b"}\n')
    assert [row.text for row in iterate_source(str(tmp_path / "a.jsonl"))] == [text, "b"]


def test_reading_a_corpus_writes_nothing_into_it(tmp_path):
    """So that one on a read-only disk will do."""
    from phf.curate.exchange_export import export_corpus
    from phf.curate.stats import corpus_stats

    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    build_corpus(tmp_path / "a.jsonl", tmp_path / "corpus")
    before = {
        path: path.stat().st_mtime_ns for path in [tmp_path / "corpus", *(tmp_path / "corpus").rglob("*")]
    }
    corpus = Corpus.open(tmp_path / "corpus")
    assert len(list(corpus.iterate_documents())) == corpus_stats(corpus)["counts"]["train"]["documents"] == 2
    export_corpus(corpus, tmp_path / "out", "parquet")
    after = {
        path: path.stat().st_mtime_ns for path in [tmp_path / "corpus", *(tmp_path / "corpus").rglob("*")]
    }
    assert after == before
