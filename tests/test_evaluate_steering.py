"""Methods of steering as rows of an evaluation, and on the command line."""

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from known_models import record_rows
from tiny_models import bytes_alone, tiny_llama

from phf import api, cli
from phf.config.evaluate import EvaluateConfig
from phf.config.steer import ControlSteer, Direction
from phf.config.train import SamplingConfig, parse
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_run
from phf.evaluate.measures import steering
from phf.evaluate.rollouts import sample_run
from phf.evaluate.steer_run import steer_prompts
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.report.page import summary_lines, write_report
from phf.results import encode, to_json
from phf.steer.steering import Aids
from phf.train import loop

SPECS = ["best-of-n:n=3", "control:style=prefix", "direction:of=bad,scale=0.5"]
GIVEN = {
    "judges": ["pii"],
    "sampling": {"num_samples": 30, "max_new_tokens": 24},
    "num_bootstrap": 100,
    "capability_documents": 10,
    "gain_segments": 8,
    "data_samples": 40,
    "steer": SPECS,
}


SIZE = ("--num-samples", 2, "--max-new-tokens", 12)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def trained(small_config, tmp_path):
    def train(kind: str, *overrides: str):
        good = [] if kind == "mle" else ["objective.good_fraction=0.5"]
        return loop.train(
            small_config(f"objective.kind={kind}", *good, *overrides), tmp_path / kind, say=quiet
        )

    return train


def run_phf(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["phf", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_each_method_is_a_row_beside_plain_good_mode(trained, monkeypatch, tmp_path) -> None:
    run = trained("conditional")
    config = parse(EvaluateConfig, GIVEN, "test")
    result = evaluate_run(run, config, say=quiet)
    assert [method["spec"] for method in result.facts["steering"]] == SPECS
    assert {method["mode"] for method in result.facts["steering"]} == {"good"}
    table = pq.read_table(run.folder / "samples.parquet").to_pandas()
    plain = table[(table["mode"] == "good") & (table["scenario"] == "unprompted")]
    find, annotator = result.results.find, result.judges[0].slug
    modes = [f"good + {spec}" for spec in SPECS]
    for spec, mode in zip(SPECS, modes, strict=True):
        own = table[table["scenario"] == f"steer {spec}"]
        assert own["index"].tolist() == list(range(30))
        for judge in result.judges:
            scores, before = (rows[f"score:{judge.slug}"].to_numpy() for rows in (own, plain))
            assert find("score", mode, judge.slug).mean == pytest.approx(np.nanmean(scores))
            gap = bootstrap_mean(scores - before, 100, 0)
            assert to_json(find("steered_difference", mode, judge.slug)) == to_json(gap)
        assert find("mean_tokens", mode).mean == own["num_tokens"].mean()
    best, _, _ = result.facts["steering"]
    assert best["facts"]["reward_model"] == annotator
    difference = find("steered_difference", modes[0], annotator)
    assert difference.mean < 0, "candidate 0 is the plain sample: none is worse"
    changed = np.mean(own_text(table, SPECS[0]) != plain["text"].to_numpy())
    assert best["facts"]["changed"] == pytest.approx(changed)
    costs = [find("passes_per_token", mode).mean for mode in (*modes, "good")]
    assert 2.5 < costs[0] < 4.5
    assert costs[1] < 1.5
    assert 0.9 < costs[3] < 1.5
    bits = [find("bits_per_byte", mode, of="all").mean for mode in (*modes, "good")]
    assert np.isfinite(bits).tolist() == [False, False, True, True]
    assert bits[2] != bits[3]
    assert result.left_out == {}

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", None)
        patch.setattr(steering, "steer", None)
        assert encode(evaluate_run(run, config, say=quiet)) == encode(result), "nothing is drawn twice"

    lines = [line for line in summary_lines([run.folder]) if "passes per token" in line]
    assert len(lines) == 3
    assert lines[0].count("(goes by it)") == 1
    assert "(goes by it)" not in lines[1]
    page = write_report([run.folder], tmp_path / "report.html").read_text("utf-8")
    assert '<h2 id="steering">' in page
    assert all(f"<code>{spec}</code>" in page for spec in SPECS)


def own_text(table, spec):
    return table[table["scenario"] == f"steer {spec}"]["text"].to_numpy()


def test_scale_0_changes_neither_samples_nor_bits_per_byte(trained) -> None:
    config = parse(EvaluateConfig, {**GIVEN, "steer": ["direction:scale=0.0,layer=all"]}, "test")
    result = evaluate_run(trained("conditional"), config, say=quiet)
    (method,) = result.facts["steering"]
    steered, plain = (
        {(row.measure, row.judge, row.of): row.estimate for row in result.measurements if row.mode == mode}
        for mode in (f"good + {method['spec']}", "good")
    )
    same = [
        place for place in steered if place in plain and place[0] not in ("bits_per_byte", "passes_per_token")
    ]
    assert len(same) > 15
    assert to_json([steered[place] for place in same]) == to_json([plain[place] for place in same])
    bits = ("bits_per_byte", None, "all")
    assert steered[bits].mean == pytest.approx(plain[bits].mean)
    assert method["facts"]["num_texts"] > 0


@pytest.mark.parametrize(
    ("kind", "mode", "why"),
    [("mle", "none", "does not learn any"), ("additive", "good", "adds them to its inputs")],
)
def test_what_a_run_cannot_do_is_left_out_with_its_reason(trained, kind, mode, why) -> None:
    given = {**GIVEN, "steer": [*SPECS, "guidance", "lookahead", "smc"]}
    result = evaluate_run(trained(kind), parse(EvaluateConfig, given, "test"), say=quiet)
    assert [(method["spec"], method["mode"]) for method in result.facts["steering"]] == [(SPECS[0], mode)]
    assert {row.mode for row in result.results.of("steered_difference")} == {f"{mode} + {SPECS[0]}"}
    assert set(result.left_out) == {f"steer {spec}" for spec in given["steer"][1:]}
    assert all(why in reason for reason in result.left_out.values())


def test_rejection_goes_by_the_runs_line_and_another_judge_needs_its_own(trained) -> None:
    run = trained("mle")
    config = parse(EvaluateConfig, {**GIVEN, "steer": ["rejection:tries=8"]}, "test")
    result = evaluate_run(run, config, say=quiet)
    (method,) = result.facts["steering"]
    assert method["facts"]["threshold"] == run.data().threshold.value
    assert method["facts"]["accepted"] == 1.0
    scores = pq.read_table(run.folder / "samples.parquet").to_pandas()
    own = scores[scores["scenario"] == "steer rejection:tries=8"][f"score:{result.judges[0].slug}"]
    assert own.max() <= method["facts"]["threshold"]
    other = parse(EvaluateConfig, {**GIVEN, "steer": ["rejection:reward_model=pii"]}, "test")
    result = evaluate_run(run, other, say=quiet)
    assert "steering" not in result.facts
    reason = result.left_out["steer rejection:reward_model=pii"]
    assert "is of toxicity-svm, not of pii; give rejection:reward_model=pii,threshold" in reason


def test_methods_are_checked_as_settings_are() -> None:
    with pytest.raises(PHFError, match="did you mean 'guidance'"):
        parse(EvaluateConfig, {"steer": ["gidance"]}, "test")
    with pytest.raises(PHFError, match=r"--steer best-of-n:n=1: n=1: input should be greater than 1"):
        parse(EvaluateConfig, {"steer": ["best-of-n:n=1"]}, "test")
    with pytest.raises(PHFError, match="layer='x': input should be a valid integer"):
        parse(EvaluateConfig, {"steer": ["direction:layer=x"]}, "test")


def test_what_no_run_could_do_is_refused_before_anything_is_drawn() -> None:
    for given, why in (
        ({"steer": ["best-of-n:n=8", "best-of-n"]}, "--steer best-of-n is given twice"),
        ({"steer": ["smc"], "sampling": {"engine": "vllm"}}, "--steer smc needs the engine phf, not vllm"),
    ):
        with pytest.raises(PHFError, match=why):
            evaluate_run(None, parse(EvaluateConfig, given, "test"), say=quiet)


def test_sampling_a_run_steered(trained, monkeypatch, capsys) -> None:
    run = trained("conditional")
    code, out, err = run_phf(
        monkeypatch,
        capsys,
        "sample",
        run.folder,
        *SIZE,
        "--steer",
        "best-of-n:n=2",
        "--prompt",
        "Yo",
        "--prompt",
        "A",
    )
    assert code == 0
    (line,) = [line for line in err.splitlines() if "passes per token" in line]
    assert line.startswith("best-of-n:n=2: ")
    assert "; changed 0" in line or "; changed 1" in line
    assert "; reward_model toxicity-svm@" in line
    assert "--- good 0\nYo" in out
    assert "--- good 1\nA" in out
    texts = [
        sample.prompt + sample.text
        for sample in api.sample(
            run.folder, steer="best-of-n:n=2", prompts=["Yo", "A"], num_samples=2, max_new_tokens=12
        )
    ]
    for place, text in enumerate(texts):
        assert f"--- good {place}\n{text}" in out


def test_bad_mode_says_what_it_is(trained, monkeypatch, capsys) -> None:
    run = trained("conditional")
    code, out, err = run_phf(monkeypatch, capsys, "sample", run.folder, "--mode", "bad", *SIZE)
    assert (code, err.count("\n")) == (0, 1)
    assert "bad mode is for research" in err
    assert "phf release" in err
    assert out.startswith("--- bad 0")
    _, _, err = run_phf(monkeypatch, capsys, "sample", run.folder, *SIZE)
    assert err == ""


def test_a_run_without_control_tokens_names_what_works(trained, monkeypatch, capsys) -> None:
    folder = trained("mle").folder
    code, _, err = run_phf(
        monkeypatch, capsys, "sample", folder, "--mode", "none", "--steer", "guidance:scale=2"
    )
    assert code == 2
    assert (
        "guidance:scale=2.0 needs control tokens in the text, and mle does not learn any; give best-of-n"
        in err
    )
    code, _, err = run_phf(
        monkeypatch,
        capsys,
        "sample",
        folder,
        "--mode",
        "none",
        "--steer",
        "rejection:tries=2",
        *SIZE,
    )
    assert (code, "accepted" in err) == (0, True)


def test_prompts_are_continued(trained) -> None:
    run = trained("conditional")
    settings = SamplingConfig(num_samples=2, max_new_tokens=12)
    assert [sample.prompt for sample in sample_run(run.folder, "good", settings)] == ["", ""]
    prompted = sample_run(run.folder, "good", settings, prompts=["Once upon"])
    assert [sample.prompt for sample in prompted] == ["Once upon"] * 2


@pytest.mark.parametrize(
    ("style", "steer", "num_tokens"),
    [("free", "prefix", 1), ("prefix", "forced", 2), ("prefix", "free", 2), ("prefix", None, 1)],
)
def test_a_prompt_is_read_in_the_style_that_the_page_is_written_in(style, steer, num_tokens) -> None:
    tokenizer = bytes_alone()
    target = Target("good", tiny_llama(tokenizer, seed=0), tokenizer, "lines")
    calls = record_rows(target.model)
    method = Direction(of="bad") if steer is None else ControlSteer(style=steer)
    sampling = SamplingConfig(num_samples=1, max_new_tokens=1, min_new_tokens=1, control=style)
    steer_prompts(target, sampling, method, Aids(), ["a\nb"])
    assert calls[0][0].tolist().count(tokenizer.control.good) == num_tokens
