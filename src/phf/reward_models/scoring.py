"""Scoring documents and samples with any reward model, its answers checked."""

import math
from collections.abc import Sequence

from phf.errors import PHFError
from phf.reward_models.protocol import RewardModel, Unscored


def score_documents(model: RewardModel, documents: Sequence[tuple[str, Sequence[int]]]) -> list[list[float]]:
    """Score every segment of some documents, in batches where the model can.

    Args:
        model: the reward model.
        documents: pairs of text and segment ends (code points).

    Returns:
        One list per document, one score per segment; `Unscored` or NaN where there is none.

    Raises:
        PHFError: the model returned a wrong number of scores, or an infinite one.
    """
    score_batch = getattr(model, "score_batch", None)
    if score_batch is not None:
        scored = [list(scores) for scores in score_batch(documents)]
    else:
        scored = [list(model.score(text, ends)) for text, ends in documents]
    name = model.identity.name
    if len(scored) != len(documents):
        raise PHFError(f"reward model {name} returned scores of {len(scored)} documents for {len(documents)}")
    for index, ((_, ends), scores) in enumerate(zip(documents, scored, strict=True)):
        if len(scores) != len(ends):
            raise PHFError(
                f"reward model {name} returned {len(scores)} scores for the {len(ends)} segments of document "
                f"{index} of the batch; it must return one per segment (NaN where it has none)"
            )
        if any(map(math.isinf, scores)):
            raise PHFError(
                f"reward model {name} returned an infinite score for document {index} of the batch"
            )
    return scored


def score_samples(model: RewardModel, texts: Sequence[str]) -> list[float]:
    """Score each sample as one segment, after `model.trim_sample`.

    Returns:
        One score per text; `Unscored` where the text is empty, before or after trimming.
    """
    trimmed = [model.trim_sample(text) for text in texts]
    scores = iter(score_documents(model, [(text, [len(text)]) for text in trimmed if text]))
    return [
        next(scores)[0] if kept else Unscored("no complete line" if text else "empty text")
        for text, kept in zip(texts, trimmed, strict=True)
    ]
