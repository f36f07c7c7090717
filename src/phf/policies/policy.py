"""A policy over texts: what a model writes in a mode, with the exact probability of every text (docs/posterior.md).

A text is its token ids and whether the page ended behind them. A mode's control token stands where training put it, before
every segment (`control=forced`), or before the first alone (`prefix`); where it stands follows from the text, so that a text
has one probability, and that is the one it is drawn with. All policies over one vocabulary have the same texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.steer import Guidance
from phf.config.train import SamplingConfig, write_spec
from phf.errors import PHFError
from phf.evaluate.pages import batch_by_length, tokens_per_batch
from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids, TokenDrawer, Written, cast_parameters, write_pages
from phf.generate.target import REDRAW, Target
from phf.records import Progress
from phf.steer.drafts import Pages
from phf.steer.guidance import compare

OUTSIDE = -1
"""In the place of the index of a text token: what stands before the text."""


@dataclass(frozen=True)
class Policy:
    """A model in a mode under sampling settings, perhaps guided.

    Attributes:
        name: in tables.
        sampling: with `top_p` 1, the engine phf, and `control` forced or prefix: see `check_sampling`.
        guidance: moves the logits away from those of the other mode.
    """

    name: str
    target: Target
    sampling: SamplingConfig
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        check_sampling(self.sampling)
        if self.guidance is not None and self.guidance.against != "other":
            raise PHFError(
                f"{write_spec(self.guidance)} hides control tokens, and its text has no probability here; give against=other"
            )

    @property
    def drawer(self) -> TokenDrawer:
        """The rules by which it draws."""
        return self.target.drawer(self.sampling)

    def write(
        self, indices: Sequence[int], stream: int = 0, progress: Progress | None = None
    ) -> list[Written]:
        """Draw texts; a text depends on (seed, index, stream) alone, up to rounding.

        Args:
            indices: of the texts.
            stream: of random numbers: texts of different streams are independent.

        Raises:
            PHFError: the model's context cut a text short of `max_new_tokens`, or has no room for one.
        """

        def report(done: int) -> None:
            if progress is not None:
                progress(f"sampling {self.name}", done, len(indices))

        drawer = self.drawer
        if self.guidance is None:
            numbers = [index + stream * REDRAW for index in indices]
            pages = [drawer.rules.prefix] * len(indices)
            written = write_pages(self.target.model, drawer, pages, numbers, report)
        else:
            written = self._write_guided(indices, stream, report)
        for ids, ended in written:
            if not ended and len(ids) < self.sampling.max_new_tokens:
                raise PHFError(
                    f"{self.name}: the model's context cut a text after {len(ids)} of {self.sampling.max_new_tokens} tokens, "
                    f"and its probability is not defined; give --max-new-tokens {len(ids) // 2 or 1}"
                )
        return written

    def _write_guided(
        self, indices: Sequence[int], stream: int, report: Callable[[int], None]
    ) -> list[Written]:
        size = {"num_samples": max(indices) + 1}
        pages = Pages.create(self.target, self.sampling.model_copy(update=size))
        written: list[Written] = []
        with evaluation_mode(pages.model):
            for start in range(0, len(indices), self.sampling.batch_size):
                batch = indices[start : start + self.sampling.batch_size]
                drafts = pages.open(batch, "other", first=stream)
                while not drafts.done.all():
                    drafts.step(self._guide)
                    report(len(written) + int(drafts.done.sum()))
                written += [drafts.text(draft) for draft in range(len(batch))]
        return written

    def _guide(self, own: Tensor, reference: Tensor) -> Tensor:
        assert self.guidance is not None
        return own + (self.guidance.scale - 1) * compare(own, reference, self.target.tokenizer.control.good)

    def decode(self, written: Written) -> str:
        """What was written, as text."""
        return self.target.sample(0, (), written).text

    def log_probs(
        self, texts: Sequence[Written], progress: Progress | None = None
    ) -> npt.NDArray[np.float64]:
        """log p of each text, in nats: float64 [num_texts]."""
        return np.array([tokens.sum() for tokens in self.token_log_probs(texts, progress)])

    def token_log_probs(
        self, texts: Sequence[Written], progress: Progress | None = None
    ) -> list[npt.NDArray[np.float64]]:
        """log p of each token of each text given those before it, that of the page's end last where it ended, in nats."""
        drawer, found = self.drawer, [np.zeros(len(ids) + ended) for ids, ended in texts]
        rows = [lay_out(drawer, *text) for text in texts]
        lengths = [len(ids) for ids, _ in rows]
        model = cast_parameters(self.target.model, self.sampling.precision)
        num_done = 0
        with evaluation_mode(model), torch.inference_mode():
            for batch in batch_by_length(lengths, tokens_per_batch(model, drawer.vocab_size)):
                length = max(lengths[index] for index in batch)
                ids = np.full((len(batch), length), drawer.control.end)
                owners = np.full((len(batch), length), OUTSIDE)
                for row, index in enumerate(batch):
                    ids[row, : lengths[index]], owners[row, : lengths[index]] = rows[index]
                logits = self._read(model, ids)
                given = (
                    torch.from_numpy(part).to(logits.device)
                    for part in (ids[:, :-1], ids[:, 1:], owners[:, 1:])
                )
                costs = find_log_probs(drawer, logits, *given).cpu().numpy()
                for row, index in enumerate(batch):
                    own = owners[row, 1:] != OUTSIDE
                    np.add.at(found[index], owners[row, 1:][own], costs[row][own])
                num_done += len(batch)
                if progress is not None:
                    progress(f"reading as {self.name}", num_done, len(texts))
        return found

    def _read(self, model: "torch.nn.Module", ids: npt.NDArray[np.int64]) -> Tensor:
        """Logits of what follows each id but the last, float64 [B, T - 1, used ids]."""

        def read(pages: npt.NDArray[np.int64]) -> Tensor:
            inputs = torch.from_numpy(pages[:, :-1]).to(self.target.model.device)
            logits: Tensor = model(input_ids=inputs, use_cache=False).logits
            return logits[..., : self.target.tokenizer.vocab_size].double()

        if self.guidance is None:
            return read(ids)
        control = self.target.tokenizer.control
        own, other = (control.bad, control.good) if self.target.mode == "bad" else (control.good, control.bad)
        logits, reference = read(ids), read(np.where(ids == own, other, ids))
        flat = self._guide(logits.flatten(0, 1), reference.flatten(0, 1))
        return flat.reshape(logits.shape)


def check_sampling(sampling: SamplingConfig) -> None:
    """Refuse settings under which a text has no probability that could be written down.

    Raises:
        PHFError: names the setting, why, and what to give.
    """
    if sampling.top_p < 1:
        raise PHFError(
            f"top_p {sampling.top_p:g} makes most texts impossible, and divergences infinite; give --set sampling.top_p=1"
        )
    if sampling.control == "free":
        raise PHFError(
            "control=free lets the model place control tokens, and a text would be a sum over all placements; "
            "give --control forced or prefix"
        )
    if sampling.engine != "phf":
        raise PHFError(f"the engine {sampling.engine} gives no probabilities of texts; give --engine phf")


def lay_out(
    drawer: TokenDrawer, ids: Ids, ended: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A text as the model reads it, and for each id the text token that it belongs to: a control token to the one behind it."""
    text = np.array([*ids, *([drawer.control.end] if ended else [])], np.int64)
    owners = np.arange(len(text))
    prefix = np.array(drawer.rules.prefix, np.int64)
    if drawer.boundaries is not None and drawer.rules.forced is not None:
        last, following = text[:-1], text[1:]
        limits = drawer.boundaries
        starts = limits.closes[last] & (following != drawer.control.end)
        starts |= limits.may_close[last] & limits.opens[following]
        places = 1 + np.flatnonzero(starts)
        text, owners = np.insert(text, places, drawer.rules.forced), np.insert(owners, places, places)
    return np.concatenate([prefix, text]), np.concatenate([np.full(len(prefix), OUTSIDE), owners])


def find_log_probs(
    drawer: TokenDrawer, logits: Tensor, last: Tensor, target: Tensor, owners: Tensor
) -> Tensor:
    """log p of ids given those before them, as `TokenDrawer.draw` draws them: [...], where an id belongs to a text.

    Args:
        logits: float [..., used ids], of what follows.
        last: the ids before, int64 [...].
        target, owners: the ids, and the text tokens that they belong to (`lay_out`), int64 [...].
    """
    control, limits = drawer.control, drawer.boundaries
    logits = logits / drawer.sampling.temperature
    used = np.arange(logits.shape[-1])
    never = logits.new_full((), -torch.inf)

    def mass(chosen: npt.NDArray[np.bool_]) -> Tensor:
        """log of what the ids have together; -inf for none."""
        if not chosen.any():
            return never.expand(target.shape)
        return logits[..., torch.from_numpy(np.flatnonzero(chosen)).to(logits.device)].logsumexp(-1)

    is_control = (used >= control.good) & (used <= max(control.all))
    text = mass(~is_control & (used != control.end))
    may_end = (owners >= drawer.sampling.min_new_tokens) & (owners != OUTSIDE)
    whole = torch.logaddexp(text, torch.where(may_end, logits[..., control.end], never))
    chosen = logits.gather(-1, target.clamp(max=len(used) - 1)[..., None])[..., 0]
    if limits is None or drawer.rules.forced is None:
        return chosen - whole
    closes, may_close = (
        torch.from_numpy(own).to(logits.device)[last] for own in (limits.closes, limits.may_close)
    )
    controls, opens = mass(is_control), mass(limits.opens[: len(used)])
    going_on = torch.logaddexp(controls, torch.where(closes, text, opens))
    found = chosen - torch.where(closes | may_close, torch.logaddexp(whole, controls), whole)
    found = torch.where(target == drawer.rules.forced, going_on - torch.logaddexp(whole, controls), found)
    is_behind = (last == drawer.rules.forced) & (owners > 0)
    return torch.where(is_behind, chosen - (opens if limits.opens.any() else text), found)
