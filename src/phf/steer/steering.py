"""Steering at inference: one entrance for all methods (docs/steering.md)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from phf.config import SamplingConfig, SegmentKind
from phf.config_steer import (
    SMC,
    BestOfN,
    ControlSteer,
    Direction,
    Guidance,
    Lookahead,
    Rejection,
    SteerConfig,
)
from phf.errors import PHFError
from phf.generate.engine import TextTokenizer
from phf.records import Mode, Progress
from phf.steer.choose import Score, generate_best_of_n, generate_with_rejection
from phf.steer.directions import generate_with_direction
from phf.steer.guidance import generate_guided
from phf.steer.lookahead import generate_with_lookahead
from phf.steer.plain import Writer, count_passes
from phf.steer.smc import generate_smc
from phf.steer.streams import Steered

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def needs_control_tokens(config: SteerConfig) -> bool:
    """Whether a method works only where the model reads and writes control tokens whose meaning it has learned."""
    return not isinstance(config, BestOfN | Rejection) and not (isinstance(config, SMC) and not config.twist)


def needs_score(config: SteerConfig) -> bool:
    """Whether a method asks a reward model."""
    return isinstance(config, BestOfN | Rejection | SMC)


def steer(
    model: "PreTrainedModel",
    tokenizer: TextTokenizer,
    mode: Mode,
    sampling: SamplingConfig,
    config: SteerConfig,
    *,
    segments: SegmentKind,
    score: Score | None = None,
    threshold: float | None = None,
    texts: Sequence[Sequence[int]] = (),
    prompts: Sequence[Sequence[int]] | None = None,
    is_folded: bool = False,
    progress: Progress | None = None,
) -> Steered:
    """Draw `sampling.num_samples` texts in a mode, steered by one method.

    Args:
        model, tokenizer, mode, sampling, segments, prompts, is_folded, progress: see `phf.generate.engine.generate`.
        config: the method. Of a model that has not learned control tokens (MLE), `needs_control_tokens` says which
            methods mean anything; this function cannot know.
        score: scores texts, for the methods of `needs_score`.
        threshold: of rejection, where its config has none.
        texts: token ids of held-out segments, for directions.

    Raises:
        PHFError: what the method needs is not there; the engine is vLLM; see also `phf.generate.engine.generate`.
    """
    if sampling.engine == "vllm":
        raise PHFError(f"--steer {config.kind} needs the engine phf, not vllm; give --engine phf")
    if needs_control_tokens(config) and (is_folded or mode == "deleted"):
        why = "adds good and bad to its inputs and writes no control tokens" if is_folded else "has none left"
        raise PHFError(
            f"--steer {config.kind} needs a model with control tokens, and this one {why}; "
            "give best-of-n, rejection, or smc:twist=false"
        )
    if isinstance(config, ControlSteer):
        if mode not in ("good", "bad"):
            raise PHFError(
                f"--steer control says how a mode's token is written, and mode {mode} has none; give --mode good"
            )
        sampling = sampling.model_copy(update={"control": config.style})
    writer = Writer(model, tokenizer, mode, sampling, segments, prompts, is_folded, progress)
    match config:
        case ControlSteer():
            with count_passes(model) as passes:
                samples = writer.write()
            steered = Steered(samples, passes.per_token(samples))
        case Direction():
            steered = generate_with_direction(writer, config, texts=texts)
        case BestOfN():
            steered = generate_best_of_n(writer, config, _given(score))
        case Rejection():
            threshold = threshold if config.threshold is None else config.threshold
            if threshold is None:
                raise PHFError("--steer rejection has no threshold; give rejection:threshold=NUMBER")
            steered = generate_with_rejection(writer, config, _given(score), threshold)
        case Guidance():
            steered = generate_guided(
                model,
                tokenizer,
                mode,
                sampling,
                config,
                segments=segments,
                prompts=prompts,
                progress=progress,
            )
        case Lookahead():
            steered = generate_with_lookahead(
                model,
                tokenizer,
                mode,
                sampling,
                config,
                segments=segments,
                prompts=prompts,
                progress=progress,
            )
        case SMC():
            steered = generate_smc(
                model,
                tokenizer,
                "untagged" if is_folded else mode,
                sampling,
                config,
                _given(score),
                segments=segments,
                prompts=prompts,
                progress=progress,
            )
            samples = [replace(sample, mode=mode) for sample in steered.samples]
            steered = replace(steered, samples=samples)
        case _:
            assert_never(config)
    return steered


def _given(score: Score | None) -> Score:
    assert score is not None, "the caller asks needs_score"
    return score
