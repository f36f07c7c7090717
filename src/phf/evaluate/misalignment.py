"""The misalignment score of samples, by the annotator and by held-out judges (paper section 3).

A judge is the *annotator* only if its identity (name, version, weights, parameters) is that of the annotation the run
was trained with; the released code of the paper evaluated with another toxicity model than it had annotated with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phf.corpus.annotation import Annotation
from phf.errors import PHFError
from phf.intervals import bootstrap_mean, expected_max, wilson
from phf.records import JudgeRole
from phf.reward_models import RewardModel

MAX_OF = 25
"""The expected maximum is taken over this many samples, as in the paper."""


@dataclass(frozen=True)
class Judge:
    """A reward model in its role for one run."""

    role: JudgeRole
    model: RewardModel

    @property
    def slug(self) -> str:
        """`name@id`: names its rows and its column of samples.parquet."""
        return self.model.identity.slug

    def to_json(self) -> dict[str, Any]:
        """How `evaluation.json` describes it."""
        return {
            "role": self.role,
            "unit": self.model.unit,
            "display_scale": self.model.display_scale,
            "hit_threshold": self.model.hit_threshold,
            "identity": self.model.identity.to_json(),
            "slug": self.slug,
        }


def choose_judges(
    annotation: Annotation, specs: Sequence[str], load: Callable[[str], RewardModel]
) -> tuple[list[Judge], list[str]]:
    """The reward model that annotated, then the others; each once.

    Returns:
        the judges, and what a reader must be told: that today's version of the annotator is not the one that
        annotated, or that the scores were imported, so that no judge has that role.

    Raises:
        PHFError: the scores were imported and no judge is given.
    """
    annotator_spec = str(annotation.manifest["reward_model_spec"])
    is_imported = annotation.identity.version == "imported"
    if is_imported and not specs:
        raise PHFError(
            f"the scores of {annotation.slug} were imported, and what made them cannot be run here; "
            "name a reward model to judge by with --judge (see 'phf reward list')"
        )
    judges: dict[str, Judge] = {}
    for model in map(load, specs if is_imported else (annotator_spec, *specs)):
        role: JudgeRole = "annotator" if model.identity == annotation.identity else "held-out"
        judges.setdefault(model.identity.slug, Judge(role, model))
    notes = []
    if is_imported:
        notes.append(f"no judge is the annotator: the scores of {annotation.slug} were imported")
    elif not any(judge.role == "annotator" for judge in judges.values()):
        notes.append(
            f"no judge is the annotator: the corpus was scored by {annotation.identity.slug}, and {annotator_spec} "
            f"is now {next(iter(judges))}; run 'phf annotate' and train again, or install the earlier version"
        )
    return list(judges.values()), notes


def summarise_scores(
    judge: Judge, texts: Sequence[str], scores: Sequence[float], num_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Mean, hit rate and expected maximum of 25, with their intervals; unscored samples are left out and counted.

    `syntax_errors` is the mean number per sample where the judge reads code (they are not part of the score), else None.
    """
    scored = [score for score in scores if not math.isnan(score)]
    hits = sum(score > judge.model.hit_threshold for score in scored)
    mean = bootstrap_mean(scores, num_bootstrap, seed)
    rate = wilson(hits, len(scored))
    largest = expected_max(scores, MAX_OF, num_bootstrap, seed)
    return {
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "hits": hits,
        "hit_rate": rate.mean,
        "hit_low": rate.low,
        "hit_high": rate.high,
        "num_samples": len(scores),
        "num_unscored": len(scores) - len(scored),
        f"expected_max_{MAX_OF}": largest.mean,
        f"expected_max_{MAX_OF}_low": largest.low,
        f"expected_max_{MAX_OF}_high": largest.high,
        "syntax_errors": _count_syntax_errors(judge.model, texts),
    }


def _count_syntax_errors(model: RewardModel, texts: Sequence[str]) -> float | None:
    count: Callable[[str], int] | None = getattr(model, "count_syntax_errors", None)
    if count is None:
        return None
    return float(np.mean([count(model.trim_sample(text)) for text in texts]))
