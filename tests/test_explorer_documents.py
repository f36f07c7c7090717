"""What the explorer shows of a corpus, without a browser: its scores, verdicts and searches."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from explorer_folders import JUDGE, LONG, explore, make_corpus, score, show
from fake_annotations import annotate_by

from phf.config.objectives import RWR, Conditional, Filtering, Quantile, Scalar, built_in_kinds
from phf.corpus.store import build_corpus
from phf.explore.documents import DOCUMENTS_PER_PAGE, DocumentBrowser
from phf.explore.scores import Verdicts
from phf.objective_resolution import resolve_objective
from phf.objectives import segment_rewards, segment_weights
from phf.records import BAD, GOOD
from phf.reward_models.protocol import Unscored
from phf.thresholds import resolve_threshold
from phf.tokens.tokens import tokenize


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("explore") / "corpus")


@pytest.fixture
def browser(corpus):
    return DocumentBrowser(corpus)


@pytest.fixture
def slug(browser):
    return next(iter(browser.annotations))


def test_scores_are_read_in_corpus_order_with_their_documents(browser, slug, corpus):
    scores = browser.scores(slug)
    documents = list(corpus.iterate_documents())
    assert scores.num_segments.tolist() == [document.text.count("\n") or 1 for document in documents]
    for number, document in enumerate(documents):
        lines = document.text.splitlines(keepends=True)
        found = scores.values[scores.of_document(number)]
        assert np.allclose(found, [score(line) for line in lines])
        assert scores.means[number] == pytest.approx(found.mean())
        assert scores.worst[number] == found.max()
        assert scores.is_train[number] == (document.split == "train")
    assert scores.count_unit == "characters"
    assert scores.counts.sum() == sum(len(document.text) for document in documents)


def test_verdicts_are_those_of_the_objectives_own_rules(browser, slug, corpus):
    tokens = tokenize(corpus, "train:300", "lines", workers=1)
    browser = DocumentBrowser(corpus)
    scores = browser.scores(slug)
    assert scores.count_unit == "tokens"
    assert np.array_equal(scores.counts, tokens.segment_lengths)
    threshold = 0.3  # a score that many segments have: at or below is good, in float32
    verdicts = Verdicts(scores, threshold)
    of_corpus = {verdict.name: verdict for verdict in verdicts.of_corpus()}
    used = np.repeat(tokens.is_train, tokens.document_segments)
    wanted = resolve_threshold(scores.values[used], tokens.segment_lengths[used], threshold)
    for name in ("Conditional", "Unlikelihood", "Masking", "Removal"):
        assert of_corpus[name].share == wanted.token_share
        assert f"{100 * wanted.segment_share:.3g} %" in of_corpus[name].text
    arguments = (scores.values, tokens.segment_lengths, tokens.document_segments, tokens.is_train)
    filtering = resolve_objective(Filtering(threshold=threshold), *arguments)
    assert of_corpus["Filtering"].share == filtering.threshold.token_share
    conditional = resolve_objective(Conditional(threshold=threshold), *arguments)
    for number in range(len(scores.num_segments)):
        if not tokens.is_train[number]:
            assert [verdict.name for verdict in verdicts.of_document(number)] == ["Held out"]
            continue
        segments = scores.of_document(number)
        told = {verdict.name: verdict.text for verdict in verdicts.of_document(number)}
        labels = conditional.rule.labels[segments]
        assert told["Conditional"] == f"<|good|> × {(labels == 1).sum()}, <|bad|> × {(labels == 2).sum()}"
        assert np.array_equal(verdicts.is_bad(segments), labels == 2)
        assert told["Unlikelihood"] == f"pushes down {(labels == 2).sum()} of {len(labels)}"
        assert told["Filtering"].startswith("keeps" if filtering.rule.keep[number] else "drops")
        assert told["Removal"] == (
            f"keeps {(labels == 1).sum()} of {len(labels)}"
            if (labels == 1).any()
            else "drops it: nothing is left"
        )
        weights = segment_weights(resolve_objective(RWR(), *arguments), scores.values[segments])
        assert all(f"{weight:.2g}" in told["RWR"] for weight in (weights.min(), weights.max()))


def test_a_threshold_that_cannot_be_trained_with_is_a_sentence(browser, slug):
    verdicts = Verdicts(browser.scores(slug), 2.0)
    texts = {verdict.name: verdict.text for verdict in verdicts.of_corpus()}
    assert "threshold 2 marks every segment good (highest score is 0.9)" in texts["Conditional"]
    assert "weight" in texts["RWR"]
    number = int(browser.scores(slug).is_train.argmax())
    told = [verdict.name for verdict in verdicts.of_document(number)]
    assert told == ["MLE", "Scalar", "RWR"], "those that need no threshold"


def test_the_explorer_tells_what_every_objective_would_do(browser, slug):
    scores = browser.scores(slug)
    of_corpus = {verdict.name: verdict for verdict in Verdicts(scores, 0.3).of_corpus()}
    assert list(of_corpus) == [kind.__name__ for kind in built_in_kinds().values()]
    assert "cannot be trained like this: 5 levels do not fit" in of_corpus["Quantile"].text
    spread = np.linspace(0, 0.09, len(scores.values), dtype=np.float32)  # no two scores alike: 5 levels fit
    scores = replace(scores, values=scores.values + spread)
    verdicts = Verdicts(scores, 0.3)
    of_corpus = {verdict.name: verdict for verdict in verdicts.of_corpus()}
    quantile = scores.resolve(Quantile())
    text = of_corpus["Quantile"].text
    assert (
        f"one of 5 control tokens before each segment, <|good|> for scores up to {quantile.levels[0].value:.3g}"
        in text
    )
    rewards = segment_rewards(scores.resolve(Scalar()), np.array(scores.range, np.float32))
    assert all(f"times {reward:.2g} for the" in of_corpus["Scalar"].text for reward in rewards)
    assert of_corpus["Scalar"].share is None
    assert of_corpus["MLE"].share == 1
    for number in np.flatnonzero(scores.is_train):
        told = {verdict.name: verdict.text for verdict in verdicts.of_document(number)}
        segments = scores.of_document(number)
        values, labels = scores.values[segments], quantile.rule.labels[segments]
        num_bad = int((values > np.float32(0.3)).sum())
        assert told["MLE"] == f"learns {len(values)} of {len(values)}"
        assert told["Tagging"] == f"strews <|bad|> into {num_bad} of {len(values)}"
        assert told["Additive"] == f"<|good|> × {len(values) - num_bad}, <|bad|> × {num_bad}"
        by_label = {"good": GOOD, "level_1": BAD + 1, "level_2": BAD + 2, "level_3": BAD + 3, "bad": BAD}
        counts = [f"<|{name}|> × {(labels == label).sum()}" for name, label in by_label.items()]
        assert told["Quantile"] == ", ".join(counts)
        low = segment_rewards(scores.resolve(Scalar()), values).min()
        assert told["Scalar"].startswith(("reward ", "rewards "))
        assert f"{low:.2g}" in told["Scalar"]


def test_orders_and_pages(browser, slug):
    def worst_of(page):
        shown = browser.show(slug, threshold=0.4, query="", order="worst segment first", page=page)
        return [document.worst for document in shown.documents], shown

    first, shown = worst_of(0)
    assert len(first) == DOCUMENTS_PER_PAGE
    listed = [score for page in range(shown.num_pages) for score in worst_of(page)[0]]
    assert listed == sorted(listed, reverse=True)
    assert len(listed) == browser.corpus.num_documents
    assert worst_of(999)[1].page == shown.num_pages - 1
    assert worst_of(-1)[1].page == 0


def test_a_search_finds_texts_and_ids_whatever_the_case_and_says_how_far_it_got(browser, slug):
    def texts(query):
        page = browser.show(slug, threshold=0.4, query=query, order="corpus order", page=0)
        return [document.document.text for document in page.documents], page

    assert all("QUIET POET" in text.upper() for text in texts("qUiEt PoEt")[0])
    assert len(texts("quiet poet")[0]) == 1
    assert texts("doc:0")[0][0].startswith("<script>")
    assert texts("no such text")[1].num_found == 0
    assert texts(".*")[0] == [], "a search is no pattern"
    found = browser.find("waits")
    assert (len(found.numbers), found.num_searched, found.place) == (64, browser.corpus.num_documents, None)
    found = DocumentBrowser(browser.corpus).find("waits", max_hits=5)
    assert len(found.numbers) == 5


def test_a_search_goes_on_where_its_time_was_up(browser):
    with browser.corpus.open_shard(0) as file:
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert len(groups) == 2, "the long line fills a row group"
    found = browser.find("waits", seconds=0)
    assert (found.num_searched, found.place) == (groups[0], (0, 1))
    assert browser.find("waits", seconds=0) is found, "remembered, until more is asked for"
    more = browser.find("waits", more=True, seconds=0)
    assert more.num_searched == sum(groups)
    assert len(more.numbers) == 64


def test_hostile_text_is_escaped_and_long_text_cut(corpus, slug, tmp_path):
    explorer = explore(corpus.path, tmp_path)
    shown = show(explorer, slug).documents
    assert len(shown) < 60_000, "a page of a megabyte of text"
    for raw in ("<script", "<img", "</article></div> &", "\u202e", "\u200b"):
        assert raw not in shown
    assert "&lt;script&gt;document.title=&#x27;owned&#x27;&lt;/script&gt;" in shown
    assert "⟨U+202E⟩esrever" in shown
    assert "${document.title=&#x27;owned&#x27;} {{7*7}}" in shown
    assert f"… {len(LONG) - 1500:,} of {len(LONG):,} characters are not shown" in shown
    assert "▲ 0.90" in shown
    found = show(explorer, slug, query="needle")
    assert f"the first match, at character {LONG.index('needle'):,}" in found.documents
    assert "<mark>needle</mark> near the end" in found.documents
    assert "1 document holds “needle”, of all 68" in found.count
    assert "<i>" not in show(explorer, slug, query="<i>").count


def test_the_worst_segment_is_shown_wherever_it_is(tmp_path):
    lines = "".join(f"line number {number}\n" for number in range(1000)) + "bad9 here\n" + "end\n" * 10
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": lines}) + "\n" + json.dumps({"text": "x"}))
    corpus = build_corpus([str(tmp_path / "t.jsonl")], tmp_path / "corpus", validation_fraction=0)
    slug = annotate_by(corpus, JUDGE, "lines", score).slug
    shown = show(explore(corpus.path, tmp_path), slug).documents
    assert "its worst segment, number 1,001:" in shown
    assert "bad9 here" in shown
    assert "line number 500" not in shown


@pytest.mark.parametrize("column", ["id", "text_hash", "ends"])
def test_an_annotation_of_other_texts_is_said(corpus, slug, tmp_path, monkeypatch, column):
    explorer = explore(corpus.path, tmp_path)
    table = explorer.documents.annotations[slug].read_shard(0)
    other = table[column].take(list(reversed(range(len(table)))))
    turned = table.set_column(table.column_names.index(column), column, other)
    explorer.documents.scores(slug)  # read before the file is another
    monkeypatch.setattr(explorer.documents.annotations[slug], "read_shard", lambda shard: turned)
    shown = show(explorer, slug)
    assert "does not hold the scores of document doc:0; delete it and run phf annotate" in shown.documents
    assert shown.histogram == ""


def test_a_damaged_annotation_is_a_sentence_in_the_tab(corpus, slug, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(corpus.path, folder)
    path = folder / "annotations" / slug / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    explorer = explore(folder, tmp_path)
    assert explorer.choose_threshold(slug) == (0, 1, 0.01, 0.5)
    shown = show(explorer, slug)
    assert "class='phf-error'" in shown.documents
    assert "phf annotate" in shown.documents


def test_a_corpus_without_scores_shows_its_texts(tmp_path):
    corpus = make_corpus(tmp_path / "plain", annotated=False)
    explorer = explore(corpus.path, tmp_path)
    assert explorer.slug is None
    assert "has no finished annotation" in explorer.describe_scores(None)
    shown = show(explorer, None, query="quiet poet")
    assert "<mark>quiet poet</mark> waits" in shown.documents
    assert "unscored" not in shown.documents
    assert (shown.histogram, shown.verdicts) == ("", "")
    assert "only a run has samples; open one with: phf explore RUN" in explorer.samples
    assert "only a run has a model that writes" in explorer.playground


def test_unscored_segments_are_said_and_left_out(tmp_path):
    texts = ["good\nbad9\n", "good\nunknown\n", "bad8\n"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus = build_corpus([str(tmp_path / "t.jsonl")], tmp_path / "corpus", validation_fraction=0)
    slug = annotate_by(corpus, JUDGE, "lines", lambda s: Unscored("no") if "unknown" in s else score(s)).slug
    shown = show(explore(corpus.path, tmp_path), slug).documents
    assert shown.count("<b>unscored</b>") == 1
    assert "<b>Left out</b> by every objective, because a segment has no score" in shown
    assert "mean unscored · worst 0.05" in shown
