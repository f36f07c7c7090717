"""Recipes in YAML, and overrides laid over them."""

import copy
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from phf.config.objectives import objective_kinds
from phf.errors import PHFError, suggest
from phf.files import Place, as_list, read_regular

_MAX_RECIPE = 1 << 20  # bytes
_MAX_VALUES = 10_000


def list_recipes() -> list[str]:
    """Names of the recipes shipped with the package."""
    folder = resources.files("phf") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def read_recipe(recipe: Place) -> dict[str, Any]:
    """The raw content of a shipped recipe (by name) or of a YAML file (by path).

    Raises:
        PHFError: no such recipe, or not a YAML mapping.
    """
    path, recipe = Path(recipe).expanduser(), os.fspath(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise PHFError(
                f"recipe {recipe} does not exist; the shipped recipes are {', '.join(list_recipes())}"
            )
        text = read_regular(path, _MAX_RECIPE, f"recipe {recipe}").decode("utf-8-sig", errors="replace")
    elif recipe in list_recipes():
        text = (resources.files("phf") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        hint = suggest(recipe, list_recipes())
        raise PHFError(
            f"recipe '{recipe}' is not known; {hint}choose one of {', '.join(list_recipes())}, "
            "or give a path ending in .yaml"
        )
    value = parse_yaml(text, f"recipe {recipe}")
    if not isinstance(value, dict):
        raise PHFError(f"recipe {recipe} must be a mapping of keys to values, not {type(value).__name__}")
    return value


def describe_recipe(recipe: str) -> str:
    """The comment at the head of a shipped recipe: what it is for, and in what it differs from what it is named after."""
    text = (resources.files("phf") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def apply_overrides(value: Mapping[str, object], overrides: str | Sequence[str]) -> dict[str, object]:
    """`key.path=value` pairs laid over a recipe; values are read as YAML. A new `objective.kind` drops the old options; where
    good ended stays, as `good`, so that reports on the new kind mean the same text.

    Raises:
        PHFError: an override is not `key=value`, or goes through something that is not a mapping.
    """
    result: dict[str, object] = copy.deepcopy(dict(value))
    # The kind first: it clears the options of the objective it replaces, not those given beside it.
    for override in sorted(as_list(overrides), key=lambda text: not text.startswith("objective.kind=")):
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise PHFError(f"override '{override}' is not of the form key=value, such as objective.kind=mle")
        item = parse_yaml(text, f"the value of override '{override}'", _NumberLoader)
        *parents, last = key.split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise PHFError(f"override '{override}': '{parent}' is a value, not a group of keys")
            node = child
        if key == "objective.kind" and node.get("kind") != item:
            node.clear()
        if parents and parents[-1] in ("objective", "good"):
            _drop_alternative(node, last)
        node[last] = item
    if "good" not in result and not find_line(result) and (line := find_line(value)):
        result["good"] = line
    return result


class _NumberLoader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as a string; people mean a number."""


_NumberLoader.yaml_implicit_resolvers = {
    key: list(resolvers) for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+0123456789":
    _NumberLoader.yaml_implicit_resolvers.setdefault(_first, []).append(
        ("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"))
    )


def parse_yaml(text: str, where: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """A YAML value of no more than `_MAX_VALUES` scalars, lists and groups, aliases counted as often as they are used.

    Raises:
        PHFError: it is not valid, nested too deeply, or has more of them.
    """
    try:
        value = yaml.load(text, loader)  # noqa: S506 - a SafeLoader
        # PyYAML's constructors fail on what only looks like their type: `2020-13-45`, `!!int x`, `!!bool x`, 5,000 digits.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PHFError(
            f"{where} is not valid YAML ({' '.join(str(error).split())[:300]}); put text in quotes"
        ) from None
    except RecursionError:
        raise PHFError(f"{where} is nested too deeply; write it as a few groups of keys and values") from None
    num_values, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        num_values += 1
        if num_values > _MAX_VALUES:
            raise PHFError(
                f"{where} has more than {_MAX_VALUES:,} values (do aliases repeat them?); write out what is needed"
            )
        waiting += (
            [*item, *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else []
        )
    return value


def find_line(recipe: Mapping[str, object]) -> dict[str, object]:
    """Where the objective of a recipe ends good segments: its `threshold` or `good_fraction`; empty if it does not."""
    objective = recipe.get("objective")
    kind = objective_kinds().get(str(objective.get("kind"))) if isinstance(objective, dict) else None
    if kind is None or "good_fraction" not in kind.model_fields:  # filtering cuts between whole documents
        return {}
    assert isinstance(objective, dict)
    given = {way: objective.get(way) for way in ("threshold", "good_fraction")}
    return {way: value for way, value in given.items() if value is not None}


def _drop_alternative(group: dict[str, object], key: str) -> None:
    """Overriding one way to give a threshold replaces the other."""
    ways = ("threshold", "good_fraction", "keep_fraction")
    if key in ways:
        for way in ways:
            group.pop(way, None)
