"""A batch of blocks as named columns: what exports hold, and what the collator of a foreign trainer takes."""

import numpy as np
import numpy.typing as npt
import torch

from phf.integrations.loss import TokenLoss
from phf.records import PAD, Batch

IGNORED = -100
"""The label of a target that is not learned, in the Hugging Face library as in PyTorch."""

Columns = dict[str, npt.NDArray[np.generic]]


def make_columns(batch: Batch) -> Columns:
    """The columns of some blocks; all but `is_active` [B] are [B, T], and column t tells of the target of input t.

    input_ids, position_ids: as the model reads them.
    targets: the token after each input, `IGNORED` where it is padding.
    scores, kinds, segment_labels: `Batch.scores`, `Batch.kinds` and `Batch.labels`.
    """
    return {
        "input_ids": batch.ids.astype(np.int32),
        "position_ids": batch.positions.astype(np.int32),
        "targets": np.where(batch.kinds == PAD, IGNORED, batch.targets).astype(np.int32),
        "scores": batch.scores,
        "kinds": batch.kinds,
        "segment_labels": batch.labels,
        "is_active": batch.is_active,
    }


def make_tokens(batch: Batch) -> npt.NDArray[np.int64]:
    """Each block with the target of its last input [B, T + 1]: T inputs, and T targets one further."""
    return np.concatenate([batch.ids, batch.targets[:, -1:]], axis=1)


def make_loss_weights(loss: TokenLoss, batch: Batch) -> npt.NDArray[np.float32]:
    """What the NLL of each target is multiplied with [B, T], under an objective for which that is all (`Objective.loss_reads`)."""
    scores, kinds, is_active = (
        torch.from_numpy(np.ascontiguousarray(own)) for own in (batch.scores, batch.kinds, batch.is_active)
    )
    weights: npt.NDArray[np.float32] = loss(
        torch.ones_like(scores), scores, kinds, is_active=is_active
    ).numpy()
    return weights


def make_labels(batch: Batch, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Labels as the Hugging Face library's own loss shifts them [B, T]: each input's own id, `IGNORED` where it weighs nothing.

    The first input of a block is nobody's target, and the last target is no input: that loss never sees it.
    """
    labels = np.full(batch.ids.shape, IGNORED, np.int32)
    labels[:, 1:] = np.where(weights[:, :-1] != 0, batch.targets[:, :-1], IGNORED)
    return labels
