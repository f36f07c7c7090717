"""`phf finetune`: a run's model learns from feedback, and a run comes out (docs/finetune.md)."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from phf.config.finetune import DPO, KTO, RLOO, BestOfN, FinetuneConfig, Pretraining
from phf.config.train import OptimConfig
from phf.errors import PHFError
from phf.files import Place
from phf.finetune.learners import Learner, Likelihood, OnPolicy, Used
from phf.finetune.measure import measure_result
from phf.finetune.pairs import Preferences, read_preferences, take_samples, take_segments
from phf.finetune.pool import Pool
from phf.finetune.proxy import Proxies
from phf.finetune.results import FINETUNE
from phf.finetune.start import Start
from phf.finetune.trl import Preferring, check_trl
from phf.folders import lock_folder
from phf.records import Progress
from phf.reward_models import RewardModel, load_reward_model
from phf.train.checkpoint import (
    Checkpointer,
    TrainState,
    check_checkpoint,
    checkpoint_folder,
    load_optimizers,
    load_weights,
    remove_leftovers,
)
from phf.train.distributed import Ranks, Trained
from phf.train.optim import make_optimizers
from phf.train.outcomes import step_if_finite
from phf.train.run import Run
from phf.train.signals import Stopped, StopSignals
from phf.train.trackers import open_loggers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_BAD_STEPS = 5
Say = Callable[[str], None]


def finetune(
    run: Place,
    out: Place,
    config: FinetuneConfig | None = None,
    *,
    load: Callable[[str], RewardModel] = load_reward_model,
    wait: bool = False,
    say: Say = print,
    progress: Progress | None = None,
) -> Run:
    """Finetune a run on feedback; go on where this very command was begun into the folder before. The run that comes out is one like
    any other, with finetune.json beside it.

    A SIGTERM or SIGINT finishes the step and saves.

    Args:
        run: a run, or `RUN@STEP`.
        out: its folder.
        wait: for another process that writes into it, instead of an error.
        progress: called with (description, steps taken, steps in all).

    Raises:
        PHFError: see `Start.open`, `Start.open_run`; what the method needs is not installed or not there; another process writes into
            the folder; `_MAX_BAD_STEPS` steps in a row are not finite.
        Stopped: a signal asked for it; the same command goes on from there.
    """
    folder, config = Path(out), config or FinetuneConfig()
    if isinstance(config.method, Pretraining):
        from phf.finetune.pretraining import train_further

        method = config.method
        return train_further(run, folder, config, method, load, wait=wait, say=say, progress=progress)
    with lock_folder(folder, "finetuning", wait=wait, say=say):
        proxies = Proxies(Start.open(run, config, load), folder, progress)
        start = proxies.at(0)
        given = _read_given(start)
        own = start.open_run(folder)
        if own.is_finished and FINETUNE.is_in(folder):
            say(f"{folder} is finished: {config.steps} steps")
            return own
        for note in start.notes:
            say(f"{own.name}: {note}")
        learner, used, pool = _open_learner(start, proxies, own, given, progress)
        model = _take_steps(start, own, learner, say, progress)
        last = proxies.at(config.steps - 1)
        FINETUNE.write(folder, measure_result(last, own, last.draw_as(own, model), used, pool, progress))
    return own


def _read_given(start: Start) -> Preferences | None:
    """What is learned from and is there before the run is: a mistake in it leaves nothing behind."""
    method = start.config.method
    if not isinstance(method, DPO | KTO):
        return None
    check_trl(start)
    if place := start.config.preferences:
        return read_preferences(start, place)
    return take_segments(start) if method.data == "corpus" else None


def _open_learner(
    start: Start, proxies: Proxies, run: Run, given: Preferences | None, progress: Progress | None
) -> tuple[Learner, Used, Pool | None]:
    """The method, what it costs in all, and the pool it draws from if it does."""
    method, config = start.config.method, start.config
    if isinstance(method, RLOO):
        return OnPolicy(start, method, proxies), Used(config.steps * config.texts, None), None
    pool = None
    if given is None:
        pool = Pool.draw(start, run.folder, run.id, progress)
        if isinstance(method, BestOfN):
            return Likelihood(start, method, pool), Used(len(pool.texts), pool.num_tokens), pool
        given = take_samples(start, pool)
    assert isinstance(method, DPO | KTO)
    return Preferring(start, method, given), Used(given.calls, given.tokens), pool


def _take_steps(
    start: Start, run: Run, learner: Learner, say: Say, progress: Progress | None
) -> "PreTrainedModel":
    """The model after the last step, which the run's last checkpoint holds."""
    model = (
        copy.deepcopy(start.model).requires_grad_(True).eval()
    )  # without dropout, which would not be the policy that writes
    trained, config = Trained(model, None), start.config
    optim = OptimConfig(learning_rate=config.learning_rate, weight_decay=0.0, beta2=0.999)
    optimizers = make_optimizers(model, None, optim)
    state, last = TrainState(step=start.step), start.step + config.steps
    remove_leftovers(run.folder)
    if run.steps:
        state = check_checkpoint(run.folder, run.steps[-1])
        load_weights(checkpoint_folder(run.folder, state.step), trained)
        load_optimizers(checkpoint_folder(run.folder, state.step), trained, optimizers)
        say(f"{run.name}: going on from step {state.step} of {last}")

    def update(loss: Tensor) -> float:
        return _update(loss, model, optimizers, config.clip_norm)

    with (
        open_loggers(run, state.step, is_first=True, say=say) as logger,
        StopSignals() as stop,
        Checkpointer(
            run.folder,
            trained,
            optimizers,
            start.tokenizer,
            Ranks(),
            keep=None if config.keep_checkpoints == "all" else config.keep_checkpoints,
        ) as checkpointer,
    ):
        while state.step < last:
            begun = perf_counter()
            logged = learner.step(model, state.step - start.step, update)
            state.step += 1
            _count_bad(run, state, logged)
            line = {"kind": "train", "step": state.step, "tokens": state.step * run.tokens_per_step, **logged}
            logger.log({**line, "seconds": perf_counter() - begun, "skipped": state.num_skipped})
            if progress is not None:
                done = state.step - start.step
                progress(f"finetune {run.name}  {_describe(logged)}", done, config.steps)
            is_stopped = stop.received is not None and state.step < last
            every = config.checkpoint_every
            if state.step == last or is_stopped or (every and (state.step - start.step) % every == 0):
                logger.flush()
                checkpointer.save(state)
            if is_stopped:
                checkpointer.wait()
                raise Stopped(
                    f"{run.name}: stopped and saved at step {state.step} of {last}; the same command goes on from there",
                    int(stop.received or 0),
                )
        checkpointer.wait()
    return model


def _update(loss: Tensor, model: nn.Module, optimizers: list[Optimizer], clip_norm: float) -> float:
    """One step, unless loss or gradient is not finite."""
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    step_if_finite(optimizers, loss.detach(), norm)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return float(norm)


def _count_bad(run: Run, state: TrainState, logged: dict[str, float]) -> None:
    state.count(is_finite=math.isfinite(logged["loss"]) and math.isfinite(logged["grad_norm"]))
    if state.num_bad_in_row >= _MAX_BAD_STEPS:
        raise PHFError(
            f"{run.name} stopped at step {state.step}: loss or gradient was not finite {state.num_bad_in_row} times in a row; "
            "give a lower --learning-rate"
        )


def _describe(logged: dict[str, float]) -> str:
    names = ("score", "kl_text", "loss")
    return "  ".join(f"{name} {logged[name]:.3g}" for name in names if name in logged)
