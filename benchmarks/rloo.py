"""A step of RLOO here and by TRL, from one run: writing, scoring, reading by policy and start, backward, optimizer.

    OMP_NUM_THREADS=1 python benchmarks/rloo.py runs/mle [--steps 6] [--texts 64] [--tokens 64]

Prints seconds a step, wall and processor, and their ratio; the first step of each is left out. Both have the same prompt (nothing), reward
model, batch, length limit and blocked tokens. Busy neighbours stretch wall time; processor time they leave nearly alone.
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch import nn

from phf.config.finetune import FinetuneConfig
from phf.finetune.learners import OnPolicy
from phf.finetune.loop import _find_optim, _update
from phf.finetune.start import Start
from phf.finetune.trl import load_plain_tokenizer
from phf.reward_models import load_reward_model
from phf.train.optim import make_optimizers

Seconds = list[tuple[float, float]]


@contextmanager
def measure(found: Seconds) -> Iterator[None]:
    wall, processor = time.perf_counter(), time.process_time()
    yield
    found.append((time.perf_counter() - wall, time.process_time() - processor))


def open_start(run: str, texts: int, tokens: int) -> Start:
    config = FinetuneConfig.model_validate({"texts": texts, "sampling": {"max_new_tokens": tokens}})
    return Start.open(run, config, load_reward_model)


def time_ours(start: Start, steps: int) -> Seconds:
    model = copy.deepcopy(start.model).requires_grad_(True).eval()
    optimizers = make_optimizers(model, None, _find_optim(start.config))
    learner, found = OnPolicy(start, start.config.method), []
    for step in range(steps + 1):
        with measure(found):
            learner.step(model, step, lambda loss: _update(loss, model, optimizers, start.config.clip_norm))
    return found[1:]


def time_trl(start: Start, steps: int) -> Seconds:
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    texts, found = start.config.texts, []

    def reward(completions: list[str], **_: object) -> list[float | None]:
        return [None if np.isnan(score) else -float(score) for score in start.score(completions)]

    class Timed(RLOOTrainer):
        def training_step(self, model: nn.Module, *rest: object) -> object:
            with measure(found):
                return super().training_step(model, *rest)

    model = copy.deepcopy(start.model).requires_grad_(True)
    tokenizer = load_plain_tokenizer(start)
    tokenizer.padding_side = "left"
    with tempfile.TemporaryDirectory() as folder:
        start.model.save_pretrained(f"{folder}/start")
        model.config._name_or_path = f"{folder}/start"  # where it finds its reference
        config = RLOOConfig(
            output_dir=folder,
            per_device_train_batch_size=texts,
            num_generations=texts,
            max_completion_length=start.config.sampling.max_new_tokens,
            beta=0.05,
            learning_rate=start.config.learning_rate,
            lr_scheduler_type="constant",
            max_steps=steps + 1,
            generation_kwargs={"suppress_tokens": start.drawing.blocked.tolist()},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Dataset.from_list([{"prompt": ""}] * texts)
        trainer = Timed(
            model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer
        )
        trainer.train()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    start = open_start(given.run, given.texts, given.tokens)
    methods: dict[str, Callable[[Start, int], Seconds]] = {"trl": time_trl, "ours": time_ours}
    medians = {
        name: np.median(time_method(start, given.steps), axis=0) for name, time_method in methods.items()
    }
    for name, (wall, processor) in medians.items():
        print(f"{name}: {wall:.2f} s a step, {processor:.2f} s of the processor")
    wall, processor = medians["ours"] / medians["trl"]
    print(f"ours / trl: {wall:.2f} by the clock, {processor:.2f} by the processor")


if __name__ == "__main__":
    main()
