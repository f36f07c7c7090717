"""Shards of anything made by a pool of Ray actors, on this machine or many (docs/annotate.md).

A task is one shard: the worker that makes it also writes its files, whole, and sends back its manifest entry alone. So nothing
large passes through the driver, which writes the manifest.
"""

import json
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.processes import count_cores

# Of a shard whose worker dies: more than bad luck, so that one that takes all memory ends the work.
_TRIES = 4
_STARTS = 3
"""Of Ray on this machine: it waits half a minute for its own processes, which a loaded machine may need longer for."""

WriteShard = Callable[[int], Any]
"""Makes and writes the shard of an index; gives its manifest entry, of JSON values."""


@dataclass(frozen=True, slots=True)
class RayPool:
    """Where shards are made.

    Attributes:
        workers: actors; None: as many as the cluster has room for.
        address: of a running cluster; None: Ray is started on this machine, unless it runs in this process.
        gpus_per_worker: GPUs that each actor holds.
    """

    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 0.0

    def map(
        self, open_writer: Callable[..., WriteShard], arguments: Sequence[object], shards: Sequence[int]
    ) -> Generator[tuple[int, Any], None, None]:
        """Shards and their entries, as they get done; one whose worker dies is made again by another. Close it to stop Ray.

        Args:
            open_writer: called once in each actor, with `arguments`; a function of a module.
            arguments: picklable ones.

        Raises:
            PHFError: Ray is not installed, cannot be reached, or lost a shard's worker several times; of a worker.
        """
        with self.connect() as ray:
            num_gpus = ray.cluster_resources().get("GPU", 0)
            if self.address is None and self.gpus_per_worker > num_gpus:
                raise PHFError(
                    f"gpus-per-worker {self.gpus_per_worker:g} is more than the {num_gpus:g} GPUs of this machine; give fewer, or "
                    "the --ray-address of a cluster that has them"
                )
            # "True multi-threading" of one call at a time means: in the actor's main thread, which a timeout's signal reaches.
            actors = ray.data.ActorPoolStrategy(
                size=self.workers and min(self.workers, len(shards)),
                max_concurrent_calls_per_actor=1,
                enable_true_multi_threading=True,
            )
            dataset = ray.data.from_items(
                [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
            )
            with warnings.catch_warnings():
                # It has no successor for retries yet.
                warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
                dataset = dataset.map_batches(
                    _ShardWriter,
                    fn_constructor_args=(open_writer, arguments),
                    batch_size=1,
                    compute=actors,
                    num_cpus=1,
                    num_gpus=self.gpus_per_worker,
                    max_restarts=-1,
                    max_task_retries=_TRIES - 1,
                )
            try:
                for row in dataset.iter_rows():
                    if row["error"]:
                        raise PHFError(row["error"])
                    yield row["shard"], json.loads(row["entry"])
            except ray.exceptions.RayError as error:
                raise PHFError(
                    f"Ray gave up after {_TRIES} tries of a shard ({type(error).__name__}: {_shorten(error)}); run the same "
                    "command again to go on, perhaps with fewer --workers"
                ) from error

    @contextmanager
    def connect(self) -> Iterator[ModuleType]:
        """Ray: as it runs in this process, at the address, or started here for the time of the work."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Else it warns of how Ray Data itself makes its actors.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
        )  # Ray's future default, else it warns
        try:
            import ray
            import ray.data
        except ModuleNotFoundError:
            raise PHFError("engine 'ray' needs Ray; run: pip install 'phf[ray]'") from None
        is_ours = not ray.is_initialized()
        init = partial(ray.init, logging_level=logging.ERROR, log_to_driver=False)
        if is_ours and self.address is None:
            _start(ray, partial(init, num_cpus=self.workers or count_cores(), include_dashboard=False))
        elif is_ours:
            _join(init, str(self.address))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            yield ray
        finally:
            if is_ours:
                ray.shutdown()


class _ShardWriter:
    """An actor of the pool. Its errors come back as values: Ray would wrap them in its own traceback, and try again."""

    def __init__(self, open_writer: Callable[..., WriteShard], arguments: Sequence[object]) -> None:
        self._open = partial(open_writer, *arguments)
        self._write: WriteShard | None = None

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, list[object]]:
        """Write one shard; gives its entry as JSON, or an error."""
        index = int(batch["shard"][0])
        entry, error = "", ""
        try:
            if self._write is None:
                self._write = self._open()
            entry = json.dumps(self._write(index))
        except PHFError as problem:
            error = str(problem)
        except OSError as problem:
            place = f"{problem.filename}: " if problem.filename else ""
            error = (
                f"{place}{problem.strerror or problem}; check the space there, and run the same command again"
            )
        return {"shard": [index], "entry": [entry], "error": [error]}


def _start(ray: ModuleType, init: Callable[[], object]) -> None:
    for start in range(1, _STARTS + 1):
        try:
            init()
            return
        except Exception as error:  # Ray has no class of its own for a start that takes too long
            ray.shutdown()
            if start == _STARTS:
                raise PHFError(
                    f"Ray did not start on this machine in {_STARTS} tries ({_shorten(error)}); see /tmp/ray/session_latest/logs, "
                    "or leave --engine ray out"
                ) from error


def _join(init: Callable[..., object], address: str) -> None:
    try:
        if place := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):
            # Ray itself tries for minutes.
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        init(address=address)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise PHFError(
            f"no Ray cluster answers at {address}: {_shorten(error)}; see 'ray status' there, or leave --ray-address out"
        ) from error


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
