"""A recipe trained by transformers' `Trainer` with our loss, kept as a run folder that `phf evaluate` reads like any other.

    python benchmarks/trainer.py demo corpus=demo/corpus optim.name=adamw precision=fp32 -o runs/trainer
    phf train demo corpus=demo/corpus optim.name=adamw precision=fp32 -o runs/phf
    phf evaluate runs/trainer runs/phf && phf compare runs/trainer runs/phf

With the optimizer and schedule of `phf train`; what differs is rounding: attention over the whole block under a mask, nothing compiled.
The bar (issue 19): scores within each other's intervals. Prints tokens/s.
"""

import argparse
from pathlib import Path
from time import perf_counter

from transformers import Trainer, TrainingArguments

from phf.config.train import load_train_config
from phf.integrations.transformers import BlockDataset, TrainerObjective, make_optimizer, training_arguments
from phf.model import lm
from phf.train.checkpoint import Checkpointer, TrainState
from phf.train.data import open_data
from phf.train.distributed import Ranks, Trained
from phf.train.loop import create_model
from phf.train.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-o", "--out", type=Path, required=True)
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
            logging_steps=100,
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
    print(run.folder)


if __name__ == "__main__":
    main()
