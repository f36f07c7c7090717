"""Ray Data as the engine of annotate, for more than one machine (docs/annotate.md)."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from phf.annotate.annotation_writer import AnnotationWriter, write_annotation_shard
from phf.annotate.engines import score_within
from phf.annotate.ray_pool import RayPool, WriteShard
from phf.annotate.scorer import Scorer, ScorerArguments, list_turns, load_scorer
from phf.corpus.manifests import AnnotationShard
from phf.files import to_path
from phf.records import Progress


def write_with_ray(
    writer: AnnotationWriter, scorer: Scorer, pool: RayPool, *, timeout: float, progress: Progress | None
) -> None:
    """Score and write the pending shards.

    Args:
        timeout: seconds that a turn may take.
        progress: called with (description, documents done, documents in all).

    Raises:
        PHFError: see `RayPool.map`; the reward model fails or hangs on a document.
    """
    shards = writer.corpus.shards
    num_documents = sum(shards[index].num_documents for index in writer.pending)
    num_done = 0
    arguments = scorer.arguments
    if isinstance(writer.corpus.path, Path):  # workers may have another current folder
        arguments = replace(arguments, corpus=str(writer.corpus.path.absolute()))
    written = pool.map(_open_writer, (arguments, writer.path.name, timeout), writer.pending)
    with closing(written):
        for index, entry in written:
            writer.add_entry(index, entry)
            num_done += shards[index].num_documents
            if progress:
                progress("annotating documents", num_done, num_documents)


def _open_writer(arguments: ScorerArguments, folder: str, timeout: float) -> WriteShard:
    """In a worker."""
    path = to_path(arguments.corpus) / "annotations" / folder
    scorer = load_scorer(arguments)

    def write(index: int) -> AnnotationShard:
        return write_annotation_shard(
            path / f"{index:05d}.parquet",
            scorer.corpus.shards[index].sha256,
            (score_within(scorer, turn, timeout) for turn in list_turns(scorer.corpus, index)),
        )

    return write
