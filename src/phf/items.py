"""What measurements were made of, item by item, so that two runs are compared on the same items and not by their means alone.

An item's name is a hash of what was measured on (a text, a pair of sentences, a question), so that items of two runs are paired
where they are the same, whatever their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from phf.records import Number
from phf.results import Place

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
        names: of the items, each once.
        values: of each; NaN where it has none.
        weights: of each, such as its bytes; the same item weighs the same in every run.
        clusters: of items that hang together; None = each stands alone.
    """

    place: Place
    names: Sequence[str]
    values: Sequence[Number]
    weights: Sequence[Number]
    clusters: Sequence[str] | None = None
