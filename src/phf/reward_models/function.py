"""A user's own Python function, or reward model, named as `module:function`."""

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from phf.errors import PHFError
from phf.files import hash_file, hash_json
from phf.records import Identity
from phf.reward_models.protocol import RewardModel, SegmentRewardModel, Unit, Unscored


class FunctionRewardModel(SegmentRewardModel):
    """Scores of a function `f(texts: list[str]) -> list[float]`, segment by segment; higher = worse.

    The function may carry the attributes `unit` (default "arbitrary units"), `display_scale` (1) and `hit_threshold`
    (0.5).
    """

    def __init__(self, function: Callable[[list[str]], Sequence[float]], identity: Identity) -> None:
        """Wrap a function.

        Raises:
            PHFError: its `unit` is not one of the protocol's.
        """
        self.identity = identity
        self.unit: Unit = getattr(function, "unit", "arbitrary units")
        if self.unit not in get_args(Unit):
            raise PHFError(
                f"unit {self.unit!r} of {identity.name} is not known; choose {', '.join(get_args(Unit))}"
            )
        self.display_scale = float(getattr(function, "display_scale", 1.0))
        self.hit_threshold = float(getattr(function, "hit_threshold", 0.5))
        self._function = function

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """What the function says of each text."""
        scores = list(self._function(list(texts)))
        for index, score in enumerate(scores):
            if not isinstance(score, Unscored):
                try:
                    scores[index] = float(score)
                except (TypeError, ValueError):
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
    module_name, name = spec.split(":")
    module = _import_module(module_name)
    if not hasattr(module, name):
        public = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
        ]
        nearest = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean '{nearest[0]}'? it has" if nearest else "it has"
        raise PHFError(
            f"module {module_name} ({module.__file__}) has no '{name}'; {hint} {', '.join(public) or 'no function'}"
        )
    found: Any = getattr(module, name)
    sources = {"sources": _hash_sources(module, found)}
    if isinstance(found, type):
        try:
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
        return model
    if not callable(found):
        raise PHFError(
            f"{spec} is a {type(found).__name__}; it must be a function of a list of texts, or a subclass "
            "of phf.reward_models.SegmentRewardModel or RewardModel"
        )
    return FunctionRewardModel(found, Identity(f"{module_name}.{name}", "1", parameters=sources))


def _is_reward_model(value: object) -> bool:
    return all(
        hasattr(value, name)
        for name in ("identity", "unit", "display_scale", "hit_threshold", "score", "trim_sample")
    )


def _import_module(name: str) -> ModuleType:
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # behind the rest: a ./random.py must not hide Python's own
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PHFError(
                f"no module {error.name!r} is installed or in the current folder; run from the folder that holds it"
            ) from None
        raise PHFError(f"module {name} needs the module {error.name!r}, which is not installed") from error
    except Exception as error:
        raise PHFError(f"module {name} fails on import: {type(error).__name__}: {error}") from error


def _hash_sources(module: ModuleType, value: object) -> str:
    """Hash of the files of a module and of what it names (which it may have from another module).

    Raises:
        PHFError: there is no file.
    """
    owner = sys.modules.get(getattr(value, "__module__", None) or type(value).__module__, module)
    files = {_find_file(module), _find_file(owner)} - {None}
    if not files:
        raise PHFError(f"module {module.__name__} has no source file, so no identity; wrap it in a .py file")
    return hash_json(sorted(_hash_as_imported(file) for file in files if file is not None))[:16]


def _find_file(module: ModuleType) -> Path | None:
    try:
        return Path(inspect.getsourcefile(module) or module.__file__ or "").resolve(strict=True)
    except (TypeError, OSError):
        return None


@functools.cache
def _hash_as_imported(file: Path) -> str:
    """Hash of a source file, taken once: an edit shows in the next process, which is when Python sees it, too."""
    return hash_file(file)
