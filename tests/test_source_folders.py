"""Folders as sources: records are never read as text, splits never thrown together, nothing is left out in silence."""

import json
import os
import signal
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phf.corpus.rows import BadRow, LeftOut, Row
from phf.corpus.sources import iterate_records, iterate_source, name_sources
from phf.corpus.store import build_corpus
from phf.errors import PHFError

TABLE = pa.table({"text": ["one", "two"], "id": [1, 2]})


def write(folder, names):
    """Files of two records each, or of a text where the name is not that of records."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(".parquet"):
            pq.write_table(TABLE.set_column(0, "text", pa.array([f"{name} {n}" for n in range(2)])), path)
        elif name.lower().endswith(".arrow"):
            with pa.ipc.new_stream(str(path), TABLE.schema) as writer:
                writer.write_table(TABLE.set_column(0, "text", pa.array([f"{name} {n}" for n in range(2)])))
        elif name.lower().endswith(".jsonl"):
            path.write_text("".join(json.dumps({"text": f"{name} {n}", "id": n}) + "\n" for n in range(2)))
        else:
            path.write_text(f"the text of {name}")


def read(spec):
    """Texts of a source, and its files that are not read with the reasons, names relative to the folder."""
    rows = list(iterate_source(str(spec)))
    left_out = [(row.place, row.reason) for row in rows if isinstance(row, LeftOut)]
    assert not [row for row in rows if isinstance(row, BadRow) and not isinstance(row, LeftOut)]
    return [row.text for row in rows if isinstance(row, Row)], left_out


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A test that waits for a pipe ends."""
    monkeypatch.chdir(tmp_path)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)


def test_a_saved_data_set(here):
    datasets = pytest.importorskip("datasets")
    texts = [f"row {n}" for n in range(6)]
    rows = datasets.Dataset.from_dict({"text": texts, "id": list(range(6))})
    rows.save_to_disk("saved", num_shards=2)
    Path("saved/cache-1.arrow").write_bytes(Path("saved/data-00000-of-00002.arrow").read_bytes())
    found, left_out = read("saved")
    assert found == texts
    assert left_out == [
        ("saved/dataset_info.json", "no file of records"),
        ("saved/state.json", "no file of records"),
        ("saved/cache-1.arrow", "not listed in state.json"),
    ]
    assert [row.own_id for row in iterate_source("saved") if isinstance(row, Row)] == list("012345")
    Path("saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(PHFError, match=r"lists data-00001-of-00002\.arrow, which is not there"):
        read("saved")
    Path("saved/state.json").write_text('{"_data_files": [3]}')
    with pytest.raises(PHFError, match=r"state\.json lists no data files"):
        read("saved")


def test_the_splits_of_a_saved_data_set(here):
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(2)]})
        for name in ("train", "test", "odd")
    }
    datasets.DatasetDict(splits).save_to_disk("saved")
    with pytest.raises(
        PHFError, match=r"several splits: odd \(files: 1\), test .*train .*; name the one .* saved:train, or"
    ):
        read("saved")
    with pytest.raises(PHFError, match="several splits"):
        iterate_records("saved")
    texts, left_out = read("./saved/:train")
    assert texts == ["train 0", "train 1"]
    assert [name for name, reason in left_out if reason == "of split test"] == [
        "./saved/test/data-00000-of-00001.arrow"
    ]
    assert read("saved:odd,test")[0] == ["odd 0", "odd 1", "test 0", "test 1"]
    with pytest.raises(PHFError, match=r"has no split 'dev'; it has odd \(files: 1\)"):
        read("saved:dev")
    corpus = build_corpus("saved:train", "corpus")
    assert corpus.manifest["sources"][0]["spec"] == "saved:train"
    assert next(document.id for document in corpus.iterate_documents()) == (
        "saved/train/data-00000-of-00001.arrow:1"
    )


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], ["test", "train"]),
        (["data/sft-00000-of-00001.parquet", "data/gen-00000-of-00001.parquet"], ["gen", "sft"]),
        (["train.jsonl", "dev.jsonl"], ["train", "validation"]),
        (["a.jsonl", "my_test.jsonl"], ["other", "test"]),
        (["x/training/a.jsonl", "x/Eval/a.JSONL"], ["test", "train"]),
        (["train/en.jsonl", "train/de.jsonl", "val/en.jsonl"], ["train", "validation"]),
        (["train/pos/1.txt", "test/pos/1.txt"], ["test", "train"]),
        (["contest.jsonl", "latest.jsonl"], []),
        (["train.jsonl", "more.jsonl"], []),
        (["test.jsonl"], []),
        (["test/a.py", "b.py", "c/train/d.py"], []),
    ],
)
def test_splits_are_chosen_where_there_are_several(here, names, splits):
    write(here / "d", [*names, "README.md"])
    if not splits:
        assert len(read("d")[0]) == len(names) * (2 if "jsonl" in names[0] else 1) + ("jsonl" not in names[0])
        return
    with pytest.raises(PHFError, match=", ".join(rf"{split} \(files: \d\)" for split in splits)):
        read("d")
    each = [read(f"d:{split}")[0] for split in splits]
    assert all(each)
    assert sorted(text for texts in each for text in texts) == sorted(read(f"d:{','.join(splits)}")[0])


def test_other_files_beside_records_are_no_documents(here):
    write(
        here / "d",
        ["a.jsonl", "B.JSONL", "C.Parquet", "D.arrow", "x.json", "LICENSE", "README.md", ".gitattributes"],
    )
    (here / "d" / "void.jsonl").write_text("\n\n")
    texts, left_out = read("d")
    assert texts == [f"{name} {n}" for name in ("B.JSONL", "C.Parquet", "D.arrow", "a.jsonl") for n in (0, 1)]
    assert left_out == [
        ("d/.gitattributes", "hidden"),
        ("d/LICENSE", "no file of records"),
        ("d/README.md", "no file of records"),
        ("d/x.json", "no file of records"),
        ("d/void.jsonl", "no record in it"),
    ]


def test_a_record_among_many_texts_does_not_hide_them(here):
    write(here / "d", ["data.ndjson", *(f"{n:02d}.py" for n in range(10))])
    (here / "d" / "data.ndjson").write_text('{"text": "a"}\n')
    assert read("d")[0] == ["a"]
    write(here / "d", ["10.py"])
    with pytest.raises(
        PHFError, match=r"holds 11 other files beside 1 of records \(data\.ndjson\); name those"
    ):
        read("d")


def test_records_in_json_are_no_texts(here):
    write(here / "d", ["a.txt"])
    for name, content, is_text in (
        ("array.json", '[\n {"text": "a"}]', False),
        ("lines.JSON", '{"text": "a"}\n{"text": "b"}\n', False),
        ("object.json", '{"text": "a",\n "more": {}}\n', True),
        ("numbers.json", "[1, 2]", True),
        ("lines.txt", '{"text": "a"}\n{"text": "b"}\n', True),
    ):
        (here / "d" / name).write_text(content)
        row = next(row for row in iterate_source("d") if row.place == f"d/{name}")
        assert row == (
            Row(f"d/{name}", content)
            if is_text
            else BadRow(f"d/{name}", "records in JSON: write them as .jsonl")
        )


def test_what_is_left_out_is_counted_and_named(here, capsys, monkeypatch):
    from phf import cli

    write(here / "d", ["a.jsonl", "LICENSE", "README.md"])
    monkeypatch.setattr("sys.argv", ["phf", "corpus", "build", "d", "-o", "a corpus"])
    cli.main()
    printed = capsys.readouterr().out
    assert "left out: 2 x no file of records, the first d/LICENSE\n" in printed
    assert "every one is in a corpus/bad_rows.jsonl" in printed
    assert "next: phf annotate 'a corpus' --reward-model NAME" in printed
    listed = [json.loads(line) for line in Path("a corpus/bad_rows.jsonl").read_text().splitlines()]
    assert [row["place"] for row in listed] == ["d/LICENSE", "d/README.md"]
    (counts,) = json.loads(Path("a corpus/manifest.json").read_text())["sources"]
    assert (counts["num_rows"], counts["num_bad_rows"], counts["num_left_out"]) == (2, 0, 2)
    assert counts["first_left_out"][0] == {"place": "d/LICENSE", "reason": "no file of records"}


def test_links_are_followed_and_what_is_no_file_is_named(here):
    write(here / "elsewhere", ["x/b.txt"])
    write(here / "d", ["a.txt", "c/d.txt"])
    Path("d/link").symlink_to("../elsewhere")
    Path("d/file.txt").symlink_to("../elsewhere/x/b.txt")
    Path("d/c/up").symlink_to("..")
    Path("d/self").symlink_to("self")
    Path("d/.hidden").symlink_to("nowhere")
    os.mkfifo("d/pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("d/socket")
    texts, left_out = read("d")
    assert texts == ["the text of a.txt", "the text of c/d.txt", "the text of x/b.txt", "the text of x/b.txt"]
    assert left_out == [
        ("d/.hidden", "hidden"),
        ("d/c/up", "a folder that is read under another name"),
        ("d/pipe.txt", "no regular file"),
        ("d/self", "a link to itself"),
        ("d/socket", "no regular file"),
    ]


def test_what_cannot_be_read_is_an_error(here, monkeypatch):
    write(here / "d", ["a.txt", "locked/b.txt"])
    Path("d/gone").symlink_to("nowhere")
    with pytest.raises(
        PHFError, match=r"d/gone cannot be read \(No such file or directory\); make it readable"
    ):
        read("d")
    Path("d/gone").unlink()
    for name in ("memory.txt", "memory.jsonl", "memory.parquet"):  # opens, and fails to be read
        Path("d", name).symlink_to("/proc/self/mem")
        with pytest.raises(PHFError, match=rf"{name} cannot be read .*(Input/output error|Invalid argument)"):
            read("d")
        Path("d", name).unlink()
    list_all = Path.iterdir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return list_all(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PHFError, match=r"d/locked cannot be read \(Permission denied\)"):
        read("d")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet", "p.arrow"])
def test_a_pipe_is_no_source(here, name):
    os.mkfifo(name)
    with pytest.raises(PHFError, match=rf"{name} is no regular file"):
        list(iterate_source(name))


def test_one_corpus_however_its_path_is_spelled(here, monkeypatch):
    Path("x.jsonl").write_text('{"text": "a"}\n{"text": 3}\n{"text": "b"}\n{"text": "c"}\n')
    write(here / "d", ["b.txt", "c/a.txt"])
    spelled = [["x.jsonl", "d"], ["./x.jsonl", "./d/"], [f"{here}/x.jsonl", f"{here}/d/c/../../d"]]
    built = [build_corpus(specs, here / f"corpus-{n}") for n, specs in enumerate(spelled)]
    monkeypatch.chdir(here / "d")
    built.append(build_corpus(["../x.jsonl", "."], here / "corpus-3"))
    assert len({corpus.id for corpus in built}) == 1
    assert len({(corpus.path / "manifest.json").read_bytes() for corpus in built}) == 1
    assert [document.id for document in built[0].iterate_documents()] == [
        "x.jsonl:1", "x.jsonl:3", "x.jsonl:4", "d/b.txt", "d/c/a.txt",
    ]  # fmt: skip
    assert (built[0].path / "bad_rows.jsonl").read_text().count(str(here)) == 0


def test_names_tell_sources_apart(here):
    write(here, ["a/x.jsonl", "b/x.jsonl", "m/1"])
    assert name_sources(["a/x.jsonl", "./b/x.jsonl", "fortunes"]) == ["a/x.jsonl", "b/x.jsonl", "fortunes"]
    assert name_sources(["a/x.jsonl", f"{here}/a/x.jsonl"]) == ["x.jsonl", "x.jsonl"]
    assert name_sources(["mails:m", f"hf:{here}/a", "hf:owner/name", "tweets"]) == [
        "mails:m", "hf:a", "hf:owner/name", "tweets",
    ]  # fmt: skip
    assert name_sources(["s3://bucket/d/x.jsonl", "./a/:train"]) == ["x.jsonl", "a:train"]
    texts = {document.id for document in build_corpus(["a/x.jsonl", "b"], "corpus").iterate_documents()}
    assert texts == {"0", "1", "b/x.jsonl:1", "b/x.jsonl:2"}
