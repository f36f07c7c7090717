"""Scoring documents and samples with any reward model, its answers checked."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from phf.code import refuse_exit
from phf.errors import PHFError
from phf.records import MAX_SCORE
from phf.reward_models.protocol import (
    RewardModel,
    ScoringStoppedError,
    SegmentRewardModel,
    Unscored,
    split_segments,
)


def score_documents(model: RewardModel, documents: Sequence[tuple[str, Sequence[int]]]) -> list[list[float]]:
    """Score every segment of some documents, in batches where the model can.

    Args:
        model: the reward model.
        documents: pairs of text and segment ends (code points).

    Returns:
        One list per document, one score per segment; `Unscored` or NaN where there is none.

    Raises:
        PHFError: the model returned a wrong number of scores, or one beyond `MAX_SCORE`.
    """
    scored = [list(scores) for scores in _score_each(model, documents)]
    _to_array(model, chain.from_iterable(scored))
    return scored


def score_segments(
    model: RewardModel, texts: Sequence[str], ends: Sequence[Sequence[int]]
) -> tuple[npt.NDArray[np.float32], list[float]]:
    """The scores of `score_documents` as one array, for documents without empty segments: what annotating stores.

    Args:
        model: the reward model.
        texts: the documents.
        ends: segment ends of each (code points).

    Returns:
        scores [num_segments], NaN = unscored; the model's own answers for those, in order, which carry the reasons.

    Raises:
        PHFError: the model returned a wrong number of scores, or one beyond `MAX_SCORE`.
    """
    flat: Sequence[float]
    if _looks_at_segments_alone(model):
        segments = [
            segment
            for text, stops in zip(texts, ends, strict=True)
            for segment in split_segments(text, stops)
        ]
        with _call(model):
            flat = model.score_texts(segments) if segments else []
        num_segments = len(segments)
    else:
        flat = list(chain.from_iterable(_score_each(model, list(zip(texts, ends, strict=True)))))
        num_segments = len(flat)
    values = _to_array(model, flat)
    if values.shape != (num_segments,):
        raise PHFError(
            f"reward model {model.identity.name} returned {len(values)} scores for {num_segments} segments"
        )
    scores = values.astype(np.float32)
    return scores, [flat[index] for index in np.flatnonzero(np.isnan(scores)).tolist()]


@contextmanager
def _call(model: RewardModel) -> Iterator[None]:
    """Make one line of what a model's own code raises, be it an exit or the panic of a library in Rust."""
    name = f"reward model {model.identity.name}"
    try:
        with refuse_exit(name):
            yield
    except (PHFError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise PHFError(f"{name} raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def _looks_at_segments_alone(model: RewardModel) -> TypeGuard[SegmentRewardModel]:
    """Whether the model is a `SegmentRewardModel` that has not replaced how documents are scored."""
    return all(
        getattr(type(model), name, None) is getattr(SegmentRewardModel, name)
        for name in ("score", "score_batch")
    )


def _to_array(model: RewardModel, scores: Iterable[float]) -> npt.NDArray[np.floating]:
    if isinstance(scores, np.ndarray) and scores.dtype.kind == "f":
        values = scores
    else:
        with _call(model):
            # NumPy would make NaN of None and a number of a string; `array` refuses both.
            values = np.asarray(array("d", scores))
    beyond = values[np.abs(values) > MAX_SCORE]  # NaN is not
    if len(beyond) > 0:
        raise PHFError(
            f"reward model {model.identity.name} returned the score {beyond[0]:g}; a score lies within ±{MAX_SCORE:g}, or is NaN"
        )
    return values


def _score_each(
    model: RewardModel, documents: Sequence[tuple[str, Sequence[int]]]
) -> Sequence[Sequence[float]]:
    """What the model returns for each document, the numbers of scores checked."""
    score_batch = getattr(model, "score_batch", None)
    scored: Sequence[Sequence[float]]
    with _call(model):
        if score_batch is not None:
            scored = score_batch(documents)
        else:
            scored = [model.score(text, ends) for text, ends in documents]
    name = model.identity.name
    if len(scored) != len(documents):
        raise PHFError(f"reward model {name} returned scores of {len(scored)} documents for {len(documents)}")
    for index, ((_, ends), scores) in enumerate(zip(documents, scored, strict=True)):
        if len(scores) != len(ends):
            raise PHFError(
                f"reward model {name} returned {len(scores)} scores for the {len(ends)} segments of document "
                f"{index} of the batch; it must return one per segment (NaN where it has none)"
            )
    return scored


def find_culprit(
    model: RewardModel, documents: Sequence[tuple[str, Sequence[int]]], error: Exception
) -> tuple[int | None, Exception]:
    """The first of some documents on which a model fails alone, and how; (None, `error`) if it fails on none of them alone."""
    for index, document in enumerate(documents):
        try:
            score_documents(model, [document])
        except Exception as found:
            return index, found
    return None, error


def score_samples(model: RewardModel, texts: Sequence[str]) -> list[float]:
    """Score each sample as one segment, after `model.trim_sample`.

    Returns:
        One score per text; `Unscored` where the text is empty, before or after trimming.

    Raises:
        PHFError: the model fails on a text, which is named; or as `score_documents`.
    """
    with _call(model):
        trimmed = [model.trim_sample(text) for text in texts]
    documents = [(text, [len(text)]) for text in trimmed if text]
    try:
        scores = iter(score_documents(model, documents))
    except ScoringStoppedError:
        raise
    except PHFError as error:
        index, found = find_culprit(model, documents, error)
        if index is None:
            raise
        raise PHFError(
            f"{found}; text {index}, which begins {documents[index][0][:60]!r}; it must give NaN for what it cannot score, "
            "and the same command goes on from here"
        ) from error
    return [
        next(scores)[0] if kept else Unscored("no complete line" if text else "empty text")
        for text, kept in zip(texts, trimmed, strict=True)
    ]
