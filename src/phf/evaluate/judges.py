"""Who judges a run, and in which role.

A judge is the *annotator* only if its identity (name, version, weights, parameters) is that of the annotation the run
was trained with; the released code of the paper evaluated with another toxicity model than it had annotated with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phf.errors import PHFError
from phf.intervals import wilson
from phf.records import Estimate, Identity, JudgeRole
from phf.results import Judge

if TYPE_CHECKING:
    from phf.annotate.annotation import Annotation
    from phf.reward_models import RewardModel


@dataclass(frozen=True)
class LoadedJudge:
    """A reward model in its role for one run."""

    role: JudgeRole
    model: "RewardModel"

    @property
    def slug(self) -> str:
        """`name@id`: names its measurements and its column of samples.parquet."""
        return self.model.identity.slug

    def hit_rate(self, scores: Sequence[float]) -> Estimate:
        """The share above the hit threshold of what has a score (NaN = unscored)."""
        hits = sum(score > self.model.hit_threshold for score in scores)  # NaN is above nothing
        return wilson(hits, sum(not math.isnan(score) for score in scores))

    def describe(self) -> Judge:
        """How `evaluation.json` describes it."""
        model = self.model
        return Judge(
            self.slug, self.role, model.unit, model.display_scale, model.hit_threshold, model.identity
        )


def choose_judges(
    annotation: "Annotation", specs: Sequence[str], load: Callable[[str], "RewardModel"]
) -> tuple[list[LoadedJudge], list[str]]:
    """The reward model that annotated, then the others (`load_judges`)."""
    spec = str(annotation.manifest["reward_model_spec"])
    return load_judges(annotation.identity, annotation.slug, spec, specs, load)


def load_judges(
    annotator: Identity,
    annotation: str,
    annotator_spec: str,
    specs: Sequence[str],
    load: Callable[[str], "RewardModel"],
) -> tuple[list[LoadedJudge], list[str]]:
    """The reward model that annotated, then the others; each once.

    Args:
        annotator: what scored the corpus that a model was trained on.
        annotation: the slug of these scores.
        annotator_spec: how that reward model is loaded today.

    Returns:
        the judges, and what a reader must be told: that today's version of the annotator is not the one that
        annotated, or that the scores were imported, so that no judge has that role.

    Raises:
        PHFError: the scores were imported and no judge is given.
    """
    is_imported = annotator.version == "imported"
    if is_imported and not specs:
        raise PHFError(
            f"the scores of {annotation} were imported, and what made them cannot be run here; "
            "name a reward model to judge by with --judge (see 'phf reward list')"
        )
    judges: dict[str, LoadedJudge] = {}
    for model in map(load, specs if is_imported else (annotator_spec, *specs)):
        role: JudgeRole = "annotator" if model.identity == annotator else "held-out"
        judges.setdefault(model.identity.slug, LoadedJudge(role, model))
    notes = []
    if is_imported:
        notes.append(f"no judge is the annotator: the scores of {annotation} were imported")
    elif not any(judge.role == "annotator" for judge in judges.values()):
        notes.append(
            f"no judge is the annotator: the corpus was scored by {annotator.slug}, and {annotator_spec} "
            f"is now {next(iter(judges))}; run 'phf annotate' and train again, or install the earlier version"
        )
    return list(judges.values()), notes
