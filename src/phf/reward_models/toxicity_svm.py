"""Probability that a text is offensive, by the linear SVM of alt-profanity-check."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from phf.files import hash_file, hash_json
from phf.records import Identity
from phf.reward_models.protocol import SegmentRewardModel, Unit

TEXTS_PER_BATCH = 4096  # bounds memory; a text's score does not depend on it


class ToxicitySVM(SegmentRewardModel):
    """Probability that a text is offensive. The package reads its own joblib files (contract, foreign pickles)."""

    unit: Unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.5

    def __init__(self) -> None:
        """Load the model.

        Raises:
            ModuleNotFoundError: alt-profanity-check is not installed.
        """
        import profanity_check

        self._predict_prob: Any = profanity_check.predict_prob
        self.identity = Identity("toxicity-svm", version("alt-profanity-check"), weights_hash=hash_weights())

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Probability of each text."""
        scores: list[float] = []
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            probabilities = self._predict_prob(texts[start : start + TEXTS_PER_BATCH])
            scores.extend(probabilities.astype("float32").tolist())
        return scores


def hash_weights() -> str:
    """SHA-256 over the package's two weight files, without loading them."""
    spec = importlib.util.find_spec("profanity_check")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no module named 'profanity_check'", name="profanity_check")
    folder = Path(spec.origin).parent / "data"
    return hash_json([hash_file(folder / name) for name in ("vectorizer.joblib", "model.joblib")])
