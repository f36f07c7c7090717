"""The seam of metrics: each is declared once, says what it cannot see, is had without the others, and is typed."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest

import phf.evaluate
from phf.evaluate.drawn import Drawn
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.parts import Parts
from phf.evaluate.suite import METRICS, list_measures, measure_all
from phf.records import Estimate
from phf.results import Measure, Measurement

FOLDER = Path(phf.evaluate.__file__).parent

COUNT_LINES = """
import sys
import phf.evaluate.measures.blimp

modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "phf"]
print(sum(open(module.__file__).read().count("\\n") for module in modules))
"""


def test_every_measure_is_declared_once_and_says_what_it_cannot_see() -> None:
    measures = [measure for metric in METRICS for measure in metric.measures]
    assert len({measure.name for measure in measures}) == len(measures)
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for measure in measures:
        assert measure.title, measure.name
        assert measure.note.endswith("."), measure.name
        assert measure.blind_spot.endswith("."), measure.name


def test_every_file_of_measures_is_in_the_suite() -> None:
    names = {path.stem for path in (FOLDER / "measures").glob("*.py")} - {"__init__"}
    assert names == {metric.compute.__module__.rpartition(".")[2] for metric in METRICS}


def test_one_metric_is_had_without_the_others() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_LINES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 6000


def test_nothing_in_evaluate_is_any() -> None:
    for path in FOLDER.rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert "Any" not in names, path


class FakeSubject:
    """Enough of a subject for `measure_all`."""

    def __init__(self, config) -> None:
        self.config = config
        self.progress = None


def make_metric(name: str, **options) -> Metric:
    def compute(subject) -> Measured:
        rows = [Measurement(name, Estimate(1.0, 0.0, 2.0, 3), "good")]
        return Measured(rows, {"of": name}, [Drawn(name, "good", [], {})], {f"{name} part": "why"})

    return Metric(name, (Measure(name, name),), options.pop("compute", compute), **options)


def test_the_suite_is_a_loop_over_the_tuple() -> None:
    from phf.config.evaluate import EvaluateConfig
    from phf.errors import NotApplicableError

    def fail(subject) -> Measured:
        raise NotApplicableError("no bad segment")

    metrics = (
        make_metric("one"),
        make_metric("unasked", is_wanted=lambda config: False, option="--unasked FILE"),
        make_metric("fragile", compute=fail),
    )
    found, left_out = measure_all(FakeSubject(EvaluateConfig(suite="full")), metrics)
    assert list(found) == ["one"]
    assert left_out == {"one part": "why", "unasked": "give --unasked FILE", "fragile": "no bad segment"}
    assert [measure.name for measure in list_measures(list(found["one"].measurements), metrics)] == ["one"]
    _, left_out = measure_all(FakeSubject(EvaluateConfig()), metrics)
    assert "unasked" not in left_out, "the quick suite names nothing that it does not have"
    asked = make_metric("asked", compute=fail, option="--asked FILE")
    with pytest.raises(NotApplicableError, match="no bad segment"):
        measure_all(FakeSubject(EvaluateConfig()), (asked,))


def test_a_part_is_the_same_whether_it_was_kept(tmp_path) -> None:
    """Order too: on disk the keys of an object are sorted."""
    value = {"good": Estimate(math.nan, 0.5, 1.0, 3), "bad": Estimate(0.25, math.nan, 1.0, 3)}
    parts = Parts(tmp_path, ["run"])
    fresh = parts.measure("part", [1], lambda: value, dict[str, Estimate])
    kept = Parts(tmp_path, ["run"]).measure("part", [1], dict, dict[str, Estimate])
    assert repr(fresh) == repr(kept)
    assert math.isnan(kept["good"].mean)
    assert parts.measure("part", [2], dict, dict[str, Estimate]) == {}, "made of something else"
    assert parts.measure("part", [2], lambda: [1], list[int]) == [1], "another shape is made anew"
    (tmp_path / "part.json").write_text('{"key": "half')
    assert parts.measure("part", [2], lambda: [2], list[int]) == [2]
