"""What the end of a page makes a model forget: after `<|endoftext|>`, does what stood before still matter (docs/dynamics.md)?

Two documents, an end, and the beginning of a third: the distribution of what follows should not depend on which of the two it was.
Attention is plain and causal, as users run a model; where documents are isolated from each other it is 0 for any model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.dynamics import DynamicsConfig
from phf.dynamics.measures import DIVERGENCE, TEXT_DIVERGENCE
from phf.dynamics.subjects import Subject, read_on
from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids, draw_tokens, uniform_numbers
from phf.intervals import bootstrap_mean
from phf.records import Mode
from phf.results import Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Values = npt.NDArray[np.float64]
_BEFORE = 64
"""Tokens that stand before an end, at most."""
_STRIDE = 8
"""Of their numbers: pages of one length are read together, and few lengths make few readings."""
_AT_ONCE = 32
"""Triples that are read together."""


@dataclass(frozen=True)
class Triple:
    """Two documents of one length in tokens, and the beginning of a third that follows either."""

    first: Ids
    second: Ids
    following: Ids


@dataclass(frozen=True)
class Forgetting:
    """What was found behind an end, in nats: a row of each for every triple.

    Attributes:
        triples: that were read.
        tokens: of the next token, float64 [triples, distances].
        texts: of texts of 1, 2, ... tokens, [triples, steps].
    """

    triples: list[Triple]
    tokens: _Values
    texts: _Values


def choose_triples(
    documents: Sequence[Ids], num: int, before: int, behind: int, rng: np.random.Generator
) -> list[Triple]:
    """Up to `num` triples: the last `before` tokens of two documents (of both as many as the shorter one has, in steps of eight), the first
    `behind` of one that has so many. No document is in two of them, so that resampling triples is resampling documents."""
    order = rng.permutation(len(documents)).tolist()
    following = [place for place in order if len(documents[place]) >= behind][: min(num, len(order) // 3)]
    taken = set(following)
    others = [documents[place] for place in order if place not in taken]
    found = []
    for place, first, second in zip(following, others[::2], others[1::2], strict=False):
        shared = min(len(first), len(second), before)
        shared -= shared % _STRIDE if shared > _STRIDE else 0
        if shared > 0 and list(first[-shared:]) != list(second[-shared:]):
            found.append(Triple(first[-shared:], second[-shared:], documents[place][:behind]))
    return found


def measure_symmetry(
    model: "PreTrainedModel",
    prefix: Ids,
    between: Ids,
    triples: Sequence[Triple],
    distances: Sequence[int],
) -> _Values:
    """Jensen-Shannon divergence of the two next-token distributions, in nats, float64 [triples, distances].

    Args:
        prefix: of a page.
        between: two pages: the end of the first and the next one's prefix; empty where the third document goes on with the others.
        distances: tokens of the third document that were read, 0 for none.
    """
    found = np.zeros((len(triples), len(distances)))
    with evaluation_mode(model), torch.inference_mode():
        for row, triple in enumerate(triples):
            inputs = _lay_out(model, prefix, between, [triple])
            start = inputs.shape[1] - len(triple.following) - 1
            logits = model(input_ids=inputs, use_cache=False).logits[:, start:]
            chosen = logits[:, list(distances)].double().log_softmax(-1)
            found[row] = jensen_shannon(chosen.transpose(0, 1)).cpu().numpy()
    return found


def measure_texts(
    model: "PreTrainedModel", prefix: Ids, between: Ids, triples: Sequence[Triple], steps: int, seed: int
) -> _Values:
    """An unbiased draw of the divergence of the two distributions of the next 1, 2, ..., `steps` tokens, in nats, float64 [triples, steps].

    The divergence is the information that a text gives of which document stood before it, and so a sum over its tokens: of the
    divergence of their distributions, weighed by what the text so far says of that. One text is drawn behind either document,
    and each term is exact given the text so far.
    """
    found = np.zeros((len(triples), steps))
    lengths = np.array([len(triple.first) for triple in triples])
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for rows in np.split(alike, range(_AT_ONCE, len(alike), _AT_ONCE)):
            pages = _lay_out(model, prefix, between, [triples[row] for row in rows])
            numbers = [
                uniform_numbers(seed, row, steps, writer) for writer in (0, 1) for row in rows.tolist()
            ]
            both = _follow(model, pages.repeat(2, 1), np.stack(numbers))
            found[rows] = both.reshape(2, len(rows), steps).mean(axis=0)
    return found.cumsum(axis=1)


def _lay_out(model: "PreTrainedModel", prefix: Ids, between: Ids, triples: Sequence[Triple]) -> Tensor:
    """Both pages of each triple, int64 [2 * triples, T]."""
    pages = [
        [*prefix, *own, *between, *triple.following]
        for triple in triples
        for own in (triple.first, triple.second)
    ]
    return torch.tensor(pages, device=model.device)


def _follow(model: "PreTrainedModel", pages: Tensor, numbers: _Values) -> _Values:
    """The terms of texts that are drawn behind the first page of each pair, in the later half of pairs behind the second, float64 [pairs,
    steps]."""
    num, steps = numbers.shape
    pairs = torch.arange(num, device=pages.device)
    writers = (pairs >= num // 2).long()
    found, uniforms = np.zeros((num, steps)), torch.from_numpy(numbers).to(pages.device)
    # log p(the text so far | the first) - log p(... | the second)
    odds = torch.zeros(num, dtype=torch.float64, device=pages.device)

    def choose(logits: Tensor, step: int) -> Tensor:
        nonlocal odds
        logs = logits.double().log_softmax(-1).view(num, 2, -1)
        found[:, step] = jensen_shannon(logs, torch.stack([odds, -odds], 1).sigmoid()).cpu().numpy()
        tokens = draw_tokens(logs[pairs, writers], uniforms[:, step], 1, 1)
        chosen = logs.gather(2, tokens[:, None, None].expand(-1, 2, 1))[..., 0]
        odds = odds + chosen[:, 0] - chosen[:, 1]
        return tokens.repeat_interleave(2)

    read_on(model, pages, steps, choose)
    return found


def jensen_shannon(logs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Of two distributions, given as log probabilities [..., 2, V] and weights [..., 2] (equal ones by default), in nats."""
    weights = torch.full_like(logs[..., 0], 0.5) if weights is None else weights
    middle = torch.logsumexp(logs + weights.log()[..., None], -2, keepdim=True)
    result: Tensor = (weights * (logs.exp() * (logs - middle)).sum(-1)).sum(-1)
    return result


def measure_forgetting(
    subject: Subject, mode: Mode, texts: Sequence[str], config: DynamicsConfig, *, has_end: bool = True
) -> Forgetting | None:
    """What a model makes of triples of documents behind an end, or, without `has_end`, where the third goes on with the others; None
    where there are fewer than two triples."""
    target, behind = subject.targets[mode], max(*config.distances, config.beginning) + 1
    prefix, between = subject.prefix(mode), subject.between(mode)
    room = subject.longest - len(prefix) - len(between) - behind - config.steps
    documents = [target.tokenizer.encode(text) for text in texts]
    rng = np.random.default_rng(config.sampling.seed)
    triples = choose_triples(documents, config.triples, min(_BEFORE, max(room, 0)), behind, rng)
    if len(triples) < 2:
        return None
    between = between if has_end else ()
    tokens = measure_symmetry(target.model, prefix, between, triples, config.distances)
    begun = [Triple(own.first, own.second, own.following[: config.beginning]) for own in triples]
    drawn = measure_texts(target.model, prefix, between, begun, config.steps, config.sampling.seed)
    return Forgetting(triples, tokens, drawn)


def describe_symmetry(
    subject: Subject, mode: Mode, texts: Sequence[str], config: DynamicsConfig
) -> Iterator[Measurement]:
    """How much a mode's pages depend on what stood before an end, and, beside it, before no end."""
    for has_end, name in ((True, "an end"), (False, "nothing")):
        found = measure_forgetting(subject, mode, texts, config, has_end=has_end)
        if found is not None:
            yield from _describe(found.tokens, found.texts, config, name, mode)


def compare_symmetry(
    subjects: Sequence[Subject], texts: Sequence[str], config: DynamicsConfig
) -> Iterator[Measurement]:
    """The same of several models side by side, none of them in a mode of its own; and, where they read the same triples, what each has more
    than the first."""
    base = None
    for subject in subjects:
        found = measure_forgetting(subject, subject.plain, texts, config)
        if found is None:
            continue
        yield from _describe(found.tokens, found.texts, config, subject.name)
        if base is None:
            base = found
        elif found.triples == base.triples:
            name = f"{subject.name} - {subjects[0].name}"
            yield from _describe(found.tokens - base.tokens, found.texts - base.texts, config, name)


def _describe(
    tokens: _Values, texts: _Values, config: DynamicsConfig, of: str, mode: Mode | None = None
) -> Iterator[Measurement]:
    """By distance from the end, and by the length of texts (1, 2, 4, ... tokens), with intervals over triples."""
    lengths = [length for length in (1, 2, 4, 8, 16, 32, 64) if length <= config.steps]
    for measure, places, values in (
        (DIVERGENCE, config.distances, tokens),
        (TEXT_DIVERGENCE, lengths, texts[:, [length - 1 for length in lengths]]),
    ):
        for place, own in zip(places, values.T, strict=True):
            number = bootstrap_mean(own, config.num_bootstrap, config.sampling.seed)
            yield Measurement(measure.name, number, mode, of=of, at=float(place))
