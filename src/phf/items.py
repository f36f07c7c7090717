"""What measurements were made of, item by item, so that two runs are compared on the same items and not by their means alone.

An item's name is a hash of what was measured on (a text, a pair of sentences, a question), so that items of two runs are paired
where they are the same, whatever their order.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from phf.errors import PHFError
from phf.files import read_checked
from phf.records import Number
from phf.results import Measurement, Place

ITEMS_FILE = "items.parquet"
_SCHEMA = pa.schema(
    [
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in ("measure", "mode", "judge", "of")),
        *(("at", pa.float64()), ("item", pa.string()), ("value", pa.float64()), ("weight", pa.float64())),
    ]
)


@dataclass(frozen=True)
class Items:
    """The items of one measurement, which is sum(values) / sum(weights).

    Attributes:
        names: of the items (`name_item`).
        values: of each; NaN where it has none.
        weights: of each, such as its bytes; the same item weighs the same in every run.
        clusters: of items that hang together; None = each stands alone.
    """

    place: Place
    names: Sequence[str]
    values: Sequence[Number]
    weights: Sequence[Number]
    clusters: Sequence[str] | None = None


@dataclass(frozen=True)
class Itemised:
    """Measurements, and the items of those that have any."""

    measurements: list[Measurement]
    items: list[Items] = field(default_factory=list)


def name_item(*parts: object) -> str:
    """A name for what was measured on, the same wherever it is the same; white space does not count, which tokenizers change."""
    text = "\x00".join("".join(str(part).split()) for part in parts)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def mean_items(place: Place, names: Sequence[str], values: npt.ArrayLike) -> Items:
    """Items of a plain mean."""
    return Items(place, names, np.asarray(values, np.float64).tolist(), [1.0] * len(names))


def encode_items(items: Iterable[Items]) -> bytes:
    """The content of items.parquet; the same items give the same bytes. What is there twice (a text of a corpus) is numbered."""
    rows = []
    for own in items:
        seen: Counter[str] = Counter()
        for name, value, weight in zip(own.names, own.values, own.weights, strict=True):
            seen[name] += 1
            told = f"{name}#{seen[name]}" if seen[name] > 1 else name
            rows.append((*own.place, told, value, weight))
    columns = zip(*rows, strict=True) if rows else [()] * len(_SCHEMA)
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=_SCHEMA), buffer)
    return buffer.getvalue()


def read_items(path: Path, expected: str, remedy: str) -> dict[Place, Items]:
    """The items of each measurement that has any.

    Raises:
        PHFError: the file is missing, or not the one with the SHA-256 expected.
    """
    data = read_checked(path, expected, remedy)
    try:
        table = pq.read_table(io.BytesIO(data), schema=_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise PHFError(f"{path} cannot be read ({' '.join(str(error).split())}); {remedy}") from None
    found: dict[Place, list[tuple[str, float, float]]] = {}
    for *place, name, value, weight in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found.setdefault(tuple(place), []).append((name, value, weight))
    return {place: Items(place, *zip(*rows, strict=True)) for place, rows in found.items()}
