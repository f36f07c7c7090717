"""Where text comes from: `iterate_source` turns what a user names into rows, one at a time, in bounded memory.

A bad row (no text, not UTF-8, ...) is data: it is passed on with its place and reason, never dropped in silence.
"""

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from phf.corpus import builtin
from phf.corpus.rows import BadRow, Row, find_files, is_encodable, make_row, read_text_row
from phf.errors import PHFError, suggest
from phf.files import explain_storage, to_path

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_FIELDS = ("text", "content", "document")
"""Fields in which a text is looked for, in this order, when the user names none."""

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
RECORD_SUFFIXES = (*JSONL_SUFFIXES, *_DELIMITERS, ".parquet")
"""Of files of records; a .csv or .tsv may be compressed as a .jsonl may."""
_NAMED_SOURCES = ("python-source", "fortunes", "tweets", "mails", "nlp-corpus", "hf")
_CHUNK = 1 << 20
_ATTRIBUTES = "attributes without a text, for phf corpus import --format dolma"


@dataclass(frozen=True, slots=True)
class Record:
    """A row with all its fields, before one of them is taken for the text."""

    place: str
    fields: dict[str, object]


_Columns = Callable[[Path, list[str]], list[str]]  # which columns of a Parquet file are read


def iterate_source(spec: str, text_field: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a source, in an order that depends on nothing but the source.

    Args:
        spec: a JSONL (.jsonl), CSV or TSV file, plain, .gz or .zst; a Parquet file; a folder (files of these kinds are read as
            such, any other file is one document; hidden ones are passed over); either as a path or as a URL that fsspec
            reads (`s3://bucket/x.jsonl.gz`, `gs://`, `https://`, `hf://datasets/...`); `hf:ID`, `hf:ID:CONFIG` or
            `hf:FOLDER` (the train split); `python-source[:PACKAGE,...]`; `fortunes[:offensive]`; `tweets`;
            `mails[:FOLDER]`; `nlp-corpus[:FOLDER]`.
        text_field: the field that holds the text; by default the first of `TEXT_FIELDS` that a row has.

    Raises:
        PHFError: at the call for a spec that is unknown or cannot be opened; while iterating for a file that is cut short.
    """
    name, _, options = spec.partition(":")
    match name:
        case "python-source":
            return builtin.iterate_python_source(options)
        case "fortunes":
            return builtin.iterate_fortunes(options)
        case "tweets":
            return builtin.iterate_tweets(options)
        case "mails":
            return builtin.iterate_mails(options)
        case "nlp-corpus":
            return builtin.iterate_nlp_corpus(options)
        case "hf" if "://" not in spec:
            return _to_rows(_iterate_hugging_face(spec, options), text_field)
    path = _find_path(spec)
    if path.is_dir():
        return _iterate_folder(path, spec, text_field)
    if (records := _iterate_file(path, spec, partial(_choose_columns, text_field))) is None:
        raise PHFError(
            f"source '{spec}' is of no known kind; valid are {', '.join(RECORD_SUFFIXES)}, or the folder of a text file"
        )
    return _to_rows(records, text_field)


def iterate_records(spec: str) -> Iterator[Record | BadRow]:
    """The records of a source with all their fields; other files than those of records are passed over.

    Args:
        spec: a JSONL, CSV, TSV or Parquet file, a folder of such, or a folder that `datasets` has saved, each as a path or (but the
            last) as a URL; `hf:ID`, `hf:ID:CONFIG` (the train split).

    Raises:
        PHFError: as `iterate_source`.
    """
    name, _, options = spec.partition(":")
    if name == "hf" and "://" not in spec:
        return _iterate_hugging_face(spec, options)
    path = _find_path(spec)
    if path.is_dir() and _is_saved_dataset(path):
        return _iterate_hugging_face(spec, spec)
    files = find_files(path) if path.is_dir() else [("", path)]
    opened = [_iterate_file(file, f"{spec.rstrip('/')}/{name}".rstrip("/")) for name, file in files]
    found = [records for records in opened if records is not None]
    if not found:
        raise PHFError(f"source '{spec}' holds no file of records; valid are {', '.join(RECORD_SUFFIXES)}")
    return itertools.chain.from_iterable(found)


def iterate_file(path: Path) -> Iterator[Record | BadRow]:
    """The records of one file, their places `:LINE`; JSON Lines unless its name says otherwise.

    Raises:
        PHFError: it is damaged or cut short.
    """
    return _iterate_file(path, "") or _iterate_jsonl(path, "")


def _find_path(spec: str) -> Path:
    """The file or folder that a source names."""
    path = to_path(spec)
    with explain_storage(path):
        exists = path.exists()
    if not exists:
        name = spec.partition(":")[0]
        raise PHFError(
            f"source '{spec}' is not a file, a folder or a known name; {suggest(name, _NAMED_SOURCES)}give a path that exists, hf:ID, "
            f"{', '.join(_NAMED_SOURCES[:-2])} or {_NAMED_SOURCES[-2]}"
        )
    return path


def _iterate_folder(folder: Path, spec: str, text_field: str | None) -> Iterator[Row | BadRow]:
    for name, path in find_files(folder):
        place = f"{spec.rstrip('/')}/{name}"
        records = _iterate_file(path, place, partial(_choose_columns, text_field))
        if records is None:
            yield read_text_row(path, place)
        else:
            yield from _to_rows(records, text_field)


def _iterate_file(path: Path, place: str, choose: _Columns | None = None) -> Iterator[Record | BadRow] | None:
    """The records of a file; None if its name is not that of a file of records."""
    if path.name.endswith(JSONL_SUFFIXES):
        return _iterate_jsonl(path, place)
    if path.suffix == ".parquet":
        return _iterate_parquet(path, place, choose)
    delimiter = _DELIMITERS.get(Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix)
    return _iterate_table(path, place, delimiter, choose) if delimiter is not None else None


def _to_rows(records: Iterator[Record | BadRow], text_field: str | None) -> Iterator[Row | BadRow]:
    for record in records:
        if isinstance(record, BadRow):
            yield record
        else:
            field = text_field or _find_text_field(record.fields)
            text = record.fields.get(field) if field else None
            if text is None and isinstance(record.fields.get("attributes"), dict):
                yield BadRow(record.place, _ATTRIBUTES)
            else:
                yield make_row(record.place, text, record.fields.get("id"))


def _iterate_jsonl(path: Path, place: str) -> Iterator[Record | BadRow]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield parse_line(line, f"{place}:{number}")


def parse_line(line: bytes, place: str) -> Record | BadRow:
    """A line of JSONL as a record."""
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow(place, "not UTF-8")
    except (ValueError, RecursionError):
        return BadRow(place, "broken JSON")
    if not isinstance(fields, dict):
        return BadRow(place, "not a JSON object")
    return Record(place, fields)


def _iterate_table(
    path: Path, place: str, delimiter: str, choose: _Columns | None
) -> Iterator[Record | BadRow]:
    """Rows of a CSV or TSV file, whose first line names the columns; quoted as spreadsheets do. A place is a row's first line."""
    csv.field_size_limit(1 << 30)  # a field is a text, which may be longer than the 128 kB of the default
    lines = (line.decode("utf-8", "surrogateescape") for line in read_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = [name.removeprefix("\ufeff").strip() for name in next(rows, [])]
    except csv.Error as error:
        raise PHFError(f"{path} does not begin with the names of its columns ({error}); correct it") from None
    if choose is not None and names:
        choose(path, names)
    while True:
        at = f"{place}:{rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:  # the reader goes on with the next line
            yield BadRow(at, "broken CSV")
            continue
        if not is_encodable("".join(row)):
            yield BadRow(at, "not UTF-8")
        elif len(row) > len(names):
            yield BadRow(at, "more fields than columns")
        elif row:
            yield Record(at, dict(zip(names, row, strict=False)))


def _find_text_field(names: Container[str]) -> str | None:
    return next((field for field in TEXT_FIELDS if field in names), None)


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstandard file.

    Raises:
        PHFError: the compressed stream is damaged or ends before its end.
    """
    import zstandard

    try:
        if path.suffix == ".zst":
            yield from _split_lines(_decompress_zstandard(path))
        elif path.suffix == ".gz":
            with path.open("rb") as raw, gzip.open(raw, "rb") as file:
                yield from file
        else:
            with path.open("rb") as file:
                yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise PHFError(f"{path} is damaged or cut short ({error}); fetch or compress it again") from None


def _decompress_zstandard(path: Path) -> Iterator[bytes]:
    # Not stream_reader: it takes a file that is cut short for a shorter one.
    import zstandard

    decompressor = None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            while chunk:
                decompressor = decompressor or zstandard.ZstdDecompressor().decompressobj()
                yield decompressor.decompress(chunk)
                chunk = decompressor.unused_data
                if decompressor.eof:
                    decompressor = None
    if decompressor is not None:
        raise EOFError("the last frame has no end")


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the line that is not yet whole
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*parts, line, b"\n"])
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _choose_columns(text_field: str | None, path: Path, names: list[str]) -> list[str]:
    """The columns of a file that make a row: its text, and its id if it has one."""
    field = text_field or _find_text_field(names)
    if field not in names:
        wanted = f"field '{text_field}'" if text_field else f"field {', '.join(TEXT_FIELDS)}"
        raise PHFError(f"{path} has no {wanted}; name one of {', '.join(names)[:200]} with --text-field")
    return [field, "id"] if "id" in names and field != "id" else [field]


def _iterate_parquet(path: Path, place: str, choose: _Columns | None) -> Iterator[Record | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            columns = choose(path, file.schema_arrow.names) if choose is not None else None
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for fields in _read_batch(batch):
                    number += 1
                    at = f"{place}:{number}"
                    yield BadRow(at, "not UTF-8") if fields is None else Record(at, fields)
    except (pa.ArrowException, OSError) as error:
        raise PHFError(f"{path} cannot be read as Parquet ({_first_line(error)}); fetch it again") from None


def _read_batch(batch: "pa.RecordBatch") -> Iterator[dict[str, object] | None]:
    """Rows of a record batch; None for one that holds a string which is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            yield None
        else:
            for row in range(len(batch)):
                yield from _read_batch(batch.slice(row, 1))


def _iterate_hugging_face(spec: str, name: str) -> Iterator[Record | BadRow]:
    if not name:
        raise PHFError("source 'hf:' names no data set; give hf:ID, hf:ID:CONFIG or hf:FOLDER")
    try:
        import datasets
    except ModuleNotFoundError:
        raise PHFError(
            f"source '{spec}' needs the package datasets; run: pip install 'datasets>=4'"
        ) from None
    return _iterate_dataset(spec, datasets, name)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _iterate_dataset(spec: str, datasets: ModuleType, name: str) -> Iterator[Record | BadRow]:
    try:
        if _is_saved_dataset(Path(name)):
            records = datasets.load_from_disk(name)
            records = records["train"] if isinstance(records, dict) else records
        else:
            identifier, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
            records = datasets.load_dataset(identifier, config or None, split="train", streaming=True)
        for number, fields in enumerate(records, start=1):
            yield Record(f"{spec}:{number}", fields)
    except Exception as error:  # whatever the hub, its cache or a reader raises
        raise PHFError(
            f"source '{spec}' cannot be read by datasets ({type(error).__name__}: {_first_line(error)}); "
            "check the id, the network and that it has a train split"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
