"""Pages with the state of every segment: of texts that a model wrote, and of the documents that it was trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.chains.pages import AFTER, Pages
from phf.config.train import SegmentKind
from phf.corpus.segment import segment_ends
from phf.evaluate.pieces import iterate_ngrams, split_pieces

_Values = npt.NDArray[np.float64]

GOOD, BAD, LOOPING = 0, 1, 2
STATES = ("good", "bad", "looping")
_NGRAM = 4
_LOOP_SHARE = 0.5
"""A segment loops where at least so many of its 4-grams of pieces came on the page before."""


@dataclass(frozen=True)
class Segmented:
    """A page's first segments as texts.

    Attributes:
        segments: whole ones, at most `longest`.
        ended: whether the page ended behind the last of them.
    """

    segments: list[str]
    ended: bool


@dataclass(frozen=True)
class Judged:
    """Pages with their states, and what was left out.

    Attributes:
        num_empty: pages without a whole segment: not among `pages`.
        num_unscored: pages cut before a segment that the judge cannot score.
        texts, scores: of the segments of `pages`, page after page.
    """

    pages: Pages
    num_empty: int
    num_unscored: int
    texts: list[str]
    scores: _Values


def cut_page(text: str, ended: bool, kind: SegmentKind, longest: int) -> Segmented:
    """A text's whole segments: the last one is not, where the page did not end by itself."""
    ends = segment_ends(text, kind)
    segments = [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if not ended:
        segments = segments[:-1]
    return Segmented(segments[:longest], ended and len(segments) < longest)


def judge_pages(
    pages: Sequence[Segmented],
    score: Callable[[list[str]], Sequence[float]],
    threshold: float,
    longest: int,
) -> Judged:
    """The state of each segment: looping, else bad where score > threshold, else good.

    Args:
        score: a judge of segments; NaN = unscored.
    """
    scores = np.array(score([segment for page in pages for segment in page.segments]), np.float64)
    bounds = np.cumsum([len(page.segments) for page in pages])[:-1]
    own = [np.array(part) for part in np.split(scores, bounds)]
    return state_pages(pages, own, threshold, longest)


def state_pages(
    pages: Sequence[Segmented], scores: Sequence[_Values], threshold: float, longest: int
) -> Judged:
    """The states of pages whose segments have scores; a page is cut before its first segment without one."""
    rows, ended, texts, kept = [], [], list[str](), [np.empty(0)]
    num_unscored = 0
    for page, own in zip(pages, scores, strict=True):
        missing = np.flatnonzero(np.isnan(own))
        length = int(missing[0]) if len(missing) else len(own)
        num_unscored += len(missing) > 0
        if length == 0:
            continue
        states = np.where(own[:length] > threshold, BAD, GOOD)
        states[find_loops(page.segments[:length])] = LOOPING
        rows.append(np.pad(states, (0, longest - length), constant_values=AFTER))
        ended.append(page.ended and not len(missing))
        texts += page.segments[:length]
        kept.append(own[:length])
    states = np.array(rows, np.int64).reshape(-1, longest)
    found = Pages(states, np.array(ended, np.bool_), len(STATES))
    return Judged(found, len(pages) - len(rows), num_unscored, texts, np.concatenate(kept))


def find_loops(segments: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which segments of a page say again what stands before them on it."""
    seen: set[tuple[str, ...]] = set()
    found = []
    for segment in segments:
        ngrams = list(iterate_ngrams(split_pieces(segment), _NGRAM))
        again = sum(ngram in seen for ngram in ngrams)
        found.append(bool(ngrams) and again >= _LOOP_SHARE * len(ngrams))
        seen.update(ngrams)
    return np.array(found, np.bool_)


def match_lengths(pages: Pages, others: Pages) -> _Values:
    """Weights [pages] under which pages have as many segments, and end as often, as the others; a kind of length that `pages` lack
    is left out."""
    kinds, theirs = (own.lengths * 2 + own.ended for own in (pages, others))
    wanted = np.bincount(theirs, minlength=int(max(kinds.max(), theirs.max())) + 1) / len(others)
    have = np.bincount(kinds, minlength=len(wanted)) / len(pages)
    return np.asarray(np.divide(wanted, have, out=np.zeros(len(wanted)), where=have > 0)[kinds])
