"""The folder of a reward model that was trained or distilled here: `reward_model.json`, weights, `evaluation.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from phf.errors import PHFError
from phf.files import read_sealed
from phf.records import Identity
from phf.results import check_version
from phf.reward_models.linear import MODEL_FILE, MODEL_VERSION, LinearRewardModel, ModelRecord
from phf.reward_models.protocol import RewardModel

if TYPE_CHECKING:
    from phf.reward_models.hugging_face import HuggingFaceClassifier


def load_trained(folder: Path) -> RewardModel:
    """Load what `phf reward train` or `phf reward distill` made.

    Raises:
        PHFError: the folder holds no such reward model, or it is damaged or of another format version.
    """
    description = read_model_record(folder)
    try:
        if description["kind"] == "linear":
            return LinearRewardModel.load(folder, description)
        return load_encoder(folder, description)
    except (KeyError, TypeError) as error:
        raise PHFError(
            f"{folder / MODEL_FILE} is damaged (no {error}); make the reward model again"
        ) from None


def read_model_record(folder: Path) -> ModelRecord:
    """The content of `reward_model.json`.

    Raises:
        PHFError: there is none, it is damaged, or of another format version.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise PHFError(
            f"{folder} holds no {MODEL_FILE}; make a reward model with 'phf reward train LABELS -o {folder}'"
        )
    record = read_sealed(path, "make the reward model again", sealed_in=MODEL_VERSION)
    if (version := record.get("format_version")) != 1:
        check_version(path, version, MODEL_VERSION, "phf reward train")
    return cast(ModelRecord, record)


def is_trained_on(folder: Path, name: str, trained_on: Mapping[str, object]) -> bool:
    """Whether a whole reward model of a name lies in a folder that was trained on just this: then it need not be again."""
    try:
        identity = load_trained(folder).identity
    except (PHFError, OSError):
        return False
    return identity.name == name and identity.parameters.get("trained_on") == trained_on


def load_encoder(folder: Path, description: ModelRecord) -> "HuggingFaceClassifier":
    """Load what `phf.reward_training.encoder.finetune_encoder` wrote.

    Args:
        description: the content of `reward_model.json`.

    Raises:
        PHFError: it is damaged, or of a kind that this phf does not know.
    """
    if description["kind"] != "encoder":
        raise PHFError(
            f"{folder / MODEL_FILE} is of kind {description['kind']!r}; this phf reads linear and encoder"
        )
    from phf.reward_models.hugging_face import HuggingFaceClassifier

    identity = Identity.from_json(description["identity"])
    model = HuggingFaceClassifier(folder, labels=("bad",), name=identity.name)
    if model.identity.weights_hash != identity.weights_hash:
        raise PHFError(
            f"{folder} is damaged: its files have not the hash that {MODEL_FILE} names; train again"
        )
    model.identity = identity
    model.hit_threshold = description["hit_threshold"]
    return model
