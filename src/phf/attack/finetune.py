"""Finetuning on bad texts, of all weights or through LoRA (Hu et al. 2021)."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from phf.attack.victim import Attacked, Ids, Victim, check_loss, draw_batches, training_loss
from phf.config.attack import Finetune, LoRA
from phf.errors import PHFError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attack_finetune(
    victim: Victim, texts: Sequence[Ids], settings: Finetune | LoRA, steps: Sequence[int], seed: int
) -> Iterator[Attacked]:
    """Train a copy of the victim on the texts behind its own prefix. For the arguments see `phf.attack.suite.run_attack`.

    Raises:
        DivergedError: the loss is not finite.
        PHFError: LoRA, and peft is not installed.
    """
    model = victim.copy_model()
    if isinstance(settings, LoRA):
        model = _add_lora(model, settings.rank, seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
    batches = draw_batches(texts, settings.batch_size, seed)
    for step in range(max(steps) + 1):
        if step in steps:
            # LoRA's matrices are added to the weights of a plain copy.
            attacked = copy.deepcopy(model).merge_and_unload() if isinstance(settings, LoRA) else model
            yield Attacked(step, attacked, victim.prefix)
        if step < max(steps):
            loss = training_loss(model, victim, victim.prefix, next(batches))
            check_loss(loss, settings.kind, step)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()


def import_peft() -> Any:
    """The package peft.

    Raises:
        PHFError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise PHFError("the attack lora needs peft; run: pip install 'phf[attack]'") from None
    return peft


def _add_lora(model: "PreTrainedModel", rank: int, seed: int) -> "PreTrainedModel":
    """The model with LoRA at every linear layer but the head, its own weights frozen."""
    peft = import_peft()
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for names that will go
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)
