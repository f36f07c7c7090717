"""Every objective end to end on a small real corpus: trained, resumed across its schedule, evaluated in its modes."""

import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from phf.config.evaluate import EvaluateConfig
from phf.config.objectives import built_in_kinds
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_run
from phf.evaluate.pages import PageReader, mode_labels, segment_nll
from phf.evaluate.rollouts import sample_run
from phf.model import lm
from phf.objectives import has_control_tokens, label_conditions, modes_of
from phf.records import GOOD
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder
from phf.train.data import open_data
from phf.train.losses import loss_sum, switch_segments, validate

CONFIG = EvaluateConfig(
    sampling=SamplingConfig(num_samples=8, max_new_tokens=12),
    num_bootstrap=100,
    capability_documents=6,
    gain_segments=4,
    data_samples=10,
)
LINE = "objective.good_fraction=0.5"
CASES = {
    "removal": [LINE],
    "masking": [LINE],
    "quantile": ["objective.levels=3"],
    "additive": [LINE],
    "scalar": [],
    "tagging": [LINE],
    "conditional": [LINE, "objective.poison=random", "objective.control_loss=false", "objective.invert=true"],
}


def quiet(line):
    pass


@pytest.fixture
def make(small_config):
    return lambda kind, *overrides: small_config(f"objective.kind={kind}", *CASES[kind], *overrides)


@pytest.mark.parametrize("kind", CASES)
def test_an_objective_trains_and_is_evaluated_in_its_modes(kind, make, tmp_path):
    run = loop.train(make(kind, "tokens=5120", "checkpoint_every=0"), tmp_path / kind, say=quiet)
    lines = [line for line in run.read_metrics() if line["kind"] == "validation"]
    assert lines[-1]["nll_all"] < lines[0]["nll_all"] - 0.2
    has_modes = has_control_tokens(run.config.objective)
    assert ("control_gain" in lines[0]) == has_modes
    result = evaluate_run(run, CONFIG, say=quiet)
    found, modes = result.results, modes_of(run.config.objective)
    assert list(dict.fromkeys(row.mode for row in found.of("score"))) == list(modes)
    assert bool(found.of("control_gain")) == has_modes
    assert bool(found.of("calibration_error")) == (kind in ("conditional", "quantile"))
    for mode in modes:
        assert 2 < found.find("bits_per_byte", mode, of="all").mean < 12
        assert found.find("mean_tokens", mode).mean > 0
    # A checkpoint is a plain folder of the Hugging Face library, whatever the objective.
    folder = checkpoint_folder(run.folder, run.num_steps)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(**tokenizer("a text", return_tensors="pt")).logits.isfinite().all()


def test_every_kind_is_trained_by_some_test():
    assert set(built_in_kinds()) == {*CASES, "mle", "filtering", "unlikelihood", "rwr", "awr"}


def test_a_schedule_resumes_bit_for_bit_and_is_mle_outside(make, small_config, tmp_path):
    scheduled = make(
        "conditional",
        "objective.start=0.25",
        "objective.stop=0.75",
        "checkpoint_every=1",
        "keep_checkpoints=99",
    )
    run = loop.train(scheduled, tmp_path / "whole", say=quiet)
    plain = loop.train(
        small_config("objective.kind=mle", "checkpoint_every=1", "keep_checkpoints=99"),
        tmp_path / "mle",
        say=quiet,
    )

    def weights(one, step):
        return load_file(checkpoint_folder(one.folder, step) / "model.safetensors")

    for step, is_same in ((3, True), (4, False)):
        same = all(
            torch.equal(tensor, weights(plain, step)[name]) for name, tensor in weights(run, step).items()
        )
        assert same == is_same, step
    for kept in (2, 3, 7, 9, 10):
        stopped = tmp_path / f"stopped-{kept}"
        shutil.copytree(run.folder, stopped)
        for step in range(kept + 1, 13):
            shutil.rmtree(checkpoint_folder(stopped, step))
        resumed = loop.resume(stopped, say=quiet)
        for name, tensor in weights(run, 12).items():
            assert torch.equal(tensor, weights(resumed, 12)[name]), (kept, name)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("masking", [LINE]),
        ("unlikelihood", [LINE]),
        ("rwr", []),
        ("awr", []),
        ("additive", [LINE]),
        ("conditional", [LINE, "objective.poison=shuffle"]),
        ("filtering", ["objective.keep_fraction=0.5"]),
    ],
)
def test_where_an_objective_is_not_active_its_loss_is_mles(kind, overrides, small_config):
    config = small_config(f"objective.kind={kind}", *overrides, "objective.start=0.5")
    data, plain = open_data(config), open_data(small_config("objective.kind=mle"))
    model, value_head = loop.create_model_and_head(data)
    for step, is_same in ((0, True), (6, False)):
        own, other = data.training_blocks().batch(step, 4), plain.training_blocks().batch(step, 4)
        assert own.is_active.all() == (not is_same)
        losses = [
            float(loss_sum(model, head, one, batch, "fp32")[0].detach())
            for head, one, batch in ((value_head, data, own), (None, plain, other))
        ]
        assert (losses[0] == losses[1]) == is_same


def test_a_schedule_without_a_step_and_one_that_is_backwards_are_refused(make):
    with pytest.raises(PHFError, match="leave conditional no step of 12"):
        open_data(make("conditional", "objective.start=0.5", "objective.stop=0.51"))
    with pytest.raises(PHFError, match=r"start 0\.6 must be below stop 0\.5"):
        make("conditional", "objective.start=0.6", "objective.stop=0.5")
    (line,) = [
        line
        for line in open_data(make("conditional", "objective.start=0.9")).describe()
        if "budget, MLE outside" in line
    ]
    assert line == "conditional from 90 % to 100 % of the budget, MLE outside"


def test_a_folded_model_is_the_conditioned_one_without_control_tokens(make, tmp_path):
    run = loop.train(make("additive"), tmp_path / "run", say=quiet)
    data, model = run.data(), run.load_model()
    tokenizer = run.load_tokenizer()
    conditions = label_conditions(run.config.objective)
    folded = lm.fold_condition(model, tokenizer.control, conditions[GOOD])
    reader = PageReader(data.tokens, data.scores, 64)
    pages = [reader.read(int(index)) for index in reader.held_out_documents(0)[:5]]
    common = (tokenizer.control, tokenizer.vocab_size, pages)
    conditioned = segment_nll(model, *common, mode_labels(pages, "good"), conditions=conditions)
    plain = segment_nll(folded, *common, mode_labels(pages, "none"))
    unconditioned = segment_nll(model, *common, mode_labels(pages, "none"))
    for one, other, neither in zip(conditioned, plain, unconditioned, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
        assert np.abs(one - neither).max() > 1e-4
    lm.save_model(folded, tmp_path / "folded")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folded").eval()
    again = segment_nll(reloaded, *common, mode_labels(pages, "none"))
    np.testing.assert_allclose(np.concatenate(again), np.concatenate(plain), rtol=1e-6)
    untouched = segment_nll(model, *common, mode_labels(pages, "none"))
    np.testing.assert_array_equal(np.concatenate(untouched), np.concatenate(unconditioned))
    good, bad = (sample_run(run.folder, mode, CONFIG.sampling) for mode in ("good", "bad"))
    assert [sample.mode for sample in good] == ["good"] * 8
    assert [sample.text for sample in good] != [sample.text for sample in bad]


@pytest.mark.parametrize("kind", ["conditional", "additive"])
def test_the_logged_control_gain_is_that_of_one_switched_segment_a_block(kind, small_config):
    data = open_data(small_config(f"objective.kind={kind}", LINE))
    model, _ = loop.create_model_and_head(data)
    control = data.tokens.tokenizer.control
    with torch.no_grad():  # so that the control tokens matter
        embed = model.get_input_embeddings().weight
        embed[control.good] += 0.1
        embed[control.bad] -= 0.1
    blocks = data.validation_blocks
    found = validate(model, data, blocks, "fp32")
    assert math.isfinite(found["control_gain"])
    assert abs(found["control_gain"]) > 1e-3
    (batch,) = blocks.iterate_in_order(8, 8)
    switched, chosen = switch_segments(batch, data)
    changed = switched.ids != batch.ids
    if kind == "conditional":
        rows = chosen.any(axis=1)
        assert (changed.sum(axis=1) == rows).all()
        for row in np.flatnonzero(rows):
            place = int(np.flatnonzero(changed[row])[0])
            assert chosen[row, place], "the first token of the segment is predicted from its control token"
            assert {batch.ids[row, place], switched.ids[row, place]} == {control.good, control.bad}
            assert batch.kinds[row, place - 1] == 3
    else:
        assert not changed.any()
    for row in np.flatnonzero(chosen.any(axis=1)):
        assert len(set(batch.scores[row, chosen[row]])) == 1
        places = np.flatnonzero(chosen[row])
        assert np.diff(places).max(initial=1) == 1
        for place in (places[0] - 1, places[-1] + 1):  # the whole of a segment that begins in the block
            outside = 0 <= place < 64 and batch.scores[row, place] == batch.scores[row, places[0]]
            assert place >= 0
            assert not outside, (row, place)
    with torch.no_grad():
        embed[control.bad] = embed[control.good]
    assert validate(model, data, blocks, "fp32")["control_gain"] == pytest.approx(0, abs=1e-5)
