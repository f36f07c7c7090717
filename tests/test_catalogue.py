"""Every way to name a reward model, and what `phf reward list` says of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phf import cli
from phf.errors import PHFError
from phf.reward_models import catalogue, load_reward_model, score_samples, speed
from phf.reward_models.function import FunctionRewardModel
from phf.reward_models.llm.rubric import list_rubrics
from phf.reward_models.speed import describe_reward_models, measure_speed, read_text

FUNCTION = """
def score(texts):
    return [text.count("!") / len(text) for text in texts]
"""
PROTOCOL = """
from phf.records import Identity
from phf.reward_models import SegmentRewardModel

class Loud(SegmentRewardModel):
    identity = Identity("loud", "1", parameters={"character": "!"})
    unit = "probability"
    display_scale = 1.0
    hit_threshold = 0.1

    def __init__(self, character="!"):
        self.character = character

    def score_texts(self, texts):
        return [text.count(self.character) / len(text) for text in texts]

loud = Loud("?")

class Needy(Loud):
    def __init__(self, character):
        pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes ./NAME.py in the current folder; names differ, since Python imports a module once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = []

    def write(source):
        names.append(f"mine_{abs(hash(str(tmp_path)))}_{len(names)}")
        Path(f"{names[-1]}.py").write_text(source)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toxicity-smv", "did you mean toxicity-svm"),
        ("", "no reward model is named ''"),
        ("quite-unknown", "valid names: pep8, .*; or hf:<id or folder>"),
        ("foo:bar:baz", "valid names"),
        ("nowhere/folder", "no folder nowhere/folder; give one with a reward_model.json, or 'hf:nowhere/folder'"),
        ("empty", "empty holds no reward_model.json; make a reward model with 'phf reward train'"),
        ("bert", "bert holds no reward_model.json; .*'hf:bert'"),
        ("words.txt", "'lexicon:words.txt'"),
    ],
)  # fmt: skip
def test_what_names_nothing_is_said_in_one_line(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bert").mkdir()
    Path("bert/config.json").write_text("{}")
    Path("words.txt").write_text("darn")
    with pytest.raises(PHFError, match=message) as error:
        load_reward_model(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("toxicity-svm", "alt-profanity-check==1.9.1"),
        ("pii-presidio", "presidio-analyzer"),
        ("pii-scrubadub", "scrubadub"),
        ("pep8", "pycodestyle"),
    ],
)
def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch, name, package):
    def fail(name, download):
        raise ModuleNotFoundError("no module named 'it'", name="it")

    monkeypatch.setattr(catalogue, "_find_constructor", fail)
    with pytest.raises(PHFError, match=f"{name} needs the package 'it', .*run 'pip install .*{package}"):
        load_reward_model(name)


def test_a_bug_of_ours_is_no_missing_package(monkeypatch):
    def fail(name, download):
        raise ModuleNotFoundError("no module named 'phf.nowhere'", name="phf.nowhere")

    monkeypatch.setattr(catalogue, "_find_constructor", fail)
    with pytest.raises(ModuleNotFoundError):
        load_reward_model("pep8")


# --- a user's own code --------------------------------------------------------------------------------------------


def test_a_function_of_the_current_folder(module):
    name = module(FUNCTION)
    model = load_reward_model(f"{name}:score")
    assert isinstance(model, FunctionRewardModel)
    assert model.score("hi!!you", [4, 7]) == [0.5, 0.0]
    assert score_samples(model, [""])[0].reason == "empty text"
    assert (model.unit, model.display_scale, model.hit_threshold) == ("arbitrary units", 1.0, 0.5)
    assert model.identity.name == f"{name}.score"


def test_a_function_says_its_unit(module):
    name = module(
        FUNCTION + "score.unit = 'items per character'\nscore.hit_threshold = 0\nscore.display_scale = 1e3"
    )
    model = load_reward_model(f"{name}:score")
    assert (model.unit, model.display_scale, model.hit_threshold) == ("items per character", 1000.0, 0.0)
    name = module(FUNCTION + "score.unit = 'apples'")
    with pytest.raises(PHFError, match=r"unit 'apples' .* choose probability, "):
        load_reward_model(f"{name}:score")


@pytest.mark.parametrize(
    "wrong",
    ["score.hit_threshold = float('nan')", "score.hit_threshold = 'x'", "score.display_scale = 0", "score.display_scale = 1e38",
     "loud.hit_threshold = 1e38", "loud.display_scale = -1"],
)  # fmt: skip
def test_numbers_beside_a_score_that_mean_nothing_are_refused(module, wrong):
    name = module(FUNCTION + PROTOCOL + wrong)
    place = wrong.partition(" = ")[0]
    with pytest.raises(PHFError, match=rf"{place.split('.')[1]} .* must be (above 0|a number within)"):
        load_reward_model(f"{name}:{place.split('.')[0]}")


def test_a_number_that_no_float_holds_is_one_line(module):
    name = module("def score(texts):\n    return [10**400 for _ in texts]\n")
    with pytest.raises(PHFError, match="for a text; it must give a number, or NaN"):
        score_samples(load_reward_model(f"{name}:score"), ["a"])


def test_a_class_and_an_object_with_the_protocol(module):
    name = module(PROTOCOL)
    loud, asked = load_reward_model(f"{name}:Loud"), load_reward_model(f"{name}:loud")
    assert score_samples(loud, ["a!"]) == [0.5]
    assert score_samples(asked, ["a!?"]) == [pytest.approx(1 / 3)]
    assert loud.identity.name == "loud"
    assert loud.identity.parameters["character"] == "!"
    assert len(loud.identity.parameters["sources"]) == 16


def test_an_edited_function_is_another_reward_model(tmp_path):
    """Also where workers are spawned: each process finds the module in the current folder."""
    code = "from phf.reward_models import load_reward_model as load; print(load('edited_by_user:score').identity.id)"

    def identify(source):
        (tmp_path / "edited_by_user.py").write_text(source)
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )  # fmt: skip
        return done.stdout

    first = identify(FUNCTION)
    assert identify(FUNCTION) == first
    assert identify(FUNCTION.replace("!", "?")) != first


def test_the_identity_is_that_of_the_code_in_memory(module):
    name = module(FUNCTION)
    first = load_reward_model(f"{name}:score")
    Path(f"{name}.py").write_text(FUNCTION.replace("!", "?"))
    again = load_reward_model(f"{name}:score")
    assert again.score("a!", [2]) == [0.5]
    assert again.identity == first.identity


def test_a_function_taken_from_another_module_is_followed(module):
    outer = module(f"from {module(FUNCTION)} import score\n\ndef own(texts):\n    return score(texts)\n")
    taken, own = (load_reward_model(f"{outer}:{name}").identity.parameters for name in ("score", "own"))
    assert taken != own  # both files are hashed for the first, one for the second


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (FUNCTION, "scroe", r"has no 'scroe'; did you mean 'score'\? it has score"),
        ("x = 1", "score", "has no 'score'; it has no function"),
        ("score = 1", "score", "is a int; it must be a function of a list of texts"),
        ("import nowhere_to_be_found", "score", "needs the module 'nowhere_to_be_found'"),
        ("1 / 0", "score", "fails on import: ZeroDivisionError: division by zero"),
        ("def broken(:", "score", "fails on import: SyntaxError"),
        (PROTOCOL, "Needy", "cannot be built without arguments"),
    ],
)
def test_wrong_modules_are_said(module, source, name, message):
    with pytest.raises(PHFError, match=message):
        load_reward_model(f"{module(source)}:{name}")


def test_missing_modules_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PHFError, match="no module 'nowhere_at_all' is installed or in the current folder"):
        load_reward_model("nowhere_at_all.deep:score")
    with pytest.raises(PHFError, match="module sys has no source file"):
        load_reward_model("sys:getsizeof")


def test_a_module_of_the_current_folder_hides_none_of_pythons_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("colorsys.py").write_text(FUNCTION)
    with pytest.raises(PHFError, match=r"module colorsys .* has no 'score'"):
        load_reward_model("colorsys:score")


@pytest.mark.parametrize(
    ("answer", "message"),
    [("[1.0]", "returned 1 scores for 2 texts"), ("[1, 2, 3]", "returned 3 scores"), ("['a', 1]", "gave 'a' for a text")],
)  # fmt: skip
def test_wrong_answers_of_a_function_are_refused(module, answer, message):
    name = module(f"def score(texts):\n    return {answer}\n")
    with pytest.raises(PHFError, match=message):
        score_samples(load_reward_model(f"{name}:score"), ["a", "b"])


# --- phf reward list ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    quick = [card for card in catalogue.CARDS if card.name in ("pii", "pep8", "toxicity-detoxify")]
    monkeypatch.setattr(speed, "CARDS", quick)
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    return tmp_path / "cache"


def test_speeds_are_measured_once_and_kept_under_what_made_them(cache, monkeypatch):
    first = {status.card.name: status for status in describe_reward_models()}
    assert first["pii"].speed.identity == load_reward_model("pii").identity.slug
    assert first["pii"].speed.segments_per_second > 100
    assert len(list((cache / "speeds").iterdir())) == 2
    monkeypatch.setattr(speed, "measure_speed", lambda *_: pytest.fail("measured again"))
    assert {status.card.name: status for status in describe_reward_models()} == first
    (kept,) = (cache / "speeds").glob("pii@*")
    kept.write_text(kept.read_text().replace(first["pii"].speed.identity, "judge@1"))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        list(describe_reward_models())
    kept.unlink()
    monkeypatch.setattr(speed, "_find_version", lambda name: "another")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        list(describe_reward_models())


def test_measure_measures_again(cache, monkeypatch):
    list(describe_reward_models())
    monkeypatch.setattr(speed, "measure_speed", lambda *_: speed.Speed("again@0", 1.0, 2.0))
    speeds = [status.speed for status in describe_reward_models(measure=True)]
    assert [found.identity for found in speeds if found] == ["again@0"] * 2


def test_what_is_not_here_is_shown_and_never_fetched_or_an_error(cache, monkeypatch):
    monkeypatch.setattr(speed, "_find_version", lambda name: None)
    statuses = {status.card.name: status for status in describe_reward_models()}
    assert statuses["pep8"].speed is None
    assert statuses["pep8"].problem == "run 'pip install pycodestyle'"
    assert statuses["toxicity-detoxify"].problem.startswith("run 'hf download unitary/toxic-bert")
    assert statuses["pii"].speed is not None


def test_a_model_that_does_not_load_is_shown(cache, monkeypatch):
    def fail(name, *, download):
        assert not download
        raise PHFError(f"{name} is broken")

    monkeypatch.setattr(speed, "load_card", fail)
    assert next(iter(describe_reward_models())).problem == "pep8 is broken"


def test_the_measured_text_is_real_and_there():
    prose, code = read_text("prose"), read_text("python")
    assert len(prose) > 1000
    assert all(ends[-1] == len(text) for text, ends in [*prose, *code])
    assert measure_speed(load_reward_model("pii"), prose[:50]).bytes_per_second > 1000


def test_a_model_that_fills_up_batches_is_measured_on_full_ones(cache, module):
    name = module("import time\n\ndef score(texts):\n    time.sleep(0.02)\n    return [0.0] * len(texts)\n")
    prose = read_text("prose")[:256]
    assert measure_speed(load_reward_model(f"{name}:score"), prose).segments_per_second > 1000


def test_reward_list_prints_every_card_and_form(cache, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["phf", "reward", "list"])
    cli.main()
    out = capsys.readouterr().out
    for name in (
        "pii",
        "pep8",
        "toxicity-detoxify",
        "hf:<id or folder>",
        *(f"llm:{rubric}" for rubric in list_rubrics()),
        "lexicon:<file>",
        "0.7*SPEC + 0.3*SPEC",
    ):
        assert f"\n{name}" in f"\n{out}"
    assert load_reward_model("pii").identity.slug in out
    assert "segments/s" in out
    assert "blind to" in out
    assert "licence" in out
