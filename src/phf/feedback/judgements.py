"""The file of judgements: JSON Lines, one line each, safe against a kill at any moment (docs/labels.md)."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from phf.errors import PHFError
from phf.folders import lock_file

Task = Literal["label", "rate", "pair"]
Row = dict[str, Any]

FIELDS: dict[Task, tuple[str, str]] = {
    "label": ("text", "label"),
    "rate": ("text", "rating"),
    "pair": ("chosen", "rejected"),
}
"""The two fields that make a row a judgement of a task; `label` 1 = bad, `rating` higher = better."""


_NEW_FILE = Path("labels.jsonl")


def choose_file(named: Path | None) -> Path:
    """The file of judgements that somebody named, else a new `labels.jsonl`: one that lies there already may be of other texts.

    Raises:
        PHFError: none was named, and there is a `labels.jsonl`.
    """
    if named is None and _NEW_FILE.exists():
        raise PHFError(f"{_NEW_FILE} exists already; give -o {_NEW_FILE} to go on with it, or another name")
    return named or _NEW_FILE


class JudgementFile:
    """An open, locked file of judgements; made by `open_judgements`.

    Attributes:
        rows: all judgements that stand, in the order of the file.
        repair: what was cut off a file that a crash had left with half a line; None if nothing was.
    """

    def __init__(self, path: Path, handle: int, task: Task) -> None:
        self.path = path
        self._handle = handle
        with os.fdopen(os.dup(handle), "rb") as file:
            self.rows, end, rest = _parse(path, file.read(), task)
        self.repair: str | None = None
        self._starts: list[int] = []  # of the lines of this session, which undo may take back
        if rest:
            os.ftruncate(handle, end)
            os.fsync(handle)
            self.repair = f"{path} ended in half a line (a crash): its {len(rest)} bytes were cut off"
        elif end > 0 and os.pread(handle, 1, end - 1) != b"\n":
            _write(handle, b"\n")  # the last line is whole, as some editors leave it

    def append(self, row: Row) -> None:
        """Add a judgement; it is on the disk when this returns.

        Raises:
            OSError: the disk is full; the file is as before.
        """
        start = os.fstat(self._handle).st_size
        _write(self._handle, json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._starts.append(start)
        self.rows.append(row)

    def undo(self) -> Row | None:
        """Take the last judgement of this session out of the file; None if there is none."""
        if not self._starts:
            return None
        os.ftruncate(self._handle, self._starts.pop())
        os.fsync(self._handle)
        return self.rows.pop()


@contextmanager
def open_judgements(path: Path, task: Task) -> Iterator[JudgementFile]:
    """Open a file of judgements to append to it, or begin one. The lock goes with the process, however it ends.

    Raises:
        PHFError: another process holds it, or it holds something else than judgements of this task.
    """
    existed = path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        remedy = "stop it first, or give -o another file"
        with lock_file(path.parent / f".{path.name}.lock", "labelling into", path, remedy=remedy):
            yield JudgementFile(path, handle, task)
    finally:
        if not existed and os.fstat(handle).st_size == 0:
            path.unlink(missing_ok=True)
        os.close(handle)


def _write(handle: int, data: bytes) -> None:
    """Append in one call and flush; what was written in part (a full disk) is taken back."""
    start = os.fstat(handle).st_size
    try:
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, start)
        raise


def _parse(path: Path, data: bytes, task: Task) -> tuple[list[Row], int, bytes]:
    """Rows, the offset behind the last whole one, and the half line after it."""
    *lines, last = data.split(b"\n")
    rows = [
        _parse_row(path, number, line, task) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not last.strip():
        return rows, len(data), b""
    try:
        json.loads(last)
    except ValueError:
        if last.startswith(b"{"):
            return rows, len(data) - len(last), last
    return [*rows, _parse_row(path, len(lines) + 1, last, task)], len(data), b""


def _parse_row(path: Path, number: int, line: bytes, task: Task) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise PHFError(
            f"{path}:{number} is not a JSON object; -o wants a file of judgements (JSON Lines) or a new one"
        )
    if not all(field in row for field in FIELDS[task]):
        found = [name for name, fields in FIELDS.items() if all(field in row for field in fields)]
        remedy = f"--task {found[0]}" if found else "a file that 'phf label' wrote"
        raise PHFError(
            f"{path}:{number} has no {' and '.join(FIELDS[task])}, so it is no judgement of task '{task}'; "
            f"use {remedy}, or give -o another file"
        )
    for field in FIELDS[task]:
        if not isinstance(row[field], (int, float) if field in ("label", "rating") else str):
            raise PHFError(
                f"{path}:{number} has {row[field]!r:.40} as {field}; correct the line or take it out"
            )
    return row
