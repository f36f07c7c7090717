"""One GPU: parity with the CPU reference, the pipeline end to end, tokens/s and MFU of the 124M preset.

benchmarks/gpu.sh
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from phf import lm
from phf.config import ModelConfig, TrainConfig, parse
from phf.control import ControlTokens
from phf.corpus.annotate import annotate
from phf.corpus.store import build_corpus
from phf.corpus.tokens import tokenize
from phf.train import loop

PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    check_parity()
    with tempfile.TemporaryDirectory() as folder:
        run_pipeline(Path(folder))
    for isolated in (False, True):
        for micro_batch in (16, 32):
            measure(arguments.steps, micro_batch, isolated)


def make_model(preset: str, vocabulary: int, context: int) -> lm.PreTrainedModel:
    control = ControlTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1)
    return lm.create_model(
        ModelConfig(preset=preset), vocab_size=vocabulary, control=control, context=context, seed=0
    )


def make_positions(rows: int, context: int, page: int) -> torch.Tensor:
    return (torch.arange(context) % page).expand(rows, context).contiguous()


def check_parity() -> None:
    """NLL in float32 on both devices, on pages that do not see each other; and the leak test on the GPU."""
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


def run_pipeline(folder: Path) -> None:
    """Text to trained models on this machine: Conditional and MLE on the standard library's source, scored by pii."""
    start = time.perf_counter()
    corpus = build_corpus(["python-source:stdlib"], folder / "corpus", max_documents=300)
    annotate(corpus, "pii", "lines")
    tokenize(corpus, "train:4096", "lines")
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


def measure(
    steps: int, micro_batch: int, isolated: bool, context: int = 1024, vocabulary: int = 50_304
) -> None:
    """Forward, backward and AdamW of the 124M preset in bf16 autocast."""
    model = make_model("124M", vocabulary, context).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    ids, targets = torch.randint(0, 50_000, (2, micro_batch, context), device="cuda")
    positions = make_positions(micro_batch, context, 300 if isolated else context).cuda()
    torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = lm.token_nll(model, ids, targets, positions).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    speed = steps * micro_batch * context / (time.perf_counter() - start)
    preset = lm.PRESETS["124M"]
    flops = (
        6 * lm.num_parameters(model) + 6 * preset.layers * preset.width * context
    )  # causal attention counts half
    peak = next(
        (peak for name, peak in PEAK_BF16.items() if name in torch.cuda.get_device_name()), float("nan")
    )
    print(
        f"124M, {micro_batch} x {context}, isolated={isolated}: {speed:,.0f} tokens/s, MFU {speed * flops / peak:.1%}, "
        f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    main()
