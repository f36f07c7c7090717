"""`phf` commands in processes of their own, which can be killed. They are forked from one server that has torch imported."""

import io
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
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
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
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
        self._process.join(timeout=240)  # the machine may be busy
        assert not self.is_running, self.read_errors()
        return self._process.exitcode, self.read_errors()


def start_command(*arguments, prepare=None, has_children=False, **environment):
    """Start `phf ARGUMENTS` with some variables in its environment; `prepare` (of a module) is called there first."""
    given = prepare, [str(argument) for argument in arguments]
    return Command(run_phf, given, environment, has_children=has_children)


class Script:
    """`subprocess.Popen` of `python -I SCRIPT ARGUMENTS` as `phf.release.verify` calls it, but forked from the server. The script
    finds torch and transformers imported, and nothing of phf."""

    def __init__(self, command, *, stdout, stderr, text, cwd):
        python, isolated, *script = command
        assert (python, isolated, stdout, text) == (sys.executable, "-I", subprocess.PIPE, True)
        self._command, self._errors = Command(run_script, (script, str(cwd)), {}), stderr

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.returncode, errors = self._command.finish()
        self._errors.write(errors)

    @property
    def stdout(self):
        """What it has written, once it is done."""
        self._command.finish()
        return io.StringIO(self._command.read_output())


def run_script(words, folder):
    """Run a script with its arguments as `python SCRIPT ARGUMENTS` would, without what is loaded of phf; its variables."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "phf" and module is not None:
            del sys.modules[name]
    os.chdir(folder)
    sys.argv = list(words)
    return runpy.run_path(words[0], run_name="__main__")


def wait_for_page(command):
    """Until it serves a page; the lines of stderr until then."""
    deadline = time.monotonic() + 120
    while "in the browser" not in command.read_errors():
        assert command.is_running, command.finish()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return command.read_errors().splitlines()


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
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, and hand that on
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
