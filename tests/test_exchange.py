"""Export and import: the same texts, ends and scores on the way back, and nothing made up on the way in."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_annotations import annotate_by, read_all, write_rows

from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation
from phf.corpus.record_files import read_lines
from phf.corpus.rows import Row
from phf.corpus.store import Corpus, build_corpus, write_corpus
from phf.curate.exchange import make_variable
from phf.curate.exchange_export import export_corpus
from phf.curate.exchange_import import import_corpus as import_in_large_groups
from phf.errors import PHFError
from phf.records import Identity
from phf.reward_models import Unscored
from phf.tokens.tokens import tokenize

FORMATS = ("dolma", "phf", "parquet", "datasets", "jsonl")
NASTY = [
    "one line",
    "a 😀 line\nand 𝔘nicode\x00 beyond\u2028 the BMP\r\n\n\n",
    "<|bad|> is text\n\ttoo\n",
    "?\n?\nquestions have\n?no score\n",
    "é́ combining\x85\nend",
]

import_corpus = partial(import_in_large_groups, bytes_per_group=200)  # several groups of these few texts


def length_or_unscored(segment):
    """A score that float64 has to keep, or none."""
    return Unscored("question") if segment[0] == "?" else float(np.float32(len(segment) / 7))


@pytest.fixture
def corpus(tmp_path):
    """45 documents in several shards of several groups, annotated by two models on lines."""
    rows = [{"id": f"d{n}", "text": f"{text}{n}"} for n in range(9) for text in NASTY]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"bytes_per_shard": 500, "bytes_per_group": 200}
    corpus = build_corpus([str(tmp_path / "a.jsonl")], tmp_path / "corpus", validation_fraction=0.3, **sizes)
    annotate_by(corpus, Identity("length", "1"), "lines", length_or_unscored)
    annotate_by(corpus, Identity("other-model", "1"), "lines", lambda segment: -float(ord(segment[0])))
    return corpus


def annotations_of(corpus, *names):
    return [Annotation.open(corpus, name, "lines") for name in names]


def read_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(corpus, tmp_path, kind):
    assert len(corpus.shards) > 2
    (annotation,) = annotations_of(corpus, "length")
    out = export_corpus(corpus, tmp_path / "out", kind, [annotation])
    imported, (found,) = import_corpus(
        str(out), tmp_path / "back", kind, names=["length"], unit="number", validation_fraction=0.3
    )
    assert read_all(imported, found) == read_all(corpus, annotation)
    assert [d.id for d in imported.iterate_documents()] == [
        Path(d.id).name for d in corpus.iterate_documents()
    ]
    assert found.identity.name == "length"
    assert found.identity.version == "imported"
    assert found.unit == "number"
    num_unscored = sum(sum(entry["reasons"].values()) for entry in found.manifest["shards"])
    assert num_unscored == 27, "three lines of each of nine documents"
    assert {reason for entry in found.manifest["shards"] for reason in entry["reasons"]} == {"null in import"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("is_scored", [False, True])
def test_an_export_is_a_source_again(corpus, tmp_path, kind, is_scored):
    """Its texts come back with their ids, its README.md is no text; what holds them in pieces says how it is read."""
    if kind == "phf" and not is_scored:
        return
    out = export_corpus(corpus, tmp_path / "out", kind, annotations_of(corpus, "length") if is_scored else ())
    if is_scored and kind in ("phf", "dolma"):
        with pytest.raises(PHFError, match=f"phf corpus import --format {kind}"):
            build_corpus(out, tmp_path / "back")
        return
    back = build_corpus(out, tmp_path / "back", validation_fraction=0.3)
    assert [(d.id, d.text, d.split) for d in back.iterate_documents()] == [
        (d.id, d.text, d.split) for d in corpus.iterate_documents()
    ]
    (counts,) = back.manifest["sources"]
    assert {"place": "out/README.md", "reason": "no file of records"} in counts["first_left_out"]
    assert counts["num_left_out"] == (3 if kind == "datasets" else 1)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "phf"])
def test_round_trip_of_two_annotations(corpus, tmp_path, kind):
    annotations = annotations_of(corpus, "length", "other-model")
    out = export_corpus(corpus, tmp_path / "out", kind, annotations)
    imported, found = import_corpus(str(out), tmp_path / "back", kind, validation_fraction=0.3)
    prefix = "phf__" if kind == "dolma" else ""
    assert [a.identity.name for a in found] == [f"{prefix}length__lines", f"{prefix}other_model__lines"]
    assert found[0].segment_ends_hash == found[1].segment_ends_hash
    for before, after in zip(annotations, found, strict=True):
        assert read_all(imported, after) == read_all(corpus, before)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_bytes_each_time(corpus, tmp_path, kind):
    annotations = annotations_of(corpus, "length")
    for name in ("one", "two"):
        export_corpus(corpus, tmp_path / name, kind, annotations)
        import_corpus(str(tmp_path / "one"), tmp_path / f"{name}-back", kind, names=["length"])
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")
    assert read_bytes(tmp_path / "one-back") == read_bytes(tmp_path / "two-back")


@pytest.mark.parametrize("ends", [[3, 4], [3], []])
def test_imported_segments_that_do_not_make_up_the_text_are_scored_by_nobody(ends, tmp_path):
    rows = iter([Row("a:1", "ab\ncd", ends=ends)])
    corpus = write_corpus([("a", rows)], tmp_path / "corpus", validation_fraction=0, imported_ends=True)
    with pytest.raises(PHFError, match=r"00000\.parquet has imported segments that do not make up its texts"):
        annotate(corpus, "pii", "imported", workers=1)


def test_unscored_is_null_and_its_document_has_no_mean(corpus, tmp_path):
    annotations = annotations_of(corpus, "length")
    for kind in ("phf", "parquet"):
        export_corpus(corpus, tmp_path / kind, kind, annotations)
    rows = [
        row for file in sorted((tmp_path / "phf/data").iterdir()) for row in pq.read_table(file).to_pylist()
    ]
    expected = [(text, scores) for text, _, _, scores in read_all(corpus, annotations[0])]
    assert [("".join(row["texts"]), row["scores"]) for row in rows] == expected
    for row in rows:
        has_null = None in row["scores"]
        assert row["avg_score"] == (None if has_null else pytest.approx(np.mean(row["scores"])))
        assert row["num_sents"] == len(row["texts"]) == len(row["scores"])
        assert set(row["meta"]) == {"id", "source", "split"}
    table = pq.read_table(tmp_path / "parquet/data/00000.parquet")
    assert table["length__lines"].combine_chunks().field("scores").flatten().null_count > 0


def test_dolma_layout(corpus, tmp_path):
    """What Dolma's types and mixer demand: three numbers per span, the same rows beside each other, code points."""
    (annotation,) = annotations_of(corpus, "length")
    out = export_corpus(corpus, tmp_path / "out", "dolma", [annotation])
    documents = sorted((out / "documents").iterdir())
    assert [file.name for file in documents] == [f"{n:05d}.jsonl.gz" for n in range(len(corpus.shards))]
    for file in documents:
        beside = out / "attributes" / "length__lines" / file.name
        for one, other in zip(read_lines(file), read_lines(beside), strict=True):
            document, tagged = json.loads(one), json.loads(other)
            assert (document["id"], document["source"]) == (tagged["id"], tagged["source"])
            scored = tagged["attributes"]["phf__length__lines"]
            unscored = tagged["attributes"]["phf__length__lines_unscored"]
            spans = sorted(scored + unscored)
            assert all(type(score) is float for _, _, score in spans)
            pieces = [document["text"][start:end] for start, end, _ in spans]
            assert "".join(pieces) == document["text"]
            assert [score for *_, score in scored] == [length_or_unscored(p) for p in pieces if p[0] != "?"]
            assert len(unscored) == sum(piece[0] == "?" for piece in pieces)


def test_one_split(corpus, tmp_path):
    out = export_corpus(corpus, tmp_path / "out", "parquet", split="train")
    ids = [id_ for file in sorted((out / "data").iterdir()) for id_ in pq.read_table(file)["id"].to_pylist()]
    assert ids == [Path(document.id).name for document in corpus.iterate_documents("train")]
    assert 0 < len(ids) < corpus.num_documents


def test_datasets_reads_both_layouts(corpus, tmp_path):
    import datasets

    annotations = annotations_of(corpus, "length")
    folder = export_corpus(corpus, tmp_path / "saved", "datasets", annotations)
    saved = datasets.load_from_disk(str(folder))
    assert saved["text"][:] == [document.text for document in corpus.iterate_documents()]
    expected = [scores for *_, scores in read_all(corpus, annotations[0])]
    assert [row["length__lines"]["scores"] for row in saved] == expected
    folder = export_corpus(corpus, tmp_path / "phf", "phf", annotations)
    rows = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert [row["scores"] for row in rows] == expected


def test_attributes_cut_in_different_places(corpus, tmp_path):
    annotate_by(corpus, Identity("whole", "1"), "document", lambda segment: 1.0)
    annotations = [*annotations_of(corpus, "length"), Annotation.open(corpus, "whole", "document")]
    out = export_corpus(corpus, tmp_path / "out", "parquet", annotations)
    with pytest.raises(PHFError, match=r"36 of 45 rows are bad .36 x .* import one, with --attribute"):
        import_corpus(str(out), tmp_path / "both", "parquet")
    imported, (one,) = import_corpus(
        str(out), tmp_path / "one", "parquet", attributes=["whole__document"], validation_fraction=0.3
    )
    assert read_all(imported, one) == read_all(corpus, annotations[1])


def test_identity_is_of_the_data_and_not_of_the_file(corpus, tmp_path):
    identities = []
    for kind in ("parquet", "jsonl"):
        out = export_corpus(corpus, tmp_path / kind, kind, annotations_of(corpus, "length"))
        identities.append(import_corpus(str(out), tmp_path / f"{kind}-back", kind)[1][0].identity)
    assert identities[0] == identities[1]
    rows = (tmp_path / "rows.jsonl", [{"text": "ab", "ends": [1, 2], "scores": [1, 2]}])
    write_rows(*rows)
    _, (one,) = import_corpus(str(rows[0]), tmp_path / "one", "jsonl")
    rows[1][0]["scores"] = [1, 3]
    write_rows(*rows)
    _, (two,) = import_corpus(str(rows[0]), tmp_path / "two", "jsonl")
    assert one.identity != two.identity


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"texts": ["a", "b"], "scores": [1, 2]}
    for changed in ({**row, "scores": [1, 3]}, {**row, "texts": ["a", "c"]}):
        write_rows(path, [row])

        def change(description, done, total, changed=changed):
            if description == "reading documents":
                write_rows(path, [changed])

        with pytest.raises(PHFError, match="changed while it was being imported"):
            import_corpus(str(path), tmp_path / "corpus", "phf", names=["x"], progress=change)
        assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl"}


def test_imported_segments_are_segments_like_others(corpus, tmp_path):
    out = export_corpus(corpus, tmp_path / "out", "phf", annotations_of(corpus, "length"))
    imported, (ready,) = import_corpus(str(out), tmp_path / "back", "phf", names=["length"])
    scored = annotate(imported, "pii", "imported", workers=1)
    tokens = tokenize(imported, "train:280", "imported")
    assert ready.segment_ends_hash == scored.segment_ends_hash == tokens.segment_ends_hash
    with pytest.raises(PHFError, match="has no imported segments"):
        annotate(corpus, "pii", "imported", workers=1)
    with pytest.raises(PHFError, match="has no imported segments"):
        tokenize(corpus, "train:280", "imported")


def test_a_run_reads_an_imported_annotation(small_corpus, small_config, tmp_path):
    from phf.train.data import open_data

    annotation = Annotation.open(small_corpus, "toxicity-svm", "document")
    out = export_corpus(small_corpus, tmp_path / "out", "phf", [annotation])
    imported, _ = import_corpus(str(out), tmp_path / "back", "phf", names=["svm"], validation_fraction=0.1)
    tokenize(imported, "train:512", "imported", workers=1)
    before = open_data(small_config())
    after = open_data(small_config(f"corpus={imported.path}", "reward_model=svm", "segments=imported"))
    assert np.array_equal(before.scores, after.scores)
    assert before.threshold.value == after.threshold.value


def test_what_cannot_be_exported(corpus, tmp_path):
    annotations = annotations_of(corpus, "length", "other-model")
    with pytest.raises(PHFError, match="holds the scores of one annotation, 2 are given"):
        export_corpus(corpus, tmp_path / "out", "phf", annotations)
    newer = annotate_by(corpus, Identity("length", "2"), "lines", len)
    with pytest.raises(PHFError, match="would both be called length__lines"):
        export_corpus(corpus, tmp_path / "out", "jsonl", [annotations[0], newer])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for call in (
        lambda: export_corpus(corpus, tmp_path / "full", "jsonl"),
        lambda: import_corpus(str(tmp_path / "a.jsonl"), tmp_path / "full", "jsonl"),
    ):
        with pytest.raises(PHFError, match="exists and is not empty"):
            call()


def test_a_failed_export_leaves_nothing(corpus, tmp_path):
    (annotation,) = annotations_of(corpus, "length")
    last = annotation.path / f"{len(corpus.shards) - 1:05d}.parquet"
    last.write_bytes(last.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PHFError, match="is damaged"):
        export_corpus(corpus, tmp_path / "out", "dolma", [annotation])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "variable"),
    [("toxicity-svm", "toxicity_svm"), ("hf:a/b__c", "hf_a_b_c"), ("7b", "m_7b"), ("ü", "m_")],
)
def test_names_that_dolma_can_write_in_a_path(name, variable):
    assert make_variable(name) == variable


def test_reading_a_corpus_does_not_see_the_ends(corpus, tmp_path):
    out = export_corpus(corpus, tmp_path / "out", "phf", annotations_of(corpus, "length"))
    imported, _ = import_corpus(str(out), tmp_path / "back", "phf", names=["x"])
    assert [d.text for d in Corpus.open(imported.path).iterate_documents()] == [
        d.text for d in corpus.iterate_documents()
    ]


def run(monkeypatch, capsys, *arguments):
    from phf import cli

    monkeypatch.setattr("sys.argv", ["phf", "corpus", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_line(corpus, tmp_path, monkeypatch, capsys):
    models = ["-r", "length", "-s", "lines", "-r", "other-model", "-s", "lines"]
    code, out, _ = run(
        monkeypatch, capsys, "export", corpus.path, "-o", tmp_path / "out", "-f", "dolma", *models
    )
    assert code == 0
    assert str(tmp_path / "out" / "README.md") in out
    attribute = ["--attribute", "phf__other_model__lines", "--reward-model-name", "other", "--negate"]
    code, out, _ = run(
        monkeypatch, capsys, "import", tmp_path / "out", "-o", tmp_path / "back", "-f", "dolma", *attribute
    )
    assert code == 0
    assert "num_documents 45" in out
    assert f"{tmp_path / 'back'}/annotations/other@" in out
    annotation = Annotation.open(Corpus.open(tmp_path / "back"), "other", "imported")
    assert np.nanmin(annotation.join_shard(0)[2]) > 0, "negated"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["export", "C", "-o", "x", "-f", "csv"], "format 'csv' is not known; choose dolma, phf"),
        (["export", "C", "-o", "x", "-f", "phf"], "0 are given; name one with -r"),
        (["export", "C", "-o", "x", "-f", "jsonl", "--split", "test"], "choose train, validation"),
        (["export", "C", "-o", "x", "-f", "jsonl", "-r", "nope"], "no annotation by nope on sentences"),
        (["export", "C", "-o", "x", "-f", "jsonl", "-r", "length", "-s", "lines", "-s", "lines"], "give --segments once"),
        (["import", "nowhere", "-o", "x", "-f", "phf", "--reward-model-name", "y"], "nowhere"),
        (["import", "nowhere", "-o", "x", "-f", "dolma"], "documents/ and attributes/NAME/"),
        (["import", "rows.jsonl", "-o", "x", "-f", "phf", "--reward-model-name", "y"], "1 x texts is not a list of strings"),
        (["import", "rows.jsonl", "-o", "x", "-f", "jsonl", "--reward-model-name", "y", "--reward-model-name", "z"], "under 2 names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_user_errors_are_one_line(corpus, tmp_path, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"text": "a", "ends": [1], "scores": [0.5]}])
    before = sorted(tmp_path.iterdir())
    arguments = [str(corpus.path) if argument == "C" else argument for argument in arguments]
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert part in err
    assert sorted(tmp_path.iterdir()) == before
