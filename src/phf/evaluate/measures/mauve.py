"""How close samples lie to human text as a set, in the space of a language model's hidden states (as MAUVE does)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import rel_entr

from phf.evaluate.metric import Measured, Metric
from phf.evaluate.openings import cut_openings, mean_length
from phf.evaluate.reference_lm import check_reference, load_reference
from phf.files import hash_json
from phf.records import Estimate, Identity, Progress
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from phf.evaluate.subject import Subject


MAX_TOKENS = 256
"""Tokens of a text that are read, as in MAUVE's experiments."""
TEXTS_PER_CLUSTER = 20
"""Of samples and human texts together: MAUVE's n / 10 for n of each."""
NUM_HALVES = 200
"""Half-samples that the interval is made from."""
_SCALE = 5.0
"""MAUVE's c: e^(-c KL)."""
_BATCH = 16
_Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """A causal language model; a text's embedding is its last hidden state behind the last token."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    start: int
    identity: Identity

    @classmethod
    def load(cls, spec: str) -> "Embedder":
        """An embedder from a folder, a `.gguf` file or a Hub id.

        Raises:
            PHFError: it cannot be loaded.
        """
        found = load_reference(spec)
        return cls(found.model, found.tokenizer, found.start, found.identity)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> _Features:
        """float32 [num_texts, width]; an empty text has the embedding of the start token."""
        rows = [
            [self.start, *ids[:MAX_TOKENS]]
            for ids in self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
        ]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        features = np.empty((len(rows), self.model.config.get_text_config().hidden_size), np.float32)
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            lengths = torch.tensor([len(rows[index]) for index in batch])
            # Padding stands behind the text, where nothing that is read can see it.
            ids = torch.full((len(batch), int(lengths.max())), self.start)
            for row, index in enumerate(batch):
                ids[row, : len(rows[index])] = torch.tensor(rows[index])
            hidden = self.model.base_model(ids.to(self.model.device), use_cache=False).last_hidden_state
            features[batch] = hidden[torch.arange(len(batch)), lengths - 1].float().cpu().numpy()
            if progress is not None:
                progress("embedding", first + len(batch), len(order))
        return features


def measure_mauve(samples: _Features, human: _Features, seed: int) -> Estimate:
    """MAUVE (Pillutla et al. 2021) of samples against human text, by embeddings [num_texts, width]: in (0, 1], 1 = alike.

    Both are clustered together; what is compared is how often each cluster comes. The interval is 1.96 standard errors
    to both sides, by half-samples without replacement from the clustered texts, whose spread is that of the whole
    estimate. MAUVE falls with fewer texts: compare equal numbers only. NaN with fewer than two clusters' worth of text.
    """
    count = min(len(samples), len(human))
    num_clusters = (len(samples) + len(human)) // TEXTS_PER_CLUSTER
    if num_clusters < 2:
        return Estimate(np.nan, np.nan, np.nan, count)
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    features = normalize(np.concatenate([samples, human]).astype(np.float64))
    reduced = PCA(0.9, svd_solver="full").fit_transform(features)
    clusters = KMeans(num_clusters, n_init=5, random_state=seed).fit_predict(reduced)
    sides = clusters[: len(samples)], clusters[len(samples) :]
    rng = np.random.default_rng(seed)
    halves = [
        frontier_area(*(_count(rng.choice(own, len(own) // 2, replace=False), num_clusters) for own in sides))
        for _ in range(NUM_HALVES)
    ]
    mean = frontier_area(*(_count(own, num_clusters) for own in sides))
    error = float(np.std(halves, ddof=1))
    return Estimate(mean, max(mean - 1.96 * error, 0.0), min(mean + 1.96 * error, 1.0), count)


def frontier_area(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Area under MAUVE's divergence curve of two distributions over clusters: 1 if they are equal, near 0 if disjoint.

    The curve is (e^(-c KL(q || r)), e^(-c KL(p || r))) for mixtures r = w p + (1 - w) q, from (1, 0) to (0, 1).
    """
    weights = np.linspace(1e-6, 1 - 1e-6, 100)[:, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (np.exp(-_SCALE * rel_entr(part, mixtures).sum(axis=1)) for part in (q, p))
    return float(np.trapezoid(np.concatenate([[0], y, [1]]), np.concatenate([[1], x, [0]])) * -1)


def _count(clusters: npt.NDArray[np.int32], num_clusters: int) -> npt.NDArray[np.float64]:
    """Share of each cluster."""
    shares: npt.NDArray[np.float64] = np.bincount(clusters, minlength=num_clusters) / len(clusters)
    return shares


load_embedder = functools.lru_cache(maxsize=1)(Embedder.load)  # all runs of a command share it


def measure_modes(subject: "Subject") -> Measured:
    """MAUVE of each mode's samples against held-out human text of their length."""
    config, drawn, seed = subject.config, subject.drawn, subject.config.sampling.seed
    assert config.embedder is not None
    embedder = load_embedder(config.embedder)
    human = cut_openings(
        subject.data.corpus, config.sampling.num_samples, mean_length(drawn), seed, split="validation"
    )

    # Once for all modes, and never where the numbers of all modes are kept.
    embed_human = functools.cache(lambda: embedder.embed(human, subject.progress))

    def compute(texts: Sequence[str]) -> Estimate:
        return measure_mauve(embedder.embed(texts, subject.progress), embed_human(), seed)

    return Measured(
        [
            Measurement(
                "mauve",
                subject.parts.measure(
                    f"mauve-{mode}",
                    [embedder.identity.slug, hash_json(human), hash_json(own.texts)],
                    functools.partial(compute, own.texts),
                    Estimate,
                ),
                mode,
            )
            for mode, own in drawn.items()
        ]
    )


METRIC = Metric(
    "mauve",
    (
        Measure(
            "mauve",
            "MAUVE",
            "0 to 1",
            "How alike the samples are to held-out human text in a language model's embedding, 1 = alike.",
            "It sees what the embedder sees, and compares only at equal numbers and with one embedder.",
            lower_is_better=False,
            group="Diversity",
        ),
    ),
    measure_modes,
    is_wanted=lambda config: config.embedder is not None,
    option="--embedder MODEL",
    check=lambda config: check_reference(config.embedder),
)
