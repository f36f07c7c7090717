"""The label screen of `phf label` as a tab: its session begins when somebody first looks at it."""

from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from phf.annotate.annotation import Annotation
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.explore.html import render_sentence
from phf.feedback.judgements import Task, choose_file
from phf.feedback.label_app import LabelPage, Shown
from phf.feedback.session import open_session


class LabelTab:
    """A `LabelScreen` that opens its file of judgements when it is first shown. Close it to let go of the file."""

    def __init__(self, corpus: Corpus, annotation: Annotation | None, out: Path | None, task: Task) -> None:
        self.corpus = corpus
        self.annotation = annotation
        self.out = out
        self.task: Task = task
        self._page: LabelPage | None = None
        self._opened = ExitStack()
        self._lock = Lock()

    def show(self) -> Shown:
        """The question as it stands, or why there is none."""
        try:
            return self._open().show()
        except (PHFError, OSError) as error:
            reason = str(error).replace("give -o ", "give --labels ")  # the option's name in `phf explore`
            return "", render_sentence(f"nothing can be labelled: {reason}", "error"), 0

    def press(self, key: str, number: int) -> Shown:
        """Do what a button says."""
        return self._page.press(key, number) if self._page is not None else self.show()

    def close(self) -> None:
        """Let go of the file."""
        self._opened.close()

    def _open(self) -> LabelPage:
        with self._lock:
            if self._page is None:
                kind = self.annotation.segments if self.annotation is not None else "sentences"
                session = self._opened.enter_context(
                    open_session(
                        self.corpus, choose_file(self.out), kind, task=self.task, annotation=self.annotation
                    )
                )
                self._page = LabelPage(session)
            return self._page
