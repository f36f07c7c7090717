"""A fast linear student of a slow reward model: trained on the teacher's scores, compared with it on documents held out.

Of a teacher whose score is a probability the student learns that probability. Of any other (violations or items per character)
it learns the probability of a hit, a score above the threshold: a linear model of n-grams cannot count.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.folders import create_folder
from phf.records import Estimate, Progress
from phf.results import Measure
from phf.reward_models.linear import LinearRewardModel, fit_linear
from phf.reward_models.llm.judge import list_judges
from phf.reward_models.ngrams import Features, read_batches
from phf.reward_models.protocol import FROM_0_TO_1, RewardModel, split_segments
from phf.reward_models.scoring import score_documents
from phf.reward_models.trained import is_trained_on
from phf.reward_training.check import check_reward_model
from phf.reward_training.evaluation import (
    ALPHA,
    AUROC,
    BAD_SEGMENTS_MISSED,
    CALIBRATION_ERROR,
    DOCUMENTS_CHANGED,
    OF_PEOPLE,
    SEGMENTS_CHANGED,
    SPEARMAN_OF_TEACHER,
    TEACHER_ANSWERS,
    TEACHER_MONEY,
    TEACHER_TOKENS,
    Cost,
    HeldOut,
    RewardEvaluation,
    SpeedComparison,
    Teaching,
    read_reward_evaluation,
    write_reward_evaluation,
)
from phf.reward_training.labels import Labels
from phf.reward_training.measures import (
    list_reliability,
    measure_alpha,
    measure_auroc,
    measure_calibration_error,
    measure_share,
    measure_spearman,
)
from phf.reward_training.split import HELD_OUT, hash_fraction, hash_text
from phf.reward_training.train import count_histogram, describe_linear

FEATURES = (Features((1,), ()), Features((1, 2), ()), Features((1,), (4,)), Features((1, 2), (3, 4, 5)))
"""Tried in this order, the quickest first."""
MIN_SEGMENTS, MIN_PER_SIDE = 1000, 20
"""Fewer segments, or fewer of them on either side of the teacher's threshold, are refused."""
BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of text per token of the language model, for the cost per token (GPT-2's vocabulary on English prose)."""
OPERATIONS_PER_NGRAM, OPERATIONS_PER_CHARACTER = 12, 10
"""Of integers, to hash; counted from the array operations in ngrams.py. A weight's product and sum are 2 more per n-gram."""
_DOCUMENTS_PER_BATCH = 1024
_MAX_TIMED_CHARACTERS = 300_000
_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document with the teacher's scores.

    Attributes:
        key: what decides whether it is held out, such as the hash of its text.
        ends: where its segments end, in code points.
        scores: one per segment, higher = worse, NaN = unscored; None: the teacher has still to score it.
    """

    key: str
    text: str
    ends: Sequence[int]
    scores: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class _Segments:
    """Segments with a score: N of them. `targets`: what the student learns, in [0, 1]; `documents`: whose they are."""

    texts: list[str]
    scores: npt.NDArray[np.float64]
    targets: npt.NDArray[np.float64]
    documents: npt.NDArray[np.int64]
    num_unscored: int


def distill_reward_model(
    documents: Sequence[ScoredDocument],
    teacher: RewardModel,
    out: Path,
    *,
    seed: int,
    segments: str,
    labels: Labels | None = None,
    threshold: float | None = None,
    num_parameters: float = 124e6,
    name: str | None = None,
    progress: Progress | None = None,
) -> RewardEvaluation:
    """Train a student, compare it with the teacher on a fifth of the documents, and write its folder. One that this has made
    before is returned as it is.

    Args:
        documents: a sample of a corpus; those without scores are scored by the teacher.
        out: the folder to make; `load_reward_model(str(out))` loads it.
        segments: the kind of segment, which is recorded.
        labels: what people said of some texts, to compare both with; the teacher scores these, too.
        threshold: a segment is bad above it; by default the teacher's own.
        num_parameters: of the language model whose pretraining the cost is compared with.
        name: of the student; by default the folder's.

    Returns:
        What `evaluation.json` holds.

    Raises:
        PHFError: too few segments, too few on one side of the threshold, or `out` holds something else.
    """
    if labels is not None and labels.kind == "pairs":
        raise PHFError(f"{labels.path} holds pairs; to compare scores with people give labels or ratings")
    labels_sha256 = "" if labels is None else labels.sha256
    threshold = teacher.hit_threshold if threshold is None else threshold
    learns_probability = teacher.unit in FROM_0_TO_1  # a share of the scale is learnt as one
    target = teacher.unit if learns_probability else f"score above {threshold:g}"
    name = name or out.resolve().name
    trained_on: dict[str, object] = {
        "teacher": teacher.identity.to_json(),
        "target": target,
        "sample": hash_text("".join(sorted(document.key for document in documents))),
        "segments": segments,
        "seed": seed,
    }
    if is_trained_on(out, name, trained_on):
        found = read_reward_evaluation(out).teaching
        asked = (threshold, num_parameters, labels_sha256)
        if found is not None and (found.threshold, found.cost.num_parameters, found.labels_sha256) == asked:
            return read_reward_evaluation(out)
    with create_folder(out, "training") as folder:
        scored = score_missing(documents, teacher, progress)
        chosen = [hash_fraction(document.key, seed) < HELD_OUT for document in scored]
        train, test = (
            _collect(
                [document for document, held in zip(scored, chosen, strict=True) if held == side],
                threshold,
                learns_probability,
            )
            for side in (False, True)
        )
        _check_enough(train, test, threshold, teacher)
        student = fit_linear(
            train.texts,
            train.targets.tolist(),
            seed=seed,
            name=name,
            features=FEATURES,
            trained_on=trained_on,
        )
        student_threshold = threshold if learns_probability else 0.5
        student.hit_threshold = student_threshold
        student.save(folder)
        speed = compare_speeds(
            [document for document, held in zip(scored, chosen, strict=True) if held], teacher, student
        )
        tested, documents_bad = _compare(student, teacher, train, test, threshold, student_threshold, seed)
        if labels is not None:
            people = _compare_with_people(student, teacher, labels, train, seed)
            tested = replace(tested, found=tested.found | people)
        evaluation = RewardEvaluation(
            reward_model=student.identity,
            seed=seed,
            measures=tested.measures,
            measurements=tested.measurements,
            histogram=tested.histogram,
            num_unscored=tested.num_unscored,
            linear=describe_linear(student, train.texts),
            check=check_reward_model(student),
            teaching=Teaching(
                teacher=teacher.identity,
                threshold=threshold,
                student_threshold=student_threshold,
                target=target,
                segments=segments,
                num_documents=len(scored),
                num_held_out_documents=sum(chosen),
                num_train=len(train.texts),
                num_held_out=len(test.texts),
                num_known=int(_find_known(train, test).sum()),
                share_bad=float((test.scores > threshold).mean()),
                num_unscored=train.num_unscored + test.num_unscored,
                documents_bad_to_teacher=documents_bad[0],
                documents_bad_to_student=documents_bad[1],
                speed=speed,
                cost=measure_cost(student, test.texts, speed, num_parameters),
                num_labels=0 if labels is None else len(labels.texts),
                labels_sha256=labels_sha256,
            ),
        )
        return write_reward_evaluation(folder, evaluation)


def score_missing(
    documents: Sequence[ScoredDocument], teacher: RewardModel, progress: Progress | None = None
) -> list[ScoredDocument]:
    """The documents, those without scores scored by the teacher."""
    missing = [(document.text, document.ends) for document in documents if document.scores is None]
    found: list[list[float]] = []
    for start in range(0, len(missing), _DOCUMENTS_PER_BATCH):
        found += score_documents(teacher, missing[start : start + _DOCUMENTS_PER_BATCH])
        if progress is not None:
            progress("teacher scores documents", len(found), len(missing))
    scores = iter(found)
    return [
        document
        if document.scores is not None
        else ScoredDocument(document.key, document.text, document.ends, next(scores))
        for document in documents
    ]


def _collect(documents: Sequence[ScoredDocument], threshold: float, learns_probability: bool) -> _Segments:
    texts = [segment for document in documents for segment in split_segments(document.text, document.ends)]
    scores = np.array([score for document in documents for score in document.scores or ()], np.float64)
    owners = np.repeat(np.arange(len(documents)), [len(document.ends) for document in documents])
    kept = ~np.isnan(scores)
    targets = np.clip(scores, 0, 1) if learns_probability else (scores > threshold).astype(np.float64)
    return _Segments(
        [texts[row] for row in np.flatnonzero(kept)],
        scores[kept],
        targets[kept],
        owners[kept],
        int((~kept).sum()),
    )


def _check_enough(train: _Segments, test: _Segments, threshold: float, teacher: RewardModel) -> None:
    for part, name in ((train, "to train on"), (test, "held out")):
        needed = MIN_SEGMENTS if part is train else MIN_SEGMENTS // 10
        if len(part.texts) < needed:
            raise PHFError(
                f"the sample has {len(part.texts):,} scored segments {name}, at least {needed:,} are needed; give a larger "
                "corpus, or --num-segments"
            )
        num_bad = int((part.scores > threshold).sum())
        needed = MIN_PER_SIDE if part is train else 1
        for num, side in ((num_bad, "above"), (len(part.texts) - num_bad, "not above")):
            if num < needed:
                raise PHFError(
                    f"{teacher.identity.name} scores {num:,} of the {len(part.texts):,} segments {name} {side} {threshold:g}; "
                    f"at least {needed} are needed: give more --num-segments, or another --threshold"
                )


def _find_known(train: _Segments, test: _Segments) -> npt.NDArray[np.bool_]:
    """Which held-out segments also stand in a training document."""
    known = {hash_text(text) for text in train.texts}
    return np.array([hash_text(text) in known for text in test.texts])


def _compare(
    student: LinearRewardModel,
    teacher: RewardModel,
    train: _Segments,
    test: _Segments,
    threshold: float,
    student_threshold: float,
    seed: int,
) -> tuple[HeldOut, tuple[int, int]]:
    """Agreement on held-out documents, and how many of them are bad to teacher and student. Segments that also stand in a
    training document count for documents alone."""
    scores = np.asarray(student.score_texts(test.texts), np.float64)
    new = ~_find_known(train, test)
    bad, says_bad = test.scores > threshold, scores > student_threshold
    clusters = test.documents[new]
    used = np.unique(test.documents)
    places = np.searchsorted(used, test.documents)
    num = np.bincount(places)
    # A document is judged as Filtering judges it, by its mean segment score.
    document_bad = np.bincount(places, test.targets) / num > student_threshold
    document_says = np.bincount(places, scores) / num > student_threshold
    missed = measure_share((~says_bad)[new & bad], seed=seed, clusters=test.documents[new & bad])
    found = {
        replace(AUROC, title=f"AUROC at the teacher's threshold {threshold:g}"): measure_auroc(
            scores[new], bad[new], seed=seed, clusters=clusters
        ),
        SPEARMAN_OF_TEACHER: measure_spearman(scores[new], test.scores[new], seed=seed, clusters=clusters),
        SEGMENTS_CHANGED: measure_share((bad != says_bad)[new], seed=seed, clusters=clusters),
        BAD_SEGMENTS_MISSED: missed,
        DOCUMENTS_CHANGED: measure_share(document_bad != document_says, seed=seed),
        CALIBRATION_ERROR: measure_calibration_error(
            scores[new], test.targets[new], seed=seed, clusters=clusters
        ),
    }
    if teacher.unit == "share of the scale":  # both judge on one scale, so that the same order is not enough
        found[ALPHA] = measure_alpha(scores[new], test.scores[new], seed=seed, clusters=clusters)
    for judge in list_judges(teacher)[:1]:
        spent = judge.find_cost([*train.texts, *test.texts])
        numbers = (spent.calls, spent.tokens, spent.money)
        for measure, number in zip((TEACHER_ANSWERS, TEACHER_TOKENS, TEACHER_MONEY), numbers, strict=True):
            if number > 0:
                found[measure] = Estimate(float(number), np.nan, np.nan, spent.calls)
    tested = HeldOut(
        found, list_reliability(scores[new], test.targets[new]), count_histogram(scores[new], bad[new])
    )
    return tested, (int(document_bad.sum()), int(document_says.sum()))


def _compare_with_people(
    student: LinearRewardModel, teacher: RewardModel, labels: Labels, train: _Segments, seed: int
) -> dict[Measure, Estimate]:
    """Agreement of both with what people said; of the student on texts that it was not trained on."""
    known = {hash_text(text) for text in train.texts}
    is_new = np.array([hash_text(text) not in known for text in labels.texts])
    given = [(text, [len(text)]) for text in labels.texts]
    found: dict[Measure, Estimate] = {}
    for who, model, usable in (("teacher", teacher, np.ones_like(is_new)), ("student", student, is_new)):
        scores = np.array([score for (score,) in score_documents(model, given)], np.float64)
        kept = usable & ~np.isnan(scores)
        spearman, alpha = OF_PEOPLE[who]
        found[spearman] = measure_spearman(scores[kept], labels.targets[kept], seed=seed)
        if model.unit in FROM_0_TO_1:
            found[alpha] = measure_alpha(scores[kept], labels.targets[kept], seed=seed)
    return found


def compare_speeds(
    documents: Sequence[ScoredDocument], teacher: RewardModel, student: RewardModel
) -> SpeedComparison:
    """Segments and UTF-8 bytes per CPU-second (of this process and its children) of both, on the same documents; of a language
    model per second on the clock, when it was last asked."""
    timed: list[tuple[str, Sequence[int]]] = []
    num_characters = 0
    for document in documents:
        if num_characters < _MAX_TIMED_CHARACTERS:
            timed.append((document.text, document.ends))
            num_characters += len(document.text)
    num_segments = sum(len(ends) for _, ends in timed)
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text, _ in timed)
    speeds = []
    for model in (teacher, student):
        if judges := list_judges(model):  # its answers are kept by now: what counts is how fast they came
            rate = judges[0].find_rate()
            speeds += [rate, rate * num_bytes / num_segments]
            continue
        score_documents(model, timed[:20])
        rounds, start, seconds = 0, _count_cpu_seconds(), 0.0
        while seconds < _SECONDS:
            score_documents(model, timed)
            rounds += 1
            seconds = _count_cpu_seconds() - start
        speeds += [num_segments * rounds / seconds, num_bytes * rounds / seconds]
    return SpeedComparison(num_segments, num_bytes, *speeds)


def measure_cost(
    student: LinearRewardModel, texts: Sequence[str], speed: SpeedComparison, num_parameters: float
) -> Cost:
    """What annotating a token costs, as a fraction of the 6 N FLOPs that pretraining on it costs (N parameters).

    Counted twice. `counted`: the student's arithmetic, multiplication and addition per n-gram and the integer operations of
    hashing. `student`, `teacher`: CPU-seconds per token, times the FLOPs this machine's cores reach in a matrix product
    (float32): what the same seconds would have done for training. The second is the fair one; the first has no clock in it.
    """
    num_ngrams = num_characters = 0
    for batch in read_batches(texts):
        num_characters += len(batch.characters)
        num_ngrams += sum(len(found.buckets) for found in batch.find_ngrams(student.features))
    num_tokens = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / BYTES_PER_TOKEN
    counted = (
        (2 + OPERATIONS_PER_NGRAM) * num_ngrams + OPERATIONS_PER_CHARACTER * num_characters
    ) / num_tokens
    machine = _measure_matmul()
    return Cost(
        num_parameters=num_parameters,
        bytes_per_token=BYTES_PER_TOKEN,
        machine_flops_per_cpu_second=machine,
        counted=counted,
        student=BYTES_PER_TOKEN / speed.student_bytes * machine,
        teacher=BYTES_PER_TOKEN / speed.teacher_bytes * machine,
    )


def _measure_matmul() -> float:
    """FLOPs per CPU-second of a float32 matrix product: the best of several."""
    matrix = np.random.default_rng(0).random((1024, 1024), np.float32)
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for _ in range(4):
            matrix @ matrix
        best = max(best, 4 * 2 * 1024**3 / (time.process_time() - start))
    return best


def _count_cpu_seconds() -> float:
    """CPU time of this process and of children that have ended (a linter run as a program)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
