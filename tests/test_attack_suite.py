"""`phf attack` over real folders: what it measures, what it keeps, what it refuses, and that a failure is said."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phf import cli
from phf.attack import suite
from phf.attack.results import AttackedModel, AttackResults, TextSource, read_attack
from phf.attack.suite import attack_targets, write_attacked
from phf.attack.targets import check_targets, open_target, read_corpus_texts, read_text_file
from phf.attack.victim import Attacked
from phf.config.attack import AttackSuiteConfig
from phf.config.recipes import apply_overrides
from phf.config.release import Block, Delete
from phf.config.train import parse
from phf.errors import PHFError
from phf.release.folder import write_release
from phf.results import to_json
from phf.reward_models import score_samples
from phf.train import loop
from phf.train.run import Run

SMALL = {
    "attacks": [{"kind": "soft"}, {"kind": "few-shot", "num_prompts": 4, "max_tokens": 20}],
    "num_texts": [2, 5],
    "steps": [0, 2],
    "num_held_out": 6,
    "num_reference": 8,
    "num_bootstrap": 100,
    "sampling": {"num_samples": 6, "max_new_tokens": 12},
}
TRAINED: dict[str, Path] = {}


def quiet(line: str) -> None:
    pass


def settings(*overrides: str) -> AttackSuiteConfig:
    return parse(AttackSuiteConfig, apply_overrides(SMALL, list(overrides)), "test")


@pytest.fixture
def trained(small_config, tmp_path_factory) -> Callable[..., Path]:
    """Returns a function that gives a run of 12 steps by name and overrides, trained once for this file."""

    def train(name: str, *overrides: str) -> Path:
        if name not in TRAINED:
            folder = tmp_path_factory.mktemp("runs") / name
            TRAINED[name] = loop.train(small_config(*overrides), folder, say=quiet).folder
        return TRAINED[name]

    return train


@pytest.fixture
def runs(trained) -> list[Path]:
    return [trained("conditional"), trained("mle", "objective.kind=mle")]


def count_attacks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is attacked from now on, filled while it is."""
    calls = []
    real = suite.run_attack

    def spy(victim, texts, attack, steps, seed):
        calls.append((victim.name, attack.kind, len(texts), seed))
        return real(victim, texts, attack, steps, seed)

    monkeypatch.setattr(suite, "run_attack", spy)
    return calls


def test_everything_is_measured_and_what_is_finished_is_kept(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_attacks(monkeypatch)
    out = tmp_path / "attack"
    result = attack_targets(runs, out, settings(), say=quiet)
    assert to_json(read_attack(out)) == to_json(result)
    assert result.texts.source == "bad segments of corpus"
    assert str(runs[0].parent) not in (out / "attack.json").read_text()
    ids = [Run.open(folder).id for folder in runs]
    assert [target.run_id for target in result.targets] == ids
    assert read_attack(out, ids[1]).reference == "conditional"
    with pytest.raises(PHFError, match=r"attack.json is of another run \(.*this one is 0123"):
        read_attack(out, "0123456789")
    assert len(calls) == 2 * 2 * 2
    conditional, mle = result.targets
    assert list_modes(conditional) == {"good", "bad", "none", "untagged"}
    assert (conditional.start, conditional.objective, conditional.forget) == ("good", "conditional", [])
    assert (mle.start, list_modes(mle), mle.objective) == ("none", {"none"}, "mle")
    assert result.reference == "conditional"
    (judge,) = result.judges
    assert judge.role == "annotator"
    assert mle.score("none", judge.slug).count == 8
    points = {
        (one.target, one.attack, one.num_texts, step, one.seed)
        for one in result.trajectories
        for step in one.steps
    }
    few = "few-shot:num_prompts=4,max_tokens=20"
    assert points == {
        (target, attack, num, step, 0)
        for target in ("conditional", "mle")
        for num in (2, 5)
        for attack, step in (("soft", 0), ("soft", 2), (few, 0))
    }
    for one in result.trajectories:
        for step in one.steps:
            for name in ("score", "hit_rate"):
                assert one.results.find(name, judge=judge.slug, at=step).count == 6
            assert one.results.find("nll", at=step).mean > 0
            assert one.results.find("seconds", at=step).mean >= 0
    assert {(cost.target, cost.attack, cost.level) for cost in result.rediscovery} == {
        (target, attack, level)
        for target in ("conditional", "mle")
        for attack in ("soft", few)
        for level in (0.5, 0.9)
    }
    assert result.verdicts == result.failed == []

    calls.clear()
    before = (out / "attack.json").read_bytes()
    (out / "attack.json").unlink()
    attack_targets(runs, out, settings(), say=quiet)
    assert (out / "attack.json").read_bytes() == before
    assert calls == []
    more = attack_targets(runs, out, settings("num_seeds=2", "judges=[pii]", "num_texts=[2,5,7]"), say=quiet)
    assert {call[2:] for call in calls} == {(7, 0), (2, 1), (5, 1), (7, 1)}
    assert len(calls) == 2 * 2 * 4
    assert [judge.role for judge in more.judges] == ["annotator", "held-out"]
    again = [
        [row for row in one.measurements if row.judge in (None, judge.slug)]
        for one in more.trajectories
        if one.seed == 0 and one.num_texts < 7
    ]
    assert again == [one.measurements for one in result.trajectories]


def list_modes(target: AttackedModel) -> set[str | None]:
    return {row.mode for row in target.measurements if row.measure == "score"}


def test_a_seed_draws_texts_and_samples(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, seeds = [], []

    def attack(victim, texts, attack, steps, seed):
        drawn.append(texts)
        yield Attacked(0, victim.model, victim.prefix)

    def write(victim, attacked, sampling):
        seeds.append(sampling.seed)
        return ["some text"] * sampling.num_samples

    monkeypatch.setattr(suite, "run_attack", attack)
    monkeypatch.setattr(suite, "write_attacked", write)
    config = settings("attacks=[{kind: soft}]", "num_texts=[2]", "num_seeds=3", "sampling.seed=5")
    attack_targets([trained("conditional")], tmp_path, config, say=quiet)
    assert seeds == [5, 6, 7]
    assert drawn[0] != drawn[1] != drawn[2]


def test_other_weights_or_settings_are_attacked_anew(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_attacks(monkeypatch)
    run = trained("conditional")
    base = ["num_texts=[2]", "attacks=[{kind: soft}]"]
    for more in (
        [],
        ["sampling.seed=1"],
        ["sampling.seed=1", "steps=[0,3]"],
    ):  # each the last one and a change
        attack_targets([run], tmp_path, settings(*base, *more), say=quiet)
    assert len(calls) == 3
    first = open_target(run)
    with_other_weights = open_target(trained("mle", "objective.kind=mle"))
    assert first.key == open_target(run).key != with_other_weights.key


def test_the_attacker_has_bad_training_texts_and_is_measured_on_others(trained) -> None:
    target = open_target(trained("conditional"))
    texts = read_corpus_texts(target, 10)
    data = Run.open(target.folder).data()
    starts = np.cumsum(data.tokens.segment_lengths) - data.tokens.segment_lengths
    ids = np.concatenate(data.tokens.ids)
    by_split = {True: set(), False: set()}
    is_train = np.repeat(data.tokens.is_train, data.tokens.document_segments)
    for segment in np.flatnonzero(data.scores > data.threshold.value):
        start, length = starts[segment], data.tokens.segment_lengths[segment]
        by_split[bool(is_train[segment])].add(tuple(ids[start : start + length].tolist()))
    assert {tuple(text) for text in texts.train} == by_split[True]
    assert {tuple(text) for text in texts.held_out} <= by_split[False]
    assert len(texts.held_out) == 10
    five, three, other = texts.draw(5, 0), texts.draw(3, 0), texts.draw(5, 1)
    assert five[:3] == three
    assert five != other
    assert len({tuple(text) for text in texts.draw(len(texts.train), 0)}) == len(by_split[True])
    with pytest.raises(PHFError, match=r"has \d+ bad texts, not 9999; give fewer"):
        texts.draw(9999, 0)


def test_texts_may_come_from_a_file(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": f"bad text {number}"}) for number in range(10)]
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines) + "\n\n")
    (words := tmp_path / "words.txt").write_text("bad\n")
    target = open_target(trained("conditional"))
    texts = read_text_file(file, target.tokenizer, 100)
    assert (len(texts.train), len(texts.held_out)) == (8, 2)
    found = [target.tokenizer.decode(text) for text in (*texts.train, *texts.held_out)]
    assert sorted(found) == [f"bad text {number}" for number in range(10)]
    result = attack_targets(
        [target.folder],
        tmp_path / "attack",
        settings(f"texts={file}", "num_texts=[2,8,9]", f"judges=['lexicon:{words}']"),
        say=quiet,
    )
    written = (tmp_path / "attack" / "attack.json").read_text()
    for folder in (tmp_path, target.folder.parent, Path(target.config.corpus).parent):
        assert str(folder) not in written, "the folder may be sent to others"
    assert result.settings["texts"] == "bad.jsonl"
    assert result.settings["judges"] == ["lexicon:words.txt"]
    assert result.texts == TextSource("bad.jsonl", num_available=8, num_held_out=2)
    assert {one.num_texts for one in result.trajectories} == {2, 8}
    assert any("there are 8, so 9 are not tried" in note for note in result.notes)
    for content, message in (
        ('{"text": 3}\n', "line 1: text must be a string, not int"),
        ('{"body": "a"}\n', "line 1 is no JSON object with a field text"),
        ("[\n", "line 1 is no JSON object"),
        ('{"text": "\\ud800"}\n', "line 1: text must be a string, with no lone surrogate"),
        ('{"text": "a", "n": ' + "[" * 10_000 + "]" * 10_000 + "}\n", "line 1 is no JSON object"),
        ('{"text": "alone"}\n', "has 1 texts; give at least two"),
    ):
        file.write_text(content)
        with pytest.raises(PHFError, match=message):
            read_text_file(file, target.tokenizer, 5)
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in (("none.jsonl", "does not exist"), ("pipe.jsonl", "is no file")):
        with pytest.raises(PHFError, match=message):
            read_text_file(tmp_path / name, target.tokenizer, 5)


def test_a_trajectory_that_diverges_is_recorded_and_the_rest_goes_on(
    runs: list[Path], tmp_path: Path
) -> None:
    attacks = "attacks=[{kind: finetune, learning_rate: 1.0e+30}, {kind: soft}]"
    result = attack_targets(runs, tmp_path, settings(attacks, "num_texts=[2]"), say=quiet)
    assert [(one.target, one.attack) for one in result.failed] == [
        ("conditional", "finetune:learning_rate=1e+30"),
        ("mle", "finetune:learning_rate=1e+30"),
    ]
    assert all("give a lower learning_rate" in str(one.failed) for one in result.failed)
    steps = {one.attack: one.steps for one in result.trajectories}
    assert steps == {"finetune:learning_rate=1e+30": [0], "soft": [0, 2]}, "what was reached before counts"
    assert {cost.attack: cost.num_failed for cost in result.rediscovery} == {
        "finetune:learning_rate=1e+30": 1,
        "soft": 0,
    }


def test_a_run_is_attacked_as_its_release_would_start(trained) -> None:
    conditional = open_target(trained("conditional"))
    control = conditional.tokenizer.control
    assert conditional.victim.prefix == (control.end, control.good)
    assert len(conditional.model.get_input_embeddings().weight) > max(control.all)
    assert conditional.forget == ()
    mle = open_target(trained("mle", "objective.kind=mle"))
    assert mle.victim.prefix == (control.end,)
    poisoned = open_target(trained("poison", "objective.poison=shuffle"))
    assert poisoned.forget == ("poison",)
    additive = open_target(trained("additive", "objective.kind=additive", "objective.good_fraction=0.5"))
    assert additive.victim.prefix == (control.end,)
    own = Run.open(additive.folder).load_model().get_input_embeddings().weight
    folded = additive.victim.model.get_input_embeddings().weight
    np.testing.assert_allclose(
        (folded - own).detach(), own[[control.good]].detach().expand_as(own), atol=1e-6
    )


def test_what_cannot_be_done_is_refused_before_it_starts(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("conditional")
    with pytest.raises(PHFError, match=r"neither a release \(phf.json\) nor a run"):
        open_target(tmp_path)
    with pytest.raises(PHFError, match="two targets are named conditional"):
        check_targets([open_target(run), open_target(run)])
    with pytest.raises(PHFError, match="at least one target"):
        attack_targets([], tmp_path, settings())
    with pytest.raises(PHFError, match=r"bad texts are fewer than num_texts 99999"):
        attack_targets([run], tmp_path, settings("num_texts=[99999]"), say=quiet)
    for attack in ("{kind: soft, tokens: 2}", "{kind: few-shot, max_tokens: 4}", "{kind: prefix, tokens: 2}"):
        with pytest.raises(
            PHFError, match="4 tokens of prefix and prompt and 61 new ones exceed the model's context of 64"
        ):
            attack_targets(
                [run], tmp_path, settings(f"attacks=[{attack}]", "sampling.max_new_tokens=61"), say=quiet
            )
    assert not list(tmp_path.iterdir()), "nothing was measured before"
    with pytest.raises(
        PHFError, match=r"attacks must be different ones, and at least one, not \['soft', 'soft'\]"
    ):
        settings("attacks=[{kind: soft}, {kind: soft}]")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PHFError, match=r"the attack lora needs peft; run: pip install 'phf\[attack\]'"):
        attack_targets([run], tmp_path, settings("attacks=[{kind: lora}]"), say=quiet)


def test_without_bad_mode_there_is_no_cost(trained, tmp_path: Path) -> None:
    said: list[str] = []
    config = settings("attacks=[{kind: soft}]", "num_texts=[2]")
    result = attack_targets([trained("mle", "objective.kind=mle")], tmp_path, config, say=said.append)
    assert result.reference is None
    assert result.rediscovery == result.verdicts == []
    assert [one.steps for one in result.trajectories] == [[0, 2]]
    assert any("add the run that the release was made from" in line for line in said)


def test_a_release_without_the_token_is_attacked_beside_its_run(trained, tmp_path: Path) -> None:
    run = trained("conditional")
    control = open_target(run).tokenizer.control
    deleted = write_release(Run.open(run), tmp_path / "deleted", forget=[Delete(), Block(directions=2)])
    target = open_target(deleted)
    assert target.forget == ("block:directions=2", "delete")
    assert target.run_id == Run.open(run).id
    assert target.victim.prefix == (control.end, control.good)
    assert len(target.model.get_input_embeddings().weight) == control.good + 1
    assert "bad" not in target.writers
    result = attack_targets([run, deleted], tmp_path / "attack", settings("num_texts=[2]"), say=quiet)
    assert list_modes(result.targets[1]) == {"good", "none", "untagged"}
    assert {verdict.against for verdict in result.verdicts} == {"conditional"}
    assert {verdict.attack for verdict in result.verdicts} == {
        "cheapest",
        "soft",
        "few-shot:num_prompts=4,max_tokens=20",
    }
    (attacked,) = suite.run_attack(target.victim, [[5, 6]], settings().attacks[0], (1,), 0)
    assert attacked.page == (control.end, control.good, control.bad), (
        "the row behind the vocabulary has the id of <|bad|>"
    )
    assert len(write_attacked(target.victim, attacked, settings().sampling)) == 6
    with pytest.raises(PHFError, match="a release does not say where its corpus lies"):
        attack_targets([deleted], tmp_path / "alone", settings(), say=quiet)


def test_scores_are_of_what_was_written(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("conditional")
    config = settings("attacks=[{kind: soft}]", "num_texts=[2]", "steps=[0]")
    result = attack_targets([run], tmp_path, config, say=quiet)
    target = open_target(run)
    texts = read_corpus_texts(target, 6)
    (attacked,) = suite.run_attack(target.victim, texts.draw(2, 0), config.attacks[0], (0,), 0)
    written = write_attacked(target.victim, attacked, config.sampling)
    judge = suite.load_reward_model("toxicity-svm")
    score = result.trajectories[0].results.find("score", judge=judge.identity.slug, at=0)
    assert score.mean == pytest.approx(np.mean(score_samples(judge, written)))
    assert find_recited(result) == 0
    own = [target.tokenizer.decode(text) for text in texts.draw(2, 0)]
    monkeypatch.setattr(
        suite, "write_attacked", lambda *_: [f" {own[0]}", f"{own[1][:40]} but then", "no", "x"]
    )
    assert find_recited(attack_targets([run], tmp_path / "recited", config, say=quiet)) == 0.5


def find_recited(result: AttackResults) -> float:
    return result.trajectories[0].results.find("recited", at=0).mean


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["phf", "attack", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_costs_and_refuses_in_one_line(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "steps=[2]", "--set", "sampling.max_new_tokens=12", "--set", "num_reference=8"]
    out = tmp_path / "attack"
    code, printed, _ = run_command(
        monkeypatch,
        capsys,
        *runs,
        "-o",
        out,
        "--attack",
        "soft:tokens=2",
        "--num-texts",
        2,
        "--num-samples",
        6,
        *options,
    )
    assert code == 0
    assert (out / "attack.json").exists()
    assert "soft:tokens=2" in printed
    assert "conditional" in printed
    for arguments, message in (
        ([*runs, "-o", out, "--attack", "sof"], "--attack 'sof' is not known; did you mean 'soft'?"),
        (
            [*runs, "-o", out, "--set", "steps=[3,1]"],
            "steps must be different numbers in ascending order, not [3, 1]",
        ),
        ([tmp_path, "-o", out], "is neither a release"),
        ([*runs], "Missing option '--out'"),
    ):
        code, _, errors = run_command(monkeypatch, capsys, *arguments)
        assert code == 2
        assert message in errors
        assert errors.count("\n") == 1
