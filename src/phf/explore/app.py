"""`phf explore` as a Gradio app (extra `app`): components and events; what they show is explorer.py's."""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from phf.explore.documents import DocumentBrowser
from phf.explore.explorer import MAX_QUERY, Explorer
from phf.explore.html import escape_text, render_sentence
from phf.explore.label import LabelTab
from phf.explore.playground import MAX_NEW_TOKENS, Playground
from phf.explore.samples import ORDERS, SampleBrowser
from phf.explore.scores import Order
from phf.feedback.app_server import HOST, import_gradio, serve_app
from phf.feedback.label_app import CSS as LABEL_CSS
from phf.feedback.label_app import KEYBOARD, add_label_screen

if TYPE_CHECKING:
    import gradio as gr

_CSS = (Path(__file__).parent / "explorer.css").read_text(encoding="utf-8")
_QUIET: dict[str, Any] = {"show_progress": "hidden"}


def serve(explorer: Explorer, *, host: str = HOST, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        PHFError: the address cannot be used; Gradio is not installed.
    """
    css = LABEL_CSS + _CSS
    try:
        serve_app(
            lambda: build_app(explorer), host=host, port=port, say=say, css=css, head=KEYBOARD, verb="explore"
        )
    finally:
        explorer.close()


def build_app(explorer: Explorer) -> "gr.Blocks":
    """The page as a Gradio app, not yet served.

    Raises:
        PHFError: Gradio is not installed.
    """
    gradio = import_gradio()
    app: gr.Blocks
    with gradio.Blocks(
        title=f"phf explore: {explorer.title}", analytics_enabled=False, fill_width=True
    ) as app:
        gradio.HTML(
            f"<h1>{escape_text(explorer.title)}</h1>{render_sentence(explorer.subtitle)}", elem_id="explored"
        )
        with gradio.Tabs(overflow_behavior="wrap"):
            with gradio.Tab("Documents"):
                _add_documents(gradio, app, explorer)
            with gradio.Tab("Samples"):
                _add_samples(gradio, app, explorer)
            with gradio.Tab("Playground"):
                _add_playground(gradio, explorer)
            with gradio.Tab("Label") as tab:
                _add_label(gradio, tab, explorer)
    return app


def _add_documents(gradio: Any, app: Any, explorer: Explorer) -> None:
    browser = explorer.documents
    if not isinstance(browser, DocumentBrowser):
        gradio.HTML(render_sentence(f"There are no documents to show: {browser}", "error"))
        return
    has_scores = explorer.slug is not None
    legend = gradio.HTML(explorer.describe_scores(explorer.slug))
    with gradio.Row(visible=has_scores):
        threshold = gradio.Slider(
            0,
            1,
            0.5,
            label="Threshold: a segment that scores above it is bad",
            elem_id="threshold",
            scale=3,
            min_width=320,
        )
        slug = gradio.Dropdown(
            list(browser.annotations),
            value=explorer.slug,
            label="Scores (annotation)",
            scale=1,
            min_width=240,
        )
    histogram = gradio.HTML()
    with gradio.Row(elem_id="corpus"):
        with gradio.Column(scale=3, min_width=320):
            with gradio.Row(elem_classes="controls"):
                query = gradio.Textbox(
                    label="Search texts and ids",
                    max_length=MAX_QUERY,
                    elem_id="search",
                    scale=2,
                    min_width=240,
                )
                order = gradio.Dropdown(
                    list(get_args(Order)),
                    value="corpus order",
                    label="Order",
                    elem_id="order",
                    visible=has_scores,
                )
            with gradio.Row(elem_classes="pager"):
                count = gradio.HTML(elem_id="count", min_width=240)
                search_on = gradio.Button("Search on", visible=False, size="md", elem_id="search-on")
                previous = gradio.Button("← Previous", size="md")
                following = gradio.Button("Next →", size="md", elem_id="next-documents")
            documents = gradio.HTML(elem_id="documents")
        with gradio.Column(scale=2, min_width=320, elem_id="aside", visible=has_scores):
            blurred = gradio.Checkbox(
                True, label="Blur bad segments (hover or tap to read one)", visible=has_scores
            )
            verdicts = gradio.HTML(elem_id="verdicts")
    page = gradio.State(0)

    def show(
        slug: str | None,
        threshold: float | None,
        query: str,
        order: Order,
        blurred: bool,
        page: int,
        step: int = 0,
    ) -> list[Any]:
        shown = explorer.show_documents(slug, threshold, query, order, page + step, blurred)
        *parts, can_search_on = astuple(shown)
        return [*parts, gradio.update(visible=can_search_on)]

    def choose(slug: str | None) -> list[Any]:
        if slug is None:
            return [explorer.describe_scores(None), gradio.update()]
        low, high, step, value = explorer.choose_threshold(slug)
        slider = gradio.update(minimum=low, maximum=high, step=step, value=value)
        return [explorer.describe_scores(slug), slider]

    inputs = [slug, threshold, query, order, blurred]
    outputs = [histogram, verdicts, count, documents, page, search_on]
    app.load(choose, slug, [legend, threshold], **_QUIET).then(show, [*inputs, page], outputs, **_QUIET)
    slug.input(choose, slug, [legend, threshold], **_QUIET).then(show, [*inputs, page], outputs, **_QUIET)
    threshold.change(show, [*inputs, page], outputs, trigger_mode="always_last", **_QUIET)
    blurred.input(show, [*inputs, page], outputs, **_QUIET)
    for event in (query.submit, order.input):
        event(partial(show, page=0), inputs, outputs, **_QUIET)
    previous.click(partial(show, step=-1), [*inputs, page], outputs, **_QUIET)
    following.click(partial(show, step=1), [*inputs, page], outputs, **_QUIET)
    search_on.click(explorer.search_on, query, None, **_QUIET).then(show, [*inputs, page], outputs, **_QUIET)


def _add_samples(gradio: Any, app: Any, explorer: Explorer) -> None:
    browser = explorer.samples
    if not isinstance(browser, SampleBrowser):
        gradio.HTML(render_sentence(f"There are no samples to show: {browser}", "error"))
        return
    gradio.HTML(
        render_sentence(
            "What the model wrote in each mode, from the same random numbers, with the scores of a judge (higher = worse)."
        )
    )
    judges = list(browser.judges)
    with gradio.Row(elem_classes="controls"):
        judge = gradio.Dropdown(judges, value=judges[0] if judges else None, label="Judge")
        order = gradio.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", elem_id="sample-order")
        blurred = gradio.Checkbox(True, label="Blur bad samples (hover or tap to read one)")
        previous, following = gradio.Button("← Previous", size="md"), gradio.Button("Next →", size="md")
    samples = gradio.HTML(elem_id="samples")
    page = gradio.State(0)

    def show(judge: str, order: str, blurred: bool, page: int, step: int = 0) -> tuple[str, int]:
        return explorer.show_samples(judge, order, page + step, blurred)

    inputs, outputs = [judge, order, blurred, page], [samples, page]
    app.load(show, inputs, outputs, **_QUIET)
    for event in (judge.input, order.input, blurred.input):
        event(show, inputs, outputs, **_QUIET)
    previous.click(partial(show, step=-1), inputs, outputs, **_QUIET)
    following.click(partial(show, step=1), inputs, outputs, **_QUIET)


def _add_playground(gradio: Any, explorer: Explorer) -> None:
    playground = explorer.playground
    if not isinstance(playground, Playground):
        gradio.HTML(render_sentence(f"There is nothing to play with: {playground}", "error"))
        return
    gradio.HTML(render_sentence(playground.explanation))
    prompt = gradio.Textbox(
        label="Prompt (may be empty)",
        lines=2,
        max_length=20_000,
        elem_id="prompt",
        placeholder="The weather today",
    )
    with gradio.Row(elem_classes="controls"):
        seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
        temperature = gradio.Slider(0.05, 2, 0.7, step=0.05, label="Temperature")
        top_p = gradio.Slider(0.05, 1, 0.9, step=0.05, label="Top-p")
        tokens = gradio.Slider(1, MAX_NEW_TOKENS, 60, step=1, label="Max tokens")
    with gradio.Row():
        start = gradio.Button("Write", variant="primary", elem_id="write")
        stop = gradio.Button("Stop")
    written = gradio.HTML(elem_id="written")
    inputs = [prompt, seed, temperature, top_p, tokens]
    writing = [event(explorer.write, inputs, written, **_QUIET) for event in (start.click, prompt.submit)]
    stop.click(None, cancels=writing)


def _add_label(gradio: Any, tab: Any, explorer: Explorer) -> None:
    screen = explorer.label
    if not isinstance(screen, LabelTab):
        gradio.HTML(render_sentence(f"There is nothing to label: {screen}", "error"))
        return
    gradio.HTML(
        render_sentence(
            f"Judge the marked text alone. Each answer is stored at once in {screen.out}, as by phf label."
        )
    )
    shown = add_label_screen(gradio, screen)
    tab.select(screen.show, outputs=shown, **_QUIET)
