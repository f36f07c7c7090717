"""The documents of a corpus, one page at a time: only what is shown is read, and a search says how far it got."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from time import monotonic

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from phf.annotate.annotation import Annotation
from phf.corpus.store import Corpus
from phf.curate.stats import read_document
from phf.errors import PHFError
from phf.explore.scores import CorpusScores, ObjectiveVerdict, Order, Verdicts
from phf.records import Document

DOCUMENTS_PER_PAGE = 8
MAX_HITS = 1000
SEARCH_SECONDS = 2.0
_MAX_SEARCHES = 16  # whose hits are remembered


@dataclass(frozen=True, slots=True)
class Found:
    """Where a search has got to.

    Attributes:
        numbers: documents that match, ascending, int64.
        num_searched: documents that were looked at, from the first on.
        place: shard and row group to go on at; None when all were searched, or there are `max_hits`.
    """

    numbers: npt.NDArray[np.int64]
    num_searched: int
    place: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """A document with all that is told about it.

    Attributes:
        number: its place in the corpus.
        ends: of its segments, in code points; of a corpus without scores, the end of the text.
        scores: of its segments; NaN = unscored.
        is_bad: which of them score above the threshold.
        verdicts: what each objective would do with it.
        is_scored: whether an annotation is shown.
    """

    number: int
    document: Document
    ends: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    is_bad: npt.NDArray[np.bool_]
    mean: float
    worst: float
    verdicts: list[ObjectiveVerdict]
    is_scored: bool


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """What the tab shows.

    Attributes:
        num_found: documents that are listed, over all pages.
        found: of the search, if there is one.
        verdicts: what each objective would do with the training split.
    """

    documents: list[ShownDocument]
    page: int
    num_pages: int
    num_found: int
    found: Found | None
    verdicts: list[ObjectiveVerdict]


class DocumentBrowser:
    """A corpus and its finished annotations, to look at."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.annotations = {annotation.slug: annotation for annotation in Annotation.list(corpus)}
        self._first = np.cumsum([0, *(shard.num_documents for shard in corpus.shards)])
        self._found: OrderedDict[str, Found] = OrderedDict()
        self._lock = Lock()  # windows may ask at once
        self._load = lru_cache(maxsize=2)(lambda slug: CorpusScores.load(self.annotations[slug]))
        self._resolve = lru_cache(maxsize=2)(lambda slug, threshold: Verdicts(self._load(slug), threshold))
        self._read_ends = lru_cache(maxsize=2)(
            lambda slug, shard: self.annotations[slug].read_shard(shard).select(["id", "text_hash", "ends"])
        )

    def scores(self, slug: str) -> CorpusScores:
        """The scores of an annotation.

        Raises:
            PHFError: it is damaged or stale.
        """
        with self._lock:
            return self._load(slug)

    def show(
        self, slug: str | None, *, threshold: float, query: str, order: Order, page: int
    ) -> DocumentPage:
        """A page of documents.

        Args:
            slug: the annotation; None shows the texts alone, in corpus order.
            threshold: a score above it is bad.
            query: a text to find; empty lists all documents.
            page: from 0 on; one that does not exist becomes the nearest.

        Raises:
            PHFError: corpus or annotation is damaged.
        """
        scores = self.scores(slug) if slug is not None else None
        found = self.find(query) if query else None
        numbers = np.arange(self.corpus.num_documents) if scores is None else scores.sort(order)
        if found is not None:
            is_found = np.zeros(self.corpus.num_documents, np.bool_)
            is_found[found.numbers] = True
            numbers = numbers[is_found[numbers]]
        num_pages = max(1, -(-len(numbers) // DOCUMENTS_PER_PAGE))
        page = min(max(page, 0), num_pages - 1)
        chosen = numbers[page * DOCUMENTS_PER_PAGE : (page + 1) * DOCUMENTS_PER_PAGE].tolist()
        verdicts = None
        if slug is not None:
            with self._lock:
                verdicts = self._resolve(slug, threshold)
        return DocumentPage(
            [self._show_one(number, verdicts) for number in chosen],
            page,
            num_pages,
            len(numbers),
            found,
            verdicts.of_corpus() if verdicts is not None else [],
        )

    def find(
        self, query: str, *, more: bool = False, seconds: float = SEARCH_SECONDS, max_hits: int = MAX_HITS
    ) -> Found:
        """Documents whose text or id holds a text, whatever the case. A search is remembered; `more` goes on with it."""
        with self._lock:
            found = self._found.pop(query, None)
            if found is None or (more and found.place is not None):
                before = found or Found(np.empty(0, np.int64), 0, (0, 0))
                found = self._scan(query, before, monotonic() + seconds, max_hits)
            self._found[query] = found
            if len(self._found) > _MAX_SEARCHES:
                self._found.popitem(last=False)
            return found

    def _scan(self, query: str, before: Found, deadline: float, max_hits: int) -> Found:
        """Go on with a search until the time is up; at least one row group is looked at."""
        assert before.place is not None
        shard, group = before.place
        hits, num_searched = [before.numbers], before.num_searched
        while shard < len(self.corpus.shards):
            with self.corpus.open_shard(shard) as file:
                while group < file.num_row_groups:
                    table = file.read_row_group(group, columns=["id", "text"])
                    matches = (
                        pc.match_substring(table[name], query, ignore_case=True) for name in ("id", "text")
                    )
                    rows = np.flatnonzero(pc.or_(*matches).to_numpy())
                    hits.append(rows + num_searched)
                    num_searched += len(table)
                    group += 1
                    if sum(map(len, hits)) >= max_hits:
                        return Found(np.concatenate(hits)[:max_hits], num_searched, None)
                    if monotonic() >= deadline:
                        return Found(np.concatenate(hits), num_searched, (shard, group))
            shard, group = shard + 1, 0
        return Found(np.concatenate(hits), num_searched, None)

    def _show_one(self, number: int, verdicts: Verdicts | None) -> ShownDocument:
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        row = number - int(self._first[shard])
        document = read_document(self.corpus, shard, row)
        if verdicts is None:
            end, score = np.array([len(document.text)], np.int32), np.full(1, np.nan, np.float32)
            no = np.zeros(1, np.bool_)
            return ShownDocument(number, document, end, score, no, np.nan, np.nan, [], is_scored=False)
        scores = verdicts.scores
        table = self._read_ends(scores.annotation.slug, shard)
        ends = np.array(table["ends"][row].as_py(), np.int32)
        is_same = (
            table["id"][row].as_py() == document.id and table["text_hash"][row].as_py() == document.text_hash
        )
        if (
            not is_same
            or len(ends) != scores.num_segments[number]
            or ends[-1:].tolist() != [len(document.text)]
        ):
            raise PHFError(
                f"{scores.annotation.path} does not hold the scores of document {document.id}; delete it and run "
                f"phf annotate {self.corpus.path} again"
            )
        segments = scores.of_document(number)
        return ShownDocument(
            number,
            document,
            ends,
            scores.values[segments],
            verdicts.is_bad(segments),
            float(scores.means[number]),
            float(scores.worst[number]),
            verdicts.of_document(number),
            is_scored=True,
        )
