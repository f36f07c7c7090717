"""What the explorer shows, without a browser: scores, verdicts, searches, samples, continuations, and clear sentences."""

import json
import re
import shutil
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from explorer_folders import JUDGE, LONG, add_evaluation, make_corpus, make_run, score
from fake_annotations import annotate_by

from phf import cli
from phf.config.objectives import RWR, Conditional, Filtering, Quantile, Scalar, built_in_kinds
from phf.config.train import SamplingConfig
from phf.control import mode_rules
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.evaluate.rollouts import sample_run
from phf.explore import documents as explorer_documents
from phf.explore import explorer as explorer_module
from phf.explore.documents import DocumentBrowser
from phf.explore.explorer import open_explorer
from phf.explore.html import escape_text
from phf.explore.scores import Verdicts
from phf.feedback.app_server import check_address, is_loopback
from phf.feedback.judgements import open_judgements
from phf.generate.stream import read_bad_share, stream_sample
from phf.generate.target import Target
from phf.objectives import resolve_objective, segment_rewards, segment_weights
from phf.records import BAD, GOOD
from phf.reward_models.protocol import Unscored
from phf.thresholds import resolve_threshold
from phf.tokens.tokens import tokenize


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("explore")


@pytest.fixture(scope="module")
def corpus(folders):
    return make_corpus(folders / "corpus")


@pytest.fixture(scope="module")
def run(corpus, folders):
    run = make_run(corpus, folders / "run")
    add_evaluation(run)
    return run


@pytest.fixture
def browser(corpus):
    return DocumentBrowser(corpus)


@pytest.fixture
def slug(browser):
    return next(iter(browser.annotations))


def explore(place, tmp_path):
    return open_explorer(place, tmp_path / "l.jsonl", "label")


def show(explorer, slug, *, threshold=0.4, query="", order="corpus order", page=0):
    return explorer.show_documents(slug, threshold, query, order, page, True)


# Documents


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
    verdicts = Verdicts(scores, 0.3)
    of_corpus = {verdict.name: verdict for verdict in verdicts.of_corpus()}
    assert list(of_corpus) == [kind.__name__ for kind in built_in_kinds().values()]
    assert "cannot be trained like this: 5 levels do not fit" in of_corpus["Quantile"].text
    quantile = scores.resolve(Quantile(levels=3))
    verdicts._resolved["quantile"] = quantile
    text = {verdict.name: verdict.text for verdict in verdicts.of_corpus()}["Quantile"]
    assert (
        f"one of 3 control tokens before each segment, <|good|> for scores up to {quantile.levels[0].value:.3g}"
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
        good, bad, middle = (int((labels == label).sum()) for label in (GOOD, BAD, BAD + 1))
        assert told["Quantile"] == f"<|good|> × {good}, <|level_1|> × {middle}, <|bad|> × {bad}"
        low = segment_rewards(scores.resolve(Scalar()), values).min()
        assert told["Scalar"].startswith(("reward ", "rewards "))
        assert f"{low:.2g}" in told["Scalar"]


def test_orders_and_pages(browser, slug):
    def worst_of(page):
        shown = browser.show(slug, threshold=0.4, query="", order="worst segment first", page=page)
        return [document.worst for document in shown.documents], shown

    first, shown = worst_of(0)
    assert len(first) == explorer_documents.DOCUMENTS_PER_PAGE
    listed = [score for page in range(shown.num_pages) for score in worst_of(page)[0]]
    assert listed == sorted(listed, reverse=True)
    assert len(listed) == browser.corpus.num_documents
    assert worst_of(999)[1].page == shown.num_pages - 1
    assert worst_of(-1)[1].page == 0


def test_a_search_finds_texts_and_ids_whatever_the_case_and_says_how_far_it_got(browser, slug, monkeypatch):
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
    monkeypatch.setattr(explorer_documents, "MAX_HITS", 5)
    found = DocumentBrowser(browser.corpus).find("waits")
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
    monkeypatch.setattr(explorer.documents, "_read_ends", lambda slug, shard: turned)
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


def test_the_slider_spans_the_scores(corpus, run, slug, tmp_path):
    low, high, step, first = explore(corpus.path, tmp_path).choose_threshold(slug)
    assert (low, high, first) == (0.0, 0.9, 0.5)
    assert step <= 0.01
    assert explore(run.folder, tmp_path).choose_threshold(slug)[3] == 0.4, "a run begins with its own"


def test_a_corpus_without_scores_shows_its_texts(folders, tmp_path):
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


# Writing


def read(stream):
    tokens = list(stream)
    return [token.token for token in tokens if token.kind == "text"], tokens


@pytest.mark.parametrize("mode", ["good", "bad", "none", "untagged"])
@pytest.mark.parametrize(
    "settings",
    [{"seed": 3}, {"seed": 4, "top_p": 1.0, "temperature": 1.5}, {"top_p": 1e-6}, {"control": "prefix", "min_new_tokens": 0}],
)  # fmt: skip
def test_the_stream_writes_what_generate_writes(run, mode, settings):
    model, tokenizer = run.load_model(), run.load_tokenizer()
    sampling = SamplingConfig(num_samples=3, max_new_tokens=40, **settings)
    prompt = tokenizer.encode("The old king")
    target = Target(mode, model, tokenizer, "lines")
    for sample in target.write([prompt], sampling):
        ids, tokens = read(stream_sample(target, sampling, index=sample.index, prompt=prompt))
        assert tokenizer.decode(ids) == sample.text
        assert len(ids) == sample.num_tokens
        assert (tokens[-1].kind == "end") == sample.ended
        rules = mode_rules(mode, tokenizer.control, sampling.control)
        assert not {token.token for token in tokens} & set(rules.blocked)


def test_bad_share_is_the_models_own_before_the_rules(run):
    model, tokenizer = run.load_model(), run.load_tokenizer()
    control = tokenizer.control
    sampling = SamplingConfig(num_samples=1, max_new_tokens=60, temperature=1.0, top_p=1.0)
    target = Target("good", model, tokenizer, "lines")
    num_endings = 0
    for index in range(4):
        page = [control.end, control.good]
        for written in stream_sample(target, sampling, index=index):
            if written.kind == "text":
                assert written.bad_share is None
            else:
                num_endings += 1
                with torch.inference_mode():
                    probs = model(torch.tensor([page])).logits[0, -1].softmax(-1)
                wanted = probs[control.bad] / (probs[control.good] + probs[control.bad])
                assert written.bad_share == pytest.approx(float(wanted), abs=1e-5)
            page.append(written.token)
    assert num_endings > 4, "the model ends segments, not only pages"
    first = model(torch.tensor([[control.end]])).logits[0, -1].softmax(-1)
    wanted = first[control.bad] / (first[control.good] + first[control.bad])
    assert read_bad_share(target) == pytest.approx(float(wanted.detach()), abs=1e-5)


def test_the_stream_refuses_what_does_not_fit(run):
    target = Target("good", run.load_model(), run.load_tokenizer(), "lines")
    sampling = SamplingConfig(max_new_tokens=40)
    with pytest.raises(PHFError, match="at most 26 or shorten the prompt"):
        stream_sample(target, sampling, prompt=[5] * 100)
    with pytest.raises(PHFError, match="choose free or prefix"):
        stream_sample(target, SamplingConfig(control="forced"))


def with_objective(run, tmp_path, objective):
    """The same weights, as if another objective had trained them."""
    folder = tmp_path / objective["kind"]
    shutil.copytree(run.folder, folder)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["objective"] = objective
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("objective", "modes", "sentence"),
    [
        ({"kind": "conditional", "threshold": 0.4}, ["good", "bad", "none"], "expects of the NEXT segment"),
        ({"kind": "mle"}, ["none"], "trained with mle, which learns no control tokens"),
        ({"kind": "additive", "threshold": 0.4}, ["good", "bad", "none"], "it writes no control tokens"),
        ({"kind": "tagging", "threshold": 0.4}, ["untagged", "none"], "it marks no segment end"),
    ],
)
def test_the_playground_writes_in_every_mode_of_the_run(run, tmp_path, objective, modes, sentence):
    folder = with_objective(run, tmp_path, objective)
    playground = explore(folder, tmp_path).playground
    assert sentence in playground.explanation
    settings = {"seed": 5, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 20}
    frames = [
        [list(continuation.ids) for continuation in written]
        for written in playground.write("A <b>", **settings)
    ]
    assert max(sum(map(len, frame)) - sum(map(len, before)) for before, frame in pairwise(frames)) <= len(
        modes
    )
    *_, written = playground.write("A <b>", **settings)
    assert [continuation.mode for continuation in written] == modes
    html = playground.render("A <b>", written)
    assert html.count("A &lt;b&gt;") == len(modes)
    assert ("P(bad)" in html) == (objective["kind"] == "conditional")
    sampling = SamplingConfig(num_samples=1, seed=5, temperature=1.0, top_p=1.0, max_new_tokens=20)
    *_, written = playground.write("", **settings)
    for continuation in written:
        text = sample_run(folder, continuation.mode, sampling)[0].text
        assert playground.tokenizer.decode(continuation.ids) == text


def test_what_the_playground_cannot_do_is_a_sentence(run, tmp_path, monkeypatch):
    explorer = explore(run.folder, tmp_path)
    *_, last = explorer.write("word " * 200, 0, 0.7, 0.9, 60)
    assert "exceed the model&#x27;s context of 128" in last
    *_, last = explorer.write("", 0, -1, 0.9, 60)
    assert "temperature=-1" in last
    assert "give a number for each of seed" in list(explorer.write("", None, 0.7, 0.9, 60))[-1]
    monkeypatch.setattr(explorer_module, "_FRAME_SECONDS", 0.0)
    assert len(list(explorer.write("", 0, 0.7, 0.9, 60))) > 9, "shown while it is written"
    folder = tmp_path / "empty"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "checkpoints")
    *_, last = explore(folder, tmp_path).write("", 0, 0.7, 0.9, 60)
    assert "has no checkpoint yet" in last


# Samples and labels


def test_samples_stand_by_mode_and_are_sorted(run, tmp_path):
    explorer = explore(run.folder, tmp_path)
    judge = next(iter(explorer.samples.judges))
    html, page = explorer.show_samples(judge, "worst first", 99, True)
    assert page == explorer.samples.num_pages - 1 == 0
    assert re.findall(r"<h3 class='mode-(\w+)'", html) == ["good", "bad", "none"]
    assert re.findall(r"sample (\d)", html) == [*"43210", *"43210", *"32104"], "unscored comes last"
    best = explorer.show_samples(judge, "best first", 0, True)[0]
    assert re.findall(r"sample (\d)", best) == [*"01234"] * 3, "here too"
    assert "mean score 0.50 [0.40, 0.60]; 40.0 % score above 0.50" in html
    for raw in ("<script", "<img", "\u202e", "<i>prompt"):
        assert raw not in html
    assert f"… {len(LONG) - 1500:,} more characters are not shown" in html
    assert re.findall(r"sample (\d)", explorer.show_samples(judge, "as drawn", 0, True)[0])[:5] == [*"01234"]


def test_a_run_without_samples_or_corpus_says_so(run, tmp_path):
    folder = tmp_path / "lonely"
    shutil.copytree(run.folder, folder)
    (folder / "evaluation.json").unlink()
    record = json.loads((folder / "run.json").read_text())
    record["config"]["corpus"] = str(tmp_path / "gone")
    (folder / "run.json").write_text(json.dumps(record))
    explorer = explore(folder, tmp_path)
    assert "has no evaluation.json; run 'phf evaluate" in explorer.samples
    assert "gone holds no corpus" in explorer.documents
    assert "relative to" not in explorer.documents
    assert "gone holds no corpus" in explorer.label
    record["config"]["corpus"] = "gone"
    (folder / "run.json").write_text(json.dumps(record))
    assert "start phf explore there" in explore(folder, tmp_path).documents
    assert len(list(islice(explorer.write("", 0, 0.7, 0.9, 5), 3))) == 3, "the model can still write"


def test_a_run_on_a_corpus_that_was_made_anew_says_so(run, corpus, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(run.folder, folder)
    record = json.loads((folder / "run.json").read_text())
    assert explore(folder, tmp_path).threshold == pytest.approx(0.4)
    record["corpus"]["id"] = "0" * 16
    (folder / "run.json").write_text(json.dumps(record))
    assert "is not the corpus it was trained on any more" in explore(folder, tmp_path).subtitle


def test_the_label_tab_opens_its_file_when_it_is_shown_and_lets_go(corpus, tmp_path):
    explorer = explore(corpus.path, tmp_path)
    out = tmp_path / "l.jsonl"
    assert not out.exists()
    _, question, number = explorer.label.show()
    assert "@lines" in question
    status, _, _ = explorer.label.press("b", number)
    assert "1 judged (0 good, 1 bad)" in status
    other = explore(corpus.path, tmp_path)
    assert "another process is labelling into" in other.label.show()[1]
    assert "give --labels another file" in other.label.show()[1]
    explorer.close()
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == [1]
    assert "@lines" in other.label.show()[1]
    other.close()
    with open_judgements(out, "label") as file:
        assert len(file.rows) == 1


# The command


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "is neither a corpus nor a run"),
        (["CORPUS", "--task", "rank"], "task 'rank' is not known; choose label, rate, pair"),
        (["CORPUS", "--host", "203.0.113.7"], "give an address of this machine with --host"),
        (["CORPUS", "--host", "no.such.host.invalid"], "give an address of this machine with --host"),
        (["CORPUS", "--port", "99999"], "port 99999 does not exist; give one from 1024 to 65535"),
    ],
)
def test_user_errors_are_one_line(monkeypatch, capsys, corpus, tmp_path, arguments, part):
    monkeypatch.chdir(tmp_path)
    arguments = [str(corpus.path) if argument == "CORPUS" else argument for argument in arguments]
    monkeypatch.setattr("sys.argv", ["phf", "explore", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert part in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False), ("example.org", False)],
)  # fmt: skip
def test_only_this_machine_is_a_loopback(host, expected):
    assert is_loopback(host) == expected


def test_an_ipv6_address_can_be_served():
    check_address("::1", 0)


def test_no_text_of_a_folder_name_is_markup(corpus, tmp_path):
    folder = tmp_path / "<b>corpus"
    shutil.copytree(corpus.path, folder)
    explorer = open_explorer(folder, Path(tmp_path / "l.jsonl"), "label")
    assert explorer.title == "Corpus <b>corpus"
    assert escape_text(explorer.title) == "Corpus &lt;b&gt;corpus"


def test_the_slider_rounds_and_the_runs_own_threshold_does_not(run, tmp_path):
    explorer = replace(explore(run.folder, tmp_path), threshold=float(np.float32(1 / 48)))
    rounded = 0.0208333
    assert explorer._exact_threshold(explorer.slug, rounded) == explorer.threshold > rounded
    assert explorer._exact_threshold(explorer.slug, 0.02) == 0.02
    assert explorer._exact_threshold("another@1", rounded) == rounded
