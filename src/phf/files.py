"""Files that appear whole or not at all, and the hashes that name them."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from phf.errors import PHFError

if TYPE_CHECKING:
    from upath import UPath


Place = str | os.PathLike[str]
"""A file or a folder: as text, a `Path`, or an opened `Run` or `Corpus`."""


@overload
def as_list(given: str | Sequence[str]) -> list[str]: ...
@overload
def as_list(given: Place | Sequence[Place]) -> list[Place]: ...
def as_list(given: Place | Sequence[Place]) -> list[Any]:
    """One value, or several, as a list: a string is one value, never its characters."""
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def to_path(place: Place) -> Path:
    """The path of a file or folder. A URL (`s3://bucket/corpus`) gives a `universal_pathlib.UPath`, which acts as one.

    Raises:
        PHFError: what reads such URLs is not installed, or nothing does.
    """
    if not isinstance(place, str) or "://" not in place:
        # A UPath is a Path or not by its version.
        return cast(Path, place) if hasattr(place, "joinpath") else Path(place).expanduser()
    try:
        from upath import UPath

        path = UPath(place)
        path.fs  # noqa: B018  loads what reads this kind of URL
    except (ImportError, ValueError) as error:
        raise PHFError(
            f"{place} cannot be read ({' '.join(str(error).split())}); run: pip install 'phf[remote]', and the fsspec "
            "package of that storage (s3fs for s3://, gcsfs for gs://)"
        ) from None
    return cast(Path, path)


def find_local(path: Path) -> Path | None:
    """The same place as a path of this machine, also of a `file://` URL; None if it is not on a local disk."""
    if isinstance(path, Path):
        return path
    return Path(path.path) if path.protocol in ("file", "local") else None


def hash_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: object) -> str:
    """SHA-256 of a JSON value in its canonical spelling, in hex."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success flush it to disk and rename it over `path`.

    On any exception the temporary file is removed and `path` stays as it was. What goes to object storage is
    made on the local disk and appears there by one PUT.
    """
    local = find_local(path)
    if local is None:
        with tempfile.TemporaryDirectory(prefix="phf-") as folder:
            yield Path(folder) / path.name
            upload(Path(folder) / path.name, path)
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{local.name}.", suffix=".tmp", dir=local.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explain_storage(path: Path) -> Iterator[None]:
    """Say in one line what object storage answers; each kind of it has exceptions of its own.

    Raises:
        PHFError: the storage cannot be reached, or refuses.
    """
    try:
        yield
    except PHFError:
        raise
    except Exception as error:
        if find_local(path) is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PHFError(f"{path} cannot be reached: {reason}; check the URL and your credentials") from error


def upload(file: Path, place: Path) -> None:
    """Copy a local file to object storage, where it appears whole."""
    remote = cast("UPath", place)
    with explain_storage(place):
        remote.parent.mkdir(parents=True, exist_ok=True)
        remote.fs.put_file(str(file), remote.path)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
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
    _compare_hashes(path, hash_file(path), expected, remedy)


def read_checked(path: Path, expected: str, remedy: str) -> bytes:
    """The bytes of a file, read once. Raises as `check_hash`."""
    with explain_storage(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise PHFError(f"{path} is missing, though its manifest lists it; {remedy}") from None
    _compare_hashes(path, hash_bytes(data), expected, remedy)
    return data


def _compare_hashes(path: Path, found: str, expected: str, remedy: str) -> None:
    if found != expected:
        raise PHFError(
            f"{path} is damaged: SHA-256 {found[:12]}…, its manifest says {expected[:12]}…; {remedy}"
        )


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a file that somebody named, of which there is an end: neither a pipe nor a device, and no more than `limit`.

    Args:
        what: it is, for the error.

    Raises:
        PHFError: it is none, or longer.
    """
    if not path.exists():
        raise PHFError(f"{what} does not exist; check the path")
    if not path.is_file():
        raise PHFError(f"{what} is not a regular file; write its content to one")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise PHFError(f"{what} has more than {limit:,} bytes, which it cannot need; check the file")
    return data
