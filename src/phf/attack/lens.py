"""Direction search: vectors added to the residual stream that make bad texts likely, found without any training.

What the attacker tries comes from the texts. At each place of the stream (`phf.model.residual`) there are two directions:

- *lens*: W_U^T (p_bad - p_model), the unembedding of the texts' tokens less that of the tokens the model expects
  there: what the logit lens (nostalgebraist 2020) reads as "more such words", wherever it stands;
- *gradient*: against the gradient of the texts' NLL by a vector added there, which for the last place is the same
  thing through the final norm;

each with several lengths, in units of the stream's own mean norm there. The best addition stays; a further round reads new
directions from the model as it is then. (The principal components of that gradient over tokens were tried too: none of
them, of any length and at any place, did better than nothing.)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from phf.attack.prefix import NUM_CHECKED
from phf.attack.victim import (
    Attacked,
    Ids,
    Rows,
    Victim,
    check_loss,
    draw_batches,
    held_out_nll,
)
from phf.config.attack import Lens
from phf.model.residual import add_to_residual, hook_place, residual_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Additions = Mapping[int, Float[Tensor, "D"]]
"""What is added at each place of the stream, at every position."""

LENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Of the vectors that are tried, as shares of the stream's mean norm at their place. From 0.2 on, all did harm to models of
1M parameters."""


def attack_lens(
    victim: Victim, texts: Sequence[Ids], settings: Lens, steps: Sequence[int], seed: int
) -> Iterator[Attacked]:
    """Search for additions to the residual stream that minimise the mean NLL of the texts.

    A step is one candidate tried on a minibatch; the best so far is what does best on a fixed sample of the texts, so it
    never gets worse. After `settings.candidates` of them, drawn from all directions, places and lengths, a new round
    starts from the best. The model that is yielded is a copy with the additions hooked in. For the arguments see
    `phf.attack.suite.run_attack`.

    Raises:
        PHFError: the model's layers cannot be found, or no room is left for text in the context.
        DivergedError: the loss is not finite.
    """
    rng = np.random.default_rng([seed, len(texts)])
    batches = draw_batches(texts, settings.batch_size, seed)
    checked = [texts[index] for index in rng.permutation(len(texts))[:NUM_CHECKED]]
    model = victim.copy_model()

    def measure(additions: Additions, on: Sequence[Ids]) -> float:
        with add_to_residual(model, additions):
            return held_out_nll(victim, Attacked(0, model, victim.prefix), on)

    best: Additions = {}
    loss = measure(best, checked)
    waiting: list[Additions] = []
    batch, bar = list(texts), loss
    for step in range(max(steps) + 1):
        if step > 0:
            if not waiting:
                batch = next(batches)
                waiting = list_candidates(victim, model, best, checked, settings.batch_size, step)
                waiting = [waiting[index] for index in rng.permutation(len(waiting))[: settings.candidates]]
                bar = measure(best, batch)
            candidate = waiting.pop()
            if (value := measure(candidate, batch)) < bar:
                bar = value
                if (better := measure(candidate, checked)) < loss:
                    best, loss = candidate, better
        if step in steps:
            yield Attacked(step, add_for_good(victim.copy_model(), best), victim.prefix)


def add_for_good(model: "PreTrainedModel", additions: Additions) -> "PreTrainedModel":
    """The same model, which from now on adds each vector to the stream at its place."""
    for place, vector in additions.items():

        def add(states: Tensor, vector: Tensor = vector) -> Tensor:
            return states + vector.to(states)

        hook_place(model, place, add)
    return model


def list_candidates(
    victim: Victim,
    model: "PreTrainedModel",
    base: Additions,
    texts: Sequence[Ids],
    batch_size: int,
    step: int = 0,
) -> list[Additions]:
    """Additions to try: `base` and one more vector each, of every direction, place and length.

    Args:
        model: a copy of the victim's whose parameters have gradients.
        texts: from which the directions are read, so many at a time.

    Raises:
        DivergedError: the loss is not finite.
    """
    control = victim.tokenizer.control
    weight: Tensor = model.get_output_embeddings().weight.detach()
    num_places = len(residual_layers(model)) + 1
    slopes = weight.new_zeros(num_places, weight.shape[1])
    norms = weight.new_zeros(num_places)
    surprise = weight.new_zeros(control.good)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        rows = Rows.create([victim.prefix] * len(batch), batch, control.end, victim.context)
        is_used = rows.is_text[:, 1:].to(model.device)  # where text is predicted
        targets = rows.ids[:, 1:].to(model.device)[is_used]
        states: list[Tensor] = []
        with add_to_residual(model, base), ExitStack() as stack:
            for place in range(num_places):
                stack.callback(hook_place(model, place, states.append).remove)
            logits = model(input_ids=rows.ids[:, :-1].to(model.device), use_cache=False).logits[is_used]
        logits = logits[:, : control.good].float()
        loss = F.cross_entropy(logits, targets, reduction="sum")
        check_loss(loss.detach(), "lens", step)
        slopes += torch.stack([slope.sum((0, 1)) for slope in torch.autograd.grad(loss, states)])
        norms += torch.stack([state.detach()[is_used].norm(dim=-1).mean() for state in states]) * len(batch)
        surprise += torch.bincount(targets, minlength=control.good)
        surprise -= logits.detach().softmax(-1).sum(0)
    lens = surprise @ weight[: control.good]
    candidates: list[Additions] = []
    for place in range(num_places):
        for direction in (lens, -slopes[place]):
            if (size := direction.norm()) > 0:
                unit = direction / size * norms[place] / len(texts)
                candidates += [{**base, place: base.get(place, 0) + unit * length} for length in LENGTHS]
    return candidates
