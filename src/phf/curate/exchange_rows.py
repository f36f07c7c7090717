"""Rows of scored text as other tools write them: where each segment ends, and what its scores are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from pathlib import Path

import pyarrow as pa

from phf.corpus.folders import JSONL_SUFFIXES, find_files
from phf.corpus.record_files import Record, parse_line, read_lines
from phf.corpus.rows import BadRow, LeftOut, Row, make_row
from phf.corpus.sources import TEXT_FIELDS, iterate_records
from phf.curate.exchange import NO_SPAN, UNSCORED_SUFFIX, ExchangeFormat, Uncovered
from phf.errors import PHFError
from phf.files import to_path
from phf.records import MAX_SCORE
from phf.reward_models.protocol import Unscored

_NULL = "null in import"
_NUM_SAMPLED = 1000  # rows that are looked at for the attributes there are
_PHF_COLUMNS = ("texts", "scores", "id", "meta")
_DOLMA_SUFFIXES = (*JSONL_SUFFIXES, ".json", ".json.gz", ".json.zst")

_Spans = list[tuple[int, int, float]]


@dataclass(frozen=True, slots=True)
class ScoredRow(Row):
    """A text with segments and scores.

    Attributes:
        ends: code points, increasing; the last is the length of the text.
        scores: for each attribute, one score per segment; higher = worse.
    """

    ends: Sequence[int] = ()
    scores: Sequence[Sequence[float]] = ()


def find_attributes(source: str, kind: ExchangeFormat, wanted: Sequence[str] = ()) -> list[str]:
    """The attributes (of Dolma's) or columns that hold scores: those wanted, or all in the first thousand rows.

    Raises:
        PHFError: there are none; the source is unknown.
    """
    if kind == "phf":
        if wanted and list(wanted) != ["scores"]:
            raise PHFError(
                f"format phf has one attribute, scores, not {', '.join(wanted)}; leave --attribute away"
            )
        return ["scores"]
    if wanted:
        return list(wanted)
    found: dict[str, None] = {}
    if kind == "dolma":
        for folder in _list_attribute_folders(source):
            for _, path in islice(_find_dolma_files(folder), 1):
                for line in islice(read_lines(path), _NUM_SAMPLED):
                    found.update(dict.fromkeys(_read_attributes(line)))
        attributes = [name for name in found if not name.endswith(UNSCORED_SUFFIX)]
    else:
        for record in islice(iterate_records(source, _choose_nested), _NUM_SAMPLED):
            fields = record.fields if isinstance(record, Record) else {}
            found |= {
                name: None
                for name, value in fields.items()
                if isinstance(value, dict) and {"ends", "scores"} <= value.keys()
            }
            if isinstance(fields.get("ends"), list) and isinstance(fields.get("scores"), list):
                found["scores"] = None
        attributes = list(found)
    if not attributes:
        raise PHFError(
            f"source '{source}' has no scores in the format {kind}; choose another --format, or name the "
            "--attribute; text without scores is read by: phf corpus build"
        )
    return attributes


def iterate_scored_rows(
    source: str,
    kind: ExchangeFormat,
    attributes: Sequence[str],
    negate: bool,
    uncovered: Uncovered | None = None,
    name: str | None = None,
) -> Iterator[ScoredRow | BadRow]:
    """The rows of a source, in its order; the same rows at each call.

    Args:
        name: what the rows' places begin with, by default the source.
        attributes: whose scores; see `find_attributes`.
        negate: higher is better in the source.
        uncovered: of text that no span covers (see `import_corpus`).

    Raises:
        PHFError: a file is missing, damaged, or its rows are not those of the file beside it; text that no span covers, if
            that is an error.
    """
    if kind == "dolma":
        rows = _iterate_dolma(source, attributes, name or source.rstrip("/"))
    else:
        read = _read_phf_row if kind == "phf" else _read_row
        columns = _PHF_COLUMNS if kind == "phf" else (*TEXT_FIELDS, "id", "ends", *attributes)
        rows = (
            record if isinstance(record, BadRow) else read(record, attributes)
            for record in iterate_records(source, columns, name)
        )
    for row in rows:
        if isinstance(row, ScoredRow):
            scores = [[_settle(score, row.place, negate, uncovered) for score in own] for own in row.scores]
            yield replace(row, scores=scores)
        else:
            yield row


def _choose_nested(path: Path, types: "Mapping[str, pa.DataType | None]") -> list[str]:
    """The columns of a table that may hold lists of scores."""
    return [name for name, kind in types.items() if kind is None or pa.types.is_nested(kind)]


def _settle(score: float, place: str, negate: bool, uncovered: Uncovered | None) -> float:
    """A score the right way round, or what the user says of text that no span covers."""
    if getattr(score, "reason", None) == NO_SPAN and uncovered is not None:
        if uncovered == "error":
            raise PHFError(
                f"{place} has text that no span covers, so no score; if that means a score of 0, give --uncovered 0"
            )
        return 0.0
    return -score if negate and not math.isnan(score) else score


def _read_phf_row(record: Record, attributes: Sequence[str]) -> ScoredRow | BadRow:
    """A row of the published PHF data sets. A piece without text has nothing to score and is left out."""
    texts, scores = record.fields.get("texts"), record.fields.get("scores")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return BadRow(record.place, "texts is not a list of strings")
    if not isinstance(scores, list) or len(scores) != len(texts):
        return BadRow(record.place, "not as many scores as texts")
    meta = record.fields.get("meta")
    own_id = record.fields.get("id") or (meta.get("id") if isinstance(meta, dict) else None)
    row = make_row(record.place, "".join(texts), own_id)
    pieces = [(text, score) for text, score in zip(texts, scores, strict=True) if text]
    ends = list(accumulate(len(text) for text, _ in pieces))
    return _combine(row, [(ends, [score for _, score in pieces])])


def _read_row(record: Record, attributes: Sequence[str]) -> ScoredRow | BadRow:
    """A row with a text and, for each attribute, an object of `ends` and `scores`, or lists of these names beside it."""
    fields = record.fields
    text = next((fields[name] for name in TEXT_FIELDS if name in fields), None)
    row = make_row(record.place, text, fields.get("id"))
    if isinstance(row, BadRow):
        return row
    cut = []
    for attribute in attributes:
        value = fields.get(attribute)
        ends, scores = (
            (value.get("ends"), value.get("scores"))
            if isinstance(value, dict)
            else (fields.get("ends"), value)
        )
        if not isinstance(ends, list) or not isinstance(scores, list) or len(ends) != len(scores):
            return BadRow(record.place, f"no list of ends with as many scores in {attribute}")
        is_whole = all(type(end) is int for end in ends) and ends[-1:] == [len(row.text)]
        if not is_whole or any(a >= b for a, b in pairwise([0, *ends])):
            return BadRow(record.place, "the ends do not make up the text")
        cut.append((ends, scores))
    return _combine(row, cut)


def _iterate_dolma(source: str, attributes: Sequence[str], place: str) -> Iterator[ScoredRow | BadRow]:
    """Documents and the attributes beside them, line by line."""
    folders = [_find_attribute_folder(source, attribute) for attribute in attributes]
    found, left_out = find_files(to_path(source))
    left_out += [LeftOut(name, "no file of Dolma's") for name, _ in found if not _is_dolma_file(name)]
    yield from (LeftOut(f"{place}/{row.place}", row.reason) for row in left_out)
    for name, path in _find_dolma_files(_find_folder(source, "documents")):
        files = [folder / name for folder in folders]
        for file in files:
            if not file.exists():
                raise PHFError(f"{file} is missing, though there is {path}; tag the documents again")
        lines = [read_lines(file) for file in files]
        for number, line in enumerate(read_lines(path), start=1):
            record = parse_line(line, f"{place}/documents/{name}:{number}")
            beside = [next(other, None) for other in lines]
            for file, other in zip(files, beside, strict=True):
                if other is None:
                    raise PHFError(f"{file} ends before line {number} of {path}; tag the documents again")
            yield record if isinstance(record, BadRow) else _read_dolma_row(record, beside, attributes, files)
        for file, rest in zip(files, lines, strict=True):
            if next(rest, None) is not None:
                raise PHFError(f"{file} has more lines than {path}; tag the documents again")


def _read_dolma_row(
    record: Record, beside: Sequence[bytes | None], attributes: Sequence[str], files: Sequence[Path]
) -> ScoredRow | BadRow:
    row = make_row(record.place, record.fields.get("text"), record.fields.get("id"))
    cut = []
    for attribute, line, file in zip(attributes, beside, files, strict=True):
        other = parse_line(line or b"", record.place)
        if isinstance(other, BadRow) or not isinstance(values := other.fields.get("attributes"), dict):
            return BadRow(record.place, "broken line of attributes")
        if other.fields.get("id") != record.fields.get("id"):
            raise PHFError(
                f"{file} is not of the same documents: it has id {other.fields.get('id')!r} where {record.place} has "
                f"{record.fields.get('id')!r}; tag the documents again"
            )
        if isinstance(row, BadRow):
            return row
        spans = read_spans(values.get(attribute, []), len(row.text), is_scored=True)
        others = read_spans(values.get(attribute + UNSCORED_SUFFIX, []), len(row.text), is_scored=False)
        if isinstance(spans, str) or isinstance(others, str):
            return BadRow(record.place, str(spans if isinstance(spans, str) else others))
        segments = fill_gaps(row.text, sorted([*spans, *others], key=lambda span: span[:2]))
        if isinstance(segments, str):
            return BadRow(record.place, segments)
        cut.append(segments)
    return _combine(row, cut)


def read_spans(value: object, length: int, *, is_scored: bool) -> _Spans | str:
    """Spans `[start, end, score]` in code points, or what is wrong with them."""
    if not isinstance(value, list):
        return "spans are not a list"
    spans = []
    for span in value:
        if not isinstance(span, list) or len(span) != 3 or not all(type(place) is int for place in span[:2]):
            return "a span is not [start, end, score]"
        start, end, score = span
        if not 0 <= start < end <= length:
            return "a span is empty or outside the text"
        spans.append((start, end, score if is_scored else Unscored(_NULL)))
    return spans


def fill_gaps(text: str, spans: _Spans) -> tuple[list[int], list[float]] | str:
    """Segments that make up the text. White space between spans goes to the next one (at the end, to the last); other
    text that no span covers is a segment without a score.
    """
    ends: list[int] = []
    scores: list[float] = []
    last = 0
    for start, end, score in spans:
        if start < last:
            return "spans overlap"
        if text[last:start].strip():
            ends.append(start)
            scores.append(Unscored(NO_SPAN))
        ends.append(end)
        scores.append(score)
        last = end
    if ends and not text[last:].strip():
        ends[-1] = len(text)
    elif last < len(text):
        ends.append(len(text))
        scores.append(Unscored(NO_SPAN))
    return ends, scores


def _combine(row: Row | BadRow, cut: Sequence[tuple[list[int], Sequence[object]]]) -> ScoredRow | BadRow:
    """A row with the scores of all attributes, which must be cut in the same places."""
    if isinstance(row, BadRow):
        return row
    ends = cut[0][0]
    if any(other != ends for other, _ in cut):
        return BadRow(row.place, "the attributes are cut in different places: import one, with --attribute")
    try:
        scores = [[_read_score(score) for score in values] for _, values in cut]
    except ValueError:
        return BadRow(row.place, f"a score is no number within ±{MAX_SCORE:g}")
    return ScoredRow(row.place, row.text, row.own_id, ends, scores)


def _read_score(value: object) -> float:
    """A score within `MAX_SCORE`; null and NaN are unscored."""
    if isinstance(value, Unscored):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Unscored(_NULL)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_SCORE:
        raise ValueError
    return float(value)


def _find_folder(source: str, name: str) -> Path:
    folder = to_path(source) / name
    if not folder.is_dir():
        raise PHFError(
            f"{source} has no folder {name}/; Dolma's layout is documents/ and attributes/NAME/ below one folder"
        )
    return folder


def _list_attribute_folders(source: str) -> list[Path]:
    return sorted(path for path in _find_folder(source, "attributes").iterdir() if path.is_dir())


def _find_dolma_files(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((name, path) for name, path in find_files(folder)[0] if name.lower().endswith(_DOLMA_SUFFIXES))


def _is_dolma_file(name: str) -> bool:
    return name.startswith(("documents/", "attributes/")) and name.lower().endswith(_DOLMA_SUFFIXES)


def _read_attributes(line: bytes) -> dict[str, object]:
    record = parse_line(line, "")
    attributes = record.fields.get("attributes") if isinstance(record, Record) else None
    return attributes if isinstance(attributes, dict) else {}


def _find_attribute_folder(source: str, attribute: str) -> Path:
    """The folder whose files hold an attribute. Rows without a span may lack it, so many are looked at."""
    folders = _list_attribute_folders(source)
    for folder in folders:
        for _, path in _find_dolma_files(folder):
            if any(attribute in _read_attributes(line) for line in read_lines(path)):
                return folder
    raise PHFError(
        f"no file below {source}/attributes has the attribute {attribute}; there are the folders "
        f"{', '.join(folder.name for folder in folders) or '(none)'}"
    )
