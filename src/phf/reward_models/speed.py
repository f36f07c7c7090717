"""What `phf reward list` says of this machine: which models of the catalogue load here, and how fast they score."""

import importlib.metadata
import math
import os
import platform
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from threadpoolctl import threadpool_limits

from phf.errors import PHFError
from phf.files import hash_file, hash_json, read_sealed, write_sealed
from phf.records import Progress
from phf.results import encode, parse_json
from phf.reward_models.catalogue import CARDS, RewardModelCard, load_card
from phf.reward_models.convert import SPEEDS, cache_folder
from phf.reward_models.protocol import RewardModel
from phf.reward_models.python_code import split_lines
from phf.reward_models.scoring import score_documents

SECONDS = 0.5
MAX_BYTES = 1_000_000

Documents = list[tuple[str, list[int]]]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one thread scored real text, and what scored it (the identity's slug)."""

    identity: str
    segments_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class CardStatus:
    """A card and either its speed or, if it does not load here, what to do about it."""

    card: RewardModelCard
    speed: Speed | None
    problem: str = ""


def describe_reward_models(
    *, measure: bool = False, progress: Progress | None = None
) -> Iterator[CardStatus]:
    """The catalogue as it is on this machine. Speeds are measured once and kept in the cache folder.

    Args:
        measure: measure again.
        progress: told the model that is being measured.
    """
    for index, card in enumerate(CARDS):
        if not all(map(_find_version, card.packages)) or not _has_weights(card):
            yield CardStatus(card, None, f"run '{card.install}'")
            continue
        path = _cache_path(card)
        speed = None if measure else _read_speed(path)
        if speed is None:
            if progress is not None:
                progress(f"measuring reward models  {card.name}", index, len(CARDS))
            try:
                speed = measure_speed(load_card(card.name, download=False), read_text(card.text))
            except (PHFError, ModuleNotFoundError) as error:
                yield CardStatus(card, None, str(error))
                continue
            write_sealed(path, encode(speed))
        yield CardStatus(card, speed)


def measure_speed(model: RewardModel, documents: Documents) -> Speed:
    """Wall-clock speed of one thread on as many of the documents as take about `SECONDS`, after a first one.

    Grows the batch until its time grows with it: a model may fill up small batches, which then cost as much as full ones.
    """
    score_documents(model, documents[:1])
    num_documents, before = 1, math.inf
    # One thread, as each worker of annotate has; more of them starve each other on a busy machine.
    with threadpool_limits(1):
        while True:
            batch = documents[:num_documents]
            start = time.perf_counter()
            score_documents(model, batch)
            seconds = time.perf_counter() - start
            if num_documents >= len(documents) or seconds > max(SECONDS / 4, 2 * before):
                break
            num_documents, before = 4 * num_documents, seconds
    num_segments = sum(len(ends) for _, ends in batch)
    num_bytes = sum(len(text.encode()) for text, _ in batch)
    return Speed(model.identity.slug, num_segments / seconds, num_bytes / seconds)


def read_text(kind: Literal["prose", "python"]) -> Documents:
    """About half a megabyte of text that is wherever Python is.

    Args:
        kind: `prose` (paragraphs of Python's own reference manual, each a document of one segment), or `python` (files
            of the standard library, a segment per line).
    """
    if kind == "prose":
        from pydoc_data.topics import topics

        paragraphs = (part for topic in topics.values() for part in topic.split("\n\n") if part.strip())
        return [(paragraph, [len(paragraph)]) for paragraph in paragraphs]
    documents: Documents = []
    num_bytes = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        documents.append((text, list(accumulate(map(len, split_lines(text))))))
        num_bytes += len(text)
        if num_bytes > MAX_BYTES:
            break
    return documents


def _cache_path(card: RewardModelCard) -> Path:
    """A name that changes with the code, the packages and the machine: known without importing any of them."""
    key = {
        "versions": {name: _find_version(name) for name in (*card.packages, "torch", "numpy")},
        "code": {path.name: hash_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))},
        "machine": [platform.node(), platform.python_version(), os.cpu_count()],
    }
    return cache_folder() / SPEEDS / f"{card.name}@{hash_json(key)[:8]}.json"


def _read_speed(path: Path) -> Speed | None:
    """A speed that was kept; None where there is none, or it is damaged: it is measured again."""
    try:
        return parse_json(read_sealed(path, "it is measured again"), Speed, str(path))
    except (PHFError, OSError):
        return None


def _find_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_weights(card: RewardModelCard) -> bool:
    if not card.weights:
        return True
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = card.weights.partition("@")
    return isinstance(try_to_load_from_cache(name, "model.safetensors", revision=revision), str)
