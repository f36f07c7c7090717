"""Texts that are drawn and scored in calls, each with random numbers of its own."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phf.config.train import SamplingConfig
from phf.errors import NotApplicableError
from phf.generate.engine import Ids, Written, write_pages
from phf.generate.target import REDRAW, Target
from phf.steer.streams import Score


def write_behind(target: Target, starts: Sequence[Ids], sampling: SamplingConfig, call: int) -> list[Written]:
    """What a target writes behind texts; with the seed, the number of the call decides the random numbers."""
    drawer = target.drawer(sampling)
    pages = [[*drawer.rules.prefix, *start] for start in starts]
    indices = [call * REDRAW + place for place in range(len(pages))]
    return write_pages(target.model, drawer, pages, indices, lambda done: None)


def score_texts(target: Target, score: Score, texts: Sequence[Ids]) -> npt.NDArray[np.float64]:
    """Scores of texts given as ids.

    Raises:
        NotApplicableError: one has none.
    """
    scores = np.asarray(score([target.tokenizer.decode(ids) for ids in texts]), np.float64)
    if num_unscored := int(np.isnan(scores).sum()):
        raise NotApplicableError(
            f"{num_unscored} of {len(texts)} texts have no score; give a reward model that scores every text"
        )
    return scores
