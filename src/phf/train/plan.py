"""What a run would cost, without running it: `phf train --dry-run`."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from phf.config.train import TrainConfig
from phf.errors import PHFError
from phf.model import lm
from phf.model.attention import use_page_attention
from phf.terminal import format_duration
from phf.train.data import TrainingData, open_data
from phf.train.distributed import BYTES_PER_PARAMETER
from phf.train.folder import count_steps
from phf.train.loop import create_model, create_model_and_head
from phf.train.losses import autocast, loss_sum
from phf.train.start import resolve_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ASSUMED_MFU = 0.4
"""Model FLOPs utilisation of a GPU assumed where none is given: what well-set dense training reaches on an H100."""
ASSUMED_CPU_MFU = 0.1
"""The same for a CPU, against its best large product, where a model is too large to be tried: 11k tokens/s of the 2.5M preset
on two cores with AMX (docs/log.md) are 0.2 TFLOP/s, where one large bf16 product reaches 2.4. Without AMX it is six times this."""
TRIAL_SECONDS = 2.0
"""A CPU is timed on as many blocks of the run's own first batch as this buys at `ASSUMED_CPU_MFU`."""
HOST_SECONDS = 0.04 / 12
"""What the host takes to launch the kernels of one layer, forward and backward, for one micro-batch: 40 ms for the 12 layers of
124M on an H100's host (docs/training.md). A GPU computes meanwhile; small models and micro-batches wait for it."""
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Device:
    """A device's peak in dense bf16 (fp32 on a CPU without it), in FLOP/s, and its memory in bytes."""

    name: str
    peak_flops: float
    memory: int | None


GPUS = {  # NVIDIA's data sheets: dense tensor-core bf16, memory
    name: Device(name, teraflops * 1e12, gigabytes * GIB)
    for name, teraflops, gigabytes in (
        ("A10G", 70, 24),
        ("A100-40GB", 312, 40),
        ("A100", 312, 80),
        ("L4", 121, 24),
        ("L40S", 362, 48),
        ("RTX4090", 165, 24),
        ("H100", 989, 80),
        ("H200", 989, 141),
        ("B200", 2250, 180),
    )
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank. Activations are an estimate (NaN: of this architecture there is none); the rest is exact for AdamW in float32."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """Of all four."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run.

    Attributes:
        flops_per_token: forward and backward: 6 per parameter that multiplies, and 12 x layers x width x context for
            attention (the PaLM paper's appendix B, causality not deducted).
        first_step: where it starts, if another run's weights are its start.
        mfu: share of the device's peak that training reaches: given, assumed, or timed (`is_timed`) on this CPU.
        host_seconds: what a micro-batch takes at least, however fast the device is.
        is_probed: whether `model.init` was loaded and can be trained; without `init` there is nothing to ask.
    """

    config: TrainConfig
    device: Device
    num_ranks: int
    mfu: float
    num_parameters: int
    tokens_per_epoch: int
    first_step: int
    num_steps: int
    flops_per_token: float
    parallel: str
    micro_blocks: int
    memory: Memory
    host_seconds: float = 0.0
    is_probed: bool = True
    is_timed: bool = False

    @property
    def num_tokens(self) -> int:
        """Model inputs that are trained on from here."""
        return (self.num_steps - self.first_step) * self.config.optim.batch_blocks * self.config.data.context

    @property
    def seconds(self) -> float:
        """FLOPs over what the ranks reach, or the host's time if that is more; validation, checkpoints and start
        are not in it."""
        return max(self.computing, self.launching)

    @property
    def computing(self) -> float:
        """Seconds of a rank's device at its share of the peak."""
        return self.num_tokens * self.flops_per_token / (self.device.peak_flops * self.mfu * self.num_ranks)

    @property
    def launching(self) -> float:
        """Seconds in which a rank's host launches the work of its device."""
        micro_batches = math.ceil(self.config.optim.batch_blocks / self.num_ranks / self.micro_blocks)
        return (self.num_steps - self.first_step) * micro_batches * self.host_seconds

    def describe(self) -> list[str]:
        """Lines to read."""
        config, memory, device = self.config, self.memory, self.device
        batch = config.optim.batch_blocks
        ranks = f"{self.num_ranks} x {device.name}" if self.num_ranks > 1 else device.name
        lines = [
            f"parameters  {self.num_parameters:,}",
            f"tokens      {self.num_tokens:,} = {self.num_tokens / self.tokens_per_epoch:.2f} epochs of {self.tokens_per_epoch:,}",
            f"steps       {self.num_steps - self.first_step:,} of {batch} x {config.data.context} = "
            f"{batch * config.data.context:,} tokens",
            f"FLOPs       {self.num_tokens * self.flops_per_token:.3g} ({self.flops_per_token:.3g} a token)",
            f"memory      {_size(memory.total)} a rank: weights {_size(memory.weights)}, gradients {_size(memory.gradients)}, "
            f"optimizer {_size(memory.optimizer)}, activations about {_size(memory.activations)} "
            f"(micro-batches of {self.micro_blocks} blocks{', ' + self.parallel if self.num_ranks > 1 else ''})",
            f"time        {format_duration(self.seconds)} on {ranks}: {self.num_tokens / self.seconds:,.0f} tokens/s, "
            f"{'as timed just now:' if self.is_timed else 'assuming'} {self.mfu:.0%} of {device.peak_flops / 1e12:.3g} TFLOP/s",
        ]
        if self.launching > self.computing:
            lines.append(
                f"note        the device would take {format_duration(self.computing)} and waits for its host, which is assumed to "
                f"need {1000 * self.host_seconds:.3g} ms for a micro-batch; larger ones are quicker"
            )
        if not self.is_probed:
            lines.append(
                f"note        {config.model.init} is no folder here, or too large for this machine: training itself looks whether "
                "it has a plain head and isolates documents"
            )
        if device.memory is not None and memory.total > 0.9 * device.memory:
            lines.append(
                f"warning     that leaves no room in {_size(device.memory)}; give a smaller optim.micro_batch_blocks, or more "
                "processes with data_parallel=fsdp"
            )
        return lines


def plan_run(
    config: TrainConfig, *, gpu: str | None = None, num_ranks: int = 1, mfu: float | None = None
) -> Plan:
    """Size up a run; needs its corpus, annotation and tokens, and writes nothing.

    Args:
        gpu: one of `GPUS`; None measures this machine's CPU.
        mfu: share of the device's peak that training is assumed to reach; default, `ASSUMED_MFU` of a GPU, and what some blocks
            of the run reach on this CPU (`ASSUMED_CPU_MFU` if not one can be tried).

    Raises:
        PHFError: see `open_data` and `lm.load_init`; the GPU is not known; the batch does not divide among the ranks.
    """
    if gpu is not None and gpu not in GPUS:
        raise PHFError(f"gpu '{gpu}' is not known; choose {', '.join(GPUS)}")
    if config.optim.batch_blocks % num_ranks != 0:
        raise PHFError(
            f"optim.batch_blocks={config.optim.batch_blocks} does not divide among {num_ranks} processes"
        )
    data = open_data(config, to_train=True)
    first_step = 0 if config.start is None else int(resolve_start(config.start, data)["first_step"])
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if gpu is not None or lm.probe_bf16() else "fp32"
    device = GPUS[gpu] if gpu is not None else _measure_cpu(precision)
    micro_blocks = min(
        config.optim.micro_batch_blocks or config.optim.batch_blocks, config.optim.batch_blocks // num_ranks
    )
    fake = FakeTensorMode()  # shapes and dtypes only: no weight is made, no product computed
    model, is_probed = check_model(data, fake)
    num_parameters = lm.num_parameters(model)
    with fake:
        try:
            activations = _measure_activations(model, data, micro_blocks, precision, is_gpu=gpu is not None)
        except (
            AttributeError,
            RuntimeError,
        ):  # without numbers some operators fail: products of experts in float32
            activations = math.nan
    parallel = config.data_parallel
    if parallel == "auto":
        is_large = device.memory is not None and BYTES_PER_PARAMETER * num_parameters > device.memory / 2
        parallel = "fsdp" if is_large else "ddp"
    share = num_ranks if parallel == "fsdp" else 1
    text = model.config.get_text_config()
    attention = 12 * text.num_hidden_layers * text.hidden_size * config.data.context
    flops_per_token = 6 * num_multiplying(model) + attention
    timed = None
    if gpu is None and mfu is None and is_probed:
        affordable = int(
            TRIAL_SECONDS * ASSUMED_CPU_MFU * device.peak_flops / (flops_per_token * config.data.context)
        )
        if affordable > 0:
            timed = (
                _time_blocks(data, min(micro_blocks, affordable), precision)
                * flops_per_token
                / device.peak_flops
            )
    return Plan(
        config=config,
        device=device,
        num_ranks=num_ranks,
        mfu=mfu or timed or (ASSUMED_MFU if gpu is not None else ASSUMED_CPU_MFU),
        num_parameters=num_parameters,
        tokens_per_epoch=data.training_blocks().num_tokens_per_epoch,
        first_step=first_step,
        num_steps=count_steps(config.tokens, config.optim.batch_blocks, config.data.context),
        flops_per_token=flops_per_token,
        parallel=parallel,
        micro_blocks=micro_blocks,
        memory=Memory(
            weights=4 * num_parameters / share,
            gradients=4 * num_parameters / share,
            optimizer=(BYTES_PER_PARAMETER - 8) * num_parameters / share,
            activations=activations,
        ),
        host_seconds=HOST_SECONDS * text.num_hidden_layers if gpu is not None else 0.0,
        is_probed=is_probed,
        is_timed=timed is not None,
    )


def check_model(data: TrainingData, fake: FakeTensorMode | None = None) -> tuple["PreTrainedModel", bool]:
    """A run's model in its shapes alone, and whether its weights are from scratch or were looked at: not where they are on
    the Hub, or too large for this machine.

    Raises:
        PHFError: the run could not begin with it; see `lm.create_model`.
    """
    init, memory = data.config.model.init, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with fake or FakeTensorMode():
        model = create_model(data, has_weights=False)
    is_probed = init is None or (Path(init).is_dir() and 4 * lm.num_parameters(model) < memory / 2)
    if init is not None and is_probed:
        lm.load_init(init, isolate_documents=data.config.data.isolate_documents)
    return model, is_probed


def num_multiplying(model: "PreTrainedModel") -> int:
    """Parameters that take part in a product: all but an input embedding that is not the head as well."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return lm.num_parameters(model) - (table.numel() if table is not head else 0)


def _measure_activations(
    model: "PreTrainedModel", data: TrainingData, num_blocks: int, precision: str, *, is_gpu: bool
) -> float:
    """Bytes kept for the backward pass of some blocks, and the head's scratch; linear in the number of blocks."""
    one, two = (_saved_bytes(model, data.config.data.context, count, precision) for count in (1, 2))
    vocabulary: int = model.get_output_embeddings().weight.shape[0]
    num_logits = num_blocks * data.config.data.context
    saved = one + (num_blocks - 1) * (two - one)
    if vocabulary < lm.CHUNKED_HEAD_VOCABULARY:
        return saved + 2 * 4 * num_logits * vocabulary
    # A GPU keeps a slope for each logit; on an H100 this estimate is within 3 % of the peak (docs/log.md).
    if is_gpu:
        slopes = (2 if precision == "bf16" else 4) * num_logits * vocabulary
        return saved + slopes + 4 * 4 * min(num_logits, lm.SLOPE_CHUNK_TOKENS) * vocabulary
    return saved + 2 * 4 * min(num_logits, lm.HEAD_CHUNK_TOKENS) * vocabulary


def _saved_bytes(model: "PreTrainedModel", context: int, num_blocks: int, precision: str) -> int:
    ids = torch.zeros(num_blocks, context, dtype=torch.int64)
    positions = torch.arange(context).expand(num_blocks, context)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage  # kept, so that no other takes its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        autocast(torch.device("cpu"), precision),
    ):
        lm.token_nll(model, ids, ids, positions)
    return sum(storage.nbytes() for storage in saved.values())


def _time_blocks(data: TrainingData, num_blocks: int, precision: str) -> float:
    """Tokens per second of a forward and backward pass over the first blocks: the better of two, after one that warms up."""
    model, value_head = create_model_and_head(data, torch.device("cpu"))
    use_page_attention(model)
    batch = data.training_blocks().batch(0, num_blocks)
    best = math.inf
    for _ in range(3):
        start = perf_counter()
        loss, _ = loss_sum(model, value_head, data, batch, precision)
        torch.autograd.backward(loss)
        best = min(best, perf_counter() - start)
    return batch.ids.size / best


def _measure_cpu(precision: str, size: int = 1024, repeats: int = 5) -> Device:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(2, size, size, dtype=dtype)
    left @ right  # the first product of a dtype compiles its kernel
    best = math.inf
    for _ in range(repeats):
        start = perf_counter()
        left @ right
        best = min(best, perf_counter() - start)
    return Device(f"this CPU ({torch.get_num_threads()} threads, {precision})", 2 * size**3 / best, None)


def _size(num_bytes: float) -> str:
    if math.isnan(num_bytes):
        return "unknown"
    return f"{num_bytes / GIB:.3g} GiB" if num_bytes > GIB / 10 else f"{num_bytes / 2**20:.3g} MiB"
