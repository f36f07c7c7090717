"""Rows of other tools: what they leave out has no score, and what is wrong with them is counted or refused."""

import json
import math
from itertools import accumulate

import numpy as np
import pytest
from fake_annotations import read_all, write_rows
from hypothesis import given
from hypothesis import strategies as st

from phf.corpus.record_files import read_lines
from phf.corpus.store import build_corpus
from phf.curate.balance import balance_corpus
from phf.curate.exchange_export import make_spans
from phf.curate.exchange_import import import_corpus
from phf.curate.exchange_rows import fill_gaps, read_spans
from phf.errors import PHFError
from phf.tokens.tokens import tokenize
from phf.train.data import open_data


def write_dolma(folder, spans_of, key="x__y__z"):
    """A folder as Dolma's taggers write it: texts with the spans of each."""
    documents = [{"id": str(n), "source": "s", "text": text} for n, (text, _) in enumerate(spans_of)]
    tagged = [
        {"id": str(n), "source": "s", "attributes": {key: spans}} for n, (_, spans) in enumerate(spans_of)
    ]
    write_rows(folder / "documents/cc/0.json.gz", documents)
    write_rows(folder / "attributes/tagger/cc/0.json.gz", tagged)
    return str(folder)


def test_spans_that_leave_something_out(tmp_path):
    source = write_dolma(
        tmp_path / "dolma",
        [
            ("One. Two.\n", [[0, 4, 0.25], [5, 9, 1]]),  # white space between and behind
            ("head\nbad 😀\ntail", [[5, 10, 0.5]]),  # text before and behind
            ("none", []),
            ("two\nspans", [[4, 9, 1.0], [0, 4, 2.0]]),  # in another order
        ],
    )
    corpus, (annotation,) = import_corpus(source, tmp_path / "corpus", "dolma")
    assert annotation.identity.name == "x__y__z"
    found = {text: (ends, scores) for text, _, ends, scores in read_all(corpus, annotation)}
    assert found == {
        "One. Two.\n": ([4, 10], [0.25, 1.0]),
        "head\nbad 😀\ntail": ([5, 10, 15], [None, 0.5, None]),
        "none": ([4], [None]),
        "two\nspans": ([4, 9], [2.0, 1.0]),
    }
    (entry,) = annotation.manifest["shards"]
    assert entry["reasons"] == {"no score in import": 3}


def test_bad_rows_of_dolma_are_counted(tmp_path):
    source = write_dolma(
        tmp_path / "dolma",
        [
            *[("good", [[0, 4, 0.5]])] * 10,
            ("overlap", [[0, 4, 0.5], [3, 7, 0.5]]),
            ("outside", [[0, 8, 0.5]]),
            ("empty", [[2, 2, 0.5]]),
            ("backwards", [[3, 2, 0.5]]),
            ("pair", [[0, 4]]),
            ("word", [[0, 4, "high"]]),
            ("infinite", [[0, 8, 1e39]]),
            ("huge num", [[0, 8, -1e38]]),
            ("no list", 0.7),
        ],
    )
    corpus, (annotation,) = import_corpus(source, tmp_path / "corpus", "dolma")
    assert [row[0] for row in read_all(corpus, annotation)] == ["good"]
    assert corpus.manifest["sources"][0]["bad_row_reasons"] == {
        "spans overlap": 1,
        "a span is empty or outside the text": 3,
        "a span is not [start, end, score]": 1,
        "a score is no number within ±1e+09": 3,
        "spans are not a list": 1,
    }


def test_dolma_files_that_do_not_belong_together_are_refused(tmp_path):
    texts = [("one", [[0, 3, 1.0]]), ("two", [[0, 3, 2.0]])]
    tagged = tmp_path / "dolma/attributes/tagger/cc/0.json.gz"
    source = write_dolma(tmp_path / "dolma", texts)
    lines = [line.decode().strip() for line in read_lines(tagged)]
    for wrong, problem in (
        (lines[::-1], "is not of the same documents: it has id '1' where"),
        (lines[:1], "ends before line 2"),
        ([*lines, lines[0]], "has more lines than"),
    ):
        write_rows(tagged, wrong)
        with pytest.raises(PHFError, match=problem):
            import_corpus(source, tmp_path / "corpus", "dolma")
        assert {path.name for path in tmp_path.iterdir()} == {"dolma"}, "nothing half-imported"
    tagged.rename(tagged.with_name("1.json.gz"))
    with pytest.raises(PHFError, match="is missing, though there is"):
        import_corpus(source, tmp_path / "corpus", "dolma")


def test_attributes_that_are_not_there(tmp_path):
    source = write_dolma(tmp_path / "dolma", [("one", [[0, 3, 1.0]])])
    with pytest.raises(PHFError, match="has the attribute nope; there are the folders tagger"):
        import_corpus(source, tmp_path / "corpus", "dolma", attributes=["nope"])
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(PHFError, match="phf corpus build"):
        import_corpus(str(tmp_path / "t.jsonl"), tmp_path / "corpus", "jsonl")
    with pytest.raises(PHFError, match="has no folder attributes/"):
        import_corpus(str(tmp_path), tmp_path / "corpus", "dolma")


def test_published_phf_rows(tmp_path):
    """The layout on the Hub: `num_sents` is wrong in some of those data sets, a piece may be empty, meta is free."""
    rows = [
        {"texts": ["Mail a@b.org. ", "", "Ok."], "scores": [0.07, 0.0, 0.0], "avg_score": 0.02, "num_sents": 5, "meta": {"pile_set_name": "Enron"}},
        {"texts": ["x"], "scores": [0.1, 0.2], "meta": {}},
        {"texts": [], "scores": [], "meta": {}},
        {"texts": "x", "scores": [1.0]},
        {"texts": ["x"], "scores": [True]},
        *[{"texts": ["nan"], "scores": [math.nan]}] * 3,
    ]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(PHFError, match="--reward-model-name NAME"):
        import_corpus(str(tmp_path / "rows.jsonl"), tmp_path / "corpus", "phf")
    corpus, (annotation,) = import_corpus(
        str(tmp_path / "rows.jsonl"), tmp_path / "corpus", "phf", names=["pii"]
    )
    assert [(text, ends, scores) for text, _, ends, scores in read_all(corpus, annotation)] == [
        ("Mail a@b.org. Ok.", [14, 17], [float(np.float32(0.07)), 0.0]),
        ("nan", [3], [None]),
    ]
    assert corpus.manifest["sources"][0]["bad_row_reasons"] == {
        "not as many scores as texts": 1,
        "text is empty": 1,
        "texts is not a list of strings": 1,
        "a score is no number within ±1e+09": 1,
    }


def test_duplicates_and_bad_rows_do_not_shift_scores(tmp_path):
    rows = ["broken", *({"texts": [f"{n // 2 % 3}\n", "end"], "scores": [0, n]} for n in range(9)), "broken"]
    write_rows(tmp_path / "rows.jsonl", rows)
    corpus, (annotation,) = import_corpus(
        str(tmp_path / "rows.jsonl"), tmp_path / "corpus", "phf", names=["n"]
    )
    assert [(text, scores) for text, _, _, scores in read_all(corpus, annotation)] == [
        ("0\nend", [0, 0]),
        ("1\nend", [0, 2]),
        ("2\nend", [0, 4]),
    ]
    assert corpus.manifest["sources"][0]["num_duplicates"] == 6


def test_rows_whose_ends_are_not_those_of_the_text(tmp_path):
    good = {"text": "ab😀", "ends": [2, 3], "scores": [1, None]}
    rows = [{**good, "ends": ends} for ends in (*[[2, 3]] * 7, [2, 4], [3, 3], [], [3], ["2", 3], None)]
    write_rows(tmp_path / "rows.jsonl", rows)
    corpus, (annotation,) = import_corpus(str(tmp_path / "rows.jsonl"), tmp_path / "corpus", "jsonl")
    assert read_all(corpus, annotation)[0][2:] == ([2, 3], [1, None])
    assert corpus.manifest["sources"][0]["bad_row_reasons"] == {
        "the ends do not make up the text": 3,
        "no list of ends with as many scores in scores": 3,
    }


def test_higher_is_better(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"texts": ["a", "b", "c"], "scores": [0.5, -2, None]}])
    source = str(tmp_path / "rows.jsonl")
    corpus, (annotation,) = import_corpus(source, tmp_path / "one", "phf", names=["x"], negate=True)
    assert read_all(corpus, annotation)[0][3] == [-0.5, 2, None]
    _, (plain,) = import_corpus(source, tmp_path / "two", "phf", names=["x"])
    assert plain.identity != annotation.identity


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1), st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)
        ),
        min_size=1,
    )
)
def test_any_segments_are_spans_and_back(segments):
    text = "".join(piece for piece, _ in segments)
    ends = list(accumulate(len(piece) for piece, _ in segments))
    scores = [score for _, score in segments]
    spans = json.loads(json.dumps(make_spans("a", ends, scores)))
    read = [
        *read_spans(spans["a"], len(text), is_scored=True),
        *read_spans(spans["a_unscored"], len(text), is_scored=False),
    ]
    found_ends, found = fill_gaps(text, sorted(read, key=lambda span: span[:2]))
    assert found_ends == ends
    assert [None if math.isnan(score) else score for score in found] == scores


@given(st.text(min_size=1), st.data())
def test_any_spans_make_up_the_text(text, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8, unique=True)))
    spans = [(a, b, 1.0) for a, b in zip(places[::2], places[1::2], strict=False)]
    ends, scores = fill_gaps(text, spans)
    assert len(ends) == len(scores)
    assert ends[-1] == len(text)
    assert all(a < b for a, b in zip([0, *ends], ends, strict=False))
    assert sum(score == 1 for score in scores) == len(spans)


def test_attributes_are_not_documents(tmp_path):
    """A folder of Dolma's, read as texts: as many rows as the documents have are attributes, and no text."""
    source = write_dolma(tmp_path / "dolma", [(f"text {n}", [[0, 4, 0.5]]) for n in range(30)])
    for path in (tmp_path / "dolma").rglob("*.json.gz"):  # as Dolma's newer taggers call them
        path.rename(path.with_name("0.jsonl.gz"))
    for wrong in (source, f"{source}/attributes", f"{source}/attributes/tagger/cc/0.jsonl.gz"):
        with pytest.raises(
            PHFError, match=r"30 x attributes without a text.*--format dolma.*first at .*0.jsonl.gz:1;"
        ):
            build_corpus([wrong], tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
    assert build_corpus([f"{source}/documents"], tmp_path / "corpus").num_documents == 30


@pytest.mark.parametrize(
    ("num_bad", "num_empty", "is_refused"), [(10, 0, True), (9, 0, False), (9, 40, False)]
)
def test_a_source_that_is_half_bad_is_refused(tmp_path, num_bad, num_empty, is_refused):
    rows = [{"body": "x"}] * num_bad + [{"text": f"{n}"} for n in range(10)] + [{"text": ""}] * num_empty
    write_rows(tmp_path / "rows.jsonl", rows)
    if is_refused:
        with pytest.raises(
            PHFError, match=r"10 of 20 rows are bad \(10 x no text\).*rows.jsonl:1; .*--text-field"
        ):
            build_corpus([str(tmp_path / "rows.jsonl")], tmp_path / "corpus")
    else:
        assert build_corpus([str(tmp_path / "rows.jsonl")], tmp_path / "corpus").num_documents == 10


def test_text_that_no_span_covers(tmp_path):
    """A span tagger marks what it finds: what the rest means is the user's to say, and is never 0 unasked."""
    source = write_dolma(tmp_path / "dolma", [("clean", []), ("head bad tail", [[5, 8, 0.5]])])
    scores = {}
    for negate in (False, True):
        corpus, (annotation,) = import_corpus(
            source, tmp_path / f"zero-{negate}", "dolma", uncovered="0", negate=negate
        )
        scores[negate] = [row[3] for row in read_all(corpus, annotation)]
    assert scores == {False: [[0], [0, 0.5, 0]], True: [[0], [0, -0.5, 0]]}
    _, (unsaid,) = import_corpus(source, tmp_path / "unsaid", "dolma")
    assert unsaid.describe_unscored() == "3 x no score in import"
    assert unsaid.identity != annotation.identity
    with pytest.raises(PHFError, match=r"0.json.gz:1 has text that no span covers.*--uncovered 0"):
        import_corpus(source, tmp_path / "error", "dolma", uncovered="error")
    with pytest.raises(PHFError, match="--uncovered 0 is about spans"):
        import_corpus(source, tmp_path / "error", "jsonl", uncovered="0")


def test_what_was_said_to_be_unscored_is_not_uncovered(tmp_path):
    source = write_dolma(tmp_path / "dolma", [("one two", [[0, 4, 0.5]])])
    line = {"id": "0", "attributes": {"x__y__z": [[0, 4, 0.5]], "x__y__z_unscored": [[4, 7, 1.0]]}}
    write_rows(tmp_path / "dolma/attributes/tagger/cc/0.json.gz", [line])
    corpus, (annotation,) = import_corpus(source, tmp_path / "corpus", "dolma", uncovered="0")
    assert read_all(corpus, annotation)[0][3] == [0.5, None]


def test_a_split_that_is_dropped_for_missing_scores_is_named_so(tmp_path, small_config):
    texts = [(f"text {n} and a long tail", [[0, 4, n / 40]]) for n in range(40)]
    source = write_dolma(tmp_path / "dolma", texts)
    corpus, (annotation,) = import_corpus(source, tmp_path / "corpus", "dolma", validation_fraction=0.5)
    tokenize(corpus, "train:265", "imported", workers=1)
    settings = [
        f"corpus={corpus.path}", "reward_model=x__y__z", "segments=imported", "tokenizer=train:265", "tokens=100",
    ]  # fmt: skip
    with pytest.raises(PHFError, match=r"data.missing=drop to leave their documents out \(40 of 40\)"):
        open_data(small_config(*settings))
    for objective in (
        "{kind: mle}",
        "{kind: filtering, keep_fraction: 0.5}",
        "{kind: masking, threshold: 0.5}",
    ):
        config = small_config(*settings, "data.missing=drop", f"objective={objective}")
        with pytest.raises(
            PHFError,
            match=r"train split of .* is dropped: .* \(in all 40 x no score in import\).*uncovered 0",
        ):
            open_data(config)
    with pytest.raises(PHFError, match="is dropped: each of its 40 documents"):
        balance_corpus(corpus, annotation, tmp_path / "balanced", threshold=0.5)
