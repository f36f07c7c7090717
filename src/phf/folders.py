"""Folders that one process at a time writes: their lock, and how new ones appear whole."""

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from phf.errors import PHFError
from phf.files import apply_umask, explain_storage, find_local, hash_file

LOCK_FILE = ".phf.lock"
WITHOUT_LOCKS = "PHF_WITHOUT_LOCKS"
"""Environment variable: go on where the file system has no locks."""
GOES_ON = "the same command goes on from here"
BEGINS_AGAIN = "nothing was kept: the same command begins again"
"""What a `KeyboardInterrupt` carries to the user: how to go on."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-z_]{8}\.tmp")

Say = Callable[[str], None]


@contextmanager
def lock_folder(
    folder: Path, activity: str, *, name: Path | None = None, wait: bool | None = None, say: Say | None = None
) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, for one process.

    The lock is the kernel's, on the file `.phf.lock` in it: it goes with the process, however that ends. What an earlier
    process was killed over (`.<name>.*.tmp`) is removed. Object storage has no locks: there two processes do the same work
    twice, and write the same bytes.

    Args:
        activity: what is done with the folder, for those who come second: `training`.
        name: what they call it, if not by its own path.
        wait: until another process lets go, instead of an error; None: whoever calls cannot offer that.
        say: told that it waits, and for whom.

    Raises:
        PHFError: another process holds it; the file system has no locks.
        KeyboardInterrupt: with `GOES_ON`, unless it says something else.
    """
    local = find_local(folder)
    if local is None:
        yield
        return
    is_new = not local.exists()
    try:
        remedy = f"{'wait for it' if wait is None else 'give --wait'}, or stop it first"
        with lock_file(local / LOCK_FILE, activity, name or folder, remedy=remedy, wait=bool(wait), say=say):
            _remove_leftovers(local)
            yield
    except KeyboardInterrupt as stopped:
        raise stopped if stopped.args else KeyboardInterrupt(GOES_ON) from None
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                local.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Remove half-written files in and below a folder that this process holds; not below one that somebody may hold."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not Path(place, name, LOCK_FILE).exists()]
        for name in filter(_LEFTOVER.fullmatch, files):
            with suppress(OSError):  # nobody may write there
                Path(place, name).unlink()


@contextmanager
def lock_file(
    file: Path, activity: str, name: Path, *, remedy: str, wait: bool = False, say: Say | None = None
) -> Iterator[None]:
    """As `lock_folder`, of a lock file anywhere, which is removed at the end; `remedy`: of that another process holds it."""
    handle = _take_lock(file, name, remedy, wait, say)
    if handle is None:
        yield
        return
    try:
        _write_holder(handle, activity)
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # also of forked processes, which have the same open file
        os.close(handle)


def _take_lock(file: Path, name: Path, remedy: str, wait: bool, say: Say | None) -> int | None:
    """An open file that this process has locked; None where nothing can be written, which needs no lock."""
    while (handle := _open_lock(file)) is not None:
        try:
            is_locked = _lock(handle, name, remedy, wait, say)
            # Whoever held it may have removed it meanwhile: then what was locked is nobody's lock any more.
            with suppress(FileNotFoundError):
                if not is_locked or os.path.samestat(os.fstat(handle), file.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    return None


def _open_lock(file: Path) -> int | None:
    while True:
        try:
            if file.name == LOCK_FILE:
                file.parent.mkdir(parents=True, exist_ok=True)
            return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if file.name != LOCK_FILE:
                raise
            # Else whoever held the folder has removed it just now.
        except OSError:
            if file.exists():  # another user's
                return os.open(file, os.O_RDONLY)
            if file.parent.is_dir() and not _can_write(file.parent):
                return None
            raise


def _can_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)  # of a read-only file system, too


def _lock(handle: int, name: Path, remedy: str, wait: bool, say: Say | None) -> bool:
    """Lock an open file; False if the file system cannot and the user knows.

    Raises:
        PHFError: another process holds it and is not waited for; there are no locks.
    """
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(handle, name)
            if not wait:
                raise PHFError(f"another process is {holder}; {remedy}") from None
            if say is not None:
                say(f"waiting: another process is {holder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if not os.environ.get(WITHOUT_LOCKS):
            raise PHFError(
                f"{name} lies on a file system without locks ({error.strerror}), and two processes at once would spoil it; "
                f"choose another disk, or set {WITHOUT_LOCKS}=1 and start no second one"
            ) from None
        return False
    return True


def _write_holder(handle: int, activity: str) -> None:
    holder = {
        "activity": activity,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }
    with suppress(OSError):  # another user's file, a full disk: it is locked all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)


def _describe_holder(handle: int, name: Path) -> str:
    """What is done with a folder by whom: "training runs/mle (process 17 on host, since 2026-11-30 07:02:11)"."""
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        by = f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
        return f"{holder['activity']} {name}{by}"
    except (OSError, ValueError, KeyError, TypeError):  # locked a moment ago
        return f"using {name}"


def is_filled(place: Path) -> bool:
    """Whether something is at a place; an empty folder is nothing.

    Raises:
        PHFError: the storage cannot be reached.
    """
    with explain_storage(place):
        return place.exists() and not (place.is_dir() and not any(place.iterdir()))


def refuse_filled(out: Path, why: str = "") -> None:
    """Refuse a place where something is already; an empty folder will do.

    Raises:
        PHFError: there is something; the storage cannot be reached.
    """
    if is_filled(out):
        raise PHFError(f"{out} exists and is not empty; delete it or choose another folder with -o{why}")


@contextmanager
def create_folder(out: Path, activity: str, *, is_own: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A new local folder that appears whole: made within the sibling `.<name>.partial`, renamed at the end.

    Args:
        is_own: whether what is at `out` may be what this very command has made. It is made once more then, beside it, and
            what is there stays if it holds the same files.

    Raises:
        PHFError: something else is there (`refuse_filled`); another process is at it.
        KeyboardInterrupt: with `BEGINS_AGAIN`.
    """
    if not is_own():
        refuse_filled(out)
    with create_beside(out, activity) as made:
        yield made
        apply_umask(made)
        if is_filled(out):
            refuse_difference(made, out)
        else:
            made.rename(out)


@contextmanager
def create_beside(out: Path, activity: str) -> Iterator[Path]:
    """A new folder within the locked sibling `.<name>.partial`; what is not moved away at the end is removed. Raises as
    `create_folder`, but for what is at `out`.
    """
    partial = out.parent / f".{out.name}.partial"
    made = partial / "new"
    try:
        with lock_folder(partial, activity, name=out):
            try:
                shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
                made.mkdir()
                yield made
            except KeyboardInterrupt as stopped:
                raise stopped if stopped.args else KeyboardInterrupt(BEGINS_AGAIN) from None
            finally:
                shutil.rmtree(made, ignore_errors=True)
    finally:
        with suppress(OSError):  # the next process has taken it
            partial.rmdir()


def refuse_difference(made: Path, there: Path) -> None:
    """Refuse a folder, which may be an object storage's, that holds other files than those just made.

    Raises:
        PHFError: names the first that is missing or other.
    """
    if (other := find_difference(made, there)) is not None:
        refuse_filled(there, f" (its {other} is not what this command makes)")


def find_difference(made: Path, there: Path) -> str | None:
    """The first file of one folder that is missing or other in a second one, by its path within; None: that has them all."""
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        other = there / path.relative_to(made).as_posix()
        if not other.is_file() or hash_file(path) != hash_file(other):
            return path.relative_to(made).as_posix()
    return None
