"""What a command loads before it needs it: seconds of a user's time, said in modules, which do not swing as times do."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch._dynamo",
    "torch.distributed.tensor",
    "transformers.modeling_utils",
    "scipy.stats",
    "sklearn",
    "sympy",
)


def run_python(code: str) -> tuple[set[str], int]:
    """The heavy modules (and torch) that a program has loaded at its end, and its exit code."""
    program = f"""
import json, sys
code = 0
try:
    {code}
except SystemExit as error:
    code = error.code
print("\\n" + json.dumps([[name for name in {("torch", *HEAVY)!r} if name in sys.modules], code]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded, code = json.loads(done.stdout.splitlines()[-1])
    return set(loaded), code


@pytest.mark.parametrize(
    "module", ["phf.train.loop", "phf.evaluate.rollouts", "phf.evaluate.evaluation", "phf.cli.show"]
)
def test_a_room_loads_no_model_classes(module: str) -> None:
    loaded, _ = run_python(f"import {module}")
    assert loaded <= {"torch"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "golden/runs/mle"], 2),
        (["compare", "one"], 2),
        (["train", "demo", "corpus=x", "optimm.x=3", "-o", "nope"], 2),
        (["train", "demo", "corpus=x", "objective.kind=mlee", "--dry-run"], 2),
    ],
)
def test_a_wrong_command_is_refused_before_torch_is_loaded(arguments: list[str], code: int) -> None:
    loaded, exit_code = run_python(f"sys.argv = ['phf', *{arguments!r}]; import phf.cli as cli; cli.main()")
    assert (loaded, exit_code) == (set(), code)
