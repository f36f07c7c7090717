"""The folder of a reward model that was trained or distilled here: `reward_model.json`, weights, `evaluation.json`."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phf.errors import PHFError
from phf.files import read_json, write_json
from phf.records import FORMAT_VERSION, Estimate
from phf.reward_models.linear import MODEL_FILE, LinearRewardModel
from phf.reward_models.protocol import RewardModel

EVALUATION_FILE = "evaluation.json"


def load_trained(folder: Path) -> RewardModel:
    """Load what `phf reward train` or `phf reward distill` made.

    Raises:
        PHFError: the folder holds no such reward model, or it is damaged or of another format version.
    """
    if not (folder / MODEL_FILE).is_file():
        raise PHFError(
            f"{folder} holds no {MODEL_FILE}; make a reward model with 'phf reward train LABELS -o {folder}'"
        )
    description = read_json(folder / MODEL_FILE)
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise PHFError(f"{folder / MODEL_FILE} has format version {version}, this phf reads {FORMAT_VERSION}")
    try:
        if description["kind"] == "linear":
            return LinearRewardModel.load(folder, description)
        from phf.reward_models.encoder import load_encoder

        return load_encoder(folder, description)
    except (KeyError, TypeError) as error:
        raise PHFError(
            f"{folder / MODEL_FILE} is damaged (no {error}); make the reward model again"
        ) from None


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The measures of a trained or distilled reward model.

    Raises:
        PHFError: there are none, or they are of another format version.
    """
    evaluation = read_json(folder / EVALUATION_FILE)
    if not isinstance(evaluation, dict) or evaluation.get("format_version") != FORMAT_VERSION:
        raise PHFError(
            f"{folder / EVALUATION_FILE} is no evaluation of format version {FORMAT_VERSION}; train again"
        )
    return evaluation


def write_evaluation(folder: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write the measures; estimates become objects and NaN null. Gives what was written."""
    written: dict[str, Any] = _to_json({"format_version": FORMAT_VERSION, **value})
    write_json(folder / EVALUATION_FILE, written)
    return written


@contextmanager
def create_folder(out: Path) -> Iterator[Path]:
    """A new folder that appears whole: made as the sibling `.<name>.partial`, renamed at the end.

    Raises:
        PHFError: there is something at `out`.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise PHFError(f"{out} exists and is not empty; delete it or choose another folder with -o")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_json(value: Any) -> Any:
    if isinstance(value, Estimate):
        return _to_json(asdict(value))
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
