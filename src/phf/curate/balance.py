"""A corpus in which bad text is common enough to learn from: all documents with some, and as many without."""

import shlex
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation import Annotation, find_unscored_documents, load_scores, refuse_unscored
from phf.corpus.duplicates import find_near_duplicates
from phf.corpus.rows import Row
from phf.corpus.store import Corpus, write_corpus
from phf.errors import PHFError
from phf.files import Place
from phf.records import Progress
from phf.thresholds import Threshold


def balance_corpus(
    corpus: Corpus | Place,
    annotation: Annotation,
    out: Place,
    *,
    threshold: float,
    ratio: float = 1.0,
    max_characters: int | None = None,
    drop_near_duplicates: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Keep every document that has a segment above `threshold`, and `ratio` times as many that have none.

    Where bad text is rare a small model sees too little of it to learn what the control tokens mean (docs/log.md). The
    choice looks at the annotation and at the text's hash alone, so the same corpus gives the same bytes; a document
    keeps its id and its split. The manifest names the annotation and the threshold beside each source, and so does
    every report: a score measured on the new corpus speaks of the new corpus.

    Args:
        threshold: a segment above it is bad.
        ratio: documents without a bad segment for each document with one; all of them if there are fewer.
        max_characters: leave longer documents out.
        drop_near_duplicates: leave out documents that repeat earlier ones (see `find_near_duplicates`).

    Raises:
        PHFError: nothing lies above the threshold; a value is out of range; see `load_scores` and `build_corpus`.
    """
    corpus = Corpus.open(corpus)
    if ratio < 0:
        raise PHFError(f"ratio {ratio:g} must be at least 0")
    scores, num_segments = load_scores(corpus, annotation, missing="drop")
    refuse_unscored(annotation, find_unscored_documents(scores, num_segments), f"all of {corpus.path}")
    is_bad, is_clean = _judge_documents(scores, num_segments, threshold)
    lengths, ranks = _read_lengths_and_ranks(corpus)
    is_usable = np.ones(len(lengths), dtype=np.bool_)
    rule = f"balanced by {annotation.slug} > {threshold:g}, 1:{ratio:g}"
    if max_characters is not None:
        is_usable &= lengths <= max_characters
        rule += f", at most {max_characters} characters"
    if drop_near_duplicates:
        is_usable &= ~find_near_duplicates(document.text for document in corpus.iterate_documents())
        rule += ", no near-duplicates"
    is_bad &= is_usable
    is_clean &= is_usable
    if not is_bad.any():
        highest = float(np.nanmax(scores)) if not np.isnan(scores).all() else float("nan")
        raise PHFError(
            f"no document of {corpus.path} has a segment above threshold {threshold:g} (highest score is {highest:.4g}); "
            f"see: phf corpus stats {shlex.quote(str(corpus.path))}"
        )
    candidates = np.flatnonzero(is_clean)
    num_clean = min(len(candidates), round(ratio * int(is_bad.sum())))
    # The lowest hashes and no draw: whether a document stays follows from its text, not from where it stands.
    chosen = candidates[np.argsort(ranks[candidates], kind="stable")[:num_clean]]
    is_kept = is_bad.copy()
    is_kept[chosen] = True
    sources = [source["spec"] for source in corpus.manifest["sources"]]
    return write_corpus(
        [(f"{spec} [{rule}]", _iterate_kept(corpus, spec, is_kept)) for spec in sources],
        out,
        validation_fraction=corpus.manifest["validation_fraction"],
        progress=progress,
    )


def _judge_documents(
    scores: npt.NDArray[np.float32], num_segments: npt.NDArray[np.int64], threshold: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Documents with a segment above the threshold, and wholly scored ones without; an unscored segment is in neither."""
    documents = np.repeat(np.arange(len(num_segments)), num_segments)
    num_bad = np.bincount(documents, weights=Threshold(threshold).is_bad(scores), minlength=len(num_segments))
    num_unscored = np.bincount(documents, weights=np.isnan(scores), minlength=len(num_segments))
    is_scored = (num_segments > 0) & (num_unscored == 0)
    return is_scored & (num_bad > 0), is_scored & (num_bad == 0)


def _read_lengths_and_ranks(corpus: Corpus) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Characters of each document, and digits from the middle of its text's hash (its ends decide other things)."""
    lengths, ranks = [], []
    for document in corpus.iterate_documents():
        lengths.append(len(document.text))
        ranks.append(int(document.text_hash[24:40], 16))
    return np.array(lengths, dtype=np.int64), np.array(ranks, dtype=np.uint64)


def _iterate_kept(corpus: Corpus, source: str, is_kept: npt.NDArray[np.bool_]) -> Iterator[Row]:
    for document, kept in zip(corpus.iterate_documents(), is_kept, strict=True):
        if kept and document.source == source:
            yield Row(place=document.id, text=document.text)
