"""What one step learns from: each method as a `Learner`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from phf.config.finetune import RLOO, BestOfN
from phf.errors import PHFError
from phf.finetune.pool import Pool
from phf.finetune.proxy import Proxies
from phf.finetune.rloo import find_advantages, rloo_loss
from phf.finetune.start import Start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Update = Callable[[Tensor], float]
"""Takes an optimizer step down a loss; returns the norm of its gradient."""


@dataclass(frozen=True)
class Used:
    """What learning has cost: texts that were scored, and tokens that the model wrote (None: those that the steps logged)."""

    calls: int
    tokens: int | None


class Learner(Protocol):
    """A method, with all it learns from."""

    def step(self, model: "PreTrainedModel", step: int, update: Update) -> dict[str, float]:
        """Learn from the texts of a step, counted from 0, which follow from the seed, the step and the weights; what is logged of it."""


class OnPolicy:
    """RLOO on samples of the policy as it is."""

    def __init__(self, start: Start, settings: RLOO, proxies: Proxies) -> None:
        self._settings, self._proxies = settings, proxies
        self._group = settings.group or start.config.texts

    def step(self, model: "PreTrainedModel", step: int, update: Update) -> dict[str, float]:
        """Write, score, and climb the reward."""
        start, settings = self._proxies.at(step, model), self._settings
        num = start.config.texts
        groups = range(step * num // self._group, (step + 1) * num // self._group)
        prompts = [start.prompts[group % len(start.prompts)] for group in groups for _ in range(self._group)]
        texts, decoded = start.write(model, prompts, 0, "", None, step * num)
        scores = torch.from_numpy(start.score(decoded)).to(model.device)
        if scores.isnan().all():
            raise PHFError(
                f"{start.reward.slug} gave none of {num} texts a score; give another --reward or --max-new-tokens"
            )
        laid = start.drawing.lay_out(prompts, texts)
        with torch.no_grad():
            reference = start.drawing.log_probs(start.model, laid).double().sum(1)
        for number in range(settings.passes):
            own = start.drawing.log_probs(model, laid).double().sum(1)
            if number == 0:
                old = own.detach()
                kl = old - reference
                advantages = find_advantages(-scores - settings.beta * kl, self._group)
            loss = rloo_loss(own, old, advantages, settings.clip)
            norm = update(loss)
        return {
            # The surrogate's own value is the mean advantage, which is 0.
            "loss": float((scores + settings.beta * kl).nanmean()),
            "score": float(scores.nanmean()),
            "kl_text": float(kl.mean()),
            "kl_token": float(kl.sum() / laid.lengths.sum()),
            "length": float(laid.lengths.mean()),
            "unscored": int(scores.isnan().sum()),
            "calls": (step + 1) * num,
            "grad_norm": norm,
        }


class Likelihood:
    """Weighted maximum likelihood of one pool's texts: by their chance to be the best of n."""

    def __init__(self, start: Start, settings: BestOfN, pool: Pool) -> None:
        self._start, self._pool = start, pool
        self._weights = pool.weigh_best(settings.n)

    def step(self, model: "PreTrainedModel", step: int, update: Update) -> dict[str, float]:
        """Texts drawn by their weights, so that each counts once."""
        rng = np.random.default_rng([self._start.config.seed or 0, step])
        chosen = rng.choice(len(self._weights), self._start.config.texts, p=self._weights)
        prompts, texts = self._pool.take(chosen)
        laid = self._start.drawing.lay_out([self._start.prompts[prompt] for prompt in prompts], texts)
        log_probs = self._start.drawing.log_probs(model, laid).double()
        loss = -log_probs.sum() / laid.lengths.sum()
        return {
            "loss": float(loss.detach()),
            "score": float(self._pool.scores[chosen].mean()),
            "length": float(laid.lengths.mean()),
            "calls": len(self._pool.scores),
            "grad_norm": update(loss),
        }
