"""E over own samples of grad log p = 0: the estimator of |E g|^2, and gradients of groups of samples (docs/loops.md).

With g_1 .. g_G the mean gradients of independent groups of samples, every product g_i . g_j of two different groups has the
expectation |E g|^2, so the mean over the off-diagonal of their Gram matrix (a U-statistic) is unbiased, while the diagonal, which
holds the noise, is left out. It may be below 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from phf.generate.engine import Ids
from phf.intervals import CONFIDENCE
from phf.loops.results import EFFECT, LEAST_EFFECT, P_VALUE, RELATIVE
from phf.records import Estimate
from phf.results import Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Values = npt.NDArray[np.float64]

_POWER = 0.8
_CHUNK = 1024
"""Flips that are looked at together."""


@dataclass(frozen=True)
class Effect:
    """What groups of samples say of |E g|^2.

    Attributes:
        value: U, the unbiased estimate.
        error: its standard error, by the jackknife over groups.
        p: two-sided, by sign flips.
        least: the |E g|^2 that is found at p < .05 four times in five.
        share: U over the mean squared norm of a single sample's gradient.
    """

    value: float
    error: float
    p: float
    least: float
    share: float
    num_samples: int

    def describe(self, case: str) -> list[Measurement]:
        """As measurements of a case."""
        half = float(ndtri((1 + CONFIDENCE) / 2)) * self.error

        def bare(value: float) -> Estimate:
            return Estimate(value, np.nan, np.nan, self.num_samples)

        value = Estimate(self.value, self.value - half, self.value + half, self.num_samples)
        scale = self.share / self.value if self.value else np.nan
        low, high = sorted((value.low * scale, value.high * scale))
        share = Estimate(self.share, low, high, self.num_samples)
        return [
            Measurement(EFFECT.name, value, of=case),
            Measurement(P_VALUE.name, bare(self.p), of=case),
            Measurement(LEAST_EFFECT.name, bare(self.least), of=case),
            Measurement(RELATIVE.name, share, of=case),
        ]


def find_effect(gram: _Values, group_size: int, num_flips: int, seed: int) -> Effect:
    """U, its jackknife error, its sign-flip p, and what it could have seen, from the Gram matrix of group gradients.

    If E g = 0 and the group means are symmetric about it, as means of many samples nearly are, a flip of any group's sign changes
    nothing, so U lies among its values under random flips like any of them. The p value is two-sided: weights of another sign than
    was thought of would show on the low side.

    Args:
        gram: [G, G], products of the groups' mean gradients.
        group_size: samples of a group.
    """
    num = len(gram)
    pairs, noise = num * (num - 1), float(np.trace(gram))
    value = float(gram.sum() - noise) / pairs
    # Without group i: its row and its column are gone.
    rows = gram.sum(1) - np.diag(gram)
    left = (gram.sum() - noise - 2 * rows) / ((num - 1) * (num - 2))
    error = float(np.sqrt((num - 1) * left.var()))
    flipped = _flip(gram, num_flips, seed) / pairs
    above, below = (flipped >= value).sum(), (flipped <= value).sum()
    p = min(1.0, 2 * (1 + min(above, below)) / (1 + num_flips))
    critical = float(np.quantile(flipped, (1 + CONFIDENCE) / 2))
    least = critical + float(ndtri(_POWER)) * max(error, float(flipped.std()))
    norm = (
        group_size * (noise / num - value) + value
    )  # of one sample: the variance of a mean, times its samples
    return Effect(value, error, float(p), least, value / norm if norm > 0 else np.nan, num * group_size)


def _flip(gram: _Values, num_flips: int, seed: int) -> _Values:
    """The sum of the off-diagonal products under random signs of the groups: [num_flips]."""
    rng, found = np.random.default_rng(seed), []
    for start in range(0, num_flips, _CHUNK):
        signs = rng.choice([-1.0, 1.0], (min(_CHUNK, num_flips - start), len(gram)))
        found.append(np.einsum("fi,fi->f", signs @ gram, signs))
    sums: _Values = np.concatenate(found) - np.trace(gram)
    return sums


@dataclass(frozen=True)
class Pages:
    """Samples as a model reads them.

    Attributes:
        rows: ids of each, with what stands before the text.
        starts: of each, the place of the first id that the model was to write.
    """

    rows: Sequence[Ids]
    starts: Sequence[int]

    def weigh(self, values: Sequence[float], starts: Sequence[int] | None = None) -> Tensor:
        """Weights of the ids after the first, [N, T - 1]: each page's value from its start (or another) on, and 0 elsewhere."""
        weights = torch.zeros(len(self.rows), max(map(len, self.rows)) - 1)
        for page, (row, start, value) in enumerate(
            zip(self.rows, starts or self.starts, values, strict=True)
        ):
            weights[page, start - 1 : len(row) - 1] = value
        return weights

    def take(self, chosen: slice) -> "Pages":
        """Some of them."""
        return Pages(self.rows[chosen], self.starts[chosen])


def find_gradients(
    model: "PreTrainedModel",
    pages: Pages,
    weights: Sequence[Tensor],
    allowed: npt.NDArray[np.bool_],
    stride: int = 1,
) -> Float[Tensor, "W P"]:
    """Gradients of the weighted sum of log p(id | ids before), by each of some weights; every `stride`-th parameter.

    Args:
        weights: [N, T - 1] each, see `Pages.weigh`.
        allowed: [ids in use], those that could be written: p is renormalised among them, as in sampling.
    """
    device, width = model.device, max(map(len, pages.rows))
    ids = torch.zeros(len(pages.rows), width, dtype=torch.int64)
    for page, row in enumerate(pages.rows):
        ids[page, : len(row)] = torch.tensor(row)
    ids = ids.to(device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[..., : len(allowed)].float()
    blocked = torch.from_numpy(~allowed).to(device)
    logs = logits.masked_fill(blocked, -torch.inf).log_softmax(-1)
    # What stands before the text may be blocked in it: it has no weight, and must not make NaN of 0.
    found = logs.gather(-1, ids[:, 1:, None])[..., 0]
    parameters = [own for own in model.parameters() if own.requires_grad]
    gradients = []
    for number, own in enumerate(weights):
        own = own.to(device)
        total = torch.where(own != 0, found, 0.0).mul(own).sum()
        parts = torch.autograd.grad(
            total, parameters, retain_graph=number + 1 < len(weights), allow_unused=True
        )
        flat = [
            (torch.zeros_like(parameter) if part is None else part).flatten()
            for parameter, part in zip(parameters, parts, strict=True)
        ]
        gradients.append(torch.cat(flat)[::stride].cpu())
    return torch.stack(gradients)


def find_grams(
    model: "PreTrainedModel",
    pages: Pages,
    weights: Sequence[Tensor],
    allowed: npt.NDArray[np.bool_],
    group_size: int,
    max_numbers: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[_Values]:
    """The Gram matrices [G, G] of the groups' mean gradients, by each of some weights of all pages."""
    num_groups = len(pages.rows) // group_size
    size = sum(own.numel() for own in model.parameters() if own.requires_grad)
    stride = max(1, -(-num_groups * size * len(weights) // max_numbers))
    found = []
    for group in range(num_groups):
        chosen = slice(group * group_size, (group + 1) * group_size)
        part = pages.take(chosen)
        width = max(map(len, part.rows)) - 1
        own = [weight[chosen, :width] / group_size for weight in weights]
        found.append(find_gradients(model, part, own, allowed, stride))
        report(group + 1)
    stacked = torch.stack(found, 1)  # [W, G, P]
    # In float64: what is looked for is a small difference of large products.
    return [(double @ double.T).numpy() for double in (one.double() for one in stacked)]
