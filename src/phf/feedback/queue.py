"""What to ask next: the question whose answer teaches a small model most (active learning by uncertainty)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from phf.errors import PHFError
from phf.feedback.judgements import FIELDS, Row, Task
from phf.feedback.pool import Segment

Order = Literal["uncertain", "balanced", "random", "worst"]
Question = tuple[Segment, ...]
"""One segment to label or rate, or two to choose from."""

MIN_JUDGEMENTS = 20
"""A model orders the questions once so many judgements exist, `_MIN_EACH` of them good and as many bad."""
_MIN_EACH = 3
_REFIT_EVERY = 10
_MAX_FITTED = 1000
"""A model is fitted to at most so many of the judgements, drawn at random: a person waits for it."""
_NUM_PAIRS = 2000

_Values = npt.NDArray[np.float64]


class Queue:
    """Orders the questions of a pool.

    `uncertain` fits a linear reward model to the judgements, anew after every ten, and asks what it is least sure of:
    a probability nearest 0.5, for pairs that of the first being worse. If the pool has scores, every other question is
    `balanced`: in turn a random segment above the hit threshold and one below, of pairs one of each and any pair. Until
    there is enough to fit, all are (random without scores). `worst` goes down the scores.
    """

    def __init__(
        self,
        pool: Sequence[Segment],
        rows: list[Row],
        *,
        task: Task,
        order: Order = "uncertain",
        seed: int,
        hit_threshold: float = 0.5,
    ) -> None:
        """Prepare the questions.

        Args:
            pool: in random order (`read_pool`).
            rows: the judgements that stand; the caller adds to it and takes away.
            hit_threshold: of the scores in the pool.

        Raises:
            PHFError: `worst` or `balanced` without scores.
        """
        self._rows = rows
        self._task = task
        self._order = order
        self._seed = seed
        self._pool = pool
        self._questions = _make_questions(pool, rows, task, seed)
        scores = np.array([[segment.score for segment in question] for question in self._questions])
        self._is_scored = bool(np.isfinite(scores).any())
        if order in ("worst", "balanced") and not self._is_scored:
            raise PHFError(
                f"order '{order}' needs scores; annotate the corpus first, or choose uncertain or random"
            )
        self._first = _find_first_order(scores, order, hit_threshold)
        self._open = np.ones(len(self._questions), np.bool_)
        self._distance: _Values | None = None
        self.num_fitted = 0
        """Judgements that the model which orders the questions was fitted to; 0 = no model."""

    def take(self) -> Question | None:
        """The next question; None if all were taken. It is not given again unless put back."""
        if not self._open.any():
            return None
        if self._order == "uncertain":
            self._refit()
        if self._distance is not None and (not self._is_scored or self._open.sum() % 2 == 0):
            chosen = int(np.where(self._open, self._distance, np.inf).argmin())
        else:
            chosen = int(self._first[self._open[self._first]][0])
        self._open[chosen] = False
        return self._questions[chosen]

    def put_back(self, question: Question) -> None:
        """Let a question be taken again."""
        self._open[self._questions.index(question)] = True

    def _refit(self) -> None:
        changed = abs(len(self._rows) - self.num_fitted)
        if changed < max(_REFIT_EVERY, len(self._rows) // 20) or not _is_enough(self._rows, self._task):
            return
        from phf.reward_models.linear import fit_linear, fit_linear_pairs
        from phf.reward_models.ngrams import Features

        # Words alone: with n-grams of characters a fit to 200 judgements takes 1.2 s instead of 0.2 s.
        features = (Features(characters=()),)
        rng = np.random.default_rng(self._seed)
        rows = [self._rows[index] for index in rng.permutation(len(self._rows))[:_MAX_FITTED]]
        if self._task == "pair":
            chosen, rejected = ([row[field] for row in rows] for field in FIELDS["pair"])
            model = fit_linear_pairs(chosen, rejected, seed=self._seed, features=features)
        else:
            targets = _find_targets(rows, self._task).tolist()
            model = fit_linear([row["text"] for row in rows], targets, seed=self._seed, features=features)
        texts = [segment.text for segment in self._pool]
        score = dict(zip(texts, model.score_texts(texts), strict=True))
        scores = np.array([[score[segment.text] for segment in question] for question in self._questions])
        if self._task == "pair":
            gaps = np.abs(np.diff(logit(scores.clip(1e-6, 1 - 1e-6)), axis=1)[:, 0])
            # Equal to the last bit are texts of which the model knows no word: nothing to choose between.
            self._distance = np.where(gaps == 0, gaps.max(), gaps)
        else:
            self._distance = np.abs(scores[:, 0] - 0.5)
        self.num_fitted = len(self._rows)


def _make_questions(pool: Sequence[Segment], rows: list[Row], task: Task, seed: int) -> list[Question]:
    """One question per segment, or random pairs that were not judged before."""
    if task != "pair":
        return [(segment,) for segment in pool]
    rng = np.random.default_rng(seed)
    judged = {frozenset((row["chosen"], row["rejected"])) for row in rows}
    # Each text stands in one pair: pairs that share texts must be held out together, and would hang together in one lump.
    drawn = rng.permutation(len(pool))[: min(2 * _NUM_PAIRS, len(pool) // 2 * 2)].reshape(-1, 2).tolist()
    pairs = [(pool[first], pool[second]) for first, second in drawn]
    return [pair for pair in pairs if frozenset(segment.text for segment in pair) not in judged]


def _find_first_order(scores: _Values, order: Order, hit_threshold: float) -> npt.NDArray[np.int64]:
    """The order in which questions are asked without a model; they come in random order, and scores may be NaN."""
    random = np.arange(len(scores))
    if order == "random" or np.isnan(scores).all():
        return random
    if order == "worst":
        return np.argsort(-scores.max(axis=1), kind="stable")
    # Measured (benchmarks/active_learning.py): AUROC after 200 judgements .79 this way, .72 with segments near the
    # threshold in turn with random ones.
    is_bad = scores > hit_threshold
    is_wanted = is_bad[:, 0] != is_bad[:, 1] if scores.shape[1] == 2 else is_bad[:, 0]
    wanted, others = random[is_wanted], random[~is_wanted]
    num = min(len(wanted), len(others))
    turns = np.stack([wanted[:num], others[:num]], axis=1).ravel()
    return np.concatenate([turns, wanted[num:], others[num:]])


def _find_targets(rows: list[Row], task: Task) -> _Values:
    """1 = bad. Ratings (higher = better) go from 1 at the lowest to 0 at the highest."""
    values = np.array([row[FIELDS[task][1]] for row in rows], np.float64)
    if task == "label":
        return values
    spread = np.ptp(values)
    return (values.max() - values) / spread if spread > 0 else np.zeros(len(values))


def _is_enough(rows: list[Row], task: Task) -> bool:
    if len(rows) < MIN_JUDGEMENTS:
        return False
    if task == "pair":
        return True
    num_bad = int((_find_targets(rows, task) > 0.5).sum())
    return _MIN_EACH <= num_bad <= len(rows) - _MIN_EACH
