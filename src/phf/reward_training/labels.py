"""Human feedback as people have it: a file of labels, ratings or pairs (docs/trained_reward_models.md)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from phf.corpus.record_files import iterate_file, iterate_jsonl
from phf.corpus.rows import BadRow
from phf.errors import PHFError
from phf.files import hash_file
from phf.records import MAX_SCORE
from phf.reward_models.wording import BAD_WORDS, GOOD_WORDS, fold

LabelKind = Literal["labels", "ratings", "pairs"]
FIELDS: dict[LabelKind, tuple[str, str]] = {
    "labels": ("text", "label"),
    "ratings": ("text", "rating"),
    "pairs": ("chosen", "rejected"),
}
LABEL_WORDS = dict.fromkeys((*BAD_WORDS, "yes", "true"), 1.0) | dict.fromkeys(
    (*GOOD_WORDS, "no", "false"), 0.0
)
"""What a label in words says, folded: `label` asks whether the text is bad."""
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no feedback, and why not."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Labels:
    """Feedback of one kind.

    Attributes:
        kind: of every row.
        texts: what was judged; of pairs, the chosen text.
        rejected: the other text of each pair; empty for labels and ratings.
        targets: how bad each text is, float64 in [0, 1]; 0.0 for pairs. A label is its own target (1 = bad). Ratings are
            put linearly between the best one in the file (0) and the worst (1).
        bad_rows: lines that were left out.
        sha256: of the file.
    """

    path: Path
    kind: LabelKind
    texts: list[str]
    rejected: list[str]
    targets: npt.NDArray[np.float64]
    bad_rows: list[BadLine]
    sha256: str


def read_labels(path: Path) -> Labels:
    """Read a file of feedback, one JSON object per line; a .csv, .tsv or .parquet file has a row for each. Either may be .gz or
    .zst; further fields are ignored.

    `{"text", "label"}`: 1 = bad, 0 = good, a probability, or a word of `LABEL_WORDS`. `{"text", "rating"}`: any number, higher = better.
    `{"chosen", "rejected"}`: texts, the chosen one is the better.

    Raises:
        PHFError: the file is missing, empty or damaged, holds two kinds of feedback, or no line of it is feedback.
    """
    texts: list[str] = []
    rejected: list[str] = []
    values: list[float] = []
    bad_rows: list[BadLine] = []
    kind: LabelKind | None = None
    first_line = 0
    for number, row in _read_rows(path):
        try:
            found, text, value = _parse_row(row)
        except ValueError as error:
            bad_rows.append(BadLine(number, str(error)))
            continue
        if kind is None:
            kind, first_line = found, number
        elif found != kind:
            raise PHFError(
                f"{path}: line {first_line} holds {kind}, line {number} {found}; put each kind in a file of its own"
            )
        texts.append(text)
        if isinstance(value, str):
            rejected.append(value)
            value = 0.0
        values.append(value)
    if kind is None or len(bad_rows) >= len(texts):
        why = describe_bad_rows(path, bad_rows) if bad_rows else f"{path} is empty"
        raise PHFError(
            f'{why}; each line must be {{"text", "label"}} (1 = bad), {{"text", "rating"}} (higher = better) or '
            '{"chosen", "rejected"}'
        )
    targets = np.asarray(values, np.float64)
    if kind == "ratings":
        worst, best = targets.min(), targets.max()
        targets = (best - targets) / (best - worst) if best > worst else np.full(len(targets), 0.5)
    return Labels(path, kind, texts, rejected, targets, bad_rows, hash_file(path))


def _parse_row(row: Mapping[str, object] | BadRow) -> tuple[LabelKind, str, float | str]:
    """The kind of a row, its text, and its label, rating or rejected text; ValueError says what is wrong."""
    if isinstance(row, BadRow):
        raise ValueError(row.reason)  # noqa: TRY004  a fault of the input, as the others
    found = [kind for kind, fields in FIELDS.items() if all(field in row for field in fields)]
    if not found:
        raise ValueError("no text and label, text and rating, or chosen and rejected")
    if len(found) > 1:
        raise ValueError(f"both {' and '.join(found)}")
    kind = found[0]
    text, value = (row[field] for field in FIELDS[kind])
    for given, field in ((text, FIELDS[kind][0]), *([(value, "rejected")] if kind == "pairs" else ())):
        if not isinstance(given, str) or not given.strip():
            raise ValueError(f"{field} is no text, or an empty one")
    if kind == "pairs":
        if text == value:
            raise ValueError("chosen and rejected are the same text")
        return kind, str(text), str(value)
    return kind, str(text), _parse_number(kind, value)


def _parse_number(kind: LabelKind, value: object) -> float:
    name = FIELDS[kind][1]
    if kind == "labels" and isinstance(value, str) and fold(value) in LABEL_WORDS:
        return LABEL_WORDS[fold(value)]
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        raise ValueError(f"{name} is no number, nor good, bad, yes, no, true or false") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is no finite number")
    if abs(number) > MAX_SCORE:
        raise ValueError(f"{name} is beyond ±{MAX_SCORE:g}")
    if kind == "labels" and not 0 <= number <= 1:
        raise ValueError("label is outside 0 to 1 (1 = bad); is it a rating?")
    return number


def _read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object] | BadRow]]:
    """Rows that are not blank, with the numbers of their lines."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise PHFError(f"{path} {what}; give JSON Lines, such as 'phf label CORPUS -o {path.name}' writes")
    for row in iterate_file(path, "", _choose_fields) or iterate_jsonl(path, ""):
        number = int(row.place.rpartition(":")[2])
        yield number, row if isinstance(row, BadRow) else row.fields


def _choose_fields(path: Path, types: Mapping[str, object]) -> list[str]:
    wanted = {field for fields in FIELDS.values() for field in fields}
    return [name for name in types if name in wanted]


def describe_bad_rows(path: Path, bad_rows: list[BadLine]) -> str:
    """One line about the lines left out: how many, and the first of them with the reason."""
    shown = ", ".join(f"line {row.line} ({row.reason})" for row in bad_rows[:_NUM_SHOWN])
    more = f" and {len(bad_rows) - _NUM_SHOWN:,} more" if len(bad_rows) > _NUM_SHOWN else ""
    return (
        f"{path}: {len(bad_rows):,} line{'' if len(bad_rows) == 1 else 's'} hold no feedback: {shown}{more}"
    )
