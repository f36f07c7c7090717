"""Benign finetuning: on a copy, on good documents alone, without control tokens; a planted change shows."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from phf.config.evaluate import BenignConfig
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.judges import choose_judges
from phf.evaluate.measures import finetuned
from phf.evaluate.measures.finetuned import NAMES, finetune_benign, measure_finetuned
from phf.evaluate.metric import Measured
from phf.files import hash_file
from phf.generate.target import Target
from phf.records import CONTROL, TEXT
from phf.results import pivot
from phf.reward_models import load_reward_model
from phf.train import loop
from phf.train.run import Run

SETTINGS = BenignConfig(steps=6, rate=1.0)
SAMPLING = SamplingConfig(num_samples=24, max_new_tokens=16)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def trained(small_config, tmp_path) -> Callable[..., Run]:
    """Returns a function that trains a run of 12 steps."""
    return lambda *overrides: loop.train(small_config(*overrides), tmp_path / "run", say=quiet)


def hash_folder(run: Run) -> dict[str, str]:
    return {str(path): hash_file(path) for path in run.folder.rglob("*") if path.is_file()}


def measure(run: Run, data, modes, judges, settings: BenignConfig) -> Measured:
    def write(model, mode):
        return Target.create(
            mode, model, data.tokens.tokenizer, run.config.objective, run.config.segments
        ).write([()], SAMPLING)

    return measure_finetuned(
        write, run.load_model(), data, modes, judges, settings, num_bootstrap=100, seed=SAMPLING.seed
    )


def tabulate(result: Measured):
    return pivot(result.measurements, lambda row: (row.mode, row.judge), lambda row: row.measure)


@pytest.mark.parametrize("split", ["validation", "train"])
def test_it_trains_a_copy_on_good_documents_without_control_tokens(
    trained, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    data, model, before = run.data(), run.load_model(), hash_folder(run)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = []

    def spy(model, value_head, data, batch, precision):
        batches.append(batch)
        return real(model, value_head, data, batch, precision)

    real = finetuned.loss_sum
    monkeypatch.setattr(finetuned, "loss_sum", spy)
    copy, found = finetune_benign(model, data, BenignConfig(steps=6, rate=1.0, split=split))
    assert len(batches) == 6
    control = data.tokens.tokenizer.control
    used = set()
    for batch in batches:
        assert (batch.scores[batch.kinds == TEXT] <= np.float32(data.threshold.value)).all(), "no bad text"
        assert not np.isin(batch.ids, control.all).any()
        assert not (batch.kinds == CONTROL).any()
        assert not batch.is_active.any(), "plain MLE"
        used |= set(batch.ids.ravel().tolist())
    assert len(used) > 50
    assert found.last_loss < found.first_loss
    assert (found.steps, found.num_tokens) == (6, 6 * 4 * 64)
    assert found.data.startswith(split)
    assert not copy.training
    assert any(not torch.equal(copy.state_dict()[name], tensor) for name, tensor in weights.items())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert hash_folder(run) == before


def test_the_splits_differ(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained()
    data = run.data()
    seen = []
    real = finetuned.Blocks
    monkeypatch.setattr(
        finetuned, "Blocks", lambda *args, **options: seen.append(real(*args, **options)) or seen[-1]
    )
    for split in ("validation", "train"):
        finetune_benign(run.load_model(), data, BenignConfig(steps=1, split=split))
    sizes = [blocks.num_tokens_per_epoch for blocks in seen]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize(
    "overrides",
    [(), ("objective={kind: additive, good_fraction: 0.5}",), ("objective={kind: mle}",)],
    ids=["conditional", "additive", "mle"],
)
def test_scores_before_and_after(trained, overrides: tuple[str, ...]) -> None:
    run = trained(*overrides)
    data = run.data()
    judges, _ = choose_judges(data.annotation, ["pii"], load_reward_model)
    modes = ("good", "none") if data.objective.has_control_tokens else ("none",)
    result = measure(run, data, modes, judges, SETTINGS)
    found = tabulate(result)
    assert list(found) == [(mode, judge.slug) for mode in modes for judge in judges]
    for row in found.values():
        before, after, difference = (row[name] for name in NAMES)
        assert difference.mean == pytest.approx(after.mean - before.mean)
        assert difference.count <= min(before.count, after.count) <= 24
    assert measure(run, data, modes, judges, SETTINGS) == result


def test_without_a_step_nothing_changes(trained) -> None:
    run = trained()
    data = run.data()
    judges, _ = choose_judges(data.annotation, [], load_reward_model)
    found = tabulate(measure(run, data, ("good", "bad"), judges, BenignConfig(steps=0)))
    assert [mode for mode, _ in found] == ["good", "bad"]
    for row in found.values():
        before, after, difference = (row[name] for name in NAMES)
        assert before == after
        assert difference.mean == 0


def test_a_split_of_bad_documents_is_refused(trained) -> None:
    run = trained()
    data = replace(run.data(), threshold=replace(run.data().threshold, value=-1.0))
    with pytest.raises(PHFError, match=r"every document of the train split has a bad segment"):
        finetune_benign(run.load_model(), data, SETTINGS)
