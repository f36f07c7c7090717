"""Which of two texts people preferred, as data sets of summaries and answers write it."""

import re
from collections.abc import Iterator, Mapping

from phf.corpus.rows import BadRow, is_encodable
from phf.corpus.sources import iterate_records
from phf.errors import PHFError

_PROMPTS = ("prompt", "post", "question", "query")
_CHOICES = ("preference", "choice", "label")
_SUMMARIES = re.compile(r"(?:summary|response|completion|answer)_?(\w)")


def read_preference_rows(spec: str) -> Iterator[tuple[str, str, str]]:
    """Prompt, better text and worse text of each row of a file, a folder of files, or `hf:ID`: columns `prompt`, `chosen` and `rejected`; or
    `post` (or `prompt`), two summaries and which of them is preferred.

    Raises:
        PHFError: it cannot be read, or a row is no preference (names the first).
    """
    for record in iterate_records(spec):
        where = f"{spec}, {record.place}"
        if isinstance(record, BadRow):
            raise PHFError(f"{where} cannot be read: {record.reason}; mend or remove it")
        found = _parse_row(record.fields)
        if found is None or not all(isinstance(text, str) and is_encodable(text) for text in found):
            raise PHFError(
                f"{where} is no preference; give columns prompt, chosen, rejected, or post, two summaries and preference "
                "(which of the two)"
            )
        prompt, better, worse = (str(text) for text in found)
        if better.strip() and worse.strip() and better != worse:
            yield prompt, better, worse


def _parse_row(row: Mapping[str, object]) -> tuple[object, object, object] | None:
    info = row.get("info")
    fields = {**(info if isinstance(info, dict) else {}), **row}
    prompt = next((fields[name] for name in _PROMPTS if name in fields), "")
    if {"chosen", "rejected"} <= fields.keys():
        return prompt, fields["chosen"], fields["rejected"]
    texts = _find_texts(fields)
    choice = next((str(fields[name]).lower() for name in _CHOICES if name in fields), "")
    if len(texts) != 2 or choice not in texts:
        return None
    (other,) = (name for name in texts if name != choice)
    return prompt, texts[choice], texts[other]


def _find_texts(fields: Mapping[str, object]) -> dict[str, object]:
    """The two texts of a row by what the choice calls them: a place in the list `summaries`, or the end of a column's name."""
    several = fields.get("summaries")
    if isinstance(several, list):
        return {
            str(place): one["text"] if isinstance(one, dict) else one for place, one in enumerate(several)
        }
    matches = {name: _SUMMARIES.fullmatch(name) for name in fields}
    return {match[1].lower(): fields[name] for name, match in matches.items() if match}
