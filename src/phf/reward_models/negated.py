"""A reward turned into a score: `-SPEC`, for a model whose numbers are higher = better."""

import math
from collections.abc import Sequence

from phf.records import Identity
from phf.reward_models.protocol import FROM_0_TO_1, RewardModel, Unit
from phf.reward_models.scoring import score_documents


class Negated(RewardModel):
    """Minus another model's number; of a probability p, 1 - p, which is a probability again. What is unscored stays so.

    The hit threshold turns with it: a text is a hit where the reward is below the model's own threshold.
    """

    def __init__(self, model: RewardModel) -> None:
        """Turn a loaded model round; the identity is another, so that scores of two directions never meet."""
        self.model = model
        self._top = 1.0 if model.unit in FROM_0_TO_1 else 0.0
        self.unit: Unit = model.unit if model.unit in FROM_0_TO_1 else "arbitrary units"
        self.has_own_engine = model.has_own_engine
        self.display_scale = model.display_scale
        self.hit_threshold = self._top - model.hit_threshold
        own = model.identity
        self.identity = Identity(
            f"minus-{own.name}", own.version, own.weights_hash, {**own.parameters, "negated": True}
        )

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Score the segments of a document; higher = worse."""
        return self.score_batch([(document, ends)])[0]

    def score_batch(self, documents: Sequence[tuple[str, Sequence[int]]]) -> list[Sequence[float]]:
        """Score the segments of many documents at once."""
        return [
            [score if math.isnan(score) else self._top - score for score in scores]
            for scores in score_documents(self.model, documents)
        ]

    def trim_sample(self, text: str) -> str:
        """The sample as the model itself trims it."""
        return self.model.trim_sample(text)
