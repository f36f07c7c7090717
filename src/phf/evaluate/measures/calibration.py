"""Whether a model knows which of its words are bad: its own posterior, held against the judge (docs/evaluation.md).

At a segment start q = p(good | context) / (p(good | context) + p(bad | context)); the model's posterior that the text s
is good is q p(s | context, good) / (q p(s | context, good) + (1 - q) p(s | context, bad)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from phf.calibration import NUM_BINS, estimate_error, find_bins
from phf.control import ControlTokens
from phf.evaluate.metric import Measured, Metric, bare
from phf.evaluate.pages import Labeller, Page, PageReader, choose_segments, segment_nll
from phf.intervals import wilson
from phf.records import BAD, GOOD, NO_LABEL, Estimate, Number
from phf.results import MISSING, Measure, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject


@dataclass(frozen=True, slots=True)
class PosteriorBin:
    """Segments whose posterior lies in one tenth of [0, 1].

    Attributes:
        posterior: their mean.
        good: share that the judge finds good, with Wilson's interval; its count is the number of segments.
    """

    posterior: float
    good: Estimate


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the posterior agrees with the judge.

    Attributes:
        error: the calibration error, freed of what chance adds to it (`estimate_error`).
        plain: as it is found: root of the mean over segments of (posterior - share of good)^2 of their bins. Chance makes it
            larger than 0 even if the posterior is right.
        by_chance: between which two 95 % of the plain errors of an exactly right posterior lie.
        bins: the reliability diagram; bins without segments are left out.
    """

    error: Estimate
    plain: Number
    by_chance: tuple[Number, Number]
    bins: tuple[PosteriorBin, ...]


def measure_calibration(
    model: "PreTrainedModel",
    control: ControlTokens,
    vocab_size: int,
    reader: PageReader,
    label: Labeller,
    num_segments: int,
    num_bootstrap: int,
    seed: int,
) -> Calibration:
    """The calibration on one segment of each of up to `num_segments` held-out documents, drawn evenly in the document.

    Earlier segments carry their own labels' tokens.

    Args:
        label: GOOD or BAD by a segment's score; others are context alone.
    """
    pages = choose_segments(reader, label, (GOOD, BAD), num_segments, seed)
    labels = [label(page.scores) for page in pages]
    posteriors = segment_posteriors(model, control, vocab_size, pages, labels)
    is_good = np.array([own[-1] == GOOD for own in labels], bool)
    return summarise_calibration(posteriors, is_good, num_bootstrap, seed)


def segment_posteriors(
    model: "PreTrainedModel",
    control: ControlTokens,
    vocab_size: int,
    pages: Sequence[Page],
    labels: Sequence[npt.NDArray[np.uint8]],
) -> npt.NDArray[np.float64]:
    """The model's posterior that the last segment of each page is good: float64 [pages]."""
    nll = {}
    for own in (GOOD, BAD):
        told = [np.append(before[:-1], np.uint8(own)) for before in labels]
        nll[own] = np.array([found[-1] for found in segment_nll(model, control, vocab_size, pages, told)])
    log_odds = np.array(
        [_prior_log_odds(model, control, page, own) for page, own in zip(pages, labels, strict=True)]
    )
    posteriors: npt.NDArray[np.float64] = 1 / (1 + np.exp(-(log_odds + nll[BAD] - nll[GOOD]).clip(-500, 500)))
    return posteriors


@torch.inference_mode()
def _prior_log_odds(
    model: "PreTrainedModel", control: ControlTokens, page: Page, labels: npt.NDArray[np.uint8]
) -> float:
    """log p(good) - log p(bad) where the last segment of a page starts."""
    ids = [control.end]
    for segment, label in zip(page.segments[:-1], labels[:-1], strict=True):
        ids += [control.of_label(int(label))] if label != NO_LABEL else []
        ids += segment.tolist()
    inputs = torch.tensor([ids], device=model.device)
    logits = model(input_ids=inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return float(logits[control.good] - logits[control.bad])


def summarise_calibration(
    posteriors: npt.NDArray[np.float64], is_good: npt.NDArray[np.bool_], num_bootstrap: int, seed: int
) -> Calibration:
    """Calibration error and reliability diagram over ten bins of equal width (Guo et al. 2017)."""
    if len(posteriors) == 0:
        return Calibration(MISSING, np.nan, (np.nan, np.nan), ())
    places = find_bins(posteriors)
    bins = tuple(
        PosteriorBin(
            float(posteriors[places == place].mean()), wilson(int(is_good[places == place].sum()), int(count))
        )
        for place, count in enumerate(np.bincount(places, minlength=NUM_BINS))
        if count > 0
    )
    return Calibration(*estimate_error(posteriors, is_good, num_bootstrap, seed), bins)


def measure_subject(subject: "Subject") -> Measured:
    """The calibration; nothing of a model that writes no control tokens."""
    if not subject.data.objective.has_control_tokens or subject.conditions is not None:
        return Measured([])
    tokenizer = subject.data.tokens.tokenizer
    sizes = (subject.config.gain_segments, subject.config.num_bootstrap, subject.config.sampling.seed)
    found = subject.parts.measure(
        "calibration",
        sizes,
        lambda: measure_calibration(
            subject.model, tokenizer.control, tokenizer.vocab_size, subject.reader, subject.label, *sizes
        ),
        Calibration,
    )
    bins = [Measurement("reliability", one.good, at=one.posterior) for one in found.bins]
    return Measured(
        [
            Measurement("calibration_error", found.error),
            Measurement("calibration_error_plain", bare(found.plain, found.error.count)),
            *(
                Measurement("calibration_error_by_chance", bare(end, found.error.count), of=name)
                for name, end in zip(("least", "most"), found.by_chance, strict=True)
            ),
            *bins,
        ]
    )


METRIC = Metric(
    "calibration",
    (
        Measure(
            "calibration_error",
            "Calibration error",
            "probability",
            "How far the model's own probability that a segment is good lies from the share that is: root mean square over ten bins, "
            "freed of what chance adds.",
            "It is small for a model that knows no more than the base rate: read it with the control gain. Errors that cancel within "
            "a bin are not seen.",
            group="Control",
            is_headline=True,
        ),
        Measure(
            "calibration_error_plain",
            "Calibration error, chance included",
            "probability",
            "As it is found: to be held against what an exactly right posterior gives.",
            "It is above 0 for few segments even when the model is right.",
            group="Control",
        ),
        Measure(
            "calibration_error_by_chance",
            "Calibration error by chance alone",
            "probability",
            "What an exactly right posterior gives on these segments, chance included: 95 of 100 lie between least and most.",
            "It says nothing of the model but how sure it is.",
            lower_is_better=None,
            group="Control",
            of="of",
        ),
        Measure(
            "reliability",
            "Reliability",
            "share good",
            "Segments that the judge finds good among those to which the model gives such a probability: equal to it is calibrated.",
            "A model that knows only the base rate is well calibrated.",
            lower_is_better=None,
            group="Control",
            at="posterior",
        ),
    ),
    measure_subject,
)
