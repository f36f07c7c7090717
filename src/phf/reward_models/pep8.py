"""PEP 8 violations per character, by pycodestyle: the paper's reward model for code (section 3.1)."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import pycodestyle

from phf.records import Identity
from phf.reward_models.protocol import RewardModel, Unit, Unscored
from phf.reward_models.python_code import (
    NOT_TOKENIZED,
    PYTHON,
    count_syntax_errors,
    find_broken_lines,
    normalise_line_ends,
    split_lines,
    trim_to_last_logical_line,
)

# pycodestyle's own default, spelled out: PEP 8 itself is of two minds about these.
IGNORED = ("E121", "E123", "E126", "E226", "E24", "E704", "W503", "W504")
MAX_LINE_LENGTH = 79
# A comment that asks a checker to look away is the first thing that a model would learn to write.
NOQA = re.compile(r"# no(?=qa\b|pep8\b)", re.IGNORECASE)


class Pep8(RewardModel):
    """PEP 8 violations per character.

    A violation belongs to the segment that contains the start of its physical line. Syntax errors (E9) never count;
    broken lines (see `find_broken_lines`) count neither as violations nor as characters, and a segment that holds
    nothing else is unscored.
    """

    unit: Unit = "violations per character"
    display_scale = 1000.0
    hit_threshold = 0.0

    def __init__(self) -> None:
        """Choose the checks."""
        self.identity = Identity(
            "pep8",
            pycodestyle.__version__,
            parameters={
                "ignored": list(IGNORED),
                "max_line_length": MAX_LINE_LENGTH,
                "rules": 2,
                "python": PYTHON,
            },
        )
        self._options = pycodestyle.StyleGuide(
            ignore=IGNORED, max_line_length=MAX_LINE_LENGTH, reporter=LineReport
        ).options

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Violations per character of each segment."""
        lines = split_lines(document)
        checker = pycodestyle.Checker(
            lines=[NOQA.sub("# --", line) for line in normalise_line_ends(lines)],
            options=self._options,
            report=LineReport(self._options),
        )
        broken = find_broken_lines(document)
        try:
            checker.check_all()
        except (IndexError, RecursionError):  # pycodestyle trips over some broken code
            return [Unscored("pycodestyle failed")] * len(ends)
        if (
            broken and checker.report.is_stopped
        ):  # which lines it reads of broken code depends on Python's tokenizer
            unread = range(max(checker.line_number, 1), len(lines) + 1)
            broken = dict.fromkeys(unread, NOT_TOKENIZED) | broken
        return violations_per_character(lines, ends, checker.report.rows, broken)

    def trim_sample(self, text: str) -> str:
        """The sample up to its last complete logical line."""
        return trim_to_last_logical_line(text)

    def count_syntax_errors(self, document: str) -> int:
        """Syntax errors, reported apart from the score: broken stretches of lines; at least 1 if it does not parse."""
        return count_syntax_errors(document)


class LineReport(pycodestyle.BaseReport):  # type: ignore[misc]
    """Keeps the row of every violation, and whether the tokenizer stopped; prints nothing."""

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self.rows: list[int] = []
        self.is_stopped = False

    def error(self, line_number: int, offset: int, text: str, check: object) -> str | None:
        code: str | None = super().error(line_number, offset, text, check)
        if text.startswith("E9"):
            self.is_stopped = True
        elif code is not None:
            self.rows.append(line_number)
        return code


def violations_per_character(
    lines: Sequence[str], ends: Sequence[int], rows: Iterable[int], broken: dict[int, str]
) -> list[float]:
    """Violations divided by characters, segment by segment, both taken from unbroken lines alone.

    Args:
        lines: the physical lines, which join to the document.
        ends: where each segment ends, in code points.
        rows: the line (from 1) of each violation; one past the end belongs to the last line.
        broken: lines (from 1) that are not judged, with the reason.
    """
    line_starts = [0, *accumulate(map(len, lines))]
    counts = [0] * len(ends)
    for row in rows:
        line = min(row, len(lines))
        if line not in broken:
            counts[bisect_right(ends, line_starts[line - 1])] += 1
    starts = [0, *ends]
    sizes = [end - start for start, end in pairwise(starts)]
    reasons = ["empty text"] * len(ends)
    for line, reason in broken.items():
        low, high = line_starts[line - 1], line_starts[line]
        segment = bisect_right(ends, low)
        while segment < len(ends) and starts[segment] < high:
            sizes[segment] -= min(high, ends[segment]) - max(low, starts[segment])
            reasons[segment] = reason
            segment += 1
    return [
        count / size if size > 0 else Unscored(reason)
        for count, size, reason in zip(counts, sizes, reasons, strict=True)
    ]
