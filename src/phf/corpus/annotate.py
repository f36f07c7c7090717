"""Scoring a corpus once: a local process pool, resumable at shard level, the same bytes for any number of workers."""

import math
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import lru_cache
from itertools import chain, islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from phf.config import SegmentKind
from phf.corpus.annotation import (
    ANNOTATION_SCHEMA,
    Annotation,
    annotation_folder,
    load_scores,
    read_annotation_manifest,
)
from phf.corpus.segment import hash_segment_ends, segment_ends, segmentation_identity
from phf.corpus.store import Corpus, Progress, lock_folder, open_parquet_writer, write_manifest
from phf.errors import PHFError
from phf.files import hash_file, hash_json, replace_atomically
from phf.reward_models import RewardModel, load_reward_model, score_documents

__all__ = ["Annotation", "annotate", "load_scores"]

_Turn = tuple[int, int]  # a document shard and one of its row groups: what a worker scores at a time
_Scores = list[list[float]]
_Scored = tuple[pa.Table, dict[str, int]]  # rows of the annotation, and how often each reason for no score


def annotate(
    corpus: Corpus,
    reward_model: str,
    segments: SegmentKind,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Annotation:
    """Score every segment of a corpus, or what an earlier call has left unscored.

    A shard is done when the manifest lists it, which is written last. The bytes do not depend on the number of
    workers or on how often the work was stopped. A script that calls this with several workers needs
    `if __name__ == "__main__":`, since each worker imports it.

    Args:
        workers: processes; by default one per usable core.

    Returns:
        The finished annotation; its `num_scored_now` says how many segments this call has scored.

    Raises:
        PHFError: the reward model is unknown, fails on a document, or gives a wrong number of scores or an infinite
            one (names the document); a worker was killed; another process writes the same annotation.
    """
    if workers is not None and workers < 1:
        raise PHFError(f"workers {workers} must be at least 1")
    scorer = _Scorer(corpus, reward_model, segments)
    path = annotation_folder(corpus, scorer.model.identity, segments)
    path.mkdir(parents=True, exist_ok=True)
    with lock_folder(path, "writing"):
        for left_over in path.glob(".*.tmp"):  # of a process that was killed
            left_over.unlink()
        manifest = _open_manifest(path, scorer)
        _write_state(path, manifest)
        num_scored_now = _score_shards(path, manifest, scorer, workers or _count_cores(), progress)
    return Annotation(corpus, path, num_scored_now)


class _Scorer:
    """What a worker holds: the corpus and the reward model, loaded once."""

    def __init__(self, corpus: Corpus, reward_model: str, segments: SegmentKind) -> None:
        self.corpus = corpus
        self.reward_model = reward_model
        self.segments = segments
        self.model: RewardModel = load_reward_model(reward_model)

    def score(self, turn: _Turn) -> _Scored:
        """Score the documents of one row group."""
        shard, group = turn
        with self.corpus.open_shard(shard) as file:
            rows = file.read_row_group(group, columns=["id", "text_hash", "text"]).to_pydict()
        texts: list[str] = rows["text"]
        documents = [(text, segment_ends(text, self.segments)) for text in texts]
        scores = self._score_documents(documents, rows["id"])
        reasons = Counter(
            str(getattr(score, "reason", "no reason given"))
            for score in filter(math.isnan, chain.from_iterable(scores))
        )
        table = pa.Table.from_arrays(
            [
                pa.array(rows["id"], pa.string()),
                pa.array(rows["text_hash"], pa.string()),
                _make_lists([ends for _, ends in documents], np.int32),
                _make_lists(scores, np.float32),
            ],
            schema=ANNOTATION_SCHEMA,
        )
        return table, dict(reasons)

    def _score_documents(self, documents: Sequence[tuple[str, list[int]]], ids: list[str]) -> _Scores:
        try:
            return self._score_and_check(documents)
        except Exception as error:
            raise self._find_culprit(documents, ids, error) from error

    def _score_and_check(self, documents: Sequence[tuple[str, list[int]]]) -> _Scores:
        scores = score_documents(self.model, documents)
        if [len(given) for given in scores] != [len(ends) for _, ends in documents]:
            raise PHFError("it gave a wrong number of scores")
        with np.errstate(over="ignore"):  # a score too large for float32 becomes infinite
            if np.isinf(np.fromiter(chain.from_iterable(scores), np.float64).astype(np.float32)).any():
                raise PHFError("it gave an infinite score")
        return scores

    def _find_culprit(
        self, documents: Sequence[tuple[str, list[int]]], ids: list[str], error: Exception
    ) -> PHFError:
        """The error that names the document on which the model fails, found by scoring each alone."""
        culprit = f"a batch from document {ids[0]} to {ids[-1]}, though on none of them alone"
        for document, name in zip(documents, ids, strict=True):
            try:
                self._score_and_check([document])
            except Exception as found:
                culprit, error = f"document {name}", found
                break
        kind = "" if isinstance(error, PHFError) else f"{type(error).__name__}: "
        return PHFError(
            f"reward model {self.model.identity.name} fails on {culprit}: {kind}{' '.join(str(error).split())}; "
            "it must give one finite score, or NaN, per segment"
        )


def _make_lists(values: list[Any], dtype: type[np.generic]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(values), dtype, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _open_manifest(path: Path, scorer: _Scorer) -> dict[str, Any]:
    """The manifest to work on: an earlier one with the entries that still hold, or a new one without any."""
    corpus, model = scorer.corpus, scorer.model
    manifest: dict[str, Any] = {
        "kind": "annotation",
        "reward_model": model.identity.to_json(),
        "reward_model_spec": scorer.reward_model,
        "unit": model.unit,
        "segments": scorer.segments,
        "segmentation": segmentation_identity(scorer.segments),
        "shards": [None] * len(corpus.shards),
    }
    if (path / "manifest.json").exists():
        earlier = read_annotation_manifest(path)
        entries = earlier["shards"]
        if len(entries) == len(corpus.shards):
            manifest["shards"] = [
                entry if entry is not None and _is_valid(path, entry, shard.sha256) else None
                for entry, shard in zip(entries, corpus.shards, strict=True)
            ]
    return manifest


def _is_valid(path: Path, entry: dict[str, Any], input_sha256: str) -> bool:
    file = path / entry["file"]
    return bool(
        entry["input_sha256"] == input_sha256 and file.exists() and hash_file(file) == entry["sha256"]
    )


def _write_state(path: Path, manifest: dict[str, Any]) -> None:
    entries = manifest["shards"]
    complete = all(entry is not None for entry in entries)
    manifest["complete"] = complete
    manifest["segment_ends_hash"] = (
        hash_json([entry["segment_ends_hash"] for entry in entries]) if complete else None
    )
    write_manifest(path / "manifest.json", manifest)


def _score_shards(
    path: Path, manifest: dict[str, Any], scorer: _Scorer, workers: int, progress: Progress | None
) -> int:
    """Score the shards that have no entry, in order; write each shard, then its entry. Gives the segments scored."""
    corpus = scorer.corpus
    pending = [index for index, entry in enumerate(manifest["shards"]) if entry is None]
    turns = {index: _count_groups(corpus, index) for index in pending}
    num_documents = sum(corpus.shards[index].num_documents for index in pending)
    num_done = num_scored_now = 0
    all_turns = [(index, group) for index in pending for group in range(turns[index])]
    with closing(_score_in_order(all_turns, scorer, min(workers, len(all_turns)))) as scored:
        for index in pending:
            file = path / f"{index:05d}.parquet"
            num_segments, ends, reasons = [], [], Counter[str]()
            with replace_atomically(file) as temporary:
                with open_parquet_writer(temporary, ANNOTATION_SCHEMA) as writer:
                    for table, turn_reasons in islice(scored, turns[index]):
                        writer.write_table(table)
                        num_segments.append(table["ends"].combine_chunks().value_lengths().to_numpy())
                        ends.append(table["ends"].combine_chunks().flatten().to_numpy())
                        reasons.update(turn_reasons)
                        num_done += len(table)
                        if progress:
                            progress("annotating documents", num_done, num_documents)
                sha256 = hash_file(temporary)
            counts, all_ends = np.concatenate(num_segments), np.concatenate(ends)
            manifest["shards"][index] = {
                "file": file.name,
                "sha256": sha256,
                "input_sha256": corpus.shards[index].sha256,
                "num_documents": len(counts),
                "num_segments": len(all_ends),
                "num_unscored": sum(reasons.values()),
                "reasons": dict(reasons),
                "segment_ends_hash": hash_segment_ends(counts, all_ends),
            }
            _write_state(path, manifest)
            num_scored_now += len(all_ends)
    return num_scored_now


def _count_groups(corpus: Corpus, index: int) -> int:
    with corpus.open_shard(index) as file:
        return int(file.num_row_groups)


def _score_in_order(turns: Sequence[_Turn], scorer: _Scorer, workers: int) -> Generator[_Scored, None, None]:
    """The scored turns in order, by a pool that is never more than a few turns ahead (which bounds memory)."""
    if workers <= 1:
        yield from map(scorer.score, turns)
        return
    # spawn: fork would copy the threads' locks of pyarrow and the BLAS libraries in whatever state they are.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    recipe = (str(scorer.corpus.path), scorer.corpus.id, scorer.reward_model, scorer.segments)
    remaining = iter(turns)
    waiting: deque[Future[_Scored]] = deque()
    try:
        while True:
            for turn in islice(remaining, 4 * workers - len(waiting)):
                waiting.append(pool.submit(_score_turn, recipe, turn))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise PHFError(
            "a worker process was killed (out of memory?); run the same command again to go on, perhaps with "
            "fewer --workers; a Python script needs: if __name__ == '__main__':"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _load_scorer(corpus: str, corpus_id: str, reward_model: str, segments: SegmentKind) -> _Scorer:
    opened = Corpus.open(corpus)
    assert opened.id == corpus_id, "the corpus changed while it was being scored"
    return _Scorer(opened, reward_model, segments)


def _score_turn(recipe: tuple[str, str, str, SegmentKind], turn: _Turn) -> _Scored:
    return _load_scorer(*recipe).score(turn)


def _end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent is killed, instead of waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
