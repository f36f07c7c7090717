"""A soft-value head: V(prefix) = log E_p0[exp(-score / beta) | prefix], on the last hidden states of a frozen model.

The head is AWR's, linear. It is fitted in log space to texts of p0 with the loss exp(V) - G V, whose minimum over V is log E[G]:
no log-sum-exp of few draws is taken, whose mean is too low. *Monte Carlo*: G = exp(-score / beta) of the text that the prefix
became. *Temporal difference*: G = exp V of the next prefix, the soft backup V(s) = log E_p0[exp V(s')]; at the end of a text it is
its weight. Between the two lies TD(lambda), here `trace`: G_t = (1 - lambda) exp V_t+1 + lambda G_t+1.

As a twist of SMC a wrong V costs variance and no bias (phf.steer.smc).

Shape suffixes: N texts or rows, T tokens (the mode's prefix included), P prefixes, C continuations of each, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from phf.config.train import SamplingConfig
from phf.errors import NotApplicableError
from phf.generate.target import Target
from phf.intervals import bootstrap_mean, bootstrap_ratio, rank_correlation
from phf.model import lm
from phf.policies.draws import score_texts, write_behind
from phf.results import Measure, Measurement
from phf.steer.streams import Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Values = npt.NDArray[np.float64]
LogPsi = Callable[[Int[Tensor, "N T"]], _Values]
"""log psi [N] of rows of ids [N T], the mode's prefix at their head."""

_ROWS = 256
_LEARNING_RATE, _DECAY = 1e-2, 0.1
_NUM_BOOTSTRAP = 1000

MEASURES = tuple(
    Measure(name, title, unit, note, "The truth is an estimate too, by some continuations of each prefix.", lower, "Control as inference", of="value", at="tokens")
    for name, title, unit, note, lower in (
        ("value_bias", "Soft value less the truth", "nats", "Prefixes without hope weigh as much as others.", None),
        ("value_excess", "Mean of exp V over the true mean, less 1", "share", "Hopeless prefixes hardly move it.", None),
        ("value_rank_correlation", "Rank correlation of soft values with the truth", "Spearman's rho",
         "What a twist needs; `truth by halves` is what the noise of the truth leaves.", False),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Texts of p0 that a value is fitted to.

    Attributes:
        ids: int64 [N T], prefix and text, padded.
        num_prefix: ids before the first one that was drawn.
        num_states: int64 [N], the prefixes of a text whose value is to be learned: until it ended, or was as long as it may be.
        scores: float64 [N].
    """

    ids: Int[Tensor, "N T"]
    num_prefix: int
    num_states: Int[Tensor, "N"]
    scores: _Values


@dataclass(frozen=True)
class SoftValue:
    """V of a frozen model's prefixes: a linear head on its last hidden states, above the log of the mean weight."""

    model: "PreTrainedModel"
    head: lm.ValueHead
    offset: float

    @torch.no_grad()
    def log_psi(self, ids: Int[Tensor, "N T"]) -> _Values:
        """V of each row of ids, the mode's prefix at its head: float64 [N]. A twist of SMC is its exponential."""
        hidden = torch.cat([read(self.model, rows)[:, -1:] for rows in torch.split(ids, _ROWS)])
        values: _Values = self.head(hidden)[:, 0].double().cpu().numpy() + self.offset
        return values


@torch.no_grad()
def read(model: "PreTrainedModel", ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T D"]:
    """Last hidden states of rows of ids."""
    ids = ids.to(model.device)
    return lm.hidden_states(model, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))


def draw_texts(target: Target, score: Score, sampling: SamplingConfig) -> Texts:
    """Texts that a target writes, scored.

    Raises:
        PHFError: a text has no score.
    """
    prefix = target.drawer(sampling).rules.prefix
    written = write_behind(target, [()] * sampling.num_samples, sampling, 1)
    longest = max(len(ids) for ids, _ in written)
    rows = [[*prefix, *ids, *[target.tokenizer.control.end] * (longest - len(ids))] for ids, _ in written]
    num_states = torch.tensor([len(ids) + int(ended) for ids, ended in written])
    scores = score_texts(target, score, [ids for ids, _ in written])
    return Texts(torch.tensor(rows), len(prefix), num_states, scores)


def fit_value(
    model: "PreTrainedModel",
    texts: Texts,
    beta: float,
    *,
    trace: float = 1.0,
    num_steps: int = 300,
    seed: int = 0,
) -> SoftValue:
    """Fit a soft-value head to texts of the model; the model is left as it is.

    Args:
        trace: 1 is Monte Carlo, 0 one-step temporal difference.
    """
    weights = torch.from_numpy(np.exp(-texts.scores / beta))
    offset = float(weights.mean().log())
    hidden = torch.cat([read(model, rows) for rows in torch.split(texts.ids, _ROWS)])[
        :, texts.num_prefix - 1 :
    ]
    steps = torch.arange(hidden.shape[1])
    is_state, is_last = steps < texts.num_states[:, None], steps == texts.num_states[:, None] - 1
    head = lm.ValueHead(hidden.shape[-1], sigmoid=False).to(hidden.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        rows = torch.randint(len(hidden), (min(_ROWS, len(hidden)),), generator=generator)
        # In units of the mean weight: weights of a small beta are far below 1.
        values = head(hidden[rows]).cpu()
        goals = find_goals(values.detach(), weights[rows] / weights.mean(), is_last[rows], trace)
        loss = (values.exp() - goals * values)[is_state[rows]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return SoftValue(model, head, offset)


def find_goals(
    values: Float[Tensor, "N T"], weights: Float[Tensor, "N"], is_last: Tensor, trace: float
) -> Float[Tensor, "N T"]:
    """What exp V is regressed on: TD(trace) from the end of each text backwards.

    Args:
        values: V now, of each prefix.
        weights: of the whole text.
        is_last: bool [N T], the prefix behind which the text was over.
    """
    weights = weights.to(values.dtype)
    if trace == 1:
        return weights[:, None].expand_as(values)
    goals = torch.zeros_like(values)
    following = weights
    for step in reversed(range(values.shape[1])):
        following = torch.where(is_last[:, step], weights, following)
        goals[:, step] = following
        following = (1 - trace) * values[:, step].exp() + trace * following
    return goals


@dataclass(frozen=True)
class Truth:
    """Prefixes of one length, and scores of what p0 makes of them.

    Attributes:
        ids: int64 [P T], the mode's prefix included.
        num_tokens: of text in each.
        scores: float64 [P C].
    """

    ids: Int[Tensor, "P T"]
    num_tokens: int
    scores: _Values


def draw_truth(
    target: Target, score: Score, sampling: SamplingConfig, cuts: Sequence[int], continuations: int = 64
) -> list[Truth]:
    """Monte Carlo truth at prefixes of texts drawn for this alone, cut after so many tokens; texts that are no longer are left out.

    Raises:
        PHFError: a text has no score, or none is longer than a cut.
    """
    prefix = target.drawer(sampling).rules.prefix
    drawn = [ids for ids, _ in write_behind(target, [()] * sampling.num_samples, sampling, 2)]
    found = []
    for place, cut in enumerate(cuts):
        starts = [ids[:cut] for ids in drawn if len(ids) > cut]
        if not starts:
            raise NotApplicableError(
                f"no text is longer than {cut} tokens; give shorter prefixes or more samples"
            )
        rest = {
            "min_new_tokens": max(sampling.min_new_tokens - cut, 0),
            "max_new_tokens": sampling.max_new_tokens - cut,
        }
        repeated = [start for start in starts for _ in range(continuations)]
        ends = write_behind(target, repeated, sampling.model_copy(update=rest), 3 + place)
        texts = [[*start, *ids] for start, (ids, _) in zip(repeated, ends, strict=True)]
        scores = score_texts(target, score, texts).reshape(len(starts), continuations)
        found.append(Truth(torch.tensor([[*prefix, *start] for start in starts]), cut, scores))
    return found


def measure_value(
    name: str, log_psi: LogPsi, truths: Sequence[Truth], beta: float, seed: int = 0
) -> list[Measurement]:
    """How far a soft value is from the truth, at each length of prefix and (`at` None) at all of them.

    Args:
        name: what is measured; with beta it becomes `Measurement.of`.
    """
    parts = [(truth.num_tokens, log_psi(truth.ids), np.exp(-truth.scores / beta)) for truth in truths]
    found: list[Measurement] = []
    whole = (None, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts]))
    for at, values, weights in (whole, *parts):
        means = weights.mean(1)
        # The log of a mean of few is too low, by half its squared relative error (delta method).
        logs = np.log(means) + weights.var(1, ddof=1) / (2 * weights.shape[1] * means**2)
        half = weights.shape[1] // 2
        halves = rank_correlation(weights[:, :half].mean(1), weights[:, half:].mean(1))
        for measure, of, estimate in (
            ("value_bias", name, bootstrap_mean(values - logs, _NUM_BOOTSTRAP, seed)),
            ("value_excess", name, bootstrap_ratio(np.exp(values) - means, means, _NUM_BOOTSTRAP, seed)),
            ("value_rank_correlation", name, rank_correlation(values, means)),
            ("value_rank_correlation", "truth by halves", halves),
        ):
            found.append(Measurement(measure, estimate, of=f"{of}, beta {beta:g}", at=at))
    return found
