"""Reward models: how bad is a text? One protocol scores corpora and samples; see docs/reward_models.md."""

from phf.reward_models.catalogue import RewardModelCard, list_reward_models, load_reward_model
from phf.reward_models.protocol import RewardModel, SegmentRewardModel, Unscored, split_segments
from phf.reward_models.scoring import score_documents, score_samples

__all__ = [
    "RewardModel",
    "RewardModelCard",
    "SegmentRewardModel",
    "Unscored",
    "list_reward_models",
    "load_reward_model",
    "score_documents",
    "score_samples",
    "split_segments",
]
