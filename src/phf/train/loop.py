"""The training loop, read from top to bottom: data -> model -> schedule -> steps (with now and then a look)."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from phf import lm
from phf.config import TrainConfig
from phf.errors import PHFError
from phf.files import write_bytes
from phf.records import PAD
from phf.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from phf.train.data import TrainingData, open_data
from phf.train.losses import loss_sum, slice_batch, validate
from phf.train.optim import learning_rate_factor, make_optimizers, set_learning_rate
from phf.train.run import METRICS, Run

Progress = Callable[[str, int, int], None]


def train(
    config: TrainConfig,
    folder: str | Path,
    *,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Run:
    """Train a run from its start.

    Args:
        folder: the run folder to make; its name is the run's.
        say: called with the lines a person should read.
        progress: called with (description, steps taken, steps in all) after every step.

    Raises:
        PHFError: see `open_data`, `Run.create`; and when `max_bad_steps` steps in a row are not finite.
    """
    data = open_data(config)
    model, value_head = _create(data)
    precision = config.precision if config.precision != "auto" else _probe(model.device)
    parameters = lm.num_parameters(model)
    run = Run.create(Path(folder), config, data, parameters=parameters, precision=precision)
    return _run_steps(run, data, model, value_head, TrainState(), say, progress)


def resume(
    folder: str | Path, *, say: Callable[[str], None] = print, progress: Progress | None = None
) -> Run:
    """Go on with a run from its last checkpoint; a finished run is returned as it is. Bit-exact on CPU.

    Raises:
        PHFError: the folder is no run, its checkpoint is damaged, or its data has changed.
    """
    run = Run.open(folder)
    if run.is_finished:
        say(f"{run.folder} is finished: {run.num_steps} steps")
        return run
    data = run.data()
    model, value_head = _create(data)
    return _run_steps(run, data, model, value_head, None, say, progress)


def _create(data: TrainingData) -> tuple[PreTrainedModel, lm.ValueHead | None]:
    config, tokenizer = data.config, data.tokens.tokenizer
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = lm.create_model(
        config.model,
        vocab_size=tokenizer.padded_vocab_size(),
        control=tokenizer.control,
        context=config.data.context,
        seed=config.seed,
    ).to(device)
    if data.objective.has_control_tokens:
        model.config.control_tokens = [tokenizer.control.good, tokenizer.control.bad]
    if not data.objective.has_value_head:
        return model, None
    width = model.get_input_embeddings().weight.shape[1]
    sigmoid = getattr(config.objective, "value_head", "linear") == "sigmoid"
    return model, lm.ValueHead(width, sigmoid=sigmoid).to(device)


def _probe(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if lm.probe_bf16() else "fp32"


def _run_steps(
    run: Run,
    data: TrainingData,
    model: PreTrainedModel,
    value_head: lm.ValueHead | None,
    state: TrainState | None,
    say: Callable[[str], None],
    progress: Progress | None,
) -> Run:
    config, num_steps = run.config, run.num_steps
    trained = nn.ModuleList([model] if value_head is None else [model, value_head])
    optimizers = make_optimizers(model, value_head, config.optim)
    if state is None:
        state = TrainState()
        if run.steps:
            state = load_checkpoint(run.folder, run.steps[-1], model, value_head, optimizers)
        say(f"{run.name}: going on from step {state.step} of {num_steps}")
    _cut_metrics(run, state.step)
    for line in data.describe():
        say(f"{run.name}: {line}")
    train_blocks, validation_blocks = data.blocks("train"), data.blocks("validation")
    tokens_per_step, batch_blocks = run.tokens_per_step, config.optim.batch_blocks
    # A block is a row of the micro-batch. Rows are independent, so the split changes the loss by rounding only.
    micro_blocks = config.optim.micro_batch_blocks or batch_blocks
    last_log_time, last_log_step = perf_counter(), state.step
    trained.train()

    # Go!
    while True:
        step, is_last = state.step, state.step == num_steps

        # Once in a while: validate, save. Both come before the step, so the last pass of the loop does them and stops.
        if is_last or (config.validate_every > 0 and step % config.validate_every == 0):
            losses = validate(model, data, validation_blocks, run.record["precision"])
            _log(run, {"kind": "validation", "step": step, "tokens": step * tokens_per_step, **losses})
        if is_last or (config.checkpoint_every > 0 and step > 0 and step % config.checkpoint_every == 0):
            tokenizer, keep = data.tokens.tokenizer, config.keep_checkpoints
            save_checkpoint(run.folder, state, model, value_head, optimizers, tokenizer, keep=keep)
        if is_last:
            break

        # One step: a batch that follows from (seed, step) alone, in micro-batches; the sum of the token losses divided
        # by the number of targets that are not padding in the whole batch.
        batch = train_blocks.batch(step, batch_blocks)
        # For dropout, where a model has it: resuming needs no state.
        torch.manual_seed(config.seed * 2**32 + step)
        num_targets = int(np.count_nonzero(batch.kinds != PAD))
        loss = torch.zeros((), device=model.device)
        share = 0.0
        for start in range(0, batch_blocks, micro_blocks):
            part, weight = loss_sum(
                model,
                value_head,
                data,
                slice_batch(batch, start, start + micro_blocks),
                run.record["precision"],
            )
            part = part / num_targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
            share += weight * min(micro_blocks, batch_blocks - start) / batch_blocks
        norm = nn.utils.clip_grad_norm_(trained.parameters(), config.optim.clip_norm)
        factor = learning_rate_factor(step, num_steps, config.optim)
        if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
            set_learning_rate(optimizers, factor)
            for optimizer in optimizers:
                optimizer.step()
            state.num_bad_in_row = 0
        else:
            state.num_skipped += 1
            state.num_bad_in_row += 1
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.num_bad_in_row >= config.max_bad_steps:
            raise PHFError(_divergence(run, state))

        # One log line.
        if state.step % config.log_every == 0 or state.step == num_steps:
            now = perf_counter()
            speed = (state.step - last_log_step) * tokens_per_step / (now - last_log_time)
            last_log_time, last_log_step = now, state.step
            record = {
                "kind": "train",
                "step": state.step,
                "tokens": state.step * tokens_per_step,
                "loss": float(loss),
                "learning_rate": config.optim.learning_rate * factor,
                "grad_norm": float(norm),
                "tokens_per_second": round(speed),
                "skipped": state.num_skipped,
            }
            if data.objective.reward_scale is not None:
                record["effective_sample_share"] = share
            _log(run, record)
        if progress is not None:
            progress(f"train {run.name}  loss {float(loss):.3f}", state.step, num_steps)
    if state.num_skipped:
        say(f"{run.name}: {state.num_skipped} steps were skipped because loss or gradient was not finite")
    return run


def _cut_metrics(run: Run, step: int) -> None:
    """Drop the lines that a stopped run wrote after the checkpoint it goes on from."""
    kept = [
        line
        for line in run.read_metrics()
        if line["step"] < step or (line["step"] == step and line["kind"] == "train")
    ]
    write_bytes(run.folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _log(run: Run, line: dict[str, Any]) -> None:
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
    with (run.folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def _divergence(run: Run, state: TrainState) -> str:
    steps = run.steps
    last = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved before"
    return (
        f"{run.name} stopped at step {state.step}: loss or gradient was not finite {state.num_bad_in_row} times in a row; "
        f"{last}; train again with a lower optim.learning_rate (it was {run.config.optim.learning_rate:g})"
    )
