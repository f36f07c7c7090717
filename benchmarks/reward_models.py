"""Speed of each reward model on one core, and how far the judges of one task agree. About three minutes.

    OMP_NUM_THREADS=1 python benchmarks/reward_models.py [--documents N]

Real text: fortunes and tweets for toxicity, SpamAssassin's mails for PII (npm data: make data), Python's own library and
site-packages for PEP 8. Intervals are 95 %, by a bootstrap over documents.
"""

import argparse
import sysconfig
import time
from itertools import accumulate
from pathlib import Path

import numpy as np
from agreement import describe_agreement

from phf.corpus.segment import segment_ends
from phf.corpus.sources import Row, iterate_source
from phf.errors import PHFError
from phf.reward_models import load_reward_model, score_documents
from phf.reward_models.python_code import split_lines

Documents = list[tuple[str, list[int]]]


def read_source(spec: str, kind: str, limit: int) -> Documents:
    texts = list(dict.fromkeys(row.text for row in iterate_source(spec) if isinstance(row, Row)))
    rng = np.random.default_rng(0)
    chosen = [texts[index] for index in sorted(rng.permutation(len(texts))[:limit])]
    return [(text, segment_ends(text, kind)) for text in chosen]


def read_python(limit: int) -> Documents:
    library, packages = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    files = sorted(library.glob("*.py"))
    files += [
        file
        for name in ("sympy/core", "reportlab", "networkx")
        for file in sorted((packages / name).glob("**/*.py"))
    ]
    rng = np.random.default_rng(0)
    texts = [
        files[index].read_text(encoding="utf-8", errors="replace")
        for index in rng.permutation(len(files))[:limit]
    ]
    return [(text, list(accumulate(map(len, split_lines(text))))) for text in texts if text]


def score_timed(name: str, documents: Documents) -> tuple[np.ndarray, float]:
    """Score the documents; print CPU speed (wall-clock speed for the model that is another process)."""
    model = load_reward_model(name)
    score_documents(model, documents[:20])
    clock = time.perf_counter if name == "pep8-fast" else time.process_time
    start = clock()
    scores = np.concatenate(score_documents(model, documents))
    seconds = clock() - start
    characters = sum(len(text) for text, _ in documents)
    print(
        f"  {name:14} {len(scores) / seconds:10,.0f} segments/s {characters / seconds / 1e6:7.2f} MB/s  "
        f"mean {np.nanmean(scores) * model.display_scale:.4f}  unscored {np.isnan(scores).sum()} of {len(scores)}",
        flush=True,
    )
    return scores, model.hit_threshold


def compare(label: str, documents: Documents, names: tuple[str, ...]) -> None:
    """Speed of the judges, and the agreement of the first one with each other one."""
    counts = [len(ends) for _, ends in documents]
    print(f"\n{label}: {len(documents):,} documents, {sum(counts):,} segments")
    found = {}
    for name in names:
        try:
            found[name] = score_timed(name, documents)
        except PHFError as error:
            print(f"  {name}: {error}")
    numbers = np.repeat(np.arange(len(documents)), counts)
    first, *others = found
    for other in others:
        (a, hit_a), (b, hit_b) = found[first], found[other]
        print(describe_agreement((first, other), (a, b), (hit_a, hit_b), numbers), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--documents", type=int, default=8000,
        help="texts per kind; a fourth as many mails, a fortieth as many source files",
    )  # fmt: skip
    limit = parser.parse_args().documents
    toxicity = ("toxicity-svm", "toxicity-lstm")
    compare("fortunes", read_source("fortunes", "document", limit), toxicity)
    compare("tweets", read_source("tweets", "document", limit), toxicity)
    try:
        mails = read_source("mails", "sentences", limit // 4)
    except PHFError as error:
        print(f"\nmails: {error}")
    else:
        compare("mails, sentences", mails, ("pii", "pii-presidio", "pii-scrubadub"))
    compare("python source, lines", read_python(limit // 40), ("pep8", "pep8-fast"))


if __name__ == "__main__":
    main()
