"""The parts of a shard that is being scored: with a slow reward model a kill loses minutes, not the hours of 64 MB of text.

A part holds what was scored in about a minute, a row group (1 MB of text) at least. It is a file of the shard's format
whose row groups become the shard's, so that the shard's bytes do not depend on how often the work was stopped.
"""

import json
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.parquet as pq

from phf.annotate.annotation import ANNOTATION_SCHEMA
from phf.annotate.annotation_writer import ScoredDocuments
from phf.corpus.store import open_parquet_writer
from phf.files import replace_atomically

PART_SECONDS = 60.0
_KEY, _REASONS = "phf.key", "phf.reasons"


class ShardParts:
    """The finished parts of one shard of an annotation, in its folder under `parts/`.

    Attributes:
        scored: the documents of the parts that are there, a `ScoredDocuments` for each row group from the shard's first on.
    """

    def __init__(self, annotation: Path, index: int, key: str, *, seconds: float = PART_SECONDS) -> None:
        """Read the parts.

        Args:
            key: what the scores depend on beside the folder; parts of another key are removed.
            seconds: of work that may be lost.
        """
        self._folder, self._name, self._key, self._seconds = (
            annotation / "parts",
            f"{index:05d}",
            key,
            seconds,
        )
        self.scored: list[ScoredDocuments] = []
        for file in self._list_files():
            part = self._read(file)
            if part is None or file.name != self._file_of(len(self.scored)):
                file.unlink()
            else:
                self.scored += part

    def keep(self, scored: Iterable[ScoredDocuments]) -> Generator[ScoredDocuments, None, None]:
        """All of the shard: the parts, then the rest as it comes, which is kept now and then and when it stops coming."""
        yield from self.scored
        num_kept, waiting, due = len(self.scored), list[ScoredDocuments](), monotonic() + self._seconds
        try:
            for documents in scored:
                waiting.append(documents)
                if monotonic() >= due:
                    self._write(num_kept, waiting)
                    num_kept, waiting, due = num_kept + len(waiting), [], monotonic() + self._seconds
                yield documents
            waiting = []  # the shard is whole, and is written next
        finally:
            if waiting:
                self._write(num_kept, waiting)

    def remove(self) -> None:
        """Remove the parts: their shard lies in its place, or is to be scored anew."""
        self.scored = []
        for file in self._list_files():
            file.unlink()
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _list_files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._name}-*.parquet")) if self._folder.exists() else []

    def _file_of(self, first: int) -> str:
        return f"{self._name}-{first:06d}.parquet"

    def _write(self, first: int, scored: list[ScoredDocuments]) -> None:
        with (
            replace_atomically(self._folder / self._file_of(first)) as temporary,
            open_parquet_writer(temporary, ANNOTATION_SCHEMA) as writer,
        ):
            for documents in scored:
                writer.write_table(documents.table)
            reasons = json.dumps([documents.reasons for documents in scored])
            writer.add_key_value_metadata({_KEY: self._key, _REASONS: reasons})

    def _read(self, file: Path) -> list[ScoredDocuments] | None:
        """The documents of a part; None if it is of another key, or damaged: scoring again costs time, no data."""
        try:
            parquet = pq.ParquetFile(pa.BufferReader(file.read_bytes()))
            metadata = parquet.metadata.metadata or {}
            if metadata.get(_KEY.encode()) != self._key.encode():
                return None
            reasons = json.loads(metadata[_REASONS.encode()])
            tables = [parquet.read_row_group(group) for group in range(parquet.num_row_groups)]
            return [
                ScoredDocuments(table.replace_schema_metadata(None), dict(Counter(own)))
                for table, own in zip(tables, reasons, strict=True)
            ]
        except (pa.ArrowException, KeyError, ValueError):
            return None
