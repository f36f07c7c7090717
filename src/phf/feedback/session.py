"""A sitting of one labeler: the question on the table, and what the keys do. The terminal and the browser share it."""

import getpass
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation import Annotation
from phf.config.train import SegmentKind
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.feedback.judgements import JudgementFile, Row, Task, open_judgements
from phf.feedback.pool import read_pool
from phf.feedback.queue import Order, Question, Queue
from phf.reward_models.protocol import FROM_0_TO_1

KEYS: dict[Task, dict[str, str]] = {
    "label": {"g": "good", "b": "bad"},
    "rate": {key: key for key in "12345"},
    "pair": {"1": "first", "2": "second", "left": "first", "right": "second"},
}
"""The answers to a question and their keys; a rating of 5 is best, and `first` means that the first text is better."""

PROMPTS: dict[Task, str] = {
    "label": "g good   b bad",
    "rate": "1 worst ... 5 best",
    "pair": "1/left the first is better   2/right the second",
}
COMMANDS = "s skip   u undo   q quit"


class LabelSession:
    """Asks, writes down, takes back.

    Attributes:
        question: what is asked now; None at the end.
        number: counts the questions shown, so that an answer to an older one can be told.
        num_judged, num_skipped: in this session.
    """

    def __init__(
        self, file: JudgementFile, queue: Queue, *, task: Task, labeler: str, num: int | None = None
    ) -> None:
        """Begin with the first question.

        Args:
            num: end after so many judgements.
        """
        self.file = file
        self.queue = queue
        self.task = task
        self.labeler = labeler
        self.num = num
        self.num_judged = self.num_skipped = self.number = 0
        self._start = monotonic()
        self._answered: list[Question] = []
        self.question: Question | None = None
        self._go_on()

    def press(self, key: str) -> str:
        """Do what a key says; gives a line about it for the person.

        Raises:
            OSError: the judgement cannot be written; the question stays.
        """
        choice = KEYS[self.task].get(key)
        if choice is not None and self.question is not None:
            self.judge(choice)
            return f"{choice}, saved"
        if key == "s":
            self.skip()
            return "skipped"
        if key == "u":
            return "taken back" if self.undo() else "nothing to take back in this session"
        return f"key {key} means nothing here"

    def judge(self, choice: str) -> None:
        """Write down the answer to the question and go on.

        Raises:
            PHFError: the choice is none of those in `KEYS`; there is no question.
            OSError: it cannot be written; the question stays.
        """
        if self.question is None:
            raise PHFError("there is no question left to answer; end with q")
        self.file.append(self._make_row(self.question, choice))
        self._answered.append(self.question)
        self.num_judged += 1
        self._go_on()

    def skip(self) -> None:
        """Go on without an answer; the question does not come back in this session."""
        if self.question is not None:
            self.num_skipped += 1
            self._go_on()

    def undo(self) -> bool:
        """Take back the last judgement of this session and ask it again; False if there is none."""
        if self.file.undo() is None:
            return False
        if self.question is not None:
            self.queue.put_back(self.question)
        self.num_judged -= 1
        self.number += 1
        self.question = self._answered.pop()
        return True

    def describe(self) -> str:
        """Progress in a line: all judgements of the file, those of this session and their pace."""
        rows = self.file.rows
        line = f"{len(rows):,} judged"
        if self.task == "label":
            num_bad = sum(row["label"] == 1 for row in rows)
            line += f" ({len(rows) - num_bad:,} good, {num_bad:,} bad)"
        elif self.task == "rate":
            counts = Counter(row["rating"] for row in rows)
            line += (
                f" ({', '.join(f'{count:,} x {rating:g}' for rating, count in sorted(counts.items()))})"
                if rows
                else ""
            )
        of = f" of {self.num:,}" if self.num is not None else ""
        line += f"; {self.num_judged:,}{of} in this session"
        if self.num_skipped > 0:
            line += f", {self.num_skipped:,} skipped"
        if self.num_judged > 0:
            line += f", {(monotonic() - self._start) / self.num_judged:.1f} s each"
        return line + (
            f"; asked by a model of {self.queue.num_fitted:,}" if self.queue.num_fitted > 0 else ""
        )

    def _go_on(self) -> None:
        self.number += 1
        done = self.num is not None and self.num_judged >= self.num
        self.question = None if done else self.queue.take()

    def _make_row(self, question: Question, choice: str) -> Row:
        choices = dict.fromkeys(KEYS[self.task].values())
        if choice not in choices:
            raise PHFError(f"answer '{choice}' is not known; choose {', '.join(choices)}")
        now = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "labeler": self.labeler}
        if self.task == "pair":
            chosen, rejected = question if choice == "first" else question[::-1]
            ids = {"chosen_id": chosen.id, "rejected_id": rejected.id}
            return {"chosen": chosen.text, "rejected": rejected.text, **ids, **now}
        segment = question[0]
        value = {"label": int(choice == "bad")} if self.task == "label" else {"rating": int(choice)}
        return {"text": segment.text, **value, "segment_id": segment.id, **now}


@contextmanager
def open_session(
    corpus: Corpus,
    out: Path,
    kind: SegmentKind,
    *,
    task: Task,
    order: Order = "uncertain",
    annotation: Annotation | None = None,
    score: Callable[[list[str]], npt.NDArray[np.float64]] | None = None,
    seed: int = 0,
    labeler: str | None = None,
    num: int | None = None,
) -> Iterator[LabelSession]:
    """A sitting over a corpus, its file of judgements open and locked.

    Args:
        out: the file; goes on if it exists.
        kind: what is judged.
        annotation: whose scores the questions begin from.
        score: gives them instead, as for `read_pool`.
        labeler: written beside each judgement (default: the name of the user).
        num: end after so many judgements.

    Raises:
        PHFError: see `open_judgements`, `read_pool` and `Queue`.
    """
    with open_judgements(out, task) as file:
        judged = [] if task == "pair" else [row["text"] for row in file.rows]
        pool = read_pool(
            corpus,
            kind,
            seed=seed,
            annotation=annotation,
            score=score,
            worst=order == "worst",
            judged=judged,
        )
        threshold = 0.5 if annotation is None or annotation.unit in FROM_0_TO_1 else 0.0
        queue = Queue(pool, file.rows, task=task, order=order, seed=seed, hit_threshold=threshold)
        yield LabelSession(file, queue, task=task, labeler=labeler or _user_name(), num=num)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without users
        return "unknown"
