"""Judgements made elsewhere: exports of Argilla and Label Studio become rows of ours (docs/labels.md)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from phf.errors import PHFError
from phf.feedback.exports import Answer, NoAnswer, read_argilla, read_label_studio
from phf.feedback.judgements import Row
from phf.files import read_regular, write_bytes
from phf.records import MAX_SCORE
from phf.reward_models.wording import BAD_WORDS, GOOD_WORDS, fold

_MAX_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made of a file.

    Attributes:
        format: `argilla` or `label-studio`.
        rows: the judgements, one per annotator and text (a ranking gives one per pair).
        unmapped: (record, reason) of every answer that gave no row.
    """

    format: str
    question: str
    rows: list[Row]
    unmapped: list[tuple[str, str]]

    def count_reasons(self) -> dict[str, int]:
        """How often each reason for no row occurred."""
        return dict(Counter(reason for _, reason in self.unmapped).most_common())


def import_labels(
    path: Path,
    out: Path,
    *,
    bad: Sequence[str] = (),
    good: Sequence[str] = (),
    question: str | None = None,
    fields: Sequence[str] = (),
    higher_is_worse: bool = False,
) -> Imported:
    """Turn an export into a file of judgements, whole or not at all.

    Args:
        bad, good: what choices mean, beside `BAD_WORDS` and `GOOD_WORDS`.
        question: the one to take, if there are several.
        fields: the field of the text; of a pair both, the left one first.
        higher_is_worse: ratings are stored with the sign turned.

    Raises:
        PHFError: `out` exists and is not what this gives; the format, a choice or a field is not known, or nothing can be used.
    """
    records = _read_records(path)
    first = records[0]
    if "annotation_id" in first:
        raise PHFError(
            f"{path} is a JSON-MIN export of Label Studio; export it as JSON, which says who chose what"
        )
    is_label_studio = "data" in first and {"annotations", "completions"} & first.keys()
    read = read_label_studio if is_label_studio else read_argilla
    answers: list[Answer] = []
    unmapped: list[tuple[str, str]] = []
    for answer in read(records):
        if isinstance(answer, NoAnswer):
            unmapped.append((answer.record, answer.reason))
        else:
            answers.append(answer)
    question = _choose_question(path, answers, question)
    mapper = _Mapper(path, bad, good, fields, higher_is_worse)
    taken = [answer for answer in answers if answer.question == question]
    mapper.check_choices(taken)
    rows: list[Row] = []
    for answer in taken:
        try:
            rows += mapper.make_rows(answer)
        except _NoRowError as error:
            unmapped.append((answer.record, str(error)))
    kinds = Counter(next(iter(row.keys() & {"label", "rating", "chosen"})) for row in rows)
    if len(kinds) != 1:
        problem = f"answers of {len(kinds)} kinds" if kinds else "no answer that can be used"
        reasons = ", ".join(
            f"{count} x {reason}" for reason, count in Counter(r for _, r in unmapped).items()
        )
        raise PHFError(
            f"{path} has {problem} to question '{question}' ({reasons or 'none left out'}); nothing was written"
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = lines.encode(errors="backslashreplace")  # a lone surrogate becomes JSON's own escape
    if out.exists() and not (out.is_file() and out.read_bytes() == data):
        raise PHFError(f"{out} exists; give -o another file (files of one kind may be joined with cat)")
    write_bytes(out, data)
    return Imported(read.__name__.removeprefix("read_").replace("_", "-"), question, rows, unmapped)


class _NoRowError(Exception):
    """An answer that gives no row; says why."""


class _Mapper:
    """Makes rows of answers."""

    def __init__(
        self,
        path: Path,
        bad: Sequence[str],
        good: Sequence[str],
        fields: Sequence[str],
        higher_is_worse: bool,
    ) -> None:
        self.path = path
        self.labels = dict.fromkeys(GOOD_WORDS, 0) | dict.fromkeys(BAD_WORDS, 1)
        self.labels |= dict.fromkeys(map(fold, good), 0) | dict.fromkeys(map(fold, bad), 1)
        if both := set(map(fold, good)) & set(map(fold, bad)):
            raise PHFError(f"choice '{min(both)}' is given as --good and as --bad; leave one out")
        self.fields = fields
        self.sign = -1 if higher_is_worse else 1

    def check_choices(self, answers: Iterable[Answer]) -> None:
        """Refuse choices of which nobody said whether they are bad."""
        found = {choice for answer in answers for choice in _find_choices(answer) or ()}
        unknown = sorted(choice for choice in found if fold(choice) not in self.labels)
        if unknown:
            raise PHFError(
                f"{self.path} has choices that may mean good or bad: {', '.join(map(repr, unknown))}; say which with "
                f"--bad {unknown[0]!r} and --good for the others"
            )

    def make_rows(self, answer: Answer) -> list[Row]:
        beside: Row = {"labeler": answer.labeler, "imported_from": self.path.name}
        if answer.time is not None:
            beside["time"] = answer.time
        if isinstance(answer.value, int | float) and not isinstance(answer.value, bool):
            rating = self.sign * answer.value
            if not abs(rating) <= MAX_SCORE:
                raise _NoRowError("a rating beyond all bounds")
            return [{"text": self._text(answer), "rating": rating, "segment_id": answer.record, **beside}]
        choices = _find_choices(answer)
        if choices is not None:
            found = {self.labels[fold(choice)] for choice in choices}
            if len(found) != 1:
                raise _NoRowError("good and bad choices at once" if found else "no choice")
            return [{"text": self._text(answer), "label": found.pop(), "segment_id": answer.record, **beside}]
        return [
            {
                "chosen": _check_text(answer, chosen),
                "rejected": _check_text(answer, rejected),
                "chosen_id": f"{answer.record}#{chosen}",
                "rejected_id": f"{answer.record}#{rejected}",
                **beside,
            }
            for chosen, rejected in self._find_pairs(answer)
        ]

    def _text(self, answer: Answer) -> str:
        names = list(answer.fields)
        if len(self.fields) > 1:
            raise PHFError(f"--field is given {len(self.fields)} times, but one text is judged; give it once")
        if self.fields:
            return _check_text(answer, self.fields[0])
        if len(names) == 1 or "text" in names:
            return _check_text(answer, "text" if "text" in names else names[0])
        if not names:
            raise _NoRowError("no text")
        raise PHFError(
            f"{self.path} has records of fields {', '.join(names)}; choose the judged one with --field"
        )

    def _find_pairs(self, answer: Answer) -> list[tuple[str, str]]:
        """(better, worse) field names; a tie gives none."""
        value = answer.value
        if isinstance(value, dict) and value.get("selected") in ("left", "right"):
            if len(self.fields) != 2:
                raise PHFError(
                    f"{self.path} does not say which field was left; give --field LEFT --field RIGHT of: "
                    f"{', '.join(answer.fields)}"
                )
            left, right = self.fields
            return [(left, right) if value["selected"] == "left" else (right, left)]
        ranks = _find_ranks(answer)
        if ranks is None:
            raise _NoRowError(f"a {type(value).__name__} that is no choice, rating, ranking or pair")
        pairs = [
            (a, b) if ranks[a] < ranks[b] else (b, a)
            for a, b in combinations(ranks, 2)
            if ranks[a] != ranks[b]
        ]
        if not pairs:
            raise _NoRowError("a tie")
        return pairs


def _find_choices(answer: Answer) -> list[str] | None:
    """The choices of an answer, if that is what it is. A list that orders the record's own fields is a ranking."""
    value = [answer.value] if isinstance(answer.value, str) else answer.value
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        return None
    return None if len(value) > 1 and set(value) <= answer.fields.keys() else value


def _find_ranks(answer: Answer) -> dict[str, float] | None:
    """Rank of each field, 1 = best."""
    if not isinstance(answer.value, list):
        return None
    ranks: dict[str, float] = {}
    for place, entry in enumerate(answer.value, start=1):
        name, rank = (entry.get("value"), entry.get("rank")) if isinstance(entry, dict) else (entry, place)
        if not isinstance(name, str) or isinstance(rank, bool) or not isinstance(rank, int | float):
            return None
        ranks[name] = rank
    return ranks


def _check_text(answer: Answer, field: str) -> str:
    text = answer.fields.get(field)
    if not isinstance(text, str):
        raise _NoRowError(f"no text in field {field}")
    if not text.strip():
        raise _NoRowError("empty text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _NoRowError("lone surrogate")
    return text


def _choose_question(path: Path, answers: Sequence[Answer], question: str | None) -> str:
    counts = Counter(answer.question for answer in answers)
    if not counts:
        raise PHFError(
            f"{path} has no answer in it (are the records annotated and submitted?); nothing was written"
        )
    if question is None and len(counts) == 1:
        return next(iter(counts))
    if question is None or question not in counts:
        listed = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
        what = "several questions" if question is None else f"no question '{question}'"
        raise PHFError(f"{path} has {what}; choose with --question: {listed}")
    return question


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON array, or of JSON Lines."""
    try:
        text = read_regular(path, _MAX_BYTES, f"export {path}").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PHFError(f"{path} is not UTF-8; export it as JSON") from None
    try:
        records = json.loads(text)
    except ValueError:
        records = list(_parse_lines(path, text))
    if isinstance(records, dict):
        records = [records]
    if (
        not isinstance(records, list)
        or not records
        or not all(isinstance(record, dict) for record in records)
    ):
        raise PHFError(f"{path} holds no list of records; export it as JSON from Argilla or Label Studio")
    return records


def _parse_lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise PHFError(f"{path}:{number} is not JSON ({error}); export it again as JSON") from None
