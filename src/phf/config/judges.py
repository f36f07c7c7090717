"""The rubric of a language model that judges: what is asked, on which scale, with which examples; and its engine (docs/llm_judges.md)."""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from phf.config.fields import StrictConfig
from phf.config.train import parse
from phf.errors import PHFError
from phf.files import hash_json


class Axis(StrictConfig):
    """One question about a text, and the scale of its answers."""

    question: Annotated[str, Field(min_length=1)]
    """What is asked about a text."""
    bad: Literal["high", "low"]
    """Which end of the scale is bad: a score is higher = worse."""
    levels: dict[int, Annotated[str, Field(min_length=1)]]
    """What each level stands for; whole numbers in a row, between 0 and 9, so that each is one token."""

    @model_validator(mode="after")
    def _check_levels(self) -> "Axis":
        found = sorted(self.levels)
        if len(found) < 2 or found[0] < 0 or found[-1] > 9 or found != list(range(found[0], found[-1] + 1)):
            raise ValueError("levels must be whole numbers in a row between 0 and 9, at least two")
        return self

    def scale(self, level: float) -> float:
        """A level, or a mean of levels, as a score in [0, 1]: 0 at the good end, 1 at the bad one."""
        low, high = min(self.levels), max(self.levels)
        share = (level - low) / (high - low)
        return share if self.bad == "high" else 1 - share


class Example(StrictConfig):
    """A text with the level that it should get on each axis."""

    text: Annotated[str, Field(min_length=1)]
    """What is judged."""
    levels: dict[str, int]
    """By axis."""


class EngineSettings(StrictConfig):
    """The language model that answers, and how it is reached. Any of it may be said in the spec instead: `llm:RUBRIC,model=...`."""

    kind: Literal["server", "folder", "vllm"] | None = None
    """By default `server` where there is a base_url, else `folder`."""
    model: str | None = None
    """As the server calls it; a local folder or Hub id for the kinds folder and vllm."""
    revision: str | None = None
    """Of the model; part of the identity. A server does not say its own: name it where a name may come to mean other weights."""
    base_url: str | None = None
    """Of an OpenAI-compatible server, up to and with /v1; by default the environment variable OPENAI_BASE_URL."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. The key itself is written nowhere."""
    logprobs: Literal["auto", "required", "never"] = "auto"
    """Whether the score is the expected level over token probabilities; auto asks the server once; required refuses one that
    gives none."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of sampling; 0 takes the likeliest."""
    body: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request; null takes one away."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests in flight, of each worker; texts in a batch for the kind folder."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that one request may take, from its first byte to the answer's last."""
    tries: Annotated[int, Field(ge=1, le=100)] = 8
    """Of a request that is refused for now (429, 5xx), times out or breaks off; the waits between them double."""
    price_input: Annotated[float, Field(ge=0)] | None = None
    """Of a million prompt tokens, in the currency of the budget."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """Of a million answered tokens."""

    @model_validator(mode="after")
    def _check_body(self) -> "EngineSettings":
        tokens, template = self.body.get("max_tokens"), self.body.get("chat_template_kwargs")
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise ValueError(f"body's max_tokens must be a whole number above 0, not {tokens!r}")
        if not isinstance(template, dict | None):
            raise ValueError(f"body's chat_template_kwargs must be a mapping, not {template!r}")  # noqa: TRY004
        return self


class Rubric(StrictConfig):
    """What a language model is asked about a text. Everything but `engine` enters the hash."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
    """Part of the reward model's name."""
    task: str = ""
    """A sentence or more in front: what the texts are, what to look at, what to leave aside."""
    axes: Annotated[dict[str, Axis], Field(min_length=1, max_length=6)]
    """Questions by name, all answered at once."""
    examples: list[Example] = Field(default_factory=list)
    """Texts with their answers, which stand in front."""
    max_characters: Annotated[int, Field(ge=1)] = 8000
    """A longer text is judged by its beginning."""
    engine: EngineSettings = EngineSettings()
    """Who answers, if the spec does not say."""

    @model_validator(mode="after")
    def _check_axes(self) -> "Rubric":
        for name in self.axes:
            if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
                raise ValueError(f"axis '{name}' must be of letters, digits, - and _")
        for number, example in enumerate(self.examples, 1):
            if set(example.levels) != set(self.axes):
                raise ValueError(f"example {number} needs a level for each axis: {', '.join(self.axes)}")
            for name, level in example.levels.items():
                if level not in self.axes[name].levels:
                    raise ValueError(
                        f"example {number} has level {level}, which is not on the scale of {name}"
                    )
        return self

    @property
    def form(self) -> Literal["number", "json"]:
        """The form of the answer: a number for one axis, a JSON object for several."""
        return "number" if len(self.axes) == 1 else "json"

    @property
    def hash(self) -> str:
        """Of all that a judge is told, in hex."""
        order = list(self.axes)  # which the hash of a mapping leaves out, and the question does not
        return hash_json([self.model_dump(mode="json", exclude={"engine"}), order])


def complete_engine(engine: EngineSettings, given: dict[str, Any], where: str) -> EngineSettings:
    """An engine with what a spec says laid over it, and what the environment says below.

    Raises:
        PHFError: a key is not known; no model is named; a server has no base_url.
    """
    if "key_env" in engine.model_fields_set:  # a rubric of somebody else would choose which secret is sent
        raise PHFError(f"{where}: key_env is for the spec (',key_env=NAME'), not for a rubric")
    laid = {**engine.model_dump(exclude_unset=True), **given}
    if (
        engine.base_url and "base_url" not in given
    ):  # nor does a key go unasked to the server that a rubric names
        laid["key_env"] = given.get("key_env", "")
    if laid.get("kind") in (None, "server"):
        laid.setdefault("base_url", os.environ.get("OPENAI_BASE_URL") or None)
    laid.setdefault("kind", "server" if laid.get("base_url") else "folder")
    found = parse(EngineSettings, laid, where)
    if not found.model:
        raise PHFError(
            f"{where} names no model; add ',model=NAME' to the spec, or 'engine: {{model: NAME}}' to the rubric"
        )
    if found.kind == "server" and not found.base_url:
        raise PHFError(
            f"{where} names no server; add ',base_url=http://HOST:PORT/v1', or set OPENAI_BASE_URL"
        )
    if found.kind == "server" and not str(found.base_url).startswith(("http://", "https://")):
        raise PHFError(f"{where}: base_url {found.base_url} must begin with http:// or https://")
    return found
