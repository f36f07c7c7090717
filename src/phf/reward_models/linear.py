"""A linear reward model over hashed n-grams: trained in seconds on a CPU, hundreds of thousands of segments per second.

One objective fits every kind of feedback, by L-BFGS: the cross-entropy between targets in [0, 1] and sigmoid(x w + b),
plus l2/2 |w|^2. For labels x is a text's features; for pairs it is those of the rejected text less those of the chosen one,
with target 1 and no b, which is the likelihood of Bradley and Terry.

Shapes: N texts, F = 2^bits features.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, vstack
from scipy.special import expit
from threadpoolctl import threadpool_limits

from phf.errors import PHFError
from phf.files import check_hash, hash_bytes, write_bytes, write_sealed
from phf.records import Identity, IdentityRecord
from phf.reward_models.ngrams import Features, Kind, read_batches
from phf.reward_models.protocol import SegmentRewardModel, Unit

WEIGHTS_FILE, MODEL_FILE = "weights.safetensors", "reward_model.json"
MODEL_VERSION = 2
"""Of reward_model.json; version 1 had no hash."""
VERSION = "1"
"""Of the code that scores: part of the identity; a change of any score changes it."""

NUM_FOLDS = 4
NUM_DEVELOPMENT = 2000
"""Texts (or pairs) that choose among settings and calibrate: as many folds in turn as it takes to have so many."""
NUM_SELECTION = 8000
"""Settings are chosen on no more texts than this."""
L2 = (1.0, 0.1, 0.01)

_Values = npt.NDArray[np.float64]
_Weights = npt.NDArray[np.float32]
_Rows = npt.NDArray[np.int64]


class ModelRecord(TypedDict):
    """The content of `reward_model.json`, of a linear reward model or an encoder (`kind`)."""

    kind: str
    identity: IdentityRecord
    hit_threshold: float


def write_model_record(folder: Path, record: ModelRecord) -> None:
    """Write `reward_model.json`, which makes the folder a reward model."""
    write_sealed(folder / MODEL_FILE, {"format_version": MODEL_VERSION, **record})


@dataclass(frozen=True, slots=True)
class Trial:
    """Settings that were tried, and the cross-entropy (nats) on texts that they were not fitted to, with its error."""

    features: Features
    l2: float
    loss: float
    standard_error: float


class LinearRewardModel(SegmentRewardModel):
    """Probability that a text is bad: sigmoid(slope * sum of the weights of its n-grams / sqrt(their number) + offset).

    A text without any n-gram gets sigmoid(offset). A text's score is the same bits whatever it is batched with.

    Attributes:
        features: what it looks at.
        weights: float32 [F].
        trials: the settings that were tried; empty for a model that was loaded.
    """

    unit: Unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.5

    def __init__(
        self,
        weights: _Weights,
        features: Features,
        *,
        slope: float,
        offset: float,
        name: str,
        trained_on: dict[str, object] | None = None,
        trials: Sequence[Trial] = (),
    ) -> None:
        from safetensors.numpy import save

        self.weights, self.features = weights, features
        self.slope, self.offset = slope, offset
        self.trials = tuple(trials)
        self._exact = weights.astype(np.float64)
        self._file = bytes(save({"weights": weights}))
        parameters = {
            "features": features.to_json(),
            "slope": slope,
            "offset": offset,
            "trained_on": trained_on or {},
        }
        self.identity = Identity(name, VERSION, weights_hash=hash_bytes(self._file), parameters=parameters)

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Probability of each text, float32."""
        sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
        for batch in read_batches(texts):
            num = len(batch.owners)
            piece_sums, piece_counts = np.zeros(num), np.zeros(num)
            for ngrams in batch.find_ngrams(self.features):
                # bincount adds one after the other, so the bits do not depend on what else is in the batch.
                piece_sums += np.bincount(ngrams.pieces, self._exact[ngrams.buckets], num)
                piece_counts += np.bincount(ngrams.pieces, minlength=num)
            np.add.at(sums, batch.owners, piece_sums)
            np.add.at(counts, batch.owners, piece_counts)
        scores: list[float] = (
            expit(self.slope * sums / np.sqrt(np.maximum(counts, 1)) + self.offset).astype("f4").tolist()
        )
        return scores

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors`, then `reward_model.json`."""
        write_bytes(folder / WEIGHTS_FILE, self._file)
        value: ModelRecord = {
            "kind": "linear",
            "identity": self.identity.to_json(),
            "hit_threshold": self.hit_threshold,
        }
        write_model_record(folder, value)

    @classmethod
    def load(cls, folder: Path, description: ModelRecord) -> "LinearRewardModel":
        """The inverse of `save`.

        Args:
            description: the content of `reward_model.json`.

        Raises:
            PHFError: the weights are missing or damaged.
        """
        from safetensors.numpy import load_file

        identity = Identity.from_json(description["identity"])
        check_hash(folder / WEIGHTS_FILE, str(identity.weights_hash), "make the reward model again")
        parameters = identity.parameters
        model = cls(
            load_file(folder / WEIGHTS_FILE)["weights"],
            Features.from_json(parameters["features"]),
            slope=parameters["slope"],
            offset=parameters["offset"],
            name=identity.name,
            trained_on=parameters["trained_on"],
        )
        model.hit_threshold = description["hit_threshold"]
        return model


def fit_linear(
    texts: Sequence[str],
    labels: Sequence[float],
    *,
    seed: int,
    name: str = "linear",
    features: Sequence[Features] = (Features(),),
    trained_on: dict[str, object] | None = None,
    num_selection: int = NUM_SELECTION,
) -> LinearRewardModel:
    """Fit to labels. The strength of l2 is chosen, and the probability calibrated (Platt), on texts not fitted to.

    Args:
        labels: in [0, 1]; 1 = bad; anything between is a probability.
        features: what may be looked at, cheapest first; of several the first is taken whose loss is within one
            standard error of the best.
        trained_on: what goes into the identity.
        num_selection: the settings are chosen on at most so many texts.

    Raises:
        PHFError: no text, or a label outside [0, 1].
    """
    targets = np.asarray(labels, np.float64)
    if len(targets) != len(texts) or not len(texts) or not ((targets >= 0) & (targets <= 1)).all():
        raise PHFError(
            f"{len(texts)} texts have {len(targets)} labels; there must be one in [0, 1] for each, 1 = bad"
        )
    order = np.random.default_rng(seed).permutation(len(texts))

    def count(of: Features, rows: _Rows) -> csr_matrix:
        return _count_ngrams([texts[row] for row in rows], of)

    chosen, trials = _choose_settings(features, count, targets, order[:num_selection], intercept=True)
    matrix = count(chosen.features, np.arange(len(texts)))
    logits, rows = _predict_folds(matrix, targets, chosen.l2, order, intercept=True)
    slope, shift = _calibrate(logits, targets[rows], intercept=True)
    weights, bias = _minimise(matrix, targets, chosen.l2, intercept=True)
    return LinearRewardModel(
        weights,
        chosen.features,
        slope=slope,
        offset=slope * bias + shift,
        name=name,
        trained_on=trained_on,
        trials=trials,
    )


def fit_linear_pairs(
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    seed: int,
    name: str = "linear",
    features: Sequence[Features] = (Features(),),
    trained_on: dict[str, object] | None = None,
) -> LinearRewardModel:
    """Fit to pairs (Bradley-Terry): the chosen text gets the lower score.

    A score is the probability that a person would like the text less than the median text of the pairs. Arguments
    and errors as for `fit_linear`.
    """
    if len(chosen) != len(rejected) or not len(chosen):
        raise PHFError(f"{len(chosen)} chosen texts stand beside {len(rejected)} rejected ones; give pairs")
    targets = np.ones(len(chosen))
    order = np.random.default_rng(seed).permutation(len(chosen))

    def subtract(of: Features, rows: _Rows) -> csr_matrix:
        worse, better = (_count_ngrams([texts[row] for row in rows], of) for texts in (rejected, chosen))
        return csr_matrix(worse - better)

    settings, trials = _choose_settings(features, subtract, targets, order[:NUM_SELECTION], intercept=False)
    matrix = subtract(settings.features, np.arange(len(chosen)))
    logits, rows = _predict_folds(matrix, targets, settings.l2, order, intercept=False)
    slope, _ = _calibrate(logits, targets[rows], intercept=False)
    weights, _ = _minimise(matrix, targets, settings.l2, intercept=False)
    median = float(np.median(_count_ngrams([*chosen, *rejected], settings.features) @ weights))
    return LinearRewardModel(
        weights,
        settings.features,
        slope=slope,
        offset=-slope * median,
        name=name,
        trained_on=trained_on,
        trials=trials,
    )


@dataclass(frozen=True, slots=True)
class HeavyNGram:
    """An n-gram of some texts and its weight. Hashes have no way back: of n-grams with one hash it is the commonest.

    Attributes:
        text: as the model reads it, in lower case.
        count: how often it stands in the texts.
    """

    text: str
    kind: Kind
    weight: float
    count: int


def list_heaviest(
    model: LinearRewardModel, texts: Sequence[str], num: int
) -> tuple[list[HeavyNGram], list[HeavyNGram]]:
    """The n-grams of the texts that speak most for bad, and those that speak most for good, heaviest first."""
    order = np.argsort(model.weights, kind="stable")
    wanted = np.zeros(len(model.weights), np.bool_)
    wanted[order[:num]] = wanted[order[-num:]] = True
    names: dict[int, Counter[tuple[str, Kind]]] = defaultdict(Counter)
    for batch in read_batches(texts):
        for found in batch.find_ngrams(model.features):
            for row in np.flatnonzero(wanted[found.buckets]).tolist():
                names[int(found.buckets[row])][batch.read(found, row), found.kind] += 1
    heavy = [
        HeavyNGram(*names[bucket].most_common(1)[0][0], float(model.weights[bucket]), names[bucket].total())
        for bucket in order.tolist()
        if bucket in names
    ]
    return [item for item in heavy[::-1] if item.weight > 0][:num], [
        item for item in heavy if item.weight < 0
    ][:num]


def _count_ngrams(texts: Sequence[str], features: Features) -> csr_matrix:
    """How often each n-gram is in each text, over the square root of their number: float32 [N, F]."""
    parts = [csr_matrix((0, 1 << features.bits), dtype=np.float32)]
    owners = [np.zeros(0, np.int64)]
    for batch in read_batches(texts):
        ngrams = list(batch.find_ngrams(features))
        pieces = np.concatenate([found.pieces for found in ngrams])
        buckets = np.concatenate([found.buckets for found in ngrams])
        ones = np.ones(len(pieces), np.float32)
        parts.append(csr_matrix((ones, (pieces, buckets)), shape=(len(batch.owners), 1 << features.bits)))
        owners.append(batch.owners)
    owner = np.concatenate(owners)
    gather = csr_matrix(
        (np.ones(len(owner), np.float32), (owner, np.arange(len(owner)))), shape=(len(texts), len(owner))
    )
    counts = csr_matrix(gather @ vstack(parts, format="csr"))  # pieces of a text together
    num = np.asarray(counts.sum(axis=1)).ravel()
    counts.data /= np.repeat(np.sqrt(np.maximum(num, 1)), np.diff(counts.indptr)).astype(np.float32)
    return counts


def _choose_settings(
    features: Sequence[Features],
    count: Callable[[Features, _Rows], csr_matrix],
    targets: _Values,
    sample: _Rows,
    *,
    intercept: bool,
) -> tuple[Trial, list[Trial]]:
    """The settings with the least loss on texts not fitted to; a cheaper set of features within one standard error wins.

    Args:
        sample: the rows that decide, in random order.
    """
    trials: list[Trial] = []
    for tried in features:
        matrix = count(tried, sample)
        for l2 in L2:
            logits, rows = _predict_folds(
                matrix, targets[sample], l2, np.arange(len(sample)), intercept=intercept
            )
            losses = np.logaddexp(0, logits) - targets[sample][rows] * logits
            error = float(losses.std() / np.sqrt(len(losses)))
            trials.append(Trial(tried, l2, float(losses.mean()), error))
    best = min(trials, key=lambda trial: trial.loss)
    good = [trial for trial in trials if trial.loss <= best.loss + best.standard_error]
    cheapest = next(tried for tried in features if any(trial.features == tried for trial in good))
    return min((trial for trial in good if trial.features == cheapest), key=lambda trial: trial.loss), trials


def _predict_folds(
    matrix: csr_matrix, targets: _Values, l2: float, order: _Rows, *, intercept: bool
) -> tuple[_Values, _Rows]:
    """Logits of texts by models that were not fitted to them, and which texts: float64 [n], int64 [n].

    Args:
        order: all rows in random order, which deals them to the folds.
    """
    logits: list[_Values] = []
    rows: list[_Rows] = []
    for fold in range(NUM_FOLDS):
        inside = np.sort(order[fold::NUM_FOLDS])
        outside = np.setdiff1d(order, inside)
        if len(inside) == 0 or len(outside) == 0:
            continue
        weights, bias = _minimise(matrix[outside], targets[outside], l2, intercept=intercept)
        logits.append(matrix[inside] @ weights + bias)
        rows.append(inside)
        if sum(map(len, rows)) >= NUM_DEVELOPMENT:
            break
    if not rows:  # a single text
        return np.zeros(len(targets)), np.arange(len(targets))
    return np.concatenate(logits), np.concatenate(rows)


def _calibrate(logits: _Values, targets: _Values, *, intercept: bool) -> tuple[float, float]:
    """Platt's slope and shift. The slope stays positive: calibration must not turn the order of scores round."""
    weights, shift = _minimise(csr_matrix(logits[:, None]), targets, 1.0, intercept=intercept)
    return max(float(weights[0]), 0.01), shift


def _minimise(matrix: csr_matrix, targets: _Values, l2: float, *, intercept: bool) -> tuple[_Weights, float]:
    """The weights float32 [F] and bias with the least regularised cross-entropy. Features that no text has weigh 0."""
    used = np.unique(matrix.indices)
    used_matrix = matrix[:, used]
    transposed = used_matrix.T.tocsr()

    def objective(parameters: _Values) -> tuple[float, _Values]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = used_matrix @ weights.astype(np.float32) + bias
        residuals = expit(logits) - targets
        loss = (np.logaddexp(0, logits) - targets * logits).sum() + l2 / 2 * (weights @ weights)
        slopes = transposed @ residuals.astype(np.float32) + l2 * weights
        return loss, np.append(slopes, residuals.sum() if intercept else 0.0)

    options = {"maxiter": 100, "maxcor": 8, "ftol": 1e-5}
    start = np.zeros(len(used) + 1)
    # One thread: the vectors are short, and on a busy machine threads that wait for one another made it 15 x slower.
    with threadpool_limits(1, "blas"):
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    weights = np.zeros(matrix.shape[1], np.float32)
    weights[used] = found[:-1]
    return weights, float(found[-1])
