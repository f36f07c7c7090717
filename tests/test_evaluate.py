"""A run evaluated end to end on a small real corpus, and the judges' roles."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from phf import lm
from phf.config import SamplingConfig
from phf.config_evaluate import EvaluateConfig
from phf.evaluate import evaluate_run, evaluate_runs, evaluation, sample_run
from phf.files import read_json
from phf.generate.target import Target
from phf.records import Identity
from phf.reward_models import load_reward_model
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder

CONFIG = EvaluateConfig(
    judges=("pii",),
    sampling=SamplingConfig(num_samples=30, max_new_tokens=24),
    num_bootstrap=100,
    capability_documents=10,
    gain_segments=8,
    data_samples=40,
)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def trained(small_config, tmp_path):
    """Returns a function that trains a run of 12 steps on one objective."""

    def train(kind: str, *overrides: str):
        good = ["objective.good_fraction=0.5"] if kind == "conditional" else []
        config = small_config(f"objective.kind={kind}", *good, *overrides)
        return loop.train(config, tmp_path / kind, say=quiet)

    return train


def test_a_conditional_run_end_to_end(trained) -> None:
    run = trained("conditional")
    seen = []
    result = evaluate_run(run, CONFIG, say=quiet, progress=lambda *call: seen.append(call))
    assert result == read_json(run.folder / "evaluation.json")
    modes = ("good", "bad", "none", "untagged")
    assert {call[0] for call in seen} == {"held-out text", *(f"sampling {mode}" for mode in modes)}

    annotator, held_out = result["judges"]
    assert (annotator["role"], held_out["role"]) == ("annotator", "held-out")
    assert annotator["slug"] == run.data().annotation.identity.slug
    assert result["notes"] == []
    assert (result["step"], result["tokens_seen"]) == (12, 12 * 4 * 64)
    assert result["threshold"] == run.data().threshold.value

    kept = pq.read_table(run.folder / "samples.parquet")
    rows = result["rows"]
    assert [(row["mode"], row["judge"]) for row in rows] == [
        (mode, judge["slug"]) for mode in modes for judge in result["judges"]
    ]
    for row in rows:
        own = kept.filter(np.array(kept["mode"].to_pylist()) == row["mode"])
        scores = np.array(own[f"score:{row['judge']}"].to_pylist())
        assert row["mean"] == pytest.approx(np.nanmean(scores))
        if "toxicity" in row["judge"]:  # no sample holds an address: nothing bounds that mean
            assert row["low"] < row["mean"] < row["high"] < row["expected_max_25_high"]
        assert (row["num_samples"], row["num_unscored"]) == (30, np.isnan(scores).sum())
        judge = next(judge for judge in result["judges"] if judge["slug"] == row["judge"])
        assert row["hits"] == (scores > judge["hit_threshold"]).sum()
        assert row["bits_per_byte"] == result["modes"][row["mode"]]["bits_per_byte"]["all"]["mean"]
        rescored = load_reward_model(judge["identity"]["name"]).score(
            text := own["text"][0].as_py(), [len(text)]
        )
        assert scores[0] == pytest.approx(rescored[0])

    for mode in modes:
        bits = result["modes"][mode]["bits_per_byte"]
        assert 2 < bits["all"]["mean"] < 12
        assert (
            bits["good"]["count"] + bits["bad"]["count"] == bits["all"]["count"] == 10
        )  # whole documents are segments
    labelled = result["labelled_bits_per_byte"]
    assert labelled["good"] == result["modes"]["good"]["bits_per_byte"]["good"]
    assert labelled["bad"] == result["modes"]["bad"]["bits_per_byte"]["bad"]
    assert result["control_gain"]["good"]["count"] == 8
    assert {reference["name"] for reference in result["references"]} == {"training data"}


def test_mle_has_one_mode_and_three_references_and_scores_the_same_text(trained) -> None:
    mle, conditional = evaluate_runs(
        [trained("mle").folder, trained("conditional").folder], CONFIG, say=quiet
    )
    assert set(mle["modes"]) == {"none"}
    assert mle["control_gain"] is None
    assert mle["labelled_bits_per_byte"] is None
    assert mle["threshold"] == conditional["threshold"], "good text must be the same text"
    counts = [result["modes"]["none"]["bits_per_byte"]["good"]["count"] for result in (mle, conditional)]
    assert counts[0] == counts[1] > 0
    references = {(reference["name"], reference["judge"]): reference for reference in mle["references"]}
    assert len(references) == 6
    best = references["best of 16 from MLE", mle["judges"][0]["slug"]]
    assert best["mean"] < mle["rows"][0]["mean"]
    rejection = references["rejection sampling from MLE", mle["judges"][0]["slug"]]
    assert rejection["mean"] <= mle["threshold"]
    assert rejection["cost"] == pytest.approx(30 / rejection["count"])


def test_what_was_measured_is_used_again_and_repeats_itself(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("mle")
    path = run.folder / "evaluation.json"
    evaluate_run(run, CONFIG, say=quiet)
    first = path.read_bytes()
    evaluate_run(run, CONFIG, say=quiet, force=True)
    assert path.read_bytes() == first, "all randomness is seeded"

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", None)
        patch.setattr(evaluation, "segment_nll", None)
        stamps = [file.stat().st_mtime_ns for file in (path, run.folder / "samples.parquet")]
        evaluate_run(run, CONFIG, say=quiet)
        assert path.read_bytes() == first, "nothing is drawn or read twice"
        assert stamps == [file.stat().st_mtime_ns for file in (path, run.folder / "samples.parquet")]
        larger = CONFIG.sampling.model_copy(update={"batch_size": 7})
        evaluate_run(run, CONFIG.model_copy(update={"sampling": larger}), say=quiet)

    other = CONFIG.model_copy(update={"sampling": CONFIG.sampling.model_copy(update={"seed": 1})})
    again = evaluate_run(run, other, say=quiet)
    assert again["rows"][0]["mean"] != json.loads(first)["rows"][0]["mean"]
    (run.folder / "samples.parquet").write_bytes(b"damaged")
    assert evaluate_run(run, other, say=quiet) == again
    assert pq.read_table(run.folder / "samples.parquet").num_rows == 30


def test_a_stopped_evaluation_goes_on_and_gives_the_same_bytes(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("conditional")
    path = run.folder / "evaluation.json"
    evaluate_run(run, CONFIG, say=quiet)
    whole = path.read_bytes()
    drawn = []
    real = Target.write

    def write(target, *arguments, **options):
        if target.mode == "untagged" and len(drawn) < 4:
            raise KeyboardInterrupt
        drawn.append(target.mode)
        return real(target, *arguments, **options)

    monkeypatch.setattr(Target, "write", write)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, CONFIG, say=quiet, force=True)
    assert path.read_bytes() == whole, "the earlier one stays until the next is whole"
    assert drawn == ["good", "bad", "none"]
    (damaged := run.folder / "evaluation" / "step-000012" / "samples-bad.json").write_text('{"key": "half')
    drawn.append("")  # the fourth: from here on nothing fails
    evaluate_run(run, CONFIG, say=quiet)
    assert drawn == ["good", "bad", "none", "", "bad", "untagged"], "only what is missing or damaged is drawn"
    assert path.read_bytes() == whole
    assert json.loads(damaged.read_text())["value"]

    more = CONFIG.model_copy(update={"judges": ("pii", "pep8")})
    assert len(evaluate_run(run, more, say=quiet)["judges"]) == 3
    assert len(drawn) == 6, "another judge scores the same samples"


def test_deleting_the_control_tokens_gives_the_untagged_mode(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("conditional")
    full = CONFIG.model_copy(update={"suite": "full"})
    result = evaluate_run(run, full, say=quiet)
    assert list(result["modes"]) == ["good", "bad", "none", "untagged", "deleted"]
    deleted, untagged = (result["modes"][mode] for mode in ("deleted", "untagged"))
    assert deleted == untagged
    assert result["modes"]["none"]["bits_per_byte"] == untagged["bits_per_byte"]
    model, control = run.load_model(), run.load_tokenizer().control
    smaller = lm.delete_control_tokens(model, control)
    assert smaller.get_input_embeddings().weight.shape[0] == control.good
    assert smaller.get_output_embeddings().weight.shape[0] == smaller.config.vocab_size == control.good
    assert model.get_input_embeddings().weight.shape[0] > control.bad, "the run's own model is as it was"

    def zero(model, control):
        model = lm.load_model(checkpoint_folder(run.folder, 12))
        model.get_output_embeddings().weight.data.zero_()
        return model

    monkeypatch.setattr(lm, "delete_control_tokens", zero)
    damaged = evaluate_run(run, full, force=True, say=quiet)["modes"]["deleted"]
    assert damaged["bits_per_byte"]["all"]["mean"] > untagged["bits_per_byte"]["all"]["mean"] + 0.1
    assert damaged["degeneracy"] != untagged["degeneracy"], "both are measured on the model without them"


def test_the_full_suite_measures_earlier_checkpoints_as_the_last(trained) -> None:
    run = trained("mle", "keep_checkpoints=3", "checkpoint_every=4")
    full = CONFIG.model_copy(update={"suite": "full"})
    result = evaluate_run(run, full, say=quiet)
    assert [point["step"] for point in result["trajectory"]] == [4, 8, 12]
    assert [point["tokens_seen"] for point in result["trajectory"]] == [step * 4 * 64 for step in (4, 8, 12)]
    rows = [{**row, "distinct_2": None, "bits_per_byte": None} for row in result["rows"]]
    assert [
        {**row, "distinct_2": None, "bits_per_byte": None} for row in result["trajectory"][-1]["rows"]
    ] == rows
    alone = evaluate_run(run, CONFIG, step=4, say=quiet)
    assert alone["rows"][0]["mean"] == result["trajectory"][0]["rows"][0]["mean"] != rows[0]["mean"]
    few = full.model_copy(update={"trajectory_checkpoints": 2})
    assert [point["step"] for point in evaluate_run(run, few, say=quiet)["trajectory"]] == [4, 12]


def test_a_crash_leaves_no_evaluation_of_other_samples(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("mle")
    evaluate_run(run, CONFIG, say=quiet)
    monkeypatch.setattr(evaluation, "measure_degeneracy", None)
    before = (run.folder / "evaluation.json").read_bytes()
    with pytest.raises(TypeError):
        evaluate_run(run, CONFIG, say=quiet, force=True)
    assert (run.folder / "evaluation.json").read_bytes() == before, (
        "what was there stays until there is another"
    )
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "write_json", None)
    other = CONFIG.sampling.model_copy(update={"seed": 1})
    with pytest.raises(TypeError):
        evaluate_run(run, CONFIG.model_copy(update={"sampling": other}), say=quiet)
    assert not (run.folder / "evaluation.json").exists(), "it would speak of other samples"


def test_an_annotator_that_changed_is_said_and_is_not_called_the_annotator(trained) -> None:
    """Fault 4 of the released code: annotated with one model, evaluated with another."""
    run = trained("mle")

    def load_newer(spec: str):
        model = load_reward_model(spec)
        if spec == "toxicity-svm":
            model.identity = Identity(
                "toxicity-svm", "99", model.identity.weights_hash, model.identity.parameters
            )
        return model

    said = []
    result = evaluate_run(run, CONFIG, load=load_newer, say=said.append)
    assert [judge["role"] for judge in result["judges"]] == ["held-out", "held-out"]
    assert "no judge is the annotator" in said[0]
    assert result["notes"][0] in said[0]
    assert {reference["name"] for reference in result["references"]} == {"training data"}


def test_sampling_a_run_for_people(trained) -> None:
    run = trained("conditional")
    samples = sample_run(run.folder, "good", SamplingConfig(num_samples=2, max_new_tokens=20))
    assert [sample.index for sample in samples] == [0, 1]
    assert all("<|" not in sample.text for sample in samples)


def test_good_minus_bad_turns_each_modes_difference_from_the_first_around() -> None:
    gap = {"mean": 0.25, "low": 0.125, "high": 0.5, "count": 7}
    unknown = {"mean": None, "low": None, "high": None, "count": 0}
    more = {
        name: {"modes": {"bad": {"difference": value}}} for name, value in (("kl", unknown), ("blimp", gap))
    }
    found = evaluation._subtract_modes({"good_minus_bad": {"all": gap}}, more)
    assert found["bits_per_byte"] == {"all": gap}
    assert found["blimp"] == {"mean": -0.25, "low": -0.5, "high": -0.125, "count": 7}
    assert found["kl"] == unknown
    assert evaluation._subtract_modes({"good_minus_bad": None}, more) == {}
