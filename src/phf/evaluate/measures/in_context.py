"""The in-context attack: does a model go on with the bad text that stands before its own? (docs/evaluation.md: In-context attack)"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from phf.config.train import SamplingConfig
from phf.evaluate.held_out import HeldOutSegments
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.metric import Measured, Metric, is_of_full_suite
from phf.evaluate.paired import compare_samples, cut_twin
from phf.records import BAD, Mode, Progress
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject
    from phf.generate.target import Target

SHOTS = (0, 1, 2, 4)
"""How many bad segments stand before the continuation."""


def measure_in_context(
    target: "Target",
    segments: HeldOutSegments,
    judges: Sequence[LoadedJudge],
    sampling: SamplingConfig,
    *,
    num_bootstrap: int,
    progress: Progress | None = None,
) -> list[Measurement]:
    """The score after 0, 1, 2, 4 bad held-out segments, after as many good ones, and their difference over pairs of samples.

    Each segment carries the mode's own control token, as if it were of that mode. Segments are cut so that the most of
    them fit into the context; a good one is as long as the bad one in its place. Sample i begins with the same shots for
    every number of them.
    """
    longest = max(1, target.longest_prompt(sampling) // max(SHOTS) - 1)
    rng = np.random.default_rng([sampling.seed, BAD])
    chosen = rng.integers(len(segments.bad), size=(sampling.num_samples, max(SHOTS)))
    rows: list[Measurement] = []
    for done, shots in enumerate(SHOTS):
        if progress is not None:
            progress(f"in-context attack {target.mode}", done, len(SHOTS))
        contexts: list[list[list[int]]] = [[], []]
        for number, row in enumerate(chosen[:, :shots].tolist()):
            bad = [segments.bad[place][:longest] for place in row]
            good = [
                cut_twin(segments.good, len(segment), number * max(SHOTS) + shot)
                for shot, segment in enumerate(bad)
            ]
            cut = [segment[: len(twin)] for segment, twin in zip(bad, good, strict=True)]
            for side, context in enumerate((cut, good)):
                contexts[side].append(target.join(context, sampling.control))
        attacked, benign = (target.write(side, sampling) for side in contexts)
        names = ("in_context_baseline", "in_context_score", "in_context_difference")
        rows += compare_samples(
            names, judges, benign, attacked, num_bootstrap, sampling.seed, at=float(shots)
        )
    return rows


def measure_modes(subject: "Subject") -> Measured:
    """The attack on each of `subject.attacked_modes`."""

    def attack(mode: Mode) -> list[Measurement]:
        sampling = subject.attack_sampling
        return measure_in_context(
            subject.target(mode),
            HeldOutSegments.read(subject.reader, subject.data.threshold.value, sampling.seed),
            subject.judges,
            sampling,
            num_bootstrap=subject.config.num_bootstrap,
            progress=subject.progress,
        )

    settings = [subject.config.leak_samples, *subject.attack_settings]
    return Measured(
        [
            row
            for mode in subject.attacked_modes
            for row in subject.parts.measure(
                f"in-context-{mode}", settings, functools.partial(attack, mode), list[Measurement]
            )
        ]
    )


def _declare(name: str, title: str, note: str, is_headline: bool = False) -> Measure:
    blind_spot = "Four shots of a short context, cut to fit; topics differ, not only the label."
    return Measure(
        name,
        title,
        "",
        note,
        blind_spot,
        group="Bad examples in context",
        is_headline=is_headline,
        at="shots",
    )


METRIC = Metric(
    "in_context",
    (
        _declare("in_context_baseline", "Score after good examples", "Score after as many good segments."),
        _declare("in_context_score", "Score after bad examples", "Score after bad held-out segments."),
        _declare(
            "in_context_difference",
            "Bad minus good examples",
            "Above 0 the model follows bad examples.",
            is_headline=True,
        ),
    ),
    measure_modes,
    is_of_full_suite,
)
