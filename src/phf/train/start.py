"""`--init`: a run that starts from a model's weights, or from another run's (`RUN@STEP`) and goes on with the next tokens."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from phf.annotate.annotation import propose_annotations
from phf.config.recipes import apply_overrides, read_recipe
from phf.config.train import StartConfig, TrainConfig, load_train_config, parse
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.files import Place, read_json
from phf.model import lm
from phf.train.checkpoint import (
    TrainState,
    check_checkpoint,
    checkpoint_folder,
    load_optimizers,
    load_weights,
)
from phf.train.data import StartRecord, TrainingData
from phf.train.distributed import Trained
from phf.train.folder import CHECKPOINT_MANIFEST
from phf.train.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parse_place(place: Place) -> tuple[str, int | None]:
    """`RUN@STEP` as folder and step; without `@STEP`, None for the last checkpoint."""
    text = os.fspath(place)
    folder, at, step = text.rpartition("@")
    return (folder, int(step)) if at and folder and step.isdecimal() else (text, None)


def load_start_config(
    recipe: str | None, overrides: list[str], place: str | None, *, reset_optimizer: bool = False
) -> TrainConfig:
    """The config of `phf train [RECIPE] [KEY=VALUE]... [--init RUN[@STEP] | FOLDER | HUB_ID]`.

    Without a recipe it is that of the other run. A Hugging Face model goes into `model.init`, and into `tokenizer` unless an
    override names another.

    Raises:
        PHFError: see `load_train_config`, `Run.open`; `place` is neither a run nor a model.
    """
    is_model = place is not None and ((Path(place) / "config.json").is_file() or may_be_of_the_hub(place))
    if place is None or is_model:
        if reset_optimizer:
            raise PHFError(
                "--reset-optimizer belongs to --init RUN: a run from its start has fresh optimizer states"
            )
        if recipe is None:
            raise PHFError(
                f"{place} is a model, not a run, and says nothing of data; give a RECIPE, such as default"
            )
        if place is not None:
            overrides = [f"model.init={place}", f"tokenizer={place}", *overrides]
        _check_reward_model(apply_overrides(read_recipe(recipe), overrides), recipe)
        return load_train_config(recipe, overrides)
    run, step = parse_place(place)
    if not (Path(run) / "run.json").is_file():
        raise PHFError(
            f"{run} is not a run (it has no run.json), nor the folder of a model (it has no config.json); a model of the Hub is "
            "OWNER/NAME"
        )
    value = read_recipe(recipe) if recipe is not None else Run.open(run).record["config"]
    value = apply_overrides(value, overrides)
    value["start"] = {"run": run, "step": step, "reset_optimizer": reset_optimizer}
    return parse(TrainConfig, value, f"recipe {recipe}" if recipe is not None else f"{run}/run.json")


def may_be_of_the_hub(place: str) -> bool:
    """Whether a place that is not here is written as the Hub writes a model's id, `OWNER/NAME`."""
    owner, _, name = place.partition("/")
    is_here = Path(place).exists() or Path(owner).is_dir()
    return (
        not is_here
        and "@" not in place
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", f"{owner}/{name}") is not None
    )


def _check_reward_model(value: Mapping[str, object], recipe: str) -> None:
    """Say what the corpus was scored by, where a recipe leaves the reward model to the user and he does not name one."""
    if "reward_model" not in value and "corpus" in value:
        corpus = Corpus.open(str(value["corpus"]))
        raise PHFError(
            f"recipe {recipe} names no reward model; give the one whose annotation of {corpus.path} to train on "
            f"{propose_annotations(corpus, str(value.get('segments')))}make one with: phf annotate {corpus.path} --reward-model NAME"
        )


def resolve_start(config: StartConfig, data: TrainingData) -> StartRecord:
    """Where the weights come from, for run.json, and the step that the new run starts at.

    Raises:
        PHFError: no such run or checkpoint, it is damaged, or its tokenizer or architecture is another.
    """
    base = Run.open(config.run)
    step = base.resolve_step(config.step)
    check_checkpoint(base.folder, step)
    new = data.config
    if base.record["tokenizer"] != data.provenance()["tokenizer"]:
        raise PHFError(f"{base.folder} has another tokenizer; give tokenizer={base.config.tokenizer}")
    if base.config.model != new.model:
        raise PHFError(
            f"{base.folder} has another architecture: {base.config.model!r}; give the same keys under model"
        )
    num_tokens = step * base.tokens_per_step
    per_step = new.optim.batch_blocks * new.data.context
    first_step = -(-num_tokens // per_step)
    if first_step * per_step >= new.tokens:
        raise PHFError(
            f"tokens={new.tokens} is the whole budget, and {base.folder} has seen {num_tokens} of it at step {step}; "
            "give more, or init from an earlier step"
        )
    return {
        "run": str(base.folder.resolve()),
        "step": step,
        "tokens": num_tokens,
        "objective": base.config.objective.kind,
        "files": read_json(checkpoint_folder(base.folder, step) / CHECKPOINT_MANIFEST)["files"],
        "first_step": first_step,
        "epoch": _find_epoch(base, step, data),
    }


def describe_start(start: StartRecord, config: TrainConfig) -> str:
    """One line: whose weights, and which part of the budget and of the data order is left."""
    order = (
        "goes on with the next tokens of its data order"
        if start["epoch"] > 0
        else "reads its data from the beginning, for that run's data or seed was another"
    )
    return (
        f"starts from {start['run']} at step {start['step']} ({start['objective']}) and {order}: "
        f"token {start['tokens']:,} of {config.tokens:,}, step {start['first_step']}"
    )


def load_start(start: StartRecord, data: TrainingData, trained: Trained) -> TrainState:
    """Put the other run's weights into a fresh model; control tokens it did not know get their rows.

    Raises:
        PHFError: the checkpoint is gone, damaged, or no longer the one that run.json names.
    """
    base = Run.open(start["run"])
    step = base.resolve_step(start["step"])
    check_checkpoint(base.folder, step)
    folder = checkpoint_folder(base.folder, step)
    if read_json(folder / CHECKPOINT_MANIFEST)["files"] != start["files"]:
        raise PHFError(f"{folder} is not what this run was started from; put it back, or train a new run")
    load_weights(folder, trained)
    known = read_json(folder / "config.json").get("control_tokens")
    if data.objective.has_control_tokens and known != list(data.tokens.tokenizer.control.all):
        _add_control_tokens(trained.model, data)
    return TrainState(step=start["first_step"])


def load_start_optimizers(
    start: StartRecord, config: TrainConfig, trained: Trained, optimizers: list[Optimizer]
) -> str:
    """Put the other run's optimizer states in place, where they fit and are wanted; says what happened."""
    base = Run.open(start["run"])
    assert config.start is not None
    if config.start.reset_optimizer:
        return "optimizer states: fresh"
    if base.config.optim.name != config.optim.name:
        return f"optimizer states: fresh, because those of {base.name} are {base.config.optim.name}'s"
    load_optimizers(checkpoint_folder(base.folder, start["step"]), trained, optimizers, strict=False)
    return f"optimizer states: kept from {base.name}"


def _add_control_tokens(model: "PreTrainedModel", data: TrainingData) -> None:
    tokenizer = data.tokens.tokenizer
    model.config.control_tokens = None  # else the rows count as learned, and are kept
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.config.seed)
        lm.add_control_tokens(model, vocab_size=tokenizer.padded_vocab_size(), control=tokenizer.control)
    model.config.control_tokens = list(tokenizer.control.all)


def _find_epoch(base: Run, step: int, data: TrainingData) -> float:
    """The place in epochs where the other run stands; 0 if its data order is not this run's."""
    new = data.provenance()
    if base.config.seed != data.config.seed or any(
        base.record[key] != new[key] for key in ("corpus", "segment_ends")
    ):
        return 0.0
    blocks = base.data().training_blocks(base.record.get("start"))
    return blocks.place(step * base.config.optim.batch_blocks)
