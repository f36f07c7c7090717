"""How far two judges agree, with 95 % intervals by a bootstrap over documents (segments of one document go together)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NUM_BOOTSTRAP, SEED = 200, 0
Statistic = Callable[[np.ndarray], float]
"""Of the weight of each segment: how often its document was drawn."""


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as `.634 [.628, .640]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]".replace("0.", ".")


def bootstrap(statistic: Statistic, documents: np.ndarray) -> Interval:
    """A statistic with its interval; `documents` numbers the document of each segment from 0."""
    rng = np.random.default_rng(SEED)
    num = int(documents.max()) + 1
    drawn = [
        statistic(np.bincount(rng.integers(num, size=num), minlength=num)[documents].astype(float))
        for _ in range(NUM_BOOTSTRAP)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(statistic(np.ones(len(documents))), float(low), float(high))


def mean_of(values: np.ndarray) -> Statistic:
    """The mean over segments."""
    return lambda weights: float(values @ weights / weights.sum())


def share_of(hits: np.ndarray, among: np.ndarray) -> Statistic:
    """The share of hits among some segments (precision, recall)."""
    return lambda weights: float(weights[hits & among].sum() / max(weights[among].sum(), 1))


def spearman_of(a: np.ndarray, b: np.ndarray) -> Statistic:
    """Spearman's rank correlation, ties at their mean rank."""
    rank_a, rank_b = _ranker(a), _ranker(b)

    def statistic(weights: np.ndarray) -> float:
        x, y = rank_a(weights), rank_b(weights)
        x, y = x - x @ weights / weights.sum(), y - y @ weights / weights.sum()
        return float((weights * x) @ y / np.sqrt((weights * x) @ x * ((weights * y) @ y)))

    return statistic


def auroc_of(scores: np.ndarray, bad: np.ndarray) -> Statistic:
    """P(a bad segment scores above a good one), ties count half."""
    rank = _ranker(scores)

    def statistic(weights: np.ndarray) -> float:
        num_bad, num_good = weights[bad].sum(), weights[~bad].sum()
        ranks = (weights * rank(weights))[bad].sum()
        return float((ranks - num_bad * (num_bad + 1) / 2) / (num_bad * num_good))

    return statistic


def _ranker(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Mean ranks in the sample in which each value is repeated `weight` times; sorts once."""
    codes = np.unique(values, return_inverse=True)[1]

    def rank(weights: np.ndarray) -> np.ndarray:
        counts = np.bincount(codes, weights)
        return (np.cumsum(counts) - (counts - 1) / 2)[codes]

    return rank


def describe_agreement(
    names: tuple[str, str],
    scores: tuple[np.ndarray, np.ndarray],
    hit_thresholds: tuple[float, float],
    documents: np.ndarray,
) -> str:
    """Lines about two judges of the same segments; segments that one of them could not score are left out."""
    both = ~(np.isnan(scores[0]) | np.isnan(scores[1]))
    a, b = scores[0][both], scores[1][both]
    documents = np.unique(documents[both], return_inverse=True)[1]
    hit_a, hit_b = a > hit_thresholds[0], b > hit_thresholds[1]
    first, second = names
    rows = [
        (f"Spearman of {first} and {second}", spearman_of(a, b)),
        (f"AUROC of {first} for {second} > {hit_thresholds[1]:g}", auroc_of(a, hit_b)),
        (f"AUROC of {second} for {first} > {hit_thresholds[0]:g}", auroc_of(b, hit_a)),
        (f"precision of {first}'s hits ({second} is right)", share_of(hit_b, hit_a)),
        (f"recall of {first}'s hits ({second} is right)", share_of(hit_a, hit_b)),
        ("same verdict", mean_of((hit_a == hit_b).astype(float))),
    ]
    return "\n".join(f"  {name:58} {bootstrap(statistic, documents)}" for name, statistic in rows)
