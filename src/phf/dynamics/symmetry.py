"""What the end of a page makes a model forget: after `<|endoftext|>`, does what stood before still matter (docs/dynamics.md)?

Two documents, an end, and the beginning of a third: the distribution of what follows should not depend on which of the two it was.
Attention is plain and causal, as users run a model; where documents are isolated from each other it is 0 for any model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Triple:
    """Two documents of one length in tokens, and the beginning of a third that follows either."""

    first: Ids
    second: Ids
    following: Ids


def choose_triples(
    documents: Sequence[Ids], num: int, before: int, behind: int, rng: np.random.Generator
) -> list[Triple]:
    """Up to `num` triples of different documents: the last `before` tokens of two (of both as many as the shorter one has), the
    first `behind` of one that has so many."""
    order = rng.permutation(len(documents)).tolist()
    following = [place for place in order if len(documents[place]) >= behind]
    found = []
    for place in following:
        others = [
            own for own in rng.choice(order, min(8, len(order)), replace=False).tolist() if own != place
        ][:2]
        if len(others) < 2:
            continue
        first, second = (documents[own] for own in others)
        shared = min(len(first), len(second), before)
        if shared > 0 and list(first[-shared:]) != list(second[-shared:]):
            found.append(Triple(first[-shared:], second[-shared:], documents[place][:behind]))
        if len(found) == num:
            break
    return found


def measure_symmetry(
    model: "PreTrainedModel",
    prefix: Ids,
    triples: Sequence[Triple],
    distances: Sequence[int],
    has_end: bool = True,
    report: Callable[[int], None] | None = None,
) -> _Values:
    """Jensen-Shannon divergence of the two next-token distributions, in nats, float64 [triples, distances].

    Args:
        prefix: of every page, its end token first.
        distances: tokens of the third document that were read, 0 for none.
        has_end: whether the third document is a page of its own; else it goes on where the others stop.
        report: called with how many triples were read.
    """
    found = np.zeros((len(triples), len(distances)))
    with evaluation_mode(model), torch.inference_mode():
        for row, triple in enumerate(triples):
            between = list(prefix) if has_end else []
            pages = [[*prefix, *own, *between, *triple.following] for own in (triple.first, triple.second)]
            inputs = torch.tensor(pages, device=model.device)
            start = len(pages[0]) - len(triple.following) - 1
            logits = model(input_ids=inputs, use_cache=False).logits[:, start:]
            chosen = logits[:, list(distances)].double()
            found[row] = jensen_shannon(chosen[0], chosen[1]).cpu().numpy()
            if report is not None:
                report(row + 1)
    return found


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Of the distributions of logits [..., V], in nats: between 0 and log 2."""
    logs = torch.stack([first, second]).log_softmax(-1)
    middle = torch.logsumexp(logs, 0) - np.log(2)
    result: Tensor = 0.5 * (logs.exp() * (logs - middle)).sum(-1).sum(0)
    return result
