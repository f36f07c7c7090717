"""One process at a time writes a folder: the second says who is at it, and one that was killed is in nobody's way."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_runs import make_run
from test_distill import WordTeacher, make_documents, time_briefly  # noqa: F401  a fixture
from test_reward_train import make_rows
from test_reward_train import write as write_labels

from phf import demo, folders
from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation
from phf.attack.doses import measure_doses
from phf.attack.suite import attack_targets
from phf.config.attack import AttackSuiteConfig
from phf.config.evaluate import EvaluateConfig
from phf.config.train import load_train_config
from phf.corpus.store import Corpus, build_corpus
from phf.curate.balance import balance_corpus
from phf.curate.exchange_export import export_corpus
from phf.curate.exchange_import import import_corpus
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_runs
from phf.feedback.judgements import open_judgements
from phf.files import replace_atomically, write_json
from phf.folders import LOCK_FILE, WITHOUT_LOCKS, create_folder, lock_folder
from phf.release.folder import write_release
from phf.reward_training.distill import FEATURES, distill_reward_model
from phf.reward_training.labels import read_labels
from phf.reward_training.train import train_reward_model
from phf.tokens.tokens import tokenize
from phf.train import loop
from phf.train.run import Run
from phf.train.sweep import run_sweep

HOLD = """
import sys
from pathlib import Path
from phf.folders import lock_file
with lock_file(Path(sys.argv[1]), "testing", Path(sys.argv[2]), remedy="stop it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(lock: Path, name: Path):
    """A process that holds a lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), str(name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What writing commands read: rows, a corpus with an annotation, labels; copied before anything is written into it."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"text": f"text {number} of a fucking mail to a{number}@b.org"} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = build_corpus([folder / "rows.jsonl"], folder / "corpus", validation_fraction=0.3)
    annotate(corpus, "pii", "document", workers=1)
    scored = [{"text": "a b", "ends": [1, 3], "scores": [0.5, 1.0]}] * 2
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    write_labels(folder / "labels.jsonl", make_rows(100))
    make_run(folder / "run", "conditional", good_fraction=0.5)
    write_json(folder / "run" / "checkpoints" / "step-000500" / "checkpoint.json", {})
    return folder


def config():
    return load_train_config("toxicity", ["corpus=none", "reward_model=pii", "tokens=1000"])


@dataclass
class Place:
    """Where a command reads (`made`) and writes (`out`)."""

    made: Path
    out: Path
    num_documents: int = 5

    @property
    def corpus(self):
        """A corpus that may be written into."""
        if not self.out.exists():
            shutil.copytree(self.made / "corpus", self.out)
        return Corpus.open(self.out)

    @property
    def run(self):
        """A run folder."""
        if not self.out.exists():
            make_run(self.out, "conditional", good_fraction=0.5)
        return Run.open(self.out)

    @property
    def annotation(self):
        """Of the corpus that is read."""
        return Annotation.open(Corpus.open(self.made / "corpus"), "pii", "document")


class TooLittleError(Exception):
    """What a command reads is too little to go on."""


@contextmanager
def refuse_others():
    try:
        yield
    except (PHFError, KeyError) as error:
        if "another process" in str(error):
            raise
        raise TooLittleError from error


def label(place):
    with open_judgements(place.out, "label") as file:
        file.append({"text": "x", "label": 1})


COMMANDS = {
    "train": lambda place: loop.train(config(), place.out),
    "resume": lambda place: loop.resume(place.run),
    "sweep": lambda place: run_sweep("toxicity", ["seed=0,1", "corpus=none"], place.out),
    "evaluate": lambda place: evaluate_runs([place.run, place.run], EvaluateConfig()),
    "doses": lambda place: measure_doses(place.run, [], EvaluateConfig()),
    "attack": lambda place: attack_targets([place.made], place.out, AttackSuiteConfig()),
    "demo": lambda place: demo.run_demo(place.out),
    "annotate": lambda place: annotate(place.corpus, "pii", "document", workers=1),
    "tokenize": lambda place: tokenize(place.corpus, "train:280", "document", workers=1),
    "label": label,
    "release": lambda place: write_release(Run.open(place.made / "run"), place.out, step=500),
    "build": lambda place: build_corpus([place.made / "rows.jsonl"], place.out),
    "balance": lambda place: balance_corpus(
        place.annotation.corpus, place.annotation, place.out, threshold=0
    ),
    "export": lambda place: export_corpus(place.annotation.corpus, place.out, "jsonl"),
    "import": lambda place: import_corpus(str(place.made / "scored.jsonl"), place.out, "jsonl"),
    "reward train": lambda place: train_reward_model(
        read_labels(place.made / "labels.jsonl"), place.out, seed=0, name="mine"
    ),
    "distill": lambda place: distill_reward_model(
        make_documents(place.num_documents), WordTeacher(), place.out, seed=0, segments="lines"
    ),
}
"""Every command that writes a folder, or a file that it goes on with."""


def find_lock(command, place):
    """The lock file of a command."""
    match command:
        case "annotate":
            return place.corpus.path / "annotations" / place.annotation.slug / LOCK_FILE
        case "tokenize":
            return tokenize(place.corpus, "train:280", "document", workers=1).path / LOCK_FILE
        case "label":
            return place.out.parent / ".out.lock"
        case "release" | "build" | "balance" | "export" | "import" | "reward train" | "distill":
            return place.out.parent / ".out.partial" / LOCK_FILE
        case "resume" | "evaluate" | "doses":
            return place.run.folder / LOCK_FILE
    return place.out / LOCK_FILE


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_one_says_who_is_at_it_and_a_killed_one_is_no_obstacle(command, made, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_make_demo", lambda *_: None)
    place = Place(made, tmp_path / "out")
    with held(find_lock(command, place), place.out) as holder:
        before = sorted(path for path in tmp_path.rglob("*"))
        with pytest.raises(PHFError, match="another process is ") as refused:
            COMMANDS[command](place)
        where = rf"testing {place.out}[^ ]* \(process {holder.pid} on {socket.gethostname()}, since 20"
        assert re.search(where, str(refused.value))
        assert "\n" not in str(refused.value)
        assert sorted(path for path in tmp_path.rglob("*")) == before, "it has left all as it was"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with suppress(TooLittleError), refuse_others():
        COMMANDS[command](place)
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith((".lock", ".partial", ".tmp"))]
    assert left == []


def test_waiting_says_for_whom(tmp_path):
    said = []
    with held(tmp_path / "run" / LOCK_FILE, tmp_path / "run") as holder:
        threading.Timer(0.3, holder.kill).start()
        with lock_folder(tmp_path / "run", "training", wait=True, say=said.append):
            assert holder.wait() != 0
    assert said[0].startswith(
        f"waiting: another process is testing {tmp_path / 'run'} (process {holder.pid} on "
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_called_one(number, tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for wait in (None, False, True):
        with (
            pytest.raises(PHFError, match=f"without locks .*{WITHOUT_LOCKS}=1"),
            lock_folder(tmp_path, "x", wait=wait),
        ):
            pass
    monkeypatch.setenv(WITHOUT_LOCKS, "1")
    with lock_folder(tmp_path, "writing"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    for name in (".run.json.abcdef01.tmp", ".a b.json.0a_b1c2d.tmp", ".mine.tmp", "notes.tmp", ".phf.lock"):
        (tmp_path / name).write_text("{")
    for folder in ("evaluation", "held"):
        (tmp_path / folder / "step").mkdir(parents=True)
        (tmp_path / folder / "step" / ".part.json.0123abcd.tmp").touch()
    (tmp_path / "held" / LOCK_FILE).touch()  # such as a run of a sweep, that somebody else trains
    with lock_folder(tmp_path, "writing"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mine.tmp",
        "evaluation",
        "held",
        "notes.tmp",
    ]
    assert [path.parts[-3] for path in tmp_path.rglob("*.json.*.tmp")] == ["held"]


def test_the_next_writer_of_a_file_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "page[1].html"
    if (child := os.fork()) == 0:
        with replace_atomically(path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left_over,) = tmp_path.iterdir()
    others = [".page[1].html.0000-1.01234567.tmp", ".page1.html.tmp", left_over.name.replace("[1]", "1")]
    for name in others:
        (tmp_path / name).touch()
    with replace_atomically(path) as mine:
        write_json(path, {})  # another thread, say, which leaves alone what a living process writes
        assert mine.exists()
    assert {path.name for path in tmp_path.iterdir()} == {*others, "page[1].html"}


def test_a_lock_is_not_kept_by_a_forked_process(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Path, "unlink", lambda *_, **__: None
    )  # as where nothing may be removed: the file stays
    reading, writing = os.pipe()
    with lock_folder(tmp_path, "writing"):
        if (child := os.fork()) == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    with lock_folder(tmp_path, "writing"):
        os.close(writing)
        os.waitpid(child, 0)
    os.close(reading)


def test_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path):
    with lock_folder(tmp_path, "writing"):
        (tmp_path / LOCK_FILE).unlink()  # by hand
        with lock_folder(tmp_path, "writing"):
            pass


def test_who_locked_a_file_that_was_removed_meanwhile_takes_the_new_one(tmp_path, monkeypatch):
    calls, lock = [], folders._lock

    def remove_then_lock(*arguments):
        if not calls:
            (tmp_path / LOCK_FILE).unlink()  # of a holder that ends between our opening and our locking
        calls.append(1)
        return lock(*arguments)

    monkeypatch.setattr(folders, "_lock", remove_then_lock)
    with lock_folder(tmp_path, "writing"):
        assert (tmp_path / LOCK_FILE).exists(), "others would find no lock"
    assert len(calls) == 2


def test_modes_follow_the_umask(made, tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
        corpus = build_corpus([made / "rows.jsonl"], tmp_path / "corpus")
        annotate(corpus, "pii", "document", workers=1)
        tokenize(corpus, "train:280", "document", workers=1)
        train_reward_model(read_labels(made / "labels.jsonl"), tmp_path / "reward", seed=0)
        label(Place(made, tmp_path / "labels.jsonl"))
        with create_folder(tmp_path / "new", "making") as folder:
            (folder / "weights").touch(0o600)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o640"}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o750"}


@pytest.mark.parametrize("command", ["build", "balance", "export", "import", "reward train", "distill"])
def test_a_second_time_finds_what_is_there_and_another_command_is_refused(
    command, made, tmp_path, monkeypatch
):
    monkeypatch.setattr("phf.reward_training.distill.FEATURES", FEATURES[:1])
    place = Place(made, tmp_path / "out", num_documents=700)
    COMMANDS[command](place)
    before = read_all(place.out)
    COMMANDS[command](place)
    assert read_all(place.out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    name = max(before)
    (place.out / name).write_bytes(before[name] + b" ")
    with pytest.raises(PHFError, match="exists and is not empty; delete it"):
        COMMANDS[command](place)
    shutil.rmtree(place.out)
    place.out.mkdir()
    (place.out / "thesis.txt").touch()
    with pytest.raises(PHFError, match="exists and is not empty; delete it"):
        COMMANDS[command](place)
    assert [path.name for path in place.out.iterdir()] == ["thesis.txt"]


def read_all(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_other_rows_are_not_taken_for_the_corpus_that_is_there(made, tmp_path):
    rows = tmp_path / "rows.jsonl"
    shutil.copy(made / "rows.jsonl", rows)
    corpus = build_corpus([rows], tmp_path / "corpus")
    annotate(corpus, "pii", "document", workers=1)
    assert build_corpus([rows], tmp_path / "corpus").id == corpus.id, "an annotation does not make it another"
    rows.write_text('{"text": "x"}\n{"text": "y"}\n')
    with pytest.raises(PHFError, match=r"not empty; .* \(its documents/00000.parquet is not what"):
        build_corpus([rows], tmp_path / "corpus")
    with pytest.raises(PHFError, match="not empty"):
        build_corpus([rows], tmp_path / "corpus", max_documents=1)
