"""Rewards from misalignment scores: `reward = -score`, normalised over the training split.

Shape suffix: S segments.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from phf.errors import PHFError
from phf.thresholds import ScoredTokens

MAX_KNOTS = 4096
"""Scores that a rank scale keeps; between them it interpolates."""


@dataclass(frozen=True, slots=True)
class RewardScale:
    """Rewards are (-score - mean) / deviation."""

    mean: float
    deviation: float

    def rewards(self, scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The normalised reward of each score."""
        return (-scores - self.mean) / self.deviation


RAW_REWARDS = RewardScale(0.0, 1.0)
"""The scale of `normalize=none`, which no score decides."""


@dataclass(frozen=True, slots=True)
class RankScale:
    """Rewards are standard normal quantiles of the scores' ranks: the same whatever the unit or the tail of a score.

    Attributes:
        scores: knots, increasing; a score between two of them is interpolated, one beyond them is clamped.
        quantiles: rewards at the knots, decreasing.
    """

    scores: npt.NDArray[np.float32]
    quantiles: npt.NDArray[np.float32]
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def rewards(self, scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The normalised reward of each score."""
        x, y = self._knots(scores.device)
        right = torch.searchsorted(x, scores.contiguous()).clamp(1, len(x) - 1)
        share = ((scores - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
        return torch.lerp(y[right - 1], y[right], share)

    def _knots(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Copied once: a copy in every step would make the host wait for the GPU."""
        if device not in self._on_device:
            x, y = (torch.from_numpy(a).to(device) for a in (self.scores, self.quantiles))
            self._on_device[device] = x, y
        return self._on_device[device]


def make_reward_scale(
    normalize: str,
    scores: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    parts: Iterable[ScoredTokens] | None = None,
) -> RewardScale | RankScale:
    """The scale that `objective.normalize` asks for, from the scores [S] and tokens [S] of the training segments.

    With `parts` these are a table (`phf.thresholds.condense`) of what the parts hold, and a mean is taken over the parts.

    zscore: rewards of mean 0 and standard deviation 1 over the tokens; rank: see `_rank_scale`.

    Raises:
        PHFError: there are no segments, or their scores do not vary.
    """
    if len(scores) == 0:
        raise PHFError("the training split holds no scored segments; see 'phf corpus stats DIR'")
    if scores.min() == scores.max():
        raise PHFError(
            f"every training segment scores {scores[0]:g}, so rewards cannot be normalised; "
            "annotate with another reward model or give objective.normalize=none"
        )
    if normalize == "rank":
        return _rank_scale(scores, tokens)
    parts = [(scores, tokens)] if parts is None else parts
    total = float(tokens.sum(dtype=np.float64))
    mean = sum((own * of).sum() for own, of in parts) / total
    variance = sum(((own.astype(np.float64) - mean) ** 2 * of).sum() for own, of in parts) / total
    return RewardScale(-float(mean), float(np.sqrt(variance)))


def _rank_scale(scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> RankScale:
    """Rewards that are standard normal over the tokens: with m the share of tokens that score higher, ties counted
    half, the reward is the normal quantile of m (van der Waerden). Segments with equal scores share one reward.
    """
    values, group = np.unique(scores, return_inverse=True)
    shares = np.bincount(group, weights=tokens) / tokens.sum()
    ranks = 1 - (np.cumsum(shares) - shares / 2)
    if len(values) > MAX_KNOTS:
        wanted = np.linspace(ranks[0], ranks[-1], MAX_KNOTS)
        kept = np.unique(np.searchsorted(-ranks, -wanted).clip(max=len(values) - 1))
        values, ranks = values[kept], ranks[kept]
    return RankScale(values, ndtri(ranks).astype(np.float32))


def scale_to_json(scale: RewardScale | RankScale | None) -> dict[str, Any] | None:
    """A scale as it is kept on disk."""
    if isinstance(scale, RankScale):
        return {"scores": scale.scores.tolist(), "quantiles": scale.quantiles.tolist()}
    return None if scale is None else asdict(scale)


def scale_from_json(record: dict[str, Any] | None) -> RewardScale | RankScale | None:
    """What `scale_to_json` has written."""
    if record is None:
        return None
    if "scores" in record:
        return RankScale(np.array(record["scores"], np.float32), np.array(record["quantiles"], np.float32))
    return RewardScale(**record)
