"""Every engine gives the same bytes; Ray does a shard again whose worker was killed."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from llm_server import answer_politely, own_cache, serve, spec

from phf.annotate.annotate import annotate
from phf.annotate.ray_pool import RayPool
from phf.config.train import load_train_config
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError
from phf.files import hash_file
from phf.integrations.export import export_blocks
from phf.tokens.tokens import tokenize

MODEL = """
import os, time
from pathlib import Path
from phf.records import Identity
from phf.reward_models import RewardModel

HERE = Path(__file__).parent  # where a test says what to do: workers that Ray keeps do not see its environment

class Model(RewardModel):
    identity = Identity("noted", "1")
    unit = "items per character"
    display_scale = 1.0
    hit_threshold = 0.0

    def score(self, document, ends):
        if (HERE / "notes").exists():  # slowly, and with a note of who did it
            (HERE / "notes" / str(os.getpid())).touch()
            time.sleep(0.005)
        if (HERE / "fail").exists() and "<77>" in document:
            how = (HERE / "fail").read_text()
            if how == "die":
                os.kill(os.getpid(), 9)
            if how == "sleep":
                time.sleep(600)
        return [end / 1000 for end in ends]
"""
NUM_DOCUMENTS = 150
MANY = 200
"""Shards of two documents each."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a reward model and a corpus of some shards of several groups."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "noted.py").write_text(MODEL)
    rows = [f"<{number}> One. Two\n\n{'y' * (number % 90)}\nü😀" for number in range(NUM_DOCUMENTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    build_corpus(["a.jsonl"], "corpus", bytes_per_shard=1300, bytes_per_group=500)
    yield tmp_path
    sys.modules.pop("noted", None)


def read_bytes(annotation):
    return {path.name: path.read_bytes() for path in sorted(annotation.path.iterdir())}


def kill_a_worker(find_workers, folder, pattern, killed):
    """Kill one of two workers once both are at work and some shards are done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        num_done = len(list(folder.glob(pattern)))
        if num_done > 5 and len(pids := find_workers()) == 2:
            killed.append((pids[0], num_done))
            os.kill(pids[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def find_actors():
    """Ray's processes of this one that map a shard."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


@contextmanager
def one_is_killed(find_workers, folder, pattern):
    killed = []
    killer = threading.Thread(target=kill_a_worker, args=(find_workers, folder, pattern, killed))
    killer.start()
    yield
    killer.join()
    ((victim, num_done),) = killed
    assert num_done < MANY, "the work was finished before the worker was killed"
    assert victim not in find_actors()


@pytest.fixture
def many(folder):
    """Makes the corpus of many shards at a place."""
    rows = [f"{number:04} One. Two\n\nü😀" for number in range(2 * MANY)]
    (folder / "many.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return lambda place: build_corpus(["many.jsonl"], place, bytes_per_shard=len(rows[0]) + 6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data", "ignore::ResourceWarning")
def test_ray_gives_the_bytes_of_the_local_engine(folder, many, monkeypatch):
    """One test for all that needs Ray: each start of it takes seconds."""
    pytest.importorskip("ray")
    pytest.importorskip("psutil")  # of accelerate
    own_cache(folder, monkeypatch)
    corpus = Corpus.open("corpus")
    local = many("many")
    expected = read_bytes(annotate(local, "noted:Model", "paragraphs", workers=1))
    tokenize(local, "train:260", "paragraphs", workers=1)
    remote = many(f"file://{folder}/remote")
    assert len(remote.shards) == MANY
    notes = folder / "notes"
    notes.mkdir()
    options = {"workers": 2, "engine": "ray", "timeout": 2}
    with RayPool(workers=2).connect():  # annotate uses it, and lets it be
        # One of two workers is killed while it is at work; the corpus is given by its URL.
        progress = []
        list_notes = lambda: [int(path.name) for path in notes.iterdir()]  # noqa: E731
        with one_is_killed(list_notes, folder / "remote" / "annotations", "*/[0-9]*.parquet"):
            annotated = annotate(
                remote, "noted:Model", "paragraphs", progress=lambda *call: progress.append(call), **options
            )
        assert len(list_notes()) > 2, "nobody took the place of the worker"
        assert read_bytes(annotated) == expected
        assert progress[-1] == ("annotating documents", 2 * MANY, 2 * MANY)
        shutil.rmtree(notes)

        # An export alike, of 200 shards of 4 blocks.
        config = load_train_config(
            "default",
            [
                *("corpus=many", "reward_model=noted:Model", "segments=paragraphs", "tokenizer=train:260"),
                *("data.context=16", "optim.batch_blocks=4", f"tokens={MANY * 64}"),
            ],
        )
        export_blocks(config, folder / "here", "megatron", shard_tokens=64)
        with one_is_killed(find_actors, folder / "there", "[0-9]*.bin"):
            export_blocks(config, folder / "there", "megatron", shard_tokens=64, ray=RayPool(workers=2))
        assert hash_tree(folder / "there") == hash_tree(folder / "here")

        # A reward model that hangs or kills its workers is one line; what was done is kept.
        for how, complaint in {
            "sleep": r"noted gave no scores in 2 s for documents a\.jsonl:\d+ to a\.jsonl:\d+",
            "die": "Ray gave up after 4 tries of a shard",
        }.items():
            (folder / "fail").write_text(how)
            with pytest.raises(PHFError, match=complaint) as error:
                annotate(corpus, "noted:Model", "lines", **{**options, "workers": 1})
            assert "\n" not in str(error.value)
            (folder / "fail").unlink()
        again = annotate(corpus, "noted:Model", "lines", workers=1)
        assert not list(again.path.glob(".*"))
        check_judge(options)


def hash_tree(folder):
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def check_judge(options):
    """Two workers keep one budget, and ask for each text once, also for those that stand in the shards of both."""
    corpus = build_corpus(
        ["a.jsonl"],
        "judged",
        max_documents=24,
        validation_fraction=0,
        bytes_per_shard=420,
        bytes_per_group=420,
    )
    assert len(corpus.shards) == 2

    def reply(body, number):
        time.sleep(0.02)
        return answer_politely(body, number)

    with serve(reply) as server:
        judge = spec(server, concurrency=2)
        with pytest.raises(PHFError, match="the budget of 20calls is spent"):
            annotate(corpus, judge, "lines", budget="20calls", **options)
        assert server.num_paid == 20
        annotated = read_bytes(annotate(corpus, judge, "lines", **options))
        assert set(server.answered.values()) == {1}
        num_paid = server.num_paid
        shutil.rmtree(corpus.path / "annotations")
        assert read_bytes(annotate(corpus, judge, "lines", workers=1)) == annotated
        assert server.num_paid == num_paid


def test_what_the_engines_refuse(folder, monkeypatch):
    corpus = Corpus.open("corpus")
    with pytest.raises(PHFError, match="engine 'spark' is not known; choose local, ray"):
        annotate(corpus, "noted:Model", "lines", engine="spark")
    pytest.importorskip("ray")
    with pytest.raises(
        PHFError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: .*refused.* leave --ray-address out"
    ):
        annotate(corpus, "noted:Model", "lines", engine="ray", ray_address="127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PHFError, match=r"engine 'ray' needs Ray; run: pip install 'phf\[ray\]'"):
        annotate(corpus, "noted:Model", "lines", engine="ray")
