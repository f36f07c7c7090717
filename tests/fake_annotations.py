"""Annotations with scores that a test chooses, written as any other, and read back."""

import gzip
import json
import math

import numpy as np

from phf.annotate.annotation import Annotation
from phf.annotate.annotation_writer import (
    ScoredDocuments,
    count_reasons,
    make_annotation_table,
    write_annotation,
)
from phf.reward_models.protocol import split_segments


def annotate_by(corpus, identity, segments, score, unit="number"):
    """Score every segment of a corpus by a function of its text."""
    with write_annotation(
        corpus, identity=identity, spec=identity.name, unit=unit, segments=segments
    ) as writer:
        for shard in writer.pending:
            writer.write_shard(shard, _score_shard(corpus, shard, segments, score))
    return Annotation(corpus, writer.path)


def _score_shard(corpus, shard, segments, score):
    with corpus.open_shard(shard) as file:
        num_groups = file.num_row_groups
    for group in range(num_groups):
        rows, ends = corpus.read_segments(shard, group, ["id", "text_hash", "text"], segments)
        texts = rows["text"].to_pylist()
        scores = [
            score(segment)
            for text, stops in zip(texts, ends, strict=True)
            for segment in split_segments(text, stops)
        ]
        table = make_annotation_table(
            rows["id"],
            rows["text_hash"],
            np.array([len(stops) for stops in ends]),
            np.array([end for stops in ends for end in stops]),
            np.array(scores, float),
        )
        yield ScoredDocuments(table, count_reasons(scores))


def read_all(corpus, annotation):
    """(text, split, ends, scores) of every document, unscored as None."""
    found = []
    documents = corpus.iterate_documents()
    for index in range(len(corpus.shards)):
        annotation.join_shard(index)
        for row in annotation.read_shard(index).to_pylist():
            document = next(documents)
            scores = [None if math.isnan(score) else score for score in row["scores"]]
            found.append((document.text, document.split, row["ends"], scores))
    return found


def write_rows(path, rows):
    """Write rows, or lines that are no JSON, as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
