"""Probability that a text is offensive, by the linear SVM of alt-profanity-check, without its package or scikit-learn.

Every step is scikit-learn's arithmetic in scikit-learn's order, so that the float64 result is the same.
Shapes: B texts, V words of the vocabulary, F = 5 folds.
"""

import re
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.sparse import csr_array
from scipy.special import expit

from phf.files import hash_json, read_json
from phf.records import Identity
from phf.reward_models.convert import MANIFEST, VOCABULARY, WEIGHTS
from phf.reward_models.convert_profanity_check import convert_profanity_check
from phf.reward_models.protocol import SegmentRewardModel, Unit

TEXTS_PER_BATCH = 4096  # bounds memory; a text's score does not depend on it
UNKNOWN, END = -1, -2
END_WORD = b"\xff"  # a byte that UTF-8 never has: stands between two texts
NOT_WORD = re.compile(r"\W")
SEPARATE = re.sub(rb"[^\w\x80-\xff]", b" ", bytes(range(256)).lower())
"""ASCII in lower case, with a space for whatever is not part of a word; other bytes stay."""


class ToxicitySVM(SegmentRewardModel):
    """Probability that a text is offensive: the mean of five linear SVMs over tf-idf, each with its sigmoid."""

    unit: Unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.5

    def __init__(self) -> None:
        """Load the converted model, after converting it on first use.

        Raises:
            ModuleNotFoundError: alt-profanity-check is not installed.
            PHFError: its files are damaged, edited or of another version.
        """
        folder = convert_profanity_check()
        words: dict[str, int] = read_json(folder / VOCABULARY)["words"]
        self._words = {word.encode(): index for word, index in words.items()} | {END_WORD: END}
        weights = load_file(folder / WEIGHTS)
        self._idf: npt.NDArray[np.float64] = weights["idf"]  # [V]
        self._coefficients = np.ascontiguousarray(weights["coefficients"].T)  # [V, F]
        self._intercepts, self._a, self._b = (
            weights[name] for name in ("intercepts", "sigmoid.a", "sigmoid.b")
        )
        self.identity = Identity(
            "toxicity-svm",
            "1.9.1",
            weights_hash=hash_json(read_json(folder / MANIFEST)["files"]),
            parameters={"port": 1},
        )

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Probability of each text, float32."""
        scores: list[float] = []
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            probabilities = self.predict(texts[start : start + TEXTS_PER_BATCH])
            scores.extend(probabilities.astype(np.float32).tolist())
        return scores

    def predict(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Probability of each text [B], bit for bit that of `profanity_check.predict_prob`."""
        counts = self._count_words(texts)
        counts.data *= self._idf[counts.indices]
        squares = csr_array((counts.data**2, counts.indices, counts.indptr), counts.shape)
        norms = np.sqrt(squares @ np.ones(len(self._idf)))
        counts.data /= np.repeat(norms, np.diff(counts.indptr))
        decisions = counts @ self._coefficients + self._intercepts  # [B, F]
        folds = expit(-(self._a * decisions + self._b))
        return sum(folds.T, np.zeros(len(texts))) / len(self._a)

    def _count_words(self, texts: Sequence[str]) -> csr_array:
        """How often each text [B] has each word [V]; float64, words in order within a row."""
        joined = (b" " + END_WORD + b" ").join(map(_encode, texts)).translate(SEPARATE)
        found = joined.split()
        ids = np.fromiter(map(self._words.get, found, repeat(UNKNOWN)), np.int64, len(found))
        rows = np.cumsum(ids == END)
        known = ids >= 0
        ends = np.cumsum(np.bincount(rows[known], minlength=len(texts)))
        counts = csr_array(
            (np.ones(known.sum()), ids[known], np.concatenate([[0], ends])), (len(texts), len(self._idf))
        )
        counts.sum_duplicates()
        return counts


def _encode(text: str) -> bytes:
    """UTF-8 in which spaces stand for non-ASCII characters that are no part of a word."""
    return text.encode() if text.isascii() else NOT_WORD.sub(" ", text.lower()).encode()
