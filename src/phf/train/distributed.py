"""Many processes: who I am among them, and the model wrapped so that their gradients become one.

Every rank reads its own rows of the same global batch. Small numbers (counts, flags) travel through gloo on the CPU, so
that a step waits for no GPU because of them.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from phf.errors import PHFError
from phf.model import lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments, in float32."""
TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one another: the slowest disk may be writing a checkpoint."""

DataParallel = Literal["none", "ddp", "fsdp"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RankLostError(PHFError):
    """Another process of the run is gone."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run; alone by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, *numbers: float) -> list[float]:
        """The sum of each number over all ranks."""
        return self._reduce(numbers, dist.ReduceOp.SUM)

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks, in place, on its device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, *numbers: float) -> list[float]:
        """The highest of each number over all ranks."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.sum(0)

    def share(self, work: Callable[[], _T], group: dist.ProcessGroup | None = None) -> list[_T]:
        """Do this rank's part of some work; every rank gets the results of all, in the order of ranks.

        Raises:
            PHFError: the work of some rank raised it; then all raise it.
        """
        if self.size == 1:
            return [work()]
        try:
            own: _T | PHFError = work()
        except PHFError as error:
            own = error
        results = [own] * self.size
        dist.all_gather_object(results, own, group)
        done: list[_T] = []
        for result in results:
            if isinstance(result, PHFError):
                raise result
            done.append(result)
        return done

    def rows(self, step: int, batch_blocks: int) -> npt.NDArray[np.int64]:
        """This rank's blocks of a step's batch; the ranks' rows, joined, are the batch of one process."""
        share = batch_blocks // self.size
        first = step * batch_blocks + self.rank * share
        return np.arange(first, first + share)

    def _reduce(self, numbers: tuple[float, ...], operation: "dist.ReduceOp.RedOpType") -> list[float]:
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return [float(number) for number in tensor]


@contextmanager
def join_ranks(batch_blocks: int) -> Iterator[Ranks]:
    """The process group that torchrun's (or Slurm's) environment describes; without one, this process alone.

    Raises:
        PHFError: the batch does not divide among the processes; a process went away (`RankLostError`).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    if batch_blocks % size != 0:
        raise PHFError(
            f"optim.batch_blocks={batch_blocks} does not divide among {size} processes; "
            f"give a multiple of {size}, or start a number of processes that divides {batch_blocks}"
        )
    ranks = Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.device)
    try:
        _init_process_group(ranks)
        yield ranks
        dist.destroy_process_group()
    except RuntimeError as error:
        # Which class is raised depends on the back end and on where the connection broke.
        if not isinstance(error, dist.DistError) and not any(
            word in str(error) for word in ("gloo", "NCCL", "Connection")
        ):
            raise
        raise RankLostError(
            f"rank {ranks.rank} lost its connection to the other processes: one of them ended (its own message says why); "
            "start the same command again, or let torchrun do so with --max-restarts"
        ) from None


def _init_process_group(ranks: Ranks) -> None:
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore(_agree_on_session(store, ranks), store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT)


def _agree_on_session(store: Any, ranks: Ranks) -> str:
    """A name for this start of the ranks. torchrun may keep one store over its restarts, in which they would find the
    addresses of those that died (pytorch issue 135712); its count of restarts differs between nodes.

    The first rank makes up a name and collects an answer of each other; these wait until it has read theirs.
    """
    own = uuid.uuid4().hex
    if ranks.is_first:
        store.set("phf/session", own)
        answers = [store.get(f"phf/{own}/{rank}") for rank in range(1, ranks.size)]
        store.set(f"phf/{own}/answers", b" ".join(answers))
        return own
    while True:
        session = str(store.get("phf/session"), "ascii")  # perhaps that of the start before
        store.set(f"phf/{session}/{ranks.rank}", own)
        answered = f"phf/{session}/answers"
        if store.check([answered]) and own.encode() in store.get(answered):
            return session
        time.sleep(0.05)


def is_restart() -> bool:
    """Whether torchrun or Slurm started this same command before: then it goes on with the run instead of refusing it."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that ranks may share; then all of them must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Trained(nn.Module):
    """What is trained: the model and, for AWR, its value head.

    Its forward runs any function of them: DDP and FSDP act when a module's forward is called, and so see the loss and
    the validation alike.
    """

    def __init__(self, model: "PreTrainedModel", value_head: lm.ValueHead | None) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(self, function: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs) -> _T:
        """Call a function that uses the parameters."""
        return function(*arguments, **keywords)


def choose_data_parallel(
    choice: Literal["auto", "ddp", "fsdp"], num_parameters: int, ranks: Ranks
) -> DataParallel:
    """How the ranks share a model: `auto` shards once weights, gradients and moments fill half of a GPU's memory."""
    if ranks.size == 1:
        return "none"
    if choice != "auto":
        return choice
    if ranks.device.type == "cpu":
        return "ddp"
    memory = torch.cuda.get_device_properties(ranks.device).total_memory
    return "fsdp" if BYTES_PER_PARAMETER * num_parameters > memory / 2 else "ddp"


def shard(trained: Trained, ranks: Ranks) -> None:
    """FSDP2 in place: every layer is gathered where it runs; embeddings, norm and value head with the whole.

    Call it before optimizers are made: they then hold shards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # slow to import, and one process has no use for it

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for layers in (module for module in trained.model.modules() if isinstance(module, nn.ModuleList)):
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    # Gathered again in the backward pass, so that after a validation, which has none, nothing whole is left to go stale.
    fully_shard(trained, mesh=mesh, reshard_after_forward=True)


def replicate(trained: Trained, *, has_idle: bool) -> DistributedDataParallel:
    """DDP: gradients are averaged while the last micro-batch runs backwards.

    Args:
        has_idle: whether some parameters take no part in some steps (AWR's value head while AWR is not active).
    """
    return DistributedDataParallel(trained, gradient_as_bucket_view=True, find_unused_parameters=has_idle)
