"""One GPU: parity with the CPU reference, the pipeline end to end, tokens/s and MFU of the 124M preset through phf's loop.

benchmarks/gpu.sh
"""

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from phf.annotate.annotate import annotate
from phf.config.train import ModelConfig, TrainConfig, parse
from phf.control import ControlTokens
from phf.corpus.store import Corpus, build_corpus
from phf.model import lm
from phf.model.attention import use_page_attention
from phf.records import Batch
from phf.tokens.tokens import tokenize
from phf.train import loop
from phf.train.gradients import Gradients

LARGE = 50_000
"""Vocabulary of the 124M model."""
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    check_parity()
    check_head()
    with tempfile.TemporaryDirectory() as folder:
        corpus = run_pipeline(Path(folder))
        check_waits(Path(folder), corpus)
        for micro_batch, compiled in ((16, False), (16, True), (32, True), (64, True)):
            measure(Path(folder), corpus, micro_batch, compiled)


def make_model(preset: str, vocabulary: int, context: int) -> lm.PreTrainedModel:
    control = ControlTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1)
    return lm.create_model(
        ModelConfig(preset=preset), vocab_size=vocabulary, control=control, context=context, seed=0
    )


def make_positions(rows: int, context: int, page: int) -> torch.Tensor:
    return (torch.arange(context) % page).expand(rows, context).contiguous()


def check_parity() -> None:
    """NLL on both devices, on pages that do not see each other: float32, and attention inside pages in bf16; the leak test."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = make_model("2.5M", 4096, 256)
    ids, targets = torch.randint(0, 4000, (2, 4, 256), generator=torch.Generator().manual_seed(0))
    positions = make_positions(4, 256, 100)
    with torch.no_grad():
        here = lm.token_nll(model, ids, targets, positions)
        model.cuda()
        there = lm.token_nll(model, ids.cuda(), targets.cuda(), positions.cuda()).cpu()
        changed = ids.clone()
        changed[:, :100] = (changed[:, :100] + 1) % 4000
        before, after = (
            lm.hidden_states(model, x.cuda(), positions.cuda())[:, 100:200] for x in (ids, changed)
        )
    print(
        f"parity: largest difference of NLL CPU - GPU {float((here - there).abs().max()):.2e} nats (float32)"
    )
    print(f"leak between pages: {float((before - after).abs().max()):.2e}")
    assert torch.allclose(here, there, atol=1e-3)
    assert torch.equal(before, after)
    with torch.autocast("cuda", torch.bfloat16):
        own = lm.token_nll(model, ids.cuda(), targets.cuda(), positions.cuda())
        own.mean().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        assert use_page_attention(model), "varlen_attn does not give the model's own attention"
        pages = lm.token_nll(model, ids.cuda(), targets.cuda(), positions.cuda())
        pages.mean().backward()
    error, own_error = (float((x.cpu() - here).abs().mean()) for x in (pages.detach(), own.detach()))
    print(
        f"mean distance of bf16's NLL from the CPU's float32: inside pages {error:.2e}, own attention {own_error:.2e}"
    )
    distances = [
        float((parameter.grad - gradient).norm() / gradient.norm())
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    ]
    print(f"largest relative distance of a gradient inside pages from own attention's: {max(distances):.2e}")
    assert error < 1.5 * own_error
    assert max(distances) < 0.1


def check_head() -> None:
    """A large vocabulary's NLL and gradients: the head of the GPU, compiled too, against the CPU's chunks, in float32."""
    model = make_model("1M", 20_000, 256)  # its embedding is tied, so its gradient is the head's as well
    ids, targets = torch.randint(0, 19_000, (2, 4, 256), generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    positions = make_positions(4, 256, 100)

    def compute(device: str) -> list[torch.Tensor]:
        model.to(device).zero_grad()
        nll = lm.token_nll(model, *(x.to(device) for x in (ids, targets, positions)))
        nll.backward(upstream.to(device))
        gradients = [parameter.grad for parameter in model.parameters()]
        return [x.detach().cpu().clone() for x in (nll, *gradients)]

    expected, eager = compute("cpu"), compute("cuda")
    model.compiled_slopes = torch.compile(lm.slopes_of_logits, dynamic=False)
    pairs = [pair for found in (eager, compute("cuda")) for pair in zip(found, expected, strict=True)]
    error = max(float((found - right).norm() / right.norm()) for found, right in pairs)
    print(f"large head: largest relative distance of NLL and gradients CPU - GPU {error:.2e} (float32)")
    assert error < 1e-4


def run_pipeline(folder: Path) -> Corpus:
    """Text to trained models on this machine: Conditional and MLE on the standard library's source, scored by pii."""
    start = time.perf_counter()
    corpus = build_corpus(["python-source:stdlib"], folder / "corpus")
    annotate(corpus, "pii", "lines")
    for size in (4096, LARGE):
        tokenize(corpus, f"train:{size}", "lines")
    print(f"corpus, annotation, tokens: {time.perf_counter() - start:.1f} s")
    for objective in ({"kind": "mle"}, {"kind": "conditional", "threshold": 0.0}):
        config = {
            "corpus": str(corpus.path),
            "reward_model": "pii",
            "segments": "lines",
            "good": {"threshold": 0.0},
            "objective": objective,
            "model": {"preset": "2.5M"},
            "optim": {"batch_blocks": 32, "name": "muon"},
            "tokens": 2_000_000,
            "checkpoint_every": 0,
        }
        run = loop.train(parse(TrainConfig, config, "gpu"), folder / objective["kind"], say=lambda line: None)
        lines = run.read_metrics()
        losses = [line["nll_all"] for line in lines if line["kind"] == "validation"]
        speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
        print(
            f"2.5M {objective['kind']}, {run.record['precision']}: validation NLL {losses[0]:.2f} -> {losses[-1]:.2f}, "
            f"{np.median(speeds):,.0f} tokens/s"
        )
        assert losses[-1] < losses[0] - 3
    return corpus


def measure(folder: Path, corpus: Corpus, micro_batch: int, compiled: bool) -> None:
    """`phf train` on the 124M preset: 64 blocks of 1,024 tokens a step, bf16; the second half, long after compiling."""
    steps, context, batch_blocks = 40, 1024, 64
    config = {
        "corpus": str(corpus.path),
        "reward_model": "pii",
        "segments": "lines",
        "tokenizer": f"train:{LARGE}",
        "good": {"threshold": 0.0},
        "objective": {"kind": "conditional", "threshold": 0.0},
        "model": {"preset": "124M"},
        "data": {"context": context},
        "optim": {"batch_blocks": batch_blocks, "micro_batch_blocks": micro_batch},
        "tokens": steps * batch_blocks * context,
        "precision": "bf16",
        "compile": compiled,
        "checkpoint_every": 0,
        "validate_every": 0,
        "validation_blocks": 16,
        "log_every": steps // 2,
    }
    assert steps // 2 > loop.COMPILE_FROM_STEP
    torch.compiler.reset()  # as in a new process
    torch.cuda.reset_peak_memory_stats()
    name = f"124M-{micro_batch}-{compiled}"
    run = loop.train(parse(TrainConfig, config, "gpu"), folder / name, say=lambda line: None)
    lines = [line for line in run.read_metrics() if line["kind"] == "train"]
    speed = lines[-1]["tokens_per_second"]
    preset, parameters = lm.PRESETS["124M"], run.record["num_parameters"]
    attention = 12 * preset.layers * preset.width * context
    peak = next(
        (peak for name, peak in PEAK_BF16.items() if name in torch.cuda.get_device_name()), float("nan")
    )
    half, full = (speed * (6 * parameters + share * attention) / peak for share in (0.5, 1))
    print(
        f"124M ({parameters / 1e6:.0f}M parameters), micro-batch {micro_batch} x {context}, compiled={compiled}: "
        f"{speed:,.0f} tokens/s, MFU {full:.1%} (as docs/scale.md counts; {half:.1%} with half of attention), "
        f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )


def check_waits(folder: Path, corpus: Corpus) -> None:
    """Steps with micro-batches under CUDA's own watch: whatever waits for the GPU raises. A copy from pageable memory
    waits as well, but is not watched: the last step's copies are looked at.
    """
    steps = 6
    config = {
        "corpus": str(corpus.path),
        "reward_model": "pii",
        "segments": "lines",
        "good": {"threshold": 0.0},
        "objective": {"kind": "awr"},
        "model": {"preset": "1M"},
        "optim": {"batch_blocks": 32, "micro_batch_blocks": 16},
        "tokens": 32 * 256 * steps,
        "compile": False,
        "checkpoint_every": 0,
        "validate_every": 0,
        "log_every": steps,
    }
    compute = Gradients.compute
    copies: list[str] = []

    def watched(self: Gradients, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        is_last = self._state.step == steps - 1
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) if is_last else nullcontext() as profile:
            torch.cuda.set_sync_debug_mode("error")
            try:
                result = compute(self, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if profile is not None:
            copies.extend(event.name for event in profile.events() if event.name.startswith("Memcpy HtoD"))
        return result

    Gradients.compute = watched  # type: ignore[method-assign]
    try:
        loop.train(parse(TrainConfig, config, "gpu"), folder / "waits", say=lambda line: None)
    finally:
        Gradients.compute = compute  # type: ignore[method-assign]
    assert copies, "the profiler has seen no copy"
    assert all("Pinned" in name for name in copies), copies
    print(f"no wait for the GPU in forward and backward; {len(copies)} copies to it, all from pinned memory")


if __name__ == "__main__":
    main()
