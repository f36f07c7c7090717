"""A batch of blocks as named columns: what exports hold, and what the collator of a foreign trainer takes."""

import numpy as np
import numpy.typing as npt

from phf.records import PAD, Batch

IGNORED = -100
"""The label of a target that is not learned, in the Hugging Face library as in PyTorch."""

Columns = dict[str, npt.NDArray[np.generic]]


def make_columns(batch: Batch) -> Columns:
    """The columns of some blocks; all but `is_active` [B] are [B, T], and column t tells of the target of input t.

    input_ids, position_ids: as the model reads them.
    shift_labels: the targets, `IGNORED` where they are padding: aligned with the inputs, as the library's loss of this name is.
    scores, kinds, segment_labels: `Batch.scores`, `Batch.kinds` and `Batch.labels`.
    """
    return {
        "input_ids": batch.ids.astype(np.int32),
        "position_ids": batch.positions.astype(np.int32),
        "shift_labels": np.where(batch.kinds == PAD, IGNORED, batch.targets).astype(np.int32),
        "scores": batch.scores,
        "kinds": batch.kinds,
        "segment_labels": batch.labels,
        "is_active": batch.is_active,
    }
