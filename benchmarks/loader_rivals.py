"""Loading tokens on one core: ours against `datasets` with torch's collator, and litdata, on the same tokens in one run.

    OMP_NUM_THREADS=1 python benchmarks/loader_rivals.py [--tokens 20_000_000]          (pip install litdata for its row)

Ours lays out MLE and Conditional from the cache: control tokens, scores, kinds and positions beside the ids. The rivals get what
suits them best: blocks of 257 ids laid out and written beforehand, in shuffled order, without any score. An objective or a threshold
that changes costs them another preparation, whose time is printed; it costs ours the plan of an epoch.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from loader import SEED, make_rule, measure_batches, repeat_on_disk
from torch.utils.data import DataLoader, default_collate

from phf.corpus.store import Corpus, build_corpus
from phf.tokens.blocks import Blocks
from phf.tokens.tokens import TokenCache, tokenize

CONTEXT, BATCH = 256, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=20_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_corpus(["python-source"], folder / "corpus", max_documents=500)
        cache = tokenize(Corpus.open(folder / "corpus"), "train:4096", "lines")
        large = repeat_on_disk(cache, folder / "large", options.tokens)
        for conditional in (False, True):
            measure_batches(large, conditional, CONTEXT)
        rows = lay_out(large)
        measure_datasets(rows, folder / "datasets")
        try:
            measure_litdata(rows, folder / "litdata")
        except ImportError as error:
            print(f"litdata: not here ({error.name})")


def lay_out(cache: TokenCache) -> np.ndarray:
    """All blocks of an epoch with the token after each: what the rivals store."""
    scores = np.zeros(cache.num_segments, np.float32)
    blocks = Blocks(cache, make_rule(cache, False), scores, split="train", context=CONTEXT, seed=SEED)
    batches = [blocks.batch(step, BATCH) for step in range(blocks.num_blocks // BATCH)]
    return np.concatenate([np.column_stack([batch.ids, batch.targets[:, -1]]) for batch in batches]).astype(
        np.uint16
    )


def measure(name: str, batches: Iterator[torch.Tensor], seconds: float = 5) -> None:
    for _ in range(3):
        next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += batch.shape[0] * CONTEXT
        if time.perf_counter() - start > seconds:
            break
    print(f"{name:<38} {count / (time.perf_counter() - start) / 1e6:5.1f}M tokens/s")


def measure_datasets(rows: np.ndarray, folder: Path) -> None:
    start = time.perf_counter()
    Dataset.from_dict({"input_ids": list(rows)}).save_to_disk(folder)
    print(f"datasets: {time.perf_counter() - start:.1f} s to prepare")
    for kind in ("torch", "numpy"):
        stored = Dataset.load_from_disk(folder).with_format(kind)
        loader = DataLoader(stored, batch_size=BATCH, shuffle=True, collate_fn=default_collate)
        measure(f"datasets ({kind}) + collator", (batch["input_ids"] for batch in loader))


def measure_litdata(rows: np.ndarray, folder: Path) -> None:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    start = time.perf_counter()
    parts = np.array_split(rows.astype(np.int32), 8)
    for number, part in enumerate(parts):
        np.save(folder.with_name(f"part-{number}.npy"), part)
    paths = [str(folder.with_name(f"part-{number}.npy")) for number in range(8)]
    optimize(
        fn=read_part,
        inputs=paths,
        output_dir=str(folder),
        item_loader=TokensLoader(),
        chunk_bytes="64MB",
        num_workers=1,
    )
    print(f"litdata: {time.perf_counter() - start:.1f} s to prepare")
    dataset = StreamingDataset(
        str(folder), item_loader=TokensLoader(block_size=CONTEXT + 1), shuffle=True, seed=SEED
    )
    measure("litdata, its tokens loader", iter(StreamingDataLoader(dataset, batch_size=BATCH)))


def read_part(path: str) -> Iterator[torch.Tensor]:
    for row in np.load(path):
        yield torch.from_numpy(row)


if __name__ == "__main__":
    main()
