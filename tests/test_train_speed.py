"""What makes training fast changes nothing else: compiled layers, and steps that wait for no GPU."""

import math
import sys
from itertools import count

import pytest
import torch
from compare_runs import assert_same_run, quiet, train
from cpu import IS_MEASURED
from torch.utils._python_dispatch import TorchDispatchMode

from phf.errors import PHFError
from phf.model import lm
from phf.train import loop
from phf.train.checkpoint import TrainState, checkpoint_folder
from phf.train.gradients import Gradients
from phf.train.outcomes import Outcomes
from phf.train.run import Run


@pytest.mark.slow
@pytest.mark.skipif(not lm.can_compile(torch.device("cpu")), reason="no C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_a_compiled_run_learns_the_same_and_goes_on_bit_for_bit(small_config, tmp_path, monkeypatch):
    changes = ("tokens=4096", "optim.learning_rate=1e-3", "optim.micro_batch_blocks=2")
    eager = train(small_config(*changes, "compile=off"), tmp_path / "eager")
    config = small_config(*changes, "compile=on")
    whole = train(config, tmp_path / "whole")
    assert (eager.record["compiled"], whole.record["compiled"]) == (False, True)
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    )  # a layer, and the NLL: not again for other pages
    losses = [
        [line["loss"] for line in run.read_metrics() if line["kind"] == "train"] for run in (eager, whole)
    ]
    assert losses[0][: loop.COMPILE_FROM_STEP] == losses[1][: loop.COMPILE_FROM_STEP]
    if IS_MEASURED:  # AVX2's compiled layer rounds as the eager one
        assert losses[0][loop.COMPILE_FROM_STEP :] != losses[1][loop.COMPILE_FROM_STEP :]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    compute, calls = Gradients.compute, count()

    def stop_once(self, batch):
        if next(calls) == 13:
            raise KeyboardInterrupt
        return compute(self, batch)

    monkeypatch.setattr(Gradients, "compute", stop_once)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped")
    torch.compiler.reset()  # as in a new process
    assert Run.open(tmp_path / "stopped").steps[-1] == 12
    assert_same_run(loop.resume(tmp_path / "stopped", say=quiet), whole)


def test_compiling_is_for_long_runs_and_needs_a_compiler(small_config, tmp_path, monkeypatch):
    assert train(small_config(), tmp_path / "short").record["compiled"] is False
    large = int(loop.COMPILE_FLOPS)  # parameters
    monkeypatch.setenv("CXX", sys.executable)  # looked for, not run
    assert loop.choose_compile(small_config(), large, loop.Ranks()) is True
    assert loop.choose_compile(small_config("compile=off"), large, loop.Ranks()) is False
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert lm.can_compile(torch.device("cpu")) is False
    assert loop.choose_compile(small_config(), large, loop.Ranks()) is False
    with pytest.raises(PHFError, match="compile=on needs a C"):
        train(small_config("compile=on"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_fails_says_how_to_go_on_and_the_run_does(small_config, tmp_path, monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    config, compute, steps = small_config("compile=on"), lm.nll_of_hidden, []
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)

    def fail(model, hidden, targets, **exact):
        steps.extend([0] if hidden.requires_grad else [])
        if len(steps) > loop.COMPILE_FROM_STEP:
            raise InternalTorchDynamoError("no compiler\nat all")
        return compute(model, hidden, targets, **exact)

    monkeypatch.setattr(lm, "nll_of_hidden", fail)
    with pytest.raises(
        PHFError, match=r"^torch.compile failed \(no compiler\); .*--resume RUN compile=off goes on$"
    ):
        train(config, tmp_path / "run")
    monkeypatch.setattr(lm, "nll_of_hidden", compute)
    run = loop.resume(tmp_path / "run", ["compile=off"], say=quiet)
    assert run.is_finished
    assert Run.open(run.folder).record["compiled"] is False


@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_nobody_asked_for_may_fail(small_config, tmp_path, monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    eager = train(small_config("compile=off"), tmp_path / "eager")
    compute, steps = lm.nll_of_hidden, []

    def fail(model, hidden, targets, **exact):
        if lm.is_compiled(model) and hidden.requires_grad:
            steps.append(0)
            if len(steps) > loop.COMPILE_FROM_STEP:
                raise InternalTorchDynamoError("no compiler")
        return compute(model, hidden, targets, **exact)

    monkeypatch.setattr(loop, "COMPILE_FLOPS", 1)
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(lm, "nll_of_hidden", fail)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    said = []
    run = loop.train(small_config(), tmp_path / "run", say=said.append)
    assert [line for line in said if "going on without" in line]
    assert Run.open(run.folder).record["compiled"] is False
    assert len(steps) == loop.COMPILE_FROM_STEP + 1
    losses = [
        [line["loss"] for line in one.read_metrics() if line["kind"] == "train"] for one in (eager, run)
    ]
    assert losses[0] == losses[1]


def test_bad_steps_at_the_end_of_a_run_stop_it_too(small_config, tmp_path, monkeypatch):
    compute, calls = Gradients.compute, count()

    def spoil(self, batch):
        loss, share = compute(self, batch)
        return (loss * math.nan if next(calls) >= 10 else loss), share

    monkeypatch.setattr(Gradients, "compute", spoil)
    monkeypatch.setattr(loop, "Outcomes", lambda state, lag: Outcomes(state, lag=1))
    with pytest.raises(PHFError, match="not finite 2 times in a row"):
        train(small_config("max_bad_steps=2", "log_every=100", "validate_every=0"), tmp_path / "run")
    assert Run.open(tmp_path / "run").steps == [4, 8]


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers read from tensors, and shapes that depend on them."""

    names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() in self.names:
            self.found.append(function.name())
        if function.name() == "aten::index.Tensor" and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "objective",
    [
        "{kind: mle}",
        "{kind: conditional, good_fraction: 0.5}",
        "{kind: unlikelihood, good_fraction: 0.5}",
        "{kind: masking, good_fraction: 0.5}",
        "{kind: rwr}",
        "{kind: rwr, normalize: rank}",
        "{kind: awr}",
        "{kind: additive, good_fraction: 0.5}",
        "{kind: scalar}",
    ],
)
def test_no_step_waits_for_its_numbers(objective, small_config, tmp_path, monkeypatch):
    config = small_config(f"objective={objective}", "tokens=1024", "log_every=4", "validate_every=0")
    waits = {}
    compute, step = Gradients.compute, loop.step_if_finite

    def watched(name, function):
        def watch(*arguments):
            with Waits() as mode:
                result = function(*arguments)
            waits.setdefault(name, []).extend(mode.found)
            return result

        return watch

    monkeypatch.setattr(Gradients, "compute", watched("compute", compute))
    monkeypatch.setattr(loop, "step_if_finite", watched("step", step))
    # On the CPU outcomes are read at once; as on CUDA they are read one step late.
    monkeypatch.setattr(loop, "Outcomes", lambda state, lag: Outcomes(state, lag=1))
    # torch's own fused AdamW reads its step counts on the CPU, where that waits for nothing.
    train(config, tmp_path / "run")
    assert waits == {"compute": [], "step": []}


def test_outcomes_count_skipped_steps_late_but_all_of_them():
    state = TrainState()
    outcomes = Outcomes(state, lag=1)
    values = [1.0, math.nan, math.inf, 2.0, math.nan]
    seen = []
    for value in values:
        outcomes.put(torch.tensor(value), torch.tensor(1.0), torch.tensor(0.5))
        seen.append((state.num_skipped, state.num_bad_in_row))
    assert seen == [(0, 0), (0, 0), (1, 1), (2, 2), (2, 0)]
    last = outcomes.read()
    assert math.isnan(last.loss)
    assert (last.norm, last.share) == (1.0, 0.5)
    assert (state.num_skipped, state.num_bad_in_row) == (3, 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_not_finite_moves_nothing_with_either_optimizer(
    name, small_config, tmp_path, monkeypatch
):
    clip, calls = torch.nn.utils.clip_grad_norm_, count()

    def spoil(parameters, max_norm):
        parameters = list(parameters)
        if next(calls) in (4, 5):
            for parameter in parameters:
                parameter.grad.fill_(math.nan)
        return clip(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    config = small_config(
        f"optim.name={name}", "checkpoint_every=1", "keep_checkpoints=99", "validate_every=0"
    )
    run = train(config, tmp_path / "run")
    for file in ("model.safetensors", "optimizer.safetensors"):
        before, after, later = (
            (checkpoint_folder(run.folder, step) / file).read_bytes() for step in (4, 6, 7)
        )
        assert before == after != later
    assert run.read_metrics()[-2]["skipped"] == 2
