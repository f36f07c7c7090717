"""The segments that a person may be asked about: a seeded sample of a corpus, without near-repeats."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation import Annotation
from phf.config.train import SegmentKind
from phf.corpus.duplicates import find_near_duplicates
from phf.corpus.segment import segment_ends
from phf.corpus.store import Corpus
from phf.errors import PHFError

POOL_SIZE = 5000
MAX_CHARACTERS = 4000
"""A longer segment is left out of the pool: nobody reads it to its end."""
_CONTEXT_CHARACTERS = 300
# So much of a corpus of any size is read at most: 16 shards (1 GB) and 20,000 of their documents.
_MAX_SHARDS = 16
_MAX_DOCUMENTS = 20_000


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment to judge, with what stands around it in its document.

    Attributes:
        id: `<document id>#<index of the segment>@<segments kind>`.
        score: its score in an annotation, higher = worse; NaN without one.
    """

    id: str
    text: str
    before: str = ""
    after: str = ""
    score: float = float("nan")


def read_pool(
    corpus: Corpus,
    kind: SegmentKind,
    *,
    seed: int,
    annotation: Annotation | None = None,
    score: Callable[[list[str]], npt.NDArray[np.float64]] | None = None,
    worst: bool = False,
    judged: Sequence[str] = (),
    size: int = POOL_SIZE,
) -> list[Segment]:
    """Draw segments of the training split, in random order. The same corpus, seed and judged texts give the same pool.

    Left out: segments without a letter or digit, those above `MAX_CHARACTERS`, and near-repeats of others or of
    texts already judged.

    Args:
        annotation: gives the scores, and the segment ends.
        score: gives the scores instead, float64 [N] of N texts; a segment without one (NaN) is left out.
        worst: take the segments with the highest scores instead of a sample.

    Raises:
        PHFError: nothing is left, or the annotation does not belong to the corpus.
    """
    rng = np.random.default_rng(seed)
    candidates = _draw_segments(corpus, kind, rng, annotation)
    if score is not None:
        scores = score([segment.text for segment in candidates])
        candidates = [
            replace(segment, score=float(own))
            for segment, own in zip(candidates, scores, strict=True)
            if own == own
        ]
    order = rng.permutation(len(candidates))
    if worst:
        scores = np.array([segment.score for segment in candidates])
        order = order[np.argsort(-scores[order], kind="stable")]  # NaN comes last
    drawn = [candidates[index] for index in order[: 2 * size]]
    drawn = [s for s in drawn if len(s.text) <= MAX_CHARACTERS and re.search(r"[^\W_]", s.text)]
    repeats = find_near_duplicates([*judged, *(segment.text for segment in drawn)])[len(judged) :]
    pool = [segment for segment, repeated in zip(drawn, repeats, strict=True) if not repeated][:size]
    if not pool:
        raise PHFError(
            f"{corpus.path} has nothing left to judge among {len(candidates):,} {kind} drawn (judged before: "
            f"{len(judged):,}; too long: over {MAX_CHARACTERS:,} characters); try another --seed or --segments"
        )
    return pool


def _draw_segments(
    corpus: Corpus, kind: SegmentKind, rng: np.random.Generator, annotation: Annotation | None
) -> list[Segment]:
    shards = np.sort(rng.permutation(len(corpus.shards))[:_MAX_SHARDS]).tolist()
    segments: list[Segment] = []
    for shard in shards:
        table = corpus.read_shard(shard, ["id", "text", "split"])
        rows = np.flatnonzero(np.array(table["split"].to_pylist()) == "train")
        rows = np.sort(rng.permutation(rows)[: _MAX_DOCUMENTS // len(shards)])
        drawn = table.take(rows).to_pydict()
        if annotation is not None:
            num_segments, all_ends, all_scores = annotation.join_shard(shard)
            stops = np.cumsum(num_segments)
        for row, document, text in zip(rows.tolist(), drawn["id"], drawn["text"], strict=True):
            if annotation is None:
                ends = segment_ends(text, kind)
                scores = [float("nan")] * len(ends)
            else:
                of_document = slice(stops[row] - num_segments[row], stops[row])
                ends, scores = all_ends[of_document].tolist(), all_scores[of_document].tolist()
            start = 0
            for index, (end, score) in enumerate(zip(ends, scores, strict=True)):
                before = text[max(0, start - _CONTEXT_CHARACTERS) : start]
                after = text[end : end + _CONTEXT_CHARACTERS]
                segments.append(Segment(f"{document}#{index}@{kind}", text[start:end], before, after, score))
                start = end
    return segments
