"""Where a run's corpus lies now: it may have been moved since run.json named it, alone or together with the run."""

from collections.abc import Iterator
from pathlib import Path

from phf.corpus.store import Corpus
from phf.errors import PHFError


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
