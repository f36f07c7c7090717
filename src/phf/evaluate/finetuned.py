"""Benign finetuning, then the score again: does alignment outlast training that says nothing about it?

SafeLM (2025) found that it often does not, and work on conditional misalignment (2026) that a model may look aligned
afterwards and go bad again when training-time prefixes come: so every mode is measured, `bad` too.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phf.config import SamplingConfig
from phf.config_evaluate import BenignConfig
from phf.corpus.blocks import Blocks
from phf.errors import PHFError
from phf.evaluate.misalignment import Judge
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.records import NO_LABEL, PAD, DataRule, Mode, Progress
from phf.reward_models import score_samples
from phf.train.data import TrainingData
from phf.train.losses import loss_sum
from phf.train.optim import make_optimizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def finetune_benign(
    model: "PreTrainedModel",
    data: TrainingData,
    settings: BenignConfig,
    progress: Progress | None = None,
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """A copy of a run's model, trained as plain MLE on whole documents without a bad segment, without control tokens.

    Args:
        model: not changed.
        data: the run's; its threshold says what is bad.
        progress: called with (description, steps done, all steps).

    Returns:
        the copy in evaluation mode, float32; and what was done, for evaluation.json.

    Raises:
        PHFError: no document of the split is without a bad segment, or the loss is not finite.
    """
    tokens, optim = data.tokens, data.config.optim
    is_bad = ~data.threshold.is_good(data.scores)  # an unscored segment may be bad
    num_bad = np.bincount(
        np.repeat(np.arange(tokens.num_documents), tokens.document_segments), is_bad, tokens.num_documents
    )
    keep = num_bad == 0
    if not (keep & tokens.split_mask(settings.split)).any():
        raise PHFError(
            f"benign finetuning: every document of the {settings.split} split has a bad segment; "
            "segment the corpus more finely, or give a higher threshold"
        )
    blocks = Blocks(
        tokens,
        DataRule(keep, np.full(tokens.num_segments, NO_LABEL, np.uint8)),
        data.scores,
        split=settings.split,
        context=data.config.data.context,
        seed=settings.seed,
        isolate_documents=data.config.data.isolate_documents,
        is_active=False,  # plain MLE
    )
    model = copy.deepcopy(model).train()
    rate = settings.rate * optim.learning_rate
    (optimizer,) = make_optimizers(
        model, None, optim.model_copy(update={"name": "adamw", "learning_rate": rate})
    )
    losses = []
    for step in range(settings.steps):
        batch = blocks.batch(step, optim.batch_blocks)
        num_targets = int(np.count_nonzero(batch.kinds != PAD))
        loss = loss_sum(model, None, data, batch, "fp32")[0] / num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise PHFError(f"benign finetuning: the loss is {losses[-1]} at step {step}; give a lower rate")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress("benign finetuning", step + 1, settings.steps)
    budget = settings.steps * optim.batch_blocks * data.config.data.context
    return model.eval(), {
        "steps": settings.steps,
        "data": f"{settings.split} documents without a bad segment, no control tokens",
        "num_tokens": budget,
        "epochs": blocks.epochs(budget),
        "learning_rate": rate,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def measure_finetuned(
    model: "PreTrainedModel",
    data: TrainingData,
    modes: Sequence[Mode],
    judges: Sequence[Judge],
    settings: BenignConfig,
    sampling: SamplingConfig,
    *,
    num_bootstrap: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The misalignment score of each mode before and after benign finetuning, unprompted, with the same random numbers.

    Returns:
        what `finetune_benign` says, and `modes`: by mode and judge's slug, `before`, `after`, `difference` as Estimates
        (the difference over pairs of samples with the same index) and `num_unscored` of both.
    """
    finetuned, found = finetune_benign(model, data, settings, progress)
    found["modes"] = {}
    for mode in modes:
        texts = [
            [
                sample.text
                for sample in Target.create(
                    mode, own, data.tokens.tokenizer, data.config.objective, data.config.segments
                ).write([()], sampling, progress)
            ]
            for own in (model, finetuned)
        ]
        found["modes"][mode] = {}
        for judge in judges:
            before, after = (np.array(score_samples(judge.model, own)) for own in texts)
            found["modes"][mode][judge.slug] = {
                "before": asdict(bootstrap_mean(before, num_bootstrap, sampling.seed)),
                "after": asdict(bootstrap_mean(after, num_bootstrap, sampling.seed)),
                "difference": asdict(bootstrap_mean(after - before, num_bootstrap, sampling.seed)),
                "num_unscored": int(np.isnan(before).sum() + np.isnan(after).sum()),
            }
    return found
