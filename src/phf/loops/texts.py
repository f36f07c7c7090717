"""A round's texts as a corpus like any other, with the scores that the next round trains on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation, load_scores
from phf.annotate.annotation_writer import ScoredDocuments, make_annotation_table, write_annotation
from phf.corpus.rows import BadRow, Row, make_row
from phf.corpus.store import Corpus, write_corpus
from phf.records import Identity
from phf.tokens.tokens import tokenize
from phf.train.data import TrainingData

PROVENANCE = (
    *(pa.field(name, pa.string()) for name in ("run", "mode", "judge")),
    *(pa.field(name, pa.int64()) for name in ("step", "seed", "round")),
)
"""Columns that say where each document is from."""
SHUFFLED, OWN_TOKEN = "shuffled", "own-token"
_SHUFFLE = 4


def write_round(
    folder: Path, texts: Sequence[str], provenance: Mapping[str, object], data: TrainingData
) -> Corpus:
    """Write texts as a corpus, score it as the run's corpus was scored, and tokenize it by the run's tokenizer.

    What is there and the same stays. A text that was written twice is one document; an empty one is counted among the bad rows.

    Args:
        provenance: of all texts, by the names of `PROVENANCE`.
        data: the run's.
    """
    rows = [_make_row(index, text, provenance) for index, text in enumerate(texts)]
    name = "phf online " + " ".join(f"{key}={value}" for key, value in provenance.items())
    corpus = write_corpus([(name, iter(rows))], folder, validation_fraction=0, provenance=PROVENANCE)
    segments = data.config.segments
    annotate(corpus, str(data.annotation.manifest["reward_model_spec"]), segments, workers=1)
    tokenize(corpus, data.tokens.path / "tokenizer", segments, workers=1)
    return corpus


def _make_row(index: int, text: str, provenance: Mapping[str, object]) -> Row | BadRow:
    row = make_row(f"round-{provenance['round']}-{index:05d}", text)
    return row if isinstance(row, BadRow) else Row(row.place, row.text, provenance=provenance)


def write_shuffled(corpus: Corpus, annotation: Annotation, seed: int) -> None:
    """Annotate a corpus once more, with the scores of all its segments in another order."""
    scores, _ = load_scores(corpus, annotation, missing="drop")
    known = np.flatnonzero(~np.isnan(scores))
    shuffled = scores.copy()
    shuffled[known] = np.random.default_rng([seed, _SHUFFLE]).permutation(scores[known])
    write_scores(corpus, annotation, SHUFFLED, shuffled, {"of": annotation.identity.slug, "seed": seed})


def write_scores(
    corpus: Corpus,
    annotation: Annotation,
    name: str,
    scores: npt.NDArray[np.float32],
    parameters: dict[str, object],
) -> None:
    """Write scores under a name of their own, on the segments of another annotation."""
    identity, first = Identity(name, "1", None, parameters), 0
    with write_annotation(
        corpus, identity=identity, spec=name, unit=annotation.unit, segments=annotation.segments
    ) as writer:
        for shard in range(len(corpus.shards)):
            rows = corpus.read_shard(shard, ["id", "text_hash"])
            counts, ends, _ = annotation.join_shard(shard)
            own = scores[first : first + len(ends)]
            first += len(ends)
            if shard in writer.pending:
                table = make_annotation_table(rows["id"], rows["text_hash"], counts, ends, own)
                num_missing = int(np.isnan(own).sum())
                writer.write_shard(
                    shard, [ScoredDocuments(table, {f"no {name} score": num_missing} if num_missing else {})]
                )
