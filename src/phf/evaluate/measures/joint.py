"""How well a model predicts text when nothing is given away: label, segment boundary and text together (docs/evaluation.md: Joint cost)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from phf.control import ControlTokens
from phf.evaluate.measures.bits_per_byte import bits_per_byte, keep_costs, keep_nll, list_bit_items
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.pages import Labels, Page, mode_labels, segment_nll
from phf.intervals import bootstrap_ratio
from phf.records import GOOD, NO_LABEL, Progress
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject

ONE_SEGMENT = "one-segment"
"""Pages of one segment, whose label can be summed out."""


def joint_nll(
    model: "PreTrainedModel",
    control: ControlTokens,
    vocab_size: int,
    pages: Sequence[Page],
    labels: Sequence[Labels],
    progress: Progress | None = None,
) -> list[npt.NDArray[np.float64]]:
    """-log p of each segment with its control token given all before it in its page, in nats.

    On a page of one labelled segment the label is summed out, over all control tokens: exactly what the model gives to the
    text behind any of them. On longer pages it is that of the labels given: an upper bound of the sum over all labels.

    Args:
        labels: see `segment_nll`.

    Returns:
        for each page float64 [num_segments].
    """
    found = segment_nll(model, control, vocab_size, pages, labels, progress, with_control=True)
    alone = [place for place, own in enumerate(labels) if len(own) == 1 and own[0] != NO_LABEL]
    singles = [pages[place] for place in alone]
    by_label = [
        np.concatenate(segment_nll(model, control, vocab_size, singles, told, with_control=True))
        for label in range(GOOD, GOOD + len(control.all))
        if (told := [np.array([label], np.uint8)] * len(singles))
    ]
    summed = -logsumexp(-np.array(by_label), axis=0) if singles else []
    for place, value in zip(alone, summed, strict=True):
        found[place] = np.array([value])
    return found


def measure_joint(subject: "Subject") -> Measured:
    """The joint cost on all text, by kind of text, and on pages of one segment where there are others."""
    subject.data.tokens.check_recovery()
    objective, tokenizer, pages = subject.data.objective, subject.data.tokens.tokenizer, subject.pages
    labels = mode_labels(pages, "none")
    if objective.has_control_tokens:
        labels = [subject.label(page.scores) for page in pages]
    if objective.writes_control_tokens:
        nll = keep_costs(
            subject,
            "nll-joint",
            lambda: joint_nll(
                subject.model, tokenizer.control, tokenizer.vocab_size, pages, labels, subject.progress
            ),
        )
    else:
        nll = keep_nll(subject, "none", mode_labels(pages, "none"))
    sizes = (subject.config.num_bootstrap, subject.config.sampling.seed)
    found = bits_per_byte(pages, nll, subject.data.threshold.value, *sizes)
    places = [place for place, page in enumerate(pages) if len(page.segments) == 1]
    if 0 < len(places) < len(pages):
        bits = [nll[place][0] / np.log(2) for place in places]
        found[ONE_SEGMENT] = bootstrap_ratio(
            bits, [int(pages[place].num_bytes[0]) for place in places], *sizes
        )
    return Measured(
        [
            Measurement("joint_bits_per_byte", estimate, of=None if text == "all" else text)
            for text, estimate in found.items()
        ],
        items=list_bit_items(subject, nll, "joint_bits_per_byte", None, all_of=None),
    )


METRIC = Metric(
    "joint",
    (
        Measure(
            "joint_bits_per_byte",
            "Joint cost",
            "bits per byte",
            "Of held-out text when no label is given away: where the model writes control tokens, each segment's own (label and "
            "boundary) is paid for with the text, and what is kept for them elsewhere too; on a page of one segment the label is "
            "summed out, on longer ones the true labels make it an upper bound. Without control tokens it is the cost of the text. "
            "This is the number to hold against MLE's.",
            "Where a page has several segments, other labels than the true ones are left out: the model's text may cost a little less.",
            group="Capability",
            is_headline=True,
            of="text",
        ),
    ),
    measure_joint,
)
