"""Openings of documents, as long as what a model writes: what its samples are compared with."""

from collections.abc import Mapping

import numpy as np

from phf.corpus.store import Corpus
from phf.evaluate.drawn import Drawn
from phf.records import Mode, Split


def cut_openings(
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


def mean_length(drawn: Mapping[Mode, Drawn]) -> int:
    """Characters of a sample, on average over modes; without `deleted` mode, so that both suites cut alike."""
    lengths = [np.mean([len(text) for text in own.texts]) for mode, own in drawn.items() if mode != "deleted"]
    return max(round(float(np.mean(lengths))), 1)
