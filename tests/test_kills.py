"""A sample of the driver: killed anywhere, a command that is run again leaves what it would have. All of it: `python tests/kills.py`."""

import random
from pathlib import Path

import pytest
from golden_runs import write_mails
from kills import STAGES, kill_stage, run_whole, write_answers


@pytest.mark.parametrize(("name", "num"), [("label", 6), ("corpus build", 3)])
def test_a_killed_command_is_run_again_as_if_it_had_not_been(name: str, num: int, tmp_path: Path) -> None:
    write_answers(tmp_path / "labelled.json")
    write_mails(tmp_path / "mails.jsonl", 30)
    whole = run_whole(tmp_path, STAGES[name])
    assert not whole.timed
    changes = range(1, whole.num_changes + 1)
    for change in random.Random(0).sample(changes, min(num, len(changes))):
        assert kill_stage(tmp_path, STAGES[name], whole, change)[0] == "same", change
