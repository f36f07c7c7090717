"""Does asking the most uncertain segment first help? A simulated labeler with the verdicts of toxicity-lstm.

    python benchmarks/active_learning.py                     fortunes and tweets; AUROC after 50 to 400 judgements

The labeler answers "bad" where toxicity-lstm scores above 0.5. After so many judgements a linear reward model is trained
on them, as `phf reward train` does it, and measured against the same verdicts on segments of the validation split that
near-repeat nothing in the pool. Means with 95 % intervals (Student's t) over seeds; a seed draws pool and questions.
toxicity-svm agrees with the labeler (AUC .96 to .985), so what begins from it is measured at its best: a person whose
notion of bad is another gains less from it.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from phf.annotate.annotate import annotate
from phf.corpus.duplicates import find_near_duplicates
from phf.corpus.segment import segment_ends
from phf.corpus.store import Corpus, build_corpus
from phf.feedback.pool import Segment, read_pool
from phf.feedback.queue import Queue
from phf.files import write_json
from phf.intervals import pooled_t
from phf.records import Estimate
from phf.reward_models import load_reward_model, split_segments
from phf.reward_models.linear import fit_linear
from phf.terminal import show_progress

STRATEGIES = {
    "random": ("random", False),
    "uncertain": ("uncertain", False),
    "uncertain, with toxicity-svm": ("uncertain", True),
    "balanced by toxicity-svm": ("balanced", True),
}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dir", type=Path, default=Path("/tmp/active-learning"), help="where the corpus goes"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 400])
    options = parser.parse_args()
    corpus = open_corpus(options.dir / "corpus")
    annotation = annotate(corpus, "toxicity-svm", "sentences", workers=1)
    held_out = read_held_out(corpus)
    found: dict[str, list[dict[int, float]]] = {name: [] for name in STRATEGIES}
    shares: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    waits: list[float] = []
    with show_progress() as progress:
        for seed in range(options.seeds):
            pool = read_pool(corpus, "sentences", seed=seed, annotation=annotation)
            repeats = find_near_duplicates([*(segment.text for segment in pool), *held_out])[len(pool) :]
            test = [text for text, repeated in zip(held_out, repeats, strict=True) if not repeated]
            verdicts, truth = judge([segment.text for segment in pool]), np.array(judge(test))
            label = dict(zip((segment.text for segment in pool), verdicts, strict=True))
            for name, (order, scored) in STRATEGIES.items():
                start = pool if scored else [Segment(s.id, s.text, s.before, s.after) for s in pool]
                rows: list[dict] = []
                queue = Queue(start, rows, task="label", order=order, seed=seed)
                found[name].append({})
                while len(rows) < max(options.sizes):
                    before = perf_counter()
                    (segment,) = queue.take()
                    waits.append(perf_counter() - before)
                    rows.append({"text": segment.text, "label": int(label[segment.text])})
                    if len(rows) in options.sizes:
                        model = fit_linear([r["text"] for r in rows], [r["label"] for r in rows], seed=seed)
                        found[name][-1][len(rows)] = float(roc_auc_score(truth, model.score_texts(test)))
                        progress(f"simulating  seed {seed}", len(rows), max(options.sizes))
                shares[name].append(float(np.mean([row["label"] for row in rows])))
    result = summarise(found, shares, options.sizes)
    result |= {"held_out": len(test), "held_out_bad": float(truth.mean()), "longest_wait": max(waits)}
    print_result(result, options.seeds)
    write_json(options.dir / "active_learning.json", result)


def open_corpus(path: Path) -> Corpus:
    """The corpus of fortunes and tweets, built if it is not there."""
    return Corpus.open(path) if path.exists() else build_corpus(["fortunes", "tweets"], path)


def read_held_out(corpus: Corpus) -> list[str]:
    """The sentences of the validation split that have a letter."""
    documents = [document.text for document in corpus.iterate_documents("validation")]
    sentences = [part for text in documents for part in split_segments(text, segment_ends(text, "sentences"))]
    return [text for text in sentences if any(map(str.isalpha, text))]


def judge(texts: list[str]) -> list[bool]:
    """The verdicts of the simulated labeler."""
    model = load_reward_model("toxicity-lstm")
    return [score > 0.5 for score in model.score_texts(texts)]


def summarise(
    found: dict[str, list[dict[int, float]]], shares: dict[str, list[float]], sizes: list[int]
) -> dict:
    """AUROC of each strategy and size, and its difference from random on the same seeds."""

    def spell(estimate: Estimate) -> dict:
        return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "count": estimate.count}

    rows = []
    for name, runs in found.items():
        for size in sizes:
            values = [run[size] for run in runs]
            random = [run[size] for run in found["random"]]
            rows.append(
                {
                    "strategy": name,
                    "judgements": size,
                    "auroc": spell(pooled_t(values)),
                    "difference": spell(pooled_t(np.subtract(values, random))),
                }
            )
    return {"rows": rows, "share_bad": {name: spell(pooled_t(values)) for name, values in shares.items()}}


def print_result(result: dict, seeds: int) -> None:
    """The table."""
    table = Table(
        "order",
        "judgements",
        "AUROC on held-out",
        "minus random",
        title=f"{seeds} seeds, mean [95 % interval]",
    )
    for row in result["rows"]:
        cells = [
            f"{row[key]['mean']:.3f} [{row[key]['low']:.3f}, {row[key]['high']:.3f}]"
            for key in ("auroc", "difference")
        ]
        table.add_row(row["strategy"], str(row["judgements"]), *cells)
    Console(width=120).print(table)
    for name, share in result["share_bad"].items():
        print(f"{name}: {share['mean']:.1%} of the judged segments are bad")
    print(f"held-out: {result['held_out']:,} segments, {result['held_out_bad']:.1%} bad")
    print(f"longest wait for a question: {result['longest_wait']:.2f} s")


if __name__ == "__main__":
    main()
