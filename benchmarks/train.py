"""Training speed and memory against transformers' Trainer and the paper's setting: same data, batch and tokens.

    python benchmarks/train.py                                      2.5M parameters, three rounds
    python benchmarks/train.py --preset 10M --contenders ours trainer
    python benchmarks/train.py --vocabulary 50304 --context 512     memory with a large vocabulary
    python benchmarks/train.py --contenders ours ours-awr ours-unlikelihood     objectives against MLE

Every run is a process of its own, alternating; tokens/s are those of the steps after the first third, which holds imports,
warming up and compiling. Prints the median of each and its ratio to `--against` per round. Contenders:

    ours              phf's loop, documents isolated, layers compiled
    ours-eager        not compiled
    ours-OBJECTIVE    another objective than MLE (rwr, awr, conditional, ...), compiled
    trainer           transformers' Trainer on the same model: precision and fused AdamW as ours, blocks ready in memory, plain
                      causal attention over the whole block, no logging, evaluation or saving
    trainer-compiled  with torch_compile=True
    paper             the paper's setting: GPT-2 of the same depth and width, eager attention, float32, dropout, full logits
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from phf.annotate.annotate import annotate
from phf.config.recipes import apply_overrides, read_recipe
from phf.config.train import TrainConfig, parse
from phf.corpus.store import build_corpus
from phf.model import lm
from phf.tokens.tokens import tokenize
from phf.train import loop
from phf.train.data import open_data

DEFAULT = ("ours", "ours-eager", "trainer", "trainer-compiled", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="2.5M")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="bf16" if lm.probe_bf16() else "fp32"
    )
    parser.add_argument("--contenders", nargs="+", default=DEFAULT)
    parser.add_argument("--against", default="trainer")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.child:
            print(json.dumps(run_contender(arguments, Path(folder))))
        else:
            compete(arguments, Path(folder))


def compete(arguments: argparse.Namespace, folder: Path) -> None:
    prepare(folder / "corpus", arguments.vocabulary)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.contenders}
    for _ in range(arguments.rounds):
        for name in arguments.contenders:
            command = [sys.executable, __file__, *sys.argv[1:], "--precision", arguments.precision]
            command += ["--corpus", str(folder / "corpus"), "--child", name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
            print(f"  {name}: {results[name][-1]['speed']:,.0f} tokens/s", flush=True)
    print(
        f"preset {arguments.preset}, vocabulary {arguments.vocabulary}, {arguments.blocks} x {arguments.context} tokens, "
        f"{arguments.precision}, {torch.get_num_threads()} threads"
    )
    rivals = results.get(arguments.against, results[arguments.contenders[0]])
    for name, runs in results.items():
        ratios = [run["speed"] / rival["speed"] for run, rival in zip(runs, rivals, strict=True)]
        memory, other = (statistics.median(run["memory"] for run in some) for some in (runs, rivals))
        print(
            f"{name:<17} {statistics.median(run['speed'] for run in runs):>9,.0f} tokens/s, "
            f"{statistics.median(ratios):.2f} x ({', '.join(f'{ratio:.2f}' for ratio in ratios)}); "
            f"memory for training {memory:,.0f} MB, {memory / other:.2f} x"
        )


def run_contender(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Tokens/s, and how much the process's peak memory (MB) grew from when all was imported and the data opened."""
    name = str(arguments.child)
    objective = {"ours": "mle", "ours-eager": "mle"}.get(name, name.removeprefix("ours-"))
    config = make_config(arguments, objective if name.startswith("ours") else "mle", name != "ours-eager")
    data = open_data(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name.startswith("ours"):
        run = loop.train(config, folder / "run", say=lambda line: None)
        lines = [line for line in run.read_metrics() if line["kind"] == "train"]
        speed = statistics.harmonic_mean([line["tokens_per_second"] for line in lines[1:]])
    else:
        model = make_gpt2(config) if name == "paper" else make_model(config)
        rows = Rows(config, arguments.steps)
        speed = run_trainer(model, rows, config, folder, arguments.steps, name)
    del data
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"speed": speed, "memory": (after - before) / 1024}


def make_config(arguments: argparse.Namespace, objective: str, compiled: bool) -> TrainConfig:
    limit = {
        "conditional": "good_fraction=0.5",
        "unlikelihood": "good_fraction=0.5",
        "filtering": "keep_fraction=0.5",
    }
    overrides = [
        f"corpus={arguments.corpus}",
        f"tokenizer=train:{arguments.vocabulary}",
        "segments=sentences",
        "optim.name=adamw",
        f"model.preset={arguments.preset}",
        f"data.context={arguments.context}",
        f"optim.batch_blocks={arguments.blocks}",
        f"tokens={arguments.steps * arguments.blocks * arguments.context}",
        "validate_every=0",
        "checkpoint_every=0",
        "validation_blocks=1",
        f"log_every={arguments.steps // 3}",
        f"precision={arguments.precision}",
        f"compile={'on' if compiled else 'off'}",
    ]
    recipe = read_recipe("demo")
    recipe["objective"] = {
        "kind": objective,
        **dict([limit[objective].split("=")] if objective in limit else []),
    }
    return parse(TrainConfig, apply_overrides(recipe, overrides), "benchmark")


def prepare(folder: Path, vocabulary: int) -> None:
    corpus = build_corpus(["fortunes"], folder)
    annotate(corpus, "toxicity-svm", "sentences")
    tokenize(corpus, f"train:{vocabulary}", "sentences")


def make_model(config: TrainConfig) -> PreTrainedModel:
    tokenizer = open_data(config).tokens.tokenizer
    size, context = tokenizer.padded_vocab_size(), config.data.context
    return lm.create_model(config.model, vocab_size=size, control=tokenizer.control, context=context, seed=0)


def make_gpt2(config: TrainConfig) -> PreTrainedModel:
    preset = lm.PRESETS[config.model.preset]
    size = open_data(config).tokens.tokenizer.padded_vocab_size()
    gpt2 = GPT2Config(
        vocab_size=size,
        n_positions=config.data.context,
        n_embd=preset.width,
        n_layer=preset.layers,
        n_head=preset.heads,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(gpt2)


class Rows(Dataset):
    """Blocks as the Trainer wants them; the model shifts the labels itself."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        blocks, batch = open_data(config).training_blocks(), config.optim.batch_blocks
        self.ids = torch.cat([torch.from_numpy(blocks.batch(step, batch).ids) for step in range(steps)])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Clock(TrainerCallback):
    """The Trainer's steps after the first third."""

    def on_step_end(self, _: object, state: object, *__: object, **___: object) -> None:
        if state.global_step == state.max_steps // 3:
            self.start = time.perf_counter()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds = time.perf_counter() - self.start


def run_trainer(
    model: PreTrainedModel, rows: Rows, config: TrainConfig, folder: Path, steps: int, name: str
) -> float:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.optim.batch_blocks,
        max_steps=steps,
        bf16=config.precision == "bf16" and name != "paper",
        torch_compile=name == "trainer-compiled",
        optim="adamw_torch_fused",
        learning_rate=config.optim.learning_rate,
        weight_decay=config.optim.weight_decay,
        lr_scheduler_type="cosine",
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=0,
    )
    clock = Clock()
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
    return (steps - steps // 3) * config.optim.batch_blocks * config.data.context / clock.seconds


if __name__ == "__main__":
    main()
