"""A random sample of documents of a corpus, with the scores of an annotation where there is one."""

from pathlib import Path

from phf.annotate.annotation import Annotation, annotation_folder, read_annotation_manifest
from phf.config.train import SegmentKind
from phf.corpus.store import Corpus
from phf.records import Identity, Progress
from phf.reward_training.distill import ScoredDocument
from phf.reward_training.split import hash_fraction


def sample_documents(
    corpus: Corpus,
    segments: SegmentKind,
    num_segments: int,
    *,
    seed: int,
    scored_by: Identity,
    progress: Progress | None = None,
) -> tuple[list[ScoredDocument], Path | None]:
    """Whole documents with about `num_segments` segments in all; seed and text decide whether a document is taken.

    Args:
        scored_by: a reward model; if it has annotated the corpus, the documents come with its scores.

    Returns:
        the documents in corpus order, and the folder of the annotation that was used.

    Raises:
        PHFError: a shard of the corpus or of the annotation is damaged, or the two do not belong together.
    """
    annotation = _find_annotation(corpus, scored_by, segments)
    share = _estimate_share(corpus, segments, num_segments)
    documents: list[ScoredDocument] = []
    for index in range(len(corpus.shards)):
        scores = None
        if annotation is not None:
            counts, _, flat = annotation.join_shard(index)
            scores = iter(zip(counts.tolist(), (counts.cumsum() - counts).tolist(), strict=True))
        with corpus.open_shard(index) as file:
            num_groups = file.num_row_groups
        for group in range(num_groups):
            rows, all_ends = corpus.read_segments(index, group, ["text", "text_hash"], segments)
            for text, key, ends in zip(
                rows["text"].to_pylist(), rows["text_hash"].to_pylist(), all_ends, strict=True
            ):
                own = None
                if scores is not None:
                    num, start = next(scores)
                    own = flat[start : start + num]
                # The plain key decides what is held out (distill.py): that must not hang together with being here.
                if hash_fraction(f"sample:{key}", seed) < share:
                    documents.append(
                        ScoredDocument(key, text, ends, own.tolist() if own is not None else None)
                    )
        if progress is not None:
            progress("sampling documents", index + 1, len(corpus.shards))
    return documents, annotation.path if annotation is not None else None


def _find_annotation(corpus: Corpus, identity: Identity, segments: SegmentKind) -> Annotation | None:
    path = annotation_folder(corpus, identity, segments)
    if not (path / "manifest.json").is_file() or not read_annotation_manifest(path)["complete"]:
        return None
    return Annotation(corpus, path)


def _estimate_share(corpus: Corpus, segments: SegmentKind, num_segments: int) -> float:
    """The share of documents that hold about so many segments, going by the first documents of each shard."""
    num_read = num_found = 0
    for index in range(len(corpus.shards)):
        _, ends = corpus.read_segments(index, 0, ["text"], segments)
        num_read += len(ends)
        num_found += sum(map(len, ends))
    return num_segments * num_read / (num_found * corpus.num_documents)
