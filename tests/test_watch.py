"""Code that is not ours may end the process without a word: whoever watches over it says whose it was. Signals reach the command."""

import ctypes
import signal
import sys
import time
from pathlib import Path

import pytest
from command_processes import Command
from compare_runs import train
from golden_runs import write_mails

from phf.corpus.store import build_corpus


def crash(*arguments):
    ctypes.string_at(0)


def leave(*arguments):
    ctypes.CDLL(None)._exit(0)


def hang(*arguments):
    time.sleep(60)


def run_watched(ending, arguments):
    """`phf ARGUMENTS`, in which a judge of ours ends so."""
    from phf.__main__ import main
    from phf.reward_models.pii import PII

    if ending is not None:
        PII.score = ending
    sys.argv = ["phf", *map(str, arguments)]
    main()


def start_watched(ending, *arguments):
    return Command(run_watched, (ending, arguments), {})


@pytest.fixture
def corpus(tmp_path):
    write_mails(tmp_path / "mails.jsonl", 30)
    return build_corpus([tmp_path / "mails.jsonl"], tmp_path / "corpus")


@pytest.mark.parametrize(("ending", "how"), [(crash, "was killed by SIGSEGV"), (leave, "ended with code 0")])
def test_a_judge_of_ours_that_ends_the_process_in_annotate_is_named(corpus, ending, how):
    command = start_watched(
        ending, "annotate", corpus.path, "--reward-model", "pii", "-s", "lines", "--workers", 1
    )
    code, errors = command.finish()
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"error: reward model pii: the process {how}")


def test_a_judge_that_ends_the_process_in_evaluate_is_named(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    sizes = ("--num-samples", 4, "--max-new-tokens", 12)
    code, errors = start_watched(crash, "evaluate", run.folder, "--judge", "pii", *sizes).finish()
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: reward model pii: the process was killed by SIGSEGV")
    assert not (run.folder / "evaluation.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_command_and_its_end_is_told(corpus, number):
    command = start_watched(hang, "annotate", corpus.path, "-r", "pii", "-s", "lines", "--workers", 1)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    command.send_signal(number)
    code, errors = command.finish()
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number], errors
    deadline = time.monotonic() + 10
    while Path(f"/proc/{found[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{found[0]}").exists(), "nothing is left behind"


def test_a_command_ends_as_it_does_unwatched(corpus):
    assert start_watched(None, "annotate", corpus.path, "-r", "nothing").finish()[0] == 2
    assert start_watched(None, "stats", corpus.path).finish()[0] in (0, 2)
    assert start_watched(None, "--version").finish() == (0, "")
