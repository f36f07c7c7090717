"""`phf finetune`: a run that learns from feedback, and comes out as a run like any other."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from compare_runs import quiet, weights
from release_runs import get_run
from tiny_models import bytes_alone, next_logits, tiny_llama

from phf.config.finetune import FinetuneConfig
from phf.config.recipes import apply_overrides
from phf.config.train import parse
from phf.errors import PHFError
from phf.finetune.loop import finetune
from phf.finetune.measure import read_gaps
from phf.finetune.results import FINETUNE
from phf.finetune.rloo import find_advantages, rloo_loss
from phf.finetune.start import Start
from phf.generate.engine import TokenDrawer
from phf.generate.target import Target
from phf.policies.drawing import Drawing
from phf.policies.policy import Policy
from phf.report.reading import read_runs
from phf.reward_models import load_reward_model
from phf.train.run import Run

SMALL = {
    "method": {"kind": "rloo"},
    "steps": 4,
    "texts": 8,
    "learning_rate": 3e-3,
    "checkpoint_every": 2,
    "num_bootstrap": 100,
    "pool": 64,
    "sampling": {"num_samples": 16, "max_new_tokens": 12},
}


def settings(*overrides: str) -> FinetuneConfig:
    return parse(FinetuneConfig, apply_overrides(SMALL, list(overrides)), "test")


@pytest.fixture
def places(small_config, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [get_run(name, small_config, folder).folder for name in ("mle", "conditional")]


def drawing(mode: str = "untagged", *overrides: str, segments: str = "document") -> Drawing:
    tokenizer = bytes_alone()
    target = Target(mode, tiny_llama(tokenizer, seed=1), tokenizer, segments)
    return Drawing.create(target, settings(*overrides).sampling)


@dataclass(frozen=True)
class Prompted(Policy):
    """A policy whose pages all begin with a prompt, too."""

    prompt: tuple[int, ...] = ()

    @property
    def drawer(self) -> TokenDrawer:
        drawer = super().drawer
        return replace(drawer, rules=replace(drawer.rules, prefix=(*drawer.rules.prefix, *self.prompt)))


@pytest.mark.parametrize("mode", ["untagged", "good"])
@pytest.mark.parametrize("least", [0, 3])
def test_the_policy_that_learns_is_the_one_that_writes(mode, least):
    """Renormalised over what may be drawn: the exact probabilities of `phf infer`, behind any prompt."""
    own = drawing(mode, f"sampling.min_new_tokens={least}", "sampling.temperature=0.8")
    prompts = [(), (104, 105), ()]
    texts = own.write(own.target.model, prompts, range(3))
    assert all(token < 256 for ids, _ in texts for token in ids), "no control token is ever drawn"
    laid = own.lay_out(prompts, texts)
    found = own.log_probs(own.target.model, laid).double().sum(1).tolist()
    for prompt, text, value in zip(prompts, texts, found, strict=True):
        exact = Prompted("test", own.target, own.drawer.sampling, prompt=prompt).log_probs([text])
        assert value == pytest.approx(float(exact[0]), abs=1e-4)


@pytest.mark.parametrize("least", [0, 3])
def test_a_control_token_before_every_segment_is_part_of_the_policy(least):
    """Where it stands follows from the text; where a segment ends, its mass counts as going on."""
    own = drawing(
        "good",
        "sampling.control=forced",
        f"sampling.min_new_tokens={least}",
        "sampling.max_new_tokens=40",
        segments="lines",
    )
    encode = own.target.tokenizer.encode
    texts = [
        (encode("h\nij\nk"), True),
        (encode("\n"), True),
        (encode("h\n"), False),
        (encode("h\ni"), False),
    ]
    laid = own.lay_out([()] * len(texts), texts)
    assert int((laid.targets[laid.is_text] == own.drawer.control.good).sum()) == 3
    assert laid.lengths.tolist() == [7, 2, 2, 3]
    found = own.log_probs(own.target.model.requires_grad_(True), laid)
    exact = Policy("test", own.target, own.drawer.sampling).log_probs(texts)
    if least == 3:
        exact[1] = found[1].sum().item()  # too short to be drawn
    assert found.double().sum(1).tolist() == pytest.approx(exact.tolist(), abs=1e-4)
    found[[0, 2, 3]].sum().backward()
    assert all(
        parameter.grad.isfinite().all()
        for parameter in own.target.model.parameters()
        if parameter.grad is not None
    )


def test_a_text_of_one_token_by_hand():
    own = drawing("good", "sampling.min_new_tokens=0")
    control = own.drawer.control
    logits = next_logits(own.target.model, [control.end, control.good], own.drawer.vocab_size)
    logits[[control.good, control.bad]] = -np.inf
    laid = own.lay_out([()], [([], True)])
    expected = logits[control.end] - np.log(np.exp(logits).sum())
    assert float(own.log_probs(own.target.model, laid).detach().sum()) == pytest.approx(expected, abs=1e-5)


def test_advantages_leave_the_text_itself_out_and_unscored_texts_alone():
    rewards = torch.tensor([1.0, 2.0, 6.0, 1.0, torch.nan, 3.0, torch.nan, torch.nan, 5.0])
    found = find_advantages(rewards, 3)
    assert found.tolist() == [-3.0, -1.5, 4.5, -2.0, 0.0, 2.0, 0.0, 0.0, 0.0]


def test_the_ratio_is_clipped_where_that_makes_the_gain_smaller():
    old, advantages = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0])
    own = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5]))
    expected = -np.mean([1.2, 0.5, -1.5, -0.8])
    assert float(rloo_loss(own, old, advantages, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_rloo_lowers_the_score_and_the_run_is_one_like_any_other(places, tmp_path, monkeypatch):
    mle, _ = places
    run = finetune(mle, tmp_path / "rloo", settings("steps=6"), say=quiet)
    assert run.objective == "mle + rloo"
    assert run.is_finished
    assert run.record["finetune"]["method"] == "rloo"
    assert run.record["start"]["step"] == Run.open(mle).steps[-1]
    lines = [line for line in run.read_metrics() if line["kind"] == "train"]
    assert [line["calls"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert lines[0]["kl_text"] == pytest.approx(0, abs=1e-5)
    assert all(line["kl_token"] == pytest.approx(line["kl_text"] / line["length"]) for line in lines)
    found = FINETUNE.read(run.folder)
    assert found.results.find("finetune_calls").mean == 48
    assert found.results.find("finetune_kl_text").mean > 0
    assert found.results.find("finetune_written").mean == sum(line["length"] * 8 for line in lines)


def test_killed_and_gone_on_with_it_is_the_same_run(places, tmp_path, monkeypatch):
    from phf.finetune.learners import OnPolicy

    mle, _ = places
    whole = finetune(mle, tmp_path / "whole", settings(), say=quiet)
    step = OnPolicy.step

    def fail(self, model, number, update):
        if number == 3:
            raise RuntimeError
        return step(self, model, number, update)

    monkeypatch.setattr(OnPolicy, "step", fail)
    with pytest.raises(RuntimeError):
        finetune(mle, tmp_path / "killed", settings(), say=quiet)
    monkeypatch.undo()
    again = finetune(mle, tmp_path / "killed", settings(), say=quiet)
    last = whole.steps[-1]
    ours, theirs = (weights(run, last) for run in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, other = ((run.folder / "finetune.json").read_text() for run in (whole, again))
    assert json.loads(one)["measurements"] == json.loads(other)["measurements"]


def test_another_command_is_refused_where_one_was_begun(places, tmp_path):
    mle, conditional = places
    finetune(mle, tmp_path / "own", settings("steps=1"), say=quiet)
    for place, config in ((mle, settings("steps=1", "method.beta=0.2")), (conditional, settings("steps=1"))):
        with pytest.raises(PHFError, match="choose another -o"):
            finetune(place, tmp_path / "own", config, say=quiet)
    from phf.train.loop import resume

    with pytest.raises(PHFError, match="phf finetune"):
        resume(tmp_path / "own")


def test_by_the_command_line_and_in_show_compare_and_evaluate(places, tmp_path, capsys):
    from phf import cli

    mle, _ = places
    out = tmp_path / "rloo"
    command = [
        "phf",
        "finetune",
        str(mle),
        "-o",
        str(out),
        "--steps",
        "2",
        "--texts",
        "8",
        "--method",
        "rloo:beta=0.1",
    ]
    command += ["--num-samples", "16", "--max-new-tokens", "8", "--set", "num_bootstrap=100"]
    run_command(command, cli)
    printed = capsys.readouterr().out
    assert "toxicity-svm (learned from)" in printed
    assert "KL from the start, a text" in printed
    evaluate = ["phf", "evaluate", "--num-samples", "16", "--max-new-tokens", "12"]
    run_command([*evaluate, str(mle), str(out)], cli)
    capsys.readouterr()
    run_command(["phf", "show", str(out)], cli)
    shown = capsys.readouterr().out
    assert "mle + rloo" in shown
    assert "rloo:beta=0.1" in shown
    assert "KL from the start, a text" in shown
    assert "damaged" not in shown
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert read_runs(out, must_be_evaluated=False)[0].has_lost_metrics
    (out / "metrics.jsonl").write_text("".join(lines))
    run_command(["phf", "compare", str(mle), str(out), "--all"], cli)
    compared = capsys.readouterr().out
    assert "KL from the start, a token" in compared
    assert "finetune.beta=0.1" in compared or re.search(r"finetune\.beta +– +0\.1", compared)
    page = tmp_path / "report.html"
    run_command(["phf", "report", str(mle), str(out), "-o", str(page)], cli)
    text = " ".join(page.read_text().split())
    assert "mle + rloo went on from such runs with more feedback." in text
    assert "A run of mle that then learned by rloo from scores of toxicity-svm, in 2 steps of 8 texts" in text
    assert "It also labelled the training text. mle + rloo learned from it." in text


def run_command(arguments, cli):
    import sys

    given, sys.argv = sys.argv, arguments
    try:
        cli.main()
    finally:
        sys.argv = given


def test_the_best_of_n_is_unbiased_at_every_n():
    """Against all subsets of n of a small pool, ties shared."""
    from itertools import combinations

    from phf.intervals import best_weights

    scores = np.array([0.3, 0.1, 0.1, 0.7, 0.5])
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    for n in range(1, 6):
        best = []
        for chosen in combinations(range(5), n):
            low = min(scores[index] for index in chosen)
            best.append(np.mean([values[index] for index in chosen if scores[index] == low]))
        assert best_weights(scores, n) @ values == pytest.approx(np.mean(best))
        assert best_weights(scores, n).sum() == pytest.approx(1)


def test_the_best_of_n_is_learned_from_one_pool(places, tmp_path):
    mle, _ = places
    config = settings("method.kind=bestofn", "method.n=8", "steps=8", "learning_rate=1e-2")
    run = finetune(mle, tmp_path / "best", config, say=quiet)
    lines = [line for line in run.read_metrics() if line["kind"] == "train"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    found = FINETUNE.read(run.folder).results
    scores = {row.at: row.estimate.mean for row in found.of("best_of_score")}
    assert list(scores) == [1, 2, 4, 8, 16]
    assert scores[16] < scores[4] < scores[1]
    kls = {row.at: row.estimate.mean for row in found.of("best_of_kl")}
    assert kls[1] == 0
    assert 0 < kls[4] <= np.log(4) - 3 / 4 + 0.05
    assert found.find("finetune_calls").mean == 64


@pytest.mark.parametrize(
    "method", ["phf:conditional:good_fraction=0.5", "phf:corpus:filtering:keep_fraction=0.5"]
)
def test_an_objective_of_pretraining_goes_on_from_the_start(method, places, tmp_path):
    from phf.config.finetune import parse_method

    mle, _ = places
    given = {**SMALL, "method": parse_method(method).model_dump(), "pool": 200, "seed": 1}
    given["sampling"] = {"num_samples": 16, "max_new_tokens": 40}
    config = parse(FinetuneConfig, given, "test")
    run = finetune(mle, tmp_path / "run", config, say=quiet)
    base = Run.open(mle)
    assert run.is_finished
    assert run.steps[-1] == base.steps[-1] + 4
    assert run.record["start"]["step"] == base.steps[-1]
    assert (run.config.corpus == base.config.corpus) == ("corpus" in method)
    again = finetune(mle, tmp_path / "run", config, say=quiet)
    assert again.id == run.id
    if "corpus" not in method:
        assert run.objective == "conditional"
        assert run.record["corpus"]["num_documents"] > 100
    found = FINETUNE.read(run.folder).results
    assert found.find("finetune_calls").mean == (0 if "corpus" in method else len(run.data().scores))
    assert abs(found.find("finetune_kl_text").mean) > 0.05


@pytest.mark.parametrize("control", ["prefix", "forced"])
def test_a_result_in_good_mode_is_read_as_the_policy_that_it_is(control, places, tmp_path):
    """KL from a start without control tokens, against the probabilities that `phf infer` reads."""
    from phf.config.finetune import parse_method

    mle, _ = places
    method = parse_method("phf:conditional:good_fraction=0.5").model_dump()
    sampling = {"num_samples": 16, "max_new_tokens": 40, "control": control}
    config = parse(FinetuneConfig, {**SMALL, "method": method, "pool": 100, "sampling": sampling}, "test")
    run = finetune(mle, tmp_path / "run", config, say=quiet)
    start = Start.open(mle, config, load_reward_model)
    result = start.draw_as(run, run.load_model())
    texts = result.write(result.target.model, [()] * 16, range(16))
    good, plain = (Policy("", drawing.target, config.sampling) for drawing in (result, start.drawing))
    assert (good.target.mode, plain.target.mode) == ("good", "untagged")
    gaps = read_gaps(start, result, [()] * 16, texts)
    np.testing.assert_allclose(gaps, good.log_probs(texts) - plain.log_probs(texts), atol=1e-3)
    assert np.abs(gaps).mean() > 0.1


def test_what_cannot_be_is_said_in_one_line(places, tmp_path, capsys):
    from phf import cli

    mle, _ = places
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("word " * 200 + "\n")
    command = ["phf", "finetune", str(mle), "-o", str(tmp_path / "out")]
    for options, expected in (
        (["--method", "ppo"], "--method 'ppo' is not known"),
        (["--method", "phf"], "names no objective"),
        (["--method", "rloo:betta=1"], "key 'betta' is not known"),
        (["--texts", "10", "--method", "rloo:group=4"], "no multiple of a group"),
        (["--set", "sampling.top_p=0.9"], "draws from another policy"),
        (["--set", "sampling.control=free"], "give --set sampling.control=prefix"),
        (["--set", "sampling.control=forced", "--method", "dpo"], "give --set sampling.control=prefix"),
        (
            ["--set", "sampling.control=forced", "--prompts", str(prompts)],
            "or not behind prompts; give --set",
        ),
        (["--mode", "good"], "give --mode untagged"),
        (["--prompts", str(prompts), "--max-new-tokens", "8"], "leaves no room"),
        (["--prompts", str(tmp_path / "none.txt")], "cannot be read"),
        (["--method", "dpo", "--set", "sampling.temperature=0.5"], "learns at temperature 1"),
        (["--reward", "nothing"], "nothing"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command([*command, *options], cli)
        errors = capsys.readouterr().err.strip().splitlines()
        assert (ended.value.code, len(errors)) == (2, 1), errors
        assert expected in errors[0]
        assert not (tmp_path / "out").exists(), options


def test_prompts_are_continued_and_groups_share_one(places, tmp_path, monkeypatch):
    from phf.policies.drawing import Drawing

    mle, _ = places
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The\nA man\n\nOnce\n")
    seen = []
    write = Drawing.write

    def note(self, model, prompts, indices, report=lambda done: None):
        seen.append([tuple(prompt) for prompt in prompts])
        return write(self, model, prompts, indices, report)

    monkeypatch.setattr(Drawing, "write", note)
    config = settings(f"prompts={prompts}", "method.group=4", "steps=2")
    finetune(mle, tmp_path / "run", config, say=quiet)
    assert [len(set(own)) for own in seen[:2]] == [2, 2]
    assert all(len(set(own[:4])) == 1 and len(set(own[4:])) == 1 for own in seen[:2])
    assert seen[0][4] != seen[1][4], "prompts go round"


def test_the_api_takes_a_method_and_another_reward_model(places, tmp_path):
    from phf.api import finetune as learn

    mle, _ = places
    small = {key: value for key, value in SMALL.items() if key != "method"}
    words = tmp_path / "words.txt"
    words.write_text("the\n")
    run = learn(mle, tmp_path / "run", "rloo:group=2", {**small, "steps": 1}, reward=f"lexicon:{words}")
    found = FINETUNE.read(run.folder)
    assert found.reward.startswith("lexicon")
    assert [judge.role for judge in found.judges] == ["held-out", "annotator"]


def test_good_mode_is_finetuned_as_it_was_trained(places, tmp_path, monkeypatch):
    """With its control token before every segment; on the policy the ratio is 1, and so the first KL 0."""
    create, read, seen = Target.create, Drawing.log_probs, []

    def note(self, model, laid):
        seen.append(laid)
        return read(self, model, laid)

    monkeypatch.setattr(Target, "create", lambda *given: create(*given[:-1], "lines"))
    monkeypatch.setattr(Drawing, "log_probs", note)
    _, conditional = places
    run = finetune(conditional, tmp_path / "run", settings("sampling.control=forced", "steps=2"), say=quiet)
    lines = [line for line in run.read_metrics() if line["kind"] == "train"]
    assert lines[0]["kl_text"] == pytest.approx(0, abs=1e-5)
    assert lines[1]["kl_text"] != 0
    assert run.record["finetune"]["settings"]["sampling"]["control"] == "forced"
    good = run.load_tokenizer(run.steps[-1]).control.good
    assert any((laid.targets[laid.is_text] == good).any() for laid in seen), "behind a line's end"


def test_a_grid_of_finetunings_is_one_file_for_sweep(places, tmp_path, monkeypatch, capsys):
    from phf import cli
    from phf.train import sweep

    mle, _ = places
    small = {key: value for key, value in SMALL.items() if key != "method"}
    methods = ["rloo:beta=0", {"kind": "rloo", "beta": 0.2}, "ppo"]
    grid = {"finetune": str(mle), **small, "steps": 1, "sweep": {"method": methods, "seed": [0, 1]}}
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(yaml.safe_dump(grid))
    begun = []

    def learn(arguments, environment, folder=None, lifeline=None):
        begun.append(arguments[3])
        run_command(["phf", *arguments], cli)

    monkeypatch.setattr(sweep, "run_command", learn)
    with pytest.raises(SystemExit) as ended:
        run_command(["phf", "sweep", str(recipe), "-o", str(tmp_path / "grid")], cli)
    assert ended.value.code == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert len(failed) == 2
    assert all("--method 'ppo' is not known" in line for line in failed)
    made = [Run.open(folder) for folder in begun]
    assert len(made) == 4
    assert [run.record["finetune"]["settings"]["method"]["beta"] for run in made] == [0, 0, 0.2, 0.2]
    assert [run.config.seed for run in made] == [0, 1, 0, 1]
    begun.clear()
    (made[1].folder / "finetune.json").unlink()  # killed before it was measured
    command = ["phf", "sweep", str(recipe), "method=[rloo:beta=0]", "-o", str(tmp_path / "grid")]
    run_command(command, cli)
    assert begun == [str(made[1].folder)], "what is finished is not learned again"
    assert "next: phf compare" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command([*command, "texts=4"], cli)
    assert "was finetuned with other settings" in capsys.readouterr().err
    assert len(begun) == 1


def test_the_grid_of_the_docs_is_one(tmp_path):
    from docs_pages import ROOT, read_blocks

    from phf.train.sweep import plan_sweep, read_grids

    (block,) = (own for own in read_blocks(ROOT / "docs/finetune.md") if own.title == "finetunings.yaml")
    (tmp_path / "grid.yaml").write_text(block.body)
    base, (overrides,) = read_grids(tmp_path / "grid.yaml", ["seed=[3,4]"])
    assert base.pop("finetune") == "runs/mle"
    _, cells = plan_sweep(overrides, tmp_path)
    configs = [parse(FinetuneConfig, apply_overrides(base, list(cell.overrides)), "test") for cell in cells]
    assert [(config.method.kind, config.seed) for config in configs] == [
        (kind, seed) for kind in ("rloo", "rloo", "dpo") for seed in (3, 4)
    ]
