"""`phf label` as a person meets it: keys in a terminal, lines from a pipe, buttons in a browser."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import closing

import pytest

from phf import cli
from phf.corpus.store import build_corpus
from phf.explore.explorer import open_explorer
from phf.feedback.judgements import open_judgements
from phf.feedback.pool import Segment
from phf.feedback.queue import Queue
from phf.feedback.session import KEYS, LabelSession
from phf.reward_training.labels import read_labels

SUBJECTS = ["A red fox", "One old king", "My neighbour", "The third engineer", "Nobody at home", "Every poet"]
VERBS = ["forgot the keys of", "painted a picture of", "wrote long letters to", "laughed about"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    texts = [f"{s} {v} {o.lower()}.\x1b[31m" for s in SUBJECTS for v in VERBS for o in SUBJECTS if s != o]
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return build_corpus([str(folder / "t.jsonl")], folder / "corpus", validation_fraction=0).path


def label(monkeypatch, capsys, lines, *arguments):
    """Run the command with lines from a pipe; gives its output."""
    read, write = os.pipe()
    os.write(write, "".join(f"{line}\n" for line in lines).encode())
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "argv", ["phf", "label", *map(str, arguments)])
        cli.main()
    return capsys.readouterr().out


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_from_a_pipe_become_judgements_and_a_rerun_goes_on(monkeypatch, capsys, tmp_path, corpus):
    out = tmp_path / "l.jsonl"
    shown = label(
        monkeypatch, capsys, ["g", "b", "x", "u", "s", "b", "?"], corpus, "-o", out, "--labeler", "ann"
    )
    assert "key x means nothing here" in shown
    assert "taken back" in shown
    assert "1 skipped" in shown
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown
    rows = read(out)
    assert [row["label"] for row in rows] == [0, 1]
    assert set(rows[0]) == {"text", "label", "segment_id", "time", "labeler"}
    assert rows[0]["labeler"] == "ann"
    assert rows[0]["time"].endswith("+00:00")
    label(monkeypatch, capsys, "b" * 50, corpus, "-o", out, "-n", "3")
    texts = [row["text"] for row in read(out)]
    assert len(set(texts)) == len(texts) == 5


@pytest.mark.parametrize(
    ("task", "keys", "wanted"),
    [("rate", "5 1 9 q 2", [{"rating": 5}, {"rating": 1}]), ("pair", "1 right", [{}, {}])],
)
def test_ratings_and_pairs(monkeypatch, capsys, tmp_path, corpus, task, keys, wanted):
    out = tmp_path / "l.jsonl"
    shown = label(monkeypatch, capsys, keys.split(), corpus, "-o", out, "-t", task, "--order", "random")
    rows = read(out)
    assert [{key: row[key] for key in want} for row, want in zip(rows, wanted, strict=True)] == wanted
    if task == "pair":
        places = [shown.index(row[name]) for row in rows for name in ("chosen_id", "rejected_id")]
        assert places[0] < places[1], "1 chose the first shown"
        assert places[2] > places[3], "right chose the second"
        assert rows[0]["chosen"] != rows[0]["rejected"]


@pytest.mark.parametrize(
    ("task", "keys", "targets"), [("label", "bg", [1, 0]), ("rate", "15", [1, 0]), ("pair", "12", [0, 0])]
)
def test_reward_train_reads_what_label_writes(monkeypatch, capsys, tmp_path, corpus, task, keys, targets):
    out = tmp_path / "l.jsonl"
    label(monkeypatch, capsys, keys, corpus, "-o", out, "-t", task)
    labels = read_labels(out)
    assert labels.targets.tolist() == targets
    assert labels.texts == [row["chosen" if task == "pair" else "text"] for row in read(out)]
    assert labels.rejected == [row["rejected"] for row in read(out) if task == "pair"]
    assert labels.bad_rows == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "phf label DIR -o labels.jsonl"),
        (["CORPUS", "-t", "rank"], "task 'rank' is not known; choose label, rate, pair"),
        (["CORPUS", "--order", "best"], "choose uncertain, balanced, random, worst"),
        (["CORPUS", "-r", "nosuch"], "has no annotation by nosuch"),
        (["CORPUS", "--order", "worst"], "needs scores"),
        (["CORPUS", "--import", "x.json"], "reads no corpus"),
        (["--import", "x.json"], "x.json"),
        (["nowhere"], "nowhere holds no corpus"),
        (["CORPUS", "-o", "missing/l.jsonl"], "missing/l.jsonl"),
    ],
)
def test_user_errors_are_one_line(monkeypatch, capsys, tmp_path, corpus, arguments, part):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["phf", "label", *(str(corpus) if a == "CORPUS" else a for a in arguments)]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert part in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lies_there_is_gone_on_with_only_where_it_is_named(monkeypatch, capsys, tmp_path, corpus):
    monkeypatch.chdir(tmp_path)
    label(monkeypatch, capsys, "b", corpus)
    assert len(read(tmp_path / "labels.jsonl")) == 1, "a new file needs no name"
    with pytest.raises(SystemExit):
        label(monkeypatch, capsys, "b", corpus)
    assert "labels.jsonl exists already; give -o labels.jsonl to go on with it" in capsys.readouterr().err
    label(monkeypatch, capsys, "g", corpus, "-o", "labels.jsonl")
    assert len(read(tmp_path / "labels.jsonl")) == 2
    with closing(open_explorer(corpus, None, "label")) as explorer:
        assert "labels.jsonl exists already; give --labels labels.jsonl" in explorer.label.show()[1]
    assert len(read(tmp_path / "labels.jsonl")) == 2


def test_an_import_says_what_it_left_out(monkeypatch, capsys, tmp_path):
    responses = {"q": [{"value": "bad", "user_id": "u"}]}
    records = [
        {"id": "1", "fields": {"text": "a"}, "responses": responses},
        {"id": "2", "fields": {}, "responses": {}},
    ]
    (tmp_path / "x.json").write_text(json.dumps(records))
    shown = label(monkeypatch, capsys, [], "--import", tmp_path / "x.json", "-o", tmp_path / "l.jsonl")
    assert "left out 1 x no response\n  2: no response" in shown
    assert "1 judgements from argilla, question q" in shown
    assert read(tmp_path / "l.jsonl")[0]["label"] == 1


def open_terminal(*arguments, **environment):
    """Label in a real terminal: the process, the terminal's two ends, a function that waits for what is shown, and how it was set."""
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    script = "import sys; from phf.cli import main; sys.argv[0] = 'phf'; main()"
    command = [sys.executable, "-c", script, "label", *map(str, arguments)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"} | environment
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    seen = b""

    def wait_for(part):
        nonlocal seen
        deadline = time.monotonic() + 20
        while part not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536)
        before, _, seen = seen.partition(part)
        return before

    return process, ours, theirs, wait_for, settings


def test_an_ascii_terminal_shows_what_it_can(tmp_path):
    text = "na\u00efve \u6a21\u578b \U0001f600."
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "\u6a21", "text": text}))
    corpus = build_corpus([str(tmp_path / "t.jsonl")], tmp_path / "corpus", validation_fraction=0).path
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    process, ours, theirs, wait_for, _ = open_terminal(corpus, "-o", tmp_path / "l.jsonl", **ascii_only)
    shown = wait_for(b"q quit")
    assert rb"na\xefve \u6a21\u578b \U0001f600." in shown
    assert b"-" * 80 in shown, "rules of one character"
    os.write(ours, "\u6a21".encode())
    wait_for(rb"key \u6a21 means nothing here")
    os.write(ours, b"b")
    wait_for(b"next: phf reward train")
    assert process.wait() == 0
    assert [(row["text"], row["label"]) for row in read(tmp_path / "l.jsonl")] == [(text, 1)]
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("end", [b"q", b"\x03", b"\x04", signal.SIGTERM, signal.SIGKILL])
def test_single_keys_in_a_real_terminal_which_is_restored(tmp_path, corpus, end):
    out = tmp_path / "l.jsonl"
    process, ours, theirs, wait_for, before = open_terminal(corpus, "-o", out, "-t", "pair")
    wait_for(b"q quit")
    assert not termios.tcgetattr(theirs)[3] & termios.ICANON
    for key, answer in ((b"\x1b[C", b"second, saved"), (b"1", b"first, saved"), (b"u", b"taken back")):
        os.write(ours, key)
        wait_for(answer)
    if isinstance(end, bytes):
        os.write(ours, end)
        wait_for(b"next: phf reward train")
        assert process.wait() == 0
    else:
        process.send_signal(end)
        process.wait()
    assert len(read(out)) == 1
    if end != signal.SIGKILL:
        assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def session(tmp_path):
    nasty = "<img src=x onerror=alert(1)> ${1+1} {{value}} <script>x</script> **b** \u202eevil"
    pool = [Segment(f"<b>{n}#0@lines", f"{nasty} {n}", "<i>before", "</div>after") for n in range(6)]
    with open_judgements(tmp_path / "l.jsonl", "label") as file:
        yield LabelSession(
            file, Queue(pool, file.rows, task="label", seed=0), task="label", labeler="ann", num=3
        )


def test_a_session_ends_and_undo_opens_it_again(session):
    for _ in range(3):
        session.press("g")
    assert session.question is None
    assert session.press("g") == "key g means nothing here"
    assert len(session.file.rows) == 3
    session.press("u")
    assert session.question is not None
    assert session.describe().startswith("2 judged (2 good, 0 bad); 2 of 3 in this session")


def test_the_page_escapes_text_and_refuses_a_stale_window(session):
    from phf.feedback.label_app import LabelPage

    page = LabelPage(session)
    _, question, number = page.show()
    for raw in ("<img", "<script", "<i>", "<b>", "\u202e", "</div>after"):
        assert raw not in question
    assert "&lt;img src=x onerror=alert(1)&gt; ${1+1} {{value}}" in question
    status, _, next_number = page.press("b", number)
    assert "1 judged (0 good, 1 bad)" in status
    _, question, _ = page.press("b", number)
    assert "another window went on" in question
    assert len(session.file.rows) == 1
    _, question, number = page.press("u", next_number)
    assert "taken back" in question
    assert session.file.rows == []


def test_the_page_says_when_a_judgement_is_not_saved(session, monkeypatch):
    from phf.feedback.label_app import LabelPage

    def fail(row):
        raise OSError(28, "No space left on device")

    page = LabelPage(session)
    _, _, number = page.show()
    monkeypatch.setattr(session.file, "append", fail)
    _, question, after = page.press("b", number)
    assert "not saved: No space left on device" in question
    assert after == number


def test_a_port_that_is_taken_is_one_line(monkeypatch, capsys, tmp_path, corpus):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        out = str(tmp_path / "l.jsonl")
        monkeypatch.setattr(sys, "argv", ["phf", "label", str(corpus), "-o", out, "--app", "--port", port])
        with pytest.raises(SystemExit):
            cli.main()
    error = f"error: port {port} cannot be used (address already in use); give another one with --port\n"
    assert capsys.readouterr().err == error
    assert list(tmp_path.iterdir()) == []


CLIENT = """
import json, sys, urllib.request
from gradio_client import Client
with urllib.request.urlopen(sys.argv[1]) as answer:
    policy, page = answer.headers["content-security-policy"], answer.read().decode()
client = Client(sys.argv[1], verbose=False)
client.predict(api_name="/show")
status = client.predict(api_name="/press_b")[0]
print(json.dumps([policy, page, str(status)]))
"""


def test_the_page_over_http_writes_to_the_same_file_and_calls_no_other_machine(tmp_path, corpus):
    pytest.importorskip("gradio")
    out = tmp_path / "l.jsonl"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Processes of their own: Gradio leaves sockets and event loops to the garbage collector.
    script = "import sys; from phf.cli import main; sys.argv[0] = 'phf'; main()"
    command = [sys.executable, "-c", script, "label", str(corpus), "--app", "--port", port, "-o"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, str(out)], **pipes) as server:
        try:
            assert f"http://127.0.0.1:{port}" in server.stderr.readline()
            client = subprocess.run([sys.executable, "-c", CLIENT, f"http://127.0.0.1:{port}"], **pipes)
        finally:
            server.send_signal(signal.SIGINT)
        assert "next: phf reward train" in server.stdout.read()
    assert server.returncode == 0
    policy, page, status = json.loads(client.stdout)
    assert policy.startswith("default-src 'self' ")
    assert "fonts.googleapis.com" not in page
    assert all(f"key-{key}" in page for key in KEYS["label"])
    assert "0 good, 1 bad" in status
    assert [row["label"] for row in read(out)] == [1]
