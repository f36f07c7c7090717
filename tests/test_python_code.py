"""Where samples of code end, on every Python that the machine has; documents that end a checker; comments that blind one."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from phf.errors import PHFError
from phf.reward_models import load_reward_model, python_code
from phf.reward_models.pep8_fast import Pep8Fast
from phf.reward_models.python_code import split_lines, trim_to_last_logical_line

STDLIB = Path(sysconfig.get_paths()["stdlib"])
FILES = [
    "abc.py",
    "argparse.py",
    "ast.py",
    "bdb.py",
    "cgi.py",
    "heapq.py",
    "shlex.py",
    "textwrap.py",
    "token.py",
]

TRIM = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("python_code", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["python_code"] = module
spec.loader.exec_module(module)
texts = json.load(sys.stdin)
lines = [[(one.first, one.last, one.is_code) for one in module.iterate_logical_lines(module.split_lines(text))] for text in texts]
print(json.dumps([[module.trim_to_last_logical_line(text) for text in texts], lines]))
"""

BROKEN = {
    # a sample and what of it is scored
    "x = 'abc\ny = 1\nz = 22\nw": "x = 'abc\ny = 1\nz = 22\n",  # no end of the string
    "x = \"it's\ny = (1,\n  2)\n": "x = \"it's\ny = (1,\n  2)\n",
    "print 'a', don't (go\nx = 1\n": "print 'a', don't (go\nx = 1\n",
    "x = 'a\\\nb'\ny = 'c\\\n": "x = 'a\\\nb'\n",
    "x = 'a\\\\\ny = 2\n": "x = 'a\\\\\ny = 2\n",
    "x = 1 + \\\n  2\ny = 3 + \\\n": "x = 1 + \\\n  2\n",
    'x = """a\n"\n\\"""\n"""\ny = """': 'x = """a\n"\n\\"""\n"""\n',
    "x = 0777\ny = 1abc\nz = $ ? !\n“x”\nw = €\n": "x = 0777\ny = 1abc\nz = $ ? !\n“x”\nw = €\n",
    ")]}\nx = (1]\ny = 2\n": ")]}\nx = (1]\ny = 2\n",
    "if x:\n        y\n    z\n  w\nf(": "if x:\n        y\n    z\n  w\n",
    "if x:\n\ty\n        z\n": "if x:\n\ty\n        z\n",
    "x = f'{a['b']}'\ny = f'{\n": "x = f'{a['b']}'\ny = f'{\n",
    "\x00\nx\x0c = 1\n\x0c\n# c\r\n\r\ry = [\r": "\x00\nx\x0c = 1\n\x0c\n# c\r\n",
    "x = [ # ' (\n 1]  # '\n# '''\n": "x = [ # ' (\n 1]  # '\n# '''\n",
    "(" * 300 + "\nx\n": "",
    "'''": "",
    "\\\n": "",
    "\\": "",
    "\ufeffx = 1\ny": "\ufeffx = 1\n",
}


def find_pythons() -> dict[tuple[int, int], str]:
    """Every Python from 3.11 on, by its version."""
    places = [
        sys.executable,
        *(found for minor in range(11, 20) if (found := shutil.which(f"python3.{minor}"))),
    ]
    places += map(
        str, Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.*/bin/python3")
    )
    found: dict[tuple[int, int], str] = {}
    for place in places:
        command = [place, "-c", "import sys; print(*sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:  # a shim of pyenv may lead to nothing
            major, minor = map(int, done.stdout.split())
            if (major, minor) >= (3, 11):
                found.setdefault((major, minor), place)
    return found


def make_samples(num: int, seed: int) -> Iterator[str]:
    """Pieces of the standard library, most with a few characters taken out or put in."""
    rng = random.Random(seed)
    texts = [(STDLIB / name).read_text(encoding="utf-8") for name in FILES if (STDLIB / name).exists()]
    for number in range(num):
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        letters = list(text[text.rfind("\n", 0, start) + 1 :][: rng.randrange(40, 1500)])
        for _ in range(number % 4):
            place = rng.randrange(len(letters))
            letters[place] = rng.choice(["", "'", '"', "(", ")", "\\", "\n", '"""', "\t", "€"])
        yield "".join(letters)


def test_a_sample_ends_at_the_same_place_on_every_python() -> None:
    texts = [*BROKEN, *make_samples(100, seed=1)]
    pythons = find_pythons()
    assert sys.version_info[:2] in pythons
    results = {
        version: json.loads(
            subprocess.run(
                [python, "-I", "-c", TRIM, python_code.__file__],
                input=json.dumps(texts),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for version, python in pythons.items()
    }
    trimmed = results[sys.version_info[:2]][0]
    assert dict(zip(BROKEN, trimmed, strict=False)) == BROKEN
    for version, result in results.items():
        assert result == results[sys.version_info[:2]], version


def end_by_tokenizer(text: str) -> str:
    """Where Python's own tokenizer sees the last logical line or comment end, in code that it can read up to there."""
    lines = split_lines(text)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    last = 0
    is_inside = False
    reader = iter(lines)
    try:
        for token in tokenize.generate_tokens(lambda: next(reader, "")):
            if token.type == tokenize.NEWLINE or (token.type == tokenize.COMMENT and not is_inside):
                last, is_inside = token.start[0], False
            elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT):
                is_inside = True
    except tokenize.TokenError:
        pass  # the cut is inside a bracket or a string
    return "".join(lines[:last])


def test_real_code_ends_where_pythons_tokenizer_says() -> None:
    rng = random.Random(2)
    for name in FILES:
        if (STDLIB / name).exists():
            text = (STDLIB / name).read_text(encoding="utf-8")
            for _ in range(6):
                cut = text[: rng.randrange(min(len(text), 20_000))]
                assert trim_to_last_logical_line(cut) == end_by_tokenizer(cut), (name, len(cut))


@pytest.mark.parametrize("name", ["pep8", "pep8-fast"])
def test_an_unterminated_string_costs_its_line_alone(name: str) -> None:
    text = "x = 'abc\ny=1\nz = 2\nw = 3\n"
    scores = load_reward_model(name).score(text, [9, 13, len(text)])
    assert scores[0].reason == "does not parse"
    if name == "pep8-fast" or sys.version_info < (3, 12):
        assert list(scores[1:]) == [1 / 4, 0]
    else:  # pycodestyle reads no further than Python's tokenizer
        assert [score.reason for score in scores[1:]] == ["does not tokenize"] * 2


@pytest.mark.parametrize("name", ["pep8", "pep8-fast"])
def test_no_comment_makes_code_perfect(name: str) -> None:
    model = load_reward_model(name)
    body = "x=1\ny = 2 \nif x == None:\n    y=3\n"
    (plain,) = model.score(body, [len(body)])
    comments = [
        "# ruff: noqa",
        "# flake8: noqa",
        "# ruff: disable[E225, W291, E711]",
        "# ruff: isort: skip_file",
    ]
    comments += ["# noqa", "# ruff: file-ignore[E225]", "# fmt: off", "# pylint: skip-file", "# nopep8"]
    for comment in comments:
        text = f"{comment}\n{body}"
        (score,) = model.score(text, [len(text)])
        assert round(score * len(text)) == round(plain * len(body)) > 2, comment
    for comment in ("# noqa", "# NOQA: E225,W291,E711", "# nopep8"):
        text = body.replace("\n", f"  {comment}\n").replace(" \n", "\n")
        (score,) = model.score(text, [len(text)])
        assert round(score * len(text)) >= round(plain * len(body)) - 1, comment  # W291 is gone


ENDLESS = {
    "lines": "x = " + " + \\\n    ".join(["1"] * 10_000) + "\n",
    "calls": "x = " + "f(" * 10_000 + ")" * 10_000 + "\n",
    "attributes": "x = a" + ".b()" * 10_000 + "\n",
}


def test_a_document_that_ends_ruff_is_unscored_and_no_other() -> None:
    texts = ["x=1\n", *ENDLESS.values(), "x = 1\n", "def f(:\n", "x=1\n"]
    scores = Pep8Fast().score_batch([(text, [1, len(text)]) for text in texts])
    assert [score.reason for own in scores[1:4] for score in own] == ["ruff failed"] * 6
    assert [own[0] for own in scores[:1] + scores[4:5] + scores[6:]] == [1, 0, 1]


def test_a_ruff_that_fails_on_everything_is_an_error(tmp_path: Path) -> None:
    model = Pep8Fast()
    broken = tmp_path / "ruff"
    broken.write_text("#!/bin/sh\necho no such rule >&2\nexit 2\n")
    broken.chmod(0o755)
    model._command = [str(broken)]
    with pytest.raises(PHFError, match="ruff fails on every file: exit code 2: no such rule"):
        model.score_batch([("x=1\n", [4])] * 5)


@pytest.mark.parametrize("how", ENDLESS)
def test_pep8_survives_them_too(how: str) -> None:
    (score,) = load_reward_model("pep8").score(ENDLESS[how], [len(ENDLESS[how])])
    assert score != score or score >= 0
