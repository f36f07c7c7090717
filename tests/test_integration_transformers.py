"""transformers' `Trainer` with our loss takes the steps that `phf train` takes."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from phf.config.objectives import built_in_kinds
from phf.errors import PHFError
from phf.integrations.columns import IGNORED, make_columns
from phf.integrations.loss import TokenLoss
from phf.integrations.transformers import (
    BlockDataset,
    TrainerObjective,
    WithObjective,
    _pack,
    _unpack,
    make_optimizer,
    training_arguments,
)
from phf.train.data import open_data
from phf.train.loop import create_model, train

STEPS = 20
OBJECTIVES = {
    "mle": [],
    "filtering": ["objective.keep_fraction=0.5"],
    "removal": ["objective.good_fraction=0.5"],
    "masking": ["objective.good_fraction=0.5"],
    "conditional": ["objective.good_fraction=0.5"],
    "quantile": ["objective.levels=4"],
    "additive": ["objective.good_fraction=0.5"],
    "scalar": [],
    "tagging": ["objective.good_fraction=0.5"],
    "unlikelihood": ["objective.good_fraction=0.5"],
    "rwr": ["objective.start=0.3", "objective.stop=0.8"],  # MLE before and after
    "awr": [],
}


def config_of(small_config, kind, *more):
    budget = f"tokens={STEPS * 4 * 64}"
    return small_config(f"objective.kind={kind}", *OBJECTIVES[kind], budget, "compile=off", *more)


def train_by_trainer(data, folder, trainer_class=Trainer, **arguments):
    """The losses of a run of `Trainer` with the optimizer and the schedule of `phf train`."""
    config = data.config
    own = TrainerObjective.of(data)
    model = own.prepare(create_model(data))
    settings = {**training_arguments(config), "logging_steps": 1, "report_to": "none", "use_cpu": True}
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(str(folder), **{**settings, "disable_tqdm": True, **arguments}),
        train_dataset=BlockDataset(data),
        data_collator=own.collate,
        compute_loss_func=own.compute_loss,
        optimizers=make_optimizer(model, config),
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer


def test_every_objective_is_tried():
    assert set(OBJECTIVES) == set(built_in_kinds())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_run_of_trainer_equals_phf_train(kind, small_config, tmp_path):
    config = config_of(small_config, kind)
    run = train(config, tmp_path / "run", say=lambda _: None)
    ours = [line["loss"] for line in run.read_metrics() if line["kind"] == "train"]
    theirs, _ = train_by_trainer(open_data(config), tmp_path / "trainer")
    assert len(ours) == STEPS
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"dataloader_num_workers": 1},
        {"activation_checkpointing": True},
    ],
    ids=str,
)
def test_how_trainer_divides_the_work_does_not_change_the_loss(arguments, small_config, tmp_path):
    data = open_data(config_of(small_config, "awr"))
    whole, _ = train_by_trainer(data, tmp_path / "whole", max_steps=6)
    parts, _ = train_by_trainer(data, tmp_path / "parts", max_steps=6, **arguments)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_trls_trainer_takes_the_same_steps(small_config, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Own(WithObjective, SFTTrainer):
        pass

    config = config_of(small_config, "unlikelihood")
    data = open_data(config)
    expected, _ = train_by_trainer(data, tmp_path / "trainer", max_steps=4)
    own = TrainerObjective.of(data)
    model = own.prepare(create_model(data))
    settings = {**training_arguments(config), "max_steps": 4, "logging_steps": 1, "report_to": "none"}
    trainer = Own(
        objective=own,
        model=model,
        args=SFTConfig(
            str(tmp_path / "sft"),
            **settings,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            activation_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(BlockDataset(data).__getitems__(range(16))),
        processing_class=AutoTokenizer.from_pretrained(data.tokens.path / "tokenizer"),
        optimizers=make_optimizer(model, config),
    )
    trainer.train()
    found = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_ddp_can_take_the_output_of_a_value_head_apart(small_config):
    data = open_data(config_of(small_config, "awr"))
    own = TrainerObjective.of(data)
    batch = own.collate([BlockDataset(data)[0]])
    labels = batch.pop("labels")
    outputs = own.prepare(create_model(data))(**batch, use_cache=False)
    assert (labels != IGNORED).sum() == data.config.data.context, "counted with its first column or without"
    remade = torch.utils._pytree.tree_map(lambda leaf: leaf, outputs)
    assert torch.equal(own.compute_loss(remade, labels), own.compute_loss(outputs, labels))


def test_what_trainer_evaluates_and_saves(small_config, tmp_path):
    data = open_data(config_of(small_config, "awr"))
    _, trainer = train_by_trainer(data, tmp_path / "out", max_steps=2)
    first = BlockDataset(data)[0]
    expected = trainer.evaluate([first])["eval_loss"]
    assert np.isfinite(expected)
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.lm_head.weight, trainer.model.lm_head.weight)


def test_a_label_holds_its_target_kind_and_score_and_padding_is_ignored(small_config):
    data = open_data(config_of(small_config, "conditional"))
    blocks = data.training_blocks()
    batch = blocks.rows(np.arange(3000))
    columns = {name: torch.from_numpy(column) for name, column in make_columns(batch).items()}
    packed = _pack(columns["targets"].long(), columns["scores"], columns["kinds"], columns["is_active"])
    is_learned = torch.from_numpy(batch.kinds != 0)
    assert torch.equal(packed != IGNORED, is_learned)
    assert not is_learned.all(), "the corpus has an epoch that ends in padding"
    targets, scores, kinds, is_active = _unpack(packed)
    assert torch.equal(targets[is_learned], torch.from_numpy(batch.targets)[is_learned])
    assert torch.equal(kinds, torch.from_numpy(batch.kinds))
    np.testing.assert_array_equal(scores[is_learned], batch.scores[batch.kinds != 0])
    assert is_active.all()


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_loss_is_the_same_from_its_record(kind, small_config):
    data = open_data(config_of(small_config, kind))
    own = TokenLoss.of(data)
    read = TokenLoss.from_json(json.loads(json.dumps(own.to_json())))
    batch = data.training_blocks().rows(np.arange(8))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*batch.ids.shape, 520, generator=generator)
    nll = own.nll(logits, torch.from_numpy(batch.targets))
    values = torch.randn(nll.shape, generator=generator) if own.objective.has_value_head else None
    given = [torch.from_numpy(own) for own in (batch.scores, batch.kinds)]
    assert torch.equal(read(nll, *given, values=values), own(nll, *given, values=values))
    assert read.control == own.control
    labels = torch.from_numpy(batch.labels)
    ours, theirs = own.conditions(*given, labels), read.conditions(*given, labels)
    assert (ours is None) == (theirs is None)
    assert ours is None or torch.equal(ours, theirs)


def test_what_would_train_another_loss_is_one_line(small_config, tmp_path):
    data = open_data(config_of(small_config, "awr"))
    own, rows = TrainerObjective.of(data), BlockDataset(data).__getitems__([0, 1])
    batch = own.collate(rows)
    labels = batch.pop("labels")
    model = create_model(data)
    with pytest.raises(PHFError, match="no value head; give Trainer what prepare"):
        own.compute_loss(model(**batch, use_cache=False), labels)
    with pytest.raises(PHFError, match="keeps a cache"):
        own.compute_loss(model(**batch, use_cache=True), labels)
    with pytest.raises(PHFError, match=r"no column 'targets'.*remove_unused_columns=False"):
        own.collate([{name: row[name] for name in ("input_ids", "position_ids")} for row in rows])
    model.resize_token_embeddings(508, mean_resizing=False)
    with pytest.raises(PHFError, match="the model has 508 embeddings, and control tokens are ids"):
        own.prepare(model)
    with pytest.raises(PHFError, match=r"optim.name=muon is not one optimizer"):
        make_optimizer(model, config_of(small_config, "awr", "optim.name=muon"))
