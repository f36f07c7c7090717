"""Text that comes with scores becomes a corpus with ready annotations: `phf corpus import`."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from phf.annotate.annotation import Annotation
from phf.annotate.annotation_writer import (
    ScoredDocuments,
    count_reasons,
    make_annotation_table,
    write_annotation,
)
from phf.corpus.rows import BadRow
from phf.corpus.sources import name_sources
from phf.corpus.store import BYTES_PER_GROUP, Corpus, is_built_with, write_corpus
from phf.curate.exchange import ExchangeFormat, Uncovered
from phf.curate.exchange_rows import ScoredRow, find_attributes, iterate_scored_rows
from phf.errors import PHFError
from phf.files import hash_bytes
from phf.folders import create_folder
from phf.records import Identity, Progress

_Rows = Callable[[], Iterator[ScoredRow | BadRow]]


def import_corpus(
    source: str,
    out: Path,
    kind: ExchangeFormat,
    *,
    attributes: Sequence[str] = (),
    names: Sequence[str] = (),
    unit: str = "score",
    negate: bool = False,
    uncovered: Uncovered | None = None,
    validation_fraction: float = 0.05,
    bytes_per_group: int = BYTES_PER_GROUP,
    progress: Progress | None = None,
) -> tuple[Corpus, list[Annotation]]:
    """Build a corpus and an annotation for each attribute; the folder appears whole or not at all.

    Documents are cut where the source cuts them: such a corpus has the segments `imported`, which `annotate`, `tokenize`
    and `train` know. Rows that hold no usable text or scores are counted with their reasons, as in `build_corpus`. The
    source is read once for the texts and once for each annotation, so memory stays bounded.

    Args:
        source: a folder of Dolma's; else files of records or a data set (see `iterate_records`).
        attributes: which scores to take (an attribute of Dolma's, or a column); by default all there are.
        names: of the reward models, one per attribute; by default the attributes' own names.
        unit: what a score counts.
        negate: the source's scores are higher where the text is *better*.
        uncovered: what it means that no span of Dolma's covers a text, or a part of it: a score of `0`, or an `error`. By
            default such a segment is unscored, and counted.

    Returns:
        the corpus, and its annotations in the order of the attributes.

    Raises:
        PHFError: no such source or attribute; files that do not belong together; no usable row; `out` holds something else.
    """
    if uncovered is not None and kind != "dolma":
        raise PHFError(
            f"--uncovered {uncovered} is about spans that leave out text; in the format {kind} every segment has a score or null"
        )
    settings = {"text_field": None, "validation_fraction": validation_fraction, "max_documents": None}
    with create_folder(out, "importing to", is_own=lambda: is_built_with(out, 1, settings)) as folder:
        attributes = find_attributes(source, kind, attributes)
        names = _choose_names(kind, attributes, names)

        (source_name,) = name_sources([source])

        def iterate() -> Iterator[ScoredRow | BadRow]:
            return iterate_scored_rows(source, kind, attributes, negate, uncovered, source_name)

        digest = hashlib.sha256()
        corpus = write_corpus(
            [(source_name, _digest(iterate(), digest))],
            folder,
            validation_fraction=validation_fraction,
            bytes_per_group=bytes_per_group,
            imported_ends=True,
            remedy="check --format and --attribute",
            progress=progress,
        )
        for index, (attribute, name) in enumerate(zip(attributes, names, strict=True)):
            parameters = {"attribute": attribute, "negated": negate, "data_sha256": digest.hexdigest()}
            if uncovered == "0":
                parameters["uncovered"] = 0
            identity = Identity(name, "imported", None, parameters)
            _write_annotation(corpus, identity, unit, iterate, index, digest.hexdigest(), progress)
    corpus = Corpus.open(out)
    return corpus, [Annotation.open(corpus, name, "imported") for name in names]


def _choose_names(kind: ExchangeFormat, attributes: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    if not names and kind == "phf":
        raise PHFError("this format does not say what gave the scores; name it with --reward-model-name NAME")
    names = names or attributes
    if len(names) != len(attributes) or len(set(names)) != len(names):
        raise PHFError(
            f"{len(attributes)} attributes are imported ({', '.join(attributes)}) under {len(set(names))} names; give "
            "--reward-model-name once for each, in this order"
        )
    return names


def _digest(rows: Iterator[ScoredRow | BadRow], digest: "hashlib._Hash") -> Iterator[ScoredRow | BadRow]:
    """Pass rows on; what they hold is hashed, whatever kind of file they come from."""
    for row in rows:
        if isinstance(row, ScoredRow):
            text = row.text.encode()
            digest.update(np.array([len(text), len(row.ends)], "<i8").tobytes() + text)
            digest.update(np.array(row.ends, "<i8").tobytes())
            floats = np.array(row.scores, "<f4")
            floats[np.isnan(floats)] = np.nan  # one spelling of NaN
            digest.update(floats.tobytes())
        yield row


def _write_annotation(
    corpus: Corpus,
    identity: Identity,
    unit: str,
    iterate: _Rows,
    index: int,
    data_sha256: str,
    progress: Progress | None,
) -> None:
    digest = hashlib.sha256()
    rows = _digest(iterate(), digest)
    num_done = 0
    with write_annotation(
        corpus, identity=identity, spec=identity.name, unit=unit, segments="imported"
    ) as writer:
        for shard in writer.pending:
            writer.write_shard(shard, _iterate_scores(corpus, shard, rows, index))
            num_done += corpus.shards[shard].num_documents
            if progress is not None:
                progress(f"importing scores of {identity.name}", num_done, corpus.num_documents)
    for _ in rows:  # duplicates of the last document
        pass
    if digest.hexdigest() != data_sha256:
        raise PHFError("the source changed while it was being imported; import it again")


def _iterate_scores(
    corpus: Corpus, shard: int, rows: Iterator[ScoredRow | BadRow], index: int
) -> Iterator[ScoredDocuments]:
    """The scores of a shard's documents: those of the next row that has the document's text."""
    with corpus.open_shard(shard) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["id", "text_hash"])
            found = [_find_row(rows, text_hash) for text_hash in table["text_hash"].to_pylist()]
            scores = [score for row in found for score in row.scores[index]]
            annotated = make_annotation_table(
                table["id"],
                table["text_hash"],
                np.array([len(row.ends) for row in found], np.int64),
                np.array([end for row in found for end in row.ends], np.int32),
                np.array(scores, np.float32),
            )
            yield ScoredDocuments(annotated, count_reasons(scores))


def _find_row(rows: Iterator[ScoredRow | BadRow], text_hash: str) -> ScoredRow:
    for row in rows:
        if isinstance(row, ScoredRow) and hash_bytes(row.text.encode()) == text_hash:
            return row
    raise PHFError("the source changed while it was being imported; import it again")
