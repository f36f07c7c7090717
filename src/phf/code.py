"""A user's own Python code, named as `module:name`: imported, never evaluated, and known by the hash of its source."""

import difflib
import functools
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from phf.errors import PHFError
from phf.files import hash_file, hash_json
from phf.watch import note_work


def load_code(spec: str) -> tuple[Any, str]:
    """Load what `module:name` names, from the installed packages or the current folder.

    Returns:
        the function, class or object, and the hash of the source files that it stands in.

    Raises:
        PHFError: the module cannot be imported, has no such name, or no source file.
    """
    module_name, name = spec.split(":")
    module = _import_module(module_name)
    if not hasattr(module, name):
        public = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
        ]
        nearest = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean '{nearest[0]}'? it has" if nearest else "it has"
        raise PHFError(
            f"module {module_name} ({module.__file__}) has no '{name}'; {hint} {', '.join(public) or 'no function'}"
        )
    found = getattr(module, name)
    return found, _hash_sources(module, found)


def name_code(value: object) -> str:
    """The `module:name` by which every process loads a function or class; the inverse of `load_code`.

    Raises:
        PHFError: no other process could import it: a lambda, or what stands in a script, a notebook or another function.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if (
        name is None
        or module == "__main__"
        or getattr(sys.modules.get(module or ""), name, None) is not value
    ):
        what = f"{name} of {module}" if name is not None else f"an object of {type(value).__name__}"
        raise PHFError(
            f"{what} cannot be imported by name, as worker processes and later commands must; define it with 'def' in a module of "
            "its own, such as tone.py, and give tone.score or 'tone:score'"
        )
    return f"{module}:{name}"


@contextmanager
def refuse_exit(what: str) -> Iterator[None]:
    """Make an error of an exit that a user's own code asks for: else the command would end as if all were done.

    Args:
        what: the code that runs within.

    Raises:
        PHFError: it called `sys.exit` or `os._exit`, or raised a KeyboardInterrupt of its own kind. Ctrl-C stays what it is.
    """
    caller, leave = (os.getpid(), threading.get_ident()), os._exit

    def refuse(status: int) -> NoReturn:
        if (
            os.getpid(),
            threading.get_ident(),
        ) != caller:  # a process that the code forked, or a watcher of ours
            leave(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = refuse
    try:
        with note_work(what):
            yield
    except (SystemExit, KeyboardInterrupt) as error:
        if type(error) is KeyboardInterrupt:
            raise
        raise PHFError(f"{what} asked to end the program ({error!r}); take the exit out of it") from error
    finally:
        os._exit = leave


def _import_module(name: str) -> ModuleType:
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # behind the rest: a ./random.py must not hide Python's own
    importlib.invalidate_caches()
    try:
        with refuse_exit(f"module {name}"):
            return importlib.import_module(name)
    except PHFError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PHFError(
                f"no module {error.name!r} is installed or in the current folder; run from the folder that holds it"
            ) from None
        raise PHFError(f"module {name} needs the module {error.name!r}, which is not installed") from error
    except Exception as error:
        raise PHFError(f"module {name} fails on import: {type(error).__name__}: {error}") from error


def _hash_sources(module: ModuleType, value: object) -> str:
    """Hash of the files of a module and of what it names (which it may have from another module).

    Raises:
        PHFError: there is no file.
    """
    owner = sys.modules.get(getattr(value, "__module__", None) or type(value).__module__, module)
    files = {_find_file(module), _find_file(owner)} - {None}
    if not files:
        raise PHFError(f"module {module.__name__} has no source file, so no identity; wrap it in a .py file")
    return hash_json(sorted(_hash_as_imported(file) for file in files if file is not None))[:16]


def _find_file(module: ModuleType) -> Path | None:
    try:
        return Path(inspect.getsourcefile(module) or module.__file__ or "").resolve(strict=True)
    except (TypeError, OSError):
        return None


@functools.cache
def _hash_as_imported(file: Path) -> str:
    """Hash of a source file, taken once: an edit shows in the next process, which is when Python sees it, too."""
    return hash_file(file)
