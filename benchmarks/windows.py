"""What training holds in memory of a corpus of any size, and how long its first batch takes.

    python benchmarks/windows.py FOLDER [--documents 1_000_000 10_000_000]

Corpora are written array by array, as `phf corpus build`, `annotate` and `tokenize` leave them: documents of one to three
segments of 1 to 40 tokens, 250,000 a shard (after 40 shards the same ones again, as links), under one Conditional rule. Each is opened twice in a process of its own: before
and after its rule is resolved. Bars (issue 19): at most 400 MB of its own at 10M documents, as much at 100M; the first
batch in 5 s where the rule is resolved; 10M tokens/s a core.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DOCUMENTS_PER_SHARD = 250_000
NUM_DIFFERENT = 40
CONTEXT, BATCH_BLOCKS, SEED = 1024, 32, 0


def read_status(name: str) -> int:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) // 1024
    return 0


class Watch:
    """The most anonymous memory that this process has held, asked for every 5 ms: the kernel keeps a peak of RSS alone."""

    def __init__(self) -> None:
        import threading

        self.peak = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, read_status("RssAnon"))
            time.sleep(0.005)


def write_tokens(folder: Path, num_documents: int) -> None:
    """A token cache and scores beside it, without text."""
    from phf.corpus.store import build_corpus, write_manifest
    from phf.files import hash_bytes, hash_json, write_sealed
    from phf.tokens.tokens import tokenize

    small = build_corpus(["fortunes:offensive"], folder / "small", max_documents=300)
    cache = tokenize(small, "train:4096", "lines", workers=1)
    path = folder / "tokens"
    path.mkdir(parents=True)
    (path / "tokenizer").symlink_to(cache.path.resolve() / "tokenizer")
    scores_folder = path / "scores" / "synthetic"
    scores_folder.mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    score_hashes: list[str] = []
    for shard in range(-(-num_documents // DOCUMENTS_PER_SHARD)):
        if shard >= NUM_DIFFERENT:
            first = shard % NUM_DIFFERENT
            for file in [*path.glob(f"{first:05d}.*"), *scores_folder.glob(f"{first:05d}.*")]:
                file.with_name(file.name.replace(f"{first:05d}", f"{shard:05d}")).hardlink_to(file)
            files = {
                name.replace(f"{first:05d}", f"{shard:05d}"): sha256
                for name, sha256 in shards[first]["files"].items()
            }
            shards.append({**shards[first], "files": files})
            score_hashes.append(score_hashes[first])
            continue
        rng = np.random.default_rng([SEED, shard])
        num_segments = rng.integers(1, 4, DOCUMENTS_PER_SHARD)
        lengths = rng.integers(1, 41, int(num_segments.sum()))
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "ids": rng.integers(0, 4000, int(lengths.sum()), np.uint16),
            "segment_ends": np.cumsum(lengths),
            "document_ends": np.cumsum(num_segments),
            "segment_bytes": (4 * lengths).astype(np.uint32),
            "is_train": rng.random(DOCUMENTS_PER_SHARD) < 0.95,
        }
        files = {}
        for kind, array in arrays.items():
            data = array.tobytes()
            (path / f"{shard:05d}.{kind}").write_bytes(data)
            files[f"{shard:05d}.{kind}"] = hash_bytes(data)
        data = rng.exponential(1, len(lengths)).astype("<f4").tobytes()
        (scores_folder / f"{shard:05d}.scores").write_bytes(data)
        score_hashes.append(hash_bytes(data))
        shards.append(
            {
                "files": files,
                "input_sha256": "",
                "num_documents": DOCUMENTS_PER_SHARD,
                "num_segments": len(lengths),
                "num_tokens": int(lengths.sum()),
                "num_bytes": int(4 * lengths.sum()),
                "segment_ends_hash": "",
            }
        )
    write_manifest(path / "manifest.json", {**cache.manifest, "shards": shards})
    split = {"train": num_documents, "validation": num_documents}
    record = {"files": score_hashes, "scores_sha256": hash_json(score_hashes), "documents": split}
    record |= {"unscored_documents": {"train": 0, "validation": 0}, "unscored_shards": [], "source": ""}
    write_sealed(scores_folder / "manifest.json", record)


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Open, resolve, lay out and read, as `phf.train.data.open_data` does."""
    from phf.config.objectives import Conditional, GoodConfig
    from phf.files import read_sealed
    from phf.tokens.scores import ShardScores
    from phf.tokens.tokens import TokenCache
    from phf.train.windows import WindowedParts

    before = read_status("RssAnon")
    watch = Watch()
    start = time.perf_counter()
    tokens = TokenCache.open(folder / "tokens")
    scores_folder = folder / "tokens" / "scores" / "synthetic"
    parts = WindowedParts(
        tokens, ShardScores(scores_folder, read_sealed(scores_folder / "manifest.json", ""))
    )
    objective, _ = parts.resolve(
        Conditional(good_fraction=0.5, drop_fraction=0.01), GoodConfig(good_fraction=0.5)
    )
    blocks = parts.lay_out(
        objective, "train", context=CONTEXT, seed=SEED, isolate_documents=True, is_active=True
    )
    blocks.batch(0, BATCH_BLOCKS)
    first = time.perf_counter() - start
    # Over the end of a window, so that another is opened; then the speed of what is left of that one.
    start, busy, num = time.perf_counter(), time.process_time(), 0
    order, starts = blocks._order(0)
    step = max(1, int(starts[1]) // BATCH_BLOCKS - 2)
    while time.perf_counter() - start < seconds:
        blocks.batch(step + num, BATCH_BLOCKS)
        num += 1
    rate = num * BATCH_BLOCKS * CONTEXT / (time.process_time() - busy)
    return {
        "documents": tokens.num_documents,
        "windows": len(order),
        "first_batch_s": round(first, 2),
        "anon_before_mb": before,
        "anon_peak_mb": watch.peak,
        "rss_peak_mb": read_status("VmHWM"),
        "mtokens_per_core_s": round(rate / 1e6, 1),
        "threshold": objective.threshold.value if objective.threshold else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument(
        "--measure", action="store_true", help="a corpus that is there; for this script's own processes"
    )
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.seconds)))
        return
    peaks = {}
    for documents in options.documents:
        folder = options.folder / f"{documents}"
        if not (folder / "tokens" / "scores" / "synthetic" / "manifest.json").exists():
            write_tokens(folder, documents)
        for kept in (folder / "tokens" / "scores" / "synthetic").glob("*-*.json"):
            kept.unlink()
        for rule in ("not resolved", "resolved"):
            command = [sys.executable, __file__, str(folder), "--measure", "--seconds", str(options.seconds)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{rule}: {found}", flush=True)
        peaks[documents] = found["anon_peak_mb"]
    first, last = min(peaks), max(peaks)
    if first < last:
        slope = (peaks[last] - peaks[first]) / (last - first) * 1e6
        print(
            f"memory from {first / 1e6:g}M to {last / 1e6:g}M documents: {slope:+.2f} MB a million documents"
        )


if __name__ == "__main__":
    main()
