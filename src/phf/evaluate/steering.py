"""Methods of steering, measured beside plain sampling of the same mode: same judges, settings and random numbers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.config import ObjectiveConfig, SamplingConfig, write_spec
from phf.config_evaluate import EvaluateConfig
from phf.config_steer import ControlSteer, Direction, Rejection, SteerConfig
from phf.corpus.annotation import Annotation
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.evaluate.capability import PageReader, bits_per_byte, mode_labels, segment_nll
from phf.evaluate.degeneracy import measure_degeneracy
from phf.evaluate.diversity import measure_diversity
from phf.evaluate.leaks import HeldOutSegments
from phf.evaluate.rollouts import open_target
from phf.evaluate.subject import Drawn, Subject
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.objectives import has_control_tokens, is_additive
from phf.records import Mode, Progress, Sample
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.steer.directions import find_directions, subtract_directions
from phf.steer.plain import Writer, count_passes
from phf.steer.steering import needs_control_tokens, needs_score, steer
from phf.steer.streams import Steered
from phf.train.run import Run

NUM_TEXTS = 256
"""Held-out segments that directions are estimated on, half of them good."""

Load = Callable[[str], RewardModel]


@dataclass(frozen=True)
class Aids:
    """What a method needs beside a model.

    Attributes:
        reward_model: whose scores it goes by.
        threshold: of rejection.
        texts: token ids of held-out segments, for directions.
    """

    reward_model: RewardModel | None = None
    threshold: float | None = None
    texts: Sequence[Sequence[int]] = ()

    def steer(
        self,
        target: Target,
        sampling: SamplingConfig,
        config: SteerConfig,
        prompts: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Steered:
        """Draw samples; the reward model's slug is among the facts."""

        def score(texts: Sequence[str]) -> npt.NDArray[np.float64]:
            assert self.reward_model is not None
            return np.array(score_samples(self.reward_model, texts), np.float64)

        style = config.style if isinstance(config, ControlSteer) else sampling.control
        steered = steer(
            target.model,
            target.tokenizer,
            target.mode,
            sampling,
            config,
            segments=target.segments,
            score=score if self.reward_model is not None else None,
            threshold=self.threshold,
            texts=self.texts,
            prompts=[target.encode(prompt, style) for prompt in prompts] or None,
            is_folded=target.is_folded,
            progress=progress,
        )
        if self.reward_model is not None:
            steered.facts["reward_model"] = self.reward_model.identity.slug
        return steered


def check_method(objective: ObjectiveConfig, config: SteerConfig) -> None:
    """
    Raises:
        PHFError: the method needs control tokens, and a model of this objective has none.
    """
    if not needs_control_tokens(config) or (has_control_tokens(objective) and not is_additive(objective)):
        return
    why = "adds them to its inputs" if is_additive(objective) else "does not learn any"
    raise PHFError(
        f"{write_spec(config)} needs control tokens in the text, and {objective.kind} {why}; "
        "give best-of-n, rejection, or smc:twist=false"
    )


def steer_run(
    folder: Path | str,
    mode: Mode,
    sampling: SamplingConfig,
    config: SteerConfig,
    *,
    prompts: Sequence[str] = (),
    progress: Progress | None = None,
) -> Steered:
    """Draw samples from a run's last checkpoint in one mode, steered.

    Args:
        prompts: texts to continue; sample i continues text i modulo their number.

    Raises:
        PHFError: the run cannot be steered so, or what the method needs (the reward model, or for a direction the run's
            data) is not there; see also `sample_run`.
    """
    run = Run.open(folder)
    check_method(run.config.objective, config)
    target = open_target(run, mode)
    threshold = float(run.record["good"]["value"])

    def open_reader() -> PageReader:
        data = run.data()
        return PageReader(data.tokens, data.scores, run.config.data.context)

    aids = _find_aids(run, config, threshold, open_reader, load_reward_model, sampling.seed)
    return aids.steer(target, sampling, config, prompts, progress)


def _find_aids(
    run: Run,
    config: SteerConfig,
    threshold: float,
    open_reader: Callable[[], PageReader],
    load: Load,
    seed: int,
) -> Aids:
    """
    Args:
        threshold: the run's line between good and bad, by its annotator.
    """
    if isinstance(config, Direction) and config.of == "difference":
        segments = HeldOutSegments.read(open_reader(), threshold, seed)
        return Aids(texts=[*segments.good[: NUM_TEXTS // 2], *segments.bad[: NUM_TEXTS // 2]])
    if not needs_score(config):
        return Aids()
    spec: str | None = getattr(config, "reward_model", None)
    if spec is not None:
        reward_model = load(spec)
        is_own = reward_model.identity.to_json() == run.record["reward_model"]
        if isinstance(config, Rejection) and config.threshold is None and not is_own:
            raise PHFError(
                f"--steer rejection: the run's line {threshold:g} is of {run.record['reward_model']['name']}, not of {spec}; "
                f"give rejection:reward_model={spec},threshold=NUMBER"
            )
        return Aids(reward_model, threshold)
    annotation = Annotation.open(
        Corpus.open(Path(run.config.corpus)), run.config.reward_model, run.config.segments
    )
    if annotation.identity.version == "imported":
        raise PHFError(
            f"--steer {config.kind}: the scores of {annotation.slug} were imported, and what made them cannot be run here; "
            f"give {config.kind}:reward_model=NAME"
        )
    return Aids(load(str(annotation.manifest["reward_model_spec"])), threshold)


def check_steering(config: EvaluateConfig) -> None:
    """Refuse, before anything is drawn, what no run could do.

    Raises:
        PHFError: a method is given twice, or the engine is vLLM.
    """
    specs = [write_spec(method) for method in config.steer]
    if twice := next((spec for spec in specs if specs.count(spec) > 1), None):
        raise PHFError(f"--steer {twice} is given twice; give each method once")
    if specs and config.sampling.engine == "vllm":
        raise PHFError(f"--steer {specs[0]} needs the engine phf, not vllm; give --engine phf")


def measure_steering(
    subject: Subject, plain: Mapping[Mode, Drawn]
) -> tuple[list[dict[str, Any]], list[Drawn], dict[str, str]]:
    """Every method that was asked for, in the mode that one would release.

    Args:
        plain: the samples of each mode without steering, which have the same random numbers.

    Returns:
        what was measured of each method; their samples; why a method was left out, by its name.

    Raises:
        PHFError: see `steer_run`.
    """
    results, drawn, left_out = [], [], {}
    for config in subject.config.steer:
        spec = write_spec(config)
        try:
            check_method(subject.run.config.objective, config)
            result, own = _measure_method(subject, config, spec, plain[subject.modes[0]])
        except PHFError as error:
            left_out[f"steer {spec}"] = str(error)
            continue
        results.append({**result, "plain_passes_per_token": _measure_plain_cost(subject)})
        drawn.append(own)
    return results, drawn, left_out


def _measure_plain_cost(subject: Subject) -> float | None:
    """Forward passes per token of plain sampling, counted as a method's are; None without text."""
    target, sampling = subject.target(subject.modes[0]), subject.config.sampling

    def count() -> float:
        writer = Writer(
            target.model,
            target.tokenizer,
            target.mode,
            sampling,
            target.segments,
            is_folded=target.is_folded,
            progress=subject.progress,
        )
        with count_passes(target.model) as passes:
            samples = writer.write()
        return passes.per_token(samples)

    cost: float | None = subject.parts.measure("steer-plain", subject.drawing, count)
    return cost


def _measure_method(
    subject: Subject, config: SteerConfig, spec: str, plain: Drawn
) -> tuple[dict[str, Any], Drawn]:
    """One method: its cost, and its scores with their paired differences from plain sampling."""
    sampling, num_bootstrap = subject.config.sampling, subject.config.num_bootstrap
    seed, mode = sampling.seed, plain.mode
    aids = _find_aids(
        subject.run, config, subject.data.threshold.value, lambda: subject.reader, subject.load, seed
    )
    identity = aids.reward_model.identity.slug if aids.reward_model is not None else None
    settings = [config.model_dump(mode="json"), mode, identity, aids.threshold, len(aids.texts)]
    found = subject.parts.measure(
        f"steer-{spec}",
        [*settings, subject.drawing],
        lambda: asdict(aids.steer(subject.target(mode), sampling, config, progress=subject.progress)),
    )
    samples = [Sample(**sample) for sample in found["samples"]]
    texts = [sample.text for sample in samples]
    scores = {judge.slug: subject.score(judge, f"steer-{spec}", texts) for judge in subject.judges}
    own = Drawn(f"steer {spec}", mode, samples, scores)
    rows = [
        {**row, "difference": asdict(_subtract(own, plain, row["judge"], num_bootstrap, seed))}
        for row in subject.summarise(own)
    ]
    diversity = subject.parts.measure(
        f"diversity-steer-{spec}",
        [*settings, subject.drawing, num_bootstrap],
        functools.partial(measure_diversity, texts, num_bootstrap, seed),
    )
    bits = None
    if isinstance(config, Direction):
        bits = subject.parts.measure(
            f"bits-steer-{spec}",
            [*settings, subject.config.capability_documents, num_bootstrap, seed],
            lambda: _measure_bits(subject, config, mode, aids),
        )
    return {
        "spec": spec,
        "mode": mode,
        "passes_per_token": found["passes_per_token"],
        "facts": found["facts"],
        "rows": rows,
        "degeneracy": asdict(measure_degeneracy(samples)),
        "diversity": diversity,
        "bits_per_byte": bits,
    }, own


def _subtract(own: Drawn, plain: Drawn, slug: str, num_bootstrap: int, seed: int) -> Any:
    """Mean of the differences of samples of one index; a pair that lacks a score is left out."""
    gaps = np.array(own.scores[slug]) - np.array(plain.scores[slug])
    return bootstrap_mean(gaps, num_bootstrap, seed)


def _measure_bits(subject: Subject, config: Direction, mode: Mode, aids: Aids) -> dict[str, Any]:
    """Bits per byte of held-out text in a mode while the directions are subtracted: what they cost as language model."""
    seed, control = subject.config.sampling.seed, subject.tokenizer.control
    documents = subject.reader.held_out_documents(seed)[: subject.config.capability_documents]
    pages = [subject.reader.read(int(document)) for document in documents]
    directions = find_directions(subject.model, control, config, aids.texts)
    with subtract_directions(subject.model, directions, config.scale):
        nll = segment_nll(
            subject.model,
            control,
            subject.tokenizer.vocab_size,
            pages,
            mode_labels(pages, mode),
            subject.progress,
        )
    found = bits_per_byte(pages, nll, subject.data.threshold.value, subject.config.num_bootstrap, seed)
    return {group: asdict(estimate) for group, estimate in found.items()}
