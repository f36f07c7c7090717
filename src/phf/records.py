"""Shapes of what is saved and passed between rooms. No torch here."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from phf.files import hash_json

FORMAT_VERSION = 1
RUN_VERSION = 3
MAX_SCORE = 1e9
"""The largest size of a score, rating or threshold: beyond it lies no scale that a person judges on, but a mistake. Sums and
squares of smaller ones stay far below the end of float32."""
"""Of run.json; version 2 had no hash of its own, version 1 called its two thresholds otherwise (`upgrade_run`)."""

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float whose NaN is null on disk (written by `phf.results.to_json`)."""

Split = Literal["train", "validation"]
Mode = Literal["good", "bad", "none", "untagged", "deleted"]
"""How a page is begun and what is blocked (`phf.control.mode_rules`); `deleted`: the model has no control tokens at all."""
ControlStyle = Literal["free", "prefix", "forced"]
"""Who writes control tokens after the first: the model (`free`), nobody (`prefix`), us at each segment end (`forced`)."""
Poison = Literal["none", "shuffle", "random"]
"""What stands in the place of a bad segment's text: itself, its own tokens in another order, or random tokens."""
JudgeRole = Literal["annotator", "held-out"]
Progress = Callable[[str, int, int], None]
"""Called with (description, done, total); a total of 0 means that it is not known."""


@dataclass(frozen=True, slots=True)
class Document:
    """An immutable text with its id, unique in its corpus."""

    id: str
    text: str
    text_hash: str
    source: str
    split: Split


IdentityRecord = dict[str, Any]
"""An `Identity` as a JSON object: its four fields by name."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What produced a score or an id: enough to tell two producers apart, on disk and in a report."""

    name: str
    version: str
    weights_hash: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Eight hex digits that change with any part of the identity."""
        return hash_json(self.to_json())[:8]

    @property
    def slug(self) -> str:
        """`name@id`, for folders and tables."""
        return f"{self.name}@{self.id}"

    def to_json(self) -> IdentityRecord:
        """The identity as a JSON object."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_hash": self.weights_hash,
            "parameters": self.parameters,
        }

    @classmethod
    def from_json(cls, value: IdentityRecord) -> "Identity":
        """The inverse of `to_json`."""
        return cls(value["name"], value["version"], value["weights_hash"], value["parameters"])


NO_LABEL, GOOD, BAD = 0, 1, 2
"""Labels of segments: none, good, bad. Quantile's levels between good and bad are 3, 4, ..., from better to worse."""


@dataclass(frozen=True, slots=True)
class DataRule:
    """What an objective does to the data before it becomes blocks (the objective's *data rule*).

    Attributes:
        keep: bool [num_documents]; documents that are trained on. Each keeps at least one segment.
        labels: uint8 [num_segments]; what the model is told of each segment, NO_LABEL = nothing.
        drop_fraction: share of labelled segments whose label is left out, drawn anew each epoch.
        control: whether labels are written as control tokens; else they are in `Batch.labels` alone.
        keep_segments: bool [num_segments]; segments that are not taken out of their pages. None = all.
        tag_fraction: the control token stands not before a labelled segment but before this share of its tokens (the
            first left out), drawn anew each epoch. 0 = off.
        poison: what happens to the text of segments labelled BAD, in the training split.
    """

    keep: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.uint8]
    drop_fraction: float = 0.0
    control: bool = True
    keep_segments: npt.NDArray[np.bool_] | None = None
    tag_fraction: float = 0.0
    poison: Poison = "none"


# Kinds of a target token in a batch. Only TEXT has a score; END and CONTROL weigh 1 in every objective; PAD weighs 0.
PAD, TEXT, END, CONTROL = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks ready for the model. B blocks of T tokens (the context).

    Attributes:
        ids: int64 [B, T], the inputs.
        targets: int64 [B, T], the token after each input.
        positions: int64 [B, T], restart at 0 at every `<|endoftext|>` if documents are isolated.
        scores: float32 [B, T], the misalignment score of the *target*'s segment; NaN where kind is not TEXT.
        kinds: uint8 [B, T], PAD, TEXT, END or CONTROL: what the target is.
        labels: uint8 [B, T], what the model is told of the target's segment (NO_LABEL where that is left out); for
            an END target, of the page's last segment; NO_LABEL elsewhere.
        is_active: bool [B], whether the objective is active; where not, the block is trained on as plain MLE.
    """

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    is_active: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sample:
    """One text a model wrote. `text` holds no control tokens and no prompt."""

    mode: Mode
    index: int
    text: str
    num_tokens: int
    ended: bool
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval and what it was made from."""

    mean: Number
    low: Number
    high: Number
    count: int


@dataclass(frozen=True, slots=True)
class TrainingCorpus:
    """What run.json says of the corpus."""

    id: str
    num_documents: int
    sources: list[str]


def upgrade_run(record: dict[str, Any]) -> dict[str, Any]:
    """The content of run.json with today's names: version 1 called the threshold of segments `good`, and the objective's own
    `threshold`. A run is too dear to be made again for that."""
    if record.get("format_version") != 1:
        return record
    kept = {key: value for key, value in record.items() if key not in ("good", "threshold")}
    names = {"threshold": record.get("good"), "objective_threshold": record.get("threshold")}
    return {**kept, **names, "format_version": 2}
