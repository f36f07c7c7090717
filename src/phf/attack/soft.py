"""Soft embeddings in the place of `<|bad|>` (Lester et al. 2021): the least an attacker can add to a frozen model."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from phf.attack.victim import Attacked, Ids, Victim, check_loss, draw_batches, training_loss
from phf.config.attack import Soft


def attack_soft(
    victim: Victim, texts: Sequence[Ids], settings: Soft, steps: Sequence[int], seed: int
) -> Iterator[Attacked]:
    """Optimise `settings.tokens` input embeddings behind the start of a page, so that the texts follow.

    They are rows appended behind the model's vocabulary, which start as the embeddings of tokens of the texts. For the
    arguments see `phf.attack.suite.run_attack`.

    Raises:
        DivergedError: the loss is not finite.
    """
    model = victim.copy_model().requires_grad_(False)
    num_rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(num_rows + settings.tokens, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    rng = np.random.default_rng([seed, settings.tokens])
    with torch.no_grad():
        weight[num_rows:] = weight[rng.choice(np.concatenate(texts), settings.tokens)]
    weight.requires_grad_(True)
    is_soft = (torch.arange(len(weight), device=weight.device) >= num_rows)[:, None]
    weight.register_hook(lambda gradient: gradient * is_soft)  # Adam leaves alone what never had a gradient
    optimizer = torch.optim.Adam([weight], lr=settings.learning_rate)
    start = victim.prefix if settings.keeps_prefix else victim.prefix[:1]
    page = (*start, *range(num_rows, num_rows + settings.tokens))
    batches = draw_batches(texts, settings.batch_size, seed)
    for step in range(max(steps) + 1):
        if step in steps:
            yield Attacked(step, model, page)
        if step < max(steps):
            loss = training_loss(model, victim, page, next(batches))
            check_loss(loss, "soft", step)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
