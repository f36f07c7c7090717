"""Recipes, overrides and the one-line errors that explain a wrong choice."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from phf import cli
from phf.config.evaluate import EvaluateConfig
from phf.config.fields import StrictConfig, describe_fields, find_field
from phf.config.objectives import AWR, RWR, Conditional, GoodConfig, Unlikelihood
from phf.config.recipes import apply_overrides, describe_recipe, list_recipes
from phf.config.train import TrainConfig, load_train_config, parse
from phf.errors import PHFError

BASE = {
    "corpus": "corpus",
    "reward_model": "pep8",
    "segments": "lines",
    "tokens": 1000,
    "objective": {"kind": "conditional", "good_fraction": 0.5},
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_valid(name):
    config = load_train_config(name, ["reward_model=mine:score"] if name == "default" else [])
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config, "a saved config can be rerun"


def test_threshold_zero_survives(recipe):
    # Fault 1 of the released code, on its way through the command line.
    config = load_train_config(recipe, ["objective.threshold=0"])
    assert isinstance(config.objective, Conditional)
    assert config.objective.threshold == 0.0
    assert config.objective.good_fraction is None


def test_a_new_kind_drops_the_old_options_whatever_the_order(recipe):
    for overrides in (["objective.kind=awr", "objective.beta=2"], ["objective.beta=2", "objective.kind=awr"]):
        assert load_train_config(recipe, overrides).objective == AWR(beta=2.0)
    assert load_train_config(
        recipe, ["objective.kind=unlikelihood", "objective.threshold=0.0"]
    ).objective == (Unlikelihood(threshold=0.0))


@pytest.mark.parametrize(
    ("overrides", "good"),
    [
        ([], {"good_fraction": 0.5}),
        (["objective.threshold=0"], {"threshold": 0.0}),
        (["objective.kind=mle"], {"good_fraction": 0.5}),
        (["objective={kind: rwr}"], {"good_fraction": 0.5}),
        (["objective.kind=mle", "good.threshold=0"], {"threshold": 0.0}),
        (["good.threshold=0", "objective.good_fraction=0.25"], {"threshold": 0.0}),
        (
            ["objective={kind: filtering, threshold: 3}"],
            {"good_fraction": 0.5},
        ),  # a document's mean, no segment's score
    ],
)
def test_good_follows_the_objective_unless_it_is_given(tmp_path, overrides, good):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    assert load_train_config(str(path), overrides).good == GoodConfig(**good)


def test_runs_of_one_recipe_agree_where_good_ends(tmp_path):
    # The objective's line stays where another kind replaces it, also in what a run's own config is made into.
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | {"objective": {"kind": "conditional", "threshold": 0.0}}))
    conditional, mle = (load_train_config(str(path), given) for given in ([], ["objective.kind=mle"]))
    assert conditional.good == mle.good == GoodConfig(threshold=0.0)
    again = apply_overrides(conditional.model_dump(mode="json"), ["objective.kind=rwr"])
    assert parse(TrainConfig, again, "run").good == GoodConfig(threshold=0.0)


def test_numbers_in_scientific_notation(recipe):
    assert load_train_config(recipe, ["optim.learning_rate=1e-3"]).optim.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.learnin_rate=1", ["optim.learnin_rate", "did you mean 'learning_rate'", "weight_decay"]),
        ("objective.kind=condtional", ["condtional", "did you mean 'conditional'", "unlikelihood"]),
        (
            "objective.beta=1",
            ["objective.beta", "threshold, good_fraction, start, stop, drop_fraction, kind"],
        ),
        ("objective.good_fraction=2", ["objective.good_fraction=2", "less than or equal to 1"]),
        ("objective.kind=unlikelihood", ["objective", "exactly one of threshold and good_fraction"]),
        ("model.preset=3M", ["model.preset='3M'", "'2.5M'"]),
        ("tokens=abc", ["tokens='abc'", "integer"]),
        ("optim.learning_rate=.nan", ["optim.learning_rate", "finite"]),
        ("seed", ["'seed'", "key=value"]),
        ("corpus.x=1", ["'corpus' is a value"]),
    ],
)
def test_errors_are_one_line_that_helps(recipe, override, parts):
    with pytest.raises(PHFError) as caught:
        load_train_config(recipe, [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(PHFError, match=r"toxicty.*toxicity"):
        load_train_config("toxicty", [])
    with pytest.raises(PHFError, match=r"nowhere\.yaml does not exist"):
        load_train_config("nowhere.yaml", [])


def test_a_missing_key_says_how_to_give_it():
    with pytest.raises(PHFError, match=r"key 'tokens' is missing.*tokens=VALUE"):
        parse(TrainConfig, {key: value for key, value in BASE.items() if key != "tokens"}, "recipe")


def test_overrides_leave_the_recipe_as_it_was():
    apply_overrides(BASE, ["objective.kind=mle", "model.preset=1M"])
    assert BASE["objective"] == {"kind": "conditional", "good_fraction": 0.5}
    assert "model" not in BASE


def list_configs(base=StrictConfig):
    """Every config class there is, those that only others derive from included."""
    for name in ("attack", "evaluate", "release", "steer"):
        importlib.import_module(f"phf.config.{name}")
    return {base, *(config for cls in base.__subclasses__() for config in list_configs(cls))}


@pytest.mark.parametrize("config", sorted(list_configs(), key=str), ids=lambda cls: cls.__name__)
def test_every_field_has_a_sentence(config):
    # What a `kind` means is said by its class.
    sentences = describe_fields(config)
    assert {name for name in config.model_fields if name != "kind"} <= set(sentences)
    for name, sentence in sentences.items():
        assert sentence.endswith("."), f"{config.__name__}.{name}: {sentence}"


def test_a_field_is_found_by_its_key_with_its_sentence():
    field, sentence = find_field(EvaluateConfig, "kl.num_sequences")
    assert field.default == 512
    assert sentence == "Texts that the reference writes; the paper has 4,096."


def test_overrides_leave_what_they_are_laid_over_as_it_is():
    value = {"objective": {"kind": "custom", "function": "a:b", "parameters": {"alpha": 1}}}
    changed = apply_overrides(value, ["objective.parameters.alpha=2", "objective.parameters.beta=3"])
    assert changed["objective"]["parameters"] == {"alpha": 2, "beta": 3}
    assert value["objective"]["parameters"] == {"alpha": 1}


def test_the_papers_recipes_and_overrides_are_the_released_ones():
    page = (Path(__file__).parents[1] / "docs/objectives.md").read_text(encoding="utf-8")
    for task, rate in (("toxicity", 5e-4), ("pii", 5e-4), ("pep8", 8e-4)):
        config = load_train_config(f"paper-{task}", [])
        assert config.optim.learning_rate == rate
        assert (config.optim.batch_blocks, config.data.context, config.tokens) == (64, 1024, 3_300_000_000)
        assert (config.optim.beta2, config.optim.final_fraction, config.data.isolate_documents) == (
            0.999,
            0,
            False,
        )
        told = describe_recipe(f"paper-{task}")
        assert all(word in told for word in ("dropout 0.1", "cosine", "docs/objectives.md"))
        rows = re.findall(
            r"^\| (?:MLE|filtering|unlikelihood|RWR|AWR) \| `(objective\.kind=[^`]*)`", page, re.MULTILINE
        )
        assert len(rows) == 5
        for row in rows:
            objective = load_train_config(f"paper-{task}", row.split()).objective
            if isinstance(objective, AWR | RWR):
                assert (objective.max_weight, objective.normalize) == (1000, "none")


def test_a_dry_run_says_in_what_a_recipe_differs_from_its_name(capsys, monkeypatch):
    from phf.train import plan

    monkeypatch.setattr(plan, "plan_run", lambda *_, **__: SimpleNamespace(describe=lambda: ["the plan"]))
    monkeypatch.setattr(sys, "argv", ["phf", "train", "paper-pii", "--dry-run"])
    cli.main()
    out = capsys.readouterr().out
    assert "Not the paper's: the architecture is Llama's" in out
    assert out.endswith("the plan\n")
