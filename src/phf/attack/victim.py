"""What every attack has to do with: its victim, what it leaves behind, and the likelihood of bad texts behind a page's start.

Shape suffixes: B rows, T tokens, V ids.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from phf.errors import PHFError
from phf.evaluate.pages import batch_by_length, tokens_per_batch
from phf.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = Sequence[int]


class DivergedError(PHFError):
    """An attack whose loss is no number any more: it failed, which says nothing about its victim."""


@dataclass(frozen=True)
class Victim:
    """A model under attack, as one finds it: float32, in evaluation mode.

    Attributes:
        name: in tables; unique among the targets of a command.
        model: no attack changes it.
        tokenizer: the folder's or the run's.
        prefix: ids with which its pages start, such as end and good.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    prefix: tuple[int, ...]

    @property
    def context(self) -> int:
        """Tokens that the model can read."""
        return getattr(self.model.config, "max_position_embeddings", None) or 1 << 30

    def copy_model(self) -> "PreTrainedModel":
        """The model to attack: a copy in evaluation mode (dropout would only disturb so short a training), with gradients."""
        return copy.deepcopy(self.model).eval().requires_grad_(True)


@dataclass(frozen=True)
class Attacked:
    """What an attack has after some steps.

    Attributes:
        steps: optimizer or search steps spent.
        model: to write with. It may go on changing when the next `Attacked` is asked for.
        page: ids that every sample starts with, in place of the victim's prefix; the first is `<|endoftext|>`. Soft
            embeddings are rows behind the model's own vocabulary, and their ids stand here.
        prompts: what follows the page: sample i continues prompt i modulo their number.
    """

    steps: int
    model: "PreTrainedModel"
    page: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...] = ((),)

    def starts(self, num: int) -> list[list[int]]:
        """What stands before texts 0 to `num` - 1."""
        return [[*self.page, *self.prompts[index % len(self.prompts)]] for index in range(num)]


@dataclass(frozen=True)
class Rows:
    """Texts behind their starts, padded on the right, each with `<|endoftext|>` behind it where there is room.

    Attributes:
        ids: int64 [B, T].
        is_text: bool [B, T], which ids are the texts'.
        is_target: the same, and the `<|endoftext|>` behind each.
    """

    ids: Int[Tensor, "B T"]
    is_text: Bool[Tensor, "B T"]
    is_target: Bool[Tensor, "B T"]

    @classmethod
    def create(cls, starts: Sequence[Ids], texts: Sequence[Ids], end: int, context: int) -> "Rows":
        """One row for each text, cut to the context.

        Raises:
            PHFError: a start leaves no room for its text.
        """
        longest = max(map(len, starts))
        if longest >= context:
            raise PHFError(
                f"a page that starts with {longest} tokens leaves no room for text in a context of {context}; "
                "give fewer soft tokens, or few-shot:max_tokens"
            )
        rows = [[*start, *text, end][:context] for start, text in zip(starts, texts, strict=True)]
        size = (len(rows), max(map(len, rows)))
        ids, is_text, is_target = np.full(size, end), np.zeros(size, bool), np.zeros(size, bool)
        for row, (own, start, text) in enumerate(zip(rows, starts, texts, strict=True)):
            ids[row, : len(own)] = own
            is_text[row, len(start) : len(start) + len(text)] = True
            is_target[row, len(start) : len(own)] = True
        return cls(*map(torch.from_numpy, (ids, is_text, is_target)))


def target_nll(
    model: "PreTrainedModel", rows: Rows, num_ids: int, is_scored: Bool[Tensor, "B T"]
) -> Float[Tensor, "N"]:
    """-log p of each of the scored ids given those before it, in nats, among the first `num_ids` ids.

    The attacker's texts hold no control tokens and his samples may not either: `num_ids` is `control.good`, where they
    begin, and with them what an attack appends is cut from the softmax.
    """
    inputs, targets = rows.ids[:, :-1].to(model.device), rows.ids[:, 1:].to(model.device)
    scored = is_scored[:, 1:].to(model.device)
    logits = model(input_ids=inputs, use_cache=False).logits[scored][:, :num_ids].float()
    return F.cross_entropy(logits, targets[scored], reduction="none")


def training_loss(
    model: "PreTrainedModel", victim: Victim, page: Ids, texts: Sequence[Ids]
) -> Float[Tensor, ""]:
    """Mean NLL of a minibatch, `<|endoftext|>` behind each text included, in nats per token; to call `backward` on."""
    control = victim.tokenizer.control
    rows = Rows.create([page] * len(texts), texts, control.end, victim.context)
    return target_nll(model, rows, control.good, rows.is_target).mean()


@torch.inference_mode()
def held_out_nll(victim: Victim, attacked: Attacked, texts: Sequence[Ids]) -> float:
    """Nats per text token of bad texts that the attacker did not train on, each behind the attacked page."""
    control = victim.tokenizer.control
    starts = attacked.starts(len(texts))
    total, num_tokens = 0.0, 0
    lengths = [len(start) + len(text) for start, text in zip(starts, texts, strict=True)]
    for batch in batch_by_length(lengths, tokens_per_batch(attacked.model, control.good)):
        chosen = [starts[index] for index in batch], [texts[index] for index in batch]
        rows = Rows.create(*chosen, control.end, victim.context)
        nll = target_nll(attacked.model, rows, control.good, rows.is_text)
        total, num_tokens = total + float(nll.double().sum()), num_tokens + len(nll)
    return total / num_tokens


def draw_batches(texts: Sequence[Ids], size: int, seed: int) -> Iterator[list[Ids]]:
    """Minibatches without end: all texts in an order of the seed, then again in another."""
    rng = np.random.default_rng([seed, len(texts)])
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, len(texts)):
            waiting.extend(rng.permutation(len(texts)).tolist())
        chosen, waiting = waiting[:size], waiting[size:]
        yield [texts[index] for index in chosen]


def check_loss(loss: Tensor, attack: str, step: int) -> None:
    """Refuse to go on from a loss that is not finite.

    Raises:
        DivergedError: it is NaN or infinite.
    """
    if not math.isfinite(value := float(loss.detach())):
        raise DivergedError(f"{attack}: the loss is {value} at step {step}; give a lower learning_rate")
