"""`phf infer` over real folders: what it measures, keeps, says and refuses, and its page."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from page_reader import read_page
from release_runs import get_run

from phf import cli
from phf.config.infer import InferConfig
from phf.config.recipes import apply_overrides
from phf.config.train import parse
from phf.errors import PHFError
from phf.policies.policy import Policy
from phf.posterior import infer as module
from phf.posterior.infer import infer
from phf.posterior.results import POSTERIOR, pool_policies
from phf.report.posterior import write_posterior_page
from phf.results import to_json
from phf.soft_control import optimism, values

SMALL = {
    "betas": [0.5, 0.02],
    "num_exact": 40,
    "max_draws": 80,
    "best_of": [4],
    "steers": [{"kind": "guidance", "scale": 2}],
    "particles": 4,
    "populations": 4,
    "num_bootstrap": 100,
    "sampling": {"num_samples": 30, "max_new_tokens": 12},
}


def settings(*overrides: str) -> InferConfig:
    return parse(InferConfig, apply_overrides(SMALL, list(overrides)), "test")


@pytest.fixture
def places(small_config, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [get_run(name, small_config, folder).folder for name in ("mle", "conditional")]


def test_the_frontier_and_every_policy_beside_it(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "RARE_Z", 1.1)  # so that there are bounds
    mle, conditional = places
    said: list[str] = []
    found = infer(mle, [conditional], tmp_path / "out", settings(), say=said.append)
    assert to_json(POSTERIOR.read(tmp_path / "out")) == to_json(found)
    assert [(one.name, one.method) for one in found.policies] == [
        ("mle", ""),
        ("conditional good", ""),
        ("conditional bad", ""),
        ("conditional untagged", ""),
        ("conditional good + guidance 2", "guidance:scale=2.0"),
        ("mle, best of 4", "best of 4"),
        (f"mle, rejection, score <= {found.threshold:.4g}", f"rejection, score <= {found.threshold:.4g}"),
    ]
    (judge,) = found.judges
    assert judge.role == "annotator"
    for beta in (0.5, 0.02):
        low, log_z, high = (
            found.results.find(name, at=beta) for name in ("log_z_lower", "log_z", "log_z_upper")
        )
        assert low.low < log_z.mean < high.high
        assert log_z.mean < 0
    for policy in found.policies[1:5]:
        find = policy.results.find
        assert find("kl_from_base").high > 0
        assert find("kl_to_base").high > 0
        # The nearest target is at least as far as the excess says, and the identity holds.
        expected = find("kl_from_base").mean + find("score", judge=judge.slug).mean / 0.5
        assert find("kl_to_target", at=0.5).mean == pytest.approx(
            expected + found.results.find("log_z", at=0.5).mean, abs=1e-6
        )
        assert find("kl_to_target", at=0.5).mean >= find("excess_kl", judge=judge.slug).mean - 0.05
    assert found.policies[4].results.find("passes").mean == 2
    assert found.policies[5].results.find("judge_calls").mean == 4
    assert 40 <= found.num_draws <= 80
    assert any("exact draws, not 40" in line and "sequential Monte Carlo" in line for line in said)
    assert any("another seed" in line for line in said)
    table = pq.read_table(tmp_path / "out" / "samples.parquet")
    counts = {name: table["scenario"].to_pylist().count(name) for name in set(table["scenario"].to_pylist())}
    assert counts["mle"] == counts["conditional good"] == 30
    assert counts["exact, beta=0.5"] == min(found.num_exact["0.5"], 40)


def test_what_is_finished_is_not_made_again(places, tmp_path, monkeypatch) -> None:
    mle, conditional = places
    first = infer(mle, [conditional], tmp_path, settings(), say=lambda line: None)
    written = (tmp_path / "posterior.json").read_bytes()
    draws: list[str] = []
    real = Policy.write

    def spy(self, *args, **kwargs):
        draws.append(self.name)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "write", spy)
    assert to_json(infer(mle, [conditional], tmp_path, settings(), say=lambda line: None)) == to_json(first)
    assert (tmp_path / "posterior.json").read_bytes() == written
    assert draws == []
    infer(mle, [conditional], tmp_path, settings("betas=[0.3]", "steers=[]"), say=lambda line: None)
    assert draws == []
    infer(mle, [conditional], tmp_path, settings("sampling.seed=1", "steers=[]"), say=lambda line: None)
    assert "mle" in draws


def test_a_model_of_another_make_is_a_base(places, small_config, tmp_path) -> None:
    """A folder with weights and a tokenizer: the run's own, as Hugging Face reads it."""
    run = get_run("mle", small_config, tmp_path)
    folder = tmp_path / "plain"
    run.load_model().save_pretrained(folder)
    run.load_tokenizer().save(folder)
    with pytest.raises(
        PHFError, match="plain does not say what scored its corpus; name a reward model with --judge"
    ):
        infer(folder, (), tmp_path / "out", settings())
    found = infer(folder, (), tmp_path / "out", settings("judges=[toxicity-svm]"), say=lambda line: None)
    assert [one.method for one in found.policies] == ["", "best of 4"]
    own = infer(places[0], (), tmp_path / "own", settings("judges=[toxicity-svm]"), say=lambda line: None)
    assert found.results.find("log_z", at=0.5) == own.results.find("log_z", at=0.5)


def test_models_that_cannot_stand_beside_each_other_are_refused(places, tmp_path) -> None:
    mle, conditional = places
    with pytest.raises(PHFError, match="two models are named mle"):
        infer(mle, [mle], tmp_path / "out", settings())
    with pytest.raises(PHFError, match=r"no run \(run.json\), no release"):
        infer(tmp_path, (), tmp_path / "out", settings())
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes(
            (
                conditional / "checkpoints" / next(iter((conditional / "checkpoints").iterdir())).name / name
            ).read_bytes()
        )
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, **{f"w{index}": index + 1 for index in range(50)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(other)
    with pytest.raises(PHFError, match="different vocabularies"):
        infer(mle, [other], tmp_path / "out", settings())


def test_the_page_says_what_the_file_says_and_nothing_foreign_is_markup(places, tmp_path) -> None:
    mle, conditional = places
    found = infer(mle, [conditional], tmp_path, settings(), say=lambda line: None)
    object.__setattr__(found.policies[1], "name", "<img src=x onerror=alert(1)>")
    path = write_posterior_page(found, tmp_path / "posterior.html")
    text = path.read_text()
    assert "<img" not in text
    assert "<script" not in text
    page = read_page(path)
    assert page is not None
    assert write_posterior_page(found, tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_the_command(places, tmp_path, monkeypatch, capsys) -> None:
    mle, conditional = places
    out = tmp_path / "posterior"
    arguments = ["infer", str(mle), str(conditional), "-o", str(out), "--beta", "0.5", "--beta", "0.1"]
    arguments += ["--num-samples", "20", "--num-exact", "20", "--max-draws", "40", "--max-new-tokens", "8"]
    arguments += ["--set", "num_bootstrap=100", "--steer", "guidance:scale=1.5"]
    monkeypatch.setattr("sys.argv", ["phf", *arguments])
    cli.main()
    shown = capsys.readouterr()
    assert "conditional good" in shown.out
    assert (out / "posterior.html").exists()
    for extra, message in (
        (["--steer", "best-of-n:n=4"], "have no probability"),
        (["--beta", "nan"], "betas"),
        (["--set", "sampling.top_p=0.9"], "give --set sampling.top_p=1"),
        (["--control", "free"], "--control forced or prefix"),
    ):
        monkeypatch.setattr("sys.argv", ["phf", *arguments, *extra])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_exact_draws_do_not_depend_on_how_many_there_are() -> None:
    """The number by which a draw is kept is that of its index."""
    assert (np.random.default_rng([0, 3]).random(10) == np.random.default_rng([0, 3]).random(99)[:10]).all()


def test_no_folder_of_the_machine_is_named(places, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "secret place"
    folder.mkdir()
    (folder / "words.txt").write_text("damn\n")
    spec = f"lexicon:{folder / 'words.txt'}"
    found = infer(places[0], (), tmp_path / "out", settings(f'judges=["{spec}"]'), say=lambda line: None)
    write_posterior_page(found, tmp_path / "out" / "posterior.html")
    for name in ("posterior.json", "posterior.html"):
        assert "secret place" not in (tmp_path / "out" / name).read_text()


def test_json(places, tmp_path, monkeypatch, capsys) -> None:
    arguments = ["infer", str(places[0]), "-o", str(tmp_path), "--num-samples", "20", "--num-exact", "20"]
    arguments += ["--max-draws", "30", "--max-new-tokens", "6", "--set", "num_bootstrap=100", "--json"]
    monkeypatch.setattr("sys.argv", ["phf", *arguments])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert found["base"] == "mle"
    assert isinstance(found["measurements"], list)


def test_the_report_of_runs_has_it_as_a_section(places, tmp_path) -> None:
    from fake_runs import make_run

    from phf.report.page import write_report
    from phf.report.posterior import make_section

    found = infer(places[0], (), tmp_path / "posterior", settings(), say=lambda line: None)
    run = make_run(tmp_path / "run")
    page = write_report(run, tmp_path / "report.html", sections=[make_section(found)]).read_text()
    assert '<a href="#posterior">What a score costs</a>' in page
    assert page.count('<h2 id="posterior">') == 1
    assert "posterior" not in write_report(run, tmp_path / "plain.html").read_text()


def test_promises_levels_and_soft_values_are_asked_for_by_the_command(
    small_config, tmp_path, monkeypatch, capsys
) -> None:
    """And stand in the file, on the page and in the report; what is finished is not made again."""
    mle, conditional, quantile = (
        get_run(name, small_config, tmp_path).folder for name in ("mle", "conditional", "quantile")
    )
    out = tmp_path / "out"
    arguments = ["infer", *map(str, (mle, conditional, quantile)), "-o", str(out), "--num-samples", "24"]
    arguments += ["--num-exact", "20", "--max-draws", "40", "--max-new-tokens", "12", "--beta", "0.1"]
    arguments += ["--set", "num_bootstrap=100", "--set", "particles=4", "--set", "populations=4"]
    monkeypatch.setattr("sys.argv", ["phf", *arguments, "--optimism", "--returns", "--values"])
    cli.main()
    results = POSTERIOR.read(out)
    find = results.results.find
    for other in ("conditional bad", "quantile bad", "held-out text"):
        for recipe in ("prior", "posterior", "regularised"):
            place = {"of": f"{recipe}; {other} writes the middle", "at": 0.1}
            gap = find("promised_good", **place).mean - find("realised_good", **place).mean
            assert find("optimism", **place).mean == pytest.approx(gap, abs=1e-9)
    assert [row.at for row in results.results.of("promised_level")] == [0, 1, 2, 3]
    assert {row.of for row in results.results.of("promised_level")} == {"quantile"}
    names = {row.of for row in results.results.of("value_rank_correlation")}
    assert names == {
        f"{name}, beta 0.1" for name in ("head, Monte Carlo", "head, temporal difference", "truth by halves")
    }
    assert len(results.results.of("twist_log_z")) == 3
    assert all(row.mode is None for row in results.measurements)
    shown = {measure.name for measure in results.measures}
    assert {row.measure for row in results.measurements} <= shown
    page = (out / "posterior.html").read_text()
    for text in (
        "Promised less realised",
        "held-out text writes the middle",
        "level 2",
        "temporal difference",
    ):
        assert text in page
    monkeypatch.setattr(optimism, "measure_optimism", None)
    monkeypatch.setattr(values, "draw_texts", None)
    cli.main()
    assert to_json(POSTERIOR.read(out)) == to_json(results)
    monkeypatch.setattr("sys.argv", ["phf", *arguments])
    capsys.readouterr()
    cli.main()
    assert not POSTERIOR.read(out).results.of("promised_good")


def test_a_run_without_levels_is_said_where_levels_are_asked_for(places, tmp_path) -> None:
    said: list[str] = []
    found = infer(places[0], (), tmp_path, settings("returns=true"), say=said.append)
    assert "returns, mle: mle is not asked for a return; give a run of quantile or scalar" in said
    assert not found.results.of("promised_level")


def test_the_bound_and_the_share_below_it_are_stated(places, tmp_path) -> None:
    """No score of 80 draws is below the bound, so at most 1 - .05^(1/80) of the texts are, with 95 % confidence."""
    (tmp_path / "words.txt").write_text("a\nthe\n")
    for number, spec in enumerate((f"-lexicon:{tmp_path / 'words.txt'}", "toxicity-svm")):
        out = tmp_path / str(number)
        found = infer(places[0], (), out, settings(f'judges=["{spec}"]'), say=lambda line: None)
        clipped = found.results.find("clipped_share")
        text = write_posterior_page(found, out / "posterior.html").read_text()
        assert "Scores are taken to lie at" in text
        assert clipped.count == found.num_draws - found.num_unscored
        assert (clipped.high > 0) == ("at most" in text)
    frontier = SimpleNamespace(num_scored=80)
    judge = SimpleNamespace(model=SimpleNamespace(unit="items per character"))
    inference = SimpleNamespace(frontier=frontier, library=SimpleNamespace(judges=[judge]))
    share = module._Inference._bound_clipped(inference)
    assert (share.low, share.high) == (0, pytest.approx(1 - 0.05 ** (1 / 80)))


def test_many_policies_have_numbers_in_the_picture_and_in_the_table(places, tmp_path) -> None:
    steers = [{"kind": "guidance", "scale": 1 + number / 10} for number in range(1, 6)]
    given = settings().model_copy(update={"steers": parse(InferConfig, {"steers": steers}, "test").steers})
    found = infer(places[0], places[1:], tmp_path, given, say=lambda line: None)
    assert len(found.policies) > 8
    text = write_posterior_page(found, tmp_path / "posterior.html").read_text()
    assert "Numbers: the lines of the table below." in text
    for number, policy in enumerate(found.policies, 1):
        assert f"{number}. {policy.name}" in text.replace("&lt;", "<")


def test_policies_of_several_base_models_are_pooled_by_their_recipe(
    places, tmp_path, monkeypatch, capsys
) -> None:
    mle, conditional = places
    first = infer(mle, [conditional], tmp_path / "a", settings(), say=lambda line: None)
    assert len({policy.recipe for policy in first.policies}) == 2
    POSTERIOR.write(tmp_path / "b", shift(first, base_key="another"))
    POSTERIOR.write(tmp_path / "c", shift(first))
    pooled = pool_policies([first, POSTERIOR.read(tmp_path / "b")])
    assert [policy.name for policy in pooled] == [f"{one.name} and 1 more" for one in first.policies]
    # A base model is one kind, whatever stands beside another: here its own recipe does.
    beside = replace(
        first.policies[1], source="a second seed", recipe=first.policies[0].recipe, mode="untagged"
    )
    other = replace(first, base_key="a third", policies=[replace(first.policies[0], recipe="older"), beside])
    assert pool_policies([first, other])[0].results.find("kl_from_base").mean == 0
    own, found = (policies[1].results.find("kl_from_base") for policies in (first.policies, pooled))
    half = 12.706 * 0.5  # Student's t with one degree of freedom, times the error of the mean of x and x + 1
    assert (found.mean, found.high - found.mean) == pytest.approx((own.mean + 0.5, half), rel=1e-4)
    for folders, code, message in (
        (["a", "b"], 0, "conditional good and 1 more"),
        (["a", "c"], 2, "two of these stand on one base model"),
        (["a", str(mle)], 2, f"{mle} has no posterior.json, and a has one"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["phf", "compare", *folders])
        with contextlib.nullcontext() if code == 0 else pytest.raises(SystemExit):
            cli.main()
        shown = capsys.readouterr()
        assert message in " ".join((shown.out + shown.err).split())


def shift(results, **changes):
    """The same numbers, larger by 1, of runs with other names."""
    policies = [
        replace(
            policy,
            name=f"other {policy.name}",
            measurements=[
                replace(row, estimate=replace(row.estimate, mean=row.estimate.mean + 1))
                for row in policy.measurements
            ],
        )
        for policy in results.policies
    ]
    return replace(results, policies=policies, **changes)
