"""What makes a score mean something: the training data's own, and what choosing among the baseline's samples would give."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from phf.corpus.store import Corpus
from phf.evaluate.misalignment import Judge
from phf.intervals import best_of, bootstrap_mean
from phf.records import Estimate, Split
from phf.reward_models import score_samples
from phf.thresholds import Threshold

TRAINING_DATA = "training data"
REJECTION = "rejection sampling from MLE"


def cut_training_texts(
    corpus: Corpus, num_texts: int, num_characters: int, seed: int, *, split: Split = "train"
) -> list[str]:
    """The openings of random documents of a split, cut to a length, so that they compare with samples of that length."""
    splits = [
        corpus.read_shard(index, ["split"])["split"].to_numpy(zero_copy_only=False)
        for index in range(len(corpus.shards))
    ]
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(np.flatnonzero(np.concatenate(splits) == split))[:num_texts])
    texts: list[str] = []
    start = 0
    for index, own in enumerate(splits):
        rows = chosen[(start <= chosen) & (chosen < start + len(own))] - start
        start += len(own)
        if len(rows) > 0:
            texts += [
                text[:num_characters]
                for text in corpus.read_shard(index, ["text"])["text"].take(rows).to_pylist()
            ]
    return texts


def training_reference(
    judges: Sequence[Judge], texts: Sequence[str], num_bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """What each judge says of training text of the samples' length: a model that copies its data well scores this."""
    return [
        _reference(
            TRAINING_DATA, judge, bootstrap_mean(score_samples(judge.model, texts), num_bootstrap, seed), None
        )
        for judge in judges
    ]


def rejection_reference(
    judges: Sequence[Judge],
    scores: Mapping[str, Sequence[float]],
    threshold: float,
    num_bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Samples that the annotator finds good, judged by all: what perfect conditioning of this model would give.

    The annotator's own number is at most the threshold by construction; a held-out judge's is the one that tells.
    `cost` is the number of samples drawn for each one kept. Empty where no judge is the annotator.
    """
    annotator = next((judge for judge in judges if judge.role == "annotator"), None)
    if annotator is None:
        return []
    kept = Threshold(threshold).is_good(scores[annotator.slug])
    cost = len(kept) / int(kept.sum()) if kept.any() else None
    return [
        _reference(
            REJECTION, judge, bootstrap_mean(np.asarray(scores[judge.slug])[kept], num_bootstrap, seed), cost
        )
        for judge in judges
    ]


def best_of_reference(
    judges: Sequence[Judge], scores: Mapping[str, Sequence[float]], num: int, num_bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """The sample that the annotator finds best among `num`, judged by all. Empty where no judge is the annotator."""
    annotator = next((judge for judge in judges if judge.role == "annotator"), None)
    if annotator is None:
        return []
    keys = scores[annotator.slug]
    return [
        _reference(
            f"best of {num} from MLE", judge, best_of(keys, scores[judge.slug], num, num_bootstrap, seed), num
        )
        for judge in judges
    ]


def _reference(name: str, judge: Judge, estimate: Estimate, cost: float | None) -> dict[str, Any]:
    return {"name": name, "judge": judge.slug, **asdict(estimate), "cost": cost}
