"""A token cache that is made of lists, for tests that need no corpus."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from phf.control import ControlTokens
from phf.tokens.splitter import cumulate

END_ID, GOOD_ID, BAD_ID = 900, 901, 902
CONTROL = ControlTokens(END_ID, GOOD_ID, BAD_ID)


@dataclass
class FakeTokens:
    """What Blocks reads of a TokenCache, made from `documents`: for each document its segments' ids."""

    documents: list[list[list[int]]]
    is_train: np.ndarray
    num_shards: int = 1
    path: Path = Path("fake")
    control: ControlTokens = CONTROL

    def __post_init__(self) -> None:
        self.tokenizer = SimpleNamespace(control=self.control)
        segments = [segment for document in self.documents for segment in document]
        self.num_documents, self.num_segments = len(self.documents), len(segments)
        self.segment_lengths = np.array([len(segment) for segment in segments], np.int64)
        self.document_segments = np.array([len(document) for document in self.documents], np.int64)
        self.document_tokens = np.array([sum(map(len, document)) for document in self.documents], np.int64)
        self.ids = [
            np.array([i for k in shard for segment in self.documents[k] for i in segment], np.uint16)
            for shard in np.array_split(np.arange(self.num_documents), self.num_shards)
        ]
        self.shard_starts = cumulate([len(shard) for shard in self.ids])

    def split_mask(self, split: str) -> np.ndarray:
        return self.is_train if split == "train" else ~self.is_train
