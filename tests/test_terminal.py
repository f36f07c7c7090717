"""Progress in a log: a line now and then, always the last one, never one per step."""

import ast
import shlex
from pathlib import Path

from phf import cli, terminal


def test_a_log_gets_the_first_and_the_last_line_of_an_activity(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "monotonic", lambda: 100.0)
    bars = terminal.Bars(None)
    for step in range(1, 51):
        bars(f"train run  loss {5 - step / 100:.2f}", step, 50)
    assert capsys.readouterr().err.splitlines() == [
        "train run  loss 4.99  1 of 50",
        "train run  loss 4.50  50 of 50",
    ]


def test_a_total_that_is_not_known_yet_is_not_shown(capsys):
    terminal.Bars(None)("reading documents", 1000, 0)
    assert capsys.readouterr().err == "reading documents  1,000\n"


def test_a_log_says_how_long_it_will_take(capsys, monkeypatch):
    clock = iter([100.0, 101.0, 102.5, 104.0, 113.0])
    monkeypatch.setattr(terminal, "monotonic", lambda: next(clock))
    bars = terminal.Bars(None)
    for step in (11, 21, 36, 51, 141):  # what was done before the command began says nothing of its speed
        bars("train run", step, 1011)
    assert capsys.readouterr().err.splitlines() == [
        "train run  11 of 1,011",
        "train run  36 of 1,011, about 98 seconds left",
        "train run  141 of 1,011, about 87 seconds left",
    ]


def test_a_path_is_one_word_of_a_command():
    for place in ("a b", "it's", "$HOME", "-x;y", "\u00fc"):
        assert shlex.split(f"phf show {terminal.quote(Path(place))}") == ["phf", "show", place]
    assert terminal.quote("a\x1b[31m") == "'a\\x1b[31m'"


def test_whatever_a_hint_names_is_quoted():
    """All but what is ours: kinds of segments, the default tokenizer, commands that are made by a function."""
    ours = ("kind", "read_recipe('default')['tokenizer']", "_training(", "_name_next(")
    hints = [
        node.args[0]
        for path in sorted(Path(cli.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hint"
    ]
    values = [
        ast.unparse(value.value)
        for hint in hints
        for value in hint.values
        if isinstance(value, ast.FormattedValue)
    ]
    assert len(values) > 15
    assert not [value for value in values if "quote" not in value and not value.startswith(ours)]
