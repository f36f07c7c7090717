"""`phf reward distill`: the student agrees with its teacher on documents it was not trained on."""

import json

import numpy as np
import pytest

from phf import cli
from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation
from phf.corpus.store import Corpus, build_corpus
from phf.curate.sample import sample_documents
from phf.errors import PHFError
from phf.records import Identity
from phf.report.reward_page import write_reward_page
from phf.reward_models import SegmentRewardModel, load_reward_model
from phf.reward_training.distill import ScoredDocument, distill_reward_model


@pytest.fixture(autouse=True)
def time_briefly(monkeypatch):
    monkeypatch.setattr("phf.reward_training.distill._SECONDS", 0.01)


WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]


class WordTeacher(SegmentRewardModel):
    """Probability 0.8 where a text says golf, else 0.1; unscored where it says india."""

    identity = Identity("word-teacher", "1")
    unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.5
    num_scored = 0

    def score_texts(self, texts):
        self.num_scored += len(texts)
        return [float("nan") if "india" in text else 0.8 if "golf" in text else 0.1 for text in texts]


class CountTeacher(WordTeacher):
    """Items per character."""

    identity = Identity("count-teacher", "1")
    unit = "items per character"
    hit_threshold = 0.0

    def score_texts(self, texts):
        return [text.count("golf") / len(text) for text in texts]


def make_documents(num: int = 700, seed: int = 0) -> list[ScoredDocument]:
    rng = np.random.default_rng(seed)
    documents = []
    for place in range(num):
        lines = [" ".join(rng.choice(WORDS, size=4)) + f" {place}.{line}\n" for line in range(3)]
        ends = np.cumsum([len(line) for line in lines]).tolist()
        documents.append(ScoredDocument(f"key{place}", "".join(lines), ends, None))
    return documents


def test_the_student_learns_the_teachers_probability(tmp_path):
    teacher = WordTeacher()
    evaluation = distill_reward_model(
        make_documents(), teacher, tmp_path / "student", seed=0, segments="lines"
    )
    held_out, sample = evaluation.results, evaluation.teaching
    assert held_out.find("auroc").mean > 0.99
    assert held_out.find("spearman").mean > 0.7
    assert held_out.find("segments_changed").mean < 0.01
    assert held_out.find("documents_changed").mean < 0.05
    assert sample.num_unscored + sample.num_train + sample.num_held_out == 2100
    assert 0 < sample.num_unscored < 1000
    assert sample.num_known == 0
    student = load_reward_model(str(tmp_path / "student"))
    assert student.score_texts(["golf alpha delta echo", "echo alpha delta bravo"]) == pytest.approx(
        [0.8, 0.1], abs=0.06
    )
    assert student.identity.parameters["trained_on"]["teacher"] == teacher.identity.to_json()
    assert write_reward_page(tmp_path / "student").is_file()


def test_of_a_teacher_that_counts_it_learns_the_probability_of_a_hit(tmp_path):
    evaluation = distill_reward_model(
        make_documents(), CountTeacher(), tmp_path / "student", seed=0, segments="lines"
    )
    assert evaluation.teaching.target == "score above 0"
    assert evaluation.teaching.student_threshold == 0.5
    assert evaluation.results.find("auroc").mean > 0.99
    assert evaluation.results.find("segments_changed").mean < 0.02


def test_another_threshold_moves_both_sides(tmp_path):
    evaluation = distill_reward_model(
        make_documents(), CountTeacher(), tmp_path / "student", seed=0, segments="lines", threshold=0.05
    )
    assert evaluation.teaching.threshold == 0.05
    share = np.mean(
        [
            CountTeacher().score_texts([line])[0] > 0.05
            for d in make_documents()
            for line in d.text.splitlines(True)
        ]
    )
    assert evaluation.teaching.share_bad == pytest.approx(share, abs=0.05)
    assert load_reward_model(str(tmp_path / "student")).hit_threshold == 0.5
    evaluation = distill_reward_model(
        make_documents(), WordTeacher(), tmp_path / "other", seed=0, segments="lines", threshold=0.3
    )
    assert load_reward_model(str(tmp_path / "other")).hit_threshold == 0.3


def test_documents_that_are_held_out_are_not_trained_on(tmp_path):
    """Scores of held-out documents are turned round: the student must not have seen them."""
    from phf.reward_training.split import HELD_OUT, hash_fraction

    documents = make_documents()
    teacher = WordTeacher()
    turned = []
    for document in documents:
        scores = list(teacher.score(document.text, document.ends))
        if hash_fraction(document.key, 0) < HELD_OUT:
            scores = [1 - score for score in scores]
        turned.append(ScoredDocument(document.key, document.text, document.ends, scores))
    evaluation = distill_reward_model(turned, teacher, tmp_path / "student", seed=0, segments="lines")
    assert evaluation.results.find("auroc").mean < 0.01


def test_segments_that_are_known_from_training_are_left_out(tmp_path):
    documents = []
    for document in make_documents():
        text = document.text + "GOLF  alpha"
        documents.append(ScoredDocument(document.key, text, [*document.ends, len(text)], None))
    evaluation = distill_reward_model(
        documents, WordTeacher(), tmp_path / "student", seed=0, segments="lines"
    )
    sample = evaluation.teaching
    assert sample.num_known >= sample.num_held_out_documents - 1
    assert evaluation.results.find("auroc").count == sample.num_held_out - sample.num_known


def test_speed_and_cost_hang_together(tmp_path):
    evaluation = distill_reward_model(
        make_documents(), WordTeacher(), tmp_path / "student", seed=0, segments="lines", num_parameters=10e6
    )
    speed, cost = evaluation.teaching.speed, evaluation.teaching.cost
    assert speed.ratio == pytest.approx(speed.student_segments / speed.teacher_segments)
    assert cost.training == 6e7
    for measured, num_bytes in ((cost.student, speed.student_bytes), (cost.teacher, speed.teacher_bytes)):
        assert measured == pytest.approx(4 / num_bytes * cost.machine_flops_per_cpu_second)
    assert 10 < cost.counted < 10_000


def test_too_little_to_learn_from_is_refused(tmp_path):
    with pytest.raises(PHFError, match="scored segments to train on, at least 1,000 are needed"):
        distill_reward_model(make_documents(100), WordTeacher(), tmp_path / "a", seed=0, segments="lines")
    with pytest.raises(
        PHFError, match=r"word-teacher scores 0 of the .* segments to train on above 0.95; at least 20"
    ):
        distill_reward_model(
            make_documents(), WordTeacher(), tmp_path / "a", seed=0, segments="lines", threshold=0.95
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rude = ["you stupid idiot", "shut up you bastard", "go to hell moron"]
    kind = ["what a fine day", "the cat sat down", "she reads a book"]
    with (folder / "rows.jsonl").open("w") as file:
        for place in range(900):
            words = [
                f"{rng.choice(rude if rng.random() < 0.3 else kind)} {place} {line}" for line in range(2)
            ]
            file.write(json.dumps({"text": "\n".join(words)}) + "\n")
    return build_corpus([str(folder / "rows.jsonl")], folder / "corpus", bytes_per_shard=20_000)


def test_a_sample_of_a_corpus_with_and_without_an_annotation(corpus):
    identity = load_reward_model("toxicity-svm").identity
    plain, used = sample_documents(corpus, "lines", 600, seed=0, scored_by=identity)
    assert used is None
    assert 480 < sum(len(document.ends) for document in plain) < 720
    annotation = annotate(corpus, "toxicity-svm", "lines", workers=1)
    scored, used = sample_documents(corpus, "lines", 600, seed=0, scored_by=identity)
    assert used == annotation.path
    assert [document.key for document in scored] == [document.key for document in plain]
    model = load_reward_model("toxicity-svm")
    for document in scored[::50]:
        assert document.scores == pytest.approx(list(model.score(document.text, document.ends)))
    other = sample_documents(corpus, "lines", 600, seed=1, scored_by=identity)[0]
    assert [document.key for document in other] != [document.key for document in scored]
    assert len(sample_documents(corpus, "lines", 10**6, seed=0, scored_by=identity)[0]) == 900


def test_distil_and_annotate_with_the_student(corpus, tmp_path, monkeypatch, capsys):
    student = tmp_path / "student"
    for arguments in (
        [
            "reward",
            "distill",
            "--teacher",
            "toxicity-svm",
            "--corpus",
            corpus.path,
            "-s",
            "lines",
            "-o",
            student,
        ],
        ["annotate", corpus.path, "-r", student, "-s", "lines", "--workers", 1],
    ):
        monkeypatch.setattr("sys.argv", ["phf", *map(str, arguments)])
        cli.main()
    out, err = capsys.readouterr()
    assert "of pretraining 124M, by time" in out
    assert f"teacher's scores: {corpus.path}/annotations/toxicity-svm@" in err
    annotation = Annotation.open(corpus, str(student), "lines")
    assert annotation.identity == load_reward_model(str(student)).identity


@pytest.mark.parametrize("size", ["big", "0M", "-1M", "1T", ""])
def test_a_model_size_that_is_none(size, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["phf", "reward", "distill", "-t", "pii", "-c", "x", "-o", str(tmp_path / "a"), "--model-size", size],
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert (
        f"model size '{size}' is no number of parameters; write it as 124M or 1.3B" in capsys.readouterr().err
    )
