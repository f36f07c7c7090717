"""The data of a run: corpus, annotation and tokens joined, and the objective resolved against them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from phf.config import TrainConfig
from phf.corpus.annotation import Annotation, load_scores
from phf.corpus.blocks import Blocks
from phf.corpus.store import Corpus
from phf.corpus.tokens import TokenCache, find_tokens
from phf.errors import PHFError
from phf.objectives import Objective, resolve_objective
from phf.records import Split
from phf.thresholds import Threshold, describe_epochs, resolve_good_fraction, resolve_threshold


@dataclass(frozen=True)
class TrainingData:
    """Everything a run reads, checked to belong together.

    Attributes:
        scores: float32 [num_segments] in corpus order; NaN = unscored (then its document is dropped).
        objective: the objective with its data rule and thresholds.
        good: where good ends in validation losses and reports: the objective's own line, else `config.good`.
    """

    config: TrainConfig
    corpus: Corpus
    annotation: Annotation
    tokens: TokenCache
    scores: npt.NDArray[np.float32]
    objective: Objective
    good: Threshold

    def blocks(self, split: Split) -> Blocks:
        """The blocks of a split: training in the order that the run's seed decides, validation the same for all seeds."""
        return Blocks(
            self.tokens,
            self.objective.rule,
            self.scores,
            split=split,
            context=self.config.data.context,
            seed=self.config.seed if split == "train" else 0,
            isolate_documents=self.config.data.isolate_documents,
        )

    @cached_property
    def num_dropped_documents(self) -> int:
        """Documents that no objective uses because a segment of theirs is unscored."""
        ends = np.concatenate([[0], np.cumsum(self.tokens.document_segments)])
        unscored = np.concatenate([[0], np.cumsum(np.isnan(self.scores))])
        return int(np.count_nonzero(unscored[ends[1:]] > unscored[ends[:-1]]))

    def describe(self) -> list[str]:
        """What a person should know before the first step: the resolved threshold, what it keeps, the epochs."""
        threshold = self.objective.threshold
        lines = [] if threshold is None else [threshold.message]
        if self.num_dropped_documents:
            lines.append(f"{self.num_dropped_documents:,} documents hold unscored segments and are dropped")
        kept = (
            1.0
            if threshold is None or self.objective.segment_threshold is not None
            else threshold.token_share
        )
        lines.append(describe_epochs(kept, self.blocks("train").num_tokens_per_epoch, self.config.tokens))
        return lines

    def provenance(self) -> dict[str, Any]:
        """Identities of everything the run reads, for run.json and for refusing to resume on other data."""
        return {
            "corpus": {
                "id": self.corpus.id,
                "sources": [source["spec"] for source in self.corpus.manifest["sources"]],
                "num_documents": self.corpus.num_documents,
            },
            "reward_model": self.annotation.identity.to_json(),
            "tokenizer": self.tokens.tokenizer.identity.to_json(),
            "segment_ends": self.tokens.segment_ends_hash,
        }


def open_data(config: TrainConfig) -> TrainingData:
    """Open and join what a run needs.

    Raises:
        PHFError: the corpus, its annotation or its tokens are not there (names the command that makes them), damaged,
            or do not fit each other; see also `resolve_objective`.
    """
    corpus = Corpus.open(Path(config.corpus))
    annotation = Annotation.open(corpus, config.reward_model, config.segments)
    tokens = find_tokens(corpus, config.tokenizer, config.segments)
    scores, num_segments = load_scores(corpus, annotation, missing=config.data.missing)
    if annotation.segment_ends_hash != tokens.segment_ends_hash:
        raise PHFError(
            f"{annotation.path} and {tokens.path} do not have the same segment ends; delete the older of the two and "
            "make it again"
        )
    assert np.array_equal(num_segments, tokens.document_segments)
    objective = resolve_objective(
        config.objective, scores, tokens.segment_lengths, tokens.document_segments, tokens.is_train
    )
    good = objective.segment_threshold
    if good is None:
        used = np.repeat(tokens.is_train, tokens.document_segments) & ~np.isnan(scores)
        train_scores, lengths = scores[used], tokens.segment_lengths[used]
        if config.good.good_fraction is not None:
            good = resolve_good_fraction(train_scores, lengths, config.good.good_fraction)
        else:
            assert config.good.threshold is not None
            good = resolve_threshold(train_scores, lengths, config.good.threshold)
    data = TrainingData(config, corpus, annotation, tokens, scores, objective, good)
    for split in get_args(Split):
        data.blocks(split)  # a split without tokens is refused before anything is written
    return data
