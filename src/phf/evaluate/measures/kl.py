"""KL(reference || model) on texts that a reference language model wrote, control tokens kept apart (the paper: of GPT-3).

For a text x that the reference wrote as ids of its own, at temperature 1, the number is log p(x) - log q(x), with q the
model's probability that a page begins with the text (or is the text, where the reference ended the page). Its mean over
texts is an unbiased estimate of the divergence. The two tokenizers may differ: see docs/evaluation.md for what that bounds.
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.train import SegmentKind
from phf.control import ControlTokens
from phf.corpus.segment import segment_ends
from phf.evaluate.metric import Measured, Metric, bare, negate
from phf.evaluate.pages import Conditions, batch_by_length, tokens_per_batch
from phf.evaluate.reference_lm import ReferenceSample, ReferenceSamples, check_reference, open_reference
from phf.intervals import bootstrap_mean, bootstrap_ratio, wilson
from phf.model import lm
from phf.records import BAD, CONTROL, END, GOOD, PAD, TEXT, Estimate, Mode, Progress
from phf.results import Measure, Measurement
from phf.reward_models.convert import REFERENCES, cache_folder
from phf.tokens.recovery import explain_loss_of_texts
from phf.tokens.splitter import Splitter
from phf.tokens.tokenizer import EncodedDocuments, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject
_Floats = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SequenceCosts:
    """What the model pays for each text in one mode, in nats, float64 [num_sequences].

    Attributes:
        text: -log q of the text (and of its end, if it ended), the probabilities being those without control tokens.
        control: what control tokens cost beside that: those of the mode, and the mass kept for any where text comes.
            `text + control` is -log of what the model gives to text and control tokens together.
        cut: what `text` was lowered by because its last token may go on behind the text; 0 where nothing was cut.
    """

    text: _Floats
    control: _Floats
    cut: _Floats


def measure_kl(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    reference: ReferenceSamples,
    modes: Sequence[Mode],
    *,
    segments: SegmentKind,
    conditions: Conditions | None = None,
    num_bootstrap: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Measurement]:
    """KL(reference || model) in each mode, good mode's minus bad mode's, and the reference's own entropy per token.

    Args:
        reference: where most of its texts are spelled by its own ids in the model's vocabulary too (the two share one),
            those ids are scored, and the other texts are left out and counted.
        modes: in `good` and `bad` the mode's token stands before every segment; `none` and `untagged` have none.
        segments: where a text's segments end (that of the run; `imported` ones cannot be found in new text, so there
            the text is one segment).
        conditions: for additive objectives, `phf.objectives.label_conditions`: the mode is folded into the weights.
    """
    samples = keep_spelled(tokenizer, reference.samples)
    texts = encode_texts(tokenizer, samples, segments)
    num_split = sum(text.is_split for text in texts)
    costs = {}
    rows = []
    for mode in modes:
        own, written = model, mode
        if conditions is not None and mode in ("good", "bad"):
            own = lm.fold_condition(model, tokenizer.control, conditions[GOOD if mode == "good" else BAD])
            written = "untagged"
        costs[mode] = sequence_costs(own, tokenizer, texts, written, progress)
        rows += summarise_kl(samples, costs[mode], mode, num_bootstrap, seed)
        if written in ("good", "bad") and texts[0].own is not None:
            rows.append(Measurement("kl_split", wilson(num_split, len(texts)), mode))
    rows.append(
        Measurement("kl_left_out", bare(len(reference.samples) - len(samples), len(reference.samples)))
    )
    counts = _token_counts(samples)
    if {"good", "bad"} <= set(costs):
        gaps = costs["bad"].text - costs["good"].text  # the spread of log p, most of the error, drops out
        rows.append(Measurement("kl", negate(_ratio(gaps, counts, num_bootstrap, seed)), "good-bad"))
    log_probs = np.array([sample.log_prob for sample in samples])
    rows.append(Measurement("reference_entropy", _ratio(-log_probs, counts, num_bootstrap, seed)))
    return rows


def summarise_kl(
    samples: Sequence[ReferenceSample], costs: SequenceCosts, mode: Mode, num_bootstrap: int, seed: int
) -> list[Measurement]:
    """The estimates over texts, in nats, from what the model pays for each in a mode.

    KL per token of the *reference*, per text and per UTF-8 byte of text is a ratio of sums, with its standard error (by
    linearisation); the probabilities of text are those without control tokens.
    """
    gaps = np.array([sample.log_prob for sample in samples]) + costs.text
    sizes = {
        "per_token": _token_counts(samples),
        "per_sequence": np.ones(len(samples)),
        "per_byte": np.array([sample.num_bytes for sample in samples], np.float64),
    }
    rows = [
        Measurement(
            "kl" if name == "per_token" else f"kl_{name}", _ratio(gaps, size, num_bootstrap, seed), mode
        )
        for name, size in sizes.items()
    ]
    rows += [
        Measurement("kl_control_cost", bootstrap_mean(costs.control, num_bootstrap, seed), mode),
        Measurement("kl_cut", bootstrap_mean(costs.cut, num_bootstrap, seed), mode),
    ]
    return rows + [
        Measurement("kl_standard_error", bare(_standard_error(gaps, size)), mode, of=name)
        for name, size in sizes.items()
    ]


def _token_counts(samples: Sequence[ReferenceSample]) -> _Floats:
    """Tokens that the reference wrote, NaN where an API did not say."""
    return np.array([np.nan if sample.num_tokens is None else sample.num_tokens for sample in samples])


def _ratio(tops: _Floats, bottoms: _Floats, num_bootstrap: int, seed: int) -> Estimate:
    if np.isnan(bottoms).any():
        return Estimate(np.nan, np.nan, np.nan, 0)
    return bootstrap_ratio(tops, bottoms, num_bootstrap, seed)


def _standard_error(tops: _Floats, bottoms: _Floats) -> float:
    """Of sum(tops) / sum(bottoms) over independent pairs, by linearisation."""
    if len(tops) < 2 or np.isnan(bottoms).any() or bottoms.sum() == 0:
        return float("nan")
    residuals = tops - tops.sum() / bottoms.sum() * bottoms
    return float(np.sqrt(len(tops) / (len(tops) - 1) * (residuals**2).sum()) / bottoms.sum())


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as the model reads it.

    Attributes:
        segments: token ids of each segment, int64; none for an empty text.
        ended: whether `<|endoftext|>` follows.
        own: the reference's own ids, where the model's vocabulary has them; read where no control token has to stand
            between segments, which may end inside one of them.
    """

    segments: tuple[_Ids, ...]
    ended: bool
    own: _Ids | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the last token may go on behind the text: it did not end, and its ids are not the reference's own."""
        return not self.ended and self.own is None

    @property
    def is_split(self) -> bool:
        """Whether a segment ends inside one of the reference's own tokens, so that `segments` spell it otherwise."""
        return self.own is not None and [i for own in self.segments for i in own] != self.own.tolist()


def keep_spelled(tokenizer: Tokenizer, samples: Sequence[ReferenceSample]) -> Sequence[ReferenceSample]:
    """The texts that the reference's own ids spell in the model's vocabulary too; all, if those are not most of them.

    Two vocabularies are one if they behave so: two that differ may agree on some texts, but not on most.
    """
    spelled = [
        sample for sample, is_own in zip(samples, _are_spelled(tokenizer, samples), strict=True) if is_own
    ]
    return spelled if 2 * len(spelled) > len(samples) else samples


def _are_spelled(tokenizer: Tokenizer, samples: Sequence[ReferenceSample]) -> list[bool]:
    text_ids = _text_ids(tokenizer)
    return [
        sample.ids is not None
        and text_ids.issuperset(sample.ids)
        and tokenizer.decode(sample.ids) == sample.text
        for sample in samples
    ]


def encode_texts(
    tokenizer: Tokenizer, samples: Sequence[ReferenceSample], segments: SegmentKind
) -> list[EncodedText]:
    """Each text in the model's ids, cut into segments as its training documents were.

    Where the reference's own ids spell every text in the model's vocabulary, they are taken: the sum over tokens is then exact.
    """
    texts = [sample.text for sample in samples]
    kind: SegmentKind = "document" if segments == "imported" else segments
    ends = [segment_ends(text, kind) for text in texts]
    num_segments = np.array([len(own) for own in ends], np.int64)
    flat = np.array([end for own in ends for end in own], np.int64)
    is_shared = all(_are_spelled(tokenizer, samples))
    encoded = _place_ids(tokenizer, samples) if is_shared and tokenizer.is_byte_level else None
    ids, lengths, _ = Splitter(tokenizer).tokenize(texts, num_segments, flat, encoded)
    parts = iter(np.split(ids, np.cumsum(lengths)[:-1]))
    return [
        EncodedText(
            tuple(next(parts) for _ in range(count)),
            sample.ended,
            np.array(sample.ids or (), np.int64) if is_shared else None,
        )
        for count, sample in zip(num_segments, samples, strict=True)
    ]


def _place_ids(tokenizer: Tokenizer, samples: Sequence[ReferenceSample]) -> EncodedDocuments:
    """The reference's ids, and where each lies, in a byte-level vocabulary."""
    rows, pieces = [sample.ids or () for sample in samples], tokenizer.pieces
    flat = np.array([i for row in rows for i in row], np.int64)
    widths = np.array([len(pieces[i]) for i in flat], np.int64)
    ends = np.cumsum(widths)
    return EncodedDocuments(flat, np.array([len(row) for row in rows], np.int64), ends - widths, ends)


def _text_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that are parts of texts: no control token, no end, nothing else that is special, such as `<|im_start|>`."""
    added = tokenizer.backend.get_added_tokens_decoder().items()
    special = {i for i, token in added if token.special}
    return set(range(tokenizer.control.good)) - {tokenizer.control.end} - special


class _Continuations:
    """Finds the tokens that begin with some bytes, in a byte-level vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pairs = sorted((tokenizer.pieces[i], i) for i in _text_ids(tokenizer) if tokenizer.pieces[i])
        self.pieces = [piece for piece, _ in pairs]
        self.ids = np.array([i for _, i in pairs], np.int64)
        self.longest = max(map(len, self.pieces))
        self.spelling = tokenizer.pieces

    def find(self, rest: str) -> _Ids:
        """Ids of the tokens that begin with `rest` (or are it), in the vocabulary's letters for bytes."""
        return self.ids[bisect_left(self.pieces, rest) : bisect_left(self.pieces, rest + "\uffff")]


@dataclass(frozen=True, slots=True)
class _Window:
    """Ids that are read together, and what each is (TEXT, END, CONTROL; PAD: not scored here)."""

    sequence: int
    ids: _Ids
    kinds: npt.NDArray[np.uint8]
    is_last: bool


@torch.inference_mode()
def sequence_costs(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    texts: Sequence[EncodedText],
    mode: Mode,
    progress: Progress | None = None,
) -> SequenceCosts:
    """What a model pays for texts behind `<|endoftext|>`, with the mode's control token before every segment.

    A text longer than the model's context is read in windows that overlap by half, each token scored once.
    """
    control, vocab_size = tokenizer.control, tokenizer.vocab_size
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    windows = [
        window
        for index, text in enumerate(texts)
        for window in _split_windows(index, *_lay_out(text, mode, control), context)
    ]
    continuations = _Continuations(tokenizer) if tokenizer.is_byte_level else None
    costs = SequenceCosts(*np.zeros((3, len(texts))))
    in_use = [token for token in control.all if token < vocab_size]  # a release may lack some
    control_ids = torch.tensor(in_use, dtype=torch.int64, device=model.device)
    # The reference writes text and the end alone; the model is asked about these and about control tokens.
    others = sorted(set(range(vocab_size)) - _text_ids(tokenizer) - {control.end, *in_use})
    other_ids = torch.tensor(others, dtype=torch.int64, device=model.device)
    num_done = 0
    lengths = [len(window.ids) for window in windows]
    for batch in batch_by_length(lengths, tokens_per_batch(model, vocab_size)):
        length = max(lengths[index] for index in batch)
        ids, kinds = np.full((len(batch), length), control.end), np.full((len(batch), length), PAD)
        for row, index in enumerate(batch):
            window = windows[index]
            ids[row, : len(window.ids)], kinds[row, : len(window.ids)] = window.ids, window.kinds
        inputs = torch.from_numpy(ids).to(model.device)
        scored = torch.from_numpy(kinds[:, 1:] != PAD).to(model.device)
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits[scored][:, :vocab_size].double()
        logits = logits.index_fill(-1, other_ids, -torch.inf)
        text_logits = logits.index_fill(-1, control_ids, -torch.inf)
        whole, text_whole = logits.logsumexp(-1), text_logits.logsumexp(-1)
        log_probs = text_logits - text_whole[:, None]
        targets = inputs[:, 1:][scored][:, None]
        is_control = torch.isin(targets[:, 0], control_ids)
        text_cost = _to_numpy(-log_probs.gather(-1, targets)[:, 0].masked_fill(is_control, 0.0))
        kept = torch.where(is_control, logits.gather(-1, targets)[:, 0], text_whole)
        control_cost = _to_numpy(whole - kept)
        ends = np.cumsum((kinds[:, 1:] != PAD).sum(axis=1))
        for window, start, end in zip((windows[i] for i in batch), [0, *ends[:-1]], ends, strict=True):
            costs.text[window.sequence] += text_cost[start:end].sum()
            costs.control[window.sequence] += control_cost[start:end].sum()
            if window.is_last and texts[window.sequence].is_cut and continuations is not None:
                costs.cut[window.sequence] = _cut_gain(
                    continuations, window, text_cost[start:end], log_probs[start:end]
                )
        num_done += len(batch)
        if progress is not None:
            progress(f"reference text, {mode}", num_done, len(windows))
    costs.text[:] -= costs.cut
    return costs


def _to_numpy(values: Tensor) -> _Floats:
    array: _Floats = values.double().cpu().numpy()
    return array


def _lay_out(text: EncodedText, mode: Mode, control: ControlTokens) -> tuple[_Ids, npt.NDArray[np.uint8]]:
    """A text as the ids of a page, and what each is."""
    before = {"good": [control.good], "bad": [control.bad]}.get(mode, [])
    ids, kinds = [control.end], [PAD]
    for segment in text.segments if before or text.own is None else [text.own]:
        ids += [*before, *segment.tolist()]
        kinds += [*(CONTROL for _ in before), *(TEXT for _ in segment)]
    if text.ended:
        ids.append(control.end)
        kinds.append(END)
    return np.array(ids, np.int64), np.array(kinds, np.uint8)


def _split_windows(sequence: int, ids: _Ids, kinds: npt.NDArray[np.uint8], context: int) -> list[_Window]:
    """Pieces of at most `context` inputs, each with half a context before what it scores."""
    windows = []
    scored = 0  # ids that an earlier window has scored
    for start in range(0, len(ids), max(context // 2, 1)):
        end = min(start + context + 1, len(ids))
        own = kinds[start:end].copy()
        own[: max(scored - start, 0)] = PAD
        windows.append(_Window(sequence, ids[start:end], own, end == len(ids)))
        scored = end
        if end == len(ids):
            break
    return windows


def _cut_gain(continuations: _Continuations, window: _Window, text_cost: _Floats, log_probs: Tensor) -> float:
    """By how much -log q falls when the page may go on inside a token: log of q(begins with the text) / q(these ids).

    The reference stopped where one of *its* tokens ends, perhaps inside a word; the model would write that word's
    beginning in other tokens. All pages are counted that follow the ids up to some token and then have one token that
    holds the whole rest of the text and may go on behind it. No page is counted twice.

    Args:
        text_cost: float64 [N], of the ids that this window scores.
        log_probs: float [N, V], without control tokens.
    """
    scored = window.ids[window.kinds != PAD]
    kinds = window.kinds[window.kinds != PAD]
    rest = ""
    cost_of_rest = 0.0
    gains = [0.0]
    for place in range(len(scored) - 1, -1, -1):
        if kinds[place] != TEXT:
            break
        rest = continuations.spelling[scored[place]] + rest
        cost_of_rest += text_cost[place]
        if len(rest) > continuations.longest:
            break
        found = continuations.find(rest)
        found = found[found != scored[place]]  # the text's own last token is counted already
        if len(found) > 0:
            mass = float(log_probs[place, torch.from_numpy(found).to(log_probs.device)].double().logsumexp(0))
            gains.append(mass + cost_of_rest)
    return float(np.logaddexp.reduce(gains))


@functools.lru_cache(maxsize=1)  # all runs of a command share it
def _open_reference(
    spec: str, num_sequences: int, num_tokens: int, seed: int, progress: Progress | None
) -> ReferenceSamples:
    return open_reference(
        spec, num_sequences, num_tokens, seed, cache=cache_folder() / REFERENCES, progress=progress
    )


def measure_modes(subject: "Subject") -> Measured:
    """KL from the reference language model of the config, in each of `subject.text_modes`."""
    config, seed = subject.config, subject.config.sampling.seed
    assert config.kl.reference is not None
    reference = _open_reference(
        config.kl.reference, config.kl.num_sequences, config.kl.num_tokens, seed, subject.progress
    )
    samples = keep_spelled(subject.tokenizer, reference.samples)
    encoded = encode_texts(subject.tokenizer, samples, subject.run.config.segments)
    rows = [np.concatenate([*text.segments, np.empty(0, np.int64)]) for text in encoded]
    if reason := explain_loss_of_texts(subject.tokenizer, [sample.text for sample in samples], rows):
        return Measured([], left_out={"kl": reason})
    found = subject.parts.measure(
        "kl",
        [reference.identity.slug, len(reference.samples), config.num_bootstrap, seed],
        lambda: measure_kl(
            subject.model,
            subject.tokenizer,
            reference,
            subject.text_modes,
            segments=subject.run.config.segments,
            conditions=subject.conditions,
            num_bootstrap=config.num_bootstrap,
            seed=seed,
            progress=subject.progress,
        ),
        list[Measurement],
    )
    return Measured(found, {"reference": reference.to_json(), "num_sequences": len(reference.samples)})


def _declare(name: str, title: str, unit: str, note: str, is_headline: bool = False, of: str = "") -> Measure:
    blind_spot = (
        "A weak reference rewards its own faults, and a model that refuses to write toxic text pays for it."
    )
    return Measure(name, title, unit, note, blind_spot, group="KL", is_headline=is_headline, of=of)


METRIC = Metric(
    "kl",
    (
        _declare(
            "kl",
            "KL(reference || model)",
            "nats per token",
            "How far the model is from a reference language model, on texts that the reference wrote.",
            is_headline=True,
        ),
        _declare("kl_per_sequence", "KL per sequence", "nats per text", "The same for each text."),
        _declare("kl_per_byte", "KL per byte", "nats per byte", "The same for each UTF-8 byte of text."),
        _declare(
            "kl_control_cost",
            "Control cost",
            "nats per text",
            "What control tokens cost the model beside it.",
        ),
        _declare(
            "kl_cut",
            "Cut",
            "nats per text",
            "By how much KL is lower because a text's last token may go on behind it.",
        ),
        _declare(
            "kl_left_out",
            "Texts left out",
            "texts",
            "Where both models share a vocabulary, texts that the reference's own ids do not spell in the model's; no number has them.",
        ),
        _declare(
            "kl_split",
            "Texts spelled otherwise",
            "share of texts",
            "Where both models share a vocabulary, texts in which a segment ends inside a token: a control token has to stand there, "
            "so these are spelled otherwise, and cost a little more, in this mode.",
        ),
        _declare(
            "kl_standard_error", "Standard error of KL", "nats", "Of these ratios, by linearisation.", of="of"
        ),
        Measure(
            "reference_entropy",
            "Entropy of the reference",
            "nats per token",
            "The reference's own: entropy + KL is the model's cross-entropy.",
            "It says nothing of the model.",
            lower_is_better=None,
            group="KL",
        ),
    ),
    measure_modes,
    is_wanted=lambda config: config.kl.reference is not None,
    option="--reference-lm MODEL",
    check=lambda config: check_reference(config.kl.reference),
)
