"""How fast blocks are exported on one core, by format: laid out, written, hashed.

    python benchmarks/export.py [--tokens 300_000_000] [--context 1024]

The corpus is the interpreter's own library, one segment a line, repeated on disk until it has so many tokens (300M are 1 GB of
text). Prints each format's tokens/s of CPU time and its ratio to laying the blocks out alone. The bar (issue 19): 5M tokens/s a core.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
from loader import SEED, make_rule, repeat_on_disk

from phf.config.objectives import Conditional
from phf.corpus.store import Corpus, build_corpus
from phf.integrations.export import SHARD_TOKENS, Shards
from phf.integrations.formats import ExportFormat, Layout
from phf.integrations.loss import TokenLoss
from phf.objectives import Objective
from phf.tokens.blocks import Blocks
from phf.tokens.phases import TrainingBlocks
from phf.tokens.tokens import tokenize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=60_000_000)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(["python-source"], Path(folder) / "corpus", max_documents=500)
        cache = tokenize(Corpus.open(Path(folder) / "corpus"), "train:4096", "lines")
        characters = cache.num_characters / cache.num_tokens
        large = repeat_on_disk(cache, Path(folder) / "large", options.tokens)
        rule = make_rule(large, True)
        scores = np.zeros(large.num_segments, np.float32)
        blocks = Blocks(large, rule, scores, split="train", context=options.context, seed=SEED)
        run = TrainingBlocks([(0, blocks)])
        total = blocks.num_blocks * options.context
        print(
            f"{total / 1e6:.0f}M tokens, {large.num_tokens * characters / 1e9:.2f} GB of text, context {options.context}"
        )
        run.rows(np.arange(8))  # plans the epoch, and maps the tokens
        start, size = time.process_time(), 2**19 // options.context
        for first in range(0, blocks.num_blocks, size):
            run.rows(np.arange(first, min(first + size, blocks.num_blocks)))
        alone = total / (time.process_time() - start)
        print(f"{'blocks alone':<12} {alone / 1e6:5.1f}M tokens/s a core")
        loss = TokenLoss(Objective(Conditional(good_fraction=0.9), rule), large.tokenizer.control)
        for kind in get_args(ExportFormat):
            vocab_size = large.tokenizer.padded_vocab_size()
            layout = Layout(kind, loss, options.context, vocab_size, isolated=True)
            num_shard_blocks = SHARD_TOKENS // options.context
            manifest = {"num_blocks": blocks.num_blocks, "shard_blocks": num_shard_blocks}
            manifest["shards"] = [None] * -(-blocks.num_blocks // num_shard_blocks)
            out = Path(folder) / kind
            out.mkdir()
            start, wall = time.process_time(), time.perf_counter()
            Shards(out, manifest, layout, run).write()
            seconds, wall = time.process_time() - start, time.perf_counter() - wall
            num_bytes = sum(path.stat().st_size for path in out.iterdir())
            shutil.rmtree(out)
            print(
                f"{kind:<12} {total / seconds / 1e6:5.1f}M tokens/s a core ({total / wall / 1e6:.1f}M with the disk), "
                f"{total / seconds / alone:.2f} x blocks alone, {num_bytes / total:.1f} bytes a token",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak:.0f} MB; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}")


if __name__ == "__main__":
    main()
