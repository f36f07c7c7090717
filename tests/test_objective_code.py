"""`objective.kind=custom`: a user's own loss trains as a built-in one would, and a wrong one is one line before training."""

import re
import shutil
import sys
from itertools import count
from pathlib import Path

import pytest
from compare_runs import quiet, write_recipe
from docs_pages import ROOT, read_blocks
from golden_runs import hash_weights, make_corpus, read_losses, train_objective
from test_distributed import run_ranks

from phf.config.train import SamplingConfig, load_train_config
from phf.errors import PHFError
from phf.evaluate.rollouts import sample_run
from phf.files import read_json
from phf.report.reading import read_runs
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder
from phf.train.plan import plan_run
from phf.train.run import Run
from phf.train.sweep import run_sweep

NUMBERS = count()
HEAD = "import torch\nfrom phf.records import BAD, GOOD, NO_LABEL\n\n"
MLE = HEAD + "def loss(nll, scores, labels):\n    return nll\n"
UNLIKELIHOOD = HEAD + (
    "def loss(nll, scores, labels, alpha):\n"
    "    unlikely = -torch.log(-torch.expm1(-nll.clamp(min=1e-6)))\n"
    "    return torch.where(labels == BAD, alpha * unlikely, nll)\n"
)
RWR = HEAD + (  # without a scale: what a user writes first
    "def loss(nll, scores, labels, beta=1.0):\n    return torch.exp(-scores / beta) * nll\n"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("custom") / "corpus")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes ./NAME.py in the current folder; names differ, since Python imports a module once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(source):
        name = f"own_loss_{next(NUMBERS)}"
        Path(f"{name}.py").write_text(source)
        return name

    return write


@pytest.fixture
def train(corpus, tmp_path):
    def run(name, **objective):
        return train_objective(corpus, "mle", tmp_path / name, objective=objective)

    return run


@pytest.mark.parametrize(
    ("source", "own", "built_in"),
    [
        (MLE, {}, {"kind": "mle"}),
        (MLE, {"good_fraction": 0.6}, {"kind": "mle"}),
        (
            UNLIKELIHOOD,
            {"good_fraction": 0.6, "parameters": {"alpha": 0.5}},
            {"kind": "unlikelihood", "good_fraction": 0.6, "alpha": 0.5},
        ),
        (
            RWR,
            {"parameters": {"beta": 0.3}},
            {"kind": "rwr", "normalize": "none", "beta": 0.3},
        ),
    ],
    ids=["mle", "mle with labels", "unlikelihood", "rwr"],
)
def test_the_same_formula_gives_the_same_run(source, own, built_in, module, train):
    run = train("own", kind="custom", function=f"{module(source)}:loss", **own)
    other = train("other", **built_in)
    assert len(read_losses(run)) == 20
    assert read_losses(run) == read_losses(other)
    assert hash_weights(run) == hash_weights(other)


WRONG = {
    "scalar": (
        "return nll.mean()",
        r"gives a tensor of float32 \[\]; it must .* a tensor of float32 \[4, 8\]",
    ),
    "shape": ("return nll.mean(dim=1)", r"gives a tensor of float32 \[4\]"),
    "dtype": ("return nll.double()", "gives a tensor of float64"),
    "number": ("return 0.0", "gives a float; it must give the loss of each token"),
    "nan": (
        "return torch.log(scores) * nll",
        "gives nan or inf for an nll of 0 to 20 with scores of 0.*clamp",
    ),
    "infinite at certainty": ("return -torch.log(1 - torch.exp(-nll))", "gives nan or inf for an nll of 0"),
    "gradient": ("return torch.where(nll > 0, torch.sqrt(nll), 0.0)", "has a gradient of nan or inf"),
    "detached": ("return nll.detach() * scores", "trains nothing: .* must not detach it, and labels need"),
    "no labels": (
        "return torch.where(labels == GOOD, nll, 0.0)",
        "trains nothing: .* labels need objective.threshold or good_f",
    ),
    "mixes blocks": ("return nll * nll.mean()", "mixes blocks: two of four cost something else alone"),
    "in place": ("nll += 1\n    return nll.clone()", "changes nll in place"),
    "random": ("return nll * torch.rand_like(nll)", "gives another loss when called again"),
    "exits": ("raise SystemExit(0)", r"asked to end the program \(SystemExit\(0\)\)"),
    "fails": ("return nll[:, 99]", "fails when called with .*: IndexError: index 99 is out of bounds"),
    "backward": (
        "out = torch.exp(nll / 20)\n    out += 1\n    return out",
        "fails when called with .*RuntimeError",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_loss_is_one_line_before_anything_is_written(fault, module, train, tmp_path):
    body, message = WRONG[fault]
    name = module(HEAD + f"def loss(nll, scores, labels):\n    {body}\n")
    with pytest.raises(PHFError, match=rf"^objective\.function={name}:loss {message}") as caught:
        train("run", kind="custom", function=f"{name}:loss")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"parameters": {"gamma": 2}},
            r"\(nll, scores, labels, gamma=2\): TypeError: .*unexpected keyword .*gamma",
        ),
        ({}, r"\(nll, scores, labels\): TypeError: .*missing 1 required positional argument: 'alpha'"),
    ],
)
def test_wrong_parameters_are_said(objective, message, module, train):
    with pytest.raises(PHFError, match=message):
        train("run", kind="custom", function=f"{module(UNLIKELIHOOD)}:loss", **objective)


def test_wrong_names_are_said(module, train):
    name = module(MLE)
    for function, message in {
        f"{name}:lose": "has no 'lose'; did you mean 'loss'",
        "nowhere_at_all:loss": "no module 'nowhere_at_all' is installed or in the current folder",
        f"{name}:BAD": "is a int; it must be a function of nll, scores and labels",
        "loss": "function 'loss' is not of the form module:function",
        f"{name}:loss()": "is not of the form module:function",
    }.items():
        with pytest.raises(PHFError, match=re.escape(message)):
            train("run", kind="custom", function=function)
    with pytest.raises(PHFError, match="give at most one of threshold and good_fraction"):
        train("run", kind="custom", function=f"{name}:loss", threshold=0.5, good_fraction=0.5)
    with pytest.raises(PHFError, match=r"key 'objective\.function' is missing; add it"):
        train("run", kind="custom")
    with pytest.raises(
        PHFError, match=r"^golden: objective\.parameters\.alpha=\[1\]: a parameter is a number"
    ):
        train("run", kind="custom", function=f"{name}:loss", parameters={"alpha": [1]})


def test_what_a_loss_sees(module, train):
    source = HEAD + (
        "def loss(nll, scores, labels):\n"
        "    assert nll.dtype == scores.dtype == torch.float32 and labels.dtype == torch.uint8\n"
        "    assert nll.shape == scores.shape == labels.shape and not scores.isnan().any()\n"
        "    assert set(labels.unique().tolist()) == {NO_LABEL, GOOD, BAD}\n"
        "    assert (scores[labels == NO_LABEL] == 0).all()\n"
        "    assert scores[labels == GOOD].max() <= 0.5 < scores[labels == BAD].min()\n"
        "    return torch.where(labels == NO_LABEL, 1e6, nll)\n"  # what is no text is not the function's
    )
    own = train("own", kind="custom", function=f"{module(source)}:loss", threshold=0.5)
    assert read_losses(own) == read_losses(train("mle", kind="mle"))


def test_a_run_goes_on_with_the_function_that_it_began_with_alone(module, corpus, tmp_path):
    name = module(UNLIKELIHOOD)
    objective = {
        "kind": "custom",
        "function": f"{name}:loss",
        "good_fraction": 0.6,
        "parameters": {"alpha": 1},
    }
    whole = train_objective(corpus, "mle", tmp_path / "run", objective=objective, checkpoint_every=10)
    assert read_json(whole.folder / "run.json")["config"]["objective"]["parameters"] == {"alpha": 1}
    before = read_losses(whole), hash_weights(whole)
    shutil.rmtree(checkpoint_folder(whole.folder, 20))
    resumed = loop.resume(whole.folder, say=quiet)
    assert (read_losses(resumed), hash_weights(resumed)) == before

    shutil.rmtree(checkpoint_folder(whole.folder, 20))
    known = whole.record["objective_function"]
    Run(whole.folder, {**whole.record, "objective_function": {**known, "id": "0" * 16}}).write()
    message = rf"trained on another objective_function: {name}:loss 0{{16}}, now {name}:loss {known['id']}; put the old"
    with pytest.raises(PHFError, match=message):
        loop.resume(whole.folder, say=quiet)


def test_a_finished_run_is_measured_without_its_function(module, train):
    name = module(MLE)
    run = train("run", kind="custom", function=f"{name}:loss")
    Path(f"{name}.py").unlink()
    sys.modules.pop(name)
    assert len(sample_run(run.folder, "none", SamplingConfig(num_samples=2, max_new_tokens=12))) == 2
    assert run.data().objective.threshold is None


@pytest.fixture
def example(module, tmp_path):
    """The docs' own function, in the current folder."""
    [block] = [block for block in read_blocks(ROOT / "docs" / "objectives.md") if block.title]
    (tmp_path / block.title).write_text(block.body)
    yield f"{block.title.removesuffix('.py')}:loss"
    sys.modules.pop(block.title.removesuffix(".py"), None)


@pytest.fixture
def recipe(train, tmp_path):
    """The settings of a run of twenty steps, as a file that a command reads."""
    return str(write_recipe(train("plain", kind="mle").config, tmp_path / "recipe.yaml"))


def test_the_example_of_the_docs_trains(example, recipe, tmp_path):
    overrides = ["objective.kind=custom", f"objective.function={example}"]
    beta, penalty = "objective.parameters.beta=0.2", "objective.parameters.penalty=0.1"
    found = []
    for number, more in enumerate(([], [beta], [penalty], [penalty, "objective.good_fraction=0.5"])):
        config = load_train_config(recipe, [*overrides, *more])
        found.append(read_losses(loop.train(config, tmp_path / str(number), say=quiet)))
    plain, other_beta, no_labels, pushed = found
    assert plain == no_labels
    assert len({losses[-1] for losses in (plain, other_beta, pushed)}) == 3
    assert plan_run(load_train_config(recipe, overrides)).num_steps == 20


def test_a_sweep_trains_with_the_function_and_fails_the_wrong_one_alone(module, recipe, tmp_path):
    name = module(MLE + "\n\ndef mean(nll, scores, labels):\n    return nll.mean()\n")
    overrides = ["objective.kind=custom", f"objective.function={name}:mean,{name}:loss"]
    wrong, right = run_sweep(recipe, overrides, tmp_path / "sweep", say=quiet)
    assert "gives a tensor of float32 []; it must give the loss of each token" in wrong.failure
    assert right.failure is None
    assert read_losses(Run.open(right.cell.folder)) == read_losses(Run.open(tmp_path / "plain"))


@pytest.mark.slow
def test_two_processes_train_with_the_same_function(module, recipe, tmp_path):
    overrides = ["objective.kind=custom", f"objective.function={module(RWR)}:loss"]
    one = loop.train(load_train_config(recipe, overrides), tmp_path / "one", say=quiet)
    assert str(tmp_path) in sys.path, "the ranks are forked where pytest was started, with this path"
    run_ranks(2, recipe, *overrides, "-o", tmp_path / "two")
    assert read_losses(Run.open(tmp_path / "two")) == pytest.approx(read_losses(one), rel=2e-4)


def test_another_function_of_the_same_name_is_no_other_seed_of_it(module, train):
    name = module(MLE)
    run = train("run", kind="custom", function=f"{name}:loss")
    [before] = read_runs([run.folder], must_be_evaluated=False)
    Run(run.folder, {**run.record, "objective_function": {"name": f"{name}:loss", "id": "0" * 16}}).write()
    [other] = read_runs([run.folder], must_be_evaluated=False)
    assert other.recipe != before.recipe
