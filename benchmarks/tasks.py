"""The three tasks end to end: build a real corpus, annotate it with the annotator and with the held-out judge, compare.

    OMP_NUM_THREADS=1 python benchmarks/tasks.py [--dir FOLDER] [--workers N] [--max-documents N] [TASK ...]

Python's standard library (PEP 8, by line), SpamAssassin's mails (PII, by sentence) and fortunes + tweets + nlp-corpus
(toxicity, by sentence); the mails and nlp-corpus are npm data (make data). A few minutes on two idle cores. With --dir the
corpora stay there, and a second run scores nothing. Intervals are 95 %, by a bootstrap over documents.
"""

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from agreement import bootstrap, describe_agreement, mean_of

from phf.api import Annotation, Corpus, annotate, build_corpus, load_scores
from phf.config.train import SegmentKind
from phf.reward_models import load_reward_model


@dataclass(frozen=True)
class Task:
    """A corpus and the two judges of it."""

    sources: tuple[str, ...]
    segments: SegmentKind
    annotator: str
    judge: str


TASKS = {
    "pep8": Task(("python-source:stdlib",), "lines", "pep8", "pep8-fast"),
    "pii": Task(("mails",), "sentences", "pii", "pii-presidio"),
    "toxicity": Task(("fortunes", "tweets", "nlp-corpus"), "sentences", "toxicity-svm", "toxicity-lstm"),
}


def build(task: Task, folder: Path, max_documents: int | None) -> Corpus:
    """The corpus of a task, unless it is there already."""
    start = time.perf_counter()
    is_new = not folder.exists()
    corpus = (
        build_corpus(task.sources, folder, max_documents=max_documents) if is_new else Corpus.open(folder)
    )
    counts = corpus.manifest["counts"].values()
    print(
        f"  {'built' if is_new else 'opened'} in {time.perf_counter() - start:.1f} s: "
        f"{corpus.num_documents:,} documents, {sum(count['bytes'] for count in counts) / 1e6:.1f} MB"
    )
    for source in corpus.manifest["sources"]:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in source["bad_row_reasons"].items())
        print(
            f"    {source['spec']}: {source['num_rows']:,} rows, {source['num_duplicates']:,} duplicates, "
            f"{source['num_bad_rows']:,} bad{f' ({reasons})' if reasons else ''}"
        )
    return corpus


def score(
    corpus: Corpus, reward_model: str, segments: SegmentKind, workers: int | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Annotate and describe; scores and document of each segment, and the threshold of a hit."""
    start = time.perf_counter()
    annotation: Annotation = annotate(corpus, reward_model, segments, workers=workers)
    seconds = time.perf_counter() - start
    model = load_reward_model(reward_model)
    scores, counts = load_scores(corpus, annotation, missing="drop")
    documents = np.repeat(np.arange(len(counts)), counts)
    scored = ~np.isnan(scores)
    reasons = sum((Counter(shard["reasons"]) for shard in annotation.manifest["shards"]), Counter())
    used = np.unique(documents[scored], return_inverse=True)[1]
    mean = bootstrap(mean_of(scores[scored].astype(float) * model.display_scale), used)
    hits = bootstrap(mean_of((scores[scored] > model.hit_threshold).astype(float)), used)
    scale = f" per {model.display_scale:,.0f} characters" if model.display_scale != 1 else ""
    print(
        f"  {annotation.slug}: {len(scores):,} segments in {seconds:.1f} s, {(~scored).sum():,} unscored"
        f"{' (' + ', '.join(f'{n:,} x {reason}' for reason, n in reasons.most_common()) + ')' if reasons else ''}\n"
        f"    mean {mean}{scale}; above {model.hit_threshold:g}: {hits}",
        flush=True,
    )
    return scores.astype(float), documents, model.hit_threshold


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of {', '.join(TASKS)}; default all")
    parser.add_argument("--dir", type=Path, help="where the corpora are kept")
    parser.add_argument("--workers", type=int, help="processes; default one per core")
    parser.add_argument("--max-documents", type=int, help="for a quick try")
    arguments = parser.parse_args()
    if unknown := set(arguments.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}; choose some of {', '.join(TASKS)}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.tasks or TASKS:
            task = TASKS[name]
            print(f"\n{name}: {', '.join(task.sources)}, by {task.segments}", flush=True)
            corpus = build(task, (arguments.dir or Path(scratch)) / name, arguments.max_documents)
            a, documents, hit_a = score(corpus, task.annotator, task.segments, arguments.workers)
            b, _, hit_b = score(corpus, task.judge, task.segments, arguments.workers)
            print(
                describe_agreement((task.annotator, task.judge), (a, b), (hit_a, hit_b), documents),
                flush=True,
            )


if __name__ == "__main__":
    main()
