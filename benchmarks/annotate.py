"""Memory and speed of `phf annotate` on real text, repeated with variations to any size, and beside other tools.

    python benchmarks/annotate.py --dir /tmp/bench                              small: a minute or two
    python benchmarks/annotate.py --dir /tmp/bench --memory 500 1000 2000 --speed 500
    python benchmarks/annotate.py --dir /tmp/bench --memory --speed 0 --short 10000000

Bars: peak memory does not grow with the corpus; a worker's throughput is within 15 % of the bare reward model's on one
core; two workers are at least 1.8 times one; a second run over a finished corpus takes less than 2 s; ahead of
`datasets.map` and of a datatrove pipeline that do the same scoring (annotate_rivals.py). Every tool runs in processes of
its own, cold, with one thread each; seconds include their start.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from phf.corpus.segment import segment_ends
from phf.corpus.sources import Row, iterate_source
from phf.corpus.store import Corpus
from phf.reward_models import load_reward_model, score_documents

ANNOTATE = (
    "from phf.annotate.annotate import annotate; from phf.corpus.store import Corpus\n"
    "print(annotate(Corpus.open({corpus!r}), {model!r}, {segments!r}, workers={workers}).num_scored_now)"
)
BUILD = (
    "from phf.corpus.store import build_corpus; build_corpus([{source!r}], {out!r}, bytes_per_shard={shard})"
)


def main() -> None:
    """Make the text, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="where text and corpora go; made if missing")
    parser.add_argument("--memory", type=int, nargs="*", default=[20, 40, 80], help="sizes in MB of JSONL")
    parser.add_argument("--speed", type=int, default=40, help="size in MB of JSONL; 0 = leave out")
    parser.add_argument("--short", type=int, default=0, help="this many documents of one word")
    parser.add_argument("--reward-model", default="toxicity-svm")
    parser.add_argument("--segments", default="sentences")
    parser.add_argument("--source", default="fortunes", help="real text, repeated with variations")
    parser.add_argument(
        "--shard-megabytes", type=int, default=8, help="text per shard (phf's own default is 64)"
    )
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    if options.memory:
        measure_memory(options)
    if options.speed > 0:
        measure_speed(options)
    if options.short > 0:
        measure_short(options)


def measure_memory(options: argparse.Namespace) -> None:
    """Peak memory of the parent and of its workers for each size, and the slope of both."""
    gigabytes, parents, workers = [], [], []
    for megabytes in options.memory:
        corpus = build(options, write_text(options, megabytes))
        seconds, peaks, _ = run(annotate_code(options, corpus, 2))
        gigabytes.append(sum(shard.num_bytes for shard in corpus.shards) / 1e9)
        parents.append(peaks[0])
        workers.append(max(peaks[1:]))
        print(
            f"memory   {gigabytes[-1]:6.3f} GB of text {seconds:7.1f} s   peak: parent {parents[-1]:5.0f} MB, "
            f"worker {workers[-1]:5.0f} MB"
        )
    if len(gigabytes) > 1:
        spread = gigabytes[-1] - gigabytes[0]
        slopes = [(peaks[-1] - peaks[0]) / spread for peaks in (parents, workers)]
        print(f"memory   slope: parent {slopes[0]:+.0f}, worker {slopes[1]:+.0f} MB per GB of text")


def measure_speed(options: argparse.Namespace) -> None:
    """Against the bare reward model, one worker against two, a second run, and the other tools."""
    corpus = build(options, write_text(options, options.speed))
    num_bytes = sum(shard.num_bytes for shard in corpus.shards)
    print(
        f"corpus   {num_bytes / 1e6:.0f} MB of text, {corpus.num_documents} documents, {len(corpus.shards)} shards"
    )
    bare, cutting = measure_bare(corpus, options.reward_model, options.segments)
    cpu, num_segments = measure_cpu(options, corpus)
    print(
        f"per core {num_segments} segments; CPU: bare reward model {num_segments / bare:.0f}/s, cutting segments "
        f"{num_segments / cutting:.0f}/s, annotate {num_segments / cpu:.0f}/s"
    )
    print(
        f"per core annotate is {bare / cpu:.2f} of the bare reward model, {(bare + cutting) / cpu:.2f} of it with cutting"
    )
    seconds = {}
    for workers in (1, 2):
        shutil.rmtree(corpus.path / "annotations", ignore_errors=True)
        seconds[f"phf, {workers} worker{'s' * (workers > 1)}"], _, _ = run(
            annotate_code(options, corpus, workers)
        )
    again, _, output = run(annotate_code(options, corpus, 2))
    for tool in ("datasets", "datatrove"):
        out = options.dir / tool
        shutil.rmtree(out, ignore_errors=True)
        script = Path(__file__).with_name("annotate_rivals.py")
        arguments = [tool, corpus.path, options.reward_model, options.segments, out]
        seconds[f"{tool}, 2 processes"], _, _ = run([script, *map(str, arguments)])
    for name, value in seconds.items():
        print(f"wall     {name:24} {value:7.1f} s {num_segments / value:9.0f} segments/s")
    phf = seconds["phf, 2 workers"]
    print(
        f"ratios   two workers to one: {seconds['phf, 1 worker'] / phf:.2f}; phf to datasets.map: "
        f"{seconds['datasets, 2 processes'] / phf:.2f}; phf to datatrove: {seconds['datatrove, 2 processes'] / phf:.2f}"
    )
    print(f"again    scored {int(output)} segments in {again:.1f} s")


def measure_short(options: argparse.Namespace) -> None:
    """Very many documents of one word."""
    text = options.dir / f"short-{options.short}.jsonl"
    with text.open("w") as file:
        file.writelines(f'{{"text": "x{number}"}}\n' for number in range(options.short))
    start = time.monotonic()
    corpus = build(options, text, 64)
    seconds_build = time.monotonic() - start
    seconds, peaks, output = run(annotate_code(options, corpus, 2))
    print(
        f"short    {int(output)} documents: build {seconds_build:.1f} s, annotate {seconds:.1f} s; peak: parent "
        f"{peaks[0]:.0f} MB, worker {max(peaks[1:]):.0f} MB"
    )


def measure_bare(corpus: Corpus, reward_model: str, segments: str) -> tuple[float, float]:
    """CPU seconds of the reward model alone, text and ends in memory, and of cutting the segments; all of the corpus."""
    model = load_reward_model(reward_model)
    score_documents(model, [("What is loaded at the first call.", [33])])
    bare = cutting = 0.0
    for index in range(len(corpus.shards)):
        with corpus.open_shard(index) as file:
            for group in range(file.num_row_groups):
                texts = file.read_row_group(group)["text"].to_pylist()
                start = time.process_time()
                documents = [(text, segment_ends(text, segments)) for text in texts]
                cut = time.process_time()
                score_documents(model, documents)
                bare += time.process_time() - cut
                cutting += cut - start
    return bare, cutting


def measure_cpu(options: argparse.Namespace, corpus: Corpus) -> tuple[float, int]:
    """CPU seconds of annotate by one worker, without the start of Python, and the number of segments."""
    shutil.rmtree(corpus.path / "annotations", ignore_errors=True)
    code = annotate_code(options, corpus, 1)
    timed = f"import time\nfrom phf.annotate.annotate import annotate\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
    output = run(timed)[2].split()
    return float(output[1]), int(output[0])


def annotate_code(options: argparse.Namespace, corpus: Corpus, workers: int) -> str:
    return ANNOTATE.format(
        corpus=str(corpus.path), model=options.reward_model, segments=options.segments, workers=workers
    )


def build(options: argparse.Namespace, text: Path, shard_megabytes: int | None = None) -> Corpus:
    """The corpus of a JSONL file, made anew in a process of its own."""
    out = options.dir / f"corpus-{text.stem}"
    shutil.rmtree(out, ignore_errors=True)
    run(
        BUILD.format(source=str(text), out=str(out), shard=(shard_megabytes or options.shard_megabytes) << 20)
    )
    return Corpus.open(out)


def write_text(options: argparse.Namespace, megabytes: int) -> Path:
    """Real documents, over and over; a number in each round's copies keeps them from being duplicates."""
    path: Path = options.dir / f"{options.source.replace(':', '-')}-{megabytes}.jsonl"
    if path.exists():
        return path
    documents = list(
        dict.fromkeys(row.text for row in iterate_source(options.source) if isinstance(row, Row))
    )
    with path.open("w", encoding="utf-8") as file:
        for document in chain.from_iterable(vary(documents, number) for number in count()):
            file.write(json.dumps({"text": document}) + "\n")
            if file.tell() > megabytes * 1_000_000:
                return path
    raise AssertionError("count() has no end")


def vary(documents: list[str], number: int) -> Iterator[str]:
    """Yields the documents, each with a sentence that no other round has."""
    return (f"{document} This is copy {number}." if number > 0 else document for document in documents)


def run(code: str | list[str | Path]) -> tuple[float, list[float], str]:
    """Run Python code, or a script with arguments, in processes of its own.

    Gives seconds, the peak memory in MB of the first process and of each of its children, and the output.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if isinstance(code, str) else code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for member in find_family(process.pid):
            peaks[member] = max(peaks.get(member, 0.0), read_peak(member))
        time.sleep(0.1)
    output, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"failed with {process.returncode}: {code}\n{errors}")
    first = peaks.pop(process.pid, 0.0)
    return time.monotonic() - start, [first, *peaks.values()], output


def find_family(process: int) -> list[int]:
    """A process and its children (Linux)."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *map(int, children)]


def read_peak(process: int) -> float:
    """Peak resident memory in MB; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:")), 0.0)


if __name__ == "__main__":
    main()
