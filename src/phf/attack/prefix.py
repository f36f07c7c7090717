"""Prefix search: real tokens before a text that call up bad mode, found by greedy coordinate gradient.

GCG (Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models", algorithm 1), for the
mean likelihood of many texts instead of one: the gradient of the loss by the one-hot vector of each token of the prefix
says which swaps promise most, some of them are tried on a minibatch, and the best is kept. Here it is kept only if it
also helps on a fixed sample of the attacker's texts, so what the search returns never gets worse.

The prefix is ids. A text tokenizer need not give the same ids for their text, as an attacker behind an interface that takes
text alone would find; `typable` searches only among those for which it does.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from phf.attack.victim import (
    Attacked,
    Ids,
    Victim,
    check_loss,
    draw_batches,
    held_out_nll,
    training_loss,
)
from phf.config.attack import PrefixSearch
from phf.errors import PHFError
from phf.tokens.tokenizer import Tokenizer

NUM_CHECKED = 256
"""Texts of the attacker at most on which a find must prove itself: they decide, so a minibatch's luck does not."""


def attack_prefix(
    victim: Victim, texts: Sequence[Ids], settings: PrefixSearch, steps: Sequence[int], seed: int
) -> Iterator[Attacked]:
    """Search for `settings.tokens` tokens behind the start of a page that minimise the mean NLL of the texts.

    A step is one gradient and `settings.candidates` swaps on a minibatch. The search starts from tokens of the texts, drawn
    by the seed; until it has found better than none, the page is the start alone. For the arguments see
    `phf.attack.suite.run_attack`.

    Raises:
        PHFError: no typable prefix of the texts' tokens exists, or no room is left for text in the context.
        DivergedError: the loss is not finite.
    """
    rng = np.random.default_rng([seed, len(texts)])
    batches = draw_batches(texts, settings.batch_size, seed)
    checked = [texts[index] for index in rng.permutation(len(texts))[:NUM_CHECKED]]
    is_real = real_tokens(victim.tokenizer)
    start = victim.prefix if settings.keeps_prefix else victim.prefix[:1]

    def measure(tokens: Ids, on: Sequence[Ids]) -> float:
        return held_out_nll(victim, Attacked(0, victim.model, (*start, *tokens)), on)

    def is_allowed(tokens: Ids) -> bool:
        return not settings.typable or is_typable(victim.tokenizer, tokens)

    bare = measure((), checked)
    tokens: tuple[int, ...] = ()
    loss = bare
    for step in range(max(steps) + 1):
        if step == 1:
            tokens = _draw_start(texts, settings.tokens, rng, is_allowed, is_real)
            loss = measure(tokens, checked)
        if step > 0:
            batch = next(batches)
            promise = -one_hot_gradient(victim, (*start, *tokens), batch, step)[len(start) :]
            promise -= promise.gather(1, torch.tensor(tokens, device=promise.device)[:, None])
            swaps = _draw_swaps(promise.cpu().double().numpy(), tokens, is_real, settings.candidates, rng)
            found = [swap for swap in swaps if is_allowed(swap)]
            # The minibatch proposes, the fixed sample decides: what suits one batch alone is not kept.
            values = [measure(swap, batch) for swap in (tokens, *found)]
            best = int(np.argmin(values))
            if best > 0 and (better := measure(found[best - 1], checked)) < loss:
                tokens, loss = found[best - 1], better
        if step in steps:  # an attacker who has found nothing better writes no prefix
            yield Attacked(step, victim.model, (*start, *(tokens if loss < bare else ())))


def real_tokens(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Which ids a text may hold: neither control tokens, `<|endoftext|>` nor another special token; bool [control.good]."""
    is_real = np.ones(tokenizer.control.good, bool)
    added = tokenizer.backend.get_added_tokens_decoder()
    special = [tokenizer.control.end, *(index for index, token in added.items() if token.special)]
    is_real[[index for index in special if index < len(is_real)]] = False
    return is_real


def is_typable(tokenizer: Tokenizer, tokens: Ids) -> bool:
    """Whether the text of some ids is tokenized into the same ids."""
    return tokenizer.encode(tokenizer.decode(tokens)) == list(tokens)


def one_hot_gradient(victim: Victim, page: Ids, texts: Sequence[Ids], step: int = 0) -> Float[Tensor, "P V"]:
    """Gradient of the mean NLL of the texts by the one-hot vector of each of the page's tokens, over text ids.

    Raises:
        DivergedError: the loss is not finite.
    """
    embed = victim.model.get_input_embeddings()
    found: list[Tensor] = []

    def catch(module: Any, args: Any, output: Tensor) -> Tensor:
        found.append(output if output.requires_grad else output.requires_grad_())
        return found[0]

    handle = embed.register_forward_hook(catch)
    try:
        loss = training_loss(victim.model, victim, page, texts)
    finally:
        handle.remove()
    check_loss(loss.detach(), "prefix", step)
    (gradient,) = torch.autograd.grad(loss, found)
    vocabulary: Tensor = embed.weight.detach()[: victim.tokenizer.control.good]
    return gradient.sum(0)[: len(page)].float() @ vocabulary.T.float()


def _draw_start(
    texts: Sequence[Ids],
    num: int,
    rng: np.random.Generator,
    is_allowed: Callable[[Ids], bool],
    is_real: npt.NDArray[np.bool_],
) -> tuple[int, ...]:
    """Tokens of the texts, one after the other, each such that what is there so far is allowed."""
    pool = np.array([token for text in texts for token in text if is_real[token]])
    tokens: tuple[int, ...] = ()
    for _ in range(num):
        chosen = next(
            (
                token
                for token in dict.fromkeys(rng.permutation(pool).tolist())
                if is_allowed((*tokens, token))
            ),
            None,
        )
        if chosen is None:
            raise PHFError(
                f"no {num} tokens of the texts can be typed; give prefix:tokens=1, or prefix:typable=false"
            )
        tokens = (*tokens, chosen)
    return tokens


def _draw_swaps(
    promise: npt.NDArray[np.float64],
    tokens: tuple[int, ...],
    is_real: npt.NDArray[np.bool_],
    num: int,
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """`num` prefixes that differ in one token, drawn evenly from the `num` most promising swaps of each place.

    Args:
        promise: [places, ids], how far the loss falls by the gradient.
    """
    promise = np.where(is_real, promise, -np.inf)
    promise[np.arange(len(tokens)), tokens] = -np.inf
    size = min(num, int(is_real.sum()) - 1)
    top = np.argsort(-promise, axis=1, kind="stable")[:, :size]
    drawn = rng.permutation(top.size)[:num]
    swaps = []
    for place, rank in zip(*np.unravel_index(drawn, top.shape), strict=True):
        swap = list(tokens)
        swap[place] = int(top[place, rank])
        swaps.append(tuple(swap))
    return swaps
