"""Which labelled texts are held out: no text, and no text that differs in spelling alone, is on both sides."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from phf.errors import PHFError
from phf.reward_training.labels import Labels

HELD_OUT = 0.2
"""Share of texts that are held out, decided by hash, so that a text keeps its side when labels are added."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Feedback without duplicates, as `Labels`.

    Attributes:
        clusters: int64 [N]; examples that share a text (pairs only) share a cluster.
        num_duplicates: rows that repeat an earlier one.
        conflicts: texts, one per duplicate whose rows disagree: on which side of 0.5 a text is, or which of two is better.
    """

    texts: list[str]
    rejected: list[str]
    targets: npt.NDArray[np.float64]
    clusters: npt.NDArray[np.int64]
    num_duplicates: int = 0
    conflicts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, chosen: npt.NDArray[np.bool_]) -> "Examples":
        """The examples that are chosen, bool [N]."""
        rows = np.flatnonzero(chosen)
        return Examples(
            [self.texts[row] for row in rows],
            [self.rejected[row] for row in rows] if self.rejected else [],
            self.targets[rows],
            self.clusters[rows],
        )


def hash_text(text: str) -> str:
    """The same for texts that differ in case, white space or compatible characters (NFKC) alone: SHA-256 in hex."""
    plain = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def merge_duplicates(labels: Labels) -> Examples:
    """One example per text, with the mean of its targets; or per pair in its order. Pairs of one text are left out."""
    keys = [hash_text(text) for text in labels.texts]
    if labels.kind == "pairs":
        return _merge_pairs(labels, keys)
    places: dict[str, int] = {}
    of = np.array([places.setdefault(key, len(places)) for key in keys])
    first = np.unique(of, return_index=True)[1]
    is_bad = labels.targets > 0.5
    num_bad, num = np.bincount(of, is_bad), np.bincount(of)
    disagree = np.flatnonzero((num_bad > 0) & (num_bad < num))
    return Examples(
        [labels.texts[row] for row in first],
        [],
        np.bincount(of, labels.targets) / num,
        np.arange(len(first)),
        len(of) - len(first),
        tuple(labels.texts[first[place]] for place in disagree),
    )


def _merge_pairs(labels: Labels, keys: list[str]) -> Examples:
    pairs: dict[tuple[str, str], int] = {}
    for row, (key, other) in enumerate(zip(keys, map(hash_text, labels.rejected), strict=True)):
        if key != other:
            pairs.setdefault((key, other), row)
    rows = list(pairs.values())
    names = {key: place for place, key in enumerate(dict.fromkeys(key for pair in pairs for key in pair))}
    ends = np.array([[names[key] for key in pair] for pair in pairs], np.int64).reshape(-1, 2)
    links = coo_matrix((np.ones(len(ends)), ends.T), shape=(len(names), len(names)))
    clusters = connected_components(links, directed=False)[1]
    return Examples(
        [labels.texts[row] for row in rows],
        [labels.rejected[row] for row in rows],
        np.zeros(len(rows)),
        clusters[ends[:, 0]].astype(np.int64),
        len(keys) - len(rows),
        tuple(
            labels.texts[row] for (key, other), row in pairs.items() if key < other and (other, key) in pairs
        ),
    )


def split_examples(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Those to train on, and those held out: about a fifth of the clusters, decided by a hash of seed and texts.

    A cluster with more than a fifth of the examples is trained on.
    """
    keys: dict[int, str] = {}
    for row, cluster in enumerate(examples.clusters.tolist()):
        for text in (examples.texts[row], *examples.rejected[row : row + 1]):
            key = hash_text(text)
            keys[cluster] = min(keys.get(cluster, key), key)
    sizes = np.bincount(examples.clusters)
    held_out = {
        cluster
        for cluster, key in keys.items()
        if hash_fraction(key, seed) < HELD_OUT and sizes[cluster] <= HELD_OUT * len(examples)
    }
    chosen = np.array([cluster in held_out for cluster in examples.clusters.tolist()], np.bool_)
    return examples.select(~chosen), examples.select(chosen)


def hash_fraction(key: str, seed: int) -> float:
    """A number in [0, 1) that seed and key decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:6], "big") / 2**48


def check_apart(train: Examples, held_out: Examples, name: str) -> None:
    """Refuse a held-out file that shares texts with the training labels.

    Raises:
        PHFError: it does; names it, says how many and shows one.
    """
    known = {hash_text(text) for text in (*train.texts, *train.rejected)}
    shared = [text for text in (*held_out.texts, *held_out.rejected) if hash_text(text) in known]
    if shared:
        raise PHFError(
            f"{len(shared):,} texts of {name} are also among the training labels (case and white space aside), "
            f"such as {shared[0][:60]!r}; what is held out must be new: leave them out of one of the files"
        )
