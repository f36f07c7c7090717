"""Every objective has a complete row, and nothing but its config, its cases and its row knows its kind."""

import ast
import re
import string
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import phf
from phf.config.train import objective_kinds
from phf.explore.scores import TELL
from phf.objective_facts import OBJECTIVES, is_baseline
from phf.report.figures import OBJECTIVE_COLOURS, read_css

KINDS = set(objective_kinds())
CLASSES = {choice.__name__ for choice in objective_kinds().values()}
SOURCES = Path(phf.__file__).parent
NUMBERS = {
    "threshold",
    "part",
    "rest",
    "num_levels",
    "best_level",
    "worst_level",
    "best",
    "worst",
    "effective",
}


def find_knowledge(source: str) -> list[str]:
    """Where code depends on the kind of an objective: comparisons, cases and mappings of kinds; classes of the union;
    fields of one kind read by `getattr`.
    """
    found = []

    def note(node, what):
        found.append(f"line {node.lineno}: {what}")

    def names_kind(node):
        return any(isinstance(part, ast.Constant) and part.value in KINDS for part in ast.walk(node))

    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare() if any(
                names_kind(side)
                for side in (node.left, *node.comparators)
                if isinstance(side, ast.Constant | ast.Tuple | ast.List | ast.Set)
            ):
                note(node, "compares with a kind")
            case ast.MatchValue() if names_kind(node):
                note(node.value, "a case for a kind")
            case ast.Dict() if is_keyed_by_kinds(node):
                note(node, "a mapping of kinds")
            case ast.ImportFrom(module="phf.config.train") if CLASSES & {name.name for name in node.names}:
                note(node, "imports a class of the union")
            case ast.Call(func=ast.Name(id="getattr"), args=[of, *_]) if ast.unparse(of).endswith(
                "objective"
            ):
                note(node, "reads a field that not every kind has")
    return found


def is_keyed_by_kinds(node: ast.Dict) -> bool:
    """A record with one field of such a name ("quantile") is no mapping of kinds."""
    num_kinds = sum(isinstance(key, ast.Constant) and key.value in KINDS for key in node.keys)
    return num_kinds > 1 or num_kinds == len(node.keys) > 0


@pytest.mark.parametrize(
    "line",
    [
        'is_plain = group.objective == "mle"',
        'is_plain = "mle" != kind',
        'if kind in ("rwr", "awr"): pass',
        'match kind:\n    case "masking": pass',
        'NOTES = {"conditional": "a note"}',
        "from phf.config.train import MLE, StrictConfig",
        'head = getattr(run.config.objective, "value_head", None)',
    ],
)
def test_knowledge_of_a_kind_is_found(line):
    assert len(find_knowledge(line)) == 1


def test_nothing_else_knows_the_kind_of_an_objective():
    found = {
        str(path.relative_to(SOURCES)): places
        for path in sorted(SOURCES.rglob("*.py"))
        if not path.name.startswith(("config", "objective"))
        and (places := find_knowledge(path.read_text("utf-8")))
    }
    assert found == {}
    for path in SOURCES.rglob("*.html"):
        assert not re.search(rf"""['"]({"|".join(KINDS)})['"]""", path.read_text("utf-8")), path.name


def test_every_kind_has_a_complete_row():
    assert list(OBJECTIVES) == list(objective_kinds())
    for kind, facts in OBJECTIVES.items():
        assert facts.note.endswith("."), kind
        assert {name for _, name, _, _ in string.Formatter().parse(facts.corpus_line) if name} <= NUMBERS, (
            kind
        )
        assert facts.corpus_line, kind
        assert facts.document_line is None or facts.document_line in TELL, kind
        assert facts.modes, kind
    assert [kind for kind in OBJECTIVES if is_baseline(kind)] == ["mle"]
    assert not is_baseline("of another version")
    loans = sorted(facts.loan for facts in OBJECTIVES.values() if facts.loan)
    assert loans == list(range(1, len(loans) + 1))


def test_every_kind_has_a_colour_of_its_own_that_can_be_read():
    for shades, paper in (("light", "#ffffff"), ("dark", "#14171a")):
        colours = [getattr(facts, shades) for facts in OBJECTIVES.values()]
        assert len(set(colours)) == len(colours)
        for colour in colours:
            assert contrast(colour, paper) >= 4.5, colour
    assert len(set(OBJECTIVE_COLOURS.values())) == len(KINDS)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2)."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_style_sheet_has_every_colour_on_screen_in_the_dark_and_on_paper():
    css = read_css()
    assert "objectives:" not in css, "every place is filled"
    screen, dark, paper = re.split(r"@media (?:\(prefers-color-scheme: dark\)|print)", css)
    for kind, facts in OBJECTIVES.items():
        assert f"--{kind}: {facts.light};" in screen
        assert f"--{kind}: {facts.dark};" in dark
        assert f"--{kind}: {facts.light};" in paper
        assert f".legend .{kind} {{ --line: var(--{kind}); }}" in css
    own = (resources.files("phf.report") / "page.css").read_text("utf-8")
    assert not re.search(rf"--({'|'.join(KINDS)})\b", own)


def test_the_rows_are_read_without_torch():
    code = "import sys, phf.objective_facts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
