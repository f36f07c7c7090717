"""What makes a score mean something: the training data's own, and what choosing among the baseline's samples would give."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from phf.corpus.store import Corpus
from phf.evaluate.misalignment import Judge
from phf.intervals import best_of, bootstrap_mean
from phf.records import Estimate
from phf.reward_models import score_samples

TRAINING_DATA = "training data"
REJECTION = "rejection sampling from MLE"


def cut_training_texts(corpus: Corpus, num_texts: int, num_characters: int, seed: int) -> list[str]:
    """The openings of random training documents, cut to a length, so that they compare with samples of that length."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    # Twice as many documents as wanted, of both splits: enough of them are for training, unless the corpus is small.
    chosen = set(rng.permutation(corpus.num_documents)[: 2 * num_texts].tolist())
    start = 0
    for index in range(len(corpus.shards)):
        table = corpus.read_shard(index, ["text", "split"])
        rows = [row - start for row in range(start, start + len(table)) if row in chosen]
        picked = table.take(rows).to_pylist()
        texts += [row["text"][:num_characters] for row in picked if row["split"] == "train"]
        start += len(table)
    order = rng.permutation(len(texts))[:num_texts]
    return [texts[index] for index in order]


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
    # As segments are; NaN is not kept.
    kept = np.asarray(scores[annotator.slug], np.float32) <= np.float32(threshold)
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
