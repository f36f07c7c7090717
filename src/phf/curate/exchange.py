"""The shapes in which scored text is exchanged with other tools (docs/exchange.md). What import and export share."""

import re
from collections.abc import Sequence
from typing import Literal

from phf.annotate.annotation import Annotation
from phf.errors import PHFError

ExchangeFormat = Literal["dolma", "phf", "parquet", "datasets", "jsonl"]

Uncovered = Literal["0", "error"]
"""What it means that no span covers a part of a text."""

NO_SPAN = "no score in import"
"""Why text between a source's spans has no score."""

DOLMA_EXPERIMENT = "phf"
"""First part of the attributes that an export writes: `phf__<reward model>__<segments>`."""

UNSCORED_SUFFIX = "_unscored"
"""A Dolma span cannot have a score of null: segments without one are the spans of a second attribute, so named."""


def name_attributes(annotations: Sequence[Annotation]) -> dict[str, Annotation]:
    """A name for each annotation that can be a column or an attribute: `<reward model>__<segments>`.

    Raises:
        PHFError: two annotations would have the same name.
    """
    named: dict[str, Annotation] = {}
    for annotation in annotations:
        name = f"{make_variable(annotation.identity.name)}__{annotation.segments}"
        if name in named:
            raise PHFError(
                f"{named[name].slug} and {annotation.slug} would both be called {name}; export one of them, by its slug"
            )
        named[name] = annotation
    return named


def make_variable(name: str) -> str:
    """Letters, digits and single underscores, not beginning with a digit: what Dolma's mixer can name."""
    variable = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9]", "_", name)).strip("_")
    return variable if variable[:1].isalpha() else f"m_{variable}"
