"""A sample of the driver: damaged files of a run are refused, told of, or change nothing. All of it: `python tests/damage.py`."""

import random
from pathlib import Path

from damage import FAULTS, list_cases, make_place, run_cases

COMMANDS = ("show", "compare", "sample", "resume", "evaluate")


def test_a_damaged_file_of_a_run_is_never_used_in_silence(tmp_path: Path) -> None:
    make_place(tmp_path, is_whole=False, has_other=False)
    cases = [case for case in list_cases() if case.command in COMMANDS]
    said: list[str] = []
    counts = run_cases(tmp_path, random.Random(3).sample(cases, 30), 0, said.append)
    assert not said
    assert not {outcome for _, outcome in counts} & set(FAULTS)
    assert sum(number for (_, outcome), number in counts.items() if outcome == "refused") >= 8
