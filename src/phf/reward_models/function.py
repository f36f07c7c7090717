"""A user's own Python function, or reward model, named as `module:function`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import get_args

from phf.code import load_code, refuse_exit
from phf.errors import PHFError
from phf.records import MAX_SCORE, Identity
from phf.reward_models.protocol import RewardModel, SegmentRewardModel, Unit, Unscored


class FunctionRewardModel(SegmentRewardModel):
    """Scores of a function `f(texts: list[str]) -> list[float]`, segment by segment; higher = worse.

    The function may carry the attributes `unit` (default "arbitrary units"), `display_scale` (1) and `hit_threshold`
    (0.5).
    """

    def __init__(self, function: Callable[[list[str]], Sequence[float]], identity: Identity) -> None:
        """Wrap a function.

        Raises:
            PHFError: its `unit` is not one of the protocol's, or one of its numbers is none.
        """
        self.identity = identity
        self.unit: Unit = getattr(function, "unit", "arbitrary units")
        if self.unit not in get_args(Unit):
            raise PHFError(
                f"unit {self.unit!r} of {identity.name} is not known; choose {', '.join(get_args(Unit))}"
            )
        self.display_scale = getattr(function, "display_scale", 1.0)
        self.hit_threshold = getattr(function, "hit_threshold", 0.5)
        _check_numbers(self)
        self._function = function

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """What the function says of each text."""
        scores = list(self._function(list(texts)))
        for index, score in enumerate(scores):
            if not isinstance(score, Unscored):
                try:
                    scores[index] = float(score)
                except (TypeError, ValueError, OverflowError):
                    raise PHFError(
                        f"{self.identity.name} gave {score!r} for a text; it must give a number, or NaN"
                    ) from None
        return scores


def load_function(spec: str) -> RewardModel:
    """Load `module:function`, from the installed packages or the current folder.

    A function, an object with the RewardModel protocol, or a class of such objects, built without arguments. The hash of
    the source file enters the identity, so an edited function is another reward model.

    Raises:
        PHFError: the module cannot be imported, has no such name, or what it names is neither function nor reward model.
    """
    found, source = load_code(spec)
    sources = {"sources": source}
    if isinstance(found, type):
        try:
            with refuse_exit(f"class {spec}"):
                found = found()
        except TypeError as error:
            raise PHFError(
                f"class {spec} cannot be built without arguments ({error}); name a function or object"
            ) from None
    if _is_reward_model(found):
        try:
            found.identity = replace(found.identity, parameters={**found.identity.parameters, **sources})
        except AttributeError:
            raise PHFError(f"the identity of {spec} cannot be set; make it a plain attribute") from None
        model: RewardModel = found
        _check_numbers(model)
        return model
    if not callable(found):
        raise PHFError(
            f"{spec} is a {type(found).__name__}; it must be a function of a list of texts, or a subclass "
            "of phf.reward_models.SegmentRewardModel or RewardModel"
        )
    return FunctionRewardModel(found, Identity(spec.replace(":", "."), "1", parameters=sources))


def _check_numbers(model: RewardModel) -> None:
    """Refuse a scale or threshold with which nothing can be shown or counted."""
    scale, threshold = model.display_scale, model.hit_threshold
    if not (isinstance(scale, Real) and 0 < scale <= MAX_SCORE):
        raise PHFError(
            f"display_scale {scale!r:.50} of {model.identity.name} must be above 0, up to {MAX_SCORE:g}"
        )
    if not (isinstance(threshold, Real) and abs(threshold) <= MAX_SCORE):
        raise PHFError(
            f"hit_threshold {threshold!r:.50} of {model.identity.name} must be a number within ±{MAX_SCORE:g}"
        )


def _is_reward_model(value: object) -> bool:
    return all(
        hasattr(value, name)
        for name in ("identity", "unit", "display_scale", "hit_threshold", "score", "trim_sample")
    )
