"""Text with control tokens that the model wrote itself: it simulates its own reward, and should learn nothing from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from phf.annotate.annotation import Annotation
from phf.config.train import SamplingConfig
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids, PageWriter, find_limit
from phf.generate.target import REDRAW, Target
from phf.loops.texts import OWN_TOKEN, write_scores
from phf.objectives import apply_objective
from phf.records import GOOD
from phf.train.data import TrainingData

_FIRST = 5


@dataclass(frozen=True)
class Labelled:
    """A text and the labels in it: where each begins (code points of text before it), and which it is."""

    text: str
    labels: list[tuple[int, int]]


def check_own_labels(data: TrainingData) -> None:
    """Refuse an objective whose model writes no control token before a segment.

    Raises:
        PHFError: it does not.
    """
    if not data.objective.writes_control_tokens or data.objective.rule.tag_fraction > 0:
        raise PHFError(
            f"a model of {data.config.objective.kind} writes no control token before a segment, so it has no labels of its own; "
            "give a run of conditional or quantile (with control_loss), or --control unscored"
        )


def write_labelled(target: Target, sampling: SamplingConfig, stream: int = 0) -> list[Labelled]:
    """Texts of a model that writes freely, control tokens too. Each begins with one that is drawn by the model's own
    probabilities of them there; a text depends on (seed, index, stream).
    """
    control, rng = target.tokenizer.control, np.random.default_rng([sampling.seed, stream, _FIRST])
    with evaluation_mode(target.model), torch.inference_mode():
        begin = torch.tensor([[control.end]], device=target.model.device)
        logits = target.model(input_ids=begin, use_cache=False).logits[0, -1, list(control.all)]
        shares = logits.double().softmax(-1).cpu().numpy()
    first = rng.choice(list(control.all), sampling.num_samples, p=shares).tolist()
    free = sampling.model_copy(update={"control": "free"})
    written = write_ids(target, free, [[control.end, token] for token in first], stream)
    return [_read_labels(target, [token, *ids]) for token, ids in zip(first, written, strict=True)]


def write_ids(
    target: Target, sampling: SamplingConfig, pages: Sequence[Ids], stream: int = 0
) -> list[list[int]]:
    """All that a model writes behind each page, control tokens and the end included."""
    drawer, found = target.drawer(sampling), []
    limit = find_limit(target.model, max(map(len, pages)), sampling)
    with evaluation_mode(target.model):
        for start in range(0, len(pages), sampling.batch_size):
            batch = pages[start : start + sampling.batch_size]
            numbers = [start + row + stream * REDRAW for row in range(len(batch))]
            writer = PageWriter(target.model, drawer, batch, numbers, limit)
            while not writer.done.all():
                writer.step()
            found += [writer.new_ids(row).tolist() for row in range(len(batch))]
    return found


def _read_labels(target: Target, ids: Sequence[int]) -> Labelled:
    control = target.tokenizer.control
    text: list[int] = []
    labels = []
    for token in ids:
        if token in control.all:
            labels.append((len(target.tokenizer.decode(text)), GOOD + token - control.good))
        elif token != control.end:
            text.append(token)
    return Labelled(target.tokenizer.decode(text), labels)


def write_own_scores(
    corpus: Corpus, data: TrainingData, annotation: Annotation, written: list[Labelled]
) -> None:
    """Annotate a corpus once more, by the control tokens that the model wrote: a segment has the median score of the run's own
    segments of its label, the last one that the model wrote before it.

    Args:
        annotation: of the corpus by the annotator, for its segments.
        written: the texts that the corpus was made of, by their place in it (`write_round`).
    """
    tokens = data.tokens
    own = apply_objective(data.objective, data.scores, tokens.document_segments, tokens.is_train).rule.labels
    used = np.repeat(tokens.is_train, tokens.document_segments) & ~np.isnan(data.scores)
    typical = {
        int(label): float(np.median(data.scores[used & (own == label)])) for label in np.unique(own[used])
    }
    found: list[float] = []
    for shard in range(len(annotation.shards)):
        for row in annotation.read_shard(shard).select(["id", "ends"]).to_pylist():
            labels = written[int(row["id"].rsplit("-", 1)[1])].labels
            for start in [0, *row["ends"][:-1]]:
                told = [label for place, label in labels if place <= start]
                found.append(typical.get(told[-1], np.nan))
    write_scores(corpus, annotation, OWN_TOKEN, np.array(found, np.float32), {"of": annotation.identity.slug})
