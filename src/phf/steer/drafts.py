"""Pages that two streams of a model read while they are written, and whose drafts may be copied.

The *mode's* stream reads a page as plain generation does. A *twin* reads the same text with other control tokens:

- `other`: every control token exchanged for that of the other mode (guidance);
- `none`: control tokens left out; they are hidden from attention and take no position (guidance);
- `segment`: the page so far as it is, the control token of the segment being written exchanged. At each segment start
  the twin takes over the mode's cache, so that both tell one segment apart in one context, which gives
  the model's own posterior of good (docs/steering.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.train import SamplingConfig
from phf.errors import NotApplicableError, PHFError
from phf.generate.engine import (
    COMPACT_SHARE,
    Ids,
    TokenDrawer,
    Written,
    cast_parameters,
    find_limit,
    uniform_numbers,
)
from phf.generate.target import Target
from phf.records import Progress, Sample
from phf.steer.streams import Stream, check_streams, text_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Twin = Literal["other", "none", "segment"]


@dataclass
class Belief:
    """What the model itself makes of the segments that drafts consist of; float64 [N] each.

    Attributes:
        prior: log q / (1 - q) at the start of the segment being written, q = p(good) / (p(good) + p(bad)).
        ratio: log p(its text so far | good) - log p(the same | bad).
        past_evidence: sum over finished segments of log posterior / prior.
        past_posterior: sum over finished segments of log posterior.
    """

    prior: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]
    past_evidence: npt.NDArray[np.float64]
    past_posterior: npt.NDArray[np.float64]

    @classmethod
    def create(cls, prior: npt.NDArray[np.float64], ratio: npt.NDArray[np.float64]) -> "Belief":
        """Drafts whose first segment has a prior, and a beginning that a prompt gave."""
        return cls(prior, ratio, np.zeros(len(prior)), np.zeros(len(prior)))

    @property
    def posterior(self) -> npt.NDArray[np.float64]:
        """log p(good | what is written) of the segment being written, or of the last one."""
        result: npt.NDArray[np.float64] = -np.logaddexp(0, -(self.prior + self.ratio))
        return result

    @property
    def all_good(self) -> npt.NDArray[np.float64]:
        """log p(every segment is good)."""
        return self.past_posterior + self.posterior

    @property
    def evidence(self) -> npt.NDArray[np.float64]:
        """Sum over segments of log posterior / prior: what the text says of good, whatever was expected before it. A
        segment that has no text yet adds nothing, so that texts of one and of two segments compare."""
        result: npt.NDArray[np.float64] = self.past_evidence + self.posterior + np.logaddexp(0, -self.prior)
        return result

    def start_segments(self, rows: npt.NDArray[np.int64], prior: npt.NDArray[np.float64]) -> None:
        """The segments being written are finished; others begin."""
        self.past_evidence[rows], self.past_posterior[rows] = self.evidence[rows], self.all_good[rows]
        self.prior[rows], self.ratio[rows] = prior, 0.0

    def copy(self, parents: npt.NDArray[np.int64]) -> None:
        """Draft i becomes what draft `parents[i]` is."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name)[parents])


class Drafts:
    """Texts being written in step by a mode's stream and perhaps a twin.

    A draft that has ended leaves the streams in time, and may be written over by a copy of one that has not.

    Attributes:
        num_passes: (row, position) pairs that went through the model so far.
        done: bool [N], the drafts that have ended.
        rows: the draft of each row of the streams.
        belief: with the twin `segment`, what the model makes of them.
    """

    def __init__(
        self, pages: "Pages", indices: Sequence[int], copies: int, twin: Twin | None, first: int
    ) -> None:
        """See `Pages.open`."""
        self._drawer, self._control, self._twin_kind = pages.drawer, pages.drawer.control, twin
        self._own, self._other = pages.own, pages.other
        own_pages = [pages.ids[index] for index in indices]
        count = len(indices) * copies
        lengths = np.repeat([len(page) for page in own_pages], copies)
        self._room = np.minimum(2 * pages.drawer.sampling.max_new_tokens, pages.limit - lengths)
        columns = int(self._room.max())
        numbers = [
            uniform_numbers(pages.drawer.sampling.seed, index, columns, first + copy)
            for index in indices
            for copy in range(copies)
        ]
        self._uniforms = np.stack(numbers)
        self._tokens = np.zeros((count, columns), np.int64)
        self._last = np.repeat([page[-1] for page in own_pages], copies)
        self._size, self._num_text = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.done = np.zeros(count, bool)
        self.belief = Belief.create(np.zeros(count), np.zeros(count))
        self._step, self._is_read = 0, True
        # Equal pages are read once; the rows of the streams, at first all, are drafts in their order.
        places: dict[tuple[int, ...], int] = {}
        rows = np.repeat([places.setdefault(tuple(page), len(places)) for page in own_pages], copies)
        self._mode, self._twin = self._read(pages, list(places), rows)
        self.rows = np.arange(count)
        for stream in self._streams:
            stream.select(rows)

    @property
    def num_passes(self) -> int:
        """(Row, position) pairs that went through the model so far."""
        return sum(stream.num_passes for stream in self._streams)

    @property
    def _streams(self) -> list[Stream]:
        return [self._mode] if self._twin is None else [self._mode, self._twin]

    def _read(
        self, pages: "Pages", distinct: Sequence[Ids], rows: npt.NDArray[np.int64]
    ) -> tuple[Stream, Stream | None]:
        """Both streams of the distinct pages, padded in front to one length."""
        width = max(map(len, distinct))
        ids = np.array([[self._control.end] * (width - len(page)) + list(page) for page in distinct])
        padding = np.arange(width) < width - np.array([len(page) for page in distinct])[:, None]
        is_own = (ids == self._own) & ~padding

        def open_stream(given: npt.NDArray[np.int64], hidden: npt.NDArray[np.bool_]) -> Stream:
            return Stream(pages.model, pages.drawer.vocab_size, given, hidden)

        mode = open_stream(ids, padding)
        exchanged = np.where(is_own, self._other, ids)
        match self._twin_kind:
            case None:
                mode.read()
                return mode, None
            case "other":
                twin = open_stream(exchanged, padding)
            case "none":
                # What is hidden goes to the front, so that a page ends with something that is read.
                hidden = padding | is_own
                order = np.argsort(~hidden, axis=1, kind="stable")
                twin = open_stream(*(np.take_along_axis(each, order, 1) for each in (ids, hidden)))
            case "segment":
                start = width - 1 - is_own[:, ::-1].argmax(1)  # of the last segment
                here = np.arange(width) == start[:, None]
                twin = open_stream(np.where(here, exchanged, ids), padding)
                (own, controls), (other, _) = (
                    each.read_scored(self._control.good, pages.logits_at_once) for each in (mode, twin)
                )
                is_text = np.arange(1, width) > start[:, None]
                gap = np.where(is_text, (own - other).double().cpu().numpy(), 0).sum(1)
                before = controls[torch.arange(len(ids)), torch.from_numpy(start - 1)]
                prior = self._log_odds(before)
                self.belief = Belief.create(prior[rows], self._sign * gap[rows])
                return mode, twin
        mode.read()
        twin.read()
        return mode, twin

    @property
    def _sign(self) -> int:
        return 1 if self._own == self._control.good else -1

    def _log_odds(self, controls: Tensor) -> npt.NDArray[np.float64]:
        """log p(good) - log p(bad) from the logits of the control tokens, [..., control tokens] -> [...]."""
        good, bad = controls[..., 0], controls[..., self._control.bad - self._control.good]
        result: npt.NDArray[np.float64] = (good - bad).double().cpu().numpy()
        return result

    @torch.inference_mode()
    def step(self, combine: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Write the next token of every draft that has not ended.

        Args:
            combine: makes the logits to draw from, float32 [B, V], of those of the mode and of the twin.
        """
        if not self._is_read:
            self._advance()
        rows = self.rows
        logits = self._mode.logits.clone()
        if combine is not None and self._twin is not None:
            logits = combine(logits, self._twin.logits)
        drawn = self._drawer.draw(
            logits, self._last[rows], self._num_text[rows], self._uniforms[rows, self._step]
        )
        live = ~self.done[rows]
        if self._twin_kind == "segment":
            self._track(drawn, live)
        rows, drawn = rows[live], drawn[live]
        self._tokens[rows, self._step] = self._last[rows] = drawn
        self._num_text[rows] += self._drawer.is_text(drawn)
        self._size[rows] += 1
        self.done[rows] = (
            (drawn == self._control.end)
            | (self._num_text[rows] == self._drawer.sampling.max_new_tokens)
            | (self._size[rows] == self._room[rows])
        )
        self._step += 1
        self._is_read = False

    def _track(self, drawn: npt.NDArray[np.int64], live: npt.NDArray[np.bool_]) -> None:
        """What the tokens about to be added say of good; the end says nothing."""
        assert self._twin is not None
        tokens = torch.from_numpy(drawn).to(self._mode.logits.device)
        own, other = (
            text_log_probs(stream.logits, tokens, self._control.good) for stream in (self._mode, self._twin)
        )
        gap = self._sign * (own - other).double().cpu().numpy()
        is_text = live & self._drawer.is_text(drawn)
        self.belief.ratio[self.rows[is_text]] += gap[is_text]
        starts = live & (drawn == self._own)
        prior = self._log_odds(self._mode.logits[:, self._control.good :])
        self.belief.start_segments(self.rows[starts], prior[starts])

    def _advance(self) -> None:
        """Let the streams read what was written last."""
        live = np.flatnonzero(~self.done[self.rows])
        if len(live) < COMPACT_SHARE * len(self.rows):
            self._select(live, self.rows[live])
        tokens = self._last[self.rows]
        is_own = tokens == self._own
        if self._twin is not None:
            exchanged = np.where(is_own, self._other, tokens)
            if self._twin_kind == "segment":
                starts = np.flatnonzero(is_own)
                self._twin.overwrite(starts, self._mode, starts)
            self._twin.advance(exchanged, is_own if self._twin_kind == "none" else None)
        self._mode.advance(tokens)
        self._is_read = True

    def _select(self, places: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """The streams go on with these of their rows, which are now the drafts `rows`."""
        for stream in self._streams:
            stream.select(places)
        self.rows = rows

    @torch.inference_mode()
    def copy(self, parents: npt.NDArray[np.int64]) -> None:
        """Draft i becomes a copy of draft `parents[i]`, and goes on with its own random numbers."""
        places = np.full(len(self.done), -1)
        places[self.rows] = np.arange(len(self.rows))
        self._tokens, self._last = self._tokens[parents], self._last[parents]
        self._size, self._num_text = self._size[parents], self._num_text[parents]
        self._room, self.done = self._room[parents], self.done[parents]
        self.belief.copy(parents)
        live = np.flatnonzero(~self.done)
        sources = places[parents[live]]
        if (places[live] < 0).any():  # one that has left the streams comes back
            self._select(sources, live)
            return
        changed = places[live] != sources
        for stream in self._streams:
            stream.overwrite(places[live[changed]], stream, sources[changed])

    def ids(self, draft: int) -> npt.NDArray[np.int64]:
        """All that was written behind the page of a draft, control tokens and the end included."""
        return self._tokens[draft, : self._size[draft]]

    def text(self, draft: int) -> Written:
        """What was written behind the page of a draft."""
        new = self.ids(draft)
        return new[self._drawer.is_text(new)].tolist(), bool((new == self._control.end).any())


@dataclass(frozen=True)
class Pages:
    """What is to be written: a page for each sample, and the rules of the mode.

    Attributes:
        model: the target's, in the precision of the samples.
        ids: the prefix and the prompt of each sample.
        prompts: sample i continues prompt i modulo their number.
        limit: positions a page may fill.
        own, other: the control tokens of the mode and of the other one.
        logits_at_once: those of a page's own text that are held at a time.
    """

    target: Target
    model: "PreTrainedModel"
    drawer: TokenDrawer
    ids: list[list[int]]
    prompts: Sequence[Ids]
    limit: int
    own: int
    other: int
    logits_at_once: int = 1 << 24

    @classmethod
    def create(
        cls,
        target: Target,
        sampling: SamplingConfig,
        prompts: Sequence[Ids] = ((),),
        *,
        has_twin: bool = True,
    ) -> "Pages":
        """See `Target.write` for the arguments. Without a twin, any mode will do.

        Raises:
            PHFError: as of `Target.write`; or the mode, the model or the engine has no two streams.
        """
        mode, control = target.page_mode, target.tokenizer.control
        if has_twin and mode not in ("good", "bad"):
            raise NotApplicableError(
                f"mode {mode} has no control token to tell two streams apart; choose good or bad"
            )
        if has_twin and control.bad >= target.tokenizer.vocab_size:
            raise NotApplicableError(
                "this model has no <|bad|> any more, and so no bad mode to compare with; steer the run it came from"
            )
        if sampling.engine != "phf":
            raise PHFError(
                f"the engine {sampling.engine} cannot write two streams at once; give the engine phf"
            )
        drawer = target.drawer(sampling)
        ids = [
            [*drawer.rules.prefix, *prompts[index % len(prompts)]] for index in range(sampling.num_samples)
        ]
        limit = find_limit(target.model, max(map(len, ids)), sampling)
        check_streams(target.model, limit)
        own, other = (control.bad, control.good) if mode == "bad" else (control.good, control.bad)
        model = cast_parameters(target.model, sampling.precision)
        return cls(target, model, drawer, ids, prompts, limit, own, other)

    def batches(self, copies: int = 1) -> list[list[int]]:
        """The samples' indices, those of similar pages together: with so many drafts of each, `sampling.batch_size` rows,
        but at least one sample."""
        order = sorted(range(len(self.ids)), key=lambda index: len(self.ids[index]))
        size = max(1, self.drawer.sampling.batch_size // copies)
        return [order[start : start + size] for start in range(0, len(order), size)]

    @torch.inference_mode()
    def open(self, indices: Sequence[int], twin: Twin | None, copies: int = 1, first: int = 0) -> Drafts:
        """Begin drafts of these samples, in their order, the copies of one beside each other.

        Copy c of sample i draws with u(seed, i, ...) of the sequence `first` + c (`uniform_numbers`); so the
        first one's numbers are those of plain sampling.
        """
        return Drafts(self, indices, copies, twin, first)

    def sample(self, index: int, drafts: Drafts, draft: int) -> Sample:
        """A draft as the sample of this index."""
        return self.target.sample(index, self.prompts[index % len(self.prompts)], drafts.text(draft))

    def report(self, progress: Progress | None, done: int) -> None:
        """Tell how many samples are finished."""
        if progress is not None:
            progress(f"sampling {self.target.mode}", done, len(self.ids))
