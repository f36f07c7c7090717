"""What the explorer shows of a run, without a browser: continuations, samples, labels, and clear sentences."""

import json
import re
import shutil
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from explorer_folders import LONG, add_evaluation, explore, make_corpus, make_run, show
from fake_runs import edit

from phf import cli
from phf.config.train import SamplingConfig
from phf.control import mode_rules
from phf.errors import PHFError
from phf.evaluate.rollouts import sample_run
from phf.explore.documents import DocumentBrowser
from phf.explore.explorer import open_explorer
from phf.explore.html import escape_text
from phf.feedback.app_server import check_address, is_loopback
from phf.feedback.judgements import open_judgements
from phf.generate.stream import read_bad_share, stream_sample
from phf.generate.target import Target


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
def slug(corpus):
    return next(iter(DocumentBrowser(corpus).annotations))


def test_the_slider_spans_the_scores(corpus, run, slug, tmp_path):
    low, high, step, first = explore(corpus.path, tmp_path).choose_threshold(slug)
    assert (low, high, first) == (0.0, 0.9, 0.5)
    assert step <= 0.01
    assert explore(run.folder, tmp_path).choose_threshold(slug)[3] == 0.4, "a run begins with its own"


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
    edit(folder / "run.json", lambda record: record["config"].update(objective=objective))
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


def test_what_the_playground_cannot_do_is_a_sentence(run, tmp_path):
    explorer = explore(run.folder, tmp_path)
    *_, last = explorer.write("word " * 200, 0, 0.7, 0.9, 60)
    assert "exceed the model&#x27;s context of 128" in last
    *_, last = explorer.write("", 0, -1, 0.9, 60)
    assert "temperature=-1" in last
    assert "give a number for each of seed" in list(explorer.write("", None, 0.7, 0.9, 60))[-1]
    assert len(list(explorer.write("", 0, 0.7, 0.9, 60, frame_seconds=0))) > 9, "shown while it is written"
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
    edit(folder / "run.json", lambda record: record["config"].update(corpus=str(tmp_path / "gone")))
    explorer = explore(folder, tmp_path)
    assert "has no evaluation.json; run 'phf evaluate" in explorer.samples
    assert "gone holds no corpus" in explorer.documents
    assert "relative to" not in explorer.documents
    assert "gone holds no corpus" in explorer.label
    edit(folder / "run.json", lambda record: record["config"].update(corpus="gone"))
    assert "start phf explore there" in explore(folder, tmp_path).documents
    assert len(list(islice(explorer.write("", 0, 0.7, 0.9, 5), 3))) == 3, "the model can still write"


def test_a_run_on_a_corpus_that_was_made_anew_says_so(run, corpus, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(run.folder, folder)
    assert explore(folder, tmp_path).threshold == pytest.approx(0.4)
    edit(folder / "run.json", lambda record: record["corpus"].update(id="0" * 16))
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
    class Listener(DocumentBrowser):
        def show(self, slug, *, threshold, **place):
            raise PHFError(f"asked for {threshold!r}")

    own, rounded = float(np.float32(1 / 48)), 0.0208333
    explorer = explore(run.folder, tmp_path)
    explorer = replace(explorer, threshold=own, documents=Listener(explorer.documents.corpus))
    assert own > rounded
    for slug, threshold, asked in (
        (explorer.slug, rounded, own),
        (explorer.slug, 0.02, 0.02),
        ("another@1", rounded, rounded),
    ):
        assert f"asked for {asked!r}<" in show(explorer, slug, threshold=threshold).documents
