"""Steering at inference: one entrance for all methods (docs/steering.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from phf.config.steer import (
    SMC,
    BestOfN,
    ControlSteer,
    Direction,
    Guidance,
    Lookahead,
    Rejection,
    SteerConfig,
)
from phf.config.train import SamplingConfig
from phf.errors import NotApplicableError, PHFError
from phf.generate.engine import Ids
from phf.generate.target import Target
from phf.records import Progress
from phf.reward_models import RewardModel, score_samples
from phf.steer.choose import generate_best_of_n, generate_with_rejection
from phf.steer.directions import generate_with_direction
from phf.steer.guidance import generate_guided
from phf.steer.lookahead import generate_with_lookahead
from phf.steer.smc import generate_smc
from phf.steer.streams import Score, Steered, count_passes


@dataclass(frozen=True)
class Aids:
    """What a method may need beside a target.

    Attributes:
        score: scores texts, for the methods of `needs_score`.
        reward_model: slug of what scores.
        threshold: of rejection, where its config has none.
        texts: token ids of held-out segments, for directions.
    """

    score: Score | None = None
    reward_model: str | None = None
    threshold: float | None = None
    texts: Sequence[Ids] = ()

    @classmethod
    def create(cls, reward_model: RewardModel, threshold: float) -> "Aids":
        """A reward model that scores samples, and good text ends at its threshold."""

        def score(texts: Sequence[str]) -> npt.NDArray[np.float64]:
            return np.array(score_samples(reward_model, texts), np.float64)

        return cls(score, reward_model.identity.slug, threshold)


def needs_control_tokens(config: SteerConfig) -> bool:
    """Whether a method works only where the model reads and writes control tokens whose meaning it has learned."""
    return not isinstance(config, BestOfN | Rejection) and not (isinstance(config, SMC) and not config.twist)


def needs_score(config: SteerConfig) -> bool:
    """Whether a method asks a reward model."""
    return isinstance(config, BestOfN | Rejection | SMC)


def choose_style(sampling: SamplingConfig, config: SteerConfig) -> SamplingConfig:
    """The settings with the style of control that the method writes and reads prompts in."""
    return (
        sampling.model_copy(update={"control": config.style})
        if isinstance(config, ControlSteer)
        else sampling
    )


def steer(
    target: Target,
    sampling: SamplingConfig,
    config: SteerConfig,
    aids: Aids,
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Draw `sampling.num_samples` texts in a mode, steered by one method.

    Args:
        target, sampling, prompts, progress: see `Target.write`.
        config: the method. Of a model that has not learned control tokens (MLE), `needs_control_tokens` says which
            methods mean anything; this function cannot know.

    Returns:
        the samples; the slug of the reward model that the method went by is among the facts.

    Raises:
        PHFError: what the method needs is not there; the engine is vLLM; see also `Target.write`.
    """
    mode, is_folded = target.mode, target.is_folded
    if sampling.engine == "vllm":
        raise PHFError(f"--steer {config.kind} needs the engine phf, not vllm; give --engine phf")
    if needs_control_tokens(config) and (is_folded or mode == "deleted"):
        why = "adds good and bad to its inputs and writes no control tokens" if is_folded else "has none left"
        raise NotApplicableError(
            f"--steer {config.kind} needs a model with control tokens, and this one {why}; "
            "give best-of-n, rejection, or smc:twist=false"
        )
    if isinstance(config, ControlSteer) and mode not in ("good", "bad"):
        raise NotApplicableError(
            f"--steer control says how a mode's token is written, and mode {mode} has none; give --mode good"
        )
    sampling = choose_style(sampling, config)
    steered = _steer(target, sampling, config, aids, prompts, progress)
    if aids.reward_model is not None:
        steered.facts["reward_model"] = aids.reward_model
    return steered


def _steer(
    target: Target,
    sampling: SamplingConfig,
    config: SteerConfig,
    aids: Aids,
    prompts: Sequence[Ids],
    progress: Progress | None,
) -> Steered:
    match config:
        case ControlSteer():
            with count_passes(target.model) as passes:
                samples = target.write(prompts, sampling, progress)
            return Steered.create(samples, passes.count, {})
        case Direction():
            return generate_with_direction(
                target, sampling, config, aids.texts, prompts=prompts, progress=progress
            )
        case BestOfN():
            return generate_best_of_n(
                target, sampling, config, _given(aids.score), prompts=prompts, progress=progress
            )
        case Rejection():
            threshold = aids.threshold if config.threshold is None else config.threshold
            if threshold is None:
                raise PHFError("--steer rejection has no threshold; give rejection:threshold=NUMBER")
            return generate_with_rejection(
                target, sampling, config, _given(aids.score), threshold, prompts=prompts, progress=progress
            )
        case Guidance():
            return generate_guided(target, sampling, config, prompts=prompts, progress=progress)
        case Lookahead():
            return generate_with_lookahead(target, sampling, config, prompts=prompts, progress=progress)
        case SMC():
            return generate_smc(
                target, sampling, config, _given(aids.score), prompts=prompts, progress=progress
            )
    assert_never(config)


def _given(score: Score | None) -> Score:
    assert score is not None, "the caller asks needs_score"
    return score
