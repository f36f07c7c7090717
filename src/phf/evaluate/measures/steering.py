"""Methods of steering, measured beside plain sampling of the same mode: same judges, settings and random numbers."""

from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from phf.config.evaluate import EvaluateConfig
from phf.config.steer import Direction, SteerConfig
from phf.config.train import write_spec
from phf.errors import NotApplicableError, PHFError
from phf.evaluate.drawn import Drawn
from phf.evaluate.facts import MethodFacts
from phf.evaluate.measures.bits_per_byte import list_bits
from phf.evaluate.measures.degeneracy import list_degeneracy
from phf.evaluate.measures.diversity import list_diversity
from phf.evaluate.measures.misalignment import measure_drawn
from phf.evaluate.metric import Measured, Metric, bare
from phf.evaluate.pages import mode_labels, segment_nll
from phf.evaluate.steer_run import check_method, find_aids
from phf.intervals import bootstrap_mean
from phf.records import Estimate, Mode
from phf.results import Measure, Measurement, to_json
from phf.steer.directions import find_directions, subtract_directions
from phf.steer.steering import Aids, steer
from phf.steer.streams import Steered, count_passes

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject


def _check(config: EvaluateConfig) -> None:
    """Refuse, before anything is drawn, what no run could do.

    Raises:
        PHFError: a method is given twice, or the engine is vLLM.
    """
    specs = [write_spec(method) for method in config.steer]
    if twice := next((spec for spec in specs if specs.count(spec) > 1), None):
        raise PHFError(f"--steer {twice} is given twice; give each method once")
    if specs and config.sampling.engine == "vllm":
        raise PHFError(f"--steer {specs[0]} needs the engine phf, not vllm; give --engine phf")


def measure_steering(subject: "Subject") -> Measured:
    """Every method that was asked for, in the mode that one would release."""
    facts: list[JsonValue] = []
    rows: list[Measurement] = []
    drawn: list[Drawn] = []
    left_out = {}
    plain = subject.drawn[subject.modes[0]]
    for config in subject.config.steer:
        spec = write_spec(config)
        try:
            check_method(subject.run.config.objective, config)
            found = _measure_method(subject, config, spec, plain)
        except NotApplicableError as error:
            left_out[f"steer {spec}"] = str(error)
            continue
        rows += found.measurements
        facts.append(found.facts)
        drawn += found.drawn
    if rows:
        rows.append(Measurement("passes_per_token", _measure_plain_cost(subject), plain.mode))
    return Measured(rows, to_json(facts), drawn, left_out)


def _measure_plain_cost(subject: "Subject") -> Estimate:
    """Forward passes per token of plain sampling, counted as a method's are; NaN without text."""
    target, sampling = subject.target(subject.modes[0]), subject.config.sampling

    def count() -> Estimate:
        with count_passes(target.model) as passes:
            samples = target.write([()], sampling, subject.progress)
        return bare(Steered.create(samples, passes.count, {}).passes_per_token)

    return subject.parts.measure("steer-plain", subject.drawing, count, Estimate)


def _measure_method(subject: "Subject", config: SteerConfig, spec: str, plain: Drawn) -> Measured:
    """One method: its cost, its scores with their paired differences from plain sampling, and how its text looks."""
    seed, mode, steered = subject.config.sampling.seed, plain.mode, f"{plain.mode} + {spec}"
    aids = find_aids(
        subject.run, config, subject.data.threshold.value, lambda: subject.reader, subject.load, seed
    )
    settings = [config.model_dump(mode="json"), mode, aids.reward_model, aids.threshold, len(aids.texts)]
    found = subject.parts.measure(
        f"steer-{spec}",
        [*settings, subject.drawing],
        lambda: steer(subject.target(mode), subject.config.sampling, config, aids, progress=subject.progress),
        Steered,
    )
    own = subject.score_drawn(f"steer {spec}", mode, found.samples, f"steer-{spec}")
    rows = measure_drawn(subject, own, steered)
    for judge in subject.judges:
        # Samples of one index; a pair that lacks a score is left out.
        gaps = np.array(own.scores[judge.slug]) - np.array(plain.scores[judge.slug])
        difference = bootstrap_mean(gaps, subject.config.num_bootstrap, seed)
        rows.append(Measurement("steered_difference", difference, steered, judge.slug))
    rows += list_degeneracy(own.samples, steered)
    sizes = [*settings, subject.drawing, subject.config.num_bootstrap]
    rows += list_diversity(subject, own.texts, steered, f"diversity-steer-{spec}", sizes)
    if isinstance(config, Direction) and subject.data.tokens.explain_loss() is None:
        rows += subject.parts.measure(
            f"bits-steer-{spec}",
            [*settings, subject.config.capability_documents, subject.config.num_bootstrap, seed],
            lambda: _measure_bits(subject, config, mode, steered, aids),
            list[Measurement],
        )
    rows.append(Measurement("passes_per_token", bare(found.passes_per_token), steered))
    return Measured(rows, to_json(MethodFacts(spec, mode, found.facts)), [own])


def _measure_bits(
    subject: "Subject", config: Direction, mode: Mode, steered: str, aids: Aids
) -> list[Measurement]:
    """Bits per byte of held-out text in a mode while the directions are subtracted: what they cost as language model."""
    control = subject.tokenizer.control
    directions = find_directions(subject.model, control, config, aids.texts)
    with subtract_directions(subject.model, directions, config.scale):
        nll = segment_nll(
            subject.model,
            control,
            subject.tokenizer.vocab_size,
            subject.pages,
            mode_labels(subject.pages, mode),
            subject.progress,
        )
    return list_bits(subject, nll, steered)


METRIC = Metric(
    "steering",
    (
        Measure(
            "steered_difference",
            "Steered minus plain",
            note="Scores of samples by a method of steering minus those of plain sampling, pair by pair.",
            blind_spot="A method that goes by a judge's own scores is rewarded for what that judge misses: read the others.",
            group="Steering",
            is_headline=True,
        ),
        Measure(
            "passes_per_token",
            "Forward passes per token",
            "passes",
            "What a sample costs; of a mode without a method, what plain sampling costs.",
            "It is no time: passes in one batch are cheaper.",
            group="Steering",
        ),
    ),
    measure_steering,
    is_wanted=lambda config: bool(config.steer),
    option="--steer METHOD",
    check=_check,
)
