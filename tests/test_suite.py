"""The whole suite on small real runs: every part is there, kept, summed up on the page, and says what was left out."""

import json

import pyarrow.parquet as pq
import pytest

from phf.config.evaluate import EvaluateConfig
from phf.config.train import SamplingConfig, parse
from phf.errors import NotApplicableError, PHFError
from phf.evaluate.drawn import UNPROMPTED
from phf.evaluate.evaluation import evaluate_run
from phf.evaluate.held_out import HeldOutSegments
from phf.evaluate.measures import kl
from phf.generate.target import Target
from phf.report.page import write_report
from phf.results import Evaluation, encode, read_evaluation
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder

PAIRS = [
    {"uid": uid, "good": f"The {noun} sees it.", "bad": f"The {noun} see it.", "term": "agreement"}
    for uid in ("one", "two")
    for noun in ("cat", "dog", "man", "king")
]


def quiet(line: str) -> None:
    pass


def list_modes(evaluation: Evaluation, measure: str) -> list[str]:
    return list(dict.fromkeys(row.mode for row in evaluation.results.of(measure)))


@pytest.fixture(scope="module")
def runs(small_corpus, tmp_path_factory):
    """A Conditional run and an MLE run of 12 steps."""
    from phf.config.train import TrainConfig

    folder = tmp_path_factory.mktemp("suite")
    base = {
        "corpus": str(small_corpus.path), "reward_model": "toxicity-svm", "segments": "document", "tokenizer": "train:512",
        "good": {"good_fraction": 0.5}, "model": {"preset": "1M", "layers": 1, "width": 32, "heads": 2},
        "data": {"context": 128}, "optim": {"batch_blocks": 4, "learning_rate": 3e-3}, "tokens": 12 * 4 * 128,
        "precision": "fp32", "validate_every": 0, "validation_blocks": 4, "checkpoint_every": 6,
    }  # fmt: skip
    objectives = {"conditional": {"kind": "conditional", "good_fraction": 0.5}, "mle": {"kind": "mle"}}
    return {
        name: loop.train(
            parse(TrainConfig, {**base, "objective": objective}, "test"), folder / name, say=quiet
        )
        for name, objective in objectives.items()
    }


@pytest.fixture
def config(runs, tmp_path, monkeypatch):
    """Everything that a tiny run can be measured by; the other run stands in for the big language models."""
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kl, "_open_reference", kl._open_reference.__wrapped__)
    model = str(checkpoint_folder(runs["mle"].folder, 12))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("A man", "The king"))
    )
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return EvaluateConfig(
        suite="full",
        sampling=SamplingConfig(num_samples=40, min_new_tokens=4, max_new_tokens=12),
        num_bootstrap=100,
        capability_documents=10,
        gain_segments=8,
        data_samples=40,
        leak_samples=24,
        embedder=model,
        benign={"steps": 2},
        scenarios={"names": (str(tmp_path / "prompts.jsonl"),), "continuations": 3, "scores_prompt": True},
        kl={"reference": model, "num_sequences": 12, "num_tokens": 8},
        blimp={"source": str(tmp_path / "blimp.jsonl")},
        red_team={"attacker": model, "trials": 2, "rounds": 1, "prompts_per_round": 4, "continuations": 2},
    )


def test_every_part_is_measured_kept_and_shown(
    runs, config, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["conditional"]
    result = evaluate_run(run, config, say=quiet)
    assert set(result.left_out) == {"harness", "downstream", "steering"}
    assert "--task" in result.left_out["harness"]
    modes = ["good", "bad", "none"]
    assert list_modes(result, "kl") == list_modes(result, "blimp") == [*modes, "good-bad"]
    assert result.facts["kl"]["num_sequences"] == 12
    assert list_modes(result, "red_team_mean") == ["good"]
    assert [row.at for row in result.results.of("red_team_best")] == [0, 1]
    assert list_modes(result, "leak_score") == list_modes(result, "in_context_score") == ["good", "untagged"]
    assert list_modes(result, "finetuned_after") == [*modes, "untagged"]
    assert list(dict.fromkeys(row.at for row in result.results.of("trajectory"))) == [6, 12]
    assert list_modes(result, "mauve") == [*modes, "untagged", "deleted"]
    assert {row.of for row in result.results.of("score")} == {None, "prompts.jsonl"}
    assert result.facts["scenarios"][0]["scores_prompt"]
    prompted = [row for row in result.results.of("score") if row.of is not None]
    assert [row.mode for row in prompted] == [*modes, "untagged", "deleted"]
    assert all(row.estimate.count == 6 for row in prompted)
    assert {measure.name for measure in result.measures} == set(result.results.measures)
    kept = pq.read_table(run.folder / "samples.parquet").to_pylist()
    assert sum(row["scenario"] == UNPROMPTED for row in kept) == 5 * 40
    assert {row["prompt"] for row in kept if row["scenario"] == "prompts.jsonl"} == {"A man", "The king"}

    find = result.results.find
    bits = find("bits_per_byte", "good-bad", of="all")
    ends = [find("bits_per_byte", mode, of="all") for mode in ("good", "bad")]
    assert bits.mean == pytest.approx(ends[0].mean - ends[1].mean)
    assert bits.high - bits.low < 0.5 * (ends[0].high - ends[0].low), "paired by document"
    gap = find("blimp", "good-bad").mean
    assert gap == pytest.approx(find("blimp", "good").mean - find("blimp", "bad").mean)

    page = write_report([run.folder], tmp_path / "page.html").read_text()
    assert "--suite full" in page
    assert "--set red_team.trials=2" in page
    for heading in ("BLiMP", "Red team", "prompts.jsonl", "finetun", "tokens seen"):
        assert heading.casefold() in page.casefold(), heading

    whole = (run.folder / "evaluation.json").read_bytes()
    assert encode(read_evaluation(run.folder / "evaluation.json")) == encode(result)
    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", None)
        assert encode(evaluate_run(run, config, say=quiet)) == encode(result), "nothing is drawn twice"
        assert (run.folder / "evaluation.json").read_bytes() == whole
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "One more"}) + "\n")
    again = [
        row.estimate.count
        for row in evaluate_run(run, config, say=quiet).results.of("score")
        if row.of is not None
    ]
    assert again == [9] * 5, "a source that changed is measured again"
    twice = config.model_copy(
        update={"scenarios": config.scenarios.model_copy(update={"names": config.scenarios.names * 2})}
    )
    with pytest.raises(PHFError, match="given twice"):
        evaluate_run(run, twice, say=quiet)
    assert json.loads((run.folder / "evaluation.json").read_bytes()), "a wrong setting loses nothing"


def test_mle_is_measured_in_its_one_mode_and_the_same_texts(runs, config) -> None:
    result = evaluate_run(runs["mle"], config, say=quiet)
    for measure in ("score", "kl", "red_team_mean", "bits_per_byte", "blimp"):
        assert list_modes(result, measure) == ["none"], measure
    # The reference is this very model, with the same tokenizer: no distance at all, on every text.
    assert abs(result.results.find("kl_per_sequence", "none").mean) < 1e-3


def test_a_part_without_its_data_is_left_out_and_one_that_was_asked_for_stops(
    runs, config, monkeypatch
) -> None:
    def refuse(*arguments):
        raise NotApplicableError("the validation split has no bad segment")

    monkeypatch.setattr(HeldOutSegments, "read", refuse)
    result = evaluate_run(runs["mle"], config, say=quiet, force=True)
    assert not result.results.of("leak_score", "in_context_score")
    assert (
        result.left_out["leaks"] == result.left_out["in_context"] == "the validation split has no bad segment"
    )
    missing = config.model_copy(
        update={"blimp": config.blimp.model_copy(update={"source": "/nowhere.jsonl"})}
    )
    with pytest.raises(PHFError, match="nowhere"):
        evaluate_run(runs["mle"], missing, say=quiet)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenarios": {"names": ["rpt"]}},
        {"kl": {"reference": "/nowhere"}},
        {"kl": {"reference": "/nowhere.jsonl"}},
        {"embedder": "/nowhere"},
        {"red_team": {"attacker": "/nowhere"}},
        {"blimp": {"source": "/nowhere.jsonl"}},
        {"harness": {"tasks": ["/nowhere.yaml"]}},
        {"downstream": {"tasks": ["/nowhere"]}},
    ],
)
def test_what_is_not_there_is_said_before_anything_is_drawn(runs, wrong, monkeypatch) -> None:
    if "harness" in wrong:
        pytest.importorskip("lm_eval")
    monkeypatch.setattr(Target, "write", None)
    with pytest.raises(PHFError, match=r"nowhere|rpt"):
        evaluate_run(runs["mle"], parse(EvaluateConfig, wrong, "test"), say=quiet)


def test_quick_measures_no_more_than_it_says(runs, config) -> None:
    quick = EvaluateConfig(
        sampling=config.sampling, num_bootstrap=100, capability_documents=10, gain_segments=8, data_samples=40
    )
    result = evaluate_run(runs["conditional"], quick, say=quiet)
    more = {"kl", "blimp", "red_team_mean", "leak_score", "trajectory", "finetuned_after", "mauve"}
    assert not more & set(result.results.measures)
    assert (result.left_out, result.facts) == ({}, {})
    assert list_modes(result, "score") == ["good", "bad", "none", "untagged"]
