"""The finished parts of an evaluation, kept so that one that was stopped goes on, and one that asks for more repeats nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from phf.errors import PHFError
from phf.files import hash_json, read_sealed, write_sealed
from phf.results import parse_json, to_json

T = TypeVar("T")


class Parts:
    """A folder with a file per finished part of the evaluation of one checkpoint.

    A part holds the key of all that it was made from; a file with another key or shape, or one that cannot be read, is made anew.

    Attributes:
        folder: where the files are, `RUN/evaluation/step-000500`.
        subject: JSON value that tells what is evaluated.
    """

    def __init__(self, folder: Path, subject: object) -> None:
        self.folder = folder
        self.subject = subject

    def measure(self, name: str, settings: object, compute: Callable[[], T], kind: type[T]) -> T:
        """What `compute` gives, from the disk if it was finished before.

        Args:
            name: the file's name; one part of a name is kept.
            settings: JSON value with all that the part depends on beside what is evaluated.
            kind: type of the value: a dataclass, or a list or dict of such, with `records.Number` where a number may be NaN.
        """
        key = hash_json([self.subject, name, settings])
        path = self.folder / f"{name.replace('/', '--')}.json"
        try:
            return self._read(path, key, kind)
        except (PHFError, OSError):
            pass  # missing, damaged or of something else: making it again costs time, no data
        write_sealed(path, {"key": key, "value": to_json(compute())})
        # As it will be read again: neither a number nor an order depends on whether it was kept.
        return self._read(path, key, kind)

    def _read(self, path: Path, key: str, kind: type[T]) -> T:
        found = read_sealed(path, "it is made again")
        if found.get("key") != key:
            raise PHFError(f"{path} is of something else")
        return parse_json(found["value"], kind, str(path))
