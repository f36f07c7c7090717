"""How fast blocks are laid out on one core, and how long the plan of an epoch takes.

    python benchmarks/loader.py [--tokens 100_000_000] [--documents 10_000_000]

The corpus is the interpreter's own library, one segment a line, repeated on disk until it has so many tokens. Bars
(issue 2): at least 5M tokens/s; 10M documents planned in less than a minute.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from phf.corpus.store import Corpus, build_corpus, write_manifest
from phf.records import BAD, GOOD, DataRule
from phf.tokens.blocks import Blocks
from phf.tokens.tokens import TokenCache, tokenize

SEED = 0


def repeat_on_disk(cache: TokenCache, path: Path, num_tokens: int) -> TokenCache:
    """A cache with the same shards over and over."""
    path.mkdir()
    shards: list[dict[str, object]] = []
    shutil.copytree(cache.path / "tokenizer", path / "tokenizer")
    while sum(int(str(shard["num_tokens"])) for shard in shards) < num_tokens:
        source = len(shards) % len(cache.manifest["shards"])
        for file in cache.path.glob(f"{source:05d}.*"):
            shutil.copy(file, path / file.name.replace(f"{source:05d}", f"{len(shards):05d}"))
        shards.append(cache.manifest["shards"][source])
    write_manifest(path / "manifest.json", {**cache.manifest, "shards": shards})
    return TokenCache.open(path, verify=False)


def make_rule(cache: TokenCache, conditional: bool) -> DataRule:
    """MLE, or Conditional with 10 % of the segments bad and 1 % without a control token."""
    is_bad = np.random.default_rng(SEED).random(cache.num_segments, np.float32) < 0.1
    labels = np.where(is_bad, BAD, GOOD).astype(np.uint8) * np.uint8(conditional)
    return DataRule(np.ones(cache.num_documents, np.bool_), labels, 0.01)


def measure_batches(cache: TokenCache, conditional: bool, context: int, seconds: float = 5) -> None:
    scores = np.zeros(cache.num_segments, np.float32)
    blocks = Blocks(cache, make_rule(cache, conditional), scores, split="train", context=context, seed=SEED)
    batch_blocks = 32_768 // context
    for step in range(3):
        blocks.batch(step, batch_blocks)
    start, step = time.perf_counter(), 3
    while time.perf_counter() - start < seconds:
        blocks.batch(step, batch_blocks)
        step += 1
    rate = (step - 3) * batch_blocks * context / (time.perf_counter() - start)
    name = "conditional" if conditional else "mle"
    print(
        f"{name:<12} context {context:>4}: {rate / 1e6:5.1f}M tokens/s ({blocks.num_tokens_per_epoch / 1e6:.0f}M an epoch)"
    )


def measure_plan(cache: TokenCache, num_documents: int) -> None:
    """Lengths alone: documents of one to three segments of 1 to 40 tokens."""
    rng = np.random.default_rng(SEED)
    planned = TokenCache(cache.path, cache.manifest)
    planned.num_documents = num_documents
    planned.document_segments = rng.integers(1, 4, num_documents)
    planned.num_segments = int(planned.document_segments.sum())
    planned.segment_lengths = rng.integers(1, 41, planned.num_segments)
    planned.is_train = rng.random(num_documents) < 0.95
    rule, scores = make_rule(planned, True), np.zeros(planned.num_segments, np.float32)
    start = time.perf_counter()
    blocks = Blocks(planned, rule, scores, split="train", context=256, seed=SEED)
    blocks.plan(0)
    first = time.perf_counter() - start
    blocks.plan(1)
    second = time.perf_counter() - start - first
    print(
        f"plan of {num_documents / 1e6:g}M documents, {planned.num_segments / 1e6:.0f}M segments: "
        f"{first:.1f} s for the first epoch, {second:.1f} s for the next"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--documents", type=int, default=10_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(["python-source"], Path(folder) / "corpus", max_documents=500)
        corpus = Corpus.open(Path(folder) / "corpus")
        start = time.perf_counter()
        cache = tokenize(corpus, "train:4096", "lines")
        num_bytes = int(cache.segment_bytes.sum())
        seconds = time.perf_counter() - start
        print(
            f"train:4096 and tokenize {num_bytes / 1e6:.1f} MB: {seconds:.1f} s, {cache.num_tokens / 1e6:.1f}M tokens"
        )
        large = repeat_on_disk(cache, Path(folder) / "large", options.tokens)
        for context in (256, 1024):
            for conditional in (False, True):
                measure_batches(large, conditional, context)
        measure_plan(cache, options.documents)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak:.0f} MB")


if __name__ == "__main__":
    main()
