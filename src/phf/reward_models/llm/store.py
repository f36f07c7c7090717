"""Answers that were paid for, kept from the moment they arrive: one SQLite file for all processes of a machine.

A kill loses nothing that was written (SQLite's journal), and whoever asks for an answer first claims it, so that two processes
never pay for the same one. A claim holds as long as its process lives: that is told by a lock of the kernel's.
"""

import fcntl
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from phf.config.budget import Budget, Spent
from phf.reward_models.convert import ANSWERS, cache_folder
from phf.reward_models.llm.answers import Answer
from phf.reward_models.protocol import ScoringStoppedError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, claim TEXT, answer TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (budget TEXT PRIMARY KEY, calls INTEGER, tokens REAL, money REAL) WITHOUT ROWID;
"""
_WAIT = 60.0

Claim = Literal["mine", "answered", "another's"]


class AnswerStore:
    """The answers of a cache folder. Safe for many threads and many processes."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open the file, or make it.

        Raises:
            ScoringStoppedError: it is damaged, or cannot be written.
        """
        self._folder = folder or cache_folder() / ANSWERS
        self.path = self._folder / "answers.sqlite"
        self._lock = threading.Lock()
        self._claim: tuple[str, int] | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")  # also a power cut loses nothing
            self._file.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise self._explain(error) from None

    def close(self) -> None:
        """Close the file and give up what was claimed."""
        with self._lock:
            self._file.close()
            if self._claim is not None:
                os.close(self._claim[1])
                self._claim_path(self._claim[0]).unlink(missing_ok=True)
                self._claim = None

    def read(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there."""
        query = "SELECT key, answer FROM answers WHERE answer IS NOT NULL AND key IN (SELECT value FROM json_each(?))"
        with self._transaction() as file:
            return {key: Answer.from_json(line) for key, line in file.execute(query, (json.dumps([*keys]),))}

    def write(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        with self._transaction() as file:
            file.execute("INSERT OR REPLACE INTO answers VALUES (?, NULL, ?)", (key, answer.to_json()))

    def claim(self, key: str) -> Claim:
        """Say that this process is going to ask for an answer, unless it is there or another process has said so and lives."""
        with self._lock:
            mine = self._hold_claim()
        with self._transaction("IMMEDIATE") as file:
            row = file.execute("SELECT claim, answer FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None and row[1] is not None:
                return "answered"
            if row is not None and row[0] != mine and self._is_alive(row[0]):
                return "another's"
            file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, NULL)", (key, mine))
            return "mine"

    def give_up(self, key: str) -> None:
        """Take a claim back: the answer did not come."""
        with self._transaction() as file:
            file.execute("DELETE FROM answers WHERE key = ? AND answer IS NULL", (key,))

    def find_fact(self, key: str) -> str | None:
        """Something learned of a server, once."""
        with self._transaction() as file:
            row = file.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep_fact(self, key: str, value: str) -> None:
        """Keep something learned of a server."""
        with self._transaction() as file:
            file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def spend(self, budget: Budget, cost: Spent, *, at_most: bool = True) -> bool:
        """Take a cost from a budget (a negative one gives back); False if it does not hold so much any more.

        Args:
            at_most: what the budget holds; else the cost has arisen already, and is taken in any case.
        """
        with self._transaction("IMMEDIATE") as file:
            row = file.execute(
                "SELECT calls, tokens, money FROM spent WHERE budget = ?", (budget.id,)
            ).fetchone()
            spent = Spent(*(row or ())) + cost
            if at_most and not budget.holds(spent):
                return False
            file.execute(
                "INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?)",
                (budget.id, spent.calls, spent.tokens, spent.money),
            )
        return True

    @contextmanager
    def _transaction(self, kind: str = "") -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._file.execute(f"BEGIN {kind}")
                try:
                    yield self._file
                except BaseException:
                    self._file.execute("ROLLBACK")
                    raise
                self._file.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._explain(error) from None

    def _explain(self, error: Exception) -> ScoringStoppedError:
        return ScoringStoppedError(
            f"{self.path}, where paid answers are kept, cannot be used ({error}); free the disk or move the file away, or name "
            "another folder with PHF_CACHE"
        )

    def _claim_path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _hold_claim(self) -> str:
        """The name under which this process claims, a file that it has locked."""
        if self._claim is None:
            name = uuid.uuid4().hex
            handle = os.open(self._claim_path(name), os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._claim = name, handle
        return self._claim[0]

    def _is_alive(self, name: str) -> bool:
        path = self._claim_path(name)
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with suppress(FileNotFoundError):
                path.unlink()
            return False
        finally:
            os.close(handle)
