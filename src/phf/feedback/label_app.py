"""Labelling in the browser (extra `app`): the same session, file and keys as in the terminal, on this machine alone."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from phf.feedback.app_server import import_gradio, serve_app
from phf.feedback.judgements import Task
from phf.feedback.pool import Segment
from phf.feedback.session import KEYS, LabelSession

if TYPE_CHECKING:
    import gradio as gr

CSS = (Path(__file__).parent / "label_app.css").read_text(encoding="utf-8")
# A key presses the button of that id, if it is on the screen, unless a modifier is held (so that the browser's own
# shortcuts stay) or something is being typed.
KEYBOARD = """<script>
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable=true], [role=tab], [role=slider]")) return;
  const key = {ArrowLeft: "left", ArrowRight: "right"}[event.key] || event.key;
  const names = {left: "1", right: "2"};
  const button = document.querySelector(`#key-${CSS.escape(names[key] || key)}`);
  if (button && !button.disabled && button.offsetParent !== null) { event.preventDefault(); button.click(); }
});
</script>"""

# Characters that turn the direction of reading would show another text than the one that is judged.
_DIRECTIONS = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
Shown = tuple[str, str, int]
"""HTML of the status and of the question, and the question's number."""


class LabelScreen(Protocol):
    """What `add_label_screen` puts on a page."""

    task: Task

    def show(self) -> Shown:
        """The question as it stands, for a window that was opened."""

    def press(self, key: str, number: int) -> Shown:
        """Do what a button says, if the window shows question `number`, the one that is on the table."""


class LabelPage:
    """What the browser shows and what its buttons do; needs no Gradio. A `LabelScreen`."""

    def __init__(self, session: LabelSession) -> None:
        self.session = session
        self.task = session.task
        self._lock = Lock()  # windows may press at once

    def press(self, key: str, number: int) -> Shown:
        """Do what a button says, if the window shows question `number`, the one that is on the table."""
        with self._lock:
            if number != self.session.number:
                return self._render("another window went on: this is the question now")
            try:
                return self._render(self.session.press(key))
            except OSError as error:
                return self._render(f"not saved: {error.strerror or error}; make room and press again")

    def show(self) -> Shown:
        """The question as it stands, for a window that was opened."""
        with self._lock:
            return self._render("")

    def _render(self, notice: str) -> Shown:
        session = self.session
        status = f"<p class='status'>{escape(session.describe())}</p>"
        notice = f"<p class='notice'>{escape(notice)}</p>"
        if session.question is None:
            done = "<p class='done'>No question is left. All is saved; end with Ctrl-C in the terminal.</p>"
            return status, done + notice, session.number
        cards = "".join(map(_render_card, session.question))
        return status, f"<div class='cards'>{cards}</div>{notice}", session.number


def _render_card(segment: Segment) -> str:
    before, text, after = (
        escape(part.translate(_DIRECTIONS)) for part in (segment.before, segment.text, segment.after)
    )
    return (
        f"<article><header>{escape(segment.id)}</header>"
        f"<div class='document'><span>{before}</span><mark>{text}</mark><span>{after}</span></div></article>"
    )


def build_app(session: LabelSession) -> "gr.Blocks":
    """The page as a Gradio app, not yet served.

    Raises:
        PHFError: Gradio is not installed.
    """
    gradio = import_gradio()
    page = LabelPage(session)
    app: gr.Blocks
    with gradio.Blocks(title="phf label", analytics_enabled=False, fill_width=True) as app:
        shown = add_label_screen(gradio, page)
        app.load(page.show, outputs=shown, api_name="show", show_progress="hidden")
    return app


def add_label_screen(gradio: ModuleType, page: LabelScreen) -> "list[gr.Component]":
    """Put the screen into the Gradio app that is being built; `page.show` fills the components that are returned."""
    number = gradio.State(0)
    status, question = gradio.HTML(elem_id="status"), gradio.HTML(elem_id="question")
    shown = [status, question, number]
    with gradio.Row(elem_id="answers"):
        for key, choice in KEYS[page.task].items():
            if len(key) == 1:  # arrows press the buttons of 1 and 2
                name = choice + (" is better" if page.task == "pair" else "")
                _add_button(gradio, page, shown, key if key == choice else f"{name}  ({key})", key, choice)
    with gradio.Row(elem_id="commands"):
        for key, name in (("s", "skip  (s)"), ("u", "undo  (u)")):
            _add_button(gradio, page, shown, name, key, "")
    gradio.HTML(
        "<p class='keys'>The keys in brackets do the same; the left and right arrows choose 1 and 2.</p>"
    )
    return shown


def _add_button(
    gradio: ModuleType, page: LabelScreen, shown: "list[gr.Component]", name: str, key: str, kind: str
) -> None:
    button = gradio.Button(name, elem_id=f"key-{key}", elem_classes=[kind] if kind else None)
    button.click(
        lambda number: page.press(key, number),
        inputs=shown[2],
        outputs=shown,
        api_name=f"press_{key}",
        show_progress="hidden",
    )


def serve(session: LabelSession, *, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C, to this machine alone.

    Raises:
        PHFError: the port is taken or not allowed; Gradio is not installed.
    """
    serve_app(lambda: build_app(session), port=port, say=say, css=CSS, head=KEYBOARD, verb="label")
