"""Better and worse texts for DPO and KTO: by the reward model, of samples of the start model or segments of its corpus; or preferences
that people have given.

Texts stay the ids that they were drawn as: a sample that was cut has no end token, and its spelling is its own. (TRL's own preparation
writes the end token as text, which a tokenizer whose control tokens no text can reach spells out.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phf.attack.targets import Segments
from phf.errors import PHFError
from phf.feedback.preferences import read_preference_rows
from phf.finetune.pool import Pool
from phf.finetune.start import Start
from phf.generate.engine import Ids
from phf.tokens.tokens import TokenCache

_LEAST = 2


@dataclass(frozen=True)
class Judged:
    """A text behind a prompt: `ids` end with the end token where the page ended."""

    prompt: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Preferences:
    """What is learned from: pairs, the better text first, and each text as good or bad.

    Attributes:
        calls: texts that the reward model scored for it.
        tokens: that the start model wrote for it.
    """

    pairs: Sequence[tuple[Judged, Judged]]
    texts: Sequence[tuple[Judged, bool]]
    calls: int
    tokens: int


def take_samples(start: Start, pool: Pool) -> Preferences:
    """Neighbours of a pool as pairs; a text is good where its score is."""
    prefix, end = list(start.drawing.drawer.rules.prefix), start.tokenizer.control.end
    texts = [
        Judged([*prefix, *start.prompts[text.prompt]], [*text.ids, *([end] if text.ended else [])])
        for text in pool.texts
    ]
    return _judge(start, texts, pool.scores, len(texts), pool.num_tokens)


def take_segments(start: Start) -> Preferences:
    """Segments of the start run's training split, in pairs at random; none is taken for a whole page.

    Raises:
        PHFError: the corpus is gone; too few segments fit.
    """
    data, config = start.run.data(), start.config
    tokens = data.tokens
    found = find_segments(tokens, config.sampling.max_new_tokens)
    found = found[np.isfinite(data.scores[found])]
    chosen = np.random.default_rng(config.seed).permutation(found)[: config.pool]
    own = list(Segments(tokens, chosen))
    scores = (
        data.scores[chosen].astype(np.float64)
        if start.is_annotators
        else start.score([tokens.tokenizer.decode(ids) for ids in own])
    )
    texts = [Judged(list(start.drawing.drawer.rules.prefix), list(ids)) for ids in own]
    return _judge(start, texts, scores, 0 if start.is_annotators else len(texts), 0)


def find_segments(tokens: TokenCache, longest: int) -> npt.NDArray[np.int64]:
    """The segments of the training split that are no longer than a sample, in tokens."""
    is_train = np.repeat(tokens.is_train, tokens.document_segments)
    lengths = tokens.segment_lengths
    return np.flatnonzero(is_train & (lengths > 0) & (lengths <= longest))


def _judge(
    start: Start, texts: Sequence[Judged], scores: npt.NDArray[np.float64], calls: int, tokens: int
) -> Preferences:
    """Pairs of neighbours whose scores differ; good is what is by the run's own threshold, or by the median of another's scores.

    Raises:
        PHFError: no two texts differ.
    """
    threshold = start.run.record["threshold"]["value"]
    limit = float(threshold if start.is_annotators else np.nanmedian(scores))
    pairs = []
    for left in range(0, len(texts) - 1, 2):
        gap = scores[left + 1] - scores[left]
        if gap > 0 or gap < 0:
            better, worse = (left, left + 1) if gap > 0 else (left + 1, left)
            pairs.append((texts[better], texts[worse]))
    known = [
        (text, bool(score <= limit)) for text, score in zip(texts, scores, strict=True) if np.isfinite(score)
    ]
    _check(start.reward.slug, len(pairs), known)
    return Preferences(pairs, known, calls, tokens)


def _check(source: str, num_pairs: int, texts: Sequence[tuple[Judged, bool]]) -> None:
    num_good = sum(is_good for _, is_good in texts)
    if num_pairs < _LEAST or not 0 < num_good < len(texts):
        raise PHFError(
            f"{source} tells too few texts apart ({num_pairs} pairs, {num_good} of {len(texts)} good); give more with --pool, or other data"
        )


def read_preferences(start: Start, spec: str) -> Preferences:
    """Preferences of people; see `read_preference_rows`. Texts end their pages.

    Raises:
        PHFError: as there, or too few fit into the model's context.
    """
    prefix, control = list(start.drawing.drawer.rules.prefix), start.tokenizer.control
    context = getattr(start.model.config, "max_position_embeddings", None) or 1 << 30
    pairs = []
    for prompt, *both in read_preference_rows(spec):
        before = [*prefix, *start.drawing.target.encode(prompt, "prefix")]
        better, worse = (Judged(before, [*_encode_behind(start, prompt, text), control.end]) for text in both)
        if len(before) + max(len(better.ids), len(worse.ids)) <= context:
            pairs.append((better, worse))
    texts = [(text, place == 0) for pair in pairs for place, text in enumerate(pair)]
    _check(spec, len(pairs), texts)
    return Preferences(pairs, texts, 0, 0)


def _encode_behind(start: Start, prompt: str, text: str) -> Ids:
    """A text's ids, with the space that parts it from a prompt."""
    parted = f" {text}" if prompt and not prompt[-1].isspace() and not text[:1].isspace() else text
    return start.tokenizer.encode(parted)
