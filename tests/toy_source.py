"""A source small enough to enumerate, with known scores, and the exact distribution that each objective should reach."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from fake_tokens import FakeTokens

from phf import lm
from phf.config import (
    MLE,
    RWR,
    Conditional,
    Filtering,
    Masking,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    Removal,
)
from phf.control import ControlTokens
from phf.corpus.blocks import Blocks
from phf.objectives import Objective, label_conditions, resolve_objective, target_conditions, token_loss
from phf.records import BAD, GOOD, PAD, Mode
from phf.train.optim import learning_rate_factor, make_optimizers, set_learning_rate

NUM_LETTERS, STOP = 3, 3  # a segment is one or two letters and a full stop
CONTROL = ControlTokens(end=4, good=5, bad=6)
SEGMENTS = [[*letters, STOP] for size in (1, 2) for letters in product(range(NUM_LETTERS), repeat=size)]


@dataclass(frozen=True)
class ToySource:
    """Documents of one or two segments in whole numbers of copies, so that their shares are known without error.

    Attributes:
        documents: every document, as indices into `SEGMENTS`.
        probabilities: share of each document [documents].
        scores: score of each segment of each document, which depends on the one before it too.
        tokens: all copies as a token cache.
        all_scores: scores in the order of the cache.
    """

    documents: list[tuple[int, ...]]
    probabilities: np.ndarray
    scores: list[tuple[float, ...]]
    tokens: FakeTokens
    all_scores: np.ndarray

    @classmethod
    def make(cls, num_segments: int, seed: int = 0, num_copies: int = 20_000) -> "ToySource":
        rng = np.random.default_rng(seed)
        size = len(SEGMENTS)
        documents = list(product(range(size), repeat=num_segments))
        first, then = rng.dirichlet(np.full(size, 2.0)), rng.dirichlet(np.full(size, 2.0), size=size)
        # Every context is followed by good and by bad segments alike: else a mode has nothing to say there.
        score_first, score_then = (
            rng.permuted(np.tile(np.linspace(0, 1, size), (rows, 1)), axis=1) for rows in (1, size)
        )
        shares = np.array([first[d[0]] * (then[d[0], d[1]] if len(d) == 2 else 1.0) for d in documents])
        copies = np.round(shares * num_copies).astype(int)
        scores = [
            (float(score_first[0, d[0]]), *((float(score_then[d[0], d[1]]),) if len(d) == 2 else ()))
            for d in documents
        ]
        order = rng.permutation(np.repeat(np.arange(len(documents)), copies))
        pages = [[SEGMENTS[s] for s in documents[index]] for index in order]
        tokens = FakeTokens(pages, np.ones(len(pages), bool), control=CONTROL)
        flat = np.array([score for index in order for score in scores[index]], np.float32)
        return cls(documents, copies / copies.sum(), scores, tokens, flat)

    def resolve(self, config: ObjectiveConfig) -> Objective:
        tokens = self.tokens
        return resolve_objective(
            config, self.all_scores, tokens.segment_lengths, tokens.document_segments, tokens.is_train
        )

    def target(self, objective: Objective, mode: Mode = "none") -> np.ndarray:
        """The closed form: product over i of p(s_i | s_<i) w(s_i) / E[w | s_<i] (contract: Objectives)."""
        result = np.array(self.probabilities)
        scores = np.array(self.scores)
        if isinstance(objective.config, Filtering):
            result[scores.mean(axis=1) > objective.threshold.value] = 0
            return result / result.sum()
        for place in range(scores.shape[1]):
            weights = self._weights(objective, scores[:, place], mode)
            prefixes = np.unique([d[:place] for d in self.documents], axis=0, return_inverse=True)[1].ravel()
            mean = np.bincount(prefixes, self.probabilities * weights) / np.bincount(
                prefixes, self.probabilities
            )
            result = result * weights / mean[prefixes]
        assert np.isclose(result.sum(), 1), "a context without a segment of this kind has no target"
        return result

    def _weights(self, objective: Objective, scores: np.ndarray, mode: Mode) -> np.ndarray:
        config, scores = objective.config, scores.astype(np.float32)
        if isinstance(config, MLE):
            return np.ones_like(scores)
        if isinstance(config, RWR):
            rewards = objective.reward_scale.rewards(torch.from_numpy(scores)).numpy()
            return np.minimum(np.exp(rewards / config.beta), config.max_weight)
        labels = objective.label_segments(
            scores, objective.threshold.value if objective.threshold else np.nan
        )
        wanted = GOOD if mode == "good" or isinstance(config, Masking | Removal) else BAD
        if isinstance(config, Conditional) and config.invert:
            wanted = GOOD + BAD - wanted
        return (labels == wanted).astype(float)


def kl(target: np.ndarray, log_model: np.ndarray) -> float:
    """KL(target || model) in nats; the model's log-probabilities may have any finite value where the target is 0."""
    is_in = target > 0
    return float(np.sum(target[is_in] * (np.log(target[is_in]) - log_model[is_in])))


def in_mode(
    model: lm.PreTrainedModel, config: ObjectiveConfig, mode: Mode
) -> tuple[lm.PreTrainedModel, Mode]:
    """The model and the mode to read it in: an additive objective's mode is folded into the weights."""
    conditions = label_conditions(config)
    if conditions is None:
        return model, mode
    condition = conditions[{"good": GOOD, "bad": BAD}.get(mode, 0)]
    return lm.fold_condition(model, CONTROL, condition), "none"


@torch.no_grad()
def log_probabilities(model: lm.PreTrainedModel, source: ToySource, mode: Mode = "none") -> np.ndarray:
    """log p of every document as a page, in nats; with a control token before every segment in good and bad mode.
    Control tokens' own probability is left out, and the probabilities of the rest are those without them."""
    control = {"good": [CONTROL.of_label(GOOD)], "bad": [CONTROL.of_label(BAD)]}.get(mode, [])
    rows = [
        [CONTROL.end, *(token for s in document for token in [*control, *SEGMENTS[s]]), CONTROL.end]
        for document in source.documents
    ]
    width = max(map(len, rows))
    padded = torch.tensor([[*row, *[CONTROL.end] * (width - len(row))] for row in rows])
    positions = torch.arange(width - 1).expand(len(rows), -1)
    logits = lm.head_logits(model, lm.hidden_states(model, padded[:, :-1], positions)).float()
    logits[..., [CONTROL.good, CONTROL.bad]] = -torch.inf
    logits[..., CONTROL.bad + 1 :] = -torch.inf  # padding of the vocabulary
    targets = padded[:, 1:]
    is_control = (targets == CONTROL.good) | (targets == CONTROL.bad)
    counted = ~is_control & (torch.arange(width - 1) < torch.tensor([[len(row) - 1] for row in rows]))
    picked = F.log_softmax(logits, -1).gather(-1, torch.where(counted, targets, 0)[..., None])[..., 0]
    return torch.where(counted, picked, 0.0).double().sum(-1).numpy()


def train(
    source: ToySource, objective: Objective, num_steps: int, *, seed: int = 0, look_every: int = 0
) -> Iterator[tuple[int, lm.PreTrainedModel]]:
    """Train a two-layer model with the project's own blocks, loss, optimizer and schedule; yields it now and then."""
    config = OptimConfig(learning_rate=4e-3, batch_blocks=32, weight_decay=0.0, final_fraction=0.0)
    model = lm.create_model(
        ModelConfig(preset="1M", layers=2, width=64, heads=2), vocab_size=8, control=CONTROL, context=32,
        seed=seed,
    )  # fmt: skip
    values = lm.ValueHead(64, sigmoid=False) if objective.has_value_head else None
    blocks = Blocks(source.tokens, objective.rule, source.all_scores, split="train", context=32, seed=seed)
    optimizers = make_optimizers(model, values, config)
    for step in range(num_steps + 1):
        if step == num_steps or (look_every > 0 and step % look_every == 0):
            yield step, model.eval()
            model.train()
        if step == num_steps:
            return
        batch = blocks.batch(step, config.batch_blocks)
        ids, positions, targets, scores, kinds, labels = (
            torch.from_numpy(getattr(batch, name))
            for name in ("ids", "positions", "targets", "scores", "kinds", "labels")
        )
        conditions = target_conditions(objective, scores, kinds, labels)
        hidden = lm.hidden_states(model, ids, positions, conditions, CONTROL)
        nll = lm.nll_of_hidden(model, hidden, targets)
        loss = token_loss(objective, nll, scores, kinds, values(hidden) if values is not None else None)
        (loss.sum() / int((batch.kinds != PAD).sum())).backward()
        set_learning_rate(optimizers, learning_rate_factor(step, num_steps, config))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
