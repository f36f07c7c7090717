"""Files that appear whole or not at all, and the hashes that name them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phf.errors import PHFError


def hash_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical spelling, in hex."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success flush it to disk and rename it over `path`.

    On any exception the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, in a stable spelling (sorted keys; the same value gives the same bytes)."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        PHFError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PHFError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PHFError(
            f"{path} is not valid JSON ({error}); it is damaged: delete it and make it again"
        ) from None


def check_hash(path: Path, expected: str, remedy: str) -> None:
    """Refuse a file whose bytes are not those its manifest recorded.

    Raises:
        PHFError: the file is missing or its SHA-256 differs; names the file and says the remedy.
    """
    if not path.exists():
        raise PHFError(f"{path} is missing, though its manifest lists it; {remedy}")
    found = hash_file(path)
    if found != expected:
        raise PHFError(
            f"{path} is damaged: SHA-256 {found[:12]}…, its manifest says {expected[:12]}…; {remedy}"
        )
