"""Files that appear whole or not at all, and the hashes that name them."""

import glob
import hashlib
import json
import os
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from phf.errors import PHFError

if TYPE_CHECKING:
    from upath import UPath


_THIS_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]

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
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hash_bytes(text.encode(errors="surrogatepass"))  # a damaged file may hold half a pair


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success flush it to disk and rename it over `path`.

    On any exception the temporary file is removed and `path` stays as it was; the next writer removes those of processes
    that were killed. What goes to object storage is
    made on the local disk and appears there by one PUT.
    """
    local = find_local(path)
    if local is None:
        with tempfile.TemporaryDirectory(prefix="phf-") as folder:
            yield Path(folder) / path.name
            upload(Path(folder) / path.name, path)
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(local)
    temporary = local.with_name(f".{local.name}.{_THIS_HOST}-{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with keep_mode(temporary):
            yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine were killed over when they wrote a file."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.{_THIS_HOST}-*.*.tmp"):
        pid = left_over.name.removesuffix(".tmp").rpartition(".")[0].rpartition("-")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            left_over.unlink(missing_ok=True)
        except (OSError, ValueError, OverflowError):
            pass  # another user's process, or no file of ours


@contextmanager
def keep_mode(path: Path) -> Iterator[None]:
    """Make a file, whose mode the umask decides, and give it that mode again after something has written it: safetensors
    puts another one in its place, which its owner alone may read.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def apply_umask(folder: Path) -> None:
    """Give all files below a folder the mode that the umask decides, whatever has written them."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "file").touch()
        mode = stat.S_IMODE((Path(place) / "file").stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


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


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write a JSON value atomically, in a stable spelling (sorted keys; the same value gives the same bytes); without `indent` in one line."""
    text = json.dumps(value, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path, remedy: str = "delete it and make it again") -> Any:
    """Read a JSON file.

    Raises:
        PHFError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PHFError(f"{path} does not exist") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # integers of 5,000 digits and nesting without end are no JSON
        raise PHFError(f"{path} is not valid JSON ({error}); it is damaged: {remedy}") from None


def write_sealed(
    path: Path, value: Mapping[str, object], key: str = "sha256", indent: int | None = 1
) -> None:
    """Write a JSON object as `write_json` does, with the hash of its content under `key`: against accidents, not forgers."""
    write_json(path, {**value, key: hash_json(value)}, indent)


def read_sealed(
    path: Path, remedy: str, *, key: str = "sha256", sealed_in: int | None = None
) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the hash.

    Args:
        remedy: how the file is made again.
        sealed_in: the `format_version` that has a hash; another without one is read, for the caller to judge.

    Raises:
        PHFError: the file is missing, or any value in it was changed.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise PHFError(f"{path} is not a JSON object; it is damaged: {remedy}")
    found, version = value.pop(key, None), value.get("format_version")
    is_other = found is None and sealed_in is not None and isinstance(version, int) and version != sealed_in
    if not is_other and found != hash_json(value):
        raise PHFError(f"{path} is damaged: its content does not have the hash it names; {remedy}")
    return value


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
