"""What `phf explore` shows of a corpus or a run (docs/explore.md); needs no Gradio (that is app.py)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from phf.annotate.annotation import Annotation
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.explore import html as html
from phf.explore.documents import DocumentBrowser
from phf.explore.label import LabelTab
from phf.explore.playground import Playground
from phf.explore.samples import SampleBrowser
from phf.explore.scores import Order
from phf.feedback.judgements import Task
from phf.files import to_path
from phf.report.reading import read_runs
from phf.train.run import Run

MAX_QUERY = 200
_SLIDER_STEPS = 100  # at least; at most ten times as many

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DocumentsShown:
    """The documents tab: HTML of its parts, the page it is on, and whether the search can go on."""

    histogram: str
    verdicts: str
    count: str
    documents: str
    page: int
    can_search_on: bool


@dataclass(frozen=True)
class Explorer:
    """A corpus or a run, opened. Each tab is what it shows, or a sentence that says why there is nothing to show.

    Attributes:
        title, subtitle: what was opened.
        slug: the annotation to begin with; None if the corpus has none.
        threshold: where a run's good ends; None of a corpus.
    """

    title: str
    subtitle: str
    documents: DocumentBrowser | str
    samples: SampleBrowser | str
    playground: Playground | str
    label: LabelTab | str
    slug: str | None = None
    threshold: float | None = None

    def choose_threshold(self, slug: str) -> tuple[float, float, float, float]:
        """A slider over the scores of an annotation: its ends, its step, and the threshold to begin with."""
        assert isinstance(self.documents, DocumentBrowser)
        try:
            scores = self.documents.scores(slug)
        except (PHFError, OSError):  # `show_documents` says it
            return 0.0, 1.0, 0.01, 0.5
        low, high = scores.range
        step = 10.0 ** math.floor(math.log10((high - low or 1.0) / _SLIDER_STEPS))
        low, high = math.floor(low / step) * step, math.ceil((high if high > low else low + 1) / step) * step
        first = scores.default_threshold
        if self.threshold is not None and slug == self.slug:
            first = self.threshold
        low, high, step, first = (float(f"{value:.6g}") for value in (low, high, step, first))
        return low, high, step, min(max(first, low), high)

    def _exact_threshold(self, slug: str | None, threshold: float) -> float:
        """The run's own threshold while the slider, which rounds, stands at it: a score equal to it is good."""
        own = self.threshold if slug == self.slug else None
        return own if own is not None and float(f"{own:.6g}") == threshold else threshold

    def describe_scores(self, slug: str | None) -> str:
        """HTML that says how to read the documents."""
        if not isinstance(self.documents, DocumentBrowser):
            return ""
        if slug is None:
            path = self.documents.corpus.path
            return html.render_sentence(
                f"This corpus has no finished annotation, so there are no scores to show, only texts. Make one with: "
                f"phf annotate {path} --reward-model NAME --segments sentences"
            )
        annotation = self.documents.annotations[slug]
        return html.render_legend(annotation.identity.name, annotation.segments, annotation.unit)

    def show_documents(
        self, slug: str | None, threshold: float | None, query: str, order: Order, page: int, is_blurred: bool
    ) -> DocumentsShown:
        """The documents tab. Errors are shown in it."""
        assert isinstance(self.documents, DocumentBrowser)
        if threshold is None:  # a field that was emptied
            threshold = 0.0
        threshold = self._exact_threshold(slug, threshold)
        browser, query = self.documents, query[:MAX_QUERY]
        try:
            shown = browser.show(slug, threshold=threshold, query=query, order=order, page=page)
            scores = browser.scores(slug) if slug is not None else None
        except (PHFError, OSError) as error:
            return DocumentsShown("", "", "", html.render_sentence(str(error), "error"), 0, False)
        documents = html.render_page(shown, scores.dark if scores is not None else 1.0, query)
        return DocumentsShown(
            html.render_histogram(scores, threshold) if scores is not None else "",
            html.render_verdicts(shown.verdicts, scores.count_unit) if scores is not None else "",
            html.render_counts(shown, browser.corpus.num_documents, query),
            f"<div class='{'blur' if is_blurred else ''}'>{documents}</div>",
            shown.page,
            shown.found is not None and shown.found.place is not None,
        )

    def search_on(self, query: str) -> None:
        """Go on with a search whose time was up; errors are shown by `show_documents`."""
        assert isinstance(self.documents, DocumentBrowser)
        try:
            self.documents.find(query[:MAX_QUERY], more=True)
        except (PHFError, OSError):
            return

    def show_samples(self, judge: str, order: str, page: int, is_blurred: bool) -> tuple[str, int]:
        """HTML of the samples tab, and the page that it is on."""
        assert isinstance(self.samples, SampleBrowser)
        page = min(max(page, 0), self.samples.num_pages - 1)
        count = html.render_sentence(f"page {page + 1:,} of {self.samples.num_pages:,}", "count")
        return (
            f"{count}<div class='{'blur' if is_blurred else ''}'>{self.samples.show(judge, order, page)}</div>",
            page,
        )

    def write(
        self,
        prompt: str,
        seed: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        *,
        frame_seconds: float = 0.05,
    ) -> Iterator[str]:
        """HTML of the playground, at most every `frame_seconds` while the model writes. Errors are shown in it."""
        assert isinstance(self.playground, Playground)
        settings: dict[str, Any] = {
            "seed": seed,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
        }
        if None in settings.values():  # a field that was emptied
            yield html.render_sentence(
                "give a number for each of seed, temperature, top-p and max tokens", "error"
            )
            return
        yield html.render_sentence("loading the model …")
        try:
            written, next_frame = [], 0.0
            for written in self.playground.write(prompt, **settings):
                if monotonic() >= next_frame:
                    yield self.playground.render(prompt, written)
                    next_frame = monotonic() + frame_seconds
            yield self.playground.render(prompt, written)
        except (PHFError, OSError) as error:
            yield html.render_sentence(str(error), "error")

    def close(self) -> None:
        """Let go of the file of judgements."""
        if isinstance(self.label, LabelTab):
            self.label.close()


def open_explorer(place: Path | str, labels: Path | None, task: Task) -> Explorer:
    """Open a corpus or a run.

    Args:
        place: the folder of either; a corpus may be a URL.
        labels, task: where (None: a new file) and how the label tab stores judgements.

    Raises:
        PHFError: the folder is neither, or damaged.
    """
    path = to_path(place)
    if (path / "run.json").is_file():
        return _open_run(Run.open(path), labels, task)
    if not (path / "manifest.json").is_file():
        raise PHFError(
            f"{path} is neither a corpus nor a run (it has no manifest.json and no run.json); give a folder that "
            "'phf corpus build' or 'phf train' made"
        )
    corpus = Corpus.open(path)
    browser = DocumentBrowser(corpus)
    slug, counts = next(iter(browser.annotations), None), corpus.manifest["counts"]
    what = "is a corpus, and only a run has {}; open one with: phf explore RUN"
    return Explorer(
        title=f"Corpus {path.name}",
        subtitle=(
            f"{corpus.num_documents:,} documents: {counts['train']['documents']:,} to train on, "
            f"{counts['validation']['documents']:,} held out"
        ),
        documents=browser,
        samples=f"{path} {what.format('samples')}",
        playground=f"{path} {what.format('a model that writes')}",
        label=LabelTab(corpus, browser.annotations.get(slug or ""), labels, task),
        slug=slug,
    )


def _open_run(run: Run, labels: Path | None, task: Task) -> Explorer:
    config = run.config
    documents = _attempt(lambda: DocumentBrowser(Corpus.open(run.find_corpus())))
    slug, note = None, ""
    label: LabelTab | str
    if isinstance(documents, str):
        if not Path(config.corpus).is_absolute():
            documents += (
                " (the run names it relative to the folder that it was trained in: start phf explore there)"
            )
        label = documents
    else:
        own = _attempt(lambda: Annotation.open(documents.corpus, config.reward_model, config.segments))
        slug = own.slug if isinstance(own, Annotation) else next(iter(documents.annotations), None)
        label = LabelTab(documents.corpus, documents.annotations.get(slug or ""), labels, task)
        if documents.corpus.id != run.corpus_id:
            note = f" Note: {documents.corpus.path} is not the corpus it was trained on any more."
    samples = _attempt(lambda: SampleBrowser(read_runs([run.folder])[0]))
    threshold = run.record.get("threshold")
    return Explorer(
        title=f"Run {run.folder.resolve().name}",
        subtitle=(
            f"a model of {run.record.get('num_parameters', 0):,} parameters, trained with {config.objective.kind} on "
            f"{config.corpus}, whose {config.segments} were scored by {config.reward_model}.{note}"
        ),
        documents=documents,
        samples=samples,
        playground=Playground(run),
        label=label,
        slug=slug,
        threshold=threshold["value"] if isinstance(threshold, dict) else None,
    )


def _attempt(open_it: Callable[[], _T]) -> _T | str:
    """What was opened, or the sentence that says why it cannot be."""
    try:
        return open_it()
    except (PHFError, OSError) as error:
        return str(error)
