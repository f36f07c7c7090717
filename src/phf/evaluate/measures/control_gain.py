"""What a model's control tokens are worth to it (docs/evaluation.md: Control gain)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phf.control import ControlTokens
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.pages import Conditions, Labeller, Page, PageReader, choose_segments, segment_nll
from phf.intervals import bootstrap_mean
from phf.items import Itemised, mean_items
from phf.records import BAD, GOOD
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject


@dataclass(frozen=True)
class Gains:
    """Pages that end with the segment in question, and the gain of each in nats."""

    pages: list[Page]
    gains: list[float]


def control_gain(
    model: "PreTrainedModel",
    control: ControlTokens,
    vocab_size: int,
    reader: PageReader,
    label: Labeller,
    num_segments: int,
    seed: int,
    *,
    conditions: Conditions | None = None,
) -> dict[str, Gains]:
    """Mean of log p(segment | own token) - log p(segment | other token), in context.

    Earlier segments of the page carry their own labels' tokens; only the token of the segment in question changes. At
    most one good and one bad segment of a document is taken, so that the interval over segments is honest.

    Args:
        label: the label of each segment by its score; segments that are neither GOOD nor BAD are context alone.
        conditions: see `segment_nll`.

    Returns:
        `good` and `bad`: nats per segment, of up to `num_segments` segments each.
    """
    result = {}
    for name, own_label, other in (("good", GOOD, BAD), ("bad", BAD, GOOD)):
        pages = choose_segments(reader, label, (own_label,), num_segments, seed)
        own_labels = [label(page.scores) for page in pages]
        switched = [np.append(labels[:-1], np.uint8(other)) for labels in own_labels]
        own = segment_nll(model, control, vocab_size, pages, own_labels, conditions=conditions)
        changed = segment_nll(model, control, vocab_size, pages, switched, conditions=conditions)
        gains = [float(after[-1] - before[-1]) for before, after in zip(own, changed, strict=True)]
        result[name] = Gains(pages, gains)
    return result


def measure_gain(subject: "Subject") -> Measured:
    """The control gain; nothing of a model without control tokens."""
    if not subject.data.objective.has_control_tokens:
        return Measured([])
    subject.data.tokens.check_recovery()  # what is lost of a segment may be what its label says
    tokenizer = subject.data.tokens.tokenizer
    config = subject.config
    sizes = (config.gain_segments, config.num_bootstrap, config.sampling.seed)

    def compute() -> Itemised:
        found = control_gain(
            subject.model,
            tokenizer.control,
            tokenizer.vocab_size,
            subject.reader,
            subject.label,
            config.gain_segments,
            config.sampling.seed,
            conditions=subject.conditions,
        )
        rows = [
            Measurement("control_gain", bootstrap_mean(own.gains, *sizes[1:]), of=text)
            for text, own in found.items()
        ]
        items = [
            mean_items(row.place, list(map(subject.name_page, own.pages)), own.gains)
            for row, own in zip(rows, found.values(), strict=True)
        ]
        return Itemised(rows, items)

    kept = subject.parts.measure("control-gain", sizes, compute, Itemised)
    return Measured(kept.measurements, items=kept.items)


METRIC = Metric(
    "control_gain",
    (
        Measure(
            "control_gain",
            "Control gain",
            "nats per segment",
            "How much likelier a held-out segment is, in context, after its own control token than after the other: where the "
            "intervals of both kinds lie above 0, control is learned.",
            "A long segment weighs more; where a segment ends is not part of it.",
            lower_is_better=False,
            group="Control",
            is_headline=True,
            of="text",
        ),
    ),
    measure_gain,
)
