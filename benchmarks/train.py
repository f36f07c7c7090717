"""Training speed against transformers' Trainer on the same model, data, batch and tokens, alternating in one run.

    python benchmarks/train.py --preset 2.5M --steps 40 --rounds 3

Prints tokens/s of each and the ratio ours / Trainer, per round and as a median. The Trainer runs at its best setting here: the
same precision, fused AdamW, blocks built beforehand and held in memory, no logging, evaluation or saving. It is given plain
causal attention over the whole block; ours is measured with documents isolated (the default) and without.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from phf import lm
from phf.config import TrainConfig, apply_overrides, parse, read_recipe
from phf.corpus.annotate import annotate
from phf.corpus.store import Corpus, build_corpus
from phf.corpus.tokens import tokenize
from phf.train import loop
from phf.train.data import open_data


class Rows(Dataset):
    """Blocks as the Trainer wants them; the model shifts the labels itself."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        blocks, batch = open_data(config).blocks("train"), config.optim.batch_blocks
        self.ids = torch.cat([torch.from_numpy(blocks.batch(step, batch).ids) for step in range(steps)])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Clock(TrainerCallback):
    """The Trainer's steps alone, without its setting up."""

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds = time.perf_counter() - self.start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="2.5M")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    corpus = prepare(folder / "corpus", arguments.vocabulary)
    overrides = [
        f"corpus={corpus.path}",
        f"tokenizer=train:{arguments.vocabulary}",
        "segments=sentences",
        "optim.name=adamw",
        f"model.preset={arguments.preset}",
        f"data.context={arguments.context}",
        f"optim.batch_blocks={arguments.blocks}",
        f"tokens={arguments.steps * arguments.blocks * arguments.context}",
        "validate_every=1000000",
        "checkpoint_every=0",
        "validation_blocks=1",
        f"log_every={arguments.steps}",
        f"precision={'bf16' if lm.probe_bf16() else 'fp32'}",
    ]

    def config(*more: str) -> TrainConfig:
        return parse(TrainConfig, apply_overrides(read_recipe("demo"), [*overrides, *more]), "benchmark")

    contenders = {
        "ours, isolated (conditional)": lambda n: ours(config(), folder / f"a{n}"),
        "ours, not isolated (mle)": lambda n: ours(
            config("objective.kind=mle", "data.isolate_documents=false"), folder / f"b{n}"
        ),
        "Trainer": lambda n: trainer(config("objective.kind=mle"), folder / f"c{n}", arguments.steps),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds + 1):
        for name, run in contenders.items():
            speed = run(number)
            if number > 0:  # the first round warms up
                speeds[name].append(speed)
                print(f"round {number}: {name}: {speed:,.0f} tokens/s", flush=True)
    print(
        f"preset {arguments.preset}, vocabulary {arguments.vocabulary}, {config().precision}, {torch.get_num_threads()} threads"
    )
    for name, values in speeds.items():
        ratios = [value / rival for value, rival in zip(values, speeds["Trainer"], strict=True)]
        print(
            f"{name}: median {statistics.median(values):,.0f} tokens/s, ratio to Trainer {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})"
        )


def prepare(folder: Path, vocabulary: int) -> Corpus:
    corpus = build_corpus(["fortunes"], folder)
    annotate(corpus, "toxicity-svm", "sentences")
    tokenize(corpus, f"train:{vocabulary}", "sentences")
    return corpus


def ours(config: TrainConfig, folder: Path) -> float:
    run = loop.train(config, folder, say=lambda line: None)
    [line] = [line for line in run.read_metrics() if line["kind"] == "train"]
    return float(line["tokens_per_second"])


def trainer(config: TrainConfig, folder: Path, steps: int) -> float:
    tokenizer = open_data(config).tokens.tokenizer
    model = lm.create_model(
        config.model,
        vocab_size=tokenizer.padded_vocab_size(),
        control=tokenizer.control,
        context=config.data.context,
        seed=0,
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.optim.batch_blocks,
        max_steps=steps,
        bf16=config.precision == "bf16",
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
    Trainer(model=model, args=arguments, train_dataset=Rows(config, steps), callbacks=[clock]).train()
    return steps * config.optim.batch_blocks * config.data.context / clock.seconds


if __name__ == "__main__":
    main()
