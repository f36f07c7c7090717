"""The file of judgements: what stands in it after kills, crashes, undo and other people."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from phf.errors import PHFError
from phf.feedback.judgements import open_judgements

ROWS = [
    {"text": "schön\u2028", "label": 0},
    {"text": "two\nlines", "label": 1},
    {"text": "three", "label": 0},
]
PAIR = {"chosen": "a", "rejected": "b"}


def write(path, rows=ROWS):
    with open_judgements(path, "label") as file:
        for row in rows:
            file.append(row)


def read(path):
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


def test_judgements_are_lines_that_a_later_session_finds(tmp_path):
    path = tmp_path / "labels.jsonl"
    write(path, ROWS[:2])
    write(path, ROWS[2:])
    assert read(path) == ROWS
    with open_judgements(path, "label") as file:
        assert file.rows == ROWS
        assert file.undo() is None, "what an earlier session wrote stays"


def test_undo_takes_the_last_line_out_of_the_file(tmp_path):
    path = tmp_path / "labels.jsonl"
    write(path, ROWS[:1])
    with open_judgements(path, "label") as file:
        file.append(ROWS[1])
        file.append(ROWS[2])
        assert file.undo() == ROWS[2]
        assert read(path) == ROWS[:2] == file.rows
        assert file.undo() == ROWS[1]
        file.append(ROWS[2])
        assert read(path) == [ROWS[0], ROWS[2]] == file.rows


def test_half_a_line_is_cut_off_and_said_wherever_it_ends(tmp_path):
    path = tmp_path / "labels.jsonl"
    write(path)
    data = path.read_bytes()
    start = data.index(b"\n", data.index(b"\n") + 1) + 1
    for end in range(start + 1, len(data)):
        path.write_bytes(data[:end])
        with open_judgements(path, "label") as file:
            whole = end == len(data) - 1  # the newline alone is missing
            assert file.rows == ROWS[: 3 if whole else 2]
            assert (file.repair is None) == whole
            file.append(ROWS[0])
        assert read(path) == [*ROWS[: 3 if whole else 2], ROWS[0]]


def test_kill_at_any_moment_loses_no_judgement_that_was_acknowledged(tmp_path):
    path = tmp_path / "labels.jsonl"
    script = (
        "import itertools, sys; from pathlib import Path; from phf.feedback.judgements import open_judgements\n"
        "with open_judgements(Path(sys.argv[1]), 'label') as file:\n"
        "    start = len(file.rows)\n"
        "    for n in itertools.count(start):\n"
        "        file.append({'text': 'x' * 20000, 'label': n % 2, 'n': n}); print(n, flush=True)\n"
        "        if n % 5 == 4: file.undo(); file.append({'text': 'y', 'label': 0, 'n': n})\n"
    )
    rng = random.Random(0)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0.01, 0.1))
            process.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in process.stdout.read().split()]
        with open_judgements(path, "label") as file:
            assert acknowledged, "it was killed while it was writing"
            numbers = [row["n"] for row in file.rows]
            # The last one may be between undo and its new line, or written and not yet acknowledged.
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= acknowledged[-1]


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "labels.jsonl"
    with open_judgements(path, "label") as file:
        file.append(ROWS[0])
        with pytest.raises(PHFError, match="another process is labelling"), open_judgements(path, "label"):
            pass
    write(path, ROWS[1:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json\n", r":1 is not a JSON object"),
        ("plain text without end", r":1 is not a JSON object"),
        (json.dumps(PAIR) + "\n", "use --task pair"),
        ('{"text": "a", "rating": 3}\n', "use --task rate"),
        ('{"text": "a"}\n', "no text and label"),
        ('{"text": "a", "label": "bad"}\n', ":1 has 'bad' as label"),
        ('{"text": "a", "label": 1}\n{"text": 7, "label": 1}\n{"te', ":2 has 7 as text"),
    ],
)
def test_a_file_of_something_else_is_refused_and_not_touched(tmp_path, content, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(content)
    with pytest.raises(PHFError, match=message), open_judgements(path, "label"):
        pass
    assert path.read_text() == content


def test_nothing_judged_leaves_no_file_and_a_full_disk_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"
    with open_judgements(path, "label"):
        pass
    assert not path.exists()
    write(path, ROWS[:1])
    real = os.write
    with open_judgements(path, "label") as file:
        monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))
        with pytest.raises(OSError, match="No space") as caught:
            file.append(ROWS[1])
        monkeypatch.undo()
        assert caught.value.errno == errno.ENOSPC
        assert file.rows == ROWS[:1] == read(path)
        file.append(ROWS[2])
    assert read(path) == [ROWS[0], ROWS[2]]
