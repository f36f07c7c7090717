"""tox-block's weights as safetensors + JSON: the one place that reads a foreign pickle, and only named classes of it."""

import collections
import importlib.util
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.files import hash_file, hash_json, read_json, write_bytes, write_json

CONVERTER_VERSION = 1
WEIGHTS, VOCABULARY, MANIFEST = "weights.safetensors", "vocabulary.json", "manifest.json"
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


class RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle that names no class but those in `ALLOWED`; imports nothing, calls nothing else."""

    def find_class(self, module: str, name: str) -> type:
        """The stand-in of an allowed class.

        Raises:
            PHFError: any other class; names it.
        """
        if (module, name) not in ALLOWED:
            allowed = ", ".join(".".join(key) for key in ALLOWED)
            raise PHFError(
                f"refusing a pickle that names {module}.{name}; only {allowed} are allowed: "
                "install tox-block==0.1.2 anew from a source you trust"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to outside objects."""
        raise PHFError(f"refusing a pickle with a persistent reference ({pid!r})")


def cache_folder() -> Path:
    """Where converted models live: `$PHF_CACHE`, or `~/.cache/phf`."""
    return Path(os.environ.get("PHF_CACHE") or Path.home() / ".cache" / "phf")


def convert_tox_block() -> Path:
    """The folder that holds tox-block's model as safetensors + JSON; converts on first use, or if a file is damaged.

    The manifest is written last, by atomic rename, and holds the hashes of the inputs and of the two files.

    Raises:
        ModuleNotFoundError: tox-block (or h5py, to convert) is not installed.
        PHFError: the pickle names a class that is not allowed, or the model is not the one this code knows.
    """
    spec = importlib.util.find_spec("tox_block")  # found, never imported: it would import TensorFlow
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("no module named 'tox_block'", name="tox_block")
    models = Path(spec.origin).parent / "trained_models"
    inputs = {name: hash_file(models / name) for name in (ENCODER_FILE, MODEL_FILE)}
    source = {"converter": CONVERTER_VERSION, "inputs": inputs}
    folder = cache_folder() / f"tox-block@{hash_json(source)[:8]}"
    if not _is_complete(folder, source):
        write_json(folder / VOCABULARY, read_vocabulary(models / ENCODER_FILE))
        write_bytes(folder / WEIGHTS, _serialise(read_weights(models / MODEL_FILE)))
        hashes = {name: hash_file(folder / name) for name in (WEIGHTS, VOCABULARY)}
        write_json(folder / MANIFEST, {"source": source, "files": hashes})
    return folder


def _is_complete(folder: Path, source: dict[str, Any]) -> bool:
    try:
        manifest = read_json(folder / MANIFEST)
        hashes = {name: hash_file(folder / name) for name in (WEIGHTS, VOCABULARY)}
    except (PHFError, FileNotFoundError):
        return False
    return bool(manifest == {"source": source, "files": hashes})


def _serialise(weights: dict[str, npt.NDArray[np.float32]]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(weights))


def read_vocabulary(path: Path) -> dict[str, Any]:
    """Keras's tokenizer as plain values: `words` (word to id), `filters`, `max_words`."""
    with path.open("rb") as file:
        encoder = RestrictedUnpickler(file).load()
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
