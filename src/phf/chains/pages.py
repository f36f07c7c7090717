"""Pages as chains of segments, which is all that the estimators read, whoever wrote them.

A page is a killed chain: a state for each segment, then its end. One that was cut (a horizon, a full context) is censored: what
would have come is not known, not even whether it would have ended right there. (To note an end at the horizon, and drop the
pages that went on, would make ends look more frequent than they are.)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

AFTER = -1
"""In the place of a state: the page has no such segment."""

_Values = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pages:
    """Pages whose segments have one of a few states.

    Attributes:
        states: int [pages, longest]: the state of each segment, from 0; AFTER beyond the last.
        ended: bool [pages]: the page ended behind its last segment; the others were cut there.
        num_states: of a segment.
    """

    states: _Codes
    ended: npt.NDArray[np.bool_]
    num_states: int

    def __len__(self) -> int:
        return len(self.states)

    @property
    def is_there(self) -> npt.NDArray[np.bool_]:
        """Which segments are, bool [pages, longest]."""
        return np.asarray(self.states != AFTER)

    @property
    def lengths(self) -> _Codes:
        """Segments of each page, [pages]."""
        return np.asarray(self.is_there.sum(axis=1))

    @property
    def following(self) -> _Codes:
        """What follows the page's start and each place, [pages, longest + 1]: a state, the page's end (`num_states`), or AFTER."""
        found = np.pad(self.states, ((0, 0), (0, 1)), constant_values=AFTER)
        found[np.arange(len(self)), self.lengths] = np.where(self.ended, self.num_states, AFTER)
        return found

    def take(self, rows: _Codes) -> "Pages":
        """Some of the pages, perhaps some of them several times."""
        return Pages(self.states[rows], self.ended[rows], self.num_states)


def simulate_pages(
    kernel: _Values, num: int, longest: int, rng: np.random.Generator, cut: _Codes | None = None
) -> Pages:
    """Draw pages of a chain.

    Args:
        kernel: see `phf.chains.orders`.
        cut: segments at which each page is cut, [num]; None cuts all at `longest`.
    """
    num_contexts, size = kernel.shape
    bounds = kernel.cumsum(axis=1)
    bounds = (bounds / bounds[:, -1:])[:, :-1]
    limits = np.full(num, longest) if cut is None else np.minimum(cut, longest)
    states, ended = np.full((num, longest), AFTER), np.zeros(num, np.bool_)
    context, rows = np.full(num, num_contexts - 1), np.flatnonzero(limits > 0)
    for place in range(longest):
        drawn = (rng.random((len(rows), 1)) >= bounds[context[rows]]).sum(axis=1)
        goes_on = drawn < size - 1
        ended[rows[~goes_on]] = True
        rows, drawn = rows[goes_on], drawn[goes_on]
        states[rows, place] = drawn
        context[rows] = (context[rows] * size + drawn) % num_contexts
        rows = rows[limits[rows] > place + 1]
    return Pages(states, ended, size - 1)


def count_lengths(pages: Pages) -> _Values:
    """Whether a page has so many segments, and whether it was cut behind them: float64 [pages, 2, longest + 1]."""
    has = pages.lengths[:, None] == np.arange(pages.states.shape[1] + 1)
    return np.stack([has, has & ~pages.ended[:, None]], axis=1).astype(np.float64)


def find_cuts(lengths: _Values) -> _Values:
    """P(a page is not cut before segment t), [..., longest + 1], by Kaplan and Meier: a cut is hidden where the page ended first.

    Args:
        lengths: `count_lengths`, summed over pages, [..., 2, longest + 1].
    """
    all_of, cut = lengths[..., 0, :], lengths[..., 1, :]
    at_risk = all_of[..., ::-1].cumsum(axis=-1)[..., ::-1]
    hazards = np.divide(cut, at_risk, out=np.zeros_like(cut), where=at_risk > 0)
    chances: _Values = np.cumprod(1 - hazards, axis=-1)
    return chances


def draw_cuts(pages: Pages, num: int, rng: np.random.Generator) -> _Codes:
    """Segments at which pages like these would be cut, [num]."""
    chances = find_cuts(count_lengths(pages).sum(axis=0))
    return np.asarray((rng.random((num, 1)) < chances).sum(axis=1))
