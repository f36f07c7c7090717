"""What a worker of any engine does: score the documents of one row group, or say which document the model fails on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from phf.annotate.annotation_writer import ScoredDocuments, count_reasons, make_annotation_table
from phf.config.budget import Budget
from phf.config.train import SegmentKind
from phf.corpus.segment import is_unsegmentable
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.reward_models import load_reward_model
from phf.reward_models.llm.judge import set_budget
from phf.reward_models.protocol import RewardModel, ScoringStoppedError
from phf.reward_models.scoring import find_culprit, score_segments

Turn = tuple[int, int]
"""A document shard and one of its row groups (1 MB of text): what is scored at a time, whoever does it."""


@dataclass(frozen=True, slots=True)
class ScorerArguments:
    """What a process elsewhere needs to make the same scorer."""

    corpus: str
    corpus_id: str
    reward_model: str
    segments: SegmentKind
    budget: Budget | None = None


class Scorer:
    """A corpus and a reward model, loaded once per process."""

    def __init__(
        self,
        corpus: Corpus,
        spec: str,
        segments: SegmentKind,
        model: RewardModel | None = None,
        *,
        budget: Budget | None = None,
    ) -> None:
        """Load the reward model of a spec, unless it is given.

        Raises:
            PHFError: it is not known, or needs what is not there.
        """
        self.corpus = corpus
        self.model: RewardModel = model or load_reward_model(spec)
        if budget is not None:
            set_budget(self.model, budget)
        self.arguments = ScorerArguments(str(corpus.path), corpus.id, spec, segments, budget)

    def score(self, turn: Turn) -> ScoredDocuments:
        """Score the documents of a row group.

        Raises:
            PHFError: the model fails on a document; names it.
        """
        shard, group = turn
        columns = ["id", "text_hash", "text"]
        rows, ends = self.corpus.read_segments(shard, group, columns, self.arguments.segments)
        texts = rows["text"].to_pylist()
        try:
            scores, unscored = score_segments(self.model, texts, ends)
        except ScoringStoppedError:  # no document is to blame
            raise
        except Exception as error:
            raise self._find_culprit(texts, ends, rows["id"].to_pylist(), error) from error
        num_segments = np.fromiter(map(len, ends), np.int64, len(ends))
        reasons = Counter(count_reasons(unscored))
        for start, text, stops in zip(np.cumsum(num_segments) - num_segments, texts, ends, strict=True):
            if is_unsegmentable(text, stops, self.arguments.segments) and not np.isnan(scores[start]):
                scores[start] = np.nan
                reasons["the sentence splitter crashed"] += 1
        flat_ends = np.fromiter(chain.from_iterable(ends), np.int32, len(scores))
        table = make_annotation_table(rows["id"], rows["text_hash"], num_segments, flat_ends, scores)
        return ScoredDocuments(table, dict(reasons))

    def describe(self, turn: Turn) -> str:
        """The documents of a row group, for an error."""
        with self.corpus.open_shard(turn[0]) as file:
            ids = file.read_row_group(turn[1], columns=["id"])["id"].to_pylist()
        return f"documents {ids[0]} to {ids[-1]}" if len(ids) > 1 else f"document {ids[0]}"

    def _find_culprit(
        self, texts: Sequence[str], ends: Sequence[Sequence[int]], ids: Sequence[str], error: Exception
    ) -> PHFError:
        """The error that names the document on which the model fails, found by scoring each alone."""
        index, error = find_culprit(self.model, list(zip(texts, ends, strict=True)), error)
        batch = f"a batch from document {ids[0]} to {ids[-1]}, though on none of them alone"
        culprit = batch if index is None else f"document {ids[index]}"
        kind = "" if isinstance(error, PHFError) else f"{type(error).__name__}: "
        return PHFError(
            f"reward model {self.model.identity.name} fails on {culprit}: {kind}{' '.join(str(error).split())}; it must give "
            "one score per segment, or NaN where it has none; the same command goes on from here, but a model whose source has "
            "changed scores all anew"
        )


def list_turns(corpus: Corpus, shard: int) -> list[Turn]:
    """The row groups of a shard, in order."""
    with corpus.open_shard(shard) as file:
        return [(shard, group) for group in range(file.num_row_groups)]


@lru_cache(maxsize=1)
def load_scorer(arguments: ScorerArguments) -> Scorer:
    """The scorer that some arguments make, loaded once per process.

    Raises:
        PHFError: this process has no such corpus, or another.
    """
    corpus = Corpus.open(arguments.corpus)
    if corpus.id != arguments.corpus_id:
        raise PHFError(f"{arguments.corpus} is another corpus to this worker; all must see the same files")
    return Scorer(corpus, arguments.reward_model, arguments.segments, budget=arguments.budget)
