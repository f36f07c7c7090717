"""metrics.jsonl: each line ends in a check that binds it to its run and to the line before (docs/format.md)."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

METRICS = "metrics.jsonl"
Line = dict[str, Any]
"""Of metrics.jsonl: `kind`, `step`, `tokens` and numbers."""

_CHECKED = re.compile(r'(\{.*), "check": "([0-9a-f]{8})"\}')


@dataclass(frozen=True, slots=True)
class Metrics:
    """What metrics.jsonl says.

    Attributes:
        lines: those that are whole, without their checks.
        num_damaged: lines that are not, that are another run's, or that stand behind one that is gone; a last one that a
            kill has cut off, too.
    """

    lines: list[Line]
    num_damaged: int


def encode_lines(lines: Iterable[Line], run_id: str, before: str = "") -> tuple[str, str]:
    """Lines as they stand in the file, and the check of the last.

    Args:
        before: check of the line before; empty at the beginning of the file.
    """
    texts = []
    for line in lines:
        body = json.dumps(line)[:-1]
        before = _check(body, run_id, before)
        texts.append(f'{body}, "check": "{before}"}}\n')
    return "".join(texts), before


def read_metrics(run: Path, run_id: str) -> Metrics:
    """Read a run's metrics.jsonl; one that is missing has no lines. Where no line has a check, an older phf wrote them."""
    path = run / METRICS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    *texts, rest = text.split("\n")
    checked = [_CHECKED.fullmatch(text) for text in texts]
    is_older = not any(checked)
    lines: list[Line] = []
    before = ""
    for text, found in zip(texts, checked, strict=True):
        body, check = found.groups() if found else ("", "")
        line = None
        if is_older or check == _check(body, run_id, before):
            line = _parse_line(text if is_older else f"{body}}}")
        lines += [] if line is None else [line]
        before = check
    return Metrics(lines, len(texts) - len(lines) + bool(rest))


def _check(body: str, run_id: str, before: str) -> str:
    return f"{crc32(f'{run_id} {before} {body}'.encode()):08x}"


def _parse_line(text: str) -> Line | None:
    """None for what is no line of metrics, which only an older phf's can be: no check says so."""
    try:
        line = json.loads(text)
        for key in {"step", *line} - {"kind"}:
            float(line[key] or 0)  # null is NaN
        is_line = isinstance(line["kind"], str)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return line if is_line else None
