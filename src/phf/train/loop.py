"""The training loop, read from top to bottom: data -> model -> schedule -> steps (with now and then a look)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from phf.config.train import TrainConfig
from phf.errors import PHFError
from phf.files import Place, as_list
from phf.folders import lock_folder
from phf.model import lm
from phf.model.attention import use_page_attention
from phf.objectives import value_head_of
from phf.records import Progress
from phf.train.checkpoint import (
    Checkpointer,
    TrainState,
    check_checkpoint,
    checkpoint_folder,
    load_optimizers,
    load_weights,
    remove_checkpoint,
    remove_leftovers,
)
from phf.train.data import StartRecord, TrainingData, open_data
from phf.train.distributed import Ranks, Trained, choose_data_parallel, gather, is_restart, join_ranks, shard
from phf.train.gradients import CompileError, Gradients
from phf.train.losses import validate
from phf.train.optim import learning_rate_factor, make_optimizers, set_learning_rate
from phf.train.outcomes import Outcomes, step_if_finite
from phf.train.run import Run
from phf.train.signals import Stopped, StopSignals
from phf.train.start import describe_start, load_start, load_start_optimizers, resolve_start
from phf.train.trackers import check_trackers, open_loggers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPILE_FROM_STEP = 10
"""The first steps run eagerly: a person sees at once that it works, and a run that fails does so before it compiles."""
COMPILE_FLOPS = 1e13
"""Runs of fewer FLOPs (about a minute on two CPU cores) end sooner without."""

Say = Callable[[str], None]


def train(
    config: TrainConfig,
    folder: Place,
    *,
    wait: bool = False,
    say: Say = print,
    progress: Progress | None = None,
) -> Run:
    """Train a run from its start, or from another run's checkpoint if `config.start` names one; go on where this very config
    was trained into the folder before.

    Under torchrun every process calls this; the first one writes. A SIGTERM or SIGINT finishes the step and saves.

    Args:
        folder: the run folder to make; its name is the run's.
        wait: for another process that writes into it, instead of an error.
        say: called with the lines a person should read.
        progress: called with (description, steps taken, steps in all) after every step.

    Raises:
        PHFError: see `open_data`, `Run.check_new`, `resolve_start`; another process writes into the folder; and when
            `max_bad_steps` steps in a row are not finite.
        Stopped: a signal asked for it; resuming goes on from there.
    """
    folder = Path(folder)
    with join_ranks(config.optim.batch_blocks) as ranks, _hold(folder, ranks, wait, say):
        if (folder / "run.json").exists():
            run = Run.open(folder)
            run.check_config(config)
            return _go_on(run, ranks, say, progress)
        Run.check_new(folder)
        data = open_data(config, to_train=True)
        check_trackers(config.trackers)
        start = None if config.start is None else resolve_start(config.start, data)
        model, value_head = create_model_and_head(data, ranks.device)
        precision = config.precision if config.precision != "auto" else _probe(ranks)
        parameters = lm.num_parameters(model)
        is_compiled = choose_compile(config, parameters, ranks, start)
        ranks.wait()  # all have looked at the folder before the first one writes into it
        if ranks.is_first:
            Run.create(
                folder,
                config,
                data,
                parameters=parameters,
                precision=precision,
                is_compiled=is_compiled,
                start=start,
                revision=lm.hub_revision(init) if (init := config.model.init) is not None else None,
            )
        ranks.wait()
        return _run_steps(Run.open(folder), data, model, value_head, ranks, say, progress)


@contextmanager
def _hold(folder: Path, ranks: Ranks, wait: bool, say: Say) -> Iterator[None]:
    """Hold a run's folder, the first rank for all.

    Raises:
        PHFError: another process holds it.
        KeyboardInterrupt: says how to go on.
    """
    with ExitStack() as held:

        def lock() -> None:
            if ranks.is_first:
                held.enter_context(lock_folder(folder, "training", wait=wait, say=say))

        ranks.share(lock)
        try:
            yield
        except KeyboardInterrupt as stopped:
            if not stopped.args and (folder / "run.json").is_file():
                raise KeyboardInterrupt(f"go on with 'phf train --resume {folder}'") from None
            raise


def resume(
    folder: Place,
    overrides: str | Sequence[str] = (),
    *,
    step: int | None = None,
    wait: bool = False,
    say: Say = print,
    progress: Progress | None = None,
) -> Run:
    """Go on with a run from a checkpoint, the last by default; a finished run is returned as it is. Bit-exact on CPU.

    Args:
        overrides: settings to change, of `CHANGEABLE`, or `corpus` where that has moved; the run keeps them.
        step: go on from this checkpoint; later ones are removed. After a restart: from the last.
        wait: for another process that writes into the folder, instead of an error.

    Raises:
        PHFError: the folder is no run, has no such checkpoint, it is damaged, or its data has changed; an override is
            wrong; another process writes into the folder.
        Stopped: see `train`.
    """
    run = Run.open(folder)
    with join_ranks(run.config.optim.batch_blocks) as ranks, _hold(run.folder, ranks, wait, say):
        run = Run.open(folder).change(as_list(overrides))  # as it is now that nobody else writes it
        (is_again,) = ranks.highest(is_restart())  # torchrun counts the restarts of each node alone
        if is_again:  # torchrun or Slurm started this command before: later checkpoints are its own
            step = None
        return _go_on(run, ranks, say, progress, from_step=step)


def _go_on(
    run: Run, ranks: Ranks, say: Say, progress: Progress | None, *, from_step: int | None = None
) -> Run:
    if run.record.get("finetune"):
        raise PHFError(
            f"{run.folder} was made by 'phf finetune'; the same command goes on with it, training does not"
        )
    if from_step is not None:
        run.resolve_step(from_step)
    elif run.is_finished:
        if ranks.is_first:
            stored = Run.open(run.folder)
            if run.config.corpus != stored.config.corpus:
                stored = stored.change([f"corpus={run.config.corpus}"])
                stored.write()
                say(f"{run.folder}: its corpus is now looked for at {run.config.corpus}")
            kept = "" if run.config == stored.config else "; no setting was changed"
            say(f"{run.folder} is finished: {run.num_steps} steps{kept}")
        return run
    data = run.data(to_train=True)
    check_trackers(run.config.trackers)
    model, value_head = create_model_and_head(data, ranks.device)
    if run.config.compile != "auto":
        run.record["compiled"] = choose_compile(
            run.config, run.record["num_parameters"], ranks, run.record.get("start")
        )
    return _run_steps(run, data, model, value_head, ranks, say, progress, from_step=from_step)


def create_model(data: TrainingData, *, has_weights: bool = True) -> "PreTrainedModel":
    """The model of a run before its first step, on the CPU; see `lm.create_model`."""
    config, tokenizer = data.config, data.tokens.tokenizer
    return lm.create_model(
        config.model,
        vocab_size=tokenizer.padded_vocab_size(),
        control=tokenizer.control,
        context=config.data.context,
        seed=config.seed,
        isolate_documents=config.data.isolate_documents,
        has_weights=has_weights,
    )


def create_model_and_head(
    data: TrainingData, device: torch.device | None = None
) -> "tuple[PreTrainedModel, lm.ValueHead | None]":
    """The model as its seed draws it, and the value head if the objective has one."""
    device = device or Ranks().device
    model = create_model(data).to(device)
    if data.objective.has_control_tokens:
        model.config.control_tokens = list(data.tokens.tokenizer.control.all)
    if (form := value_head_of(data.config.objective)) is None:
        return model, None
    width = model.get_input_embeddings().weight.shape[1]
    return model, lm.ValueHead(width, sigmoid=form == "sigmoid").to(device)


def _probe(ranks: Ranks) -> str:
    """The precision that suits the device of every rank."""
    if ranks.device.type == "cuda":
        is_bf16 = torch.cuda.is_bf16_supported()
    else:
        is_bf16 = lm.probe_bf16()
    (num_bf16,) = ranks.sum(is_bf16)
    return "bf16" if num_bf16 == ranks.size else "fp32"


def choose_compile(
    config: TrainConfig, num_parameters: int, ranks: Ranks, start: StartRecord | None = None
) -> bool:
    """Whether layers are compiled.

    Args:
        start: of a run that has the weights of another one: what that one was trained on is not trained on again.

    Raises:
        PHFError: they should be, and cannot.
    """
    (num_able,) = ranks.sum(lm.can_compile(ranks.device))
    if config.compile is True and num_able < ranks.size:
        raise PHFError(
            "compile=on needs a C++ compiler (g++), on a GPU also triton; install it, or give compile=off"
        )
    num_tokens = config.tokens - (start["tokens"] if start is not None else 0)
    is_long = ranks.device.type == "cuda" or 6 * num_parameters * num_tokens >= COMPILE_FLOPS
    return config.compile is True or (config.compile == "auto" and is_long and num_able == ranks.size)


def _run_steps(
    run: Run,
    data: TrainingData,
    model: "PreTrainedModel",
    value_head: lm.ValueHead | None,
    ranks: Ranks,
    say: Say,
    progress: Progress | None,
    *,
    from_step: int | None = None,
) -> Run:
    def tell(line: str) -> None:
        if ranks.is_first:
            say(f"{run.name}: {line}")

    config, num_steps, start = run.config, run.num_steps, run.record.get("start")
    if ranks.device.type == "cpu" or run.record["precision"] == "bf16":
        use_page_attention(model)
    if run.record.get("compiled", False):
        lm.compile_model(model)
        tell(
            f"layers are compiled at step {COMPILE_FROM_STEP}, which takes up to a minute; compile=off does without"
        )
    trained = Trained(model, value_head)
    if start is not None:
        tell(describe_start(start, config))
    # Looked at first: a damaged checkpoint is refused before shards and optimizers are made.
    if run.steps:
        from_step = run.steps[-1] if from_step is None else from_step
        state = check_checkpoint(run.folder, from_step, ranks)
        tell(f"going on from step {state.step} of {num_steps}")
    elif start is not None:
        # Before sharding: rows of new control tokens are made in the whole embedding.
        state = load_start(start, data, trained)
    else:
        state = TrainState()
    parallel = choose_data_parallel(config.data_parallel, run.record["num_parameters"], ranks)
    if parallel == "fsdp":
        if config.optim.name == "muon":  # it orthogonalises whole matrices, of which a rank holds a part
            raise PHFError(
                "optim.name=muon does not work on sharded weights; give data_parallel=ddp or optim.name=adamw"
            )
        shard(trained, ranks)
    # After sharding, which puts other parameters in the model's place: those are what is trained.
    is_bf16 = run.record["precision"] == "bf16"
    optimizers = make_optimizers(model, value_head, config.optim, is_bf16=is_bf16)
    if from_step is not None:
        load_weights(checkpoint_folder(run.folder, from_step), trained)
        load_optimizers(checkpoint_folder(run.folder, from_step), trained, optimizers)
    elif start is not None:
        tell(load_start_optimizers(start, config, trained, optimizers))
    ranks.wait()  # all have read before the first one removes or writes
    if ranks.is_first:
        if run.record != Run.open(run.folder).record:
            run.write()
        remove_leftovers(run.folder)
        for later in run.steps:
            if later > state.step:
                remove_checkpoint(run.folder, later)
                tell(f"removed the later checkpoint at step {later}")
    for line in data.describe():
        tell(line)
    train_blocks, validation_blocks = data.training_blocks(start), data.validation_blocks
    tokens_per_step, batch_blocks, precision = (
        run.tokens_per_step,
        config.optim.batch_blocks,
        run.record["precision"],
    )
    last_log_time, last_log_step = perf_counter(), state.step
    gradients = Gradients(data, trained, ranks, parallel, precision, state, tell)
    outcomes = Outcomes(state, lag=1 if ranks.device.type == "cuda" else 0)
    trained.train()

    # Go!
    with (
        open_loggers(run, state.step, is_first=ranks.is_first, say=tell) as logger,
        StopSignals() as stop,
        Checkpointer(
            run.folder,
            trained,
            optimizers,
            data.tokens.tokenizer,
            ranks,
            keep=None if config.keep_checkpoints == "all" else config.keep_checkpoints,
        ) as checkpointer,
    ):

        def check_finite() -> None:
            if state.num_bad_in_row >= config.max_bad_steps:
                checkpointer.wait()
                raise PHFError(_divergence(run, state))

        while True:
            step, is_last = state.step, state.step == num_steps

            # Once in a while: validate, save. Both come before the step, so the last pass of the loop does them and stops.
            if is_last or (config.validate_every > 0 and step % config.validate_every == 0):
                with lm.run_eagerly(model):  # other shapes, each of which would be compiled
                    losses = trained(validate, model, data, validation_blocks, precision)
                logger.log({"kind": "validation", "step": step, "tokens": step * tokens_per_step, **losses})
            is_due = config.checkpoint_every > 0 and step > 0 and step % config.checkpoint_every == 0
            if (is_last or is_due) and step != from_step:
                logger.flush()
                outcomes.settle()
                check_finite()
                checkpointer.save(state)
            if is_last:
                checkpointer.wait()
                break

            # One step: a batch that follows from (seed, step) alone, in micro-batches; the sum of the token losses
            # divided by the number of targets that are not padding in the whole batch, all ranks' rows together.
            batch = train_blocks.rows(ranks.rows(step, batch_blocks))
            # For dropout, where a model has it: resuming needs no state.
            torch.manual_seed(config.seed * 2**32 + step * ranks.size + ranks.rank)
            try:
                with nullcontext() if step >= COMPILE_FROM_STEP else lm.run_eagerly(model):
                    loss, share = gradients.compute(batch)
            except CompileError as error:
                if config.compile is True or ranks.size > 1:  # the other ranks may have compiled
                    raise
                tell(f"{error}: going on without")
                lm.forget_compiled(model)
                run.record["compiled"] = False
                run.write()
                loss, share = gradients.compute(batch)
            norm = gather(nn.utils.clip_grad_norm_(trained.parameters(), config.optim.clip_norm))
            factor = learning_rate_factor(step, num_steps, config.optim)
            set_learning_rate(optimizers, factor)
            step_if_finite(optimizers, loss, norm)
            outcomes.put(loss, norm, share)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            state.step += 1
            check_finite()

            # One log line.
            if state.step % config.log_every == 0 or state.step == num_steps:
                outcome, now = outcomes.read(), perf_counter()
                speed = (state.step - last_log_step) * tokens_per_step / (now - last_log_time)
                last_log_time, last_log_step = now, state.step
                record = {
                    "kind": "train",
                    "step": state.step,
                    "tokens": state.step * tokens_per_step,
                    "loss": outcome.loss,
                    "learning_rate": config.optim.learning_rate * factor,
                    "grad_norm": outcome.norm,
                    "tokens_per_second": round(speed),
                    "skipped": state.num_skipped,
                }
                if data.objective.has_weights:
                    record["effective_sample_share"] = outcome.share
                logger.log(record)
            if progress is not None and ranks.is_first and outcomes.last is not None:
                progress(f"train {run.name}  loss {outcomes.last.loss:.3f}", state.step, num_steps)

            # Asked to stop: the signal may have reached one rank alone, or reach them at different steps.
            number, has_failed = ranks.highest(stop.received or 0, checkpointer.has_failed)
            if has_failed:
                checkpointer.wait()
            if number > 0 and state.step < num_steps:
                logger.flush()
                outcomes.settle()
                checkpointer.save(state)
                checkpointer.wait()
                ranks.wait()
                raise Stopped(
                    f"{run.name}: stopped and saved at step {state.step} of {num_steps}; "
                    f"go on with 'phf train --resume {run.folder}'",
                    int(number),
                )
    ranks.wait()
    if state.num_skipped:
        tell(f"{state.num_skipped} steps were skipped because loss or gradient was not finite")
    return run


def _divergence(run: Run, state: TrainState) -> str:
    steps = run.steps
    last = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved before"
    return (
        f"{run.name} stopped at step {state.step}: loss or gradient was not finite {state.num_bad_in_row} times in a row; "
        f"{last}; train again with a lower optim.learning_rate (it was {run.config.optim.learning_rate:g})"
    )
