"""A source small enough to enumerate, with known scores, and the exact distribution that each objective should reach."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from fake_tokens import FakeTokens
from transformers import PreTrainedModel

from phf.config.objectives import (
    AWR,
    MLE,
    RWR,
    Conditional,
    Filtering,
    Masking,
    ObjectiveConfig,
    Removal,
    Scalar,
    Tagging,
)
from phf.config.train import ModelConfig, OptimConfig
from phf.control import ControlTokens
from phf.model import lm
from phf.objective_resolution import resolve_objective
from phf.objectives import Objective, label_conditions, target_conditions, token_loss
from phf.records import BAD, GOOD, NO_LABEL, PAD
from phf.tokens.blocks import Blocks
from phf.tokens.splitter import cumulate
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
        order: the document of each page of the cache.
        tokens: all copies as a token cache.
        all_scores: scores in the order of the cache.
    """

    documents: list[tuple[int, ...]]
    probabilities: np.ndarray
    scores: list[tuple[float, ...]]
    order: np.ndarray
    tokens: FakeTokens
    all_scores: np.ndarray

    @classmethod
    def make(
        cls, num_segments: int, seed: int = 0, num_copies: int = 20_000, num_levels: int | None = None
    ) -> "ToySource":
        """Scores from 0 to 1, no two alike in one context; with `num_levels`, that many from -1 to 1, each as often."""
        rng = np.random.default_rng(seed)
        size = len(SEGMENTS)
        documents = list(product(range(size), repeat=num_segments))
        first, then = rng.dirichlet(np.full(size, 2.0)), rng.dirichlet(np.full(size, 2.0), size=size)
        # Every context is followed by good and by bad segments alike: else a mode has nothing to say there.
        levels = np.linspace(0, 1, size)
        if num_levels is not None:
            levels = np.repeat(np.linspace(-1, 1, num_levels), size // num_levels)
        score_first, score_then = (rng.permuted(np.tile(levels, (rows, 1)), axis=1) for rows in (1, size))
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
        return cls(documents, copies / copies.sum(), scores, order, tokens, flat)

    def resolve(self, config: ObjectiveConfig) -> Objective:
        tokens = self.tokens
        return resolve_objective(
            config, self.all_scores, tokens.segment_lengths, tokens.document_segments, tokens.is_train
        )

    def target(self, objective: Objective, mode: str = "none") -> np.ndarray:
        """The closed form: product over i of p(s_i | s_<i) w(s_i) / E[w | s_<i]."""
        if isinstance(objective.config, Tagging):
            return self._tagging_target(objective, mode)
        result = np.array(self.probabilities)
        scores = np.array(self.scores)
        if isinstance(objective.config, Filtering):
            result[scores.mean(axis=1) > objective.threshold.value] = 0
            return result / result.sum()
        for place in range(scores.shape[1]):
            weights = self.weigh(objective, scores[:, place], mode)
            prefixes = np.unique([d[:place] for d in self.documents], axis=0, return_inverse=True)[1].ravel()
            mean = np.bincount(prefixes, self.probabilities * weights) / np.bincount(
                prefixes, self.probabilities
            )
            result = result * weights / mean[prefixes]
        assert np.isclose(result.sum(), 1), "a context without a segment of this kind has no target"
        return result

    def weigh(self, objective: Objective, scores: np.ndarray, mode: str) -> np.ndarray:
        config, scores = objective.config, scores.astype(np.float32)
        if isinstance(config, MLE):
            return np.ones_like(scores)
        if isinstance(config, RWR | AWR | Scalar):
            rewards = objective.reward_scale.rewards(torch.from_numpy(scores)).numpy()
        if isinstance(config, RWR):
            return np.minimum(np.exp(rewards / config.beta), config.max_weight)
        if isinstance(config, AWR):  # a value depends on the context alone, so the softmax does not see it
            return np.exp(rewards / config.beta)
        if isinstance(config, Scalar):
            wanted = {"good": config.good_reward, "bad": -config.good_reward}
            return np.isclose(rewards, wanted[mode]).astype(float) if mode in wanted else np.ones_like(scores)
        labels = objective.label_segments(
            scores, objective.threshold.value if objective.threshold else np.nan
        )
        wanted = GOOD if mode == "good" or isinstance(config, Masking | Removal) else BAD
        if isinstance(config, Conditional) and config.invert:
            wanted = GOOD + BAD - wanted
        return (labels == wanted).astype(float)

    def _tagging_target(self, objective: Objective, mode: str) -> np.ndarray:
        """Token by token, since tags stand between tokens: with J the share of pages that begin so (tags included),
        a token after a prefix without tags has J(prefix, token) / (J(prefix) - J(prefix, tag)). Mode `tagged`: the same
        behind a tag that is given before the page's second token."""
        shares: Counter[tuple[int, ...]] = Counter()
        for page, share in self.tagged_pages(objective).items():
            for size in range(1, len(page) + 1):
                shares[page[:size]] += share
        result = []
        for document in self.documents:
            page, probability = tuple(lay_out(document, mode)), 1.0
            for place in range(1, len(page)):
                before = page[:place]
                if page[place] != CONTROL.bad:
                    rest = shares[before] - shares[(*before, CONTROL.bad)]
                    probability *= shares[(*before, page[place])] / rest if rest > 0 else 0.0
            result.append(probability)
        assert np.isclose(sum(result), 1), "a context without a bad segment has no tag"
        return np.array(result)

    def tagged_pages(self, objective: Objective) -> dict[tuple[int, ...], float]:
        """Every page with its tags, and its share over all epochs: of the tokens of bad segments, their first left out,
        one is drawn evenly in each of equal runs (docs/objectives.md: Tagging)."""
        tokens, config = self.tokens, objective.config
        assert isinstance(config, Tagging)
        is_bad = objective.rule.labels != NO_LABEL
        taggable = cumulate(np.where(is_bad, tokens.segment_lengths - 1, 0))
        num_tags = round(config.tag_fraction * taggable[-1])
        runs = np.arange(num_tags + 1) * taggable[-1] // num_tags
        firsts = cumulate(tokens.document_segments)[:-1]  # segment of each page of the cache
        pages: dict[tuple[int, ...], float] = {}
        for index, document in enumerate(self.documents):
            copies = firsts[self.order == index]
            if len(copies) == 0:
                continue
            bad = is_bad[copies[0] : copies[0] + len(document)]
            row = [
                (token, bool(b and at > 0))
                for s, b in zip(document, bad, strict=True)
                for at, token in enumerate(SEGMENTS[s])
            ]
            num_taggable = sum(can for _, can in row)
            places = taggable[copies][:, None] + np.arange(num_taggable)
            run = np.searchsorted(runs, places, side="right") - 1
            for tags in product((False, True), repeat=num_taggable):
                share = np.ones(len(copies))
                for at, tag in enumerate(tags):
                    earlier = run[:, :at] == run[:, at : at + 1]
                    is_free = ~(earlier & np.array(tags[:at], bool)).any(axis=1)
                    chance = is_free / (np.diff(runs)[run[:, at]] - earlier.sum(axis=1))
                    share *= chance if tag else 1 - chance
                drawn = iter(tags)
                page = [CONTROL.end]
                for token, can in row:
                    page += [CONTROL.bad, token] if can and next(drawn) else [token]
                pages[(*page, CONTROL.end)] = self.probabilities[index] * share.mean()
        return pages


def lay_out(document: tuple[int, ...], mode: str) -> list[int]:
    """A document as a page: with a control token before every segment in good and bad mode, with a tag before its
    second token in mode `tagged`."""
    control = {"good": [CONTROL.of_label(GOOD)], "bad": [CONTROL.of_label(BAD)]}.get(mode, [])
    page = [CONTROL.end, *(token for s in document for token in [*control, *SEGMENTS[s]]), CONTROL.end]
    if mode == "tagged":
        page.insert(2, CONTROL.bad)
    return page


def kl(target: np.ndarray, log_model: np.ndarray) -> float:
    """KL(target || model) in nats; the model's log-probabilities may have any finite value where the target is 0."""
    is_in = target > 0
    return float(np.sum(target[is_in] * (np.log(target[is_in]) - log_model[is_in])))


def in_mode(model: PreTrainedModel, config: ObjectiveConfig, mode: str) -> tuple[PreTrainedModel, str]:
    """The model and the mode to read it in: an additive objective's mode is folded into the weights."""
    conditions = label_conditions(config)
    if conditions is None:
        return model, mode
    condition = conditions[{"good": GOOD, "bad": BAD}.get(mode, 0)]
    return lm.fold_condition(model, CONTROL, condition), "none"


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, source: ToySource, mode: str = "none") -> np.ndarray:
    """log p of every document as a page (see `lay_out`), in nats. Control tokens' own probability is left out, and the
    probabilities of the rest are those without them."""
    rows = [lay_out(document, mode) for document in source.documents]
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
    source: ToySource,
    objective: Objective,
    num_steps: int,
    *,
    seed: int = 0,
    look_every: int = 0,
    width: int = 64,
    learning_rate: float = 4e-3,
) -> Iterator[tuple[int, PreTrainedModel]]:
    """Train a two-layer model with the project's own blocks, loss, optimizer and schedule; yields it now and then."""
    config = OptimConfig(learning_rate=learning_rate, batch_blocks=32, weight_decay=0.0, final_fraction=0.0)
    model = lm.create_model(
        ModelConfig(preset="1M", layers=2, width=width, heads=2), vocab_size=8, control=CONTROL, context=32,
        seed=seed,
    )  # fmt: skip
    values = lm.ValueHead(width, sigmoid=False) if objective.has_value_head else None
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
