"""The teacher of `toxicity-ngrams`: toxic-comment-classifier 0.3.0 (MIT), read without its package, Keras or an open pickle.

pip download --no-deps --no-binary :all: toxic-comment-classifier==0.3.0 && tar xzf toxic_comment_classifier-0.3.0.tar.gz
"""

import collections
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from phf.reward_models.convert import read_pickle

MAX_WORDS, VOCABULARY, WIDTH, UNITS, ROWS = 100, 20_000, 50, 50, 512


class PickledTokenizer:
    """Stands for `keras.src.legacy.preprocessing.text.Tokenizer`: attributes, no behaviour."""


ALLOWED: dict[tuple[str, str], type] = {
    ("keras.src.legacy.preprocessing.text", "Tokenizer"): PickledTokenizer,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "int"): int,
}


class Teacher:
    """Probability of Jigsaw's label `toxic`, by a bidirectional LSTM with other weights than tox-block's."""

    def __init__(self, folder: Path) -> None:
        """Read `model/` of the unpacked package `toxic_classifier`."""
        with (folder / "model" / "tokenizer.pickle").open("rb") as file:
            tokenizer = read_pickle(file, ALLOWED, "toxic-comment-classifier==0.3.0")
        self.words = {word: index for word, index in tokenizer.word_index.items() if index < VOCABULARY}
        self.separators = str.maketrans(dict.fromkeys(tokenizer.filters, " "))
        with h5py.File(folder / "model" / "model.weights.h5") as file:
            layers = {
                name: [
                    torch.tensor(np.asarray(file[f"layers/{name}/vars/{part}"]))
                    for part in range(len(file[f"layers/{name}/vars"]))
                ]
                for name in (
                    "embedding",
                    "bidirectional/forward_layer/cell",
                    "bidirectional/backward_layer/cell",
                    "dense",
                    "dense_1",
                )
            }
        self.embedding = layers["embedding"][0]
        self.lstm = nn.LSTM(WIDTH, UNITS, batch_first=True, bidirectional=True)
        with torch.no_grad():
            for name, suffix in (("forward", ""), ("backward", "_reverse")):
                kernel, recurrent, bias = layers[f"bidirectional/{name}_layer/cell"]
                getattr(self.lstm, f"weight_ih_l0{suffix}").copy_(kernel.T)  # gates i, f, c, o in both
                getattr(self.lstm, f"weight_hh_l0{suffix}").copy_(recurrent.T)
                getattr(self.lstm, f"bias_ih_l0{suffix}").copy_(bias)
                getattr(self.lstm, f"bias_hh_l0{suffix}").zero_()
        self.hidden, self.output = layers["dense"], layers["dense_1"]

    @torch.inference_mode()
    def score(self, texts: Sequence[str]) -> list[float]:
        """The probability of each text; the last 100 known words count."""
        scores: list[float] = []
        for start in range(0, len(texts), ROWS):
            ids = torch.zeros(min(ROWS, len(texts) - start), MAX_WORDS, dtype=torch.int64)
            for row, text in enumerate(texts[start : start + ROWS]):
                words = text.lower().translate(self.separators).split()
                if known := [self.words[word] for word in words if word in self.words][-MAX_WORDS:]:
                    ids[row, -len(known) :] = torch.tensor(known)
            pooled = self.lstm(self.embedding[ids])[0].amax(dim=1)
            hidden = torch.relu(pooled @ self.hidden[0] + self.hidden[1])
            scores += torch.sigmoid(hidden @ self.output[0] + self.output[1])[:, 0].tolist()
        return scores
