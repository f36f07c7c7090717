"""What a study file says: arms, seeds, claims, and how much computing it may take (docs/study.md)."""

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from phf.config.evaluate import EvaluateConfig
from phf.config.fields import StrictConfig

_Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
PLACE = re.compile(r"\{([a-z0-9.+-]+)\}")
"""A folder in an arm's settings: `{mle}` is the run of the arm `mle` with the same seed, `{out}` the study's folder."""


class Arm(StrictConfig):
    """What is trained in one way, once for each seed."""

    set: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings over the study's recipe, by dotted key; with `finetune`, those of `phf finetune` alone. Folders may be written as {ARM}."""
    finetune: str | None = None
    """The run that is finetuned, such as {mle} or {mle}@1000; null trains from the beginning."""
    command: str | None = None
    """In place of training: a command of phf over runs of the study, such as 'attack {mle} {conditional} -o {own}'; {own} is its folder."""
    evaluate: dict[str, JsonValue] = Field(default_factory=dict)
    """What is measured of it beside the study's `evaluate`, by dotted key."""
    seeds: _Seeds | None = None
    """Seeds of this arm; null takes the study's."""
    minutes: Annotated[float, Field(gt=0)] = 5
    """What a run of it takes on one core, training and evaluation together; what was measured takes the place of it."""
    note: str = ""
    """What a reader must know of it."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Arm":
        if self.command is not None and (self.finetune is not None or self.set):
            raise ValueError(f"command {self.command!r} is run as it is; leave set and finetune out")
        return self

    @property
    def needs(self) -> list[str]:
        """Arms whose runs it reads."""
        return [
            name
            for name in dict.fromkeys(PLACE.findall(self.model_dump_json()))
            if name not in ("out", "own")
        ]


class Claim(StrictConfig):
    """A sentence that contrasts of arms support or contradict."""

    text: str
    """The sentence."""
    kind: Literal["paper", "question", "goal"] = "paper"
    """Whose: the paper's, an open question's, or a goal of this project."""
    source: str = ""
    """Where it was said, and the numbers that it was said of."""
    contrasts: tuple[str, ...] = ()
    """What must hold for it, all of them: 'score[annotator] conditional/good < 0.5 mle' (docs/study.md)."""
    why_not: str = ""
    """Why it cannot be tested here, where it has no contrasts."""

    @model_validator(mode="after")
    def _is_testable_or_says_why(self) -> "Claim":
        if bool(self.contrasts) == bool(self.why_not):
            raise ValueError(
                "a claim has contrasts, or why_not says why it cannot be tested; give one of them"
            )
        return self


class StudyConfig(StrictConfig):
    """A study: arms over shared data, what is measured of each, and what is claimed of them."""

    title: str
    """Heads its page."""
    about: str = ""
    """A paragraph below the title."""
    recipe: str
    """Of `phf train`, by name or path: what all arms share."""
    set: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings over it, by dotted key; {out} stands for the study's folder."""
    prepare: tuple[str, ...] = ()
    """Commands of phf that make the corpus, its annotation and its tokens, run once: 'corpus build mails -o {out}/corpus'."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured of each run."""
    seeds: _Seeds = (0,)
    """Seeds of training; arms may have others."""
    hours: Annotated[float, Field(gt=0)] = 6
    """Hours of one core that all runs together may take; what is beyond is left out, from the last arm on."""
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    """By name, the most informative first."""
    claims: tuple[Claim, ...] = ()
    """What is said of them."""

    @field_validator("arms")
    @classmethod
    def _check_names(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        earlier: set[str] = set()
        for name, arm in arms.items():
            if not _NAME.fullmatch(name) or name in ("out", "own"):
                raise ValueError(
                    f"arm {name!r} is no name of a folder; give small letters, digits, and any of .+-"
                )
            for need in arm.needs:
                if need not in earlier:
                    raise ValueError(
                        f"arm {name} reads {{{need}}}, which is no arm before it; the arms before are {', '.join(earlier) or 'none'}"
                    )
            earlier.add(name)
        return arms
