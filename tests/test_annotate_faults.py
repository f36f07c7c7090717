"""Annotating while things go wrong: killed at any moment, a full disk, reward models that fail or hang, odd documents."""

import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from command_processes import Command, start_command

from phf import cli
from phf.annotate.annotate import Annotation, annotate, load_scores
from phf.annotate.parts import ShardParts
from phf.annotate.scorer import Scorer, list_turns
from phf.corpus import segment
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError
from phf.folders import lock_folder
from phf.reward_models import load_reward_model, score_samples

MODEL = '''
"""A reward model that is told by the environment how to fail, and in which document."""
import math, os, re, time
from phf.records import Identity

class Model:
    identity = Identity("faulty", "1")
    unit = "items per character"
    display_scale = 1.0
    hit_threshold = 0.0

    def score(self, document, ends):
        if "SECONDS_PER_DOCUMENT" in os.environ:
            time.sleep(float(os.environ["SECONDS_PER_DOCUMENT"]))
        if f"<{os.environ.get('FAIL_IN', '-')}>" in document:
            fail(os.environ["FAIL_BY"])
        return [document.count("x", 0, end) / end for end in ends]

    def trim_sample(self, text):
        return text

def share_of_x(texts):
    return [text.count("x") / len(text) for text in texts]

def fail(how):
    if how == "sleep":
        time.sleep(600)
    if how == "regex":  # holds the interpreter for hours
        re.match(r"(a+)+b", "a" * 60)
    if how == "die":
        os.kill(os.getpid(), 9)
    if how == "crash":
        os.kill(os.getpid(), 11)
'''


def annotate_corpus(workers, limit):
    """In a process and a process group of its own: prints the number of segments scored."""
    os.setsid()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        print(annotate(Corpus.open("corpus"), "faulty:Model", "lines", workers=workers).num_scored_now)
    except PHFError as error:
        sys.exit(f"error: {error}")


NUM_DOCUMENTS = 240


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the reward model and a corpus of twelve shards of several groups."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty.py").write_text(MODEL)
    rows = [f"<{number}> x\n{'y' * (number % 90)}\nü😀" for number in range(NUM_DOCUMENTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    corpus = build_corpus(["a.jsonl"], "corpus", bytes_per_shard=1300, bytes_per_group=500)
    assert len(corpus.shards) >= 10
    yield tmp_path
    sys.modules.pop("faulty", None)


def start(workers=1, limit=0, **environment):
    """Annotate the corpus of the current folder."""
    process = Command(annotate_corpus, (workers, limit), environment, has_children=True)
    while process.is_running and os.getpgid(process.pid) != process.pid:
        time.sleep(0.001)
    return process


def finish(**options):
    """Run to the end; gives the number of segments scored."""
    process = start(**options)
    code, errors = process.finish()
    assert code == 0, errors
    return int(process.read_output())


def read_bytes(annotation):
    return {path.name: path.read_bytes() for path in sorted(annotation.iterdir())}


def score_undisturbed(folder):
    """The bytes of an annotation that was left alone, which is then out of the way."""
    annotation = annotate(Corpus.open("corpus"), "faulty:Model", "lines", workers=1)
    expected = read_bytes(annotation.path)
    annotation.path.rename(folder / "undisturbed")
    return expected, annotation.path


def count_entries(path):
    manifest = path / "manifest.json"
    if not manifest.exists():
        return 0
    return sum(entry is not None for entry in json.loads(manifest.read_text())["shards"])


def test_killed_at_ten_random_moments_and_rerun_gives_the_same_bytes(folder):
    expected, path = score_undisturbed(folder)
    num_shards = len(expected) - 1
    rng = random.Random(0)
    counts = []
    for kill in range(10):
        before = count_entries(path)
        process = start(workers=1 + kill % 2, SECONDS_PER_DOCUMENT="0.04")
        deadline = time.monotonic() + 60
        must_do_some = kill % 3 == 2
        while count_entries(path) == before and (must_do_some or rng.random() > 0.01):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        assert process.is_running, process.finish()
        os.killpg(process.pid, signal.SIGKILL)
        process.finish()
        counts.append(count_entries(path))
        assert counts[-1] < num_shards, "the work was finished before it was killed"
    assert counts[-1] > 0
    assert 0 < finish() < NUM_DOCUMENTS * 3
    assert read_bytes(path) == expected


def test_a_limit_on_file_size_is_one_line_and_nothing_half_written(folder):
    expected, path = score_undisturbed(folder)
    sizes = sorted(len(data) for data in expected.values())
    code, errors = start(limit=sizes[0] - 100).finish()  # smaller than any file
    assert code == 1
    assert errors.count("\n") == 1
    assert "File too large; what is done is kept: check the space" in errors
    assert count_entries(path) == 0
    assert set(read_bytes(path)) <= {"manifest.json"}
    finish()
    assert read_bytes(path) == expected


def test_a_full_disk_is_one_line_and_the_rerun_goes_on(folder):
    expected, path = score_undisturbed(folder)
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        code, errors = start().finish()
        assert code == 1
        assert errors.count("\n") == 1
        assert "No space left on device; what is done is kept: check the space" in errors
        half = read_bytes(path)
        assert "manifest.json" in half
        assert 0 < count_entries(path) < len(expected) - 1
        assert all(expected[name] == data for name, data in half.items() if name != "manifest.json")
        subprocess.run(["mount", "-o", "remount,size=10m", path], check=True)
        assert 0 < finish() < NUM_DOCUMENTS * 3
        assert read_bytes(path) == expected
    finally:
        subprocess.run(["umount", path], check=True)


def test_damage_is_refused_by_name_and_mended_by_verify(folder):
    corpus = Corpus.open("corpus")
    annotation = annotate(corpus, "faulty:Model", "lines", workers=1)
    expected = read_bytes(annotation.path)
    first, second = (annotation.path / f"0000{index}.parquet" for index in (1, 2))

    def truncate():
        first.write_bytes(first.read_bytes()[:-20])

    def flip_bit():
        data = bytearray(first.read_bytes())
        data[len(data) // 2] ^= 0x10
        first.write_bytes(data)

    def swap():
        first.rename("other")
        second.rename(first)
        (folder / "other").rename(second)

    for damage in (truncate, flip_bit, swap):
        damage()
        # A finished annotation is not read again to say so ...
        assert annotate(corpus, "faulty:Model", "lines", workers=1).num_scored_now == 0
        # ... but no score of it is used unchecked.
        with pytest.raises(PHFError, match=r"00001\.parquet is damaged.*phf annotate .* --verify"):
            load_scores(corpus, Annotation(corpus, annotation.path))
        mended = annotate(corpus, "faulty:Model", "lines", workers=1, verify=True)
        assert 0 < mended.num_scored_now < NUM_DOCUMENTS
        assert read_bytes(annotation.path) == expected
    before = (annotation.path / "manifest.json").stat().st_mtime_ns
    annotate(corpus, "faulty:Model", "lines", workers=1)
    assert (
        annotation.path / "manifest.json"
    ).stat().st_mtime_ns == before  # not written where nothing changed


def test_a_text_edited_under_the_same_id_makes_its_scores_stale(folder):
    corpus = Corpus.open("corpus")
    annotation = annotate(corpus, "faulty:Model", "lines", workers=1)
    text = (folder / "a.jsonl").read_text()
    (folder / "a.jsonl").write_text(text.replace("<3> x", "<3> X"))
    edited = build_corpus(["a.jsonl"], "edited", bytes_per_shard=1300, bytes_per_group=500)
    (folder / "edited" / "annotations").mkdir()
    moved = edited.path / "annotations" / annotation.slug
    annotation.path.rename(moved)
    with pytest.raises(PHFError, match=r"00000\.parquet is stale: it was made from another documents/00000"):
        load_scores(edited, Annotation(edited, moved))
    entries = annotation.manifest["shards"]
    again = annotate(edited, "faulty:Model", "lines", workers=1)
    assert again.num_scored_now == entries[0]["num_segments"]
    load_scores(edited, again)


def test_verify_reads_the_documents_too(folder):
    corpus = Corpus.open("corpus")
    annotate(corpus, "faulty:Model", "lines", workers=1)
    shard = corpus.path / corpus.shards[4].file
    data = bytearray(shard.read_bytes())
    data[60] ^= 1
    shard.write_bytes(data)
    corpus = Corpus.open("corpus")
    annotate(corpus, "faulty:Model", "lines", workers=1)
    with pytest.raises(PHFError, match=r"documents/00004\.parquet is damaged"):
        annotate(corpus, "faulty:Model", "lines", workers=1, verify=True)


@pytest.mark.parametrize("how", ["sleep", "regex"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_hangs_is_stopped_and_its_documents_named(folder, monkeypatch, workers, how):
    monkeypatch.setenv("FAIL_IN", "77")
    monkeypatch.setenv("FAIL_BY", how)
    corpus = Corpus.open("corpus")
    begin = time.monotonic()
    with pytest.raises(PHFError, match=r"faulty gave no scores in (0\.5|6) s for documents") as error:
        annotate(corpus, "faulty:Model", "lines", workers=workers, timeout=0.5 if workers == 1 else 6)
    assert time.monotonic() - begin < 40
    assert "--timeout" in str(error.value)
    first, last = map(int, re.findall(r"a\.jsonl:(\d+)", str(error.value)))
    assert first <= 78 <= last
    monkeypatch.delenv("FAIL_IN")
    assert annotate(corpus, "faulty:Model", "lines", workers=1).num_scored_now > 0


def test_a_worker_that_dies_is_one_line_that_says_where(folder, monkeypatch):
    monkeypatch.setenv("FAIL_IN", "77")
    monkeypatch.setenv("FAIL_BY", "die")
    with pytest.raises(PHFError, match=r"a worker process was killed .* at documents? a\.jsonl:\d+"):
        annotate(Corpus.open("corpus"), "faulty:Model", "lines", workers=2)


def test_a_timeout_must_be_a_time(folder):
    for timeout in (0, -1, math.nan):
        with pytest.raises(PHFError, match=r"timeout .* must be above 0"):
            annotate(Corpus.open("corpus"), "faulty:Model", "lines", timeout=timeout)


def test_wait_takes_its_turn(folder):
    corpus = Corpus.open("corpus")
    annotation = annotate(corpus, "faulty:Model", "lines", workers=1)
    lock = lock_folder(annotation.path, "writing")
    lock.__enter__()
    with pytest.raises(PHFError, match="another process is writing"):
        annotate(corpus, "faulty:Model", "lines", workers=1)
    release = threading.Timer(0.3, lock.__exit__, (None, None, None))
    release.start()
    begin = time.monotonic()
    annotate(corpus, "faulty:Model", "lines", workers=1, wait=True)
    assert time.monotonic() - begin > 0.2
    release.join()


def test_odd_documents(folder):
    odd = ["\0", "a\0b\n\0\n", "😀🏳️‍🌈👩‍👩‍👧", "\ufeff\u2028\x85\x1c", " ", "\r\r\n\x0c"]
    rows = [json.dumps({"text": text}) for text in [*odd, "", "\ud800", "x\udfff"]]
    (folder / "odd.jsonl").write_text("\n".join(rows) + "\n")
    corpus = build_corpus(["odd.jsonl"], "odd", bytes_per_group=500)
    assert corpus.manifest["sources"][0]["bad_row_reasons"] == {"text is empty": 1, "lone surrogate": 2}
    assert [document.text for document in corpus.iterate_documents()] == odd
    for kind in ("lines", "sentences", "paragraphs", "document"):
        scores, num_segments = load_scores(corpus, annotate(corpus, "pii", kind, workers=1))
        assert len(num_segments) == len(odd)
        assert scores.tolist() == [0.0] * int(num_segments.sum())


def test_a_text_on_which_the_sentence_splitter_crashes_is_unscored_and_counted(folder, monkeypatch):
    monkeypatch.setattr(segment, "_WIDE_SPACES", re.compile("(?!)"))  # then sentencex panics on the second
    texts = ["One. Two.", "D\x85.", "Three."]
    (folder / "panic.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    annotation = annotate(build_corpus(["panic.jsonl"], "panic"), "pii", "sentences", workers=1)
    scores, num_segments = load_scores(annotation.corpus, annotation, "drop")
    assert num_segments.tolist() == [2, 1, 1]
    assert np.isnan(scores).tolist() == [False, False, True, False]
    assert annotation.count_unscored() == {"the sentence splitter crashed": 1}
    with pytest.raises(PHFError, match=r"the sentence splitter crashed.*data\.missing=drop"):
        load_scores(annotation.corpus, annotation)


def test_one_document_of_50_megabytes(folder):
    sentence = "The quick (brown) fox jumps over x; the lazy dog sleeps. Then, ü, it wakes up again!\n\n"
    (folder / "big.jsonl").write_text(json.dumps({"text": sentence * (50_000_000 // len(sentence))}) + "\n")
    corpus = build_corpus(["big.jsonl"], "big", bytes_per_group=500)
    assert corpus.shards[0].num_bytes > 50_000_000
    scores, num_segments = load_scores(corpus, annotate(corpus, "faulty:Model", "document", workers=1))
    assert num_segments.tolist() == [1]
    assert scores.tolist() == [np.float32(sentence.count("x") / len(sentence))]


def test_very_many_short_documents(folder):
    num_documents = 200_000
    (folder / "short.jsonl").write_text("".join(f'{{"text": "x{n}"}}\n' for n in range(num_documents)))
    corpus = build_corpus(["short.jsonl"], "short")
    annotation = annotate(corpus, "faulty:share_of_x", "sentences", workers=1)
    assert annotation.num_scored_now == num_documents
    scores, _ = load_scores(corpus, annotation)
    assert np.isclose(scores[::50_000], [1 / len(f"x{n}") for n in range(0, num_documents, 50_000)]).all()


def test_what_a_shard_has_scored_is_kept_when_its_judge_fails(folder, monkeypatch):
    rows = [f"<{number}> x\n{'y' * (number % 90)}" for number in range(60)]
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    corpus = build_corpus(["b.jsonl"], "one-shard", bytes_per_shard=10**6, bytes_per_group=500)
    assert len(corpus.shards) == 1
    expected = read_bytes((whole := annotate(corpus, "faulty:Model", "lines", workers=1)).path)
    whole.path.rename(folder / "undisturbed")
    monkeypatch.setenv("FAIL_IN", "40")
    monkeypatch.setenv("FAIL_BY", "unknown way")
    sys.modules["faulty"].fail = lambda how: 1 / 0
    with pytest.raises(PHFError, match="fails on document"):
        annotate(corpus, "faulty:Model", "lines", workers=1)
    assert [path.name for path in (whole.path / "parts").iterdir()] == ["00000-000000.parquet"]
    assert Annotation.list(corpus) == []
    monkeypatch.delenv("FAIL_IN")
    again = annotate(corpus, "faulty:Model", "lines", workers=1)
    assert 0 < again.num_scored_now < whole.num_scored_now, "what was scored is not scored again"
    assert read_bytes(again.path) == expected
    assert not (again.path / "parts").exists()


def test_parts_are_written_by_time_and_refused_for_other_inputs(folder):
    corpus = Corpus.open("corpus")
    scorer = Scorer(corpus, "faulty:Model", "lines")
    scored = [scorer.score(turn) for turn in list_turns(corpus, 0)]
    assert len(scored) > 1
    out = folder / "annotation"
    keeping = ShardParts(out, 0, "key", seconds=0).keep(iter(scored))
    next(keeping), next(keeping)
    names = ["00000-000000.parquet", "00000-000001.parquet"]
    assert sorted(path.name for path in (out / "parts").iterdir()) == names, "a killed process leaves these"
    found = ShardParts(out, 0, "key").scored
    assert [one.reasons for one in found] == [one.reasons for one in scored[:2]]
    assert all(one.table.equals(other.table) for one, other in zip(found, scored, strict=False))
    (out / "parts" / names[0]).write_bytes(b"damaged")
    assert ShardParts(out, 0, "key").scored == [], "a part whose beginning is gone is of no use"
    next(ShardParts(out, 0, "key", seconds=0).keep(iter(scored)))
    assert ShardParts(out, 0, "another judge").scored == []
    assert list((out / "parts").iterdir()) == []


def test_sigterm_says_how_to_go_on_and_loses_nothing(folder):
    rows = [f"<{number}> x\n{'y' * (number % 90)}" for number in range(60)]
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    build_corpus(["b.jsonl"], "one-shard", bytes_per_shard=10**6, bytes_per_group=300)
    command = ["annotate", "one-shard", "-r", "faulty:Model", "-s", "lines", "--workers", "1"]
    process = start_command(*command, has_children=True, SECONDS_PER_DOCUMENT="0.05")
    deadline = time.monotonic() + 60
    while "annotating documents" not in process.read_errors():
        assert process.is_running, process.read_errors()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, errors = process.finish()
    assert code == 128 + signal.SIGTERM
    assert "the same command goes on from here" in errors
    assert list(folder.glob("one-shard/annotations/*/parts/*.parquet"))


def test_one_worker_that_crashes_is_one_line_and_the_rest_is_kept(folder, monkeypatch):
    monkeypatch.setenv("FAIL_IN", "200")
    monkeypatch.setenv("FAIL_BY", "crash")
    command = ["annotate", "corpus", "-r", "faulty:Model", "-s", "lines", "--workers", "1"]
    with pytest.raises(
        PHFError, match=r"or crashed in reward model faulty at documents? a\.jsonl:\d+.*to go on"
    ):
        cli.app(command, standalone_mode=False)
    (path,) = (folder / "corpus" / "annotations").glob("*")
    assert 0 < count_entries(path) < len(Corpus.open("corpus").shards), "what was done is kept"
    monkeypatch.delenv("FAIL_IN")
    again = annotate(Corpus.open("corpus"), "faulty:Model", "lines", workers=1)
    assert 0 < again.num_scored_now < NUM_DOCUMENTS * 3


def test_a_process_that_a_model_forks_may_end_as_it_likes(folder):
    (folder / "forking.py").write_text(
        "import os\ndef score(texts):\n    if not (child := os.fork()):\n        os._exit(7)\n"
        "    return [float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))] * len(texts)\n"
    )
    assert score_samples(load_reward_model("forking:score"), ["a"]) == [7.0]
    assert os._exit.__module__ == "posix"


@pytest.mark.parametrize("how", ["sys.exit(0)", "raise Stop", "exit()", "os._exit(0)"])
def test_a_model_that_ends_the_program_is_an_error_that_names_the_document(folder, how):
    code = "import os, sys\nclass Stop(KeyboardInterrupt):\n    pass\ndef leave(texts):\n    if '<200>' in ''.join(texts):\n        "
    (folder / "leaving.py").write_text(f"{code}{how}\n    return [0.0] * len(texts)\n")
    message = r"fails on document a\.jsonl:201: reward model leaving\.leave asked to end the program"
    try:
        with pytest.raises(PHFError, match=message):
            annotate(Corpus.open("corpus"), "leaving:leave", "lines", workers=1)
    finally:
        sys.modules.pop("leaving", None)
    (path,) = (folder / "corpus" / "annotations").glob("*")
    assert count_entries(path) > 0, "what was done is kept"


def test_a_module_that_ends_the_program_on_import_is_an_error(folder):
    (folder / "script.py").write_text(
        "import sys\ndef score(texts):\n    return [0.0] * len(texts)\nsys.exit(0)\n"
    )
    with pytest.raises(PHFError, match=r"module script asked to end the program \(SystemExit\(0\)\)"):
        annotate(Corpus.open("corpus"), "script:score", "lines", workers=1)
