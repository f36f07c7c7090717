"""Progress in a log: a line now and then, always the last one, never one per step."""

from phf import terminal


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
