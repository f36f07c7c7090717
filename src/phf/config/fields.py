"""What every group of settings is, and its fields by their sentences and dotted keys: for docs/settings.md and --help."""

import ast
import inspect
import math
import re
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator
from pydantic.fields import FieldInfo

_HOME = re.compile(r"(?:^|(?<=[:*=\s-]))~(?=/)")


class StrictConfig(BaseModel):
    """A group of settings: unknown keys are refused, and nothing changes once it is read.

    The string under each field is its sentence in docs/settings.md and in the help of options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_by_hand(cls, value: object) -> object:
        return {key: _read_value(item) for key, item in value.items()} if isinstance(value, dict) else value


def _read_value(value: object) -> object:
    """A value as people write it: `~` is the home folder where a path begins, since no shell expands it there; a number of more
    than 64 bits is as good as infinite, and refused as such."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return math.inf
    if isinstance(value, list | tuple):
        return [_read_value(item) for item in value]
    return _HOME.sub(lambda _: str(Path.home()), value) if isinstance(value, str) else value


def flatten(value: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Nested keys as dotted ones."""
    flat: dict[str, JsonValue] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def describe_fields(config: type[BaseModel]) -> dict[str, str]:
    """The sentence under each field of a config in its source, inherited ones included.

    pydantic's `use_attribute_docstrings` would read them at every import, for 0.1 s that few commands have a use for.
    """
    sentences: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if cls.__module__.partition(".")[0] == "phf":
            sentences |= _read_sentences(cls.__module__).get(cls.__name__, {})
    return sentences


@cache
def _read_sentences(module: str) -> dict[str, dict[str, str]]:
    """The strings under annotated names, for each class of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def find_field(config: type[BaseModel], key: str) -> tuple[FieldInfo, str]:
    """The field at a dotted key such as `kl.reference`, and its sentence."""
    *parents, last = key.split(".")
    for parent in parents:
        group = config.model_fields[parent].annotation
        assert isinstance(group, type)
        assert issubclass(group, BaseModel)
        config = group
    return config.model_fields[last], describe_fields(config)[last]


def read_setting(config: BaseModel, key: str) -> object:
    """The value at a dotted key."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
