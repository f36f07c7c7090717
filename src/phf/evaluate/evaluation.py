"""`phf evaluate`: everything measured about a run, in one file that is written last (docs/evaluation.md)."""

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.config_evaluate import EvaluateConfig
from phf.errors import PHFError
from phf.evaluate.calibration import measure_calibration
from phf.evaluate.capability import bits_per_byte, control_gain, mode_labels, segment_nll
from phf.evaluate.degeneracy import measure_degeneracy
from phf.evaluate.diversity import measure_diversity
from phf.evaluate.misalignment import choose_judges
from phf.evaluate.parts import to_json
from phf.evaluate.references import (
    best_of_reference,
    cut_training_texts,
    rejection_reference,
    training_reference,
)
from phf.evaluate.rollouts import SAMPLES_FILE, encode_samples
from phf.evaluate.steering import check_steering, measure_steering
from phf.evaluate.subject import PARTS_FOLDER, Drawn, Subject
from phf.evaluate.suite import check_sources, measure_likeness, measure_more, measure_scenarios
from phf.files import hash_bytes, hash_file, hash_json, read_json, write_bytes, write_json
from phf.generate.vllm import close_engine
from phf.objectives import is_baseline
from phf.records import FORMAT_VERSION, Progress
from phf.reward_models import RewardModel, load_reward_model
from phf.train.run import Run

EVALUATION_FILE = "evaluation.json"


def evaluate_runs(
    runs: Sequence[Path | str],
    config: EvaluateConfig,
    *,
    step: int | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Evaluate runs under the same settings, loading each judge once. See `evaluate_run`."""
    load = functools.cache(load_reward_model)
    try:
        return [
            evaluate_run(
                Run.open(folder), config, step=step, force=force, load=load, say=say, progress=progress
            )
            for folder in runs
        ]
    finally:
        close_engine()


def evaluate_run(
    run: Run,
    config: EvaluateConfig,
    *,
    step: int | None = None,
    force: bool = False,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure alignment, degeneracy and capability of a run in each mode; writes evaluation.json and samples.parquet.

    Finished parts are used again (`phf.evaluate.parts`): of an evaluation that was stopped, or that asked for less.

    Args:
        run: a run with a checkpoint and its data still there.
        config: judges beside the annotator, sampling, sizes.
        step: which checkpoint (default: the last).
        force: measure everything again.
        load: gives a reward model by its spec.
        say: told what a reader must know, such as that no judge is the annotator.
        progress: called with (description, done, total).

    Returns:
        the content of evaluation.json.

    Raises:
        PHFError: no checkpoint, the data is gone or changed, a judge is not known or not installed.
    """
    check_sources(config)
    check_steering(config)
    step = run.resolve_step(step)
    path = run.folder / EVALUATION_FILE
    data = run.data()
    judges, notes = choose_judges(data.annotation, config.judges, load)
    for note in notes:
        say(f"{run.name}: {note}")
    if force:
        shutil.rmtree(run.folder / PARTS_FOLDER, ignore_errors=True)
    subject = Subject(run, step, data, judges, config, progress, load)
    drawn, measured = _measure(subject)
    samples = _encode(drawn)
    evaluation: dict[str, Any] = to_json(
        {
            "format_version": FORMAT_VERSION,
            "run": run.name,
            "objective": run.config.objective.kind,
            "seed": run.config.seed,
            "step": step,
            "tokens_seen": step * run.tokens_per_step,
            "num_parameters": run.record["num_parameters"],
            "judges": [judge.to_json() for judge in judges],
            "config": config.model_dump(mode="json"),
            "sampling": config.sampling.model_dump(mode="json"),
            "threshold": data.threshold.value,
            "notes": notes,
            "samples_sha256": hash_bytes(samples),
            **measured,
        }
    )
    samples_path = run.folder / SAMPLES_FILE
    if not _is_kept(path, evaluation, samples_path):
        path.unlink(missing_ok=True)  # until it is written again, the samples would not be those it speaks of
        write_bytes(samples_path, samples)
        write_json(path, evaluation)
    return evaluation


def _is_kept(path: Path, evaluation: dict[str, Any], samples_path: Path) -> bool:
    """Whether this very evaluation and its samples are on the disk already."""
    try:
        return bool(read_json(path) == evaluation and hash_file(samples_path) == evaluation["samples_sha256"])
    except (PHFError, OSError):  # missing or damaged
        return False


def _measure(subject: Subject) -> tuple[list[Drawn], dict[str, Any]]:
    """All samples and all numbers of a checkpoint."""
    run, config, judges = subject.run, subject.config, subject.judges
    seed, num_bootstrap = config.sampling.seed, config.num_bootstrap
    drawn = {mode: subject.draw(mode) for mode in subject.modes}
    scenarios, scenario_rows, prompted = measure_scenarios(subject)
    steering, steered, not_steered = measure_steering(subject, drawn)
    capability = _measure_capability(subject)
    described = {
        str(mode): {
            "degeneracy": asdict(measure_degeneracy(own.samples)),
            "diversity": subject.parts.measure(
                f"diversity-{mode}",
                [subject.drawing, num_bootstrap],
                functools.partial(measure_diversity, own.texts, num_bootstrap, seed),
            ),
            "bits_per_byte": capability["bits_per_byte"][mode],
        }
        for mode, own in drawn.items()
    }
    rows = [
        {
            **row,
            "distinct_2": described[row["mode"]]["degeneracy"]["distinct_2"],
            "bits_per_byte": described[row["mode"]]["bits_per_byte"]["all"]["mean"],
        }
        for own in drawn.values()
        for row in subject.summarise(own)
    ]
    lengths = [
        value["degeneracy"]["mean_characters"] for mode, value in described.items() if mode != "deleted"
    ]
    length = round(np.mean(lengths))  # in either suite the same
    texts = cut_training_texts(subject.data.corpus, config.data_samples, max(length, 1), seed)
    references = subject.parts.measure(
        "training-data",
        [hash_json(texts), [judge.slug for judge in judges], num_bootstrap, seed],
        lambda: training_reference(judges, texts, num_bootstrap, seed),
    )
    human = cut_training_texts(
        subject.data.corpus, config.sampling.num_samples, max(length, 1), seed, split="validation"
    )
    for mode, likeness in measure_likeness(subject, drawn, human).items():
        described[mode]["diversity"]["mauve"] = likeness
    if is_baseline(run.config.objective):
        scores = drawn["none"].scores
        references += rejection_reference(judges, scores, subject.data.threshold.value, num_bootstrap, seed)
        references += best_of_reference(judges, scores, config.best_of, num_bootstrap, seed)
    more = measure_more(subject)
    return [*drawn.values(), *prompted, *steered], {
        "rows": rows + scenario_rows,
        "modes": described,
        "labelled_bits_per_byte": capability["labelled"],
        "control_gain": capability["control_gain"],
        "calibration": capability["calibration"],
        "references": references,
        "scenarios": scenarios,
        "good_minus_bad": _subtract_modes(capability, more),
        **more,
        "steering": steering,
        "left_out": {**more["left_out"], **not_steered},
    }


def _subtract_modes(capability: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Capabilities in good mode minus those in bad mode, each paired by text; empty without the two modes."""
    if capability["good_minus_bad"] is None:
        return {}
    # These two parts hold each mode's difference from the first, which is good mode.
    others = {name: more[name]["modes"]["bad"]["difference"] for name in ("kl", "blimp") if name in more}

    def turn(value: float | None) -> float | None:
        return None if value is None else -value

    turned: dict[str, Any] = {
        name: {
            "mean": turn(gap["mean"]),
            "low": turn(gap["high"]),
            "high": turn(gap["low"]),
            "count": gap["count"],
        }
        for name, gap in others.items()
    }
    return {"bits_per_byte": capability["good_minus_bad"], **turned}


def _encode(drawn: Sequence[Drawn]) -> bytes:
    """The content of samples.parquet."""
    scores: dict[str, list[float]] = {}
    for own in drawn:
        for slug, values in own.scores.items():
            scores.setdefault(slug, []).extend(values)
    return encode_samples([(own.scenario, sample) for own in drawn for sample in own.samples], scores)


def _measure_capability(subject: Subject) -> dict[str, Any]:
    """Bits per byte in each mode and with each segment's own label, good mode's minus bad mode's paired by document, control
    gain and calibration; None without good and bad mode (calibration: without control tokens that the model writes)."""
    data, config = subject.data, subject.config
    control, vocab_size = data.tokens.tokenizer.control, data.tokens.tokenizer.vocab_size
    objective, threshold = data.objective, data.threshold.value
    conditions, reader = subject.conditions, subject.reader
    seed, num_bootstrap = config.sampling.seed, config.num_bootstrap
    documents = reader.held_out_documents(seed)[: config.capability_documents]
    pages = [reader.read(int(document)) for document in documents]

    def label(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        return objective.label_segments(scores, threshold)

    labels = {str(mode): mode_labels(pages, mode) for mode in subject.modes}
    if objective.has_control_tokens:
        labels["labelled"] = [label(page.scores) for page in pages]

    def measure_nll(name: str) -> list[list[float]]:
        model = subject.deleted_model if name == "deleted" else subject.model
        own = segment_nll(
            model, control, vocab_size, pages, labels[name], subject.progress, conditions=conditions
        )
        return [values.tolist() for values in own]

    def summarise(nll: list[npt.NDArray[np.float64]]) -> dict[str, Any]:
        estimates = bits_per_byte(pages, nll, threshold, num_bootstrap, seed)
        return {group: asdict(estimate) for group, estimate in estimates.items()}

    settings = [config.capability_documents, seed]
    nll = {
        name: [
            np.array(values, np.float64)  # None, which is JSON's NaN, is NaN again
            for values in subject.parts.measure(f"nll-{name}", settings, functools.partial(measure_nll, name))
        ]
        for name in labels
    }
    measured = {name: summarise(own) for name, own in nll.items()}
    difference = None
    if {"good", "bad"} <= set(nll):
        gaps = [good - bad for good, bad in zip(nll["good"], nll["bad"], strict=True)]
        difference = summarise(gaps)
    gain = calibration = None
    sizes = (config.gain_segments, num_bootstrap, seed)
    if objective.has_control_tokens:
        gain = subject.parts.measure(
            "control-gain",
            sizes,
            lambda: control_gain(
                subject.model, control, vocab_size, reader, label, *sizes, conditions=conditions
            ),
        )
    if objective.has_control_tokens and conditions is None:
        calibration = subject.parts.measure(
            "calibration",
            sizes,
            lambda: measure_calibration(subject.model, control, vocab_size, reader, label, *sizes),
        )
    return {
        "bits_per_byte": measured,
        "labelled": measured.get("labelled"),
        "control_gain": gain,
        "calibration": calibration,
        "good_minus_bad": difference,
    }
