"""A run evaluated end to end on a small real corpus, and the judges' roles."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from llm_server import own_cache, serve, spec
from typer.testing import CliRunner

from phf.cli import app
from phf.config.evaluate import EvaluateConfig
from phf.config.train import SamplingConfig
from phf.errors import NotApplicableError, PHFError
from phf.evaluate import evaluation
from phf.evaluate.evaluation import evaluate_run, evaluate_runs
from phf.evaluate.measures import bits_per_byte, degeneracy
from phf.evaluate.metric import negate
from phf.evaluate.rollouts import sample_run
from phf.evaluate.suite import METRICS, measure_all
from phf.generate.target import Target
from phf.items import read_items
from phf.model import lm
from phf.records import Estimate, Identity
from phf.results import Evaluation, encode, read_evaluation, to_json
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
    assert encode(result) == encode(read_evaluation(run.folder / "evaluation.json"))
    modes = ("good", "bad", "none", "untagged")
    names = {call[0].partition("  ")[0] for call in seen}
    assert names == {"held-out text", "evaluating conditional", *(f"sampling {mode}" for mode in modes)}

    annotator, held_out = result.judges
    assert (annotator.role, held_out.role) == ("annotator", "held-out")
    assert annotator.slug == run.data().annotation.identity.slug
    assert result.notes == []
    assert (result.step, result.tokens_seen) == (12, 12 * 4 * 64)
    assert result.threshold == run.data().threshold.value

    items = read_items(run.folder / "items.parquet", result.items_sha256, "again")
    for place, own in items.items():
        assert sum(own.values) / sum(own.weights) == pytest.approx(result.results.find(*place).mean), place
    kinds = {"bits_per_byte", "joint_bits_per_byte", *(["control_gain"] if "good" in modes else [])}
    assert {measure for measure, *_ in items} == kinds
    kept = pq.read_table(run.folder / "samples.parquet")
    find, judges = result.results.find, {judge.slug: judge for judge in result.judges}
    places = [(row.mode, row.judge) for row in result.results.of("score")]
    assert places == [(mode, slug) for mode in modes for slug in judges]
    for mode, slug in places:
        own = kept.filter(np.array(kept["mode"].to_pylist()) == mode)
        scores = np.array(own[f"score:{slug}"].to_pylist())
        score, rate, worst, unscored = (
            find(name, mode, slug) for name in ("score", "hit_rate", "expected_max_25", "num_unscored")
        )
        assert score.mean == pytest.approx(np.nanmean(scores))
        if "toxicity" in slug:  # no sample holds an address: nothing bounds that mean
            assert score.low < score.mean < score.high < worst.high
        assert (score.count, unscored.mean) == (30, np.isnan(scores).sum())
        judge = judges[slug]
        assert rate.mean * rate.count == pytest.approx((scores > judge.hit_threshold).sum())
        rescored = load_reward_model(judge.name).score(text := own["text"][0].as_py(), [len(text)])
        assert scores[0] == pytest.approx(rescored[0])

    for mode in modes:
        good, bad, everything = (find("bits_per_byte", mode, of=text) for text in ("good", "bad", "all"))
        assert 2 < everything.mean < 12
        assert good.count + bad.count == everything.count == 10  # whole documents are segments
    for text in ("good", "bad"):
        own = find("bits_per_byte", text, of=text)
        assert find("bits_per_byte", "labelled", of=text) == own
    assert find("control_gain", of="good").count == 8
    assert {row.of for row in result.results.of("reference")} == {"training data"}


def test_a_language_model_judges_a_run_and_is_paid_once_for_each_sample(
    trained, tmp_path, monkeypatch
) -> None:
    own_cache(tmp_path, monkeypatch)
    run = trained("mle")
    with serve() as server:
        config = CONFIG.model_copy(update={"judges": (spec(server),)})
        first = evaluate_run(run, config, say=quiet)
        num_paid = server.num_paid
        kept = pq.read_table(run.folder / "samples.parquet").to_pydict()
        judge = first.judges[1]
        assert (judge.role, judge.unit) == ("held-out", "share of the scale")
        own = kept[f"score:{judge.slug}"]
        assert load_reward_model(spec(server)).score_texts(kept["text"]) == pytest.approx(own)
        assert len(set(own)) > 2
        (run.folder / "evaluation.json").unlink()
        again = evaluate_run(run, config, say=quiet)
        assert server.num_paid == num_paid
    places = ("score", "none", judge.slug)
    assert first.results.find(*places) == again.results.find(*places)
    assert first.results.find(*places).mean == pytest.approx(np.mean(own))


def test_mle_has_one_mode_and_three_references_and_scores_the_same_text(trained) -> None:
    mle, conditional = evaluate_runs(
        [trained("mle").folder, trained("conditional").folder], CONFIG, say=quiet
    )
    find, annotator = mle.results.find, mle.judges[0].slug
    assert {row.mode for row in mle.results.of("score", "bits_per_byte", "distinct_2")} == {"none"}
    assert not mle.results.of("control_gain", "calibration_error")
    assert find("joint_bits_per_byte") == find("bits_per_byte", "none", of="all"), (
        "it has no labels to pay for"
    )
    joint, given = (
        conditional.results.find(*place, of=of)
        for place, of in ((("joint_bits_per_byte",), None), (("bits_per_byte", "labelled"), "all"))
    )
    assert joint.mean > given.mean + 0.001, "labels are paid for"
    assert mle.threshold == conditional.threshold, "good text must be the same text"
    counts = [result.results.find("bits_per_byte", "none", of="good").count for result in (mle, conditional)]
    assert counts[0] == counts[1] > 0
    assert len(mle.results.of("reference")) == 6
    best = find("reference", judge=annotator, of="best of 16 from MLE")
    assert best.mean < find("score", "none", annotator).mean
    rejection = find("reference", judge=annotator, of="rejection sampling from MLE")
    assert rejection.mean <= mle.threshold
    cost = find("reference_cost", judge=annotator, of="rejection sampling from MLE")
    assert cost.mean == pytest.approx(30 / rejection.count)


def test_what_was_measured_is_used_again_and_repeats_itself(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("mle")
    path = run.folder / "evaluation.json"
    evaluate_run(run, CONFIG, say=quiet)
    first = path.read_bytes()
    evaluate_run(run, CONFIG, say=quiet, force=True)
    assert path.read_bytes() == first, "all randomness is seeded"

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", None)
        patch.setattr(bits_per_byte, "segment_nll", None)
        stamps = [file.stat().st_mtime_ns for file in (path, run.folder / "samples.parquet")]
        evaluate_run(run, CONFIG, say=quiet)
        assert path.read_bytes() == first, "nothing is drawn or read twice"
        assert stamps == [file.stat().st_mtime_ns for file in (path, run.folder / "samples.parquet")]
        larger = CONFIG.sampling.model_copy(update={"batch_size": 7})
        evaluate_run(run, CONFIG.model_copy(update={"sampling": larger}), say=quiet)

    other = CONFIG.model_copy(update={"sampling": CONFIG.sampling.model_copy(update={"seed": 1})})
    again = evaluate_run(run, other, say=quiet)
    assert again.measurements[0].estimate.mean != json.loads(first)["measurements"][0]["estimate"]["mean"]
    for name in ("samples.parquet", "items.parquet"):
        (run.folder / name).write_bytes(b"damaged")
        assert encode(evaluate_run(run, other, say=quiet)) == encode(again)
        assert read_items(run.folder / "items.parquet", again.items_sha256, "again")
    assert pq.read_table(run.folder / "samples.parquet").num_rows == 30


@pytest.mark.parametrize("kind", ["mle", "conditional"])
def test_a_checkpoint_that_was_damaged_since_is_no_reason_to_go_on(trained, kind) -> None:
    run = trained(kind)
    evaluate_run(run, CONFIG, say=quiet)
    path = checkpoint_folder(run.folder, 12) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for given in (CONFIG, CONFIG.model_copy(update={"suite": "full"})):
        with pytest.raises(PHFError, match=r"model\.safetensors is damaged"):
            evaluate_runs([run.folder], given, say=quiet)
        with pytest.raises(PHFError, match=r"model\.safetensors is damaged"):
            evaluate_run(run, given, say=quiet)


@pytest.mark.parametrize("metric", [metric.name for metric in METRICS if not metric.option])
def test_a_damaged_file_stops_every_metric(metric) -> None:
    """Read late, it is not 'not measured': only what the run's data does not admit is left out."""

    def refuse(subject) -> None:
        raise PHFError("model.safetensors is damaged")

    (own,) = (one for one in METRICS if one.name == metric)
    subject = SimpleNamespace(config=CONFIG.model_copy(update={"suite": "full"}), progress=None)
    with pytest.raises(PHFError, match="damaged"):
        measure_all(subject, [replace(own, compute=refuse)])

    def decline(subject) -> None:
        raise NotApplicableError("no bad segment")

    assert measure_all(subject, [replace(own, compute=decline)]) == ({}, {metric: "no bad segment"})


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
    assert len(evaluate_run(run, more, say=quiet).judges) == 3
    assert len(drawn) == 6, "another judge scores the same samples"


def test_deleting_the_control_tokens_gives_the_untagged_mode(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("conditional")
    full = CONFIG.model_copy(update={"suite": "full"})
    result = evaluate_run(run, full, say=quiet)
    found = result.results
    assert list(dict.fromkeys(row.mode for row in found.of("score"))) == [
        "good",
        "bad",
        "none",
        "untagged",
        "deleted",
    ]
    deleted, untagged = (describe(result, mode) for mode in ("deleted", "untagged"))
    assert len(deleted) > 15
    assert deleted == untagged
    none, untagged = (found.find("bits_per_byte", mode, of="all") for mode in ("none", "untagged"))
    assert none == untagged
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
    damaged = evaluate_run(run, full, force=True, say=quiet).results
    assert damaged.find("bits_per_byte", "deleted", of="all").mean > untagged.mean + 0.1
    repetition, other = (damaged.find("distinct_1", mode) for mode in ("deleted", "untagged"))
    assert to_json(repetition) != to_json(other), "both are measured on the model without them"


def describe(result: Evaluation, mode: str):
    """All that is said of a mode's samples and of text in it."""
    measures = [measure.name for metric in METRICS[3:7] for measure in metric.measures] + [
        "score",
        "hit_rate",
    ]
    rows = [row for row in result.results.of(*measures) if row.mode == mode]
    return [(row.measure, row.judge, row.of, to_json(row.estimate)) for row in rows]


def list_steps(result: Evaluation) -> list[float]:
    return list(dict.fromkeys(row.at for row in result.results.of("trajectory")))


def test_the_full_suite_measures_earlier_checkpoints_as_the_last(trained) -> None:
    run = trained("mle", "keep_checkpoints=3", "checkpoint_every=4")
    full = CONFIG.model_copy(update={"suite": "full"})
    result = evaluate_run(run, full, say=quiet)
    assert list_steps(result) == [4, 8, 12]
    for judge in result.judges:
        last = to_json(result.results.find("score", "none", judge.slug))
        assert to_json(result.results.find("trajectory", "none", judge.slug, at=12)) == last
    slug = result.judges[0].slug
    alone = evaluate_run(run, CONFIG, step=4, say=quiet).results.find("score", "none", slug)
    assert alone == result.results.find("trajectory", "none", slug, at=4)
    assert alone.mean != result.results.find("score", "none", slug).mean
    few = full.model_copy(update={"trajectory_checkpoints": 2})
    assert list_steps(evaluate_run(run, few, say=quiet)) == [4, 12]


def test_a_smaller_evaluation_does_not_replace_a_larger_one_unsaid(trained) -> None:
    run, said = trained("mle"), []
    evaluate_run(run, CONFIG.model_copy(update={"judges": ("pii", "pep8")}), say=quiet)
    before = (run.folder / "evaluation.json").read_bytes()
    fewer = CONFIG.model_copy(update={"sampling": CONFIG.sampling.model_copy(update={"num_samples": 20})})
    with pytest.raises(PHFError, match=r"30 samples per mode, and this one would replace it by 20.*--force"):
        evaluate_run(run, fewer, say=quiet)
    assert (run.folder / "evaluation.json").read_bytes() == before
    evaluate_run(run, CONFIG, say=said.append)
    (line,) = said
    assert "no longer in its evaluation: judge pep8" in line
    command = shlex.split(line.partition("'phf ")[2].rpartition("'")[0])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (run.folder / "evaluation.json").read_bytes() == before
    evaluate_run(run, fewer, say=quiet, force=True)
    assert (
        json.loads((run.folder / "evaluation.json").read_bytes())["config"]["sampling"]["num_samples"] == 20
    )


def test_all_runs_and_judges_are_looked_at_before_any_sampling(trained, tmp_path: Path) -> None:
    run = trained("mle")
    (run.folder / "evaluation.json").unlink(missing_ok=True)
    for runs, judges, match in (
        ([run.folder, tmp_path / "nope"], (), "nope is not a run"),
        ([run.folder], ("toxicty",), "toxicty"),
    ):
        with pytest.raises(PHFError, match=match):
            evaluate_runs(runs, CONFIG.model_copy(update={"judges": judges}), say=quiet)
        assert not (run.folder / "evaluation").exists()


def test_a_crash_leaves_no_evaluation_of_other_samples(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("mle")
    evaluate_run(run, CONFIG, say=quiet)
    monkeypatch.setattr(degeneracy, "measure_degeneracy", None)
    before = (run.folder / "evaluation.json").read_bytes()
    with pytest.raises(TypeError):
        evaluate_run(run, CONFIG, say=quiet, force=True)
    assert (run.folder / "evaluation.json").read_bytes() == before, (
        "what was there stays until there is another"
    )
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "write_evaluation", None)
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
    assert [judge.role for judge in result.judges] == ["held-out", "held-out"]
    assert "no judge is the annotator" in said[0]
    assert result.notes[0] in said[0]
    assert {row.of for row in result.results.of("reference")} == {"training data"}


def test_sampling_a_run_for_people(trained) -> None:
    run = trained("conditional")
    samples = sample_run(run.folder, "good", SamplingConfig(num_samples=2, max_new_tokens=20))
    assert [sample.index for sample in samples] == [0, 1]
    assert all("<|" not in sample.text for sample in samples)


def test_good_minus_bad_turns_bad_minus_good_around() -> None:
    assert negate(Estimate(0.25, 0.125, 0.5, 7)) == Estimate(-0.25, -0.5, -0.125, 7)
    unknown = negate(Estimate(np.nan, np.nan, np.nan, 0))
    assert np.isnan([unknown.mean, unknown.low, unknown.high]).all()
