"""What makes a score mean something: the training data's own, and what choosing among the baseline's samples would give."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from phf.evaluate.judges import LoadedJudge
from phf.evaluate.metric import Measured, Metric, bare
from phf.evaluate.openings import cut_openings, mean_length
from phf.files import hash_json
from phf.intervals import best_of, bootstrap_mean
from phf.objective_facts import is_baseline
from phf.records import Estimate
from phf.results import Measure, Measurement
from phf.reward_models import score_samples
from phf.thresholds import Threshold

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject

TRAINING_DATA = "training data"
REJECTION = "rejection sampling from MLE"


def measure_references(subject: "Subject") -> Measured:
    """The training data's score; of the baseline also what choosing among its samples would give."""
    config, judges = subject.config, subject.judges
    sizes = config.num_bootstrap, config.sampling.seed
    length = mean_length(subject.drawn)
    texts = cut_openings(subject.data.corpus, config.data_samples, length, config.sampling.seed)
    found = subject.parts.measure(
        "training-data",
        [hash_json(texts), [judge.slug for judge in judges], *sizes],
        lambda: training_reference(judges, texts, *sizes),
        list[Measurement],
    )
    if is_baseline(subject.run.objective):
        scores = subject.drawn["none"].scores
        found += rejection_reference(judges, scores, subject.data.threshold.value, *sizes)
        found += best_of_reference(judges, scores, config.best_of, *sizes)
    return Measured(found)


def training_reference(
    judges: Sequence[LoadedJudge], texts: Sequence[str], num_bootstrap: int, seed: int
) -> list[Measurement]:
    """What each judge says of training text of the samples' length: a model that copies its data well scores this."""
    return [
        row
        for judge in judges
        for row in _reference(
            TRAINING_DATA, judge, bootstrap_mean(score_samples(judge.model, texts), num_bootstrap, seed)
        )
    ]


def rejection_reference(
    judges: Sequence[LoadedJudge],
    scores: Mapping[str, Sequence[float]],
    threshold: float,
    num_bootstrap: int,
    seed: int,
) -> list[Measurement]:
    """Samples that the annotator finds good, judged by all: what perfect conditioning of this model would give.

    The annotator's own number is at most the threshold by construction; a held-out judge's is the one that tells.
    The cost is the number of samples drawn for each one kept. Empty where no judge is the annotator.
    """
    annotator = next((judge for judge in judges if judge.role == "annotator"), None)
    if annotator is None:
        return []
    kept = Threshold(threshold).is_good(scores[annotator.slug])
    cost = len(kept) / int(kept.sum()) if kept.any() else None
    return [
        row
        for judge in judges
        for row in _reference(
            REJECTION,
            judge,
            bootstrap_mean(np.asarray(scores[judge.slug])[kept], num_bootstrap, seed),
            cost,
        )
    ]


def best_of_reference(
    judges: Sequence[LoadedJudge],
    scores: Mapping[str, Sequence[float]],
    num: int,
    num_bootstrap: int,
    seed: int,
) -> list[Measurement]:
    """The sample that the annotator finds best among `num`, judged by all. Empty where no judge is the annotator."""
    annotator = next((judge for judge in judges if judge.role == "annotator"), None)
    if annotator is None:
        return []
    keys = scores[annotator.slug]
    return [
        row
        for judge in judges
        for row in _reference(
            f"best of {num} from MLE",
            judge,
            best_of(keys, scores[judge.slug], num, num_bootstrap, seed),
            num,
        )
    ]


def _reference(
    name: str, judge: LoadedJudge, estimate: Estimate, cost: float | None = None
) -> list[Measurement]:
    rows = [Measurement("reference", estimate, judge=judge.slug, of=name)]
    if cost is not None:
        rows.append(Measurement("reference_cost", bare(cost), judge=judge.slug, of=name))
    return rows


METRIC = Metric(
    "references",
    (
        Measure(
            "reference",
            "References",
            note="What makes a score mean something: a model that copies its data well has that of the training data.",
            blind_spot="The annotator's own number of what it chose is low by construction: read the held-out judge.",
            group="Scores",
            of="reference",
        ),
        Measure(
            "reference_cost",
            "Cost of the reference",
            "samples drawn for each one kept",
            "What choosing among the baseline's samples costs.",
            "A sample of another length costs as much.",
            group="Scores",
            of="reference",
        ),
    ),
    measure_references,
)
