"""Exports of Argilla and Label Studio, in the layouts that their own code writes."""

import json

import pytest

from phf.errors import PHFError
from phf.feedback.label_import import import_labels

# Argilla 2: dataset.records.to_json (argilla/records/_io/_json.py, Record.to_dict)
ARGILLA_2 = [
    {
        "id": "r1",
        "fields": {"text": "you fool"},
        "metadata": {},
        "suggestions": {"quality": {"value": "safe", "score": 0.9, "agent": "m"}},
        "responses": {
            "quality": [{"value": "toxic", "user_id": "u1"}, {"value": "Not-Toxic", "user_id": "u2"}]
        },
        "vectors": {},
        "_server_id": "s1",
    },
    {
        "id": "r2",
        "fields": {"text": "nobody said"},
        "metadata": {},
        "suggestions": {},
        "responses": {},
        "vectors": {},
    },
]
# Argilla 2, flat: dataset.records.to_datasets().to_json (GenericIO._record_to_dict)
ARGILLA_2_FLAT = [
    {
        "id": "r1",
        "status": "completed",
        "_server_id": "s1",
        "text": "you fool",
        "quality.responses": ["bad", "good", "bad"],
        "quality.responses.users": ["u1", "u2", "u3"],
        "quality.responses.status": ["submitted", "submitted", "draft"],
        "quality.suggestion": "safe",
    },
    {"id": "r2", "status": "pending", "_server_id": "s2", "text": "nobody", "quality.responses": None},
]
# Argilla 1: FeedbackRecord
ARGILLA_1 = [
    {
        "fields": {"text": "you fool"},
        "responses": [
            {"user_id": "u1", "values": {"score": {"value": 2}}, "status": "submitted"},
            {"user_id": "u2", "values": {"score": {"value": 5}}, "status": "discarded"},
        ],
        "external_id": "x1",
    }
]
# Argilla 1, format_as("datasets")
ARGILLA_1_DATASET = [
    {
        "text": "you fool",
        "score": [
            {"user_id": "u1", "value": 2, "status": "submitted"},
            {"user_id": "u2", "value": None, "status": "discarded"},
        ],
        "score-suggestion": None,
        "external_id": "x1",
        "metadata": "{}",
    }
]
# Argilla 1, text classification
ARGILLA_1_CLASSES = [
    {
        "id": 1,
        "text": "you fool",
        "inputs": {"text": "you fool"},
        "annotation": "NEGATIVE",
        "annotation_agent": "u1",
    },
    {"id": 2, "text": "nobody", "inputs": {"text": "nobody"}, "annotation": None, "annotation_agent": None},
]


def choice(name, value="text", question="toxic"):
    return {"from_name": question, "to_name": value, "type": "choices", "value": {"choices": [name]}}


# https://labelstud.io/guide/task_format
LABEL_STUDIO = [
    {
        "id": 7,
        "data": {"text": "you fool"},
        "annotations": [
            {
                "id": 1,
                "completed_by": {"id": 3, "email": "a@b.c"},
                "was_cancelled": False,
                "created_at": "2021-03-09T22:16:08.728353Z",
                "result": [choice("Toxic")],
            },
            {"id": 2, "completed_by": 4, "was_cancelled": True, "result": [choice("Toxic")]},
        ],
        "predictions": [{"result": [choice("OK")]}],
    },
    {"id": 8, "data": {"text": "nobody"}, "annotations": []},
    {
        "id": 9,
        "data": {"text": "fine"},
        "annotations": [{"id": 3, "completed_by": 4, "result": [choice("OK")]}],
    },
]


def run(tmp_path, records, *, lines=False, **options):
    path = tmp_path / "export.json"
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    imported = import_labels(path, tmp_path / "labels.jsonl", **options)
    written = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert written == imported.rows
    assert all(row.pop("imported_from") == "export.json" for row in written)
    return written, imported


def label(text, value, record, labeler):
    return {"text": text, "label": value, "segment_id": record, "labeler": labeler}


@pytest.mark.parametrize(
    ("records", "rows", "unmapped"),
    [
        (
            ARGILLA_2,
            [label("you fool", 1, "r1", "u1"), label("you fool", 0, "r1", "u2")],
            [("r2", "no response")],
        ),
        (
            ARGILLA_2_FLAT,
            [label("you fool", 1, "r1", "u1"), label("you fool", 0, "r1", "u2")],
            [("r1", "status draft"), ("r2", "no response")],
        ),
        (
            ARGILLA_1,
            [{"text": "you fool", "rating": 2, "segment_id": "x1", "labeler": "u1"}],
            [("x1", "status discarded")],
        ),
        (
            ARGILLA_1_DATASET,
            [{"text": "you fool", "rating": 2, "segment_id": "x1", "labeler": "u1"}],
            [("x1", "status discarded")],
        ),
        (ARGILLA_1_CLASSES, [label("you fool", 1, "1", "u1")], [("2", "no response")]),
        (
            LABEL_STUDIO,
            [
                label("you fool", 1, "7", "a@b.c") | {"time": "2021-03-09T22:16:08.728353Z"},
                label("fine", 0, "9", "4"),
            ],
            [("7", "skipped by its annotator"), ("8", "no annotation")],
        ),
    ],
    ids=[
        "argilla 2",
        "argilla 2 flat",
        "argilla 1",
        "argilla 1 dataset",
        "argilla 1 classes",
        "label studio",
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_every_layout_gives_one_row_per_judgement_and_says_what_it_left_out(
    tmp_path, records, rows, unmapped, lines
):
    written, imported = run(tmp_path, records, lines=lines)
    assert written == rows
    assert imported.unmapped == unmapped


def test_a_ranking_gives_every_pair_and_a_tie_none(tmp_path):
    def record(name, value):
        fields = {"prompt": "p", "a": "first", "b": "second", "c": "third"}
        return {"id": name, "fields": fields, "responses": {"rank": [{"value": value, "user_id": "u"}]}}

    ranked = [{"value": "c", "rank": 1}, {"value": "a", "rank": 2}, {"value": "b", "rank": 2}]
    written, imported = run(
        tmp_path, [record("r1", ranked), record("r2", ["b", "a"]), record("r3", ranked[1:])]
    )
    pairs = [(row["chosen"], row["rejected"], row["chosen_id"], row["rejected_id"]) for row in written]
    assert pairs == [
        ("third", "first", "r1#c", "r1#a"),
        ("third", "second", "r1#c", "r1#b"),
        ("second", "first", "r2#b", "r2#a"),
    ]
    assert imported.unmapped == [("r3", "a tie")]


def test_a_pair_of_label_studio_needs_to_know_which_field_was_left(tmp_path):
    result = {"from_name": "pw", "to_name": "text1", "type": "pairwise", "value": {"selected": "right"}}
    tasks = [
        {
            "id": 1,
            "data": {"t1": "one", "t2": "two"},
            "annotations": [{"completed_by": 1, "result": [result]}],
        }
    ]
    with pytest.raises(PHFError, match="--field LEFT --field RIGHT of: t1, t2"):
        run(tmp_path, tasks)
    written, _ = run(tmp_path, tasks, fields=["t1", "t2"])
    assert (written[0]["chosen"], written[0]["rejected"]) == ("two", "one")


def test_unknown_choices_stop_the_import_until_someone_says_what_they_mean(tmp_path):
    tasks = [
        {"id": n, "data": {"text": f"t{n}"}, "annotations": [{"result": [choice(name)]}]}
        for n, name in enumerate(["Insult", "Meh", "Fine by me", "toxic"])
    ]
    with pytest.raises(PHFError, match="'Fine by me', 'Meh'; say which with --bad"):
        run(tmp_path, tasks)
    with pytest.raises(PHFError, match="'Meh'"):
        run(tmp_path, tasks, good=["fine by me"])
    with pytest.raises(PHFError, match="'meh' is given as --good and as --bad"):
        run(tmp_path, tasks, good=["meh"], bad=["Meh"])
    assert not (tmp_path / "labels.jsonl").exists()
    written, _ = run(tmp_path, tasks, good=["fine by me", "toxic"], bad=["meh"])
    assert [row["label"] for row in written] == [1, 1, 0, 0], "what a person says outweighs the list"


def test_texts_that_cannot_be_used_are_listed_not_dropped(tmp_path):
    texts = {"a": "", "b": "x\ud800", "c": 5, "d": "ok"}
    tasks = [
        {"id": name, "data": {"text": text}, "annotations": [{"result": [choice("bad")]}]}
        for name, text in texts.items()
    ]
    both = {"type": "choices", "from_name": "toxic", "value": {"choices": ["bad", "good"]}}
    area = {"type": "textarea", "from_name": "why", "value": {"text": ["because"]}}
    tasks += [{"id": "e", "data": {"text": "t"}, "annotations": [{"result": [both, area]}]}]
    _, imported = run(tmp_path, tasks)
    assert sorted(imported.unmapped) == [
        ("a", "empty text"),
        ("b", "lone surrogate"),
        ("c", "no text"),
        ("e", "a result of type textarea"),
        ("e", "good and bad choices at once"),
    ]
    assert imported.count_reasons()["lone surrogate"] == 1
    assert len(imported.rows) == 1


def test_ratings_can_be_turned(tmp_path):
    written, _ = run(tmp_path, ARGILLA_1, higher_is_worse=True)
    assert written[0]["rating"] == -2


def region(name, start, end, **beside):
    """An answer about a span, as the control tag with perRegion="true" gives it."""
    value = {"start": start, "end": end, "choices": [name], **beside}
    return {"from_name": "toxic", "to_name": "text", "type": "choices", "id": "r1", "value": value}


def test_an_answer_to_a_region_is_a_label_of_its_span_alone(tmp_path):
    text = "Fine \U0001f600 so far. You fool! Bye."
    good, bad = region("good", 0, 14), region("bad", 15, 24, text="You fool!", labels=["insult"])
    utf_16 = region("bad", 16, 25, text="You fool!")
    marked = {
        "type": "labels",
        "id": "r2",
        "from_name": "l",
        "value": {"start": 15, "end": 18, "labels": ["x"]},
    }
    beside = {**choice("bad"), "id": "r2"}  # of that region, by its id alone
    tasks = [
        {
            "id": 7,
            "data": {"text": text, "n": "ab"},
            "annotations": [{"result": [good, bad, utf_16, marked, beside]}],
        }
    ]
    written, imported = run(tmp_path, tasks, fields=["text"])
    assert [(row["text"], row["label"], row["segment_id"]) for row in written] == [
        ("Fine \U0001f600 so far.", 0, "7[0:14]"),
        ("You fool!", 1, "7[15:24]"),
        ("You fool!", 1, "7[16:25]"),
        ("You", 1, "7[15:18]"),
    ]
    assert imported.unmapped == [("7", "a result of type labels")]


@pytest.mark.parametrize(
    "place",
    [
        {"start": 0, "end": 99},
        {"start": 3, "end": 2},
        {"start": "0", "end": "2", "startOffset": 0, "endOffset": 3},  # a dialogue's paragraphs
        {"start": 0.5, "end": 1.5, "channel": 0},
        {"x": 1, "y": 2, "width": 3, "height": 4},
        {"start": 0, "end": 3, "text": "another"},
        {"start": True, "end": 2},
    ],
    ids=str,
)
def test_a_region_that_is_no_span_is_left_out_by_its_reason(tmp_path, place):
    odd = {**choice("bad"), "value": {"choices": ["bad"], **place}}
    tasks = [
        {"id": n, "data": {"text": "you fool"}, "annotations": [{"result": [result]}]}
        for n, result in enumerate([odd, choice("good")])
    ]
    written, imported = run(tmp_path, tasks)
    assert [(row["text"], row["label"]) for row in written] == [("you fool", 0)]
    assert imported.count_reasons() == {"about a region that is no span of a text": 1}


@pytest.mark.parametrize(
    "annotations",
    [[None], ["x"], "x", 5, [{"result": [None]}], [{"result": "x"}], [{"result": [{"type": "choices", "value": "x"}]}],
     [{"result": [{"type": "choices", "value": [1]}]}], [{"result": [{"type": [], "value": {"choices": ["bad"]}}]}]],
    ids=str,
)  # fmt: skip
def test_a_record_of_another_shape_is_left_out_and_counted(tmp_path, annotations):
    odd = {"id": 1, "data": {"text": "odd"}, "annotations": annotations}
    written, imported = run(tmp_path, [LABEL_STUDIO[2], odd])
    assert [row["text"] for row in written] == ["fine"]
    assert sum(imported.count_reasons().values()) == 1


@pytest.mark.parametrize(
    "responses", [[None], {"q": 5}, {"q": [None]}, [{"values": 3}], [{"values": {"q": None}}]], ids=str
)
def test_an_argilla_record_of_another_shape_is_left_out_and_counted(tmp_path, responses):
    odd = {"id": "odd", "fields": {"text": "odd"}, "responses": responses}
    written, imported = run(tmp_path, [ARGILLA_2[0], odd])
    assert [row["text"] for row in written] == ["you fool", "you fool"]
    assert imported.unmapped == [("odd", "of another shape than the exports of its tool")]


def test_a_byte_order_mark_and_lone_surrogates_beside_the_text_are_no_obstacle(tmp_path):
    (tmp_path / "bom.json").write_text(
        "\ufeff" + json.dumps([{**LABEL_STUDIO[2], "id": "\ud800"}]), encoding="utf-8"
    )
    import_labels(tmp_path / "bom.json", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["segment_id"] == "\ud800"


@pytest.mark.parametrize("rating", [1e38, -1e300, float("nan"), float("inf"), 10**400])
def test_a_rating_beyond_all_bounds_is_left_out(tmp_path, rating):
    odd = {
        "fields": {"text": "t"},
        "responses": [{"values": {"score": {"value": rating}}, "status": "submitted"}],
    }
    written, imported = run(tmp_path, [ARGILLA_1[0], odd])
    assert [row["rating"] for row in written] == [2]
    assert imported.count_reasons()["a rating beyond all bounds"] == 1


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([{"id": 1, "text": "a", "annotation_id": 4, "sentiment": "bad"}], {}, "JSON-MIN"),
        ([{"a": 1}], {}, "no record of Argilla or Label Studio"),
        ([], {}, "no list of records"),
        (ARGILLA_2[1:], {}, "has no answer in it"),
        (ARGILLA_2, {"question": "mood"}, r"no question 'mood'; choose with --question: quality \(2\)"),
        (ARGILLA_2, {"fields": ["body"]}, "2 x no text in field body"),
        (
            [{"fields": {"prompt": "p", "reply": "r"}, "responses": {"q": [{"value": "bad"}]}}],
            {},
            "fields prompt, reply; choose the judged one with --field",
        ),
        (
            [{"fields": {"text": "t"}, "responses": {"q": [{"value": "bad"}], "r": [{"value": 1}]}}],
            {},
            r"several questions; choose with --question: q \(1\), r \(1\)",
        ),
        (
            [{"fields": {"text": "t"}, "responses": {"q": [{"value": "bad"}, {"value": 3}]}}],
            {},
            "answers of 2 kinds",
        ),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path, records, options, message):
    with pytest.raises(PHFError, match=message) as caught:
        run(tmp_path, records, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "labels.jsonl").exists()


def test_an_existing_file_and_text_that_is_no_json_are_refused(tmp_path):
    (tmp_path / "labels.jsonl").write_text("mine\n")
    with pytest.raises(PHFError, match="exists; give -o another file"):
        run(tmp_path, ARGILLA_2)
    assert (tmp_path / "labels.jsonl").read_text() == "mine\n"
    (tmp_path / "labels.jsonl").unlink()
    imported = run(tmp_path, ARGILLA_2)
    assert run(tmp_path, ARGILLA_2) == imported, "what this very command has written is no obstacle"
    (tmp_path / "x.json").write_text("id,text\n1,a\n")
    with pytest.raises(PHFError, match=r"x.json:1 is not JSON"):
        import_labels(tmp_path / "x.json", tmp_path / "y.jsonl")
