"""Which of pycodestyle's violations `pep8-fast` (ruff) finds, code by code, on Python's standard library.

    python benchmarks/pep8_codes.py [--every N]

Violations are matched by line and code. Intervals are 95 %, by a bootstrap over files; one core takes a minute for every third file.
"""

import argparse
import sysconfig
from collections import Counter
from pathlib import Path

import pycodestyle

from phf.intervals import bootstrap_ratio
from phf.records import Estimate
from phf.reward_models.pep8 import IGNORED, MAX_LINE_LENGTH
from phf.reward_models.pep8_fast import Pep8Fast

LEAST = 20
Codes = Counter[tuple[int, str]]
"""How often a file has a code at a line."""


class CodeReport(pycodestyle.BaseReport):
    """Keeps line and code of every violation."""

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self.codes: Codes = Counter()

    def error(self, line_number: int, offset: int, text: str, check: object) -> None:
        if (code := super().error(line_number, offset, text, check)) is not None:
            self.codes[line_number, code] += 1


def find_codes(text: str) -> Codes:
    """What pycodestyle finds with the options of `pep8`."""
    options = pycodestyle.StyleGuide(ignore=IGNORED, max_line_length=MAX_LINE_LENGTH).options
    checker = pycodestyle.Checker(lines=text.splitlines(True), options=options, report=CodeReport(options))
    checker.check_all()
    return checker.report.codes


def read_files(every: int) -> list[str]:
    """Files of the standard library that Python compiles."""
    texts = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))[::every]:
        try:
            if "site-packages" not in path.parts:
                compile(text := path.read_text(encoding="utf-8"), str(path), "exec")
                texts.append(text)
        except (SyntaxError, ValueError):
            continue
    return texts


def share_found(found: list[Codes], of: list[Codes], code: str) -> Estimate:
    """Share of the violations of a code in `of` that are in `found`, too; "" is all codes."""
    both = [
        sum((a & b)[key] for key in a & b if key[1].startswith(code)) for a, b in zip(found, of, strict=True)
    ]
    return bootstrap_ratio(
        both, [sum(n for key, n in b.items() if key[1].startswith(code)) for b in of], 1000, 0
    )


def main() -> None:
    """Print a table: codes of which pycodestyle reports at least `LEAST`, then all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=3)
    texts = read_files(parser.parse_args().every)
    slow = [find_codes(text) for text in texts]
    fast = [
        Counter(rows) for found in Pep8Fast().find_violations(texts) for rows in [found[0] if found else []]
    ]
    counts = Counter[str]()
    for codes in slow:
        for (_, code), count in codes.items():
            counts[code] += count
    print(
        f"{len(texts):,} files\n| code | by pycodestyle | share found | right when found |\n|---|---|---|---|"
    )
    for code in [*sorted(code for code, count in counts.items() if count >= LEAST), ""]:
        recall, precision = share_found(fast, slow, code), share_found(slow, fast, code)
        print(
            f"| {code or 'all'} | {counts[code] or counts.total():,} | {show(recall)} | {show(precision)} |"
        )


def show(share: Estimate) -> str:
    """A share and its interval."""
    return f"{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]" if share.count else "none"


if __name__ == "__main__":
    main()
