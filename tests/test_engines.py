"""Every engine gives the same bytes; Ray does a shard again whose worker was killed."""

import json
import os
import shutil
import signal
import sys
import threading
import time

import pytest
from llm_server import answer_politely, own_cache, serve, spec

from phf.annotate.annotate import annotate
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError

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
            time.sleep(0.02)
        if (HERE / "fail").exists() and "<77>" in document:
            how = (HERE / "fail").read_text()
            if how == "die":
                os.kill(os.getpid(), 9)
            if how == "sleep":
                time.sleep(600)
        return [end / 1000 for end in ends]
"""
NUM_DOCUMENTS = 150


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a reward model and a corpus of some shards of several groups."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "noted.py").write_text(MODEL)
    rows = [f"<{number}> One. Two\n\n{'y' * (number % 90)}\nü😀" for number in range(NUM_DOCUMENTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    build_corpus(["a.jsonl"], "corpus", bytes_per_shard=1300, bytes_per_group=500)
    yield tmp_path
    sys.modules.pop("noted", None)


def read_bytes(annotation):
    return {path.name: path.read_bytes() for path in sorted(annotation.path.iterdir())}


def kill_a_worker(notes, annotations, killed):
    """Kill one of two workers once both are at work and a shard is done."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = list(annotations.glob("*/[0-9]*.parquet"))
        pids = [int(path.name) for path in notes.iterdir()]
        if len(pids) == 2 and done:
            killed.append((pids[0], len(done)))
            os.kill(pids[0], signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data", "ignore::ResourceWarning")
def test_ray_gives_the_bytes_of_the_local_engine(folder, monkeypatch):
    """One test for all that needs Ray: each start of it takes seconds."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    own_cache(folder, monkeypatch)
    corpus = Corpus.open("corpus")
    expected = read_bytes(annotate(corpus, "noted:Model", "paragraphs", workers=1))
    remote = build_corpus(["a.jsonl"], f"file://{folder}/remote", bytes_per_shard=1300, bytes_per_group=500)
    annotations = folder / "remote" / "annotations"
    notes = folder / "notes"
    notes.mkdir()
    options = {"workers": 2, "engine": "ray", "timeout": 2}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)  # annotate uses it, and lets it be
    try:
        # One of two workers is killed while it is at work; the corpus is given by its URL.
        killed, progress = [], []
        killer = threading.Thread(target=kill_a_worker, args=(notes, annotations, killed))
        killer.start()
        annotated = annotate(
            remote, "noted:Model", "paragraphs", progress=lambda *call: progress.append(call), **options
        )
        killer.join()
        ((victim, num_done),) = killed
        assert num_done < len(corpus.shards), "the work was finished before the worker was killed"
        assert len(list(notes.iterdir())) > 2, f"nobody took the place of worker {victim}"
        assert read_bytes(annotated) == expected
        assert progress[-1] == ("annotating documents", NUM_DOCUMENTS, NUM_DOCUMENTS)
        shutil.rmtree(notes)

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
    finally:
        ray.shutdown()


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
