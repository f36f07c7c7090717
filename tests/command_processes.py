"""`phf` commands in processes of their own, which can be killed. They are forked from one server that has torch imported."""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "phf.cli",
        "phf.train.loop",
        "phf.evaluate.evaluation",
        "transformers.models.llama.modeling_llama",
        "pandas",
    ]
)


def warm_starts(method=None):
    """For `multiprocessing.get_context`: processes that the project starts are forked from the server too, where a test is
    of what they do and not of how they are started (`test_processes.py`, `test_annotate.py`)."""
    return _CONTEXT


class Command:
    """A running command, or a function of a module that runs like one."""

    def __init__(self, function, arguments, environment, *, has_children=False):
        folder = Path(tempfile.mkdtemp())
        self._output, self._errors = folder / "stdout", folder / "stderr"
        self._output.touch(), self._errors.touch()
        self._process = _CONTEXT.Process(
            target=_run, args=(function, arguments, environment, str(folder)), daemon=not has_children
        )
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    def read_errors(self):
        """What it has written to stderr until now."""
        return self._errors.read_text()

    def read_output(self):
        """What it has written to stdout until now."""
        return self._output.read_text()

    @property
    def is_running(self):
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def finish(self):
        """Exit code (negative: the signal that killed it) and what it wrote to stderr."""
        self._process.join(timeout=90)
        assert not self.is_running, self.read_errors()
        return self._process.exitcode, self.read_errors()


def start_command(*arguments, prepare=None, has_children=False, **environment):
    """Start `phf ARGUMENTS` with some variables in its environment; `prepare` (of a module) is called there first."""
    given = prepare, [str(argument) for argument in arguments]
    return Command(run_phf, given, environment, has_children=has_children)


def wait_for_step(folder, step, command):
    """Until the run has logged a step."""
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and f'"train", "step": {step},' in metrics.read_text()):
        assert command.is_running, command.finish()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _run(function, arguments, environment, folder):
    import torch

    torch.set_num_threads(1)
    # Python takes a .pyc for whole that a limit on the size of files has cut off.
    sys.dont_write_bytecode = True
    os.environ.update(environment)
    for name, handle in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY), handle)
    function(*arguments)


def run_phf(prepare, arguments):
    from phf.cli import main

    if prepare is not None:
        prepare()
    sys.argv = ["phf", *arguments]
    main()
