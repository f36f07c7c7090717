"""Is there a state that pages do not come back from? Under a truncation of the next token's law there may be (docs/dynamics.md).

A softmax gives every token positive probability, so that any state is left at some time; top-p and top-k do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from phf.chains.pages import Pages
from phf.intervals import clopper_pearson
from phf.records import Estimate

if TYPE_CHECKING:
    from torch import nn
    from transformers.modeling_outputs import CausalLMOutput

_IMPOSSIBLE = 1e4
"""Subtracted from a logit: the token's probability is 0, unless all others are blocked."""


@contextmanager
def keep_likeliest(model: "nn.Module", num: int) -> Iterator[None]:
    """Let a model write only its `num` likeliest next tokens, and those as likely as the last of them."""

    def cut(_model: "nn.Module", _inputs: object, output: "CausalLMOutput") -> "CausalLMOutput":
        assert output.logits is not None
        least = output.logits.topk(min(num, output.logits.shape[-1])).values[..., -1:]
        output.logits = output.logits.where(output.logits >= least, output.logits - _IMPOSSIBLE)
        return output

    handle = model.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def estimate_returns(pages: Pages, state: int, home: int, within: int) -> tuple[list[Estimate], Estimate]:
    """What became of pages after their first segment of a state.

    One visit of each page, so that visits are independent and the exact interval of Clopper and Pearson holds: at no return of n
    visits it ends at about 3.7 / n. Visits too near the horizon are left out, and those of pages that were cut before they came
    back: where that happens, the shares that came back are rather too high.

    Returns:
        the share of visits after which `home` came on the page within 1, 2, ..., `within` segments; and of those after which it did
        not come, and the page did not end, within so many.
    """
    longest = pages.states.shape[1]
    seen = pages.take(np.flatnonzero((pages.states[:, : max(longest - within, 0)] == state).any(axis=1)))
    entered = (seen.states == state).argmax(axis=1)
    is_back = (seen.states == home) & (np.arange(longest) > entered[:, None])
    wait = np.where(is_back.any(axis=1), is_back.argmax(axis=1) - entered, longest)
    stays = (wait > within) & (seen.lengths > entered + within)
    num = int(((wait <= within) | stays | seen.ended).sum())
    returned = [clopper_pearson(int((wait <= segments).sum()), num) for segments in range(1, within + 1)]
    return returned, clopper_pearson(int(stays.sum()), num)
