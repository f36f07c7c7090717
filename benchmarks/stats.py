"""What `phf corpus stats`, `phf explore` and `phf evaluate` hold in memory of a corpus of any size.

    python benchmarks/stats.py FOLDER [--documents 1_000_000 4_000_000]

A corpus is written shard by shard as `phf corpus build`, `annotate` and `tokenize` leave it: documents of one to three words, a
segment each, 250,000 documents a shard (after 4 shards the same ones again, as links). Each command's own function runs in a process of
its own. `pages` reads 2,000 held-out documents in random order, as every evaluation does.
"""

import argparse
import json
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from windows import Watch, read_status

DOCUMENTS_PER_SHARD = 250_000
NUM_DIFFERENT = 4
COMMANDS = ("stats", "explore", "pages")


def write_corpus(folder: Path, num_documents: int) -> None:
    """A corpus, an annotation and tokens."""
    from phf.annotate.annotation_writer import (
        ScoredDocuments,
        make_annotation_table,
        write_annotation,
        write_annotation_shard,
    )
    from phf.corpus.store import DOCUMENT_SCHEMA, Corpus, open_parquet_writer, write_manifest
    from phf.files import hash_file, hash_json
    from phf.records import Identity
    from phf.tokens.tokens import tokenize

    (folder / "documents").mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    tables = []
    num_shards = -(-num_documents // DOCUMENTS_PER_SHARD)
    for shard in range(num_shards):
        file = folder / f"documents/{shard:05d}.parquet"
        if shard >= NUM_DIFFERENT:
            file.hardlink_to(folder / shards[shard % NUM_DIFFERENT]["file"])
            shards.append({**shards[shard % NUM_DIFFERENT], "file": f"documents/{shard:05d}.parquet"})
            continue
        rng = np.random.default_rng(shard)
        sizes = rng.integers(1, 4, DOCUMENTS_PER_SHARD)
        texts = ["\n".join(["word"] * size) for size in sizes]
        ids = [f"{shard}:{row}" for row in range(DOCUMENTS_PER_SHARD)]
        columns = {
            "id": ids,
            "text": texts,
            "text_hash": [sha256(own.encode()).hexdigest() for own in ids],
            "source": ["synthetic"] * len(ids),
            "split": np.where(rng.random(len(ids)) < 0.95, "train", "validation").tolist(),
        }
        table = pa.table(columns, schema=DOCUMENT_SCHEMA)
        with open_parquet_writer(file, DOCUMENT_SCHEMA) as writer:
            for first in range(0, len(table), 50_000):
                writer.write_table(table[first : first + 50_000])
        num_characters = sum(map(len, texts))
        counts = {
            "num_documents": len(ids),
            "num_characters": num_characters,
            "num_bytes": num_characters,
        }
        shards.append({"file": f"documents/{shard:05d}.parquet", "sha256": hash_file(file), **counts})
        tables.append((table, sizes))
    counts = {
        split: {"documents": num_documents, "characters": 1, "bytes": 20_000_000}
        for split in ("train", "validation")
    }
    corpus_id = hash_json([shard["sha256"] for shard in shards])[:16]
    manifest = {"kind": "corpus", "id": corpus_id, "sources": [], "text_field": None, "max_documents": None}
    manifest |= {"validation_fraction": 0.05, "counts": counts, "shards": shards}
    write_manifest(folder / "manifest.json", manifest)
    corpus = Corpus.open(folder)
    identity = Identity("synthetic", "1")
    with write_annotation(
        corpus, identity=identity, spec="synthetic", unit="number", segments="lines"
    ) as writer:
        entries: list[Any] = []
        for shard in range(num_shards):
            file = writer.path / f"{shard:05d}.parquet"
            if shard >= NUM_DIFFERENT:
                file.hardlink_to(writer.path / f"{shard % NUM_DIFFERENT:05d}.parquet")
                entries.append({**entries[shard % NUM_DIFFERENT], "file": file.name})
            else:
                table, sizes = tables[shard]
                ends = np.concatenate(
                    [5 * np.arange(1, size + 1) - (np.arange(size) == size - 1) for size in sizes]
                )
                scores = np.random.default_rng(shard).exponential(1, len(ends)).round(3)
                scored = make_annotation_table(table["id"], table["text_hash"], sizes, ends, scores)
                entries.append(
                    write_annotation_shard(file, shards[shard]["sha256"], [ScoredDocuments(scored, {})])
                )
            writer.add_entry(shard, entries[-1])
    cache = tokenize(_first_shards(corpus), "train:262", "lines", workers=1)
    made = cache.manifest["shards"]
    for shard in range(NUM_DIFFERENT, num_shards):
        first = made[shard % NUM_DIFFERENT]
        assert first is not None
        files = {}
        for name, digest in first["files"].items():
            own = f"{shard:05d}{name[5:]}"
            (cache.path / own).hardlink_to(cache.path / name)
            files[own] = digest
        made.append({**first, "files": files})
    own_hashes = [entry["segment_ends_hash"] for entry in made if entry is not None]
    write_manifest(
        cache.path / "manifest.json", {**cache.manifest, "segment_ends_hash": hash_json(own_hashes)}
    )


def _first_shards(corpus: Any) -> Any:
    corpus.shards = corpus.shards[:NUM_DIFFERENT]
    return corpus


def measure(folder: Path, command: str) -> dict[str, float]:
    """What a command's own function holds."""
    from phf.annotate.annotation import Annotation
    from phf.corpus.store import Corpus
    from phf.curate.stats import corpus_stats
    from phf.evaluate.pages import PageReader
    from phf.explore.documents import DocumentBrowser
    from phf.tokens.scores import copy_scores
    from phf.tokens.tokens import find_tokens

    corpus = Corpus.open(folder)
    before, watch, start = read_status("RssAnon"), Watch(), time.perf_counter()
    if command == "stats":
        corpus_stats(corpus)
    elif command == "explore":
        browser = DocumentBrowser(corpus)
        browser.show(
            next(iter(browser.annotations)), threshold=1.0, query="", order="worst segment first", page=0
        )
    else:
        tokens = find_tokens(corpus, "train:262", "lines")
        scores = copy_scores(tokens, Annotation.open(corpus, "synthetic", "lines"), "error")
        reader = PageReader(tokens, scores, 64)
        for document in reader.held_out_documents(0)[:2000]:
            reader.read(int(document))
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "anon_before_mb": before,
        "anon_peak_mb": watch.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, nargs="*", default=[1_000_000, 4_000_000])
    parser.add_argument("--commands", nargs="*", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--measure", help="of a corpus that is there; for this script's own processes")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.measure)))
        return
    peaks: dict[str, list[int]] = {command: [] for command in options.commands}
    for documents in options.documents:
        folder = options.folder / f"{documents}"
        if not (folder / "tokens").exists():
            write_corpus(folder, documents)
        for command in options.commands:
            line = [sys.executable, __file__, str(folder), "--measure", command]
            found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
            print(f"{documents / 1e6:g}M documents, {command}: {found}", flush=True)
            peaks[command].append(found["anon_peak_mb"])
    if len(options.documents) > 1:
        num = options.documents[-1] - options.documents[0]
        for command, found in peaks.items():
            print(f"{command}: {(found[-1] - found[0]) * 2**20 / num:+.1f} bytes a document")


if __name__ == "__main__":
    main()
