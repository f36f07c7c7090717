"""The scoring of `phf annotate` done by other tools: same text, segments, reward model and number of processes.

    python benchmarks/annotate_rivals.py datasets CORPUS toxicity-svm sentences OUT
    python benchmarks/annotate_rivals.py datatrove CORPUS toxicity-svm sentences OUT

`benchmarks/annotate.py` runs both beside `phf annotate`.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from phf.corpus.segment import segment_ends
from phf.reward_models import RewardModel, load_reward_model
from phf.reward_models.scoring import score_segments

BATCH = 1000
WORKERS = 2


@lru_cache(maxsize=1)
def load_once(spec: str) -> RewardModel:
    return load_reward_model(spec)


def score_texts(texts: list[str], spec: str, segments: Any) -> tuple[list[list[int]], list[list[float]]]:
    """Segment ends and scores of each text."""
    ends = [segment_ends(text, segments) for text in texts]
    flat = iter(score_segments(load_once(spec), texts, ends)[0].tolist())
    return ends, [list(islice(flat, len(stops))) for stops in ends]


def score_batch(batch: dict[str, list[Any]], spec: str, segments: Any) -> dict[str, list[Any]]:
    ends, scores = score_texts(batch["text"], spec, segments)
    return {"ends": ends, "scores": scores}


def score_with_datasets(corpus: Path, spec: str, segments: str, out: Path) -> None:
    """`datasets.map`, cold: Parquet to Arrow, then batches scored by two processes into another Arrow file."""
    from datasets import load_dataset

    files = [str(path) for path in sorted((corpus / "documents").iterdir())]
    dataset = load_dataset("parquet", data_files=files, split="train", cache_dir=str(out))
    options = {"spec": spec, "segments": segments}
    dataset.map(
        score_batch,
        batched=True,
        batch_size=BATCH,
        num_proc=WORKERS,
        fn_kwargs=options,
        remove_columns=["text", "source", "split"],
    )


def score_with_datatrove(corpus: Path, spec: str, segments: str, out: Path) -> None:
    """A datatrove pipeline: Parquet reader, a step that scores, JSONL writer; two tasks by two processes."""
    from datatrove.data import Document, DocumentsPipeline
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import JsonlWriter

    def score(documents: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for batch in batched(documents):
            ends, scores = score_texts([document.text for document in batch], spec, segments)
            for document, stops, values in zip(batch, ends, scores, strict=True):
                document.metadata.update(ends=stops, scores=values)
                document.text = ""  # the scores alone are written, as annotate does
                yield document

    LocalPipelineExecutor(
        [
            ParquetReader(str(corpus / "documents")),
            score,
            JsonlWriter(str(out / "scores"), compression=None),
        ],
        tasks=WORKERS,
        workers=WORKERS,
        logging_dir=str(out / "logs"),
        start_method="fork",
    ).run()


def batched(documents: Iterable[Any]) -> Iterator[list[Any]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, BATCH)):
        yield batch


if __name__ == "__main__":
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    tool, corpus_folder, reward_model, kind, output = sys.argv[1:]
    run = {"datasets": score_with_datasets, "datatrove": score_with_datatrove}[tool]
    run(Path(corpus_folder), reward_model, kind, Path(output))
