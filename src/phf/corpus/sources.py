"""Where text comes from: `iterate_source` turns what a user names into rows, one at a time, in bounded memory.

A bad row (no text, not UTF-8, ...) is data: it is passed on with its place and reason, never dropped in silence.
"""

import os
import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from phf.corpus import builtin
from phf.corpus.folders import RECORD_SUFFIXES, SourceFolder, open_folder
from phf.corpus.record_files import Columns, Record, first_line, iterate_file
from phf.corpus.rows import BadRow, LeftOut, Row, make_row, read_text_row
from phf.errors import PHFError, suggest
from phf.files import explain_storage, to_path

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_FIELDS = ("text", "content", "document")
"""Fields in which a text is looked for, in this order, when the user names none."""

_NAMED_SOURCES = ("python-source", "fortunes", "tweets", "mails", "nlp-corpus", "hf")
_ATTRIBUTES = "attributes without a text, for phf corpus import --format dolma"
_JSON_RECORDS = re.compile(
    r"\s*(\[\s*\{|\{[^\n]*\}\s*\n\s*\{)"
)  # an array of objects, or an object in each line
_PIECES = "a text in pieces, for phf corpus import --format phf"


def iterate_source(
    spec: str, text_field: str | None = None, name: str | None = None
) -> Iterator[Row | BadRow]:
    """The rows of a source, in an order that depends on nothing but the source.

    Args:
        spec: a JSONL (.jsonl), CSV or TSV file, plain, .gz or .zst; a Parquet or Arrow file; a folder of such, or of texts (see
            `open_folder`), or `FOLDER:SPLIT[,...]` of one that has several; either as a path or as a URL that fsspec
            reads (`s3://bucket/x.jsonl.gz`, `gs://`, `https://`, `hf://datasets/...`); `hf:ID`, `hf:ID:CONFIG` or
            `hf:FOLDER` (the train split); `python-source[:PACKAGE,...]`; `fortunes[:offensive]`; `tweets`;
            `mails[:FOLDER]`; `nlp-corpus[:FOLDER]`.
        text_field: the field that holds the text; by default the first of `TEXT_FIELDS` that a row has.
        name: what the rows' places begin with (see `name_sources`), by default the spec.

    Raises:
        PHFError: at the call for a spec that is unknown or cannot be opened; while iterating for a file that is cut short.
    """
    kind, _, options = spec.partition(":")
    name = name or spec
    match kind:
        case "python-source":
            return builtin.iterate_python_source(options)
        case "fortunes":
            return builtin.iterate_fortunes(options)
        case "tweets":
            return builtin.iterate_tweets(options)
        case "mails":
            return builtin.iterate_mails(options, name)
        case "nlp-corpus":
            return builtin.iterate_nlp_corpus(options)
        case "hf" if "://" not in spec:
            return _to_rows(_iterate_hugging_face(spec, options, name), text_field)
    path, splits = _find_path(spec)
    choose = partial(_choose_text, text_field)
    if path.is_dir():
        return _iterate_folder(_open(path, spec, splits), _name_place(name, splits), choose, text_field)
    if (records := iterate_file(path, name, choose)) is None:
        raise PHFError(
            f"source '{spec}' is of no known kind; valid are {', '.join(RECORD_SUFFIXES)}, or the folder of a text file"
        )
    return _to_rows(records, text_field)


def iterate_records(
    spec: str, choose: Columns | Collection[str] | None = None, name: str | None = None
) -> Iterator[Record | BadRow]:
    """The records of a source with their fields; other files than those of records are left out.

    Args:
        spec: a JSONL, CSV, TSV, Parquet or Arrow file or a folder of such, as in `iterate_source`; `hf:ID`, `hf:ID:CONFIG`
            (the train split).
        choose: the columns to read of a table, if it has them; by default all.
        name: what the records' places begin with, by default the spec.

    Raises:
        PHFError: as `iterate_source`.
    """
    kind, _, options = spec.partition(":")
    name = name or spec
    if kind == "hf" and "://" not in spec:
        return _iterate_hugging_face(spec, options, name)
    if choose is not None and not callable(choose):
        choose = partial(_choose_present, choose)
    path, splits = _find_path(spec)
    if path.is_dir() and (folder := _open(path, spec, splits)).holds_records:
        return _iterate_record_files(folder, _name_place(name, splits), choose)
    records = None if path.is_dir() else iterate_file(path, name, choose)
    if records is None:
        raise PHFError(f"source '{spec}' holds no file of records; valid are {', '.join(RECORD_SUFFIXES)}")
    return records


def name_sources(specs: Sequence[str]) -> list[str]:
    """What each source is called in a corpus: the same however its path is spelled, and wherever it lies.

    Of a path the last part, or as many as tell several sources apart; what is no path stays as it is.
    """
    places = [_split_place(spec) for spec in specs]
    longest = max((len(parts) for _, parts in places), default=0)
    for size in range(1, longest + 1):
        names = [kind + "/".join(parts[-size:]) for kind, parts in places]
        if len(set(names)) == len(set(places)):
            return names
    return [kind + "/".join(parts) for kind, parts in places]


def _split_place(spec: str) -> tuple[str, tuple[str, ...]]:
    """What kind of source it is, as it begins a spec, and the parts of its path."""
    kind, _, options = spec.partition(":")
    is_path = "://" in spec or kind not in _NAMED_SOURCES
    if not is_path and not (kind in ("mails", "nlp-corpus", "hf") and options and Path(options).is_dir()):
        return spec, ()
    if "://" in spec:
        return "", tuple(spec.replace("/:", ":").rstrip("/").split("/"))
    place, splits = (spec, "") if is_path else (options, "")
    folder, colon, names = place.rpartition(":")
    if folder and "/" not in names and not Path(place).exists():
        place, splits = folder, colon + names
    *above, last = Path(os.path.abspath(place)).parts  # noqa: PTH100  links stay as they are called
    return "" if is_path else f"{kind}:", (*above, last + splits)


def _find_path(spec: str) -> tuple[Path, list[str]]:
    """The file or folder that a source names, and the splits of the folder."""
    path = to_path(spec)
    with explain_storage(path):
        if path.exists():
            return path, []
        folder, _, splits = spec.rpartition(":")
        if folder and "/" not in splits and (path := to_path(folder)).is_dir():
            return path, splits.split(",")
    name = spec.partition(":")[0]
    raise PHFError(
        f"source '{spec}' is not a file, a folder or a known name; {suggest(name, _NAMED_SOURCES)}give a path that exists, hf:ID, "
        f"{', '.join(_NAMED_SOURCES[:-2])} or {_NAMED_SOURCES[-2]}"
    )


def _open(path: Path, spec: str, splits: Sequence[str]) -> SourceFolder:
    return open_folder(path, spec.removesuffix(f":{','.join(splits)}"), splits)


def _name_place(name: str, splits: Sequence[str]) -> str:
    return name.removesuffix(f":{','.join(splits)}").rstrip("/")


def _iterate_folder(
    folder: SourceFolder, place: str, choose: Columns, text_field: str | None
) -> Iterator[Row | BadRow]:
    if folder.holds_records:
        yield from _to_rows(_iterate_record_files(folder, place, choose), text_field)
        return
    for left_out in folder.left_out:
        yield LeftOut(f"{place}/{left_out.place}", left_out.reason)
    for name, path in folder.files:
        row = read_text_row(path, f"{place}/{name}")
        is_records = isinstance(row, Row) and name.lower().endswith(".json") and _JSON_RECORDS.match(row.text)
        yield BadRow(row.place, "records in JSON: write them as .jsonl") if is_records else row


def _iterate_record_files(
    folder: SourceFolder, place: str, choose: Columns | None
) -> Iterator[Record | BadRow]:
    for row in folder.left_out:
        yield LeftOut(f"{place}/{row.place}", row.reason)
    for name, path in folder.files:
        is_empty = True
        for record in iterate_file(path, f"{place}/{name}", choose) or ():
            is_empty = False
            yield record
        if is_empty:
            yield LeftOut(f"{place}/{name}", "no record in it")


def _to_rows(records: Iterator[Record | BadRow], text_field: str | None) -> Iterator[Row | BadRow]:
    for record in records:
        if isinstance(record, BadRow):
            yield record
            continue
        fields = record.fields
        field = text_field or _find_text_field(fields)
        text = fields.get(field) if field else None
        if text is None and isinstance(fields.get("attributes"), dict):
            yield BadRow(record.place, _ATTRIBUTES)
        elif text is None and isinstance(fields.get("texts"), list):
            yield BadRow(record.place, _PIECES)
        else:
            yield make_row(record.place, text, fields.get("id"))


def _find_text_field(names: Container[str]) -> str | None:
    return next((field for field in TEXT_FIELDS if field in names), None)


def _choose_text(text_field: str | None, path: Path, types: "Mapping[str, pa.DataType | None]") -> list[str]:
    """The columns of a file that make a row: its text, and its id if it has one."""
    field = text_field or _find_text_field(types)
    if field is None or field not in types:
        wanted = f"field '{text_field}'" if text_field else f"field {', '.join(TEXT_FIELDS)}"
        pieces = f", or read {_PIECES.removeprefix('a ')}" if {"texts", "scores"} <= types.keys() else ""
        raise PHFError(
            f"{path} has no {wanted}; name one of {', '.join(types)[:200]} with --text-field{pieces}"
        )
    return [field, "id"] if "id" in types and field != "id" else [field]


def _choose_present(
    wanted: Collection[str], path: Path, types: "Mapping[str, pa.DataType | None]"
) -> list[str]:
    return [name for name in types if name in wanted]


def _iterate_hugging_face(spec: str, options: str, name: str) -> Iterator[Record | BadRow]:
    if not options:
        raise PHFError("source 'hf:' names no data set; give hf:ID, hf:ID:CONFIG or hf:FOLDER")
    try:
        import datasets
    except ModuleNotFoundError:
        raise PHFError(
            f"source '{spec}' needs the package datasets; run: pip install 'datasets>=4'"
        ) from None
    return _iterate_dataset(spec, datasets, options, name)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _iterate_dataset(spec: str, datasets: ModuleType, place: str, name: str) -> Iterator[Record | BadRow]:
    try:
        if _is_saved_dataset(Path(place)):
            records = datasets.load_from_disk(place)
            records = records["train"] if isinstance(records, dict) else records
        else:
            identifier, _, config = (place, "", "") if Path(place).exists() else place.partition(":")
            records = datasets.load_dataset(identifier, config or None, split="train", streaming=True)
        for number, fields in enumerate(records, start=1):
            yield Record(f"{name}:{number}", fields)
    except Exception as error:  # whatever the hub, its cache or a reader raises
        raise PHFError(
            f"source '{spec}' cannot be read by datasets ({type(error).__name__}: {first_line(error)}); "
            "check the id, the network and that it has a train split"
        ) from None
