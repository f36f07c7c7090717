"""Our generation against transformers' `generate`, alternating in one process, at the demo's size (2.5M parameters).

    OMP_NUM_THREADS=1 python benchmarks/generate.py [--rounds 5] [--samples 512] [--batch 256]

Both draw the same number of texts of at most 128 new tokens at temperature 0.7 and top-p 0.9 in batches of 256 from the
same random weights; each of their settings (cache, type) is tried and the best of them is the rival. The end token is as
likely as in a trained model (about 1 in 100). Prints new tokens per second, the ratio of every round, and peak memory.
"""

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from phf.config import ModelConfig, SamplingConfig
from phf.control import ControlTokens
from phf.generate import generate
from phf.lm import create_model as create_preset

END, GOOD, BAD, VOCABULARY = 0, 4094, 4095, 4096


@dataclass
class IdTokenizer:
    """Text is the ids themselves: decoding is not what is measured."""

    control: ControlTokens = field(default_factory=lambda: ControlTokens(END, GOOD, BAD))
    vocab_size: int = VOCABULARY

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def create_model(end_bias: float) -> PreTrainedModel:
    model = create_preset(
        ModelConfig(preset="2.5M"),
        vocab_size=VOCABULARY,
        control=ControlTokens(END, GOOD, BAD),
        context=256,
        seed=0,
    ).eval()
    torch.manual_seed(0)
    head = torch.nn.Linear(192, VOCABULARY)
    # About the entropy of a small language model: logits of standard deviation 2, and the end token at about 1 in 100.
    torch.nn.init.normal_(head.weight, std=2 / 192**0.5)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.weight[END] = 0
        head.bias[END] = end_bias
    model.lm_head = head
    return model


def run_ours(model: PreTrainedModel, sampling: SamplingConfig, dtype: torch.dtype) -> int:
    samples = generate(model, IdTokenizer(), "good", sampling, dtype=dtype)
    return sum(sample.num_tokens for sample in samples)


def run_theirs(model: PreTrainedModel, sampling: SamplingConfig, cache: str) -> int:
    total = 0
    for start in range(0, sampling.num_samples, sampling.batch_size):
        rows = min(sampling.batch_size, sampling.num_samples - start)
        torch.manual_seed(start)
        output = model.generate(
            torch.tensor([[END, GOOD]] * rows),
            attention_mask=torch.ones(rows, 2, dtype=torch.long),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            min_new_tokens=sampling.min_new_tokens,
            max_new_tokens=sampling.max_new_tokens,
            suppress_tokens=[BAD],
            pad_token_id=END,
            cache_implementation=cache,
            disable_compile=True,
        )
        total += int((output[:, 2:] != END).sum())
    return total


def measure(run: Callable[[], int]) -> float:
    """New text tokens per second."""
    start = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--end-bias", type=float, default=3.0)
    options = parser.parse_args()
    sampling = SamplingConfig(num_samples=options.samples, batch_size=options.batch)
    models = {torch.float32: create_model(options.end_bias)}
    models[torch.bfloat16] = copy.deepcopy(models[torch.float32])
    for parameter in models[torch.bfloat16].parameters():
        parameter.data = parameter.data.to(torch.bfloat16)

    runs: dict[str, Callable[[], int]] = {}
    for dtype, model in models.items():
        name = str(dtype).removeprefix("torch.")
        runs[f"ours {name}"] = lambda model=model, dtype=dtype: run_ours(model, sampling, dtype)
        for cache in ("dynamic", "static"):
            runs[f"theirs {name} {cache}"] = lambda model=model, cache=cache: run_theirs(
                model, sampling, cache
            )
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    print(f"{torch.get_num_threads()} threads, batch {options.batch}, {options.samples} samples")
    for _ in range(options.rounds):
        for name, run in runs.items():
            speeds[name].append(measure(run))
    for name, values in speeds.items():
        print(f"{name:28s} {statistics.median(values):8.0f} tokens/s")
    for name in ("float32", "bfloat16"):
        rivals = [key for key in runs if key.startswith(f"theirs {name}")]
        rival = max(rivals, key=lambda key: statistics.median(speeds[key]))
        ratios = [ours / theirs for ours, theirs in zip(speeds[f"ours {name}"], speeds[rival], strict=True)]
        print(
            f"{name}: ours / {rival} = {statistics.median(ratios):.2f}   ({', '.join(f'{r:.2f}' for r in ratios)})"
        )
    best = max(statistics.median(values) for name, values in speeds.items() if name.startswith("theirs"))
    print(
        f"best of ours / best of theirs = {max(statistics.median(v) for n, v in speeds.items() if n.startswith('ours')) / best:.2f}"
    )
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
