"""How close samples lie to human text as a set, in the space of a language model's hidden states (MAUVE; extra `mauve`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from phf.errors import PHFError
from phf.evaluate.reference_lm import load_reference
from phf.records import Estimate, Identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]

MAX_TOKENS = 256
"""Tokens of a text that are read, as in MAUVE's experiments."""
NUM_HALVES = 20
"""Half-samples that the interval is made from."""
_BATCH = 16
_Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """A causal language model; a text's embedding is its last hidden state behind the last token."""

    model: "PreTrainedModel"
    tokenizer: Any
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


def measure_embedding_distance(
    embedder: Embedder,
    texts: Sequence[str],
    human: Sequence[str],
    seed: int,
    progress: Progress | None = None,
) -> Estimate:
    """MAUVE of samples against human text (Pillutla et al. 2021): in (0, 1], 1 = the same clusters as often.

    The interval is +- 1.96 standard errors by half-samples without replacement of both sets, whose spread is that of the
    whole estimate. MAUVE falls with fewer texts: compare equal numbers only.

    Raises:
        PHFError: the library is not installed.
    """
    features, reference = embedder.embed(texts, progress), embedder.embed(human, progress)
    rng = np.random.default_rng(seed)
    halves = [_mauve(_draw_half(features, rng), _draw_half(reference, rng), seed) for _ in range(NUM_HALVES)]
    mean, error = _mauve(features, reference, seed), float(np.std(halves, ddof=1))
    return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error, min(len(texts), len(human)))


def _draw_half(features: _Features, rng: np.random.Generator) -> _Features:
    half: _Features = features[rng.choice(len(features), len(features) // 2, replace=False)]
    return half


def _mauve(features: _Features, reference: _Features, seed: int) -> float:
    try:
        from mauve import compute_mauve
    except ImportError:
        raise PHFError("the embedding distance needs mauve-text; run: pip install 'phf[mauve]'") from None
    return float(
        compute_mauve(
            p_features=reference, q_features=features, seed=seed, kmeans_num_redo=2, verbose=False
        ).mauve
    )
