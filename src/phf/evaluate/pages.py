"""Held-out text as pages, and what a model pays for each segment of it (docs/evaluation.md: Bits per byte).

A *page* is `<|endoftext|>` and as many whole segments as fit into the context, each with room for a control token. The
same text tokens are scored for every objective and mode: padding and the loss of the `<|endoftext|>` that follows are never
counted. Nor is a control token's own loss, and the probabilities of text are those without control tokens, unless control
tokens are asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from phf.control import ControlTokens
from phf.model import lm
from phf.records import BAD, GOOD, NO_LABEL, Mode, Progress
from phf.thresholds import Threshold

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.tokens.scores import ShardScores
    from phf.tokens.tokens import TokenCache
    from phf.train.data import TrainingData

Labels = npt.NDArray[np.uint8]
Labeller = Callable[[npt.NDArray[np.float32]], Labels]
"""Gives the label of each segment by its score."""
Conditions = npt.NDArray[np.float32]
"""What `phf.objectives.label_conditions` gives: float32 [labels, 2]."""

_LOGITS_PER_BATCH = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Numbers a batch's logits may hold. On CPU 16 MB stay near the cores' cache: 1.5 times as fast as 64 MB."""
_LEAST_TOKENS = 512
"""A batch of a large vocabulary has so many tokens all the same, or reading the weights would take longer than using them."""


@dataclass(frozen=True)
class Page:
    """The beginning of a held-out document.

    Attributes:
        segments: token ids of each segment, int64.
        num_bytes: UTF-8 bytes of each segment's text, int64 [num_segments].
        scores: misalignment score of each segment, float32 [num_segments]; NaN = unscored.
    """

    segments: tuple[npt.NDArray[np.int64], ...]
    num_bytes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def labels(self, threshold: float) -> Labels:
        """GOOD where score <= threshold, BAD where it is above, NO_LABEL where there is no score."""
        return Threshold(threshold).label(self.scores)

    def until(self, num_segments: int) -> "Page":
        """The page cut after some segments."""
        return Page(self.segments[:num_segments], self.num_bytes[:num_segments], self.scores[:num_segments])


class PageReader:
    """Reads pages of a token cache by document, where they lie on the disk: in memory is a number for each held-out document."""

    def __init__(
        self, tokens: "TokenCache", scores: "npt.NDArray[np.float32] | ShardScores", context: int
    ) -> None:
        """Nothing is read yet; `scores` are of all segments, in corpus order."""
        self.tokens = tokens
        self.scores = scores
        self.context = context
        self._first_documents = np.cumsum([0, *(entry["num_documents"] for entry in tokens.shards)])

    @classmethod
    def of(cls, data: "TrainingData") -> "PageReader":
        """Reads what a run was trained on, and its held-out text."""
        return cls(data.tokens, data.stored_scores, data.config.data.context)

    def held_out_documents(self, seed: int) -> npt.NDArray[np.int64]:
        """Documents of the validation split that have text, in an order that the seed decides."""
        return np.random.default_rng(seed).permutation(self._held_out)

    @cached_property
    def _held_out(self) -> npt.NDArray[np.int64]:
        found = [np.empty(0, np.int64)]
        for shard, first in enumerate(self._first_documents[:-1]):
            num_segments = np.diff(self.tokens.map_shard(shard, "document_ends"), prepend=0)
            found.append(
                first + np.flatnonzero(~self.tokens.map_shard(shard, "is_train") & (num_segments > 0))
            )
        return np.concatenate(found)

    def read(self, document: int) -> Page:
        """The page of a document: its first segments that fit, or the first one cut to fit."""
        shard = int(np.searchsorted(self._first_documents, document, side="right")) - 1
        row = document - int(self._first_documents[shard])
        ids, all_ends, num_bytes, document_ends = (
            self.tokens.map_shard(shard, kind)
            for kind in ("ids", "segment_ends", "segment_bytes", "document_ends")
        )
        first, last = int(document_ends[row - 1]) if row > 0 else 0, int(document_ends[row])
        start = int(all_ends[first - 1]) if first > 0 else 0
        ends = all_ends[first:last] - start
        num_fitting = int(np.searchsorted(1 + ends + np.arange(1, len(ends) + 1), self.context, side="right"))
        ends, chosen = ends[: max(num_fitting, 1)], slice(first, first + max(num_fitting, 1))
        own = ids[start : start + int(ends[-1])].astype(np.int64)
        own_bytes = num_bytes[chosen].astype(np.int64)
        if num_fitting == 0:
            own = own[: self.context - 2]
            # Exact but for a character cut in two, which counts as the three bytes of U+FFFD, for every model alike.
            own_bytes = np.array([len(self.tokens.tokenizer.decode(own).encode())])
        return Page(tuple(np.split(own, ends[:-1])), own_bytes, self._read_scores(shard)[chosen].copy())

    def _read_scores(self, shard: int) -> npt.NDArray[np.float32]:
        """Those of a shard."""
        if isinstance(self.scores, np.ndarray):
            first, stop = self.tokens.shard_segments[shard : shard + 2]
            return self.scores[first:stop]
        return self.scores.read(shard)


def mode_labels(pages: Sequence[Page], mode: Mode) -> list[Labels]:
    """The label put before every segment in a mode: its own in `good` and `bad`, none in the others."""
    label = {"good": GOOD, "bad": BAD}.get(mode, NO_LABEL)
    return [np.full(len(page.segments), label, np.uint8) for page in pages]


@torch.inference_mode()
def segment_nll(
    model: "PreTrainedModel",
    control: ControlTokens,
    vocab_size: int,
    pages: Sequence[Page],
    labels: Sequence[Labels],
    progress: Progress | None = None,
    *,
    conditions: Conditions | None = None,
    with_control: bool = False,
) -> list[npt.NDArray[np.float64]]:
    """-log p of each segment's text given all before it in its page, in nats.

    Args:
        model: any causal language model; padding of its vocabulary (ids from `vocab_size` on) is cut from the softmax.
        control: ids of the control tokens, which are cut from the softmax too (where the model still has them).
        labels: for each page the label of each segment: GOOD or BAD put the control token before it, NO_LABEL none.
        conditions: for additive objectives, what each label adds to the inputs that predict the segment
            (`label_conditions`), in place of a control token.
        with_control: whether the control token before a segment is part of what it costs, and the mass that the model keeps
            for control tokens where text comes.

    Returns:
        for each page float64 [num_segments].
    """
    written = labels if conditions is None else mode_labels(pages, "none")
    rows = [
        lay_out_page(page, own, control, with_control=with_control)
        for page, own in zip(pages, written, strict=True)
    ]
    result: list[npt.NDArray[np.float64]] = [np.empty(0)] * len(pages)
    num_done = 0
    for batch in batch_by_length([len(ids) for ids, _ in rows], tokens_per_batch(model, vocab_size)):
        length = max(len(rows[index][0]) for index in batch)
        ids = np.full((len(batch), length), control.end)
        owners = np.full((len(batch), length), -1)
        for row, index in enumerate(batch):
            ids[row, : len(rows[index][0])], owners[row, : len(rows[index][1])] = rows[index]
        added = None
        if conditions is not None:
            of_targets = [labels[index][row[1:]] for index, row in zip(batch, owners, strict=True)]
            added = torch.from_numpy(conditions[np.where(owners[:, 1:] >= 0, of_targets, NO_LABEL)])
        nll = _text_nll(
            model,
            control,
            vocab_size,
            torch.from_numpy(ids),
            torch.from_numpy(owners >= 0),
            added,
            with_control,
        )
        for row, index in enumerate(batch):
            text = owners[row] >= 0
            sums = np.bincount(owners[row][text], nll[row][text], minlength=len(pages[index].segments))
            result[index] = sums.astype(np.float64)
        num_done += len(batch)
        if progress is not None:
            progress("held-out text", num_done, len(pages))
    return result


def tokens_per_batch(model: "PreTrainedModel", vocab_size: int) -> int:
    """How many tokens to score at a time."""
    return max(_LOGITS_PER_BATCH.get(model.device.type, 1 << 24) // vocab_size, _LEAST_TOKENS)


def lay_out_page(
    page: Page, labels: Labels, control: ControlTokens, *, with_control: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A page as ids, and for each id the index of the segment whose text it is (-1: no text).

    Args:
        with_control: whether a control token belongs to the segment behind it.
    """
    ids, owners = [np.array([control.end])], [np.array([-1])]
    for index, (segment, label) in enumerate(zip(page.segments, labels, strict=True)):
        if label != NO_LABEL:
            ids.append(np.array([control.of_label(int(label))]))
            owners.append(np.array([index if with_control else -1]))
        ids.append(segment)
        owners.append(np.full(len(segment), index))
    return np.concatenate(ids), np.concatenate(owners)


def batch_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, together at most `max_tokens` after padding (but at least one row)."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _text_nll(
    model: "PreTrainedModel",
    control: ControlTokens,
    vocab_size: int,
    ids: torch.Tensor,
    is_text: torch.Tensor,
    added: torch.Tensor | None,
    with_control: bool,
) -> npt.NDArray[np.float64]:
    """-log p of each id that is text given those before it, 0 elsewhere: float64 [B, T]; the first is never text."""
    inputs, targets = ids[:, :-1].to(model.device), ids[:, 1:].to(model.device)
    scored = is_text[:, 1:].to(model.device)
    if added is None:
        logits = model(input_ids=inputs, use_cache=False).logits[scored]
    else:
        positions = torch.arange(inputs.shape[1], device=model.device).expand_as(inputs)
        hidden = lm.hidden_states(model, inputs, positions, added.to(model.device), control)
        logits = lm.head_logits(model, hidden[scored])
    logits = logits[:, :vocab_size].float()
    if not with_control:
        logits[:, control.good :] = -torch.inf  # the control tokens are the last used ids, or deleted
    nll = torch.zeros(ids.shape, dtype=torch.float64)
    nll[:, 1:][scored.cpu()] = F.cross_entropy(logits, targets[scored], reduction="none").double().cpu()
    return nll.numpy()


def choose_segments(
    reader: PageReader, label: Labeller, wanted: tuple[int, ...], num_segments: int, seed: int
) -> list[Page]:
    """Pages that end with a segment of a wanted label, one per held-out document, in an order that the seed decides."""
    rng = np.random.default_rng([seed, *wanted])
    pages: list[Page] = []
    for document in reader.held_out_documents(seed):
        page = reader.read(int(document))
        candidates = np.flatnonzero(np.isin(label(page.scores), wanted))
        if len(candidates) > 0:
            pages.append(page.until(int(rng.choice(candidates)) + 1))
        if len(pages) == num_segments:
            break
    return pages
