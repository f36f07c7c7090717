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


@dataclass(frozen=True, eq=False)
class Pages:
    """Pages whose segments have one of a few states.

    Attributes:
        states: int [pages, longest]: the state of each segment, from 0; AFTER beyond the last.
        ended: bool [pages]: the page ended behind its last segment; the others were cut there.
        num_states: of a segment.
    """

    states: npt.NDArray[np.int64]
    ended: npt.NDArray[np.bool_]
    num_states: int

    def __len__(self) -> int:
        return len(self.states)

    @property
    def is_there(self) -> npt.NDArray[np.bool_]:
        """Which segments are, bool [pages, longest]."""
        return np.asarray(self.states != AFTER)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Segments of each page, [pages]."""
        return np.asarray(self.is_there.sum(axis=1))

    def take(self, rows: npt.NDArray[np.int64]) -> "Pages":
        """Some of the pages, perhaps some of them several times."""
        return Pages(self.states[rows], self.ended[rows], self.num_states)


def find_cuts(pages: Pages, weights: _Values | None = None) -> _Values:
    """P(a page is not cut before segment t), float64 [longest + 1], by Kaplan and Meier: a cut is hidden where the page ended first.

    Args:
        weights: how often each page counts, [pages].
    """
    num, longest = pages.states.shape
    weights = np.ones(num) if weights is None else weights
    all_of, cut = (
        np.bincount(pages.lengths, weights * own, minlength=longest + 1)
        for own in (np.ones(num), ~pages.ended)
    )
    at_risk = all_of[::-1].cumsum()[::-1]
    hazards = np.divide(cut, at_risk, out=np.zeros(longest + 1), where=at_risk > 0)
    chances: _Values = np.cumprod(1 - hazards)
    return chances
