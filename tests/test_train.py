"""Training on a small real corpus: learns, resumes bit for bit, fails closed."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from compare_runs import quiet, train, weights, without_speed
from transformers import GPT2Config, GPT2LMHeadModel

from phf.annotate.annotate import annotate
from phf.config.train import SamplingConfig
from phf.corpus.store import build_corpus
from phf.errors import PHFError
from phf.evaluate.rollouts import sample_run
from phf.model import lm
from phf.objectives import token_loss
from phf.records import PAD, TEXT
from phf.tokens.blocks import Blocks
from phf.tokens.tokens import TokenCache, tokenize
from phf.train import loop, losses
from phf.train.checkpoint import checkpoint_folder, list_checkpoints
from phf.train.data import open_data
from phf.train.losses import validate
from phf.train.optim import Muon, make_optimizers, orthogonalise
from phf.train.run import Run

KINDS = {
    "mle": [],
    "filtering": ["objective.keep_fraction=0.5"],
    "conditional": ["objective.good_fraction=0.5"],
    "unlikelihood": ["objective.good_fraction=0.5"],
    "rwr": [],
    "awr": [],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_learns(kind, small_config, tmp_path):
    config = small_config(f"objective.kind={kind}", *KINDS[kind], "tokens=10240", "checkpoint_every=0")
    run = train(config, tmp_path / kind)
    validation = [line["nll_all"] for line in run.read_metrics() if line["kind"] == "validation"]
    assert validation[-1] < validation[0] - 0.5
    assert run.is_finished
    assert run.record["reward_model"]["name"] == "toxicity-svm"
    assert (run.record["objective_threshold"] is None) == (kind in ("mle", "rwr", "awr"))
    assert (checkpoint_folder(run.folder, run.num_steps) / "value_head.safetensors").exists() == (
        kind == "awr"
    )


@pytest.mark.parametrize("kind", ["conditional", "awr"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    kind, optimizer, small_config, tmp_path
):
    config = small_config(f"objective.kind={kind}", *KINDS[kind], f"optim.name={optimizer}")
    whole = train(config, tmp_path / "whole")
    stopped = tmp_path / "stopped"

    def stop(description, done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, stopped, say=quiet, progress=stop)
    assert list_checkpoints(stopped) == [4]
    assert not Run.open(stopped).is_finished
    resumed = loop.resume(stopped, say=quiet)
    for name, tensor in weights(whole, 12).items():
        assert torch.equal(tensor, weights(resumed, 12)[name]), name
    assert without_speed(resumed) == without_speed(whole)


@pytest.mark.parametrize(("overrides", "count"), [([], 2), (["objective.start=0.5"], 3)])
def test_each_split_is_laid_out_once(overrides, count, small_config, tmp_path, monkeypatch):
    splits = []

    def lay_out(*args, split, **options):
        splits.append(split)
        return Blocks(*args, split=split, **options)

    monkeypatch.setattr("phf.train.data.Blocks", lay_out)
    train(small_config(*overrides, "tokens=512"), tmp_path / "run")
    assert sorted(splits) == ["train"] * (count - 1) + ["validation"]


def test_micro_batches_do_not_change_the_loss(small_config, tmp_path):
    one = train(small_config(), tmp_path / "one")
    four = train(small_config("optim.micro_batch_blocks=1"), tmp_path / "four")
    losses = [[line["loss"] for line in run.read_metrics() if line["kind"] == "train"] for run in (one, four)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


def test_the_loss_is_the_mean_over_the_targets_of_the_whole_batch(small_config, tmp_path):
    config = small_config("objective.kind=mle", "optim.micro_batch_blocks=3", "optim.batch_blocks=5")
    first = train(config, tmp_path / "run").read_metrics()[1]
    data = open_data(config)
    model, _ = loop.create_model_and_head(data)
    batch = data.training_blocks().batch(0, 5)
    with torch.no_grad():
        arrays = (torch.from_numpy(a) for a in (batch.ids, batch.targets, batch.positions))
        nll = lm.token_nll(model, *arrays).numpy()
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(nll[batch.kinds != PAD].mean(), rel=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(small_config, tmp_path):
    first, second = train(small_config(), tmp_path / "a"), train(small_config(), tmp_path / "b")
    other = train(small_config("seed=1"), tmp_path / "c")
    assert without_speed(first) == without_speed(second)
    assert without_speed(first) != without_speed(other)


def break_loss(monkeypatch, bad_calls):
    calls = []

    def broken(*arguments):
        calls.append(1)
        loss = token_loss(*arguments)
        return loss * float("nan") if len(calls) in bad_calls else loss

    monkeypatch.setattr(losses, "token_loss", broken)


def test_a_step_that_is_not_finite_is_skipped_and_counted(small_config, tmp_path, monkeypatch):
    break_loss(monkeypatch, {3, 4})
    run = train(small_config("checkpoint_every=1", "keep_checkpoints=20"), tmp_path / "run")
    for name, tensor in weights(run, 2).items():
        assert torch.equal(tensor, weights(run, 4)[name]), "skipped steps change no weight"
        assert torch.isfinite(weights(run, 12)[name]).all()
    assert run.read_metrics()[-2]["skipped"] == 2
    nan_lines = [line for line in run.read_metrics() if line["kind"] == "train" and line["loss"] is None]
    assert [line["step"] for line in nan_lines] == [3, 4]


def test_five_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(small_config, tmp_path, monkeypatch):
    break_loss(monkeypatch, set(range(6, 100)))
    with pytest.raises(
        PHFError, match=r"step 10: .*5 times in a row.*last good checkpoint is step 8.*learning_rate"
    ):
        train(small_config(), tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in weights(Run.open(tmp_path / "run"), 8).values())


def test_checkpoints_keep_the_last_and_a_damaged_one_is_refused_by_name(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    assert run.steps == [8, 12]
    path = checkpoint_folder(run.folder, 12) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PHFError, match=r"step-000012/model.safetensors is damaged.*go on from step 8"):
        run.load_model()
    assert run.load_model(8) is not None
    shutil.rmtree(checkpoint_folder(run.folder, 12))
    assert loop.resume(run.folder, say=quiet).is_finished


def test_a_half_written_checkpoint_does_not_count(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    (checkpoint_folder(run.folder, 12) / "checkpoint.json").unlink()
    assert run.steps == [8]
    assert not run.is_finished


def test_a_run_folder_is_never_overwritten(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(PHFError, match="was trained with other settings; choose another -o"):
        train(small_config("seed=1"), tmp_path / "run")
    assert train(small_config(), tmp_path / "run").is_finished  # what is finished is left as it is
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(PHFError, match="not empty"):
        train(small_config(), tmp_path / "full")


def test_resuming_on_other_data_is_refused(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    shutil.rmtree(checkpoint_folder(run.folder, 12))
    run.record["reward_model"]["version"] = "0"
    run.write()
    with pytest.raises(PHFError, match="trained on another reward_model"):
        loop.resume(run.folder, say=quiet)


def test_the_next_command_is_named_when_data_is_missing(small_config):
    with pytest.raises(PHFError, match=r"phf annotate .* --reward-model pep8 --segments document"):
        open_data(small_config("reward_model=pep8"))
    with pytest.raises(PHFError, match=r"phf tokenize .* --tokenizer train:999"):
        open_data(small_config("tokenizer=train:999"))


def test_a_new_threshold_or_objective_scores_and_tokenizes_nothing(small_config, small_corpus):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in small_corpus.path.rglob("*") if path.is_file()}

    before = stamps()
    for kind, overrides in KINDS.items():
        data = open_data(small_config(f"objective.kind={kind}", *overrides))
        data.training_blocks().batch(0, 4)
    data = open_data(small_config("objective.threshold=0.05"))
    assert data.annotation.num_scored_now == 0
    assert stamps() == before


def test_what_the_objective_keeps_is_said(small_config):
    lines = " ".join(
        open_data(small_config("objective.kind=filtering", "objective.keep_fraction=0.25")).describe()
    )
    assert re.search(r"the best 2\d\.?\d* % make \d+\.\d epochs of \d+\.\dk tokens", lines), lines


def test_validation_losses_are_those_of_good_and_bad_text(small_config):
    # Worked out again, token by token, from the blocks and the model's own logits.
    data = open_data(small_config())
    model, _ = loop.create_model_and_head(data)
    found = validate(model, data, data.validation_blocks, "fp32")
    expected = {"nll_good": [], "nll_bad": [], "nll_all": []}
    with torch.no_grad():
        for batch in data.validation_blocks.iterate_in_order(8, 4):
            ids, positions = torch.from_numpy(batch.ids), torch.from_numpy(batch.positions)
            logs = model(input_ids=ids, position_ids=positions, use_cache=False).logits.log_softmax(-1)
            for row, column in zip(*np.nonzero(batch.kinds == TEXT), strict=True):
                nll = -float(logs[row, column, batch.targets[row, column]])
                expected["nll_all"].append(nll)
                good = batch.scores[row, column] <= np.float32(data.threshold.value)
                expected["nll_good" if good else "nll_bad"].append(nll)
    assert len(expected["nll_good"]) > 50
    assert len(expected["nll_bad"]) > 50
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), rel=1e-5), name
    assert abs(found["nll_good"] - found["nll_bad"]) > 1e-3, "so that swapping them would be seen"


def test_a_score_at_the_threshold_is_good_in_validation(small_config):
    data = open_data(small_config())
    worst = max(float(np.nanmax(batch.scores)) for batch in data.validation_blocks.iterate_in_order(8, 4))
    everything = dataclasses.replace(data, threshold=dataclasses.replace(data.threshold, value=worst))
    model, _ = loop.create_model_and_head(data)
    found = validate(model, everything, everything.validation_blocks, "fp32")
    assert found["nll_bad"] is None
    assert found["nll_good"] == found["nll_all"]


def test_documents_are_isolated_as_the_config_says(small_config):
    isolated = open_data(small_config()).training_blocks().batch(0, 4)
    assert (isolated.positions[:, 1:][isolated.ids[:, 1:] == 509] == 0).all()
    assert (isolated.ids[:, 1:] == 509).any()
    running = open_data(small_config("data.isolate_documents=false")).training_blocks().batch(0, 4)
    assert (running.positions == np.arange(64)).all()


@pytest.mark.parametrize("kind", ["rwr", "awr"])
def test_the_effective_sample_share_is_logged(kind, small_config, tmp_path):
    run = train(small_config(f"objective.kind={kind}"), tmp_path / kind)
    shares = [line["effective_sample_share"] for line in run.read_metrics() if line["kind"] == "train"]
    assert all(0 < share < 0.999 for share in shares)


def test_bf16_trains_and_resumes_bit_for_bit(small_config, tmp_path):
    whole = train(small_config("precision=bf16"), tmp_path / "whole")
    stopped = train(small_config("precision=bf16"), tmp_path / "stopped")
    shutil.rmtree(checkpoint_folder(stopped.folder, 12))
    resumed = loop.resume(stopped.folder, say=quiet)
    assert resumed.record["precision"] == "bf16"
    assert all(torch.equal(tensor, weights(resumed, 12)[name]) for name, tensor in weights(whole, 12).items())


def test_dropout_does_not_break_resuming(small_config, tmp_path):
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.2)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")
    config = small_config(f"model.init={tmp_path / 'gpt2'}")
    whole, stopped = train(config, tmp_path / "whole"), train(config, tmp_path / "stopped")
    shutil.rmtree(checkpoint_folder(stopped.folder, 12))
    resumed = loop.resume(stopped.folder, say=quiet)
    assert all(torch.equal(tensor, weights(resumed, 12)[name]) for name, tensor in weights(whole, 12).items())


def test_a_context_longer_than_the_model_reads_is_refused_before_anything_is_written(small_config, tmp_path):
    GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(PHFError, match=r"data.context=64 is longer than .*gpt2 can read \(32\)"):
        train(small_config(f"model.init={tmp_path / 'gpt2'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_learned_control_tokens_survive_being_trained_further(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    before = weights(run, 12)["model.embed_tokens.weight"]
    again = small_config(f"model.init={checkpoint_folder(run.folder, 12)}")
    model, _ = loop.create_model_and_head(open_data(again))
    assert torch.equal(model.get_input_embeddings().weight[510:512], before[510:512])


def test_muon_gets_hidden_matrices_alone(small_config):
    data = open_data(small_config("objective.kind=awr", "optim.name=muon"))
    model, head = loop.create_model_and_head(data)
    muon, adamw = make_optimizers(model, head, data.config.optim)
    names = {id(parameter): name for name, parameter in [*model.named_parameters(), *head.named_parameters()]}
    with_muon = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert with_muon
    assert all("layers." in name and name.endswith("proj.weight") for name in with_muon)
    rest = {names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]}
    assert with_muon | rest == set(names.values())
    assert not with_muon & rest


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_muon_in_float32_takes_torchs_steps_up_to_the_rounding_of_bf16(shape):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(start.clone()) for start in [torch.randn(shape)] * 2]
    exact, rounded = (
        Muon([weight], is_bf16=is_bf16, lr=0.03, weight_decay=0.1, momentum=0.95)
        for weight, is_bf16 in zip(weights, (False, True), strict=True)
    )
    for _ in range(3):
        before, gradient = weights[0].detach().clone(), torch.randn(shape)
        for weight, optimizer in zip(weights, (exact, rounded), strict=True):
            weight.data, weight.grad = before.clone(), gradient
            optimizer.step()
        steps = [weight.detach() - before * (1 - 0.03 * 0.1) for weight in weights]
        assert (steps[0] - steps[1]).norm() < 0.03 * steps[1].norm()
        moments = [
            optimizer.state[weight]["momentum_buffer"]
            for weight, optimizer in zip(weights, (exact, rounded), strict=True)
        ]
        assert torch.equal(*moments)
    singular = torch.linalg.svdvals(orthogonalise(gradient.double(), exact.param_groups[0]))
    assert 0.5 < singular.min() <= singular.max() < 1.5


def test_a_corpus_without_validation_documents_is_refused_before_anything_is_written(small_config, tmp_path):
    corpus = build_corpus(
        ["fortunes:offensive"], tmp_path / "corpus", validation_fraction=0.0, max_documents=100
    )
    annotate(corpus, "toxicity-svm", "document", workers=1)
    tokenize(corpus, "train:512", "document", workers=1)
    with pytest.raises(PHFError, match="validation"):
        train(small_config(f"corpus={corpus.path}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tokens_with_other_segment_ends_are_refused(small_config, monkeypatch):
    monkeypatch.setattr(TokenCache, "segment_ends_hash", "other")
    with pytest.raises(PHFError, match="do not have the same segment ends"):
        open_data(small_config())


def test_an_edited_checkpoint_state_is_refused(small_config, tmp_path):
    run = train(small_config(), tmp_path / "run")
    path = checkpoint_folder(run.folder, 12) / "checkpoint.json"
    path.write_text(path.read_text().replace('"step": 12', '"step": 11'))
    with pytest.raises(PHFError, match=r"checkpoint.json is damaged.*go on from step 8"):
        run.load_model()


def test_sampling_in_a_mode_that_was_not_learned_is_refused(small_config, tmp_path):
    run = train(small_config("objective.kind=mle"), tmp_path / "mle")
    with pytest.raises(PHFError, match=r"trained with mle, which has no good mode; give --mode none"):
        sample_run(run.folder, "good", SamplingConfig(num_samples=1))


def test_conditional_with_every_token_dropped_is_mle(small_config):
    dropped = open_data(small_config("objective.drop_fraction=1.0"))
    plain = open_data(small_config("objective.kind=mle"))
    for name in ("ids", "targets", "positions", "kinds"):
        left = getattr(dropped.training_blocks().batch(0, 4), name)
        assert np.array_equal(left, getattr(plain.training_blocks().batch(0, 4), name))
