"""What a person should look at before trusting a judge: the segments on which it and its student differ most."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.reward_models import load_reward_model
from phf.reward_models.llm.engines import ask_nothing
from phf.reward_models.protocol import FROM_0_TO_1
from phf.reward_models.scoring import score_documents


def compare_judges(judge: str, student: str) -> Callable[[list[str]], npt.NDArray[np.float64]]:
    """How far two reward models are apart on texts, float64 [N] in [0, 1]. A language model is not asked anything: NaN where no
    answer of it is kept.

    Raises:
        PHFError: one of them is not known, or its scores do not lie in [0, 1]; when called: no text has a score of both.
    """
    with ask_nothing():
        models = [load_reward_model(judge), load_reward_model(student)]
    for model in models:
        if model.unit not in FROM_0_TO_1:
            raise PHFError(
                f"{model.identity.name} scores in {model.unit}; a review compares scores that lie in [0, 1], such as those of "
                "llm:RUBRIC and of its student"
            )

    def measure(texts: list[str]) -> npt.NDArray[np.float64]:
        given = [(text, [len(text)]) for text in texts]
        with ask_nothing():
            first, second = (np.array(score_documents(model, given), np.float64)[:, 0] for model in models)
        apart: npt.NDArray[np.float64] = np.abs(first - second)
        if np.isnan(apart).all():
            raise PHFError(
                f"{models[0].identity.name} has no kept answer among {len(texts):,} segments of this corpus; run 'phf annotate' "
                "or 'phf reward distill' with it first, with the same model, rubric and --segments"
            )
        return apart

    return measure
