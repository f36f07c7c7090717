"""What an engine answers, and the score that it means: the expected level, or the number that was written."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from phf.config.judges import Axis, Rubric
from phf.reward_models.protocol import Unscored

Token = tuple[str, dict[str, float]]
"""A token that was written, and log-probabilities of tokens that might have been in its place, itself among them."""

TOP = 20
"""Log-probabilities asked of each token: as many as any server gives, and more than a scale has levels."""
_NUMBER = r"(?<![\w.,])(-?\d+(?:[.,]\d+)?)(?![\w])"
_SHOWN = 20
_MIN_SHARE = 0.5
"""Of the probability that must lie on the scale: where less does, the judge means something else."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one text, as it is kept.

    Attributes:
        text: what was written; empty if nothing was.
        tokens: of the text, in order; None where the engine gives no log-probabilities.
        prompt_tokens, answer_tokens: as the engine counts them; None if it does not say.
        problem: why there is no answer; None if there is one.
    """

    text: str
    tokens: list[Token] | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    problem: str | None = None

    def to_json(self) -> str:
        """A line to keep."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, line: str) -> "Answer":
        """The inverse of `to_json`."""
        value = json.loads(line)
        tokens = value.pop("tokens", None)
        return cls(tokens=None if tokens is None else [(token, top) for token, top in tokens], **value)


def read_completion(value: Any) -> Answer:
    """The answer in what an OpenAI-compatible server sends back.

    Raises:
        ValueError: it is not of that form.
    """
    try:
        choice = value["choices"][0]
        text = choice["message"]["content"]
        content = (choice.get("logprobs") or {}).get("content")
        tokens = None
        if content:
            tokens = [
                (
                    str(own["token"]),
                    merge_spellings((other["token"], other["logprob"]) for other in _list_top(own)),
                )
                for own in content
            ]
        usage = value.get("usage") or {}
        read, written = (_as_count(usage.get(key)) for key in ("prompt_tokens", "completion_tokens"))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no chat completion ({type(error).__name__}: {error})") from None
    if not isinstance(text, str | None):
        raise ValueError("no chat completion (its content is no text)")  # noqa: TRY004
    return Answer(text or "", tokens, read, written)


def _list_top(token: dict[str, Any]) -> list[dict[str, Any]]:
    return token.get("top_logprobs") or [token]


def merge_spellings(tokens: Iterable[tuple[object, float]]) -> dict[str, float]:
    """Log-probabilities by spelling: tokens that are spelled alike, as several ids may be, count together."""
    merged: dict[str, float] = {}
    for token, log_prob in tokens:
        merged[str(token)] = float(np.logaddexp(merged.get(str(token), -np.inf), float(log_prob)))
    return merged


def _as_count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def score_answer(rubric: Rubric, axis: str, answer: Answer, *, logprobs: bool) -> float:
    """The score of one axis in [0, 1], higher = worse; `Unscored` with its reason where the answer is not on the scale.

    Args:
        logprobs: whether the score is the expected level; else it is the level that was written.
    """
    if answer.problem is not None:
        return Unscored(answer.problem)
    found = _find_level(rubric, axis, answer.text)
    if isinstance(found, Unscored):
        return found
    place, number = found
    scale = rubric.axes[axis]
    if not logprobs:
        level = float(number.replace(",", "."))
        return scale.scale(level) if level in scale.levels else Unscored(f"off the scale: {number[:_SHOWN]}")
    if answer.tokens is None:
        return Unscored("the engine gave no log-probabilities")
    top = _find_token(answer.tokens, place)
    if top is None or len(number) > 1:
        return Unscored(f"off the scale: {number[:_SHOWN]}")
    level, share = _expect_level(scale, top)
    return scale.scale(level) if share >= _MIN_SHARE else Unscored(f"off the scale: {number}")


def _find_level(rubric: Rubric, axis: str, text: str) -> tuple[int, str] | Unscored:
    """Where in an answer the number stands, and which it is."""
    if not text.strip():
        return Unscored("empty answer")
    pattern, what = _NUMBER, "number"
    if rubric.form == "json":
        pattern, what = rf'"{re.escape(axis)}"\s*:\s*"?(-?\d+(?:\.\d+)?)(?![\w.])', f"level of {axis}"
    numbers = list(re.finditer(pattern, text))
    if len({found[1] for found in numbers}) != 1:
        return Unscored(f"{'more than one' if numbers else 'no'} {what} in the answer")
    return numbers[0].start(1), numbers[0][1]


def _find_token(tokens: list[Token], place: int) -> Mapping[str, float] | None:
    """The log-probabilities at the token that holds the character at a place, if that is a digit alone (and white space)."""
    start = 0
    for token, top in tokens:
        if start <= place < start + len(token):
            return top if re.fullmatch(r"\s*\d\s*", token) else None
        start += len(token)
    return None


def _expect_level(axis: Axis, top: Mapping[str, float]) -> tuple[float, float]:
    """The mean level, by the probabilities of the scale's levels, and how much of the probability these have."""
    weights = dict.fromkeys(axis.levels, 0.0)
    for token, log_prob in top.items():
        spelled = token.strip()
        if len(spelled) == 1 and spelled.isdecimal() and spelled.isascii() and int(spelled) in weights:
            weights[int(spelled)] += math.exp(min(log_prob, 0.0))
    total = sum(weights.values())
    return sum(level * weight for level, weight in weights.items()) / max(total, 1e-300), total
