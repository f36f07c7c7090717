"""Rubrics that come with phf, and those of files."""

from importlib import resources
from pathlib import Path

from phf.config.judges import Rubric
from phf.config.recipes import parse_yaml
from phf.config.train import parse
from phf.errors import PHFError, suggest
from phf.files import read_regular

_RUBRICS = Path(str(resources.files("phf") / "reward_models" / "llm" / "rubrics"))
_MAX_RUBRIC = 1 << 20  # bytes


def list_rubrics() -> list[str]:
    """Names of the rubrics that come with phf."""
    return sorted(path.stem for path in _RUBRICS.glob("*.yaml"))


def read_rubric(name: str) -> Rubric:
    """A rubric that comes with phf (by name) or one of a YAML file (by path).

    Raises:
        PHFError: there is none, or it breaks a rule; names the key.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name not in list_rubrics():
            raise PHFError(
                f"no rubric is named {name!r}; {suggest(name, list_rubrics())}choose one of {', '.join(list_rubrics())}, or "
                "give a path ending in .yaml (docs/llm_judges.md)"
            )
        path = _RUBRICS / f"{name}.yaml"
    where = f"rubric {name}"
    value = parse_yaml(read_regular(path, _MAX_RUBRIC, where).decode("utf-8-sig", errors="replace"), where)
    if not isinstance(value, dict):
        raise PHFError(f"{where} must be a mapping of keys to values, not {type(value).__name__}")
    return parse(Rubric, value, where)
