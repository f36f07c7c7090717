"""Ray Data as the engine of annotate, for more than one machine (docs/annotate.md).

A task is one shard: the worker that scores it also writes its file, whole, to the corpus's folder or object storage, and
sends back the manifest entry alone. So nothing large passes through the driver, which writes the manifest.
"""

import json
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation_writer import AnnotationWriter, write_annotation_shard
from phf.annotate.engines import score_within
from phf.annotate.scorer import Scorer, ScorerArguments, list_turns, load_scorer
from phf.errors import PHFError
from phf.files import to_path
from phf.processes import count_cores
from phf.records import Progress

# Of a shard whose worker dies: more than bad luck, so that one that takes all memory ends the work.
_TRIES = 4


def write_with_ray(
    writer: AnnotationWriter,
    scorer: Scorer,
    *,
    workers: int | None,
    address: str | None,
    gpus_per_worker: float,
    timeout: float,
    progress: Progress | None,
) -> None:
    """Score and write the pending shards by a pool of Ray actors; a shard whose worker dies is done again by another.

    Args:
        workers: actors; by default as many as the cluster has room for.
        address: of a running cluster; by default Ray is started on this machine, unless it runs in this process.
        gpus_per_worker: GPUs that each actor holds.
        timeout: seconds that a turn may take.
        progress: called with (description, documents done, documents in all).

    Raises:
        PHFError: Ray is not installed, cannot be reached, or lost a shard's worker several times; the reward model
            fails or hangs on a document.
    """
    shards = writer.corpus.shards
    num_documents = sum(shards[index].num_documents for index in writer.pending)
    num_done = 0
    with _connect(address, workers) as ray:
        num_gpus = ray.cluster_resources().get("GPU", 0)
        if address is None and gpus_per_worker > num_gpus:
            raise PHFError(
                f"gpus-per-worker {gpus_per_worker:g} is more than the {num_gpus:g} GPUs of this machine; give fewer, or the "
                "--ray-address of a cluster that has them"
            )
        arguments = scorer.arguments
        if isinstance(writer.corpus.path, Path):  # workers may have another current folder
            arguments = replace(arguments, corpus=str(writer.corpus.path.absolute()))
        # "True multi-threading" of one call at a time means: in the actor's main thread, which a timeout's signal reaches.
        actors = ray.data.ActorPoolStrategy(
            size=workers and min(workers, len(writer.pending)),
            max_concurrent_calls_per_actor=1,
            enable_true_multi_threading=True,
        )
        dataset = ray.data.from_items(
            [{"shard": index} for index in writer.pending], override_num_blocks=len(writer.pending)
        )
        with warnings.catch_warnings():
            # It has no successor for retries yet.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            dataset = dataset.map_batches(
                _ShardWriter,
                fn_constructor_args=(arguments, writer.path.name, timeout),
                batch_size=1,
                compute=actors,
                num_cpus=1,
                num_gpus=gpus_per_worker,
                max_restarts=-1,
                max_task_retries=_TRIES - 1,
            )
        try:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise PHFError(row["error"])
                writer.add_entry(row["shard"], json.loads(row["entry"]))
                num_done += shards[row["shard"]].num_documents
                if progress:
                    progress("annotating documents", num_done, num_documents)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise PHFError(
                f"Ray gave up after {_TRIES} tries of a shard ({type(error).__name__}: {reason}); run the same command "
                "again to go on, perhaps with fewer --workers"
            ) from error


class _ShardWriter:
    """An actor of the pool. Its errors come back as values: Ray would wrap them in its own traceback, and try again."""

    def __init__(self, arguments: ScorerArguments, folder: str, timeout: float) -> None:
        self.arguments = arguments
        self.path = to_path(arguments.corpus) / "annotations" / folder
        self.timeout = timeout

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[object]]:
        """Score and write one shard; gives its entry as JSON, or an error."""
        index = int(batch["shard"][0])
        entry, error = "", ""
        try:
            scorer = load_scorer(self.arguments)
            turns = list_turns(scorer.corpus, index)
            entry = json.dumps(
                write_annotation_shard(
                    self.path / f"{index:05d}.parquet",
                    scorer.corpus.shards[index].sha256,
                    (score_within(scorer, turn, self.timeout) for turn in turns),
                )
            )
        except PHFError as problem:
            error = str(problem)
        except OSError as problem:
            error = f"{self.path}: {problem.strerror or problem}; check the space there, and run the same command again"
        return {"shard": [index], "entry": [entry], "error": [error]}


@contextmanager
def _connect(address: str | None, workers: int | None) -> Iterator[ModuleType]:
    """Ray: as it runs in this process, at an address, or started here for the time of the work."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else it warns of how Ray Data itself makes its actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default, else it warns
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise PHFError("engine 'ray' needs Ray; run: pip install 'phf[ray]'") from None
    is_ours = not ray.is_initialized()
    init = partial(ray.init, logging_level=logging.ERROR, log_to_driver=False)
    try:
        if is_ours and address is not None and (place := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)):
            # Ray itself tries for minutes.
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        if is_ours and address is None:
            init(num_cpus=workers or count_cores(), include_dashboard=False)
        elif is_ours:
            init(address=address)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PHFError(
            f"no Ray cluster answers at {address}: {reason}; see 'ray status' there, or leave --ray-address out"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()
