"""The finished parts of an evaluation, kept so that one that was stopped goes on, and one that asks for more repeats nothing."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from phf.files import hash_json, write_json


class Parts:
    """A folder with a file per finished part of the evaluation of one checkpoint.

    A part holds the key of all that it was made from; a file with another key, or one that cannot be read, is made anew.
    """

    def __init__(self, folder: Path, subject: Any) -> None:
        """
        Args:
            folder: where the files are, `RUN/evaluation/step-000500`.
            subject: JSON value that tells what is evaluated.
        """
        self.folder = folder
        self.subject = subject

    def measure(self, name: str, settings: Any, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, as JSON (NaN becomes None), from the disk if it was finished before.

        Args:
            name: the file's name; one part of a name is kept.
            settings: JSON value with all that the part depends on beside what is evaluated.
        """
        key = hash_json([self.subject, name, settings])
        path = self.folder / f"{name.replace('/', '--')}.json"
        if (found := _read(path)) is not None and found.get("key") == key:
            return found["value"]
        value = to_json(compute())
        write_json(path, {"key": key, "value": value})
        return value


def _read(path: Path) -> dict[str, Any] | None:
    """A part, or None if it is missing or damaged: making it again costs time, no data."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "value" in found else None


def to_json(value: Any) -> Any:
    """A result as JSON: dataclasses as objects, tuples as lists, and None for NaN, which JSON has not."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
