"""Tasks side by side: what they say comes through, one that fails stops the others, none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from phf.errors import PHFError
from phf.processes import run_side_by_side


def work(name, seconds, error=None, *, say, progress):
    progress(f"{name}  detail", 1, 2)
    say(f"{name} has {os.environ['OMP_NUM_THREADS']} threads")
    if error == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if error:
        raise PHFError(error)
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        Path(f"{name}.saved").write_text("")
        raise


def test_what_tasks_say_comes_through(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said, bars = [], []
    tasks = {name: partial(work, name, 0) for name in ("one", "two", "three")}
    run_side_by_side(tasks, at_once=1000, say=said.append, progress=lambda *call: bars.append(call))
    assert sorted(said) == [f"{name} has 1 threads" for name in ("one", "three", "two")]
    assert sorted(bars) == [(f"{name}  detail", 1, 2) for name in ("one", "three", "two")]


@pytest.mark.parametrize(("error", "match"), [("no such corpus", "no such corpus"), ("kill", "code -9")])
def test_one_that_fails_stops_the_others(error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    tasks = {"slow": partial(work, "slow", 60), "wrong": partial(work, "wrong", 0, error)}
    begun = []
    with pytest.raises(PHFError, match=match):
        run_side_by_side(tasks, at_once=2, say=begun.append)
    assert time.monotonic() - start < 30
    if any("slow" in line for line in begun):
        assert Path("slow.saved").exists(), "it was asked, not killed"


def test_tasks_end_with_their_parent(tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from functools import partial
from test_processes import work
from phf.processes import run_side_by_side
if __name__ == "__main__":
    run_side_by_side({{"child": partial(work, "child", 60)}}, at_once=1, say=lambda line: print(line, flush=True))
"""
    (tmp_path / "run.py").write_text(program)
    command = [sys.executable, "run.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        assert "child has" in parent.stdout.readline()
        parent.kill()
        assert parent.stdout.read() == "", "the pipe ends once no process holds it: the child is gone too"


def test_a_lifeline_ends_with_whoever_holds_it(tmp_path):
    """The command of a holder that is killed, and of one that cuts it, is asked to stop; one without goes on."""
    child = "import time; from phf.processes import stop_with_lifeline; stop_with_lifeline(); print(1); time.sleep(60)"
    program = f"""
import os, subprocess, sys
from phf.processes import Lifeline
with Lifeline() as lifeline:
    command = [sys.executable, "-uc", {child!r}]
    child = subprocess.Popen(command, env={{**os.environ, **lifeline.environment}}, pass_fds=[lifeline.handle])
    sys.stdin.read()
sys.exit(-child.wait())
"""
    command = [sys.executable, "-c", program]
    for end in ("kill", "cut"):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "1\n"
            holder.kill() if end == "kill" else holder.stdin.close()
            assert holder.stdout.read() == "", "the pipe ends once no process holds it: the child is gone too"
        assert end == "kill" or holder.returncode == signal.SIGTERM
