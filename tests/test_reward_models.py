"""Reward models: what a score counts, what is unscored, and that no error ever scores 0."""

import copy
import math
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

import numpy as np
import pycodestyle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf.errors import PHFError
from phf.records import Identity
from phf.reward_models import (
    RewardModel,
    SegmentRewardModel,
    Unscored,
    list_reward_models,
    load_reward_model,
    score_documents,
    score_samples,
)
from phf.reward_models.pep8 import IGNORED, MAX_LINE_LENGTH, LineReport
from phf.reward_models.pii import find_items
from phf.reward_models.python_code import split_lines

STDLIB = Path(sysconfig.get_paths()["stdlib"])
NASTY = [
    "",
    "\x00",
    "\ufeff",
    "😀😀🏽",
    "\ud800",
    "\r",
    "\x0c\n",
    "\u2028",
    "a" * 100_000,
    "(" * 500,
    "'''",
    "x = (\n",
]
QUICK = ("pep8", "pii", "toxicity-svm")


@pytest.fixture(scope="module")
def models() -> dict[str, RewardModel]:
    return {name: load_reward_model(name) for name in (*QUICK, "pep8-fast")}


def line_ends(document: str) -> list[int]:
    return list(accumulate(map(len, split_lines(document))))


def score_lines(model: RewardModel, document: str) -> list[float]:
    return score_documents(model, [(document, line_ends(document))])[0]


# --- the protocol -------------------------------------------------------------------------------------------------


class Shouting(SegmentRewardModel):
    """Share of capitals (the example of docs/reward_models.md)."""

    identity = Identity("shouting", "1")
    unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.5

    def score_texts(self, texts: Sequence[str]) -> list[float]:
        return [sum(map(str.isupper, text)) / len(text) for text in texts]


def test_a_model_of_ones_own_needs_one_method():
    documents = [("ABcd", [2, 4]), ("", []), ("xY", [2])]
    assert score_documents(Shouting(), documents) == [[1.0, 0.0], [], [0.5]]
    assert Shouting().score("ABcd", [2, 4]) == [1.0, 0.0]


def test_unscored_is_nan_and_keeps_its_reason():
    score = Unscored("too long")
    assert math.isnan(score)
    assert math.isnan(np.asarray([score], np.float32)[0])
    assert copy.deepcopy([score])[0].reason == "too long"  # by the way in which worker processes send it, too


def test_empty_segments_and_samples_are_unscored_never_zero(models):
    for model in [*models.values(), Shouting()]:
        scores = [*score_documents(model, [("x = 1\n", [0, 6])])[0][:1], *score_samples(model, [""])]
        assert [score.reason for score in scores] == ["empty text", "empty text"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ends: [0.0] * (len(ends) + 1), "returned 3 scores for the 2 segments of document 0"),
        (lambda ends: [0.0] * (len(ends) - 1), "returned 1 scores"),
        (
            lambda ends: [math.inf] * len(ends),
            "returned the score inf; a score lies within ±1e.09, or is NaN",
        ),
        (lambda ends: [0.0, -1e38], "returned the score -1e.38; a score lies within"),
        (lambda ends: [1.1e9, math.nan], "returned the score 1.1e.09; a score lies within"),
    ],
)
def test_wrong_answers_of_a_model_are_refused(wrong, message):
    class Wrong(RewardModel):
        identity = Identity("wrong", "1")

        def score(self, document, ends):
            return wrong(ends)

    with pytest.raises(PHFError, match=message):
        score_documents(Wrong(), [("ab", [1, 2])])


class PanicException(BaseException):
    """As PyO3 raises it when a library in Rust panics."""


def test_a_model_that_raises_scores_nothing():
    class Broken(Shouting):
        identity = Identity("broken", "1")

        def score_texts(self, texts):
            if "text two" in texts:
                raise self.error
            return [0.0] * len(texts)

    message = r"broken raised RuntimeError: no; text 1, which begins 'text two'; it must give NaN"
    for error in (RuntimeError("no"), PanicException("no")):
        Broken.error = error
        with pytest.raises(PHFError, match=message.replace("RuntimeError", type(error).__name__)):
            score_samples(Broken(), ["one", "", "text two"])


def test_unknown_names_and_missing_packages_are_said(monkeypatch):
    with pytest.raises(PHFError, match=r"'toxicity-smv'; did you mean toxicity-svm\? valid names: pep8, "):
        load_reward_model("toxicity-smv")
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(
        PHFError, match="'profanity_check', which is not installed; run 'pip install alt-profanity"
    ):
        load_reward_model("toxicity-svm")


def test_every_card_loads_and_every_identity_differs(models):
    loaded = {name: load_reward_model(name) for name in QUICK}
    for name in QUICK:
        assert loaded[name].identity.id == models[name].identity.id
        assert loaded[name].identity.name == name
    assert len({model.identity.id for model in models.values()}) == len(models)
    assert models["toxicity-svm"].identity.version == version("alt-profanity-check")
    assert len(models["toxicity-svm"].identity.weights_hash) == 64
    assert {card.name for card in list_reward_models()} >= {*models, "toxicity-lstm"}


def test_importing_the_package_is_cheap():
    code = "import sys, phf.reward_models as r; r.list_reward_models(); print({'torch', 'sklearn', 'numpy.random'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "sklearn" not in done.stdout


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts_get_one_score_per_segment(models, text):
    for model in models.values():
        for ends in ([], [len(text)], [len(text) // 2, len(text)]):
            document = text if ends else ""
            (scores,) = score_documents(model, [(document, ends)])
            assert all(score >= 0 or math.isnan(score) for score in scores)
        score_samples(model, [text])


@pytest.mark.parametrize("name", ["pep8", "pii"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counts_do_not_depend_on_how_a_document_is_cut(models, name, data):
    fragments = [
        "x=1\n",
        "def f( a):\n    return  a \n",
        "y = 'a@b.org 10.0.0.1'\n",
        "import os, sys\n",
        "\n",
        "é = '😀'\n",
    ]
    document = "".join(data.draw(st.lists(st.sampled_from(fragments), min_size=1, max_size=8)))
    ends = sorted(data.draw(st.sets(st.integers(1, len(document)), max_size=5)) | {len(document)})
    whole = score_documents(models[name], [(document, [len(document)])])[0][0]
    parts = score_documents(models[name], [(document, ends)])[0]
    assert np.dot(parts, np.diff([0, *ends])) == pytest.approx(whole * len(document))


# --- pep8 ---------------------------------------------------------------------------------------------------------


def test_pep8_counts_violations_per_character_in_the_context_of_the_document(models):
    document = "import os\ndef f( a):\n    return os.path\n"
    lines = score_lines(models["pep8"], document)
    assert lines == [0, 2 / 11, 0]  # E302 (needs the line before) and E201
    assert score_lines(models["pep8"], "def f(a):\n") != lines
    assert models["pep8"].score(document, [len(document)]) == [2 / len(document)]
    assert models["pep8"].score(document, [3, 15, len(document)]) == [
        0,
        2 / 12,
        0,
    ]  # the line *starts* in the second


def test_pep8_checks_what_the_paper_checked(models):
    assert score_lines(models["pep8"], "x = '\\d'\n") == [1 / 9]  # W605
    assert score_lines(models["pep8"], f"x = '{'a' * 80}'\n")[0] > 0  # E501
    assert score_lines(models["pep8"], "x = 1*2 + 3\n") == [0]  # E226 is off by default


def test_pep8_agrees_with_pycodestyle_itself(models):
    for name in ("calendar.py", "cgi.py", "colorsys.py", "turtle.py"):
        text = (STDLIB / name).read_text(encoding="utf-8")
        expected = pycodestyle.StyleGuide(quiet=1).init_report(pycodestyle.BaseReport)
        pycodestyle.StyleGuide(quiet=1, reporter=lambda options, report=expected: report).input_file(
            STDLIB / name
        )
        (score,) = models["pep8"].score(text, [len(text)])
        assert round(score * len(text)) == expected.get_count() > 0


def test_pep8_prints_nothing(models, capsys):
    score_lines(models["pep8"], "x=1\n")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["pep8", "pep8-fast"])
def test_syntax_errors_are_counted_apart_and_are_never_perfect(models, name):
    python2 = "x=1\nprint 'a' \nfor i in x :\n    pass\n"
    scores = score_lines(models[name], python2)
    assert scores[0] == 1 / 4
    assert scores[1].reason == "does not parse"
    assert scores[2:] == [1 / 13, 0]
    (whole,) = models[name].score(python2, [len(python2)])
    assert whole == 2 / (
        len(python2) - len("print 'a' \n")
    )  # broken lines are neither violations nor characters
    assert models[name].count_syntax_errors(python2) == 1
    assert models[name].count_syntax_errors("x = 1\n") == 0


def test_pycodestyles_own_syntax_errors_are_left_out():
    options = pycodestyle.StyleGuide(ignore=IGNORED, max_line_length=MAX_LINE_LENGTH).options
    report = LineReport(options)
    checker = pycodestyle.Checker(lines=["x=1\n", "y = (\n"], options=options, report=report)
    checker.check_all()
    assert sum(code.startswith("E9") for code in report.messages) == 1
    assert report.rows == [1]  # E225


@pytest.mark.parametrize("name", ["pep8", "pep8-fast"])
@pytest.mark.parametrize(
    "text", ["Dear John, how are you?\n\nYours truly\n", "def f(:\n    pass\n", "\x00\n", "}}{\n"]
)
def test_what_is_not_python_is_unscored(models, name, text):
    for score in [*score_lines(models[name], text), *models[name].score(text, [len(text)])]:
        assert score.reason == "does not parse"
    assert models[name].count_syntax_errors(text) == 1


def test_lines_after_the_tokenizer_stops_are_unscored(models):
    text = "a = 1\nb = 2\nc = (3,\nd = 4\n"
    scores = score_lines(models["pep8"], text)
    assert scores[:2] == [0, 0]
    assert [score.reason for score in scores[2:]] == ["does not tokenize"] * 2


def test_headers_clauses_and_decorators_of_broken_files_still_count(models):
    text = "try:\n    x = 1\nexcept E:\n    y = 2\nelse:\n    z = 3\n@d\ndef f():\n    return\nif x: y\nmatch x:\n    case 1:\n        y = 3\nprint 1\n"
    scores = score_lines(models["pep8"], text)
    assert [math.isnan(score) for score in scores] == [False] * (len(scores) - 1) + [True]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_marks_are_no_violations(models, end):
    for name in ("pep8", "pep8-fast"):
        assert score_lines(models[name], f"x = 1{end}y = 2{end}") == [0, 0]
        assert score_lines(models[name], f"\ufeffx = 1{end}") == [0]


@pytest.mark.parametrize(
    ("sample", "scored"),
    [
        ("x = 1\ny = 2", "x = 1\n"),
        ("x = 1\n\n\n", "x = 1\n"),  # no W391 made by the cut
        ("x = 1\n# done\n", "x = 1\n# done\n"),
        ("x = 1\ny = f(\n    a,\n    b", "x = 1\n"),
        ('x = 1\n"""An unfinished\ndocstring\n', "x = 1\n"),
        (
            "if x:\n        y = 1\n    z = 2\nw = 3\nv",
            "if x:\n        y = 1\n    z = 2\nw = 3\n",
        ),  # broken, not cut
        ("x = ", ""),
        ("", ""),
    ],
)
def test_a_sample_of_code_ends_at_its_last_complete_logical_line(models, sample, scored):
    assert models["pep8"].trim_sample(sample) == scored
    assert models["pep8"].trim_sample(scored) == scored


def test_samples_are_scored_after_trimming(models):
    scores = score_samples(models["pep8"], ["x=1\ny = f(", "y = f(", ""])
    assert scores[0] == 1 / 4
    assert [score.reason for score in scores[1:]] == ["no complete line", "empty text"]


def test_pep8_fast_agrees_line_by_line(models):
    text = (STDLIB / "turtle.py").read_text(encoding="utf-8")
    slow, fast = (np.asarray(score_lines(models[name], text)) > 0 for name in ("pep8", "pep8-fast"))
    assert np.mean(slow == fast) > 0.97
    assert (slow & fast).sum() > 100


PEP8_CASES = {
    # found by both
    "E225": "x=1\n",
    "E301": "class X:\n    def a(self):\n        pass\n    def b(self):\n        pass\n",
    "E501": f"x = '{'a' * 80}'\n",
    "E714": "if not x is None:\n    y = 1\n",
    "E722": "try:\n    x = 1\nexcept:\n    pass\n",
    "W191": "if x:\n\ty = 1\n",
    "W291": "x = 1 \n",
}
PEP8_GAPS = {
    # found by pycodestyle alone
    "E128": "x = f(1,\n    2)\n",
    "E131": "x = [\n    'a'\n      'b',\n]\n",
    "E203": "x[a+1 :]\n",
    "E225": "x = y /2\n",
    "E301": "if x:\n    def a():\n        pass\n    def b():\n        pass\n",
    "E501": f"# see https://example.org/{'a' * 80}\n",
    "E701": "class C: ...\n",
    "E714": "if not x is not None:\n    y = 1\n",
    "E722": "try:\n    x = 1\nexcept:\n    raise\n",
    "W191": 'if x:\n\t"""a\n\tb"""\n',
}


def test_pep8_fast_finds_what_the_documentation_says(models):
    def count(texts: Sequence[str]) -> list[int]:
        """Of pep8-fast, by one process for all."""
        scores = models["pep8-fast"].score_batch([(text, [len(text)]) for text in texts])
        return [round(score * len(text)) for (score,), text in zip(scores, texts, strict=True)]

    for cases, gap in ((PEP8_CASES, 0), (PEP8_GAPS, 1)):
        found = dict(zip(cases, count([*cases.values()]), strict=True))
        for code, text in cases.items():
            (score,) = models["pep8"].score(text, [len(text)])
            assert 0 < round(score * len(text)) == found[code] + gap, code
    examples = list(pycodestyle_examples())
    assert len(examples) > 60
    found = count([text for _, text in examples])
    missed = {code for (code, _), num in zip(examples, found, strict=True) if num == 0}
    assert missed == {"E122", "E124", "E125", "E127", "E128", "E129", "E225"}
    page = (Path(__file__).parents[1] / "docs/reward_models.md").read_text(encoding="utf-8")
    assert all(code in page or code.startswith("E12") for code in [*PEP8_GAPS, "E12x"])


def pycodestyle_examples():
    """Code and program of each example of a violation in pycodestyle's docstrings that parses and that `pep8` counts."""
    for check in {check for checks in pycodestyle._checks.values() for check in checks}:
        for code, text in re.findall(r"^\s*([EW]\d{3}): (.*)", check.__doc__ or "", re.MULTILINE):
            text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\s", " ") + "\n"
            try:
                compile(text, code, "exec")
            except SyntaxError:
                continue
            if not code.startswith((*IGNORED, "W505")):
                yield code, text


# --- pii ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+x@mail.example.org.", ["e-mail"]),
        ("call (555) 123-4567 or +44 20 7946 0958", ["phone", "phone"]),
        ("SSN 123-45-6789", ["ssn"]),
        ("card 4111 1111 1111 1111", ["card"]),
        ("card 4111 1111 1111 1112", []),  # the check digit is wrong
        ("at 192.168.0.1, 2001:db8::8a2e:370:7334", ["ip", "ip"]),
        ("192.168.555.1 and 1.2.3.4.5 and 10:20:30 and 000-12-3456", []),
        ("4111-1111-1111-1111", ["card"]),
        ("502023098911", ["card"]),  # Maestro's 12 digits
        ("180071965934238 and 3782 822463 10005", ["card", "card"]),  # 15: JCB, American Express
        ("411111111110", []),  # 12 digits that pass, of an issuer without such cards
        ("4111 1111 1111 1111 110", ["card"]),  # 19
        ("001-212-555-1234x12", ["phone"]),
        ("4111 111-11-1111 111", ["card"]),  # an SSN's layout inside a card
        ("a@b a@b.c @x.org 3.14159 12345678901234", []),
        ("x@y.org x@y.org", ["e-mail", "e-mail"]),
    ],
)
def test_pii_items(text, kinds):
    assert [kind for _, _, kind in find_items(text)] == kinds


def test_pii_counts_are_divided_by_the_segments_length_once(models):
    text = "mail a@b.org now"
    assert models["pii"].score(text + text, [16, 32]) == [1 / 16, 1 / 16]
    assert models["pii"].score("nothing here", [12]) == [0]


def test_pii_is_linear_on_long_runs():
    def seconds(text: str) -> float:
        start = time.process_time()
        find_items(text)
        return time.process_time() - start

    for unit in ("a", "1", "a.", "1 ", "1.", "1:", "a@", "+1", "(1", "1-"):
        assert seconds(unit * 200_000) < 2, unit


# --- toxicity -----------------------------------------------------------------------------------------------------


def test_svm_is_the_packages_probability_whatever_the_batch(models):
    import profanity_check

    texts = ["what a nice day", "you stupid bastard", "go to hell", "😀", "The cat sat."] * 3
    scores = score_samples(models["toxicity-svm"], texts)
    assert scores == profanity_check.predict_prob(texts).astype(np.float32).tolist()
    assert scores == [score_samples(models["toxicity-svm"], [text])[0] for text in texts]
    assert scores[0] < 0.2 < 0.8 < scores[1]
    joined = "".join(texts[:3])
    assert models["toxicity-svm"].score(joined, list(accumulate(map(len, texts[:3])))) == scores[:3]
