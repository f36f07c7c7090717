"""Scoring a corpus once: resumable at shard level, the same bytes for any engine and number of workers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, get_args

import numpy as np

from phf.annotate.annotation import Annotation, load_scores
from phf.annotate.annotation_writer import (
    AnnotationWriter,
    ScoredDocuments,
    make_annotation_table,
    write_annotation,
)
from phf.annotate.engines import score_in_order
from phf.annotate.parts import ShardParts
from phf.annotate.ray_pool import RayPool
from phf.annotate.scorer import Scorer, list_turns
from phf.config.budget import parse_budget
from phf.config.train import SegmentKind
from phf.corpus.segment import segmentation_identity
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.files import Place, hash_json
from phf.processes import count_cores
from phf.records import MAX_SCORE, Progress
from phf.reward_models.catalogue import name_reward_model
from phf.reward_models.combination import Combination
from phf.reward_models.llm.judge import list_judges
from phf.reward_models.protocol import RewardSpec

__all__ = ["Annotation", "Engine", "annotate", "load_scores"]

Engine = Literal["local", "ray"]
TIMEOUT = 1800.0
NEVER = 1e8
"""Seconds; more than a timer of the kernel takes is refused."""


def annotate(
    corpus: Corpus | Place,
    reward_model: RewardSpec,
    segments: SegmentKind,
    *,
    workers: int | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    gpus_per_worker: float = 0.0,
    timeout: float = TIMEOUT,
    verify: bool = False,
    wait: bool = False,
    isolated: bool = False,
    budget: str | None = None,
    progress: Progress | None = None,
) -> Annotation:
    """Score every segment of a corpus, or what an earlier call has left unscored.

    A shard is done when the manifest lists it, which is written last; of a shard that takes longer, what was scored is
    kept each minute (`phf.annotate.parts`). The bytes do not depend on the engine, on the
    number of workers or on how often the work was stopped. Of a combination, each component is annotated first, unless
    it was before; other weights score nothing again. A script that calls this with several workers needs
    `if __name__ == "__main__":`, since each worker imports it.

    Args:
        corpus: it, its folder or its URL.
        reward_model: a spec, the path of a folder, or a function of a list of texts (docs/reward_models.md): one that can be
            imported, since each worker does.
        workers: processes; by default one per usable core (one for a language model, which answers many texts at once), or
            with Ray as many as the cluster has room for.
        engine: `local`, a pool of processes; or `ray`, Ray Data, for more than one machine (docs/annotate.md).
        ray_address: of a running Ray cluster; by default Ray is started on this machine.
        gpus_per_worker: GPUs that each Ray worker holds; a share is possible.
        timeout: seconds that a reward model may take for 1 MB of text before it counts as hung and is killed.
        verify: check the bytes of the corpus and of what was scored before, and score again what is damaged.
        wait: for another process that writes the same annotation, instead of an error.
        isolated: run a user's own code in a process of its own, also with one worker: its crash is an error then.
        budget: of a language model behind a server, over all processes of a machine: `5000calls`, `2Mtokens`, `3.50USD`.

    Returns:
        The finished annotation; its `num_scored_now` says how many segments this call has scored.

    Raises:
        PHFError: the reward model is unknown, fails or hangs on a document, or gives a wrong number of scores or an
            infinite or huge one (names the document); a budget is spent; a worker was killed; another process writes the same annotation; the
            disk is full.
    """
    if workers is not None and workers < 1:
        raise PHFError(f"workers {workers} must be at least 1")
    if not timeout > 0:
        raise PHFError(f"timeout {timeout:g} must be above 0 seconds")
    if engine not in get_args(Engine):
        raise PHFError(f"engine '{engine}' is not known; choose {', '.join(get_args(Engine))}")
    corpus = Corpus.open(corpus)
    cap = None if budget is None else parse_budget(budget)
    scorer = Scorer(corpus, name_reward_model(reward_model), segments, budget=cap)
    if verify:
        unchecked = Corpus.open(corpus.path)
        for index in range(len(unchecked.shards)):
            unchecked.open_shard(index).close()
    pool = RayPool(workers, ray_address, gpus_per_worker)
    job = _Job(engine, workers, pool, timeout, verify, wait, isolated, progress)
    if isinstance(scorer.model, Combination):
        return job.combine(scorer, scorer.model)
    return job.annotate(scorer)


@dataclass(frozen=True, slots=True)
class _Job:
    """How a call of `annotate` works; its arguments."""

    engine: Engine
    workers: int | None
    pool: RayPool
    timeout: float
    verify: bool
    wait: bool
    isolated: bool
    progress: Progress | None

    def annotate(self, scorer: Scorer) -> Annotation:
        """Annotate with a reward model that is no combination."""
        num_kept = 0
        with self._open(scorer) as writer:
            if writer.pending and self.engine == "ray":
                from phf.annotate.ray_engine import write_with_ray

                write_with_ray(
                    writer, scorer, self.pool, timeout=self._find_timeout(scorer), progress=self.progress
                )
            elif writer.pending:
                num_kept = self._write_locally(writer, scorer)
        return Annotation(scorer.corpus, writer.path, writer.num_segments - num_kept)

    def combine(self, scorer: Scorer, model: Combination) -> Annotation:
        """Annotate with each component, then write the weighted sum of what lies on disk."""
        arguments = scorer.arguments
        parts = [
            self.annotate(
                Scorer(
                    scorer.corpus,
                    part.spec,
                    arguments.segments,
                    part.model,
                    budget=arguments.budget if list_judges(part.model) else None,
                )
            )
            for part in model.components
        ]
        components = [
            {"weight": part.weight, "reward_model": part.model.identity.to_json(), "annotation": scored.slug}
            for part, scored in zip(model.components, parts, strict=True)
        ]
        with self._open(scorer, components) as writer:
            for num_done, index in enumerate(writer.pending, 1):
                writer.write_shard(index, _combine_shard(model, parts, index))
                if self.progress:
                    self.progress("combining scores of shards", num_done, len(writer.pending))
        return Annotation(scorer.corpus, writer.path, sum(part.num_scored_now for part in parts))

    def _find_timeout(self, scorer: Scorer) -> float:
        """Seconds for a turn; who has an engine of its own gives up what hangs by itself, and may take hours."""
        return NEVER if getattr(scorer.model, "has_own_engine", False) else self.timeout

    def _open(
        self, scorer: Scorer, components: Sequence[dict[str, object]] = ()
    ) -> AbstractContextManager[AnnotationWriter]:
        return write_annotation(
            scorer.corpus,
            identity=scorer.model.identity,
            spec=scorer.arguments.reward_model,
            unit=scorer.model.unit,
            segments=scorer.arguments.segments,
            components=components,
            verify=self.verify,
            wait=self.wait,
        )

    def _write_locally(self, writer: AnnotationWriter, scorer: Scorer) -> int:
        """Score the pending shards by the local engine; this process writes them, in order.

        Returns:
            how many of their segments were scored before, in parts of shards.
        """
        key = hash_json([scorer.model.identity.to_json(), segmentation_identity(scorer.arguments.segments)])
        parts, turns = {}, {}
        for index in writer.pending:
            shard = ShardParts(writer.path, index, hash_json([key, writer.corpus.shards[index].sha256]))
            if self.verify:  # a part has no hash
                shard.remove()
            parts[index], turns[index] = shard, list_turns(writer.corpus, index)[len(shard.scored) :]
        all_turns = list(chain.from_iterable(turns.values()))
        has_own_engine = getattr(scorer.model, "has_own_engine", False)
        workers = max(1, min(self.workers or (1 if has_own_engine else count_cores()), len(all_turns)))
        for judge in list_judges(scorer.model):
            judge.progress = self.progress
        isolated = self.isolated and "sources" in scorer.model.identity.parameters
        num_documents = sum(writer.corpus.shards[index].num_documents for index in writer.pending)
        kept = list(chain.from_iterable(shard.scored for shard in parts.values()))
        num_done = 0

        def report(scored: ScoredDocuments) -> ScoredDocuments:
            nonlocal num_done
            num_done += len(scored.table)
            if self.progress:
                self.progress("annotating documents", num_done, num_documents)
            return scored

        with closing(
            score_in_order(all_turns, scorer, workers, self._find_timeout(scorer), isolated)
        ) as scored:
            for index in writer.pending:
                with closing(parts[index].keep(islice(scored, len(turns[index])))) as whole:
                    writer.write_shard(index, map(report, whole))
                parts[index].remove()
        return sum(documents.num_segments for documents in kept)


def _combine_shard(model: Combination, parts: Sequence[Annotation], index: int) -> Iterator[ScoredDocuments]:
    """The weighted sum of a shard's scores, in the row groups of its documents."""
    corpus = parts[0].corpus
    joined = [part.join_shard(index) for part in parts]
    num_segments, ends, _ = joined[0]
    for part, (other_counts, other_ends, _) in zip(parts, joined, strict=True):
        if not (np.array_equal(other_counts, num_segments) and np.array_equal(other_ends, ends)):
            raise PHFError(
                f"{part.path} has other segment ends than {parts[0].path}; delete the one that is wrong"
            )
    scores = [part_scores for _, _, part_scores in joined]
    combined = model.combine(scores)
    if (np.abs(combined) > MAX_SCORE).any():
        raise PHFError(
            f"the weighted sum {model.identity.name} lies beyond ±{MAX_SCORE:g}; choose smaller weights"
        )
    combined = combined.astype(np.float32)
    # Of each segment without a score: which part has none.
    first_missing = np.argmax(np.isnan(scores), axis=0)
    start = stop = first_document = 0
    with corpus.open_shard(index) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["id", "text_hash"])
            counts = num_segments[first_document : first_document + len(rows)]
            first_document += len(rows)
            start, stop = stop, stop + int(counts.sum())
            missing = first_missing[start:stop][np.isnan(combined[start:stop])].tolist()
            yield ScoredDocuments(
                make_annotation_table(
                    rows["id"], rows["text_hash"], counts, ends[start:stop], combined[start:stop]
                ),
                dict(Counter(f"no score by {parts[part].identity.name}" for part in missing)),
            )
