"""A corpus and its scores in the formats of other tools: `phf corpus export`."""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import zstandard
from pydantic import JsonValue

from phf.annotate.annotation import Annotation
from phf.corpus.store import Corpus, open_parquet_writer
from phf.curate.exchange import DOLMA_EXPERIMENT, UNSCORED_SUFFIX, ExchangeFormat, name_attributes
from phf.errors import PHFError
from phf.files import hash_file, hash_json, write_bytes, write_json
from phf.folders import create_folder
from phf.paths import hide_paths, hide_spec, split_rule
from phf.records import Progress, Split

DOCUMENT_COLUMNS = ("id", "text", "source", "split")
_SCORES_TYPE = pa.struct([("ends", pa.list_(pa.int32())), ("scores", pa.list_(pa.float32()))])
PHF_SCHEMA = pa.schema(
    [
        ("texts", pa.list_(pa.string())),
        ("meta", pa.struct([("id", pa.string()), ("source", pa.string()), ("split", pa.string())])),
        ("scores", pa.list_(pa.float64())),
        ("avg_score", pa.float64()),
        ("num_sents", pa.int64()),
    ]
)


def export_corpus(
    corpus: Corpus,
    out: Path,
    kind: ExchangeFormat,
    annotations: Sequence[Annotation] = (),
    *,
    split: Split | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a corpus and some of its annotations as other tools read them; the folder appears whole or not at all.

    There is one file per shard, in corpus order; the same corpus gives the same bytes. Higher = worse; an unscored segment
    is null (in Dolma: a span of a second attribute), never 0. Holds one shard's scores and one row group of text.

    Args:
        out: the folder to make.
        kind: see docs/exchange.md. `phf` takes exactly one annotation, the others any number.
        split: only the documents of one split.

    Raises:
        PHFError: `out` holds something else; the annotations do not fit the format; a join fails.
    """
    named = name_attributes(annotations)
    if kind == "phf" and len(named) != 1:
        raise PHFError(
            f"format phf holds the scores of one annotation, {len(named)} are given; name one with -r"
        )
    if kind == "datasets":
        find_datasets()  # a missing package is said before any work
    num_done = 0
    card = _write_card(corpus, kind, named, split).encode()
    with create_folder(out, "exporting to", is_own=lambda: _holds(out / "README.md", card)) as folder:
        for index, shard in enumerate(corpus.shards):
            _write_shard(folder, index, kind, _iterate_tables(corpus, index, named, split), list(named))
            num_done += shard.num_documents
            if progress is not None:
                progress("exporting documents", num_done, corpus.num_documents)
        if kind == "datasets":
            write_datasets_manifest(folder, _row_schema(list(named)))
        write_bytes(folder / "README.md", card)
    return out


def _holds(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _row_schema(names: Sequence[str]) -> pa.Schema:
    """A row per document: its text, and for each annotation a struct of `ends` and `scores`."""
    return pa.schema(
        [*((name, pa.string()) for name in DOCUMENT_COLUMNS), *((name, _SCORES_TYPE) for name in names)]
    )


def _iterate_tables(
    corpus: Corpus, index: int, named: dict[str, Annotation], split: Split | None
) -> Iterator[pa.Table]:
    """The documents of a shard with their scores (`_row_schema`), a row group at a time; no row names a folder of here."""
    shown = _name_sources(corpus)
    joined = [annotation.join_shard(index) for annotation in named.values()]
    offsets = [np.concatenate([[0], np.cumsum(num_segments)]) for num_segments, _, _ in joined]
    start = 0
    with corpus.open_shard(index) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(DOCUMENT_COLUMNS))
            stop = start + len(table)
            for name, (_, ends, scores), offset in zip(named, joined, offsets, strict=True):
                table = table.append_column(name, _make_scores(ends, scores, offset[start : stop + 1]))
            start = stop
            if split is not None:
                table = table.filter(pc.equal(table["split"], split))
            yield _hide_sources(table.cast(_row_schema(list(named))), shown)


def _name_sources(corpus: Corpus) -> dict[str, str]:
    """What each source whose folder must not be told is called instead; two of one name differ by a hash."""
    specs = [source["spec"] for source in corpus.manifest["sources"]]
    shown: dict[str, str] = {}
    for spec in specs:
        if (name := hide_spec(spec)) != spec:
            body, rule = split_rule(name)
            taken = {*specs, *shown.values()}
            shown[spec] = f"{body}~{hash_json(spec)[:8]}{rule}" if name in taken else name
    return shown


def _hide_sources(table: pa.Table, shown: Mapping[str, str]) -> pa.Table:
    """Rows with other names of their sources, also in ids that begin with one (a place in it)."""
    for spec, name in shown.items():
        place, to = split_rule(spec)[0], split_rule(name)[0]
        is_own = pc.equal(table["source"], spec)
        cut = pc.binary_join_element_wise(to, pc.utf8_slice_codeunits(table["id"], len(place)), "")
        ids = pc.if_else(pc.and_(is_own, pc.starts_with(table["id"], place)), cut, table["id"])
        table = table.set_column(0, "id", ids)
        table = table.set_column(
            DOCUMENT_COLUMNS.index("source"), "source", pc.if_else(is_own, name, table["source"])
        )
    return table


def _make_scores(
    ends: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> pa.StructArray:
    """Ends and scores of some documents, whose segments lie between `offsets`; NaN becomes null."""
    lists = pa.array((offsets - offsets[0]).astype(np.int32))
    ends, scores = ends[offsets[0] : offsets[-1]], scores[offsets[0] : offsets[-1]]
    return pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(lists, pa.array(ends)),
            pa.ListArray.from_arrays(lists, pa.array(scores, mask=np.isnan(scores))),
        ],
        fields=list(_SCORES_TYPE),
    )


def _write_shard(
    folder: Path, index: int, kind: ExchangeFormat, tables: Iterator[pa.Table], names: list[str]
) -> None:
    file = f"{index:05d}"
    match kind:
        case "parquet":
            _write_parquet(folder / "data" / f"{file}.parquet", tables, _row_schema(names))
        case "phf":
            rows = (_make_phf_table(table, names[0]) for table in tables)
            _write_parquet(folder / "data" / f"{file}.parquet", rows, PHF_SCHEMA)
        case "datasets":
            path = folder / f"data-{file}.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _row_schema(names)) as writer:
                for table in tables:
                    writer.write_table(table)
        case "jsonl":
            with _open_lines(folder / "data" / f"{file}.jsonl.zst") as write:
                for row in chain.from_iterable(map(pa.Table.to_pylist, tables)):
                    write(row)
        case "dolma":
            _write_dolma(folder, f"{file}.jsonl.gz", tables, names)
        case _:
            assert_never(kind)


def _write_parquet(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    path.parent.mkdir(exist_ok=True)
    with open_parquet_writer(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _make_phf_table(table: pa.Table, name: str) -> pa.Table:
    """The layout of the published PHF data sets: the text cut into `texts`, with their `scores`."""
    rows = []
    for row in table.to_pylist():
        text, ends, scores = row["text"], row[name]["ends"], row[name]["scores"]
        rows.append(
            {
                "texts": [text[start:end] for start, end in zip([0, *ends], ends, strict=False)],
                "meta": {key: row[key] for key in ("id", "source", "split")},
                "scores": scores,
                "avg_score": None if None in scores else sum(scores) / len(scores),
                "num_sents": len(scores),
            }
        )
    return pa.Table.from_pylist(rows, schema=PHF_SCHEMA)


def _write_dolma(folder: Path, file: str, tables: Iterator[pa.Table], names: list[str]) -> None:
    """Documents, and beside them a file of attributes per annotation: the same rows in the same order."""
    with ExitStack() as stack:
        write_document = stack.enter_context(_open_lines(folder / "documents" / file))
        writers = {
            name: stack.enter_context(_open_lines(folder / "attributes" / name / file)) for name in names
        }
        for row in chain.from_iterable(map(pa.Table.to_pylist, tables)):
            key = {"id": row["id"], "source": row["source"]}
            write_document({**key, "text": row["text"], "metadata": {"split": row["split"]}})
            for name, write in writers.items():
                write({**key, "attributes": make_spans(f"{DOLMA_EXPERIMENT}__{name}", **row[name])})


def make_spans(attribute: str, ends: list[int], scores: list[float | None]) -> dict[str, list[list[float]]]:
    """`[start, end, score]` of the scored segments, and `[start, end, 1.0]` of the others under a second name."""
    spans = list(zip([0, *ends], ends, scores, strict=False))
    return {
        attribute: [[start, end, score] for start, end, score in spans if score is not None],
        attribute + UNSCORED_SUFFIX: [[start, end, 1.0] for start, end, score in spans if score is None],
    }


@contextmanager
def _open_lines(path: Path) -> Iterator[Callable[[dict[str, object]], None]]:
    """Give a function that writes a row to a compressed JSONL file, whose bytes hold no time and no name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        compressed: gzip.GzipFile | zstandard.ZstdCompressionWriter = (
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0)
            if path.suffix == ".gz"
            else zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
        )
        with io.TextIOWrapper(compressed, encoding="utf-8", newline="\n") as text:

            def write(row: dict[str, object]) -> None:
                text.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

            yield write


def find_datasets() -> ModuleType:
    """The package.

    Raises:
        PHFError: it is not installed.
    """
    try:
        return import_module("datasets")
    except ModuleNotFoundError:
        raise PHFError("format datasets needs the package datasets; run: pip install 'phf[hub]'") from None


def write_datasets_manifest(folder: Path, schema: pa.Schema) -> None:
    """What `datasets.load_from_disk` wants beside the Arrow files. `save_to_disk` itself would write every row twice.

    Raises:
        PHFError: the package is not installed.
    """
    datasets = find_datasets()
    files = sorted(path.name for path in folder.glob("data-*.arrow"))
    datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(schema)).write_to_directory(str(folder))
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": hash_json([hash_file(folder / name) for name in files])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


def _write_card(
    corpus: Corpus, kind: ExchangeFormat, named: dict[str, Annotation], split: Split | None
) -> str:
    """README.md: where the data comes from and what each score is, for people and for whoever imports it."""
    shown = _name_sources(corpus)
    record: JsonValue = {
        "format": kind,
        "corpus": corpus.id,
        "sources": [shown.get(source["spec"], source["spec"]) for source in corpus.manifest["sources"]],
        "split": split or "train and validation: each row says which",
        "annotations": {
            name: {
                "reward_model": annotation.identity.to_json(),
                "unit": annotation.unit,
                "segments": {**annotation.manifest["segmentation"]},
                "annotation": annotation.slug,
            }
            for name, annotation in named.items()
        },
    }
    return (
        "# Scored text, exported by phf\n\nA score is higher where the text is worse. A segment without a score is null "
        "(in Dolma: a span of the attribute that ends in `_unscored`), never 0. Segment ends are in code points; segments "
        "join to the text.\n\n```json\n"
        + json.dumps(hide_paths(record, shown), indent=1, sort_keys=True).replace("`", "\\u0060")
        + "\n```\n"
    )
