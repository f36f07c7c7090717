"""Which segments are asked about, and in what order."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logit

from phf.annotate.annotate import annotate
from phf.corpus.duplicates import find_near_duplicates
from phf.corpus.segment import segment_ends
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.feedback import pool as pool_module
from phf.feedback.pool import Segment, read_pool
from phf.feedback.queue import MIN_JUDGEMENTS, Queue
from phf.reward_models import split_segments


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    names = ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"]
    rows = []
    for number in range(200):
        name, other = names[number % 8], names[number % 7]
        rude = f" You damn idiot number {number} with {other}!" if number % 5 == 0 else ""
        rows.append(
            {
                "text": f"The {number}th letter of {name} came. It was sent by {other} on day {number}.{rude} ***\n"
            }
        )
    rows += [rows[3] | {"text": rows[3]["text"].upper()}, {"text": "long " * 2000}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = build_corpus(
        [str(folder / "t.jsonl")], folder / "corpus", validation_fraction=0.2, bytes_per_shard=4000
    )
    assert len(corpus.shards) > 2
    return corpus


@pytest.fixture(scope="module")
def annotation(corpus):
    return annotate(corpus, "toxicity-svm", "sentences", workers=1)


def test_a_pool_is_of_training_segments_with_their_context_and_without_repeats(corpus):
    pool = read_pool(corpus, "sentences", seed=1)
    documents = {document.id: document for document in corpus.iterate_documents()}
    for segment in pool:
        place, kind = segment.id.rsplit("@", 1)
        document, index = place.rsplit("#", 1)
        text = documents[document].text
        assert split_segments(text, segment_ends(text, kind))[int(index)] == segment.text
        assert segment.before + segment.text + segment.after in text
        assert documents[document].split == "train"
        assert any(map(str.isalnum, segment.text))
        assert len(segment.text) <= pool_module.MAX_CHARACTERS
    assert not find_near_duplicates(segment.text for segment in pool).any()
    assert len(pool) > 100
    ids = [segment.id for segment in pool]
    assert ids == [segment.id for segment in read_pool(corpus, "sentences", seed=1)]
    assert ids != [segment.id for segment in read_pool(corpus, "sentences", seed=2)]
    assert ids != sorted(ids)


def test_a_judged_text_and_its_near_repeats_are_not_asked_again(corpus):
    first = read_pool(corpus, "sentences", seed=1)[0]
    again = read_pool(corpus, "sentences", seed=1, judged=[first.text.upper() + "\n"])
    assert first.id not in {segment.id for segment in again}
    everything = [segment.text for segment in read_pool(corpus, "sentences", seed=1)]
    with pytest.raises(PHFError, match="nothing left to judge"):
        read_pool(corpus, "sentences", seed=1, judged=everything)


def test_a_pool_takes_scores_and_ends_from_the_annotation(corpus, annotation):
    scored = read_pool(corpus, "sentences", seed=1, annotation=annotation)
    plain = read_pool(corpus, "sentences", seed=1)
    assert [segment.id for segment in scored] == [segment.id for segment in plain]
    means = [np.mean([s.score for s in scored if ("idiot" in s.text) == rude]) for rude in (False, True)]
    assert means[0] < 0.3 < 0.7 < means[1]
    worst = read_pool(corpus, "sentences", seed=1, annotation=annotation, worst=True, size=5)
    assert min(s.score for s in worst) >= sorted(s.score for s in scored)[-5]


POOL = [
    Segment(f"d#{n}@lines", f"text {n}", score=n / 100) for n in np.random.default_rng(0).permutation(100)
]

UNSCORED = [Segment(segment.id, segment.text) for segment in POOL]


def take_all(queue):
    return list(iter(queue.take, None))


def test_every_question_comes_once_and_orders_differ():
    orders = {
        order: [
            question[0].score for question in take_all(Queue(POOL, [], task="label", order=order, seed=0))
        ]
        for order in ("uncertain", "balanced", "random", "worst")
    }
    assert all(sorted(scores) == [n / 100 for n in range(100)] for scores in orders.values())
    assert orders["worst"] == sorted(orders["worst"], reverse=True)
    assert orders["random"] == [segment.score for segment in POOL]
    assert orders["balanced"] == orders["uncertain"], "until there is a model"
    assert [score > 0.5 for score in orders["balanced"]][:98] == [True, False] * 49
    assert orders["balanced"][:98:2] == [score for score in orders["random"] if score > 0.5][:49], "at random"
    high = take_all(Queue(POOL, [], task="label", order="balanced", seed=0, hit_threshold=0.9))
    assert [segment.score > 0.9 for (segment,) in high][:20] == [True, False] * 9 + [False] * 2
    pairs = take_all(Queue(POOL, [], task="pair", order="balanced", seed=0))[:40]
    assert [(a.score > 0.5) != (b.score > 0.5) for a, b in pairs] == [True, False] * 20
    assert take_all(Queue(UNSCORED, [], task="label", seed=0)) == [(segment,) for segment in UNSCORED]
    for order in ("worst", "balanced"):
        with pytest.raises(PHFError, match="needs scores"):
            Queue(UNSCORED, [], task="label", order=order, seed=0)


def test_a_question_put_back_is_asked_again():
    queue = Queue(POOL, [], task="label", order="random", seed=0)
    first, _ = queue.take(), queue.take()
    queue.put_back(first)
    assert queue.take() == first


@pytest.fixture
def model(monkeypatch):
    """A linear model whose score of 'text 37' is 0.37; remembers what it was fitted to."""
    fitted = []

    def fit(*data, seed, features):
        fitted.append(data)
        return SimpleNamespace(score_texts=lambda texts: [int(text.split()[1]) / 100 for text in texts])

    stub = SimpleNamespace(fit_linear=fit, fit_linear_pairs=fit)
    monkeypatch.setitem(sys.modules, "phf.reward_models.linear", stub)
    return fitted


def test_the_model_asks_what_it_is_least_sure_of_and_learns_every_ten(model):
    rows = []
    queue = Queue(UNSCORED, rows, task="label", seed=0)
    for number in range(MIN_JUDGEMENTS):
        assert queue.num_fitted == 0
        rows.append({"text": queue.take()[0].text, "label": number % 2})
    after = [int(queue.take()[0].text.split()[1]) / 100 for _ in range(10)]
    assert queue.num_fitted == len(rows) == MIN_JUDGEMENTS
    assert sorted(zip(*model[0], strict=True)) == sorted((row["text"], row["label"]) for row in rows)
    assert [abs(score - 0.5) for score in after] == sorted(abs(score - 0.5) for score in after)
    assert len(set(after) | {int(row["text"].split()[1]) / 100 for row in rows}) == 30, "none twice"
    rows += [{"text": f"text {n}", "label": 0} for n in range(9)]
    queue.take()
    assert len(model) == 1
    rows.append({"text": "text 9", "label": 0})
    queue.take()
    assert len(model) == 2


def test_with_scores_every_other_question_is_balanced(model):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    queue = Queue(POOL, rows, task="label", seed=0)
    scores = [queue.take()[0].score for _ in range(20)]
    assert max(abs(score - 0.5) for score in scores[0::2]) <= 0.1, "the model's"
    assert min(scores[1::2]) < 0.3 < 0.7 < max(scores[1::2]), "and random ones of either kind"


@pytest.mark.parametrize(("num_bad", "fits"), [(0, 0), (2, 0), (3, 1), (17, 1), (18, 0)])
def test_no_model_is_fitted_to_labels_of_one_kind(model, num_bad, fits):
    rows = [{"text": f"text {n}", "label": int(n < num_bad)} for n in range(20)]
    Queue(POOL, rows, task="label", seed=0).take()
    assert len(model) == fits


def test_a_high_rating_is_a_low_target(model):
    rows = [{"text": f"text {n}", "rating": 1 + n % 5} for n in range(20)]
    Queue(POOL, rows, task="rate", seed=0).take()
    targets = dict(zip(*model[0], strict=True))
    assert [targets[f"text {n}"] for n in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def measure_gap(first, second):
    return abs(np.diff(logit([first.score, second.score]))[0])


def test_pairs_are_random_then_close_and_none_is_judged_twice(model):
    rows = []
    queue = Queue(POOL, rows, task="pair", seed=0)
    for _ in range(MIN_JUDGEMENTS):
        first, second = queue.take()
        rows.append({"chosen": first.text, "rejected": second.text})
    first, second = queue.take()
    closest = measure_gap(first, second)
    assert sorted(zip(*model[0], strict=True)) == sorted((row["chosen"], row["rejected"]) for row in rows)
    judged = {frozenset((row["chosen"], row["rejected"])) for row in rows}
    later = take_all(Queue(POOL, rows, task="pair", order="random", seed=0))
    pairs = [frozenset(segment.text for segment in question) for question in later]
    texts = [text for pair in [*pairs, *judged] for text in pair]
    assert len(texts) == len(set(texts)) == len(POOL), "each text stands in one pair"
    assert closest == pytest.approx(min(measure_gap(a, b) for a, b in later))
    assert all(len(pair) == 2 for pair in pairs)
    assert not judged & set(pairs)
    assert any(a.score > b.score for a, b in later), "either may come first"
    assert any(a.score < b.score for a, b in later)
