"""The ten lines of docs/api.md, on a small corpus; and every function with every type that it takes."""

import ast
import functools
import importlib
import json
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

from phf import api
from phf.errors import PHFError
from phf.reward_models.catalogue import name_reward_model


def test_the_pages_lines_work(tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "api.md"
    code, *_ = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    source = [
        f'{{"text": "Fortune {i} says: {word} things happen to {word} people, {i} times."}}'
        for i, word in enumerate(["good", "damn stupid", "quiet", "fucking", "odd"] * 40)
    ]
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("\n".join(source))
    # The same calls at a size for a test: a smaller model, fewer tokens, samples and steps of attack.
    small = (
        ("train:4096", "train:300"),
        (
            '"tokens=3_000_000"',
            '"tokens=2_000", "tokenizer=train:300", "model.preset=1M", "model.layers=1", "model.width=32", "model.heads=2", "data.context=256"',
        ),
        ("num_samples=512", "num_samples=8"),
        ('steer="best-of-n:n=8")', 'steer="best-of-n:n=8", num_samples=2)'),
        (
            'attack(["release", run], "attack")',
            'attack(["release", run], "attack", ["soft"], {"num_texts": [10], "steps": [1], "sampling": {"num_samples": 8}})',
        ),
    )
    for old, new in small:
        assert old in code
        code = code.replace(old, new)
    ast.parse(code)
    exec(compile(code, "api.md", "exec"), {})
    assert Path("report.html").stat().st_size > 10_000
    assert set(api.__all__) >= {
        "build_corpus",
        "annotate",
        "tokenize",
        "train",
        "sample",
        "evaluate",
        "write_report",
    }


TONE = """
def score(texts):
    return [float("damn" in text) for text in texts]

def length(texts):
    return [len(text) / 100 for text in texts]
"""
SAMPLING = {"num_samples": 4, "max_new_tokens": 12, "min_new_tokens": 1}


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    """A user's own module, importable as long as these tests run."""
    folder = tmp_path_factory.mktemp("tone")
    (folder / "own_tone.py").write_text(TONE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("own_tone")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tone):
    """A corpus annotated by the user's function, and tokenized."""
    folder = tmp_path_factory.mktemp("api")
    rows = [
        {"text": f"A {word} thing happens to {word} people, {i} times."}
        for i, word in enumerate(["good", "damn"] * 60)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = api.build_corpus(folder / "texts.jsonl", folder / "corpus", validation_fraction=0.2)
    api.annotate(corpus, tone.score, "document", workers=1)
    api.tokenize(corpus, "train:290", "document", workers=1)
    return corpus


@pytest.fixture(scope="module")
def settings(corpus):
    return [
        f"corpus={corpus.path}", "reward_model=own_tone:score", "segments=document", "tokenizer=train:290",
        "tokens=2_000", "model.preset=1M", "model.layers=1", "model.width=32", "model.heads=2", "data.context=64",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpus, settings):
    config = api.load_train_config("toxicity", settings)
    return api.train(config, str(corpus.path.parent / "run"), say=lambda line: None)


def as_text(run):
    return str(run.folder)


def as_path(run):
    return run.folder


def as_itself(run):
    return run


KINDS = pytest.mark.parametrize("kind", [as_text, as_path, as_itself])


@pytest.mark.parametrize("source", [str, Path])
@pytest.mark.parametrize("several", [False, True])
def test_a_corpus_is_built_from_places(corpus, tmp_path, source, several):
    texts = source(corpus.path.parent / "texts.jsonl")
    built = api.build_corpus(
        [texts] if several else texts, source(tmp_path / "corpus"), validation_fraction=0.2
    )
    assert built.id == corpus.id


@pytest.mark.parametrize("place", [str, Path, api.Corpus.open], ids=["str", "Path", "Corpus"])
def test_a_corpus_is_a_place(corpus, tone, tmp_path, place):
    given = place(corpus.path)
    assert api.Corpus.open(given).id == corpus.id
    assert api.tokenize(given, "train:290", "document").num_segments == corpus.num_documents
    for reward_model in (tone.score, "own_tone:score"):
        annotation = api.annotate(given, reward_model, "document", workers=1)
        assert annotation.num_scored_now == 0, "a function is the reward model that its spec names"
        assert api.Annotation.open(given, reward_model, "document").slug == annotation.slug
    assert api.balance_corpus(
        given, annotation, place(tmp_path / "b") if place in (str, Path) else tmp_path / "b", threshold=0.5
    )


def test_a_function_is_known_by_its_source(corpus, tone):
    identity = api.annotate(corpus, tone.score, "document", workers=1).identity
    assert (identity.name, set(identity.parameters)) == ("own_tone.score", {"sources"})
    assert corpus.path.joinpath("annotations").is_dir()
    assert name_reward_model(tone.score) == "own_tone:score"


def test_what_workers_cannot_import_is_refused_in_one_line(corpus, tone):
    def nested(texts):
        return [0.0] * len(texts)

    in_notebook = types.FunctionType(tone.score.__code__, {}, "score")
    in_notebook.__module__ = "__main__"
    for function in (lambda texts: [], nested, in_notebook, functools.partial(tone.score), object()):
        with pytest.raises(
            PHFError, match=r"cannot be imported by name.*a module of its own, such as tone.py"
        ) as error:
            api.annotate(corpus, function, "document")
        assert "\n" not in str(error.value)
        with pytest.raises(PHFError, match="cannot be imported by name"):
            api.evaluate("run", judges=function)


@pytest.mark.parametrize("place", [str, Path])
def test_a_recipe_is_a_name_or_a_place(corpus, settings, place, tmp_path):
    config = api.load_train_config("toxicity", settings)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert api.load_train_config(place(tmp_path / "own.yaml")) == config
    assert api.load_train_config(place(tmp_path / "own.yaml"), "seed=3").seed == 3


@KINDS
def test_a_run_is_a_place(trained, kind):
    run = kind(trained)
    assert api.resume(run, "log_every=5", say=lambda line: None).is_finished
    [sample, *_] = api.sample(run, "good", prompts="A good thing", **SAMPLING)
    assert sample.prompt == "A good thing"
    assert len(api.sample(run, "good", steer="best-of-n:n=2", prompts="A", **SAMPLING)) == 4


@pytest.fixture(scope="module")
def evaluated(trained, tone):
    [evaluation] = api.evaluate(trained, tone.length, **SAMPLING)
    assert [judge.name for judge in evaluation.judges] == ["own_tone.score", "own_tone.length"]
    return trained


@KINDS
@pytest.mark.parametrize("several", [False, True])
def test_runs_are_places_and_judges_functions(trained, tone, kind, several, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "phf.evaluate.evaluation.evaluate_run",
        lambda run, config, **_: taken.append((run.name, config.judges)),
    )
    runs = [kind(trained)] if several else kind(trained)
    for judges in ("own_tone:length", tone.length, [tone.length]):
        api.evaluate(runs, judges, **SAMPLING)
    assert taken == [("run", ("own_tone:length",))] * 3


@KINDS
@pytest.mark.parametrize("several", [False, True])
def test_runs_are_shown_and_compared(evaluated, kind, several, tmp_path):
    runs = [kind(evaluated)] if several else kind(evaluated)
    out = tmp_path / "report.html"
    assert api.write_report(runs, str(out) if several else out) == out
    comparison = api.compare(runs)
    assert comparison.settings == {}
    assert {row["run"] for row in comparison.measured} == {"run"}
    assert len(comparison.verdicts) == 2


@KINDS
def test_a_run_is_released_and_attacked(trained, tone, kind, tmp_path):
    run, place = kind(trained), {as_text: str, as_path: Path, as_itself: Path}[kind]
    release = api.release(run, place(tmp_path / "release"), "delete", license="mit")
    assert api.open_release(place(release)).record.license == "mit"
    assert next(iter(api.verify_release(place(release), run))).outcome
    results = api.attack(
        [place(release), run], place(tmp_path / "attack"), "soft:tokens=2",
        {"num_texts": [4], "steps": [1], "sampling": SAMPLING}, judges=tone.length,
    )  # fmt: skip
    assert [judge.name for judge in results.judges] == ["own_tone.score", "own_tone.length"]


@pytest.mark.parametrize("kind", [as_text, as_path, as_itself])
def test_what_a_score_costs(trained, tone, kind, tmp_path):
    found = api.infer(
        kind(trained), (), {as_text: str, as_path: Path, as_itself: Path}[kind](tmp_path), {"num_exact": 8, "max_draws": 8, "populations": 3,
        "particles": 2, "num_bootstrap": 100, "sampling": {"num_samples": 8, "max_new_tokens": 6}}, judges=tone.length,
    )  # fmt: skip
    assert [judge.name for judge in found.judges] == ["own_tone.score", "own_tone.length"]
    assert [policy.name for policy in found.policies][:3] == ["run", "run good", "run bad"]


@pytest.mark.parametrize("place", [str, Path])
def test_reward_models_are_trained_and_checked(tone, tmp_path, place):
    rows = [
        {"text": f"{word} {i}", "label": int(word == "damn")} for i in range(60) for word in ("damn", "kind")
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = place(tmp_path / "reward")
    evaluation = api.train_reward_model(place(tmp_path / "labels.jsonl"), out)
    assert (Path(out) / "report.html").exists()
    for reward_model in (out, tone.score):
        check = api.check_reward_model(reward_model, threshold=0.5)
        assert check.reward_model.name in (evaluation.reward_model.name, "own_tone.score")


@pytest.mark.parametrize("place", [str, Path])
def test_a_sweep_takes_places(settings, tmp_path, place, monkeypatch):
    config = api.load_train_config("toxicity", settings)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.setattr(
        "phf.train.sweep._launch", lambda launcher, commands, workers: [(c, "x") for c in commands]
    )
    for overrides in ("seed=0,1", ["seed=0,1"]):
        outcomes = api.sweep(
            place(tmp_path / "own.yaml"), overrides, place(tmp_path / "sweep"), say=lambda line: None
        )
        assert [outcome.cell.folder.name for outcome in outcomes] == ["seed=0", "seed=1"]
