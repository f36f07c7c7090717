"""What a data rule leaves of a split: which documents and segments, and how many model inputs they make."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phf.records import NO_LABEL, DataRule, Split
from phf.tokens.splitter import cumulate
from phf.tokens.tokens import TokenCache


class Counts(NamedTuple):
    """Of a split under a data rule: sums over documents, so that those of shards add up to those of a window.

    Attributes:
        documents: kept ones.
        tokens: of their text.
        labelled: their segments that have a label.
        taggable: tokens of these, without the first of each.
    """

    documents: int
    tokens: int
    labelled: int
    taggable: int

    def num_dropped(self, rule: DataRule) -> int:
        """Labelled segments that go without their label in each epoch."""
        return round(rule.drop_fraction * self.labelled)

    def num_tags(self, rule: DataRule) -> int:
        """Tokens that get a tag in each epoch."""
        return round(rule.tag_fraction * self.taggable)

    def num_inputs(self, rule: DataRule) -> int:
        """Model inputs of an epoch: text, control tokens, and one `<|endoftext|>` per page."""
        num_control = self.labelled - self.num_dropped(rule) if rule.control else 0
        if rule.tag_fraction > 0:
            num_control = self.num_tags(rule)
        return self.tokens + self.documents + num_control


@dataclass(frozen=True, slots=True)
class Kept:
    """The documents and segments of a split that a data rule keeps.

    Attributes:
        is_kept: bool [num_documents].
        is_used: bool [num_segments]; segments of any document that are not taken out.
        lengths: tokens of each segment; 0 if it is taken out [num_segments].
        labelled: the kept segments that have a label.
        counts: how much that is.
    """

    is_kept: npt.NDArray[np.bool_]
    is_used: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.int64]
    counts: Counts


def find_kept(tokens: TokenCache, rule: DataRule, split: Split) -> Kept:
    """What a data rule keeps of a split; only training segments are taken out."""
    is_used = np.ones(tokens.num_segments, np.bool_)
    if rule.keep_segments is not None and split == "train":
        is_used = rule.keep_segments
    lengths = np.where(is_used, tokens.segment_lengths, 0)
    document_tokens = np.diff(cumulate(lengths)[cumulate(tokens.document_segments)])
    is_kept = rule.keep & tokens.split_mask(split) & (document_tokens > 0)
    in_use = np.repeat(is_kept, tokens.document_segments) & is_used
    labelled = np.flatnonzero(in_use & (rule.labels != NO_LABEL))
    counts = Counts(
        int(is_kept.sum()),
        int(document_tokens[is_kept].sum()),
        len(labelled),
        int((tokens.segment_lengths[labelled] - 1).sum()),
    )
    return Kept(is_kept, is_used, lengths, labelled, counts)
