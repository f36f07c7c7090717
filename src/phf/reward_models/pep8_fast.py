"""PEP 8 violations per character, by ruff: the fast twin of `pep8`, and its held-out judge."""

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from phf.errors import PHFError
from phf.records import Identity
from phf.reward_models.pep8 import IGNORED, MAX_LINE_LENGTH, violations_per_character
from phf.reward_models.protocol import RewardModel, Unit, Unscored
from phf.reward_models.python_code import (
    PYTHON,
    count_syntax_errors,
    find_broken_lines,
    split_lines,
    trim_to_last_logical_line,
)

# Those of pycodestyle's ignored checks that ruff has, and E9: a syntax error is never a violation.
RUFF_IGNORED = ("E226", "E241", "E242", "E704", "E9")
assert all(code.startswith(IGNORED) for code in RUFF_IGNORED[:-1])
FILES_PER_CALL = 2000
PROBE = "x = 1\n"
Found = tuple[list[tuple[int, str]], bool]
"""The line (from 1) and code of each violation, and whether the text parses."""


class Pep8Fast(RewardModel):
    """PEP 8 violations per character, as `Pep8` counts them: same lines, same segments, same broken code."""

    unit: Unit = "violations per character"
    display_scale = 1000.0
    hit_threshold = 0.0

    def __init__(self) -> None:
        """Find ruff.

        Raises:
            ModuleNotFoundError: ruff is not installed as a Python package.
        """
        if importlib.util.find_spec("ruff") is None:
            raise ModuleNotFoundError("no module named 'ruff'", name="ruff")
        from ruff import find_ruff_bin

        options = ["--select=E,W", f"--ignore={','.join(RUFF_IGNORED)}", f"--line-length={MAX_LINE_LENGTH}"]
        options += ["--preview", "--target-version=py311", "--ignore-noqa"]
        self._command = [find_ruff_bin(), "check", "--isolated", "--no-cache", "--exit-zero", "--quiet"]
        self._command += ["--no-respect-gitignore", "--output-format=json", *options, "."]
        self.identity = Identity(
            "pep8-fast", version("ruff"), parameters={"options": options, "rules": 2, "python": PYTHON}
        )

    def score(self, document: str, ends: Sequence[int]) -> Sequence[float]:
        """Violations per character of each segment. Starts a process: prefer `score_batch`."""
        return self.score_batch([(document, ends)])[0]

    def score_batch(self, documents: Sequence[tuple[str, Sequence[int]]]) -> list[Sequence[float]]:
        """Violations per character of each segment of many documents."""
        scores: list[Sequence[float]] = []
        for start in range(0, len(documents), FILES_PER_CALL):
            batch = documents[start : start + FILES_PER_CALL]
            found = self.find_violations([text for text, _ in batch])
            for (document, ends), result in zip(batch, found, strict=True):
                if result is None:
                    scores.append([Unscored("ruff failed")] * len(ends))
                    continue
                violations, parses = result
                broken = {} if parses else find_broken_lines(document)
                rows = (row for row, _ in violations)
                scores.append(violations_per_character(split_lines(document), ends, rows, broken))
        return scores

    def trim_sample(self, text: str) -> str:
        """The sample up to its last complete logical line."""
        return trim_to_last_logical_line(text)

    def count_syntax_errors(self, document: str) -> int:
        """Syntax errors, reported apart from the score."""
        return count_syntax_errors(document)

    def find_violations(self, texts: Sequence[str]) -> list[Found | None]:
        """For every text the line (from 1) and code of each violation, and whether ruff could parse it; None for one that ruff
        fails on alone: some code, such as 10,000 calls in a row, overflows its stack.

        Raises:
            PHFError: ruff fails on all code.
        """
        found, failure = self._run(texts)
        if found is not None:
            return list(found)
        if len(texts) == 1:
            if self._run([PROBE])[0] is None:
                raise PHFError(f"ruff fails on every file: {failure}; install it again")
            return [None]
        half = len(texts) // 2
        return self.find_violations(texts[:half]) + self.find_violations(texts[half:])

    def _run(self, texts: Sequence[str]) -> tuple[list[Found] | None, str]:
        """What ruff finds in each text, or None and why it failed."""
        violations: list[list[tuple[int, str]]] = [[] for _ in texts]
        parses = [True] * len(texts)
        with tempfile.TemporaryDirectory(prefix="phf-ruff-") as folder:
            for index, text in enumerate(texts):
                Path(folder, f"{index}.py").write_bytes(text.encode("utf-8", errors="replace"))
            done = subprocess.run(self._command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None, f"exit code {done.returncode}: {' '.join(done.stderr.split())[:200]}"
        for violation in json.loads(done.stdout):
            index = int(Path(violation["filename"]).stem)
            if violation["code"] in (None, "invalid-syntax"):
                parses[index] = False
            else:
                violations[index].append((violation["location"]["row"], violation["code"]))
        return list(zip(violations, parses, strict=True)), ""
