"""`phf` commands in processes of their own, which can be killed. They are forked from one server that has torch imported."""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["phf.cli", "phf.train.loop"])


class Command:
    """A running command."""

    def __init__(self, arguments, environment, prepare):
        self._errors = Path(tempfile.mkdtemp()) / "stderr"
        self._process = _CONTEXT.Process(
            target=_run, args=(arguments, environment, str(self._errors), prepare), daemon=True
        )
        self._process.start()

    @property
    def is_running(self):
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def finish(self):
        """Exit code (negative: the signal that killed it) and what it wrote to stderr."""
        self._process.join(timeout=90)
        assert not self.is_running, self._errors.read_text()
        return self._process.exitcode, self._errors.read_text()


def start_command(*arguments, prepare=None, **environment):
    """Start `phf ARGUMENTS` with some variables in its environment; `prepare` (of a module) is called there first."""
    return Command([str(argument) for argument in arguments], environment, prepare)


def wait_for_step(folder, step, command):
    """Until the run has logged a step."""
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and f'"train", "step": {step},' in metrics.read_text()):
        assert command.is_running, command.finish()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _run(arguments, environment, errors, prepare):
    import torch

    from phf.cli import main

    torch.set_num_threads(1)
    os.environ.update(environment)
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if prepare is not None:
        prepare()
    sys.argv = ["phf", *arguments]
    main()
