"""Our generation against transformers' `generate`, alternating in one process.

    OMP_NUM_THREADS=1 python benchmarks/generate.py [--presets 2.5M 10M] [--batch 256] [--rounds 3]
    python benchmarks/generate.py --device cuda --presets 2.5M 124M --batch 1024 --vocabulary 50304
    python benchmarks/generate.py --ties

Both draw the same number of texts of at most 128 new tokens at temperature 0.7 and top-p 0.9 from the same random
weights, the other control token blocked. The rival is their dynamic cache at the type that is best for them;
`--static` measures their static cache as well. No text ends early (`--end-bias 5.5`: one token in a hundred ends its
text, as in a trained model; our batch then shrinks). Prints new text tokens per second with each run's peak of memory
(of the process, or of the device) and the ratio of every round.

`--ties` counts the samples that a batch of another size changes (where a number falls within rounding of the edge between
two tokens), with texts that end early, so that batches shrink as well.
"""

import argparse
import copy
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from phf.config.train import ModelConfig, SamplingConfig
from phf.control import ControlTokens
from phf.generate.target import Target
from phf.model.lm import create_model as create_preset
from phf.model.lm import num_parameters


@dataclass
class IdTokenizer:
    """Text is the ids themselves: decoding is not what is measured."""

    vocab_size: int
    control: ControlTokens = field(init=False)

    def __post_init__(self) -> None:
        self.control = ControlTokens(0, self.vocab_size - 2, self.vocab_size - 1)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def create_model(preset: str, tokenizer: IdTokenizer, end_bias: float) -> PreTrainedModel:
    model = create_preset(
        ModelConfig(preset=preset),
        vocab_size=tokenizer.vocab_size,
        control=tokenizer.control,
        context=256,
        seed=0,
    ).eval()
    width = model.config.hidden_size
    torch.manual_seed(0)
    head = torch.nn.Linear(width, tokenizer.vocab_size)
    # About the entropy of a small language model: logits of standard deviation 2.
    torch.nn.init.normal_(head.weight, std=2 / width**0.5)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.weight[tokenizer.control.end] = 0
        head.bias[tokenizer.control.end] = end_bias
    model.lm_head = head
    return model


def run_ours(model: PreTrainedModel, tokenizer: IdTokenizer, sampling: SamplingConfig, precision: str) -> int:
    sampling = sampling.model_copy(update={"precision": precision})
    samples = Target("good", model, tokenizer, "document").write([()], sampling)
    return sum(sample.num_tokens for sample in samples)


def run_theirs(model: PreTrainedModel, tokenizer: IdTokenizer, sampling: SamplingConfig, cache: str) -> int:
    total = 0
    control = tokenizer.control
    for start in range(0, sampling.num_samples, sampling.batch_size):
        rows = min(sampling.batch_size, sampling.num_samples - start)
        torch.manual_seed(start)
        output = model.generate(
            torch.tensor([[control.end, control.good]] * rows, device=model.device),
            attention_mask=torch.ones(rows, 2, dtype=torch.long, device=model.device),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            min_new_tokens=sampling.min_new_tokens,
            max_new_tokens=sampling.max_new_tokens,
            suppress_tokens=[control.bad],
            pad_token_id=control.end,
            cache_implementation=cache,
            disable_compile=True,
        )
        total += int(((output[:, 2:] != control.end) & (output[:, 2:] != control.good)).sum())
    return total


def measure(run: Callable[[], int], device: torch.device) -> tuple[float, float]:
    """New text tokens per second, and the peak of memory in GiB meanwhile."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    tokens = run()  # ends with ids on the host, so that a device has finished
    seconds = time.perf_counter() - start
    if device.type == "cuda":
        return tokens / seconds, torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()
    return tokens / seconds, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20


def compare(preset: str, options: argparse.Namespace) -> None:
    """Measure every setting of both on one preset, and print."""
    device = torch.device(options.device)
    tokenizer = IdTokenizer(options.vocabulary)
    sampling = SamplingConfig(num_samples=options.samples or options.batch, batch_size=options.batch)
    models = {torch.float32: create_model(preset, tokenizer, options.end_bias).to(device)}
    models[torch.bfloat16] = copy.deepcopy(models[torch.float32])
    for parameter in models[torch.bfloat16].parameters():
        parameter.data = parameter.data.to(torch.bfloat16)

    runs: dict[str, Callable[[], int]] = {}
    for dtype, model in models.items():
        name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        runs[f"ours {name}"] = lambda model=model, name=name: run_ours(model, tokenizer, sampling, name)
        for cache in ("dynamic", "static") if options.static else ("dynamic",):
            runs[f"theirs {name} {cache}"] = lambda model=model, cache=cache: run_theirs(
                model, tokenizer, sampling, cache
            )
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0.0)
    run_ours(models[torch.float32], tokenizer, sampling.model_copy(update={"num_samples": 8}), "fp32")
    for number in range(options.rounds):
        for name, run in runs.items():
            speed, peaks[name] = measure(run, device)
            speeds[name].append(speed)
            print(f"{preset} round {number}: {name} {speed:.0f} tokens/s", flush=True)

    print(
        f"\n{preset} ({num_parameters(models[torch.float32]):,} parameters with an untied head), batch {options.batch}, "
        f"{sampling.num_samples} texts, {options.rounds} rounds, {device.type}, {torch.get_num_threads()} threads"
    )
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name in runs:
        print(f"  {name:20s} {medians[name]:8.0f} tokens/s   peak {peaks[name]:.2f} GiB")
    rival = max((name for name in runs if name.endswith("dynamic")), key=medians.__getitem__)
    for ours in ("ours fp32", "ours bf16"):
        ratios = [a / b for a, b in zip(speeds[ours], speeds[rival], strict=True)]
        print(
            f"  {ours} / {rival} = {statistics.median(ratios):.2f}   ({', '.join(f'{r:.2f}' for r in ratios)})"
        )


def count_ties(preset: str, options: argparse.Namespace) -> None:
    """Write the same samples in batches of several sizes, and count those that differ from the largest batch's."""
    tokenizer = IdTokenizer(options.vocabulary)
    model = create_model(preset, tokenizer, end_bias=5.5).to(options.device)
    for precision in ("fp32", "bf16"):
        sampling = SamplingConfig(num_samples=options.batch, batch_size=options.batch, precision=precision)
        target = Target("good", model, tokenizer, "document")
        together = target.write([()], sampling)
        for size, num in ((64, options.batch), (7, 112), (1, 16)):
            changes = {"batch_size": size, "num_samples": num}
            apart = target.write([()], sampling.model_copy(update=changes))
            num_tokens, num_ties = 0, 0
            for one, other in zip(together, apart, strict=False):
                pairs = zip(one.text.split(), other.text.split(), strict=False)
                same = next((place for place, (a, b) in enumerate(pairs) if a != b), one.num_tokens)
                num_tokens += same
                num_ties += one != other
            rate = f"one tie in {num_tokens // num_ties}" if num_ties else "no tie"
            print(
                f"{preset} {precision} {options.device}: batch {size} against {options.batch}: "
                f"{num_ties} of {num} samples differ, {rate} of {num_tokens} tokens",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["2.5M", "10M"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=0, help="default: one batch")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--end-bias", type=float, default=-100.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--static", action="store_true", help="measure their static cache too")
    parser.add_argument(
        "--ties", action="store_true", help="count samples that depend on their batch instead"
    )
    options = parser.parse_args()
    for preset in options.presets:
        (count_ties if options.ties else compare)(preset, options)


if __name__ == "__main__":
    main()
