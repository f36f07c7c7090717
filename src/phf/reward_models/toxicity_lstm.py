"""Probability of Jigsaw's label `toxic`, by tox-block's bidirectional LSTM, ported from Keras to torch.

Shapes: B texts (rows of a batch), T = 100 words, E = 50 embedding, H = 50 units, L = 6 labels.
"""

import json
from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from phf.files import hash_json, read_json
from phf.records import Identity
from phf.reward_models.convert import MANIFEST, VOCABULARY, WEIGHTS
from phf.reward_models.convert_tox_block import LABELS, convert_tox_block
from phf.reward_models.protocol import SegmentRewardModel, Unit

ROWS = 256
"""Rows of every batch, short ones filled up: matrix products of one shape give a text the same bits in any company."""


class ToxicityLSTM(SegmentRewardModel):
    """Probability of the label `toxic`. Looks at the last 100 known words of a text (Keras pads and cuts in front)."""

    unit: Unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.5

    def __init__(self) -> None:
        """Load the converted model, after converting it on first use.

        Raises:
            ModuleNotFoundError: tox-block is not installed.
        """
        folder = convert_tox_block()
        vocabulary = read_json(folder / VOCABULARY)
        self._words: dict[str, int] = vocabulary["words"]
        self._max_words: int = vocabulary["max_words"]
        self._separators = str.maketrans(dict.fromkeys(vocabulary["filters"], " "))
        weights = load_file(folder / WEIGHTS)
        self._embedding = weights["embedding"]
        self._directions = [
            tuple(weights[f"{name}.{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
            for name in ("forward", "backward")
        ]
        self._hidden = weights["hidden.kernel"], weights["hidden.bias"]
        self._output = weights["output.kernel"], weights["output.bias"]
        files = json.loads((folder / MANIFEST).read_text())["files"]
        self.identity = Identity(
            "toxicity-lstm", "0.1.2", weights_hash=hash_json(files), parameters={"label": "toxic", "port": 1}
        )

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Probability of each text, float32."""
        encoded = [self.encode_words(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            ids = torch.zeros(ROWS, self._max_words, dtype=torch.int64)
            for row, index in enumerate(rows):
                if encoded[index]:
                    ids[row, -len(encoded[index]) :] = torch.tensor(encoded[index])
            probabilities = self._predict(ids)[:, LABELS.index("toxic")].tolist()
            for index, probability in zip(rows, probabilities, strict=False):
                scores[index] = probability
        return scores

    def encode_words(self, text: str) -> list[int]:
        """Ids of the last known words, as Keras's Tokenizer and `pad_sequences` give them (padding left out)."""
        words = text.lower().translate(self._separators).split(" ")
        return [self._words[word] for word in words if word in self._words][-self._max_words :]

    @torch.inference_mode()
    def _predict(self, ids: Tensor) -> Tensor:
        """Probabilities [B, L] of ids [B, T]. Padding is a word like any other to this model: nothing is masked."""
        embedded = self._embedding[ids].transpose(0, 1).contiguous()
        forward, backward = self._directions
        pooled = torch.cat(
            [_max_over_time(embedded, *forward), _max_over_time(embedded.flip(0), *backward)], dim=1
        )
        hidden = torch.relu(torch.addmm(self._hidden[1], pooled, self._hidden[0]))
        return torch.sigmoid(torch.addmm(self._output[1], hidden, self._output[0]))


def _max_over_time(inputs: Tensor, kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor) -> Tensor:
    """Run Keras's LSTM (gates i, f, c, o; hard sigmoid) over inputs [T, B, E]; largest output over time [B, H]."""
    num_units = recurrent_kernel.shape[0]
    state = cell = inputs.new_zeros(inputs.shape[1], num_units)
    largest = torch.full_like(state, -torch.inf)
    for step in torch.matmul(inputs, kernel).add_(bias):
        gates = torch.addmm(step, state, recurrent_kernel)
        i, f, c, o = gates.chunk(4, dim=1)
        cell = _hard_sigmoid(f) * cell + _hard_sigmoid(i) * torch.tanh(c)
        state = _hard_sigmoid(o) * torch.tanh(cell)
        largest = torch.maximum(largest, state)
    return largest


def _hard_sigmoid(x: Tensor) -> Tensor:
    """Keras's: clip(0.2 x + 0.5, 0, 1). torch's `hardsigmoid` has slope 1/6."""
    return (0.2 * x + 0.5).clamp_(0.0, 1.0)
