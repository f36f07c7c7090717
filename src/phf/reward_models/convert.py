"""Foreign weights become safetensors + JSON, once: the one place that reads a pickle, and only named classes of it.

What is particular to a package stands in `convert_tox_block` and `convert_profanity_check`.
"""

import importlib.util
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.files import hash_file, hash_json, read_json, write_bytes, write_json

CONVERTER_VERSION = 1
WEIGHTS, VOCABULARY, MANIFEST = "weights.safetensors", "vocabulary.json", "manifest.json"

Converted = tuple[Mapping[str, npt.NDArray[np.generic]], dict[str, object]]
"""Arrays by name, and everything else as one JSON object."""


class RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle that names no class but the allowed ones; imports nothing, calls nothing else."""

    def __init__(self, file: BinaryIO, allowed: Mapping[tuple[str, str], type], package: str) -> None:
        """Read `file`; `allowed` gives the stand-in of each class that may be named, as (module, name)."""
        super().__init__(file)
        self._allowed = allowed
        self._package = package

    def find_class(self, module: str, name: str) -> type:
        """The stand-in of an allowed class.

        Raises:
            PHFError: any other class; names it.
        """
        if (module, name) not in self._allowed:
            allowed = ", ".join(".".join(key) for key in self._allowed)
            raise PHFError(
                f"refusing a pickle that names {module}.{name}; only {allowed} are allowed: "
                f"install {self._package} anew from a source you trust"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse references to outside objects."""
        raise PHFError(f"refusing a pickle with a persistent reference ({pid!r})")


def read_pickle(file: BinaryIO, allowed: Mapping[tuple[str, str], type], package: str) -> Any:
    """What `RestrictedUnpickler` finds in a file.

    Raises:
        PHFError: a class that is not allowed, or a damaged file.
    """
    try:
        return RestrictedUnpickler(file, allowed, package).load()
    except PHFError:
        raise
    except Exception as error:  # a damaged pickle can raise anything (the documentation of `pickle`)
        name = getattr(file, "name", "a weight file")
        raise PHFError(
            f"{name} of {package} is damaged ({type(error).__name__}); install {package} anew"
        ) from None


def find_package(module: str) -> Path:
    """The folder of an installed package, which is found but never imported.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    return Path(spec.origin).parent


SPEEDS, REFERENCES, CHECKS = CACHED = ("speeds", "references", "checks")
"""Folders of the cache beside those of converted models."""
ANSWERS = "answers"
"""The folder of what language models have answered: it was paid for, and is never cleared."""


def cache_folder() -> Path:
    """Where converted models, measured speeds and texts of reference models live: `$PHF_CACHE`, or `~/.cache/phf`."""
    return Path(os.environ.get("PHF_CACHE") or Path.home() / ".cache" / "phf")


def clear_cache() -> tuple[int, list[str]]:
    """Remove what phf has put into its cache folder, and nothing else, for `$PHF_CACHE` may name any folder.

    Returns:
        bytes removed; names of what was left.
    """
    num_bytes, kept = 0, []
    for path in sorted(cache_folder().glob("*")):
        if path.is_dir() and (path.name in CACHED or re.fullmatch(r".+@[0-9a-f]{8}", path.name)):
            num_bytes += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
        elif path.name != ANSWERS:
            kept.append(path.name)
    return num_bytes, kept


def convert_once(name: str, inputs: Sequence[Path], read: Callable[[], Converted]) -> Path:
    """The folder that holds a model as safetensors + JSON; `read` on first use, or if a file is damaged.

    The manifest is written last, by atomic rename, and holds the hashes of the inputs and of the two files.
    """
    source = {"converter": CONVERTER_VERSION, "inputs": {path.name: hash_file(path) for path in inputs}}
    folder = cache_folder() / f"{name}@{hash_json(source)[:8]}"
    if not _is_complete(folder, source):
        from safetensors.numpy import save

        weights, vocabulary = read()
        write_json(folder / VOCABULARY, vocabulary)
        arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        write_bytes(folder / WEIGHTS, save(arrays))
        hashes = {name: hash_file(folder / name) for name in (WEIGHTS, VOCABULARY)}
        write_json(folder / MANIFEST, {"source": source, "files": hashes})
    return folder


def _is_complete(folder: Path, source: dict[str, object]) -> bool:
    try:
        manifest = read_json(folder / MANIFEST)
        hashes = {name: hash_file(folder / name) for name in (WEIGHTS, VOCABULARY)}
    except (PHFError, FileNotFoundError):
        return False
    return bool(manifest == {"source": source, "files": hashes})
