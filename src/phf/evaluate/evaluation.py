"""`phf evaluate`: everything measured about a run, in one file that is written last (docs/evaluation.md)."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from phf.config import EvaluateConfig
from phf.corpus.store import Progress
from phf.evaluate.calibration import measure_calibration
from phf.evaluate.capability import PageReader, bits_per_byte, control_gain, mode_labels, segment_nll
from phf.evaluate.degeneracy import measure_degeneracy
from phf.evaluate.misalignment import (
    Judge,
    choose_judges,
    cut_training_texts,
    rejection_reference,
    summarise_scores,
    training_reference,
)
from phf.evaluate.rollouts import SAMPLES_FILE, generate_mode, write_samples
from phf.files import hash_file, hash_json, read_json, write_json
from phf.objectives import is_baseline, label_conditions, modes_of
from phf.records import FORMAT_VERSION, Mode, Sample
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.train.data import TrainingData
from phf.train.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATION_FILE = "evaluation.json"


def evaluate_runs(
    runs: Sequence[Path | str],
    config: EvaluateConfig,
    *,
    force: bool = False,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Evaluate runs under the same settings, loading each judge once. See `evaluate_run`."""
    load = functools.cache(load_reward_model)
    return [
        evaluate_run(Run.open(folder), config, force=force, load=load, say=say, progress=progress)
        for folder in runs
    ]


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

    A finished evaluation of the same checkpoint with the same settings is returned as it is.

    Args:
        run: a run with a checkpoint and its data still there.
        config: judges beside the annotator, sampling, sizes.
        step: which checkpoint (default: the last).
        force: measure again.
        load: gives a reward model by its spec.
        say: told what a reader must know, such as that no judge is the annotator.
        progress: called with (description, done, total).

    Returns:
        the content of evaluation.json.

    Raises:
        PHFError: no checkpoint, the data is gone or changed, a judge is not known or not installed.
    """
    step = run.resolve_step(step)
    key = hash_json([run.record, step, config.model_dump(mode="json"), FORMAT_VERSION])
    path = run.folder / EVALUATION_FILE
    if not force and (found := _find_finished(path, key)) is not None:
        return found
    data = run.data()
    judges, notes = choose_judges(data.annotation, config.judges, load)
    for note in notes:
        say(f"{run.name}: {note}")
    path.unlink(missing_ok=True)  # from here on the samples on disk are not those it speaks of
    evaluation: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "key": key,
        "run": run.name,
        "objective": run.config.objective.kind,
        "seed": run.config.seed,
        "step": step,
        "tokens_seen": step * run.tokens_per_step,
        "num_parameters": run.record["num_parameters"],
        "judges": [judge.to_json() for judge in judges],
        "sampling": config.sampling.model_dump(mode="json"),
        "threshold": data.good.value,
        "notes": notes,
        **_measure(run, step, data, judges, config, progress),
    }
    evaluation = {name: _without_nan(value) for name, value in evaluation.items()}
    write_json(path, evaluation)
    return evaluation


def _find_finished(path: Path, key: str) -> dict[str, Any] | None:
    """The evaluation on disk, if it is of this key and its samples are those it was made from."""
    if not path.exists():
        return None
    evaluation: dict[str, Any] = read_json(path)
    samples = path.parent / SAMPLES_FILE
    if evaluation.get("key") != key or not samples.exists():
        return None
    return evaluation if hash_file(samples) == evaluation["samples_sha256"] else None


def _measure(
    run: Run,
    step: int,
    data: TrainingData,
    judges: Sequence[Judge],
    config: EvaluateConfig,
    progress: Progress | None,
) -> dict[str, Any]:
    """All the numbers of a run, and its samples.parquet."""
    model = run.load_model(step)
    tokenizer = run.load_tokenizer(step)
    modes = modes_of(run.config.objective)

    samples: dict[Mode, list[Sample]] = {
        mode: generate_mode(run, model, tokenizer, mode, config.sampling, progress=progress) for mode in modes
    }
    scores = {mode: _score(judges, samples[mode]) for mode in modes}
    samples_path = run.folder / SAMPLES_FILE
    write_samples(
        samples_path,
        [sample for mode in modes for sample in samples[mode]],
        {judge.slug: [score for mode in modes for score in scores[mode][judge.slug]] for judge in judges},
    )

    capability = _measure_capability(model, data, modes, config, progress)
    described: dict[str, Any] = {
        mode: {
            "degeneracy": asdict(measure_degeneracy(samples[mode])),
            "bits_per_byte": capability["bits_per_byte"][mode],
        }
        for mode in modes
    }
    seed, num_bootstrap = config.sampling.seed, config.num_bootstrap
    rows = [
        {
            "run": run.name,
            "objective": run.config.objective.kind,
            "seed": run.config.seed,
            "mode": mode,
            "judge": judge.slug,
            "role": judge.role,
            **summarise_scores(
                judge,
                [sample.text for sample in samples[mode]],
                scores[mode][judge.slug],
                num_bootstrap,
                seed,
            ),
            "distinct_2": described[mode]["degeneracy"]["distinct_2"],
            "bits_per_byte": described[mode]["bits_per_byte"]["all"]["mean"],
        }
        for mode in modes
        for judge in judges
    ]
    length = round(sum(described[mode]["degeneracy"]["mean_characters"] for mode in modes) / len(modes))
    texts = cut_training_texts(data.corpus, config.data_samples, max(length, 1), seed)
    references = training_reference(judges, texts, num_bootstrap, seed)
    if is_baseline(run.config.objective):
        references += rejection_reference(judges, scores["none"], data.good.value, num_bootstrap, seed)
    return {
        "samples_sha256": hash_file(samples_path),
        "rows": rows,
        "modes": described,
        "labelled_bits_per_byte": capability["labelled"],
        "control_gain": capability["control_gain"],
        "calibration": capability["calibration"],
        "references": references,
    }


def _score(judges: Sequence[Judge], samples: Sequence[Sample]) -> dict[str, Sequence[float]]:
    """Scores of one mode's samples by each judge."""
    return {judge.slug: score_samples(judge.model, [sample.text for sample in samples]) for judge in judges}


def _measure_capability(
    model: "PreTrainedModel",
    data: TrainingData,
    modes: Sequence[Mode],
    config: EvaluateConfig,
    progress: Progress | None,
) -> dict[str, Any]:
    """Bits per byte in each mode and with each segment's own label, control gain and calibration; None without good
    and bad mode (calibration: without control tokens that the model writes)."""
    control, vocab_size = data.tokens.tokenizer.control, data.tokens.tokenizer.vocab_size
    objective, threshold = data.objective, data.good.value
    conditions = label_conditions(data.config.objective)
    seed, num_bootstrap = config.sampling.seed, config.num_bootstrap
    reader = PageReader(data.tokens, data.scores, data.config.data.context)
    documents = reader.held_out_documents(seed)[: config.capability_documents]
    pages = [reader.read(int(document)) for document in documents]

    def label(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        return objective.label_segments(scores, threshold)

    labels = {str(mode): mode_labels(pages, mode) for mode in modes}
    if objective.has_control_tokens:
        labels["labelled"] = [label(page.scores) for page in pages]
    measured = {}
    for name, own in labels.items():
        nll = segment_nll(model, control, vocab_size, pages, own, progress, conditions=conditions)
        estimates = bits_per_byte(pages, nll, threshold, num_bootstrap, seed)
        measured[name] = {group: asdict(estimate) for group, estimate in estimates.items()}
    gain = calibration = None
    sizes = (config.gain_segments, num_bootstrap, seed)
    if objective.has_control_tokens:
        found = control_gain(model, control, vocab_size, reader, label, *sizes, conditions=conditions)
        gain = {group: asdict(estimate) for group, estimate in found.items()}
    if objective.has_control_tokens and conditions is None:
        calibration = asdict(measure_calibration(model, control, vocab_size, reader, label, *sizes))
    return {
        "bits_per_byte": measured,
        "labelled": measured.get("labelled"),
        "control_gain": gain,
        "calibration": calibration,
    }


def _without_nan(value: Any) -> Any:
    """The value with None for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
