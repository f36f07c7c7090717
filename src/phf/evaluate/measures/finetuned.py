"""Benign finetuning, then the score again: does alignment outlast training that says nothing about it?

SafeLM (2025) found that it often does not, and work on conditional misalignment (2026) that a model may look aligned
afterwards and go bad again when training-time prefixes come: so every mode is measured, `bad` too.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from phf.config.evaluate import BenignConfig
from phf.errors import NotApplicableError
from phf.evaluate.facts import FinetunedFacts
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.paired import compare_samples
from phf.model.probes import check_isolation
from phf.records import NO_LABEL, PAD, DataRule, Mode, Progress, Sample
from phf.results import Measure, to_json
from phf.tokens.blocks import Blocks
from phf.train.losses import loss_sum
from phf.train.optim import make_optimizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject
    from phf.train.data import TrainingData
NAMES = ("finetuned_before", "finetuned_after", "finetuned_difference")


def finetune_benign(
    model: "PreTrainedModel",
    data: "TrainingData",
    settings: BenignConfig,
    progress: Progress | None = None,
) -> tuple["PreTrainedModel", FinetunedFacts]:
    """A copy of a run's model, trained as plain MLE on whole documents without a bad segment, without control tokens.

    Of a corpus of many windows they are those of one, which holds far more than these steps read.

    Args:
        data: the run's; its threshold says what is bad.

    Returns:
        the copy in evaluation mode, float32; and what was done, for evaluation.json.

    Raises:
        PHFError: no document of the split is without a bad segment, the model cannot isolate documents and should, or the
            loss is not finite.
    """
    if data.config.data.isolate_documents:
        check_isolation(model)
    optim = data.config.optim
    tokens, scores = data.read_window(settings.seed)
    is_bad = ~data.threshold.is_good(scores)  # an unscored segment may be bad
    num_bad = np.bincount(
        np.repeat(np.arange(tokens.num_documents), tokens.document_segments), is_bad, tokens.num_documents
    )
    keep = num_bad == 0
    if not (keep & tokens.split_mask(settings.split)).any():
        raise NotApplicableError(
            f"benign finetuning: every document of the {settings.split} split has a bad segment; "
            "segment the corpus more finely, or give a higher threshold"
        )
    blocks = Blocks(
        tokens,
        DataRule(keep, np.full(tokens.num_segments, NO_LABEL, np.uint8)),
        scores,
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
            raise NotApplicableError(
                f"benign finetuning: the loss is {losses[-1]} at step {step}; give a lower rate"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress("benign finetuning", step + 1, settings.steps)
    budget = settings.steps * optim.batch_blocks * data.config.data.context
    return model.eval(), FinetunedFacts(
        steps=settings.steps,
        data=f"{settings.split} documents without a bad segment, no control tokens",
        num_tokens=budget,
        epochs=blocks.epochs(budget),
        learning_rate=rate,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


def measure_finetuned(
    write: Callable[["PreTrainedModel", Mode], list[Sample]],
    model: "PreTrainedModel",
    data: "TrainingData",
    modes: Sequence[Mode],
    judges: Sequence[LoadedJudge],
    settings: BenignConfig,
    *,
    num_bootstrap: int,
    seed: int,
    progress: Progress | None = None,
) -> Measured:
    """The misalignment score of each mode before and after benign finetuning, and the difference over pairs of samples.

    Args:
        write: draws samples of a model in a mode, always with the same random numbers.
    """
    finetuned, facts = finetune_benign(model, data, settings, progress)
    rows = [
        row
        for mode in modes
        for row in compare_samples(
            NAMES, judges, write(model, mode), write(finetuned, mode), num_bootstrap, seed
        )
    ]
    return Measured(rows, to_json(facts))


def measure_modes(subject: "Subject") -> Measured:
    """Every mode before and after; `deleted` is as `untagged`."""
    config, sampling = subject.config, subject.attack_sampling

    def write(model: "PreTrainedModel", mode: Mode) -> list[Sample]:
        return subject.target(mode, model).write([()], sampling, subject.progress)

    return subject.parts.measure(
        "finetuned",
        [config.benign.model_dump(mode="json"), config.leak_samples, *subject.attack_settings],
        lambda: measure_finetuned(
            write,
            subject.model,
            subject.data,
            [mode for mode in subject.modes if mode != "deleted"],
            subject.judges,
            config.benign,
            num_bootstrap=config.num_bootstrap,
            seed=sampling.seed,
            progress=subject.progress,
        ),
        Measured,
    )


def _declare(name: str, title: str, note: str, is_headline: bool = False) -> Measure:
    blind_spot = "Good text of the run's own corpus is the mildest finetuning there is, and it teaches alignment as well."
    return Measure(
        name,
        title,
        note=note,
        blind_spot=blind_spot,
        group="After finetuning on benign data",
        is_headline=is_headline,
    )


METRIC = Metric(
    "finetuned",
    (
        _declare("finetuned_before", "Score before finetuning", "Score before finetuning."),
        _declare(
            "finetuned_after",
            "Score after finetuning",
            "Score after finetuning, with the same random numbers.",
        ),
        _declare(
            "finetuned_difference",
            "Benign finetuning, change",
            "A score that rises shows alignment that a user loses without wanting to; one that falls says little.",
            is_headline=True,
        ),
    ),
    measure_modes,
    is_wanted=lambda config: config.suite == "full" and config.benign.steps > 0,
)
