"""tox-block's Keras h5 file and pickled tokenizer as safetensors + JSON; neither package is imported."""

import collections
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.reward_models.convert import convert_once, find_package, read_pickle

ENCODER_FILE, MODEL_FILE = "encoder_0.1.2.pkl", "lstm_model_0.1.2.h5"
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")


class PickledTokenSequencer:
    """Stands for `tox_block.data_processing.preprocessors.TokenSequencer`: attributes, no behaviour."""

    tokenizer: "PickledTokenizer"
    max_sequence_length: int


class PickledTokenizer:
    """Stands for `keras_preprocessing.text.Tokenizer`: attributes, no behaviour."""

    num_words: int
    filters: str
    lower: bool
    split: str
    char_level: bool
    oov_token: str | None
    word_index: dict[str, int]


ALLOWED: dict[tuple[str, str], type] = {
    ("tox_block.data_processing.preprocessors", "TokenSequencer"): PickledTokenSequencer,
    ("keras_preprocessing.text", "Tokenizer"): PickledTokenizer,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "int"): int,
}


def convert_tox_block() -> Path:
    """The folder that holds tox-block's model as safetensors + JSON (`convert_once`).

    Raises:
        ModuleNotFoundError: tox-block (or h5py, to convert) is not installed.
        PHFError: the pickle names a class that is not allowed, or the model is not the one this code knows.
    """
    models = find_package("tox_block") / "trained_models"
    encoder, model = models / ENCODER_FILE, models / MODEL_FILE
    return convert_once(
        "tox-block", [encoder, model], lambda: (read_weights(model), read_vocabulary(encoder))
    )


def read_vocabulary(path: Path) -> dict[str, object]:
    """Keras's tokenizer as plain values: `words` (word to id), `filters`, `max_words`."""
    with path.open("rb") as file:
        encoder = read_pickle(file, ALLOWED, "tox-block==0.1.2")
    tokenizer = encoder.tokenizer
    if not tokenizer.lower or tokenizer.char_level or tokenizer.oov_token or tokenizer.split != " ":
        raise PHFError(
            f"{path} holds a tokenizer with other settings than tox-block==0.1.2; install that version"
        )
    words = {word: index for word, index in tokenizer.word_index.items() if index < tokenizer.num_words}
    return {"words": words, "filters": tokenizer.filters, "max_words": encoder.max_sequence_length}


def read_weights(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of the Keras model (float32, Keras's shapes and gate order i, f, c, o) under short names."""
    import h5py

    names = {
        "embedding": "embedding/embedding/embeddings:0",
        "hidden.kernel": "dense/dense/kernel:0",
        "hidden.bias": "dense/dense/bias:0",
        "output.kernel": "dense_1/dense_1/kernel:0",
        "output.bias": "dense_1/dense_1/bias:0",
    }
    for direction in ("forward", "backward"):
        for part in ("kernel", "recurrent_kernel", "bias"):
            names[f"{direction}.{part}"] = f"bidirectional/bidirectional/{direction}_lstm/{part}:0"
    with h5py.File(path, "r") as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        lstm = next(
            layer["config"]["layer"]["config"] for layer in layers if layer["name"] == "bidirectional"
        )
        if (lstm["activation"], lstm["recurrent_activation"]) != ("tanh", "hard_sigmoid"):
            raise PHFError(
                f"{path} holds an LSTM with other activations than tox-block==0.1.2; install that version"
            )
        return {short: np.asarray(file["model_weights"][name], np.float32) for short, name in names.items()}
