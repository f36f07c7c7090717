"""Where text comes from: `iterate_source` turns what a user names into rows, one at a time, in bounded memory.

A bad row (no text, not UTF-8, ...) is data: it is passed on with its place and reason, never dropped in silence.
"""

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phf.errors import PHFError

TEXT_FIELDS = ("text", "content", "document")
"""Fields in which a text is looked for, in this order, when the user names none."""

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_NAMED_SOURCES = ("python-source", "fortunes", "tweets", "hf")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """A text and where it came from. `own_id` is the id that the source itself gave, if it is a string."""

    place: str
    text: str
    own_id: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no usable text. `reason` is one of a few fixed phrases, so that it can be counted."""

    place: str
    reason: str


def iterate_source(spec: str, text_field: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a source, in an order that depends on nothing but the source.

    Args:
        spec: a JSONL (.jsonl, .jsonl.gz, .jsonl.zst) or Parquet file; a folder (files of these kinds are read as
            such, any other file is one document; hidden ones are passed over); `hf:ID`, `hf:ID:CONFIG` or
            `hf:FOLDER` (the train split); `python-source[:PACKAGE,...]`; `fortunes[:offensive]`; `tweets`.
        text_field: the field that holds the text; by default the first of `TEXT_FIELDS` that a row has.

    Raises:
        PHFError: at the call for a spec that is unknown or cannot be opened; while iterating for a file that is
            cut short, or at the end for a source without one usable row.
    """
    return _refuse_empty(spec, _open_source(spec, text_field))


def make_row(place: str, text: object, own_id: object = None) -> Row | BadRow:
    """A row, or the bad row that says why this is no text."""
    if text is None:
        return BadRow(place, "no text")
    if not isinstance(text, str):
        return BadRow(place, "text is not a string")
    if not text:
        return BadRow(place, "text is empty")
    if not _is_encodable(text):
        return BadRow(place, "lone surrogate")
    has_id = isinstance(own_id, str) and own_id != "" and _is_encodable(own_id)
    return Row(place, text, str(own_id) if has_id else None)


def read_text_row(path: Path, place: str) -> Row | BadRow:
    """A whole file as one row. Its newlines stay as they are; a byte order mark goes."""
    try:
        return make_row(place, path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow(place, "not UTF-8")
    except OSError as error:
        return BadRow(place, f"cannot be read ({error.strerror})")


def find_files(folder: Path) -> list[tuple[str, Path]]:
    """Files below a folder with their relative names (`/` between parts), sorted by code point; hidden ones left out."""
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            found.append((_printable(name), path))
    return sorted(found)


def _open_source(spec: str, text_field: str | None) -> Iterator[Row | BadRow]:
    from phf.corpus import builtin

    name, _, options = spec.partition(":")
    match name:
        case "python-source":
            return builtin.iterate_python_source(options)
        case "fortunes":
            return builtin.iterate_fortunes(options)
        case "tweets":
            return builtin.iterate_tweets(options)
        case "hf":
            return _iterate_hugging_face(spec, options, text_field)
    path = Path(spec)
    if path.is_dir():
        return _iterate_folder(path, spec, text_field)
    if not path.exists():
        near = difflib.get_close_matches(name, _NAMED_SOURCES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PHFError(
            f"source '{spec}' is not a file, a folder or a known name; {hint}give a path that exists, hf:ID, "
            "python-source, fortunes or tweets"
        )
    if (rows := _iterate_file(path, spec, text_field)) is None:
        raise PHFError(
            f"source '{spec}' is of no known kind; valid are {', '.join(JSONL_SUFFIXES)}, .parquet, "
            "or the folder of a text file"
        )
    return rows


def _refuse_empty(spec: str, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    num_good = num_bad = 0
    first_bad: BadRow | None = None
    for row in rows:
        if isinstance(row, BadRow):
            num_bad += 1
            first_bad = first_bad or row
        else:
            num_good += 1
        yield row
    if num_good:
        return
    if first_bad is None:
        raise PHFError(f"source '{spec}' is empty; give one that holds text")
    raise PHFError(
        f"source '{spec}' yields no text: all {num_bad} rows are bad, the first at {first_bad.place} "
        f"({first_bad.reason}); if the text is in another field, name it with --text-field"
    )


def _iterate_folder(folder: Path, spec: str, text_field: str | None) -> Iterator[Row | BadRow]:
    for name, path in find_files(folder):
        place = f"{spec.rstrip('/')}/{name}"
        rows = _iterate_file(path, place, text_field)
        if rows is None:
            yield read_text_row(path, place)
        else:
            yield from rows


def _iterate_file(path: Path, place: str, text_field: str | None) -> Iterator[Row | BadRow] | None:
    """The rows of a file of records; None if its name is not that of one."""
    if path.name.endswith(JSONL_SUFFIXES):
        return _iterate_jsonl(path, place, text_field)
    if path.suffix == ".parquet":
        return _iterate_parquet(path, place, text_field)
    return None


def _iterate_jsonl(path: Path, place: str, text_field: str | None) -> Iterator[Row | BadRow]:
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            yield _parse_line(line, f"{place}:{number}", text_field)


def _parse_line(line: bytes, place: str, text_field: str | None) -> Row | BadRow:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow(place, "not UTF-8")
    except (ValueError, RecursionError):
        return BadRow(place, "broken JSON")
    if not isinstance(record, dict):
        return BadRow(place, "not a JSON object")
    return _row_of_record(record, place, text_field)


def _row_of_record(record: dict[str, Any], place: str, text_field: str | None) -> Row | BadRow:
    field = text_field or _find_text_field(record)
    return make_row(place, record.get(field) if field else None, record.get("id"))


def _find_text_field(names: Sequence[str] | dict[str, Any]) -> str | None:
    return next((field for field in TEXT_FIELDS if field in names), None)


def _read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstandard file.

    Raises:
        PHFError: the compressed stream is damaged or ends before its end.
    """
    import zstandard

    try:
        if path.suffix == ".zst":
            yield from _split_lines(_decompress_zstandard(path))
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
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
            yield b"".join([*parts, line])
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _iterate_parquet(path: Path, place: str, text_field: str | None) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            field = text_field or _find_text_field(names)
            if field not in names:
                wanted = f"field '{text_field}'" if text_field else f"field {', '.join(TEXT_FIELDS)}"
                raise PHFError(f"{path} has no {wanted}; name one of {', '.join(names)} with --text-field")
            columns = [field, "id"] if "id" in names and field != "id" else [field]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                ids = batch.column("id") if "id" in columns[1:] else [None] * len(batch)
                for text, own_id in zip(batch.column(field), ids, strict=True):
                    number += 1
                    yield _row_of_scalars(f"{place}:{number}", text, own_id)
    except (pa.ArrowException, OSError) as error:
        raise PHFError(f"{path} cannot be read as Parquet ({_first_line(error)}); fetch it again") from None


def _row_of_scalars(place: str, text: Any, own_id: Any) -> Row | BadRow:
    try:
        return make_row(place, text.as_py(), None if own_id is None else own_id.as_py())
    except UnicodeDecodeError:
        return BadRow(place, "not UTF-8")


def _iterate_hugging_face(spec: str, name: str, text_field: str | None) -> Iterator[Row | BadRow]:
    if not name:
        raise PHFError("source 'hf:' names no data set; give hf:ID, hf:ID:CONFIG or hf:FOLDER")
    try:
        import datasets
    except ModuleNotFoundError:
        raise PHFError(
            f"source '{spec}' needs the package datasets; run: pip install 'datasets>=4'"
        ) from None
    return _iterate_dataset(spec, datasets, name, text_field)


def _iterate_dataset(spec: str, datasets: Any, name: str, text_field: str | None) -> Iterator[Row | BadRow]:
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            records = datasets.load_from_disk(name)
            records = records["train"] if isinstance(records, dict) else records
        else:
            identifier, _, config = (name, "", "") if Path(name).exists() else name.partition(":")
            records = datasets.load_dataset(identifier, config or None, split="train", streaming=True)
        for number, record in enumerate(records, start=1):
            yield _row_of_record(record, f"{spec}:{number}", text_field)
    except Exception as error:  # whatever the hub, its cache or a reader raises
        raise PHFError(
            f"source '{spec}' cannot be read by datasets ({type(error).__name__}: {_first_line(error)}); "
            "check the id, the network and that it has a train split"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    """A file name as text that can be UTF-8: bytes of it that were not are spelled `\\udc..`."""
    return name.encode("utf-8", "backslashreplace").decode()
