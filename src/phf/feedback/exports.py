"""The layouts of Argilla's and Label Studio's exports, read into answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from phf.errors import PHFError

_Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one annotator said to one question about one record.

    Attributes:
        record: its id, or `record N` counted from 1.
        fields: the record's texts by name.
        value: a choice, a list of choices, a number, a ranking, or `{"selected": "left"}`.
    """

    record: str
    fields: _Record
    question: str
    value: object
    labeler: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A record, or one annotator's part of it, that says nothing; with the reason."""

    record: str
    reason: str


def read_label_studio(records: Iterable[_Record]) -> Iterator[Answer | NoAnswer]:
    """Tasks with `data` and `annotations` (formerly `completions`), whose `result` holds choices, a rating or a pair."""
    for number, task in enumerate(records, start=1):
        name = _name(task, number)
        yield from _read_whole(_read_task(task, name), name)


def _read_task(task: _Record, name: str) -> Iterator[Answer | NoAnswer]:
    data = task.get("data")
    annotations = task.get("annotations", task.get("completions")) or []
    if not isinstance(data, dict) or not annotations:
        yield NoAnswer(name, "no annotation")
        return
    fields = {key: text for key, text in data.items() if isinstance(text, str)}
    for annotation in annotations:
        results = annotation.get("result") or []
        if annotation.get("was_cancelled"):
            yield NoAnswer(name, "skipped by its annotator")
            continue
        if not results:
            yield NoAnswer(name, "empty annotation")
        # A region is told from a comment (`text` alone); what is said of it has its id.
        places = {
            result["id"]: place
            for result in results
            if (place := _find_place(result)).keys() - {"text"} and "id" in result
        }
        for result in results:
            kind = result.get("type")
            if kind not in ("choices", "rating", "pairwise"):
                yield NoAnswer(name, f"a result of type {kind}")
                continue
            yield _read_result(
                result, name, fields, annotation, _find_place(result) or places.get(result.get("id"))
            )


def _read_result(
    result: _Record, name: str, fields: _Record, annotation: _Record, place: _Record | None
) -> Answer | NoAnswer:
    """The answer to the whole record, or to the span of it that a region marks."""
    value, kind, by = result.get("value") or {}, result["type"], annotation.get("completed_by")
    by = by.get("email", by.get("id")) if isinstance(by, dict) else by
    if place:
        fields = {
            field: span for field, text in fields.items() if (span := _cut_span(text, place)) is not None
        }
        if not fields:
            return NoAnswer(name, "about a region that is no span of a text")
        name = f"{name}[{place['start']}:{place['end']}]"
    return Answer(
        record=name,
        fields=fields,
        question=str(result.get("from_name")),
        value=value if kind == "pairwise" else value.get(kind),
        labeler=None if by is None else str(by),
        time=annotation.get("created_at"),
    )


def _find_place(result: _Record) -> _Record:
    """Where in its record a result is: what its value holds beside the answer. Empty if it is about the whole."""
    value = result.get("value") or {}
    place = {key: item for key, item in value.items() if key not in (result.get("type"), "selected")}
    return place | ({"item": index} if (index := result.get("item_index")) is not None else {})


def _cut_span(text: str, place: _Record) -> str | None:
    """The text of a region, whose ends count code points (or UTF-16 units, as older versions have them); None if it has none, or
    another than the region says."""
    start, end, said = place.get("start"), place.get("end"), place.get("text")
    if type(start) is not int or type(end) is not int or not 0 <= start < end or place.keys() - _OF_A_SPAN:
        return None
    wide = text.encode("utf-16-le", "surrogatepass")
    for span in (text[start:end], wide[2 * start : 2 * end].decode("utf-16-le", "replace")):
        if (said is None and end <= len(text)) or (said is not None and span.split() == said.split()):
            return span
    return None


_OF_A_SPAN = {"start", "end", "text", "labels", "globalOffsets"}


def _read_whole(answers: Iterator[Answer | NoAnswer], name: str) -> list[Answer | NoAnswer]:
    """What a record says, or nothing of it if a part has another shape than its tool writes."""
    try:
        return list(answers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return [NoAnswer(name, "of another shape than the exports of its tool")]


def read_argilla(records: Iterable[_Record]) -> Iterator[Answer | NoAnswer]:
    """Records of Argilla 2 (`to_json`, or flat as `to_datasets` makes them) and of Argilla 1 (feedback datasets, their
    `datasets` form, and text classification).

    Raises:
        PHFError: a record has none of these layouts.
    """
    for number, record in enumerate(records, start=1):
        name = _name(record, number)
        answers = _read_whole(_read_argilla_record(record, name), name)
        yield from answers or [NoAnswer(name, "no response")]


def _read_argilla_record(record: _Record, name: str) -> Iterator[Answer | NoAnswer]:
    responses = record.get("responses")
    if isinstance(record.get("fields"), dict):
        if isinstance(responses, dict):  # 2, nested: {question: [{value, user_id}]}
            for question, given in responses.items():
                for response in given or []:
                    yield _answer(name, record["fields"], question, response)
        else:  # 1: [{user_id, status, values: {question: {value}}}]
            for response in responses or []:
                for question, value in (response.get("values") or {}).items():
                    yield _answer(name, record["fields"], question, {**response, **value})
        return
    texts = {key: value for key, value in record.items() if isinstance(value, str) and key not in _BESIDE}
    flat = [key.removesuffix(".responses") for key in record if key.endswith(".responses")]
    columns = [key for key, value in record.items() if _is_response_column(value)]
    if flat:  # 2, flat: question.responses, question.responses.users, question.responses.status
        for question in flat:
            key = f"{question}.responses"
            values = record[key] or []
            users = record.get(f"{key}.users") or [None] * len(values)
            states = record.get(f"{key}.status") or ["submitted"] * len(values)
            for value, user, status in zip(values, users, states, strict=True):
                yield _answer(name, texts, question, {"value": value, "user_id": user, "status": status})
    elif columns:  # 1, as a dataset: question: [{value, user_id, status}]
        for question in columns:
            for response in record[question]:
                yield _answer(name, texts, question, response)
    elif "annotation" in record:  # 1, text classification
        if record["annotation"] is not None:
            fields = record.get("inputs") or {"text": record.get("text")}
            time, agent = record.get("event_timestamp"), record.get("annotation_agent")
            yield Answer(
                name,
                fields,
                "annotation",
                record["annotation"],
                agent,
                time if isinstance(time, str) else None,
            )
    else:
        raise PHFError(
            f"{name} has the fields {', '.join(record)[:200]}, which is no record of Argilla or Label Studio; "
            "export with Argilla's dataset.records.to_json, or Label Studio's JSON"
        )


_BESIDE = ("id", "_server_id", "status", "external_id", "metadata")


def _is_response_column(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, dict) and "value" in v and "status" in v for v in value)
    )


def _answer(name: str, fields: _Record, question: str, response: _Record) -> Answer | NoAnswer:
    status = response.get("status") or "submitted"
    if status != "submitted":
        return NoAnswer(name, f"status {status}")
    if response.get("value") is None:
        return NoAnswer(name, "no value")
    user = response.get("user_id")
    return Answer(name, fields, question, response["value"], None if user is None else str(user))


def _name(record: _Record, number: int) -> str:
    found = record.get("id", record.get("external_id"))
    return f"record {number}" if found is None else str(found)
