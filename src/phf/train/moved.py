"""Where what run.json names lies now, a corpus or the model that a run starts from: it may have been moved since, alone or together
with the run."""

from collections.abc import Iterator
from pathlib import Path

from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.files import hash_file, hash_json


def find_corpus(run: Path, named: str, corpus_id: str) -> Path:
    """The corpus of a run: where run.json names it; else the end of that path, below the run's folder or one that this lies in.

    The id proves that it is the same: another corpus is passed over.

    Raises:
        PHFError: it is at none of these places; says how to name its own.
    """
    for place in _list_places(run.resolve(), Path(named)):
        if is_corpus(place, corpus_id):
            return place
    if (Path(named) / "manifest.json").is_file():
        return Path(named)  # another, or damaged: whoever opens it says so
    raise PHFError(
        f"{named} holds no corpus any more; say where that of {run} lies now: phf train --resume {run} corpus=NEW"
    )


def _list_places(run: Path, named: Path) -> Iterator[Path]:
    yield named
    parts = named.parts[1:] if named.is_absolute() else named.parts
    for folder in (run, *run.parents):
        for first in range(len(parts)):
            yield folder.joinpath(*parts[first:])


def is_corpus(place: Path, corpus_id: str) -> bool:
    """Whether a corpus with an id lies at a place."""
    try:
        return (place / "manifest.json").is_file() and Corpus.open(place).id == corpus_id
    except (PHFError, OSError):
        return False


def hash_init(init: str | None) -> str | None:
    """Hash of the config and the weights in the folder of a model; None of a model of the Hub."""
    folder = Path(init or "")
    if init is None or not (folder / "config.json").is_file():
        return None
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hash_json({file.name: hash_file(file) for file in files})


def find_init(run: Path, named: str, init_hash: str) -> str:
    """The folder of the model that a run started from; see `find_corpus`.

    Raises:
        PHFError: it is gone, or is another model now.
    """
    for place in _list_places(run.resolve(), Path(named)):
        if hash_init(str(place)) == init_hash:
            return str(place)
    raise PHFError(
        f"model.init={named} is not the model that {run} started from ({init_hash[:12]}…), neither where that path leads from here nor "
        "beside the run; put that one back there"
    )
