"""A recipe trained by transformers' `Trainer` with our loss, kept as a run folder that `phf evaluate` reads like any other.

    phf train demo corpus=demo/corpus optim.name=adamw precision=fp32 compile=off log_every=1 -o runs/phf
    python benchmarks/trainer.py demo corpus=demo/corpus optim.name=adamw precision=fp32 -o runs/trainer --twin runs/phf
    phf evaluate runs/trainer runs/phf && phf compare runs/trainer runs/phf

With the optimizer and schedule of `phf train`; what differs is rounding: attention over the whole block under a mask, nothing compiled.
The bar (issue 19): scores within each other's intervals. Prints tokens/s and, of a twin, how far apart the losses are as the steps go on.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
from transformers import Trainer, TrainingArguments

from phf.config.train import load_train_config
from phf.integrations.transformers import BlockDataset, TrainerObjective, make_optimizer, training_arguments
from phf.model import lm
from phf.train.checkpoint import Checkpointer, TrainState
from phf.train.data import open_data
from phf.train.distributed import Ranks, Trained
from phf.train.loop import create_model
from phf.train.run import Run
from phf.train.trackers import open_loggers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--twin", type=Path, help="a run of 'phf train' with log_every=1 to compare losses with"
    )
    options = parser.parse_args()
    data = open_data(load_train_config(options.recipe, options.overrides), to_train=True)
    Run.check_new(options.out)
    own = TrainerObjective.of(data)
    model = own.prepare(create_model(data))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(options.out.with_suffix(".trainer")),
            **training_arguments(data.config),
            logging_steps=1,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=BlockDataset(data),
        data_collator=own.collate,
        compute_loss_func=own.compute_loss,
        optimizers=make_optimizer(model, data.config),
    )
    start = perf_counter()
    trainer.train()
    print(f"{len(BlockDataset(data)) * data.config.data.context / (perf_counter() - start):,.0f} tokens/s")
    size = lm.num_parameters(model)
    run = Run.create(options.out, data.config, data, parameters=size, precision="fp32", is_compiled=False)
    tokenizer = data.tokens.tokenizer
    with Checkpointer(run.folder, Trained(model, None), [], tokenizer, Ranks(), keep=1) as checkpointer:
        checkpointer.save(TrainState(step=run.num_steps))
        checkpointer.wait()
    history = [line for line in trainer.state.log_history if "loss" in line]
    with open_loggers(run, 0, is_first=True) as logger:
        for line in history:
            place = {"kind": "train", "step": line["step"], "tokens": line["step"] * run.tokens_per_step}
            logger.log({**place, "loss": line["loss"], "grad_norm": line["grad_norm"]})
    print(run.folder)
    if options.twin is not None:
        compare_losses(Run.open(options.twin), run)


def compare_losses(ours: Run, theirs: Run) -> None:
    """Print the largest difference of two runs' losses up to some steps, and the mean one from there to the next."""
    losses = [
        {line["step"]: line["loss"] for line in run.read_metrics() if line["kind"] == "train"}
        for run in (ours, theirs)
    ]
    steps = sorted(losses[0].keys() & losses[1].keys())
    differences = np.array([losses[1][step] - losses[0][step] for step in steps])
    for first, last in pairwise([0, 10, 20, 50, 100, 200, 500, 1000, 1500, len(steps)]):
        part = differences[first:last]
        if len(part):
            print(
                f"steps {first + 1} to {first + len(part)}: largest {abs(part).max():.1e}, mean {part.mean():+.1e}"
            )


if __name__ == "__main__":
    main()
