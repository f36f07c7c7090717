"""Annotations: the same bytes however the work is done, joins that fail closed, no crash that scores 0."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phf.annotate import annotation as annotation_module
from phf.annotate import scorer as scorer_module
from phf.annotate.annotate import Annotation, annotate, load_scores
from phf.annotate.annotation import ANNOTATION_SCHEMA
from phf.corpus.segment import hash_segment_ends, segment_ends
from phf.corpus.store import Corpus, build_corpus, read_manifest, write_manifest
from phf.errors import PHFError
from phf.files import hash_file
from phf.folders import lock_folder
from phf.records import Identity
from phf.reward_models import SegmentRewardModel, Unscored, load_reward_model, score_documents
from phf.reward_models.scoring import score_segments


class Fake:
    """Scores a segment by its share of the letter x; what it does with a text can be changed."""

    unit = "items per character"

    def __init__(self, version="1", change=lambda text, scores: scores):
        self.identity = Identity("fake", version)
        self.change = change
        self.num_segments = 0

    def score(self, document, ends):
        starts = [0, *ends]
        self.num_segments += len(ends)
        scores = [
            document[start:end].count("x") / (end - start) for start, end in zip(starts, ends, strict=False)
        ]
        return self.change(document, scores)


@pytest.fixture
def corpus(tmp_path):
    """200 documents of 1 to 5 lines, with non-ASCII text, in several shards of several groups."""
    return make_corpus(tmp_path)


def make_corpus(folder, last="the last"):
    texts = [
        "\n".join(f"mail {number}@b.org ü😀 {'x' * number}" for _ in range(number % 5 + 1))
        for number in range(200)
    ]
    source = folder / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, last]))
    return build_corpus([str(source)], folder / "corpus", bytes_per_shard=10_000, bytes_per_group=1000)


@pytest.fixture
def use(monkeypatch):
    """Returns a function that makes a fake the reward model that every name loads."""

    def use_model(model):
        monkeypatch.setattr(scorer_module, "load_reward_model", lambda spec: model)
        monkeypatch.setattr(annotation_module, "load_reward_model", lambda spec: model)
        return model

    return use_model


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x01
    path.write_bytes(data)


def test_scores_are_those_of_the_model(corpus):
    annotation = annotate(corpus, "pii", "lines", workers=1)
    model = load_reward_model("pii")
    expected, counts = [], []
    for document in corpus.iterate_documents():
        ends = segment_ends(document.text, "lines")
        expected += model.score(document.text, ends)
        counts.append(len(ends))
    scores, num_segments = load_scores(corpus, annotation)
    assert scores.dtype == np.float32
    assert scores.tolist() == np.array(expected, np.float32).tolist()
    assert num_segments.tolist() == counts
    assert (scores > 0).mean() > 0.9
    assert annotation.num_scored_now == len(scores)
    assert annotation.identity == model.identity
    assert annotation.slug.startswith("pii@")


def test_join_gives_ends_of_each_document(corpus, use):
    use(Fake())
    annotation = annotate(corpus, "fake", "lines", workers=1)
    documents = corpus.iterate_documents()
    hashes = []
    for index, entry in enumerate(annotation.manifest["shards"]):
        num_segments, ends, scores = annotation.join_shard(index)
        stops = np.cumsum(num_segments)
        for start, stop, document in zip(stops - num_segments, stops, documents, strict=False):
            assert ends[start:stop].tolist() == segment_ends(document.text, "lines")
        assert len(ends) == len(scores) == entry["num_segments"]
        hashes.append(hash_segment_ends(num_segments, ends))
    assert [entry["segment_ends_hash"] for entry in annotation.manifest["shards"]] == hashes


def test_bytes_do_not_depend_on_workers(corpus, tmp_path):
    assert len(corpus.shards) > 2
    results = []
    for workers in (1, 2, 3):
        annotation = annotate(corpus, "pii", "sentences", workers=workers)
        results.append(read_bytes(annotation.path))
        annotation.path.rename(tmp_path / f"with {workers}")
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == len(corpus.shards) + 1


def test_a_finished_annotation_is_not_scored_again(corpus, use):
    model = use(Fake())
    first = annotate(corpus, "fake", "lines", workers=1)
    assert model.num_segments == first.num_scored_now > 0
    before = read_bytes(first.path)
    again = annotate(corpus, "fake", "lines", workers=1)
    assert again.num_scored_now == 0
    assert model.num_segments == first.num_scored_now
    assert read_bytes(again.path) == before
    # Only what is damaged or missing is scored once more.
    flip_byte(first.path / "00001.parquet", 100)
    (first.path / "00002.parquet").unlink()
    mended = annotate(corpus, "fake", "lines", workers=1, verify=True)
    entries = first.manifest["shards"]
    assert mended.num_scored_now == entries[1]["num_segments"] + entries[2]["num_segments"]
    assert read_bytes(mended.path) == before


def test_identity_and_segmentation_make_the_id(corpus, use):
    use(Fake("1"))
    lines, document = (
        annotate(corpus, "fake", "lines", workers=1),
        annotate(corpus, "fake", "document", workers=1),
    )
    use(Fake("2"))
    newer = annotate(corpus, "fake", "lines", workers=1)
    assert len({lines.slug, document.slug, newer.slug}) == 3
    assert lines.segment_ends_hash == newer.segment_ends_hash != document.segment_ends_hash
    assert {annotation.slug for annotation in Annotation.list(corpus)} == {
        lines.slug,
        document.slug,
        newer.slug,
    }
    assert Annotation.open(corpus, "fake", "document").slug == document.slug
    assert Annotation.open(corpus, lines.slug, "lines").slug == lines.slug
    assert Annotation.open(corpus, "fake", "lines").slug == newer.slug  # today's
    use(Fake("3"))
    with pytest.raises(PHFError, match="2 annotations by other versions of fake; name one of"):
        Annotation.open(corpus, "fake", "lines")
    with pytest.raises(PHFError, match=r"no annotation by pep8 on lines \(it has fake@.*phf annotate"):
        Annotation.open(corpus, "pep8", "lines")


def test_unscored_segments_are_nan_and_counted(corpus, use):
    def change(text, scores):
        return [Unscored("too long") if "xxx" in text else math.nan, *scores[1:]]

    use(Fake(change=change))
    annotation = annotate(corpus, "fake", "lines", workers=1)
    reasons = {}
    for entry in annotation.manifest["shards"]:
        assert entry["num_unscored"] == sum(entry["reasons"].values())
        for reason, count in entry["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    assert reasons == {"no reason given": 4, "too long": 197}
    with pytest.raises(
        PHFError, match=r"00000\.parquet has no score for \d+ of \d+ segments.*data\.missing=drop"
    ):
        load_scores(corpus, annotation)
    scores, num_segments = load_scores(corpus, annotation, "drop")
    assert np.isnan(scores).sum() == 201
    assert np.isnan(scores[np.cumsum(num_segments) - num_segments]).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda scores: scores[:-1], "scores for"),
        (lambda scores: [*scores, 0.0], "scores for"),
        (lambda scores: [math.inf, *scores[1:]], "returned the score inf"),
        (lambda scores: [1e300, *scores[1:]], "returned the score 1e.300"),
        (lambda scores: [*scores[1:], -1e38], "returned the score -1e.38"),
        (lambda scores: [None, *scores[1:]], "TypeError"),
        (lambda scores: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_model_that_fails_is_an_error_that_names_the_document(corpus, use, tmp_path, change, complaint):
    use(Fake(change=lambda text, scores: change(scores) if "mail 77@" in text else scores))
    with pytest.raises(PHFError, match=rf"reward model fake fails on document \S*a\.jsonl:78: .*{complaint}"):
        annotate(corpus, "fake", "lines", workers=1)
    with pytest.raises(PHFError, match="is not finished"):
        Annotation.open(corpus, "fake", "lines")


class Letters(SegmentRewardModel):
    """The model that says of a text what a test tells it to."""

    identity = Identity("letters", "1")
    unit = "probability"

    def __init__(self, scores):
        self.scores = scores

    def score_texts(self, texts):
        return self.scores(texts)


def test_segments_are_scored_as_documents_are():
    texts = ["One. Two a@b.org.", "Three? Shit!", "", "x"]
    ends = [segment_ends(text, "sentences") for text in texts]

    def some(segments):
        return [Unscored("has T") if "T" in segment else len(segment) / 7 for segment in segments]

    for model in (load_reward_model("pii"), load_reward_model("toxicity-svm"), Letters(some), Fake()):
        documents = score_documents(model, list(zip(texts, ends, strict=True)))
        scores, unscored = score_segments(model, texts, ends)
        expected = [score for document in documents for score in document]
        np.testing.assert_array_equal(scores, np.array(expected, np.float32))
        assert len(unscored) == np.isnan(expected).sum()
        assert {score.reason for score in unscored} <= {"has T"}
    assert len(score_segments(Letters(some), texts, ends)[1]) == 2
    assert score_segments(Letters(some), [], [])[0].shape == (0,)


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        (lambda texts: [0.0] * (len(texts) - 1), "returned 2 scores for 3 segments"),
        (lambda texts: np.zeros((len(texts), 1)), "scores for 3 segments"),
        (lambda texts: np.full(len(texts), np.inf), "returned the score inf"),
        (lambda texts: [-1e39] * len(texts), "returned the score -1e.39"),
        (lambda texts: np.full(len(texts), 1e38, np.float32), "returned the score 1e.38"),
        (lambda texts: [None] * len(texts), "must be real number, not NoneType"),
        (lambda texts: ["0.5"] * len(texts), "must be real number, not str"),
    ],
)
def test_wrong_answers_for_segments_are_refused(scores, complaint):
    with pytest.raises((PHFError, TypeError), match=complaint):
        score_segments(Letters(scores), ["ab", "c"], [[1, 2], [1]])


def test_a_batch_of_the_wrong_length_is_refused(corpus, use):
    model = use(Fake())
    model.score_batch = lambda documents: [model.score(*document) for document in documents[:9]]
    with pytest.raises(PHFError, match=r"fails on a batch from document \S*:1 to \S*, though on none"):
        annotate(corpus, "fake", "document", workers=1)


def forge(annotation, change, index=1):
    """Rewrite a shard, and the manifest so that every hash is right: only the join can notice."""
    path = annotation.path / annotation.manifest["shards"][index]["file"]
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    manifest = read_manifest(annotation.path / "manifest.json", "")
    manifest["shards"][index]["sha256"] = hash_file(path)
    write_manifest(annotation.path / "manifest.json", manifest)


def edit(table, column, change):
    values = table[column].to_pylist()
    change(values)
    position = table.column_names.index(column)
    return table.set_column(position, column, pa.array(values, ANNOTATION_SCHEMA.field(column).type))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda table: table.slice(0, len(table) - 1), "has scores of"),
        (lambda table: table.take([1, 0, *range(2, len(table))]), "is out of order at document"),
        (lambda t: edit(t, "text_hash", lambda v: v.__setitem__(3, v[2])), "is of another text at document"),
        (lambda t: edit(t, "scores", lambda v: v[3].pop()), "does not have one score per segment"),
        (
            lambda t: edit(t, "scores", lambda v: (v[3].pop(), v[2].append(0.0))),
            "does not have one score per",
        ),
        (
            lambda t: edit(t, "scores", lambda v: v.__setitem__(3, None)),
            "does not have one score per segment",
        ),
        (lambda t: edit(t, "scores", lambda v: v[3].__setitem__(0, 1e38)), "has the score 1e.38"),
        (lambda t: edit(t, "scores", lambda v: v[3].__setitem__(0, -math.inf)), "has the score -inf"),
        (lambda t: edit(t, "ends", lambda v: v[3].__setitem__(-1, v[3][-1] - 1)), "do not make up the text"),
        (lambda t: edit(t, "ends", lambda v: v[4].__setitem__(1, v[4][0])), "do not make up the text"),
        (lambda t: edit(t, "ends", lambda v: v[4].__setitem__(0, 0)), "do not make up the text"),
        (
            lambda t: edit(t, "ends", lambda v: v[4].__setitem__(0, v[4][0] + 1)),
            "are not those that were scored",
        ),
        (
            lambda t: edit(edit(t, "ends", lambda v: v[4].clear()), "scores", lambda v: v[4].clear()),
            "do not make up the text",
        ),
        (lambda table: table.rename_columns(["id", "text_hash", "ends", "score"]), "has other columns"),
    ],
)
def test_the_join_fails_closed(corpus, use, change, complaint):
    use(Fake())
    annotation = annotate(corpus, "fake", "lines", workers=1)
    forge(annotation, change)
    with pytest.raises(PHFError, match=rf"00001\.parquet .*{complaint}.*phf annotate"):
        load_scores(corpus, Annotation(corpus, annotation.path))


def test_an_annotation_of_another_corpus_is_refused(corpus, use, tmp_path):
    use(Fake())
    annotation = annotate(corpus, "fake", "lines", workers=1)
    (tmp_path / "b").mkdir()
    other = make_corpus(tmp_path / "b", last="another last")
    with pytest.raises(PHFError, match="belongs to another corpus"):
        load_scores(other, annotation)
    (other.path / "annotations").mkdir()
    moved = other.path / "annotations" / annotation.slug
    annotation.path.rename(moved)
    with pytest.raises(PHFError, match="parquet is stale: it was made from another documents/"):
        load_scores(other, Annotation(other, moved))
    mended = annotate(other, "fake", "lines", workers=1)  # scores again what is stale
    load_scores(other, mended)
    assert mended.num_scored_now > 0


def test_a_flipped_byte_is_refused_by_name(corpus, use):
    use(Fake())
    annotation = annotate(corpus, "fake", "lines", workers=1)
    shard, manifest = annotation.path / "00001.parquet", annotation.path / "manifest.json"
    for position in range(0, shard.stat().st_size, 211):
        flip_byte(shard, position)
        with pytest.raises(PHFError, match=r"00001\.parquet is damaged"):
            load_scores(corpus, Annotation(corpus, annotation.path))
        flip_byte(shard, position)
    for position in range(0, manifest.stat().st_size, 7):
        flip_byte(manifest, position)
        with pytest.raises(PHFError, match=r"manifest\.json is (damaged|not valid JSON)"):
            Annotation(corpus, annotation.path)
        flip_byte(manifest, position)
    load_scores(corpus, Annotation(corpus, annotation.path))
    flip_byte(corpus.path / corpus.shards[0].file, 500)
    with pytest.raises(PHFError, match=r"documents/00000\.parquet is damaged"):
        load_scores(Corpus.open(corpus.path), Annotation(Corpus.open(corpus.path), annotation.path))


def test_two_at_once_are_refused(corpus, use):
    use(Fake())
    annotation = annotate(corpus, "fake", "lines", workers=1)
    with lock_folder(annotation.path, "writing"), pytest.raises(PHFError, match="another process is writing"):
        annotate(corpus, "fake", "lines", workers=1)
    with pytest.raises(PHFError, match="workers 0 must be at least 1"):
        annotate(corpus, "fake", "lines", workers=0)


def test_progress_reaches_the_total(corpus, use):
    use(Fake())
    calls = []
    annotate(corpus, "fake", "lines", workers=1, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("annotating documents", 201, 201)
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})


SLOW = '''
import os, sys, time
from phf.annotate import scorer
from phf.annotate.annotate import annotate
from phf.corpus.store import Corpus
from phf.records import Identity

class Slow:
    """Deterministic. In the document that STOP names it waits for ever; in that of DIE it kills its worker."""
    identity = Identity("slow", "1")
    unit = "items per character"
    def score(self, document, ends):
        if os.environ.get("STOP", "nothing") in document:
            time.sleep(600)
        if os.environ.get("DIE", "nothing") in document:
            os.kill(os.getpid(), 9)
        return [len(document) / 1000 + end for end in ends]

scorer.load_reward_model = lambda spec: Slow()

if __name__ == "__main__":
    print(annotate(Corpus.open(sys.argv[1]), "slow", "lines", workers=2).num_scored_now)
'''


def start_slow(script, corpus, **environment):
    return subprocess.Popen(
        [sys.executable, script, corpus.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish_slow(script, corpus):
    """Run to the end; gives the number of segments scored."""
    process = start_slow(script, corpus)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    return int(output)


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in a minute")


def count_entries(corpus):
    """Finished shards of the slow annotation, 0 before it has begun."""
    paths = list((corpus.path / "annotations").glob("slow@*/manifest.json"))
    return sum(entry is not None for entry in json.loads(paths[0].read_text())["shards"]) if paths else 0


def test_killed_and_rerun_gives_the_same_bytes(corpus, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    finish_slow(script, corpus)
    annotations = corpus.path / "annotations"
    (undisturbed,) = annotations.iterdir()
    expected = read_bytes(undisturbed)
    undisturbed.rename(tmp_path / "undisturbed")

    for name, victim in (("mail 70@", "group"), ("mail 150@", "parent")):
        shard = next(
            index
            for index in range(len(corpus.shards))
            if any(name in text for text in corpus.read_shard(index, ["text"])["text"].to_pylist())
        )
        process = start_slow(script, corpus, STOP=name)
        wait_for(lambda shard=shard: count_entries(corpus) == shard)
        workers = find_children(process.pid)
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGKILL) if victim == "group" else os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        wait_for(lambda workers=workers: not any(is_running(worker) for worker in workers))
        assert 0 < count_entries(corpus) == shard < len(corpus.shards), (
            "the work was finished before it was killed"
        )
    num_segments = sum(entry["num_segments"] for entry in json.loads(expected["manifest.json"])["shards"])
    assert 0 < finish_slow(script, corpus) < num_segments
    (finished,) = annotations.iterdir()
    assert read_bytes(finished) == expected


def find_children(parent):
    """Process ids of the children of a process (Linux)."""
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_is_one_line(corpus, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = start_slow(script, corpus, DIE="mail 150@")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "PHFError: a worker process was killed" in errors.decode().splitlines()[-1]
    finish_slow(script, corpus)
