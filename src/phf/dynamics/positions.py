"""Pages one after the other in one context, under plain causal attention: what text costs and how bad it is, by position."""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.dynamics import DynamicsConfig
from phf.corpus.segment import segment_ends
from phf.dynamics.measures import BITS_BY_POSITION, DIVERGENCE, SCORE_BY_POSITION
from phf.dynamics.subjects import Score, Subject, read_on
from phf.generate.cache import STRANGE, evaluation_mode
from phf.generate.engine import uniform_numbers
from phf.intervals import bootstrap_ratio
from phf.model import lm
from phf.records import Mode
from phf.results import Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Values = npt.NDArray[np.float64]
_PARTS = 4
"""Stretches of one training context that are told apart."""


def find_reach(model: "PreTrainedModel", context: int, wanted: int) -> int:
    """How many tokens a model reads: as many as are wanted, or its context where it breaks beyond (learned positions end)."""
    probed = model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
    ids = torch.zeros(1, wanted, dtype=torch.long)
    try:
        with evaluation_mode(probed), torch.inference_mode():
            probed(input_ids=ids, use_cache=False, logits_to_keep=1)
    except STRANGE:
        return min(context, wanted)
    return wanted


def read_positions(
    subject: Subject, mode: Mode, texts: Sequence[str], length: int, num: int, stretch: int
) -> tuple[_Values, _Values]:
    """Bits and bytes of documents one after the other: float64 [streams, stretches] each; up to `num` streams of `length` tokens."""
    target, between = subject.targets[mode], list(subject.between(mode))
    decode, bits, sizes = target.tokenizer.decode, list[_Values](), list[list[int]]()
    for stream in islice(_fill_streams(subject, mode, texts, length), num):
        ids = torch.from_numpy(stream)[None].to(target.model.device)
        positions = torch.arange(length - 1, device=ids.device)[None]
        with evaluation_mode(target.model), torch.inference_mode():
            nats = lm.token_nll(target.model, ids[:, :-1], ids[:, 1:], positions)[0].double().cpu().numpy()
        is_text = ~np.isin(stream[1:], between)
        owners = np.arange(length - 1) // stretch
        bits.append(np.bincount(owners, np.where(is_text, nats, 0)) / np.log(2))
        sizes.append([len(decode(stream[1:][owners == own]).encode()) for own in range(owners[-1] + 1)])
    return np.array(bits), np.array(sizes, np.float64)


def _fill_streams(
    subject: Subject, mode: Mode, texts: Sequence[str], length: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Documents one after the other, in streams of `length` tokens; the last, which they do not fill, is left out."""
    ids = list(subject.prefix(mode))
    for text in texts:
        ids += [*subject.targets[mode].tokenizer.encode(text), *subject.between(mode)]
        if len(ids) >= length:
            yield np.array(ids[:length])
            ids = list(subject.prefix(mode))


def write_positions(
    subject: Subject, mode: Mode, config: DynamicsConfig, length: int, indices: range
) -> list[list[int]]:
    """What a model writes page after page in one context: ids of each stream, ends of pages and their control tokens among them."""
    target, between = subject.targets[mode], subject.between(mode)
    sampling = config.sampling.model_copy(update={"control": "free"})
    drawer = target.drawer(sampling)
    numbers = np.stack([uniform_numbers(sampling.seed, index, length) for index in indices])
    num_text = np.zeros(len(indices), np.int64)
    last = np.full(len(indices), subject.prefix(mode)[-1])
    written: list[npt.NDArray[np.int64]] = []

    def choose(logits: Tensor, step: int) -> Tensor:
        nonlocal last, num_text
        ids = drawer.draw(logits[:, : drawer.vocab_size].float().clone(), last, num_text, numbers[:, step])
        if len(between) > 1:
            ids = np.where(last == between[0], between[1], ids)
        num_text = np.where(ids == between[0], 0, num_text + drawer.is_text(ids))
        written.append(ids)
        last = ids
        return torch.from_numpy(ids).to(logits.device)

    start = torch.tensor([subject.prefix(mode)] * len(indices), device=target.model.device)
    read_on(target.model, start, length - start.shape[1], choose)
    streams: list[list[int]] = np.stack(written, axis=1).tolist()
    return streams


def place_segments(subject: Subject, mode: Mode, stream: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The segments of a stream's pages, each with the token at which its page's share of text ends; the last page is cut, and left out."""
    target, between, page = subject.targets[mode], subject.between(mode), 0
    for place in np.flatnonzero(np.array(stream) == between[0]).tolist():
        text = target.tokenizer.decode(stream[page:place])
        start = 0
        for end in segment_ends(text, target.segments):
            yield text[start:end], int(page + (place - page) * end / len(text))
            start = end
        page = place + 1


def describe_positions(
    subject: Subject,
    mode: Mode,
    texts: Sequence[str],
    config: DynamicsConfig,
    score: Score | None,
) -> Iterator[Measurement]:
    """Bits per byte and score by position, with intervals over streams."""
    stretch = max(subject.context // _PARTS, 1)
    wanted = _find_wanted(subject, config)
    length = find_reach(subject.targets[mode].model, subject.context, wanted)
    tables = [(BITS_BY_POSITION, *read_positions(subject, mode, texts, length, config.streams, stretch))]
    if score is not None:
        streams = write_positions(subject, mode, config, length, range(config.streams))
        placed = [
            (row, place // stretch, text)
            for row, stream in enumerate(streams)
            for text, place in place_segments(subject, mode, stream)
        ]
        scores = np.array(score([text for _, _, text in placed]), np.float64)
        sums, counts = np.zeros((2, len(streams), -(-length // stretch)))
        for (row, column, _), own in zip(placed, scores, strict=True):
            if not np.isnan(own):
                sums[row, column] += own
                counts[row, column] += 1
        tables.append((SCORE_BY_POSITION, sums, counts))
    for measure, tops, bottoms in tables:
        for column in range(tops.shape[1] if len(tops) > 1 else 0):
            number = bootstrap_ratio(
                tops[:, column], bottoms[:, column], config.num_bootstrap, config.sampling.seed
            )
            yield Measurement(measure.name, number, mode, at=float(min((column + 1) * stretch, length)))


def _find_wanted(subject: Subject, config: DynamicsConfig) -> int:
    return min(config.contexts * subject.context, config.longest_stream)


def list_limits(subject: Subject, rows: Sequence[Measurement], config: DynamicsConfig) -> list[str]:
    """What of a model's own view and of its ends could not be measured, and why."""
    notes, reach = [], max((row.at or 0 for row in rows if row.measure == BITS_BY_POSITION.name), default=0)
    wanted = _find_wanted(subject, config)
    if not any(row.measure == DIVERGENCE.name for row in rows):
        notes.append(
            f"{subject.name}: too few documents for what the end of a page makes it forget; give --documents CORPUS"
        )
    if reach == 0:
        notes.append(
            f"{subject.name}: too few documents for two streams of {wanted:,} tokens; give --documents CORPUS"
        )
    elif reach < wanted:
        notes.append(
            f"{subject.name} reads no further than {reach:,.0f} tokens, where its positions end; numbers by position stop there"
        )
    if not subject.has_labels:
        notes.append(
            f"{subject.name} has no control tokens before segments, and no own view of them to ask for"
        )
    return notes
