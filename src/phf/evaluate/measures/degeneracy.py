"""Signs that a model writes less, the same, or nothing: a better score that comes with them is no alignment."""

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from phf.evaluate.metric import Measured, Metric, bare
from phf.evaluate.pieces import NGRAMS_PER_SAMPLE, iterate_ngrams, split_pieces
from phf.records import Sample
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject

NUM_BYTES = 1 << 16
"""The compression ratio is taken of the first this many bytes: it falls as there is more text."""


@dataclass(frozen=True, slots=True)
class Degeneracy:
    """Figures of one mode's samples (`METRIC` says what each is); NaN where there is too little text."""

    mean_tokens: float
    mean_characters: float
    ended_share: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    num_ngrams: int
    repetition: float
    compression_ratio: float
    empty_share: float


def measure_degeneracy(samples: Sequence[Sample]) -> Degeneracy:
    """The figures of one mode's samples, at least one; distinct-n compares between equal numbers of them."""
    num_ngrams = NGRAMS_PER_SAMPLE * len(samples)
    pieces = [split_pieces(sample.text) for sample in samples]
    return Degeneracy(
        mean_tokens=float(np.mean([sample.num_tokens for sample in samples])),
        mean_characters=float(np.mean([len(sample.text) for sample in samples])),
        ended_share=float(np.mean([sample.ended for sample in samples])),
        distinct_1=distinct_ngrams(pieces, 1, num_ngrams),
        distinct_2=distinct_ngrams(pieces, 2, num_ngrams),
        distinct_3=distinct_ngrams(pieces, 3, num_ngrams),
        num_ngrams=num_ngrams,
        repetition=repetition(pieces),
        compression_ratio=compression_ratio(sample.text for sample in samples),
        empty_share=float(np.mean([not sample.text.strip() for sample in samples])),
    )


def distinct_ngrams(pieces: Sequence[Sequence[str]], n: int, num_ngrams: int) -> float:
    """Expected share of distinct n-grams among `num_ngrams` drawn without replacement from all (rarefaction).

    With N n-grams, c_g of them of type g, and m drawn: sum over g of 1 - C(N - c_g, m) / C(N, m), over m. It is what
    cutting the samples to m n-grams gives on average, without depending on where the cut falls. NaN if N < m.
    """
    counts = np.array(list(Counter(gram for text in pieces for gram in iterate_ngrams(text, n)).values()))
    total = int(counts.sum())
    if total < num_ngrams:
        return float("nan")
    left = total - counts
    drawn = left >= num_ngrams  # otherwise at least one of the type is always among those drawn
    log_missing = _log_factorial_ratio(left[drawn], num_ngrams) - _log_factorial_ratio(
        np.array(total), num_ngrams
    )
    num_types = len(counts) - float(np.exp(log_missing).sum())
    return num_types / num_ngrams


def repetition(pieces: Sequence[Sequence[str]], n: int = 4) -> float:
    """Share of n-grams that came before in the same sample, averaged over the samples that have any."""
    grams = [list(iterate_ngrams(text, n)) for text in pieces]
    shares = [1 - len(set(own)) / len(own) for own in grams if own]
    return float(np.mean(shares)) if shares else float("nan")


def compression_ratio(texts: Iterable[str]) -> float:
    """Compressed over plain bytes of the joined texts, cut to `NUM_BYTES`; NaN without text."""
    plain = "\n".join(texts).encode("utf-8", errors="replace")[:NUM_BYTES]
    return len(zlib.compress(plain, 9)) / len(plain) if plain.strip() else float("nan")


def _log_factorial_ratio(n: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    """log(n! / (n - k)!), which is log C(n, k) but for a term that cancels."""
    result: npt.NDArray[np.float64] = gammaln(n + 1) - gammaln(n - k + 1)
    return result


def list_degeneracy(samples: Sequence[Sample], mode: str) -> list[Measurement]:
    """The figures as measurements of a mode."""
    return [
        Measurement(name, bare(value), mode) for name, value in asdict(measure_degeneracy(samples)).items()
    ]


def measure_modes(subject: "Subject") -> Measured:
    """The figures of every mode's samples."""
    return Measured(
        [row for mode, own in subject.drawn.items() for row in list_degeneracy(own.samples, mode)]
    )


def _declare(
    name: str, title: str, unit: str, note: str, lower_is_better: bool | None = None, of: str = ""
) -> Measure:
    blind_spot = "Varied nonsense passes; bits per byte does not let it."
    is_headline = name == "distinct_2"  # what the verdict's check of variety goes by
    return Measure(name, title, unit, note, blind_spot, lower_is_better, "Degeneracy", is_headline, of)


_DISTINCT = "Share of distinct {} in equal amounts of text: a model that repeats itself scores low."

METRIC = Metric(
    "degeneracy",
    (
        _declare("mean_tokens", "Mean length, tokens", "tokens", "Text tokens of a sample."),
        _declare("mean_characters", "Mean length, characters", "characters", "Characters of a sample."),
        _declare("ended_share", "Ended", "share of samples", "Samples that ended before the longest length."),
        _declare("distinct_1", "Distinct-1", "share", _DISTINCT.format("words"), False),
        _declare(
            "distinct_2", "Distinct-2", "share", _DISTINCT.format("two-word sequences"), False, "scenario"
        ),
        _declare("distinct_3", "Distinct-3", "share", _DISTINCT.format("three-word sequences"), False),
        _declare("num_ngrams", "N-grams", "n-grams", "How many n-grams distinct-n and entropy are taken at."),
        _declare(
            "repetition", "Repetition", "share of 4-grams", "4-grams that came before in their sample.", True
        ),
        _declare(
            "compression_ratio",
            "Compression ratio",
            "share of bytes",
            "zlib's size over the plain size: lower is more redundant.",
            False,
        ),
        _declare("empty_share", "Empty", "share of samples", "Samples without any text.", True),
    ),
    measure_modes,
)
