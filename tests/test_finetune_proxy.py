"""`proxy`: a reward model trained on a gold judge's labels, frozen or refreshed on what the policy writes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from compare_runs import quiet, weights
from release_runs import get_run
from test_finetune import SMALL

from phf.config.finetune import FinetuneConfig
from phf.config.recipes import apply_overrides
from phf.config.train import parse
from phf.errors import PHFError
from phf.finetune.learners import OnPolicy
from phf.finetune.loop import finetune
from phf.finetune.proxy import _STREAM
from phf.finetune.results import FINETUNE
from phf.finetune.start import Start
from phf.reward_models import load_reward_model, score_samples
from phf.train import sweep
from phf.train.run import Run

GOLD = '''"""Share of vowels."""

def score(texts):
    return [sum(character in "aeiou" for character in text) / len(text) for text in texts]
'''


@pytest.fixture
def mle(small_config, tmp_path_factory) -> Path:
    return get_run("mle", small_config, tmp_path_factory.mktemp("runs")).folder


@pytest.fixture
def gold(tmp_path, monkeypatch) -> str:
    (tmp_path / "gold_vowels.py").write_text(GOLD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "gold_vowels:score"


def settings(gold: str, *overrides: str) -> FinetuneConfig:
    given = {**SMALL, "proxy": {"gold": gold, "labels": 120, "rounds": 2}}
    return parse(FinetuneConfig, apply_overrides(given, ["sampling.max_new_tokens=40", *overrides]), "test")


def read_labels(folder: Path, number: int) -> list[dict]:
    (path,) = folder.with_name(f"{folder.name}-proxy").glob(f"*/labels-{number}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("data", ["corpus", "samples"])
def test_a_frozen_proxy_is_learned_from_and_the_gold_judge_only_labels(
    data, mle, gold, tmp_path, monkeypatch
):
    seen = []
    score = Start.score

    def watch(self, texts):
        seen.append((self.reward.model.identity.name, len(texts)))
        return score(self, texts)

    monkeypatch.setattr(Start, "score", watch)
    run = finetune(mle, tmp_path / "run", settings(gold, f"proxy.data={data}"), say=quiet)
    judge = load_reward_model(gold)
    assert seen[0] == (judge.identity.name, 120)
    assert {name for name, _ in seen[1:]} == {
        f"{judge.identity.name}-{len(read_labels(run.folder, 0))}-labels"
    }
    rows = read_labels(run.folder, 0)
    assert [-row["rating"] for row in rows] == score_samples(judge, [row["text"] for row in rows])
    found = FINETUNE.read(run.folder)
    assert found.results.find("finetune_labels").mean == 120
    assert [own.name for own in found.judges] == [
        f"{judge.identity.name}-{len(rows)}-labels",
        judge.identity.name,
        "toxicity-svm",
    ]
    assert found.reward == found.judges[0].slug
    assert run.record["finetune"]["reward_model"]["name"] == found.judges[0].name


def test_a_refreshed_proxy_learns_from_what_the_policy_writes_at_its_round(mle, gold, tmp_path):
    config = settings(gold, "proxy.data=policy")
    run = finetune(mle, tmp_path / "run", config, say=quiet)
    first, second = (read_labels(run.folder, number) for number in (0, 1))
    assert second[: len(first)] == first
    start = Start.open(mle, config, load_reward_model)
    at_two = run.load_model(start.step + 2)  # after two of four steps the second round begins
    for model, stream, rows in (
        (start.model, _STREAM, first),
        (at_two, _STREAM + 1, second[len(first) :]),
    ):
        _, texts = start.write(model, [()] * 60, stream, "", None)
        assert [row["text"] for row in rows] == [text for text in texts if text.strip()]
    assert FINETUNE.read(run.folder).reward.startswith(
        f"{start.reward.model.identity.name}-{len(second)}-labels"
    )


def test_killed_in_the_second_round_it_goes_on_to_the_same_run(mle, gold, tmp_path, monkeypatch):
    config = settings(gold, "proxy.data=policy", "steps=6")
    whole = finetune(mle, tmp_path / "whole", config, say=quiet)
    step = OnPolicy.step

    def fail(self, model, number, update):
        if number == 5:
            raise RuntimeError
        return step(self, model, number, update)

    for name in ("killed", "robbed"):
        with monkeypatch.context() as patch:
            patch.setattr(OnPolicy, "step", fail)
            with pytest.raises(RuntimeError):
                finetune(mle, tmp_path / name, config, say=quiet)
    again = finetune(mle, tmp_path / "killed", config, say=quiet)
    ours, theirs = (weights(run, whole.steps[-1]) for run in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    next((tmp_path / "robbed-proxy").glob("*/labels-1.jsonl")).unlink()
    with pytest.raises(PHFError, match=r"labels-1.jsonl is gone.*begin again"):
        finetune(mle, tmp_path / "robbed", config, say=quiet)


def test_rounds_are_as_long_as_one_another_but_for_a_step():
    config = settings("pii", "proxy.data=policy", "proxy.rounds=3", "steps=7")
    assert [config.proxy.round_of(step, 7) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert (config.proxy.labels_a_round, config.proxy.num_rounds) == (40, 3)


def test_a_grid_over_kinds_of_proxy_is_one_sweep(mle, gold, tmp_path, monkeypatch):
    """Of several groups, since only a policy that moves can be asked for texts again."""
    small = {**SMALL, "method": "rloo", "steps": 2, "sampling": {"num_samples": 16, "max_new_tokens": 40}}
    grid = {**small, "finetune": str(mle), "proxy": {"gold": gold, "labels": 120, "rounds": 2}}
    grid["sweep"] = [
        {"proxy.data": ["corpus"], "method": ["rloo", "bestofn:n=2"]},
        {"proxy.data": ["policy"], "method": ["rloo"]},
    ]
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(json.dumps(grid))

    def learn(arguments, environment, folder=None, lifeline=None):
        value = yaml.safe_load(
            (Path(arguments[3]).parent / "recipes" / f"{Path(arguments[3]).name}.yaml").read_text()
        )
        finetune(value.pop("finetune"), arguments[3], parse(FinetuneConfig, value, "test"), say=quiet)

    monkeypatch.setattr(sweep, "run_command", learn)
    lines: list[str] = []
    for _ in range(2):
        outcomes = sweep.run_sweep(recipe, [], tmp_path / "grid", say=lines.append)
        assert [one.failure for one in outcomes] == [None] * 3
    assert lines == ["3 runs: 3 to train, 0 finished before", "3 runs: 0 to train, 3 finished before"]
    made = [Run.open(one.cell.folder).record["finetune"] for one in outcomes]
    assert [(one["settings"]["proxy"]["data"], one["method"]) for one in made] == [
        ("corpus", "rloo"),
        ("corpus", "bestofn"),
        ("policy", "rloo"),
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward=pii"], "leave out reward"),
        (["method.kind=dpo", "method.data=a.jsonl"], "leave out preferences"),
        (["method.kind=dpo", "proxy.data=policy"], "give proxy.data=samples, or --method rloo"),
        (["proxy.data=policy", "proxy.rounds=5"], "are more than 4 steps"),
        (["proxy.labels=49"], "greater than or equal to 50"),
    ],
)
def test_what_cannot_be_is_refused(overrides, expected):
    with pytest.raises(PHFError, match=expected):
        settings("pii", *overrides)


def test_labels_that_say_nothing_leave_no_run(mle, tmp_path):
    with pytest.raises(PHFError, match=r"every text the same rating.*give more with --set proxy\.labels"):
        finetune(mle, tmp_path / "run", settings("lexicon:" + str(_write_words(tmp_path))), say=quiet)
    assert not (tmp_path / "run" / "run.json").exists()


def _write_words(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("xylophonically\n")
    return path
