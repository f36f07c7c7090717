"""A model's own view of its pages: the labels that it gives while it writes, and what it expects behind labels that it was given.

No judge is needed: a model with control tokens says at the end of each segment how probable it is that a bad one follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.chains.chain import count_steps, draw_weights, estimate_share, subtract_shares
from phf.chains.pages import AFTER, Pages
from phf.chains.written import BAD, GOOD
from phf.config.dynamics import DynamicsConfig
from phf.dynamics.measures import COMING_BACK, OWN_HAZARD, RELAXATION
from phf.dynamics.subjects import Score, Subject, read_on
from phf.generate.engine import draw_tokens, uniform_numbers
from phf.intervals import bootstrap_mean, percentile_estimate
from phf.records import Estimate
from phf.results import Measurement

_Values = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.int64]
_OTHER = 2
"""A label between good and bad."""
_END = 3
_ROWS = 64


@dataclass(frozen=True)
class Labelled:
    """Pages that a model labelled while it wrote them.

    Attributes:
        labels: int [pages, longest], GOOD, BAD or another; AFTER beyond the last.
        views: float64 [pages, longest, 4]: where a segment begins, the probability of the label good, of bad, of another, and
            of the page's end, given that one of these comes; NaN beyond the last.
        segments: ids of each whole segment of each page.
        ended: bool [pages].
    """

    labels: _Labels
    views: _Values
    segments: list[list[list[int]]]
    ended: npt.NDArray[np.bool_]


def write_labelled(
    subject: Subject, given: Sequence[int], longest: int, num: int, seed: int, stream: int = 0
) -> Labelled:
    """Pages with a label before each segment: those given first, then the model's own. Where labels are given, pages are kept from ending.

    Args:
        given: GOOD or BAD, of the first segments.
        longest: labels of a page at most.
    """
    parts = [
        _write_rows(subject, given, longest, range(start, min(start + _ROWS, num)), seed, stream)
        for start in range(0, num, _ROWS)
    ]
    return Labelled(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.views for part in parts]),
        [page for part in parts for page in part.segments],
        np.concatenate([part.ended for part in parts]),
    )


def _write_rows(
    subject: Subject, given: Sequence[int], longest: int, indices: range, seed: int, stream: int
) -> Labelled:
    target, num = subject.targets["none"], len(indices)
    control, steps = target.tokenizer.control, subject.longest - 1
    kinds = np.array([GOOD, BAD, *[_OTHER] * control.num_levels, _END])
    breaks = np.array([*control.all, control.end])  # what may stand between two segments, `kinds` of it
    numbers = np.stack([uniform_numbers(seed, index, 2 * steps, stream) for index in indices])
    labels, views = np.full((num, longest), AFTER), np.full((num, longest, 4), np.nan)
    count, done, ended = np.zeros(num, np.int64), np.zeros(num, np.bool_), np.zeros(num, np.bool_)
    segments: list[list[list[int]]] = [[] for _ in indices]

    def choose(logits: Tensor, step: int) -> Tensor | None:
        uniforms = torch.from_numpy(numbers[:, step]).to(logits.device)
        ids = draw_tokens(logits, uniforms, 1, 1).cpu().numpy()
        law = logits[:, torch.from_numpy(breaks).to(logits.device)].double().softmax(-1).cpu().numpy()
        for row in np.flatnonzero(~done):
            if step and ids[row] not in breaks:
                segments[row][-1].append(int(ids[row]))
                continue
            place = count[row]
            if place == longest:
                done[row] = True
                continue
            views[row, place] = np.bincount(kinds, law[row], minlength=4)
            kept = np.where((kinds == _END) & (step == 0 or len(given) > 0), 0, law[row]).cumsum()
            drawn = int((numbers[row, steps + step] * kept[-1] >= kept).sum())
            if place < len(given):
                drawn = int(np.flatnonzero(kinds == given[place])[0])
            ids[row] = breaks[drawn]
            done[row] = ended[row] = kinds[drawn] == _END
            if not done[row]:
                labels[row, place] = kinds[drawn]
                count[row] += 1
                segments[row].append([])
        return None if done.all() else torch.from_numpy(ids).to(logits.device)

    start = torch.tensor([subject.prefix("none")] * num, device=target.model.device)
    read_on(target.model, start, steps, choose)
    for row in np.flatnonzero(~done):  # the context ended within its last segment
        segments[row].pop()
    return Labelled(labels, views, segments, ended)


def describe_hazards(
    subject: Subject, config: DynamicsConfig, score: Score | None, threshold: float
) -> Iterator[Measurement]:
    """How often good turns bad, and bad good, by the labels that the model would give, and by the judge of the same pages."""
    found = write_labelled(subject, (), config.longest, config.prefixes, config.sampling.seed)
    judged = None if score is None else _judge(subject, found, score, threshold)
    drawn = draw_weights(len(found.labels), config.num_bootstrap, config.sampling.seed)
    for first, second, name in ((GOOD, BAD, "good -> bad"), (BAD, GOOD, "bad -> good")):
        at_risk = (found.labels[:, :-1] == first) & ~np.isnan(found.views[:, 1:, 0])
        hits = np.where(at_risk, found.views[:, 1:, second], 0).sum(axis=1)
        own = estimate_share(hits, at_risk.sum(axis=1), drawn)
        yield Measurement(OWN_HAZARD.name, own[0], "none", of=name)
        if judged is None:
            continue
        steps = count_steps(judged)[:, first]
        theirs = estimate_share(steps[:, second], steps.sum(axis=1), drawn)
        yield Measurement(OWN_HAZARD.name, theirs[0], "none", of=f"{name}, judged")
        gap = subtract_shares(own, theirs, theirs[0].count)
        yield Measurement(OWN_HAZARD.name, gap, "none", of=f"{name}, own view - judged")


def _judge(subject: Subject, found: Labelled, score: Score, threshold: float) -> Pages:
    """Pages of the same rows by a judge, each cut before its first segment without a score."""
    decode = subject.targets["none"].tokenizer.decode
    scores = iter(score([decode(ids) for page in found.segments for ids in page]))
    states, ended = np.full(found.labels.shape, AFTER), found.ended.copy()
    for row, page in enumerate(found.segments):
        own = np.array([next(scores) for _ in page], np.float64)
        length = int(np.append(np.flatnonzero(np.isnan(own)), len(own))[0])
        states[row, :length] = np.where(own[:length] > threshold, BAD, GOOD)
        ended[row] &= length == len(own)
    return Pages(states, ended, 2)


def describe_relaxation(subject: Subject, config: DynamicsConfig) -> Iterator[Measurement]:
    """Curves behind k labels of one kind and one more, of the same or the other kind; and what they differ in."""
    k, horizon, curves = config.given, config.relaxation, {}
    for stream, (most, last) in enumerate(((GOOD, BAD), (GOOD, GOOD), (BAD, GOOD), (BAD, BAD))):
        given = [most] * k + [last]
        found = write_labelled(
            subject, given, k + 1 + horizon, config.prefixes, config.sampling.seed, 1 + stream
        )
        views = found.views[:, k + 1 :]
        curves[most, last] = views[..., BAD] / (views[..., GOOD] + views[..., BAD])
        name = f"{k} {_NAMES[most]}, 1 {_NAMES[last]}"
        for place, own in enumerate(curves[most, last].T):
            number = bootstrap_mean(own, config.num_bootstrap, config.sampling.seed)
            yield Measurement(RELAXATION.name, number, "none", of=name, at=float(place + 1))
    signs = {(GOOD, BAD): 1, (GOOD, GOOD): -1, (BAD, GOOD): 1, (BAD, BAD): -1}
    next_one = {pair: curves[pair][:, 0] for pair in ((GOOD, GOOD), (GOOD, BAD))}
    # to fall - to come back = P(bad | good) - (1 - P(bad | good, then bad))
    harder = _combine(next_one, dict.fromkeys(next_one, 1), config, -1)
    yield Measurement(COMING_BACK.name, harder, "none", of="to fall - to come back")
    totals = {pair: curve.sum(axis=1) for pair, curve in curves.items()}
    yield Measurement(COMING_BACK.name, _combine(totals, signs, config), "none", of="asymmetry")


_NAMES = {GOOD: "good", BAD: "bad"}


def _combine(
    parts: dict[tuple[int, int], _Values],
    signs: dict[tuple[int, int], int],
    config: DynamicsConfig,
    constant: float = 0,
) -> Estimate:
    """A sum of means, each plus or minus, of pages drawn apart, with percentiles of a bootstrap over the pages of each."""
    known = {pair: own[~np.isnan(own)] for pair, own in parts.items()}
    if not all(map(len, known.values())):
        return percentile_estimate(np.nan, [], 0)
    mean, again = constant, np.full(config.num_bootstrap, float(constant))
    for number, (pair, own) in enumerate(known.items()):
        weights = draw_weights(len(own), config.num_bootstrap, config.sampling.seed + number)
        mean += signs[pair] * own.mean()
        again += signs[pair] * (weights @ own) / len(own)
    return percentile_estimate(float(mean), again, min(map(len, known.values())))
