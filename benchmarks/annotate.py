"""Memory, speed and crash safety of `phf corpus build` and `phf annotate` on a large JSONL.

    python benchmarks/annotate.py --dir /tmp/bench                       1 GB, toxicity-svm: peak memory, throughput
    python benchmarks/annotate.py --dir /tmp/bench --megabytes 60 --kill   five kill -9, then the same bytes?

The bar: under 700 MB of memory in every process, also when the scores are joined; killed at five random moments and
run again, the annotation has the bytes of one that was left alone.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from phf.corpus.segment import segment_ends
from phf.corpus.sources import Row, iterate_source
from phf.corpus.store import Corpus
from phf.files import hash_file
from phf.reward_models import load_reward_model, score_documents

BUILD = (
    "from phf.corpus.store import build_corpus; build_corpus([{source!r}], {out!r}, bytes_per_shard={shard})"
)
ANNOTATE = (
    "from phf.corpus.annotate import annotate; from phf.corpus.store import Corpus\n"
    "print(annotate(Corpus.open({out!r}), {model!r}, {segments!r}, workers={workers}).num_scored_now)"
)
JOIN = (
    "from phf.corpus.annotate import Annotation, load_scores; from phf.corpus.store import Corpus\n"
    "corpus = Corpus.open({out!r})\n"
    "print(len(load_scores(corpus, Annotation.open(corpus, {model!r}, {segments!r}), 'drop')[0]))"
)


def main() -> None:
    """Make the text, then measure or kill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dir", type=Path, required=True, help="where the text and the corpus go; made if missing"
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the JSONL")
    parser.add_argument("--reward-model", default="toxicity-svm")
    parser.add_argument("--segments", default="sentences")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--source", default="fortunes", help="real text, repeated with variations")
    parser.add_argument("--kill", action="store_true", help="five kill -9 at random moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    text = options.dir / f"{options.source.replace(':', '-')}-{options.megabytes}.jsonl"
    if not text.exists():
        write_text(text, options.source, options.megabytes * 1_000_000)
    out = options.dir / "corpus"
    shutil.rmtree(out, ignore_errors=True)
    shard = (1 if options.kill else 64) << 20
    seconds, memory, _ = run(BUILD.format(source=str(text), out=str(out), shard=shard))
    megabytes = text.stat().st_size / 1e6
    corpus = Corpus.open(out)
    print(
        f"build     {megabytes:7.0f} MB JSONL {seconds:7.1f} s {megabytes / seconds:7.1f} MB/s   peak {memory}"
    )
    print(f"          {corpus.num_documents} documents in {len(corpus.shards)} shards")
    command = ANNOTATE.format(
        out=str(out), model=options.reward_model, segments=options.segments, workers=options.workers
    )
    if options.kill:
        kill_and_compare(command, corpus, random.Random(options.seed))
    else:
        measure(command, corpus, options)


def write_text(path: Path, source: str, num_bytes: int) -> None:
    """Real documents, over and over; a number in each round's copies keeps them from being duplicates."""
    documents = list(dict.fromkeys(row.text for row in iterate_source(source) if isinstance(row, Row)))
    with path.open("w", encoding="utf-8") as file:
        for document in chain.from_iterable(vary(documents, number) for number in count()):
            file.write(json.dumps({"text": document}) + "\n")
            if file.tell() > num_bytes:
                return


def vary(documents: list[str], number: int) -> Iterator[str]:
    """Yields the documents, each with a sentence that no other round has."""
    return (f"{document} This is copy {number}." if number > 0 else document for document in documents)


def run(code: str) -> tuple[float, str, str]:
    """Run Python code in processes of its own. Gives seconds, the peak memory of each process, the output."""
    start = time.monotonic()
    process = start_process(code)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for member in find_family(process.pid):
            peaks[member] = max(peaks.get(member, 0), read_peak(member))
        time.sleep(0.1)
    output = process.communicate()[0]
    if process.returncode != 0:
        raise SystemExit(f"failed with {process.returncode}: {code}")
    memory = " + ".join(f"{peak / 1000:.0f}" for peak in sorted(peaks.values(), reverse=True)) + " MB"
    return time.monotonic() - start, memory, output


def start_process(code: str) -> subprocess.Popen[str]:
    """A process group of its own, one thread per process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def find_family(process: int) -> list[int]:
    """A process and its children (Linux)."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *map(int, children)]


def read_peak(process: int) -> int:
    """Peak resident memory in kB; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def measure(command: str, corpus: Corpus, options: argparse.Namespace) -> None:
    """Annotate all of it, join all of it, and compare with the bare reward model on the first shard."""
    seconds, memory, output = run(command)
    num_segments = int(output)
    num_bytes = sum(shard.num_bytes for shard in corpus.shards)
    print(
        f"annotate  {num_segments} segments {seconds:7.1f} s {num_segments / seconds:9.0f} segments/s "
        f"{num_bytes / seconds / 1e6:6.2f} MB/s, {options.workers} workers   peak {memory}"
    )
    seconds_again, _, output = run(command)
    print(f"again     {int(output)} segments {seconds_again:7.1f} s")
    join = JOIN.format(out=str(corpus.path), model=options.reward_model, segments=options.segments)
    seconds_join, memory, output = run(join)
    print(f"join      {int(output)} scores   {seconds_join:7.1f} s   peak {memory}")
    bare = measure_bare(corpus, options.reward_model, options.segments)
    share = num_segments / seconds / options.workers / bare
    print(f"bare reward model, one core: {bare:9.0f} segments/s; annotate per worker is {share:.2f} of it")


def measure_bare(corpus: Corpus, reward_model: str, segments: str) -> float:
    """Segments per second of the reward model alone, text and ends in memory, in the batches that annotate uses."""
    model = load_reward_model(reward_model)
    with corpus.open_shard(0) as file:
        groups = [
            file.read_row_group(index)["text"].to_pylist() for index in range(min(8, file.num_row_groups))
        ]
    batches = [[(text, segment_ends(text, segments)) for text in texts] for texts in groups]
    score_documents(model, batches[0][:10])  # what is loaded at the first call
    start = time.monotonic()
    num_segments = sum(len(scores) for batch in batches for scores in score_documents(model, batch))
    return num_segments / (time.monotonic() - start)


def kill_and_compare(command: str, corpus: Corpus, rng: random.Random) -> None:
    """Kill the whole process group five times while the work is unfinished; then finish it and compare every byte."""
    seconds, _, output = run(command)
    print(f"left alone: {int(output)} segments in {seconds:.1f} s")
    (folder,) = (corpus.path / "annotations").iterdir()
    expected = hash_files(folder)
    shutil.rmtree(folder)
    for kill in range(5):
        target = count_entries(folder) + rng.randrange(4)
        process = start_process(command)
        while process.poll() is None and count_entries(folder) < target:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            raise SystemExit("the work was finished before five kills: choose a larger --megabytes")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        num_done = count_entries(folder)
        assert num_done < len(corpus.shards), "the work was finished before it was killed"
        print(f"kill {kill + 1}: {num_done} of {len(corpus.shards)} shards were done")
    seconds, _, output = run(command)
    print(f"run again: the last {int(output)} segments in {seconds:.1f} s")
    if hash_files(folder) != expected:
        raise SystemExit("FAILED: the bytes differ from those of the run that was left alone")
    print(f"the same bytes in all {len(expected)} files")


def count_entries(folder: Path) -> int:
    """Finished shards of an annotation."""
    path = folder / "manifest.json"
    return sum(entry is not None for entry in json.loads(path.read_text())["shards"]) if path.exists() else 0


def hash_files(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder, hidden ones among them."""
    return {path.name: hash_file(path) for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
