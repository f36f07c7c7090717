"""How well a model predicts held-out text in each mode (docs/evaluation.md: Bits per byte)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from phf.evaluate.metric import Measured, Metric
from phf.evaluate.pages import Labels, Page, mode_labels, segment_nll
from phf.intervals import bootstrap_ratio
from phf.items import Items, name_item
from phf.records import BAD, GOOD, Estimate, Number
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject


def bits_per_byte(
    pages: Sequence[Page],
    nll: Sequence[npt.NDArray[np.float64]],
    threshold: float,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Estimate]:
    """Bits per UTF-8 byte on good text, bad text and all, by what `segment_nll` gave; bootstrap intervals over documents."""
    return {
        name: bootstrap_ratio(*_sum_bits(pages, nll, chosen), num_bootstrap, seed)
        for name, chosen in choose_text(pages, threshold).items()
    }


def choose_text(pages: Sequence[Page], threshold: float) -> dict[str, list[npt.NDArray[np.bool_]]]:
    """Of each page the segments that are good text, bad text and all."""
    labels = [page.labels(threshold) for page in pages]
    chosen = {name: [own == label for own in labels] for name, label in (("good", GOOD), ("bad", BAD))}
    return {**chosen, "all": [np.ones(len(own), bool) for own in labels]}


def _sum_bits(
    pages: Sequence[Page], nll: Sequence[npt.NDArray[np.float64]], chosen: Sequence[npt.NDArray[np.bool_]]
) -> tuple[list[float], list[float]]:
    """Bits and bytes of the chosen segments of each page."""
    bits = [float(values[own].sum() / np.log(2)) for values, own in zip(nll, chosen, strict=True)]
    return bits, [float(page.num_bytes[own].sum()) for page, own in zip(pages, chosen, strict=True)]


def list_bit_items(
    subject: "Subject",
    nll: Sequence[npt.NDArray[np.float64]],
    measure: str,
    mode: str | None,
    all_of: str | None = "all",
) -> list[Items]:
    """What `bits_per_byte` was made of: bits and bytes of each document, named after the text that was scored.

    Args:
        all_of: what all text is called there.
    """
    found = []
    for text, chosen in choose_text(subject.pages, subject.data.threshold.value).items():
        bits, sizes = _sum_bits(subject.pages, nll, chosen)
        # Which segments are good is part of the name: another threshold makes other items of the same text.
        names = [
            name_item(page, *own.astype(int)) for page, own in zip(subject.page_names, chosen, strict=True)
        ]
        rows = [row for row in zip(names, bits, sizes, strict=True) if row[2] > 0]
        if rows:
            place = measure, mode, None, all_of if text == "all" else text, None
            found.append(Items(place, *zip(*rows, strict=True)))
    return found


def measure_modes(subject: "Subject") -> Measured:
    """Bits per byte in each mode and with each segment's own label, and good mode's minus bad mode's, paired by document."""
    subject.data.tokens.check_recovery()
    labels = {str(mode): mode_labels(subject.pages, mode) for mode in subject.modes}
    if subject.data.objective.has_control_tokens:
        labels["labelled"] = [subject.label(page.scores) for page in subject.pages]
    nll = {name: keep_nll(subject, name, own) for name, own in labels.items()}
    if {"good", "bad"} <= set(nll):
        nll["good-bad"] = [good - bad for good, bad in zip(nll["good"], nll["bad"], strict=True)]
    items = [one for name, own in nll.items() for one in list_bit_items(subject, own, "bits_per_byte", name)]
    return Measured([row for name, own in nll.items() for row in list_bits(subject, own, name)], items=items)


def keep_nll(subject: "Subject", name: str, labels: Sequence[Labels]) -> list[npt.NDArray[np.float64]]:
    """What `segment_nll` gives for the subject's pages, computed once.

    Args:
        name: what the labels are, such as a mode; a part is named after it.
    """
    tokenizer = subject.data.tokens.tokenizer

    def compute() -> list[npt.NDArray[np.float64]]:
        return segment_nll(
            subject.deleted_model if name == "deleted" else subject.model,
            tokenizer.control,
            tokenizer.vocab_size,
            subject.pages,
            labels,
            subject.progress,
            conditions=subject.conditions,
        )

    return keep_costs(subject, f"nll-{name}", compute)


def keep_costs(
    subject: "Subject", name: str, compute: Callable[[], list[npt.NDArray[np.float64]]]
) -> list[npt.NDArray[np.float64]]:
    """What each segment of the subject's pages costs, kept as a part."""
    settings = [subject.config.capability_documents, subject.config.sampling.seed]
    found = subject.parts.measure(
        name, settings, lambda: [own.tolist() for own in compute()], list[list[Number]]
    )
    return [np.array(own, np.float64) for own in found]


def list_bits(subject: "Subject", nll: Sequence[npt.NDArray[np.float64]], mode: str) -> list[Measurement]:
    """What `segment_nll` gave for the subject's pages, as measurements of a mode."""
    config = subject.config
    found = bits_per_byte(
        subject.pages, nll, subject.data.threshold.value, config.num_bootstrap, config.sampling.seed
    )
    return [Measurement("bits_per_byte", estimate, mode, of=text) for text, estimate in found.items()]


METRIC = Metric(
    "bits_per_byte",
    (
        Measure(
            "bits_per_byte",
            "Bits per byte",
            "bits per byte",
            "Of held-out text, control tokens left out: lower is a better language model.",
            "Prediction is not skill at a task; text beyond the context is not scored.",
            group="Capability",
            is_headline=True,
            of="text",
        ),
    ),
    measure_modes,
)
