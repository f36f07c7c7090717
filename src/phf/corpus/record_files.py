"""Files of records, one at a time: JSON Lines, CSV and TSV, Parquet, Arrow. Bounded memory, whatever a file holds."""

import csv
import gzip
import itertools
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from phf.corpus.folders import JSONL_SUFFIXES, TABLE_SUFFIXES
from phf.corpus.rows import MAX_BYTES, BadRow, explain_unreadable, is_encodable, open_file
from phf.errors import PHFError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_CHUNK = 1 << 20
_ZSTANDARD_CHUNK = 4 << 10  # compressed; each four bytes of it may stand for 128 kB
_ROWS = 256  # that are held at a time


@dataclass(frozen=True, slots=True)
class Record:
    """A row with all its fields, before one of them is taken for the text."""

    place: str
    fields: dict[str, object]


Columns = Callable[[Path, Mapping[str, "pa.DataType | None"]], list[str]]
"""Which columns of a file are read, given their types (None in CSV)."""


def iterate_file(path: Path, place: str, choose: Columns | None = None) -> Iterator[Record | BadRow] | None:
    """The records of a file, their places `PLACE:LINE`; None if its name is not that of a file of records.

    Args:
        choose: which columns of a table; by default all.

    Raises:
        PHFError: while iterating: the file cannot be read, is damaged, cut short or without bounds.
    """
    name = path.name.lower()
    if name.endswith(JSONL_SUFFIXES):
        return iterate_jsonl(path, place)
    if name.endswith(TABLE_SUFFIXES):
        return _iterate_table(path, place, "," if ".csv" in name[-8:] else "\t", choose)
    if name.endswith(".parquet"):
        return _iterate_parquet(path, place, choose)
    return _iterate_arrow(path, place, choose) if name.endswith(".arrow") else None


def iterate_jsonl(path: Path, place: str) -> Iterator[Record | BadRow]:
    """The records of a JSON Lines file. Raises as `iterate_file`."""
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
    path: Path, place: str, delimiter: str, choose: Columns | None
) -> Iterator[Record | BadRow]:
    """Rows of a CSV or TSV file, whose first line names the columns; quoted as spreadsheets do. A place is a row's first line."""
    csv.field_size_limit(MAX_BYTES)  # a field is a text, which may be longer than the 128 kB of the default
    lines = (line.decode("utf-8", "surrogateescape") + "\n" for line in read_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = [name.removeprefix("\ufeff").strip() for name in next(rows, [])]
    except csv.Error as error:
        raise PHFError(f"{path} does not begin with the names of its columns ({error}); correct it") from None
    if choose is not None and names:
        choose(path, dict.fromkeys(names))
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


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain, gzip or zstandard file, without their line feeds.

    Raises:
        PHFError: it cannot be read; the compressed stream is damaged or ends before its end; a line is longer than `MAX_BYTES`.
    """
    import zstandard

    with open_file(path) as file:
        try:
            yield from _split_lines(_decompress(file, path.name.lower()), path)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise PHFError(f"{path} is damaged or cut short ({error}); fetch or compress it again") from None
        except OSError as error:
            raise explain_unreadable(path, error) from None


def _decompress(file: BinaryIO, name: str) -> Iterator[bytes]:
    if name.endswith(".zst"):
        yield from _decompress_zstandard(file)
        return
    plain = gzip.GzipFile(fileobj=file, mode="rb") if name.endswith(".gz") else file
    while chunk := plain.read(_CHUNK):
        yield chunk


def _decompress_zstandard(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it takes a file that is cut short for a shorter one.
    import zstandard

    decompressor = None
    while chunk := file.read(_ZSTANDARD_CHUNK):
        while chunk:
            decompressor = decompressor or zstandard.ZstdDecompressor().decompressobj()
            data = decompressor.decompress(chunk)
            yield from (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
            chunk = decompressor.unused_data
            if decompressor.eof:
                decompressor = None
    if decompressor is not None:
        raise EOFError("the last frame has no end")


def _split_lines(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the line that is not yet whole
    number, size = 1, 0
    for chunk in chunks:
        first, *lines = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        if lines:
            yield b"".join(parts)
            parts = [lines.pop()]
            yield from lines
            number, size = number + len(lines) + 1, len(parts[0])
        if size > MAX_BYTES:
            raise PHFError(
                f"{path}:{number} is longer than {MAX_BYTES >> 20} MB, so no line of records; break it into lines"
            )
    if last := b"".join(parts):
        yield last


def _iterate_parquet(path: Path, place: str, choose: Columns | None) -> Iterator[Record | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = ""
    with open_file(path) as raw:
        try:
            with pq.ParquetFile(raw) as file:
                columns = _choose(path, file.schema_arrow, choose)
                try:
                    yield from _read_batches(
                        path, place, file.iter_batches(batch_size=_ROWS, columns=columns)
                    )
                except (pa.ArrowException, OSError):
                    where = _find_unreadable(file, columns)
                    raise
        except (pa.ArrowException, OSError) as error:
            raise PHFError(
                f"{path} cannot be read as Parquet ({where}{first_line(error)}); fetch it again"
            ) from None


def _choose(path: Path, schema: "pa.Schema", choose: Columns | None) -> list[str]:
    types = dict(zip(schema.names, schema.types, strict=True))
    return list(types) if choose is None else choose(path, types)


def _find_unreadable(file: "pq.ParquetFile", columns: list[str]) -> str:
    """Names the first column that cannot be read alone."""
    import pyarrow as pa

    for name in columns:
        try:
            deque(file.iter_batches(batch_size=_ROWS, columns=[name]), maxlen=0)
        except (pa.ArrowException, OSError):
            return f"column '{name}': "
    return ""


def _iterate_arrow(path: Path, place: str, choose: Columns | None) -> Iterator[Record | BadRow]:
    """Rows of an Arrow file: a stream, as `datasets` saves it, or one with an index (Feather)."""
    import pyarrow as pa

    with open_file(path) as raw:
        try:
            is_indexed = raw.read(6) == b"ARROW1"
            open_arrow = pa.ipc.open_file if is_indexed else pa.ipc.open_stream
            raw.seek(0)
            schema = open_arrow(raw).schema
            columns = _choose(path, schema, choose)
            raw.seek(0)
            chosen = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
            reader = open_arrow(raw, options=chosen)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_indexed else reader
            pieces = (
                batch.slice(start, _ROWS).select(columns)
                for batch in batches
                for start in range(0, len(batch), _ROWS)
            )
            yield from _read_batches(path, place, pieces)
        except (pa.ArrowException, OSError) as error:
            raise PHFError(f"{path} cannot be read as Arrow ({first_line(error)}); fetch it again") from None


def _read_batches(path: Path, place: str, batches: Iterator["pa.RecordBatch"]) -> Iterator[Record | BadRow]:
    rows = itertools.chain.from_iterable(_read_batch(path, batch) for batch in batches)
    for number, fields in enumerate(rows, start=1):
        at = f"{place}:{number}"
        yield BadRow(at, "not UTF-8") if fields is None else Record(at, fields)


def _read_batch(path: Path, batch: "pa.RecordBatch") -> Iterator[dict[str, object] | None]:
    """Rows of a record batch; None for one that holds a string which is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            yield None
        else:
            for row in range(len(batch)):
                yield from _read_batch(path, batch.slice(row, 1))
    except Exception as error:  # each type of Arrow's has exceptions of its own for what Python cannot hold
        raise PHFError(
            f"{path}, column '{_find_foreign(batch)}', holds a value that cannot be read ({first_line(error)}); leave the "
            "column out"
        ) from None


def _find_foreign(batch: "pa.RecordBatch") -> str:
    names: list[str] = batch.schema.names
    for name in names:
        try:
            batch.select([name]).to_pylist()
        except Exception:
            return name
    return "?"


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or "no message").splitlines()[0]
