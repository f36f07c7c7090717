"""Pieces of the explorer's pages as HTML. Every text of a corpus, a model or a person is escaped here and nowhere else."""

import math
import re
from collections.abc import Iterable
from html import escape

from phf.explore.documents import DocumentPage, Found, ShownDocument
from phf.explore.scores import CorpusScores, ObjectiveVerdict
from phf.report.samples import visible_text

MAX_CHARACTERS = 1500
"""A longer text is cut on the page, and that is said."""
_MAX_SEGMENTS = 150
_EXCERPT_CHARACTERS = 400
_MAX_ID = 200


def escape_text(text: str) -> str:
    """A text in which nothing is invisible, reorders its surroundings or is markup."""
    return escape(visible_text(text))


def render_sentence(text: str, kind: str = "note") -> str:
    """One sentence for the person, in place of what cannot be shown or beside it."""
    return f"<p class='phf-{kind}'>{escape_text(text)}</p>"


def render_legend(reward_model: str, segments: str, unit: str) -> str:
    """How to read coloured segments."""
    return (
        f"<p class='phf-note legend'>Every document is cut into <b>{escape(segments)}</b>; the number before each is its score by "
        f"<b>{escape_text(reward_model)}</b> ({escape_text(unit)}; higher = worse). "
        "<span class='segment' style='--shade:0'><b>0.00</b><span class='text'>low</span></span> "
        "<span class='segment' style='--shade:.5'><b>0.50</b><span class='text'>darker = worse</span></span> "
        "<span class='segment bad' style='--shade:.8'><b>▲ 0.80</b><span class='text'>above the threshold</span></span></p>"
    )


def render_segment(text: str, score: float, *, is_bad: bool, dark: float, query: str = "") -> str:
    """A segment behind its score; the darker the higher, above the threshold also with a mark and a line."""
    if math.isnan(score):
        return f"<span class='segment unscored'><b>unscored</b><span class='text'>{_mark(text, query)}</span></span>"
    shade = min(max(score / dark, 0.0), 1.0)
    attributes = f"class='segment bad' tabindex='0' style='--shade:{shade:.3f}'" if is_bad else (
        f"class='segment' style='--shade:{shade:.3f}'"
    )  # fmt: skip
    return (
        f"<span {attributes}><b>{'▲ ' if is_bad else ''}{format_score(score)}</b>"
        f"<span class='text'>{_mark(text, query)}</span></span>"
    )


def render_page(page: DocumentPage, dark: float, query: str) -> str:
    """The documents of a page."""
    if not page.documents:
        return render_sentence("no document holds this text" if query else "there are no documents")
    return "".join(_render_document(shown, dark, query) for shown in page.documents)


def _render_document(shown: ShownDocument, dark: float, query: str) -> str:
    document = shown.document
    facts: list[str] = [document.split]
    if shown.is_scored:
        facts += [f"{len(shown.ends):,} segments" if len(shown.ends) != 1 else "1 segment"]
        facts += [f"mean {format_score(shown.mean)}", f"worst {format_score(shown.worst)}"]
    verdicts = "".join(
        f"<li><b>{escape(verdict.name)}</b> {escape(verdict.text)}</li>" for verdict in shown.verdicts
    )
    return (
        f"<article><header><strong>{escape_text(document.id[:_MAX_ID])}</strong> <span>{escape(' · '.join(facts))}</span></header>"
        f"<div class='document' dir='auto'>{_render_beginning(shown, dark, query)}</div>"
        f"{''.join(_render_beyond(shown, dark, query))}"
        + (f"<ul class='verdicts'>{verdicts}</ul>" if verdicts else "")
        + "</article>"
    )


def _render_beginning(shown: ShownDocument, dark: float, query: str) -> str:
    """The segments that begin within what is shown of a document, the last one cut."""
    text, parts, start = shown.document.text, [], 0
    for end, score, is_bad in zip(
        shown.ends[:_MAX_SEGMENTS].tolist(), shown.scores.tolist(), shown.is_bad.tolist(), strict=False
    ):
        shown_text = text[start : min(end, MAX_CHARACTERS)]
        if not shown.is_scored:
            parts.append(f"<span class='text'>{_mark(shown_text, query)}</span>")
        else:
            parts.append(render_segment(shown_text, score, is_bad=is_bad, dark=dark, query=query))
        start = min(end, MAX_CHARACTERS)
        if end >= MAX_CHARACTERS:
            break
    return "".join(parts)


def _render_beyond(shown: ShownDocument, dark: float, query: str) -> Iterable[str]:
    """What a person would look for in the part of a document that is not shown: its worst segment, the first match."""
    text = shown.document.text
    limit = min(MAX_CHARACTERS, int(shown.ends[:_MAX_SEGMENTS][-1])) if len(shown.ends) > 0 else 0
    if limit >= len(text):
        return
    yield f"<p class='phf-cut'>… {len(text) - limit:,} of {len(text):,} characters are not shown</p>"
    if not math.isnan(shown.worst):
        worst = int((shown.scores == shown.worst).argmax())
        start, end = (int(shown.ends[worst - 1]) if worst > 0 else 0), int(shown.ends[worst])
        if start >= limit:
            excerpt = render_segment(
                text[start : min(end, start + _EXCERPT_CHARACTERS)],
                float(shown.scores[worst]),
                is_bad=bool(shown.is_bad[worst]),
                dark=dark,
                query=query,
            )
            yield f"<p class='phf-cut'>its worst segment, number {worst + 1:,}:</p><div class='document' dir='auto'>{excerpt}</div>"
    match = re.compile(re.escape(query), re.IGNORECASE).search(text) if query else None
    if match is not None and match.start() >= limit:
        first = max(0, match.start() - _EXCERPT_CHARACTERS // 2)
        excerpt = _mark(text[first : match.end() + _EXCERPT_CHARACTERS // 2], query)
        yield f"<p class='phf-cut'>the first match, at character {match.start():,}:</p><div class='document' dir='auto'>{excerpt}</div>"


def _mark(text: str, query: str) -> str:
    """The text, escaped, with what was searched for marked."""
    if not query:
        return escape_text(text)
    parts = re.split(f"({re.escape(query)})", text, flags=re.IGNORECASE)
    return "".join(
        f"<mark>{escape_text(part)}</mark>" if place % 2 else escape_text(part)
        for place, part in enumerate(parts)
    )


def render_counts(page: DocumentPage, num_documents: int, query: str) -> str:
    """Which documents are listed, and how far a search got."""
    place = f"page {page.page + 1:,} of {page.num_pages:,}"
    if page.found is None:
        return render_sentence(f"{page.num_found:,} documents, {place}", "count")
    return render_sentence(f"{_describe_search(page.found, num_documents, query)}; {place}", "count")


def _describe_search(found: Found, num_documents: int, query: str) -> str:
    num = len(found.numbers)
    shown = query if len(query) <= 40 else f"{query[:40]}…"
    hits = f"{num:,} {'document holds' if num == 1 else 'documents hold'} “{shown}”"
    if found.num_searched >= num_documents:
        return f"{hits}, of all {num_documents:,}"
    searched = f"in the first {found.num_searched:,} of {num_documents:,} documents"
    if found.place is None:
        return f"the first {hits}, {searched}: make the search narrower to see others"
    return f"{hits} {searched}, then the time was up: press “search on”"


def render_verdicts(verdicts: Iterable[ObjectiveVerdict], unit: str) -> str:
    """What each objective would do with the training split: a bar and a sentence each."""
    rows = "".join(
        f"<li><b>{escape(verdict.name)}</b>{_render_bar(verdict)}<div>{escape(verdict.text).replace(' %', '&nbsp;%')}</div></li>"
        for verdict in verdicts
    )
    return (
        "<p class='phf-count'>What each objective would do with the training documents at this threshold. Bars: share of the "
        f"{escape(unit)} that it takes as good.</p><ul class='objectives'>{rows}</ul>"
    )


def _render_bar(verdict: ObjectiveVerdict) -> str:
    if verdict.share is None:
        return ""
    percent = 100 * verdict.share
    return f"<i style='--share:{percent:.2f}%'></i><span>{percent:.3g} %</span>"


def render_histogram(scores: CorpusScores, threshold: float) -> str:
    """How the scores of all segments are spread, by the square root of their number, cut at the threshold."""
    counts, edges = scores.histogram
    highest = math.sqrt(max(int(counts.max()), 1))
    low, high = scores.range
    width = 100 / len(counts)
    bars = "".join(
        f"<rect class='{'bad' if (left + right) / 2 > threshold else 'good'}' x='{place * width:.2f}' "
        f"y='{30 * (1 - math.sqrt(count) / highest):.2f}' width='{0.85 * width:.2f}' height='{30 * math.sqrt(count) / highest:.2f}'/>"
        for place, (count, left, right) in enumerate(zip(counts.tolist(), edges[:-1], edges[1:], strict=True))
    )
    at = 100 * min(max((threshold - low) / (high - low or 1), 0), 1)
    return (
        "<figure class='histogram'><svg viewBox='0 0 100 30' preserveAspectRatio='none' role='img' "
        f"aria-label='histogram of the segment scores'>{bars}<line x1='{at:.2f}' x2='{at:.2f}' y1='0' y2='30'/></svg>"
        f"<figcaption><span>{format_score(low)}</span><span>◀ good | ▲ bad: above {format_score(threshold)}</span>"
        f"<span>{format_score(high)}</span></figcaption></figure>"
    )


def format_score(score: float) -> str:
    """A score in few digits."""
    if math.isnan(score):
        return "unscored"
    return f"{score:.2f}" if abs(score) >= 0.01 or score == 0 else f"{score:.2g}"
