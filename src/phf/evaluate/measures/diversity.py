"""How varied samples are as a set, by their pieces: n-gram entropy and Self-BLEU (paper section 3.2)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from phf.evaluate.metric import Measured, Metric, bare
from phf.evaluate.pieces import NGRAMS_PER_SAMPLE, iterate_ngrams, split_pieces
from phf.intervals import bootstrap_mean
from phf.records import Estimate, Number
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject

SELF_BLEU_ORDER = 5
"""Longest n-gram of Self-BLEU, as in the paper."""
_NUM_CUTS = 20
"""Random cuts that the entropy is averaged over."""


@dataclass(frozen=True, slots=True)
class Diversity:
    """Figures of one mode's samples (`METRIC` says what each is); NaN where there is too little text.

    Attributes:
        num_ngrams: what the entropy was taken at, which is at most log2 of it.
    """

    entropy_1: Number
    entropy_2: Number
    entropy_3: Number
    self_bleu_5: Estimate
    num_ngrams: int


def measure_diversity(texts: Sequence[str], num_bootstrap: int, seed: int) -> Diversity:
    """The figures of one mode's samples, at least one."""
    num_ngrams = NGRAMS_PER_SAMPLE * len(texts)
    pieces = [split_pieces(text) for text in texts]
    return Diversity(
        entropy_1=ngram_entropy(pieces, 1, num_ngrams, seed),
        entropy_2=ngram_entropy(pieces, 2, num_ngrams, seed),
        entropy_3=ngram_entropy(pieces, 3, num_ngrams, seed),
        self_bleu_5=bootstrap_mean(self_bleu(pieces), num_bootstrap, seed),
        num_ngrams=num_ngrams,
    )


def ngram_entropy(pieces: Sequence[Sequence[str]], n: int, num_ngrams: int, seed: int) -> float:
    """Entropy in bits of the n-grams in a cut to `num_ngrams` of them, averaged over random cuts; NaN if there are fewer.

    The entropy of all n-grams grows with their number, so that a mode which writes more would look more varied.
    """
    names: dict[tuple[str, ...], int] = {}
    grams = np.array(
        [names.setdefault(gram, len(names)) for text in pieces for gram in iterate_ngrams(text, n)]
    )
    if len(grams) < num_ngrams:
        return float("nan")
    rng = np.random.default_rng(seed)
    entropies = []
    for _ in range(_NUM_CUTS):
        counts = np.bincount(rng.choice(grams, num_ngrams, replace=False))
        shares = counts[counts > 0] / num_ngrams
        entropies.append(float(-(shares * np.log2(shares)).sum()))
    return float(np.mean(entropies))


def self_bleu(pieces: Sequence[Sequence[str]], order: int = SELF_BLEU_ORDER) -> list[float]:
    """BLEU of each sample against all the others (Texygen, Zhu et al. 2018), with n-grams up to `order`.

    Above single pieces, no match counts as 0.1 matches (Chen and Cherry 2014, method 1). NaN for a sample shorter than
    `order`, and where there is no other. Linear in the text: of each n-gram the largest counts in two samples are
    enough to know the largest in all but one.
    """
    if len(pieces) < 2:
        return [float("nan")] * len(pieces)
    log_precisions = np.zeros(len(pieces))
    for n in range(1, order + 1):
        counts = [Counter(iterate_ngrams(text, n)) for text in pieces]
        largest = _find_largest(counts)
        for sample, own in enumerate(counts):
            if not own:
                log_precisions[sample] = np.nan
                continue
            matches = 0
            for gram, count in own.items():
                first, holder, second = largest[gram]
                matches += min(count, second if holder == sample else first)
            share = (matches or (0.1 if n > 1 else 0.0)) / own.total()
            log_precisions[sample] += (np.log(share) if share else -np.inf) / order
    return [float(value) for value in np.exp(log_precisions + _brevity_penalties(pieces))]


_Top = tuple[int, int, int]
"""Largest count of an n-gram in a sample, that sample, and the largest count in another sample."""


def _find_largest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], _Top]:
    largest: dict[tuple[str, ...], _Top] = {}
    for sample, own in enumerate(counts):
        for gram, count in own.items():
            first, holder, second = largest.get(gram, (0, -1, 0))
            if count > first:
                largest[gram] = (count, sample, first)
            elif count > second:
                largest[gram] = (first, holder, count)
    return largest


def _brevity_penalties(pieces: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Log of BLEU's penalty for each text that is shorter than the other text nearest in length (of two, the shorter)."""
    lengths = np.array([len(text) for text in pieces])
    nearest = np.empty_like(lengths)
    for sample, length in enumerate(lengths):
        distance = 2 * np.abs(lengths - length) + (lengths > length)
        distance[sample] = np.iinfo(distance.dtype).max
        nearest[sample] = lengths[np.argmin(distance)]
    penalties: npt.NDArray[np.float64] = np.minimum(0.0, 1 - nearest / np.maximum(lengths, 1))
    return penalties


def list_diversity(
    subject: "Subject", texts: Sequence[str], mode: str, name: str, settings: object
) -> list[Measurement]:
    """The figures as measurements of a mode; the part `name` keeps them, and depends on `settings`."""
    num_bootstrap, seed = subject.config.num_bootstrap, subject.config.sampling.seed
    found = subject.parts.measure(
        name, settings, lambda: measure_diversity(texts, num_bootstrap, seed), Diversity
    )
    numbers = {
        "entropy_1": bare(found.entropy_1),
        "entropy_2": bare(found.entropy_2),
        "entropy_3": bare(found.entropy_3),
        "self_bleu_5": found.self_bleu_5,
    }
    return [Measurement(measure, estimate, mode) for measure, estimate in numbers.items()]


def measure_modes(subject: "Subject") -> Measured:
    """The figures of every mode's samples."""
    settings = [subject.drawing, subject.config.num_bootstrap]
    return Measured(
        [
            row
            for mode, own in subject.drawn.items()
            for row in list_diversity(subject, own.texts, mode, f"diversity-{mode}", settings)
        ]
    )


def _declare_entropy(n: int) -> Measure:
    return Measure(
        f"entropy_{n}",
        f"Entropy, {n}-grams",
        "bits",
        "Of n-grams in equal amounts of text: higher is more varied.",
        "Garbled text is diverse.",
        lower_is_better=False,
        group="Diversity",
    )


METRIC = Metric(
    "diversity",
    (
        *map(_declare_entropy, (1, 2, 3)),
        Measure(
            "self_bleu_5",
            "Self-BLEU-5",
            "BLEU",
            "How alike samples are to one another: lower is more varied. It grows with the number of samples.",
            "Garbled text is diverse.",
            group="Diversity",
        ),
    ),
    measure_modes,
)
