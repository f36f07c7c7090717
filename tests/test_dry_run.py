"""`phf train --dry-run`: numbers that the run then has, and no file."""

import math
import shutil
from typing import get_args

import pytest
import torch
from compare_runs import train, write_recipe
from tiny_architectures import create_architecture
from tokenizers import ByteLevelBPETokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from phf.cli import app
from phf.config.train import ModelConfig
from phf.control import ControlTokens
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.model import lm
from phf.tokens.tokens import tokenize
from phf.train import loop
from phf.train.data import open_data
from phf.train.optim import make_optimizers
from phf.train.plan import ASSUMED_CPU_MFU, GIB, GPUS, HOST_SECONDS, plan_run
from phf.train.start import load_start_config


def test_parameters_steps_tokens_and_epochs_are_those_of_the_run(small_config, tmp_path):
    config = small_config("tokens=3000")
    plan = plan_run(config)
    run = train(config, tmp_path / "run")
    assert plan.num_parameters == run.record["num_parameters"]
    assert plan.num_steps == run.num_steps == 12
    assert plan.num_tokens == run.read_metrics()[-1]["tokens"] == 3072
    assert config.tokens / plan.tokens_per_epoch == pytest.approx(run.record["epochs"], rel=0.01)


def test_flops_are_those_that_torch_counts(small_config):
    config = small_config("model.layers=2")
    data = open_data(config)
    model, _ = loop.create_model_and_head(data)
    batch = data.training_blocks().batch(0, 1)
    ids, targets, positions = (torch.from_numpy(a) for a in (batch.ids, batch.targets, batch.positions))
    model.set_attn_implementation("eager")  # the counter does not see into the fused kernel of the CPU
    counter = FlopCounterMode(display=False)
    with counter:
        lm.token_nll(model, ids, targets, positions).sum().backward()
    assert plan_run(config).flops_per_token * 64 == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_an_untied_embedding_multiplies_nothing(small_config):
    model, _ = loop.create_model_and_head(open_data(small_config()))
    config = model.config
    config.tie_word_embeddings = False
    untied = type(model)(config)
    from phf.train.plan import num_multiplying

    assert lm.num_parameters(untied) > lm.num_parameters(model)
    assert num_multiplying(untied) == num_multiplying(model) == lm.num_parameters(model)


def test_memory_is_what_weights_gradients_and_optimizer_hold(small_config):
    data = open_data(small_config())
    memory = plan_run(data.config).memory
    model, _ = loop.create_model_and_head(data)
    (optimizer,) = make_optimizers(model, None, data.config.optim)
    batch = data.training_blocks().batch(0, 4)
    ids, targets, positions = (torch.from_numpy(a) for a in (batch.ids, batch.targets, batch.positions))
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = lm.token_nll(model, ids, targets, positions).sum()
    loss.backward()
    optimizer.step()
    parameters = list(model.parameters())
    assert memory.weights == sum(p.nbytes for p in parameters)
    assert memory.gradients == sum(p.grad.nbytes for p in parameters)
    states = [value for p in parameters for key, value in optimizer.state[p].items() if key != "step"]
    assert memory.optimizer == sum(value.nbytes for value in states)
    scratch = 2 * 4 * 4 * 64 * 512
    measured = sum(storage.nbytes() for storage in saved.values())
    assert memory.activations - scratch == pytest.approx(measured, rel=0.05)


def test_time_follows_from_flops_and_the_named_share(small_config):
    config = small_config("optim.batch_blocks=8")
    one, eight = plan_run(config, gpu="H100"), plan_run(config, gpu="H100", num_ranks=8, mfu=0.2)
    assert one.computing == pytest.approx(one.num_tokens * one.flops_per_token / (0.4 * 989e12))
    assert eight.computing == pytest.approx(one.computing / 4)
    assert eight.micro_blocks == 1
    assert eight.memory.activations < one.memory.activations
    sharded = plan_run(small_config("optim.batch_blocks=8", "data_parallel=fsdp"), gpu="H100", num_ranks=8)
    assert sharded.memory.optimizer == one.memory.optimizer / 8
    assert math.isclose(GPUS["H100"].memory / GIB, 80)


def test_a_small_model_on_a_gpu_takes_what_its_host_takes(small_config):
    plan = plan_run(small_config("optim.batch_blocks=8", "optim.micro_batch_blocks=2"), gpu="H100")
    layers = small_config().model.layers
    assert plan.seconds == pytest.approx(plan.num_steps * 4 * layers * HOST_SECONDS)
    assert plan.seconds > 100 * plan.computing
    assert "waits for its host" in plan.describe()[-1]
    here = plan_run(small_config())
    assert here.seconds == here.computing, "on a CPU computing is what takes the time"


def test_a_cpu_is_timed_unless_its_share_is_given_or_no_block_is_quick_enough(small_config, monkeypatch):
    timed, given = plan_run(small_config()), plan_run(small_config(), mfu=0.25)
    assert timed.is_timed
    assert "as timed just now" in timed.describe()[5]
    assert (given.mfu, given.is_timed) == (0.25, False)
    monkeypatch.setattr(
        "phf.train.plan._time_blocks", lambda _data, num_blocks, _precision: 1000.0 * num_blocks
    )
    assert plan_run(small_config()).seconds == pytest.approx(timed.num_tokens / 4000), (
        "four blocks are a batch"
    )
    monkeypatch.setattr("phf.train.plan.TRIAL_SECONDS", 0.0)
    assumed = plan_run(small_config())
    assert (assumed.mfu, assumed.is_timed) == (ASSUMED_CPU_MFU, False)
    assert "assuming 10%" in assumed.describe()[5]


@pytest.mark.parametrize(
    ("preset", "vocab_size", "named"),
    [
        ("1M", 2048, 1e6),
        ("2.5M", 4096, 2.5e6),
        ("10M", 4096, 10e6),
        ("30M", 8192, 30e6),
        ("124M", 50_304, 124e6),
        ("350M", 50_304, 350e6),
        ("1B", 50_304, 1e9),
    ],
)
def test_a_preset_is_about_as_large_as_its_name(preset, vocab_size, named):
    control = ControlTokens(vocab_size - 3, vocab_size - 2, vocab_size - 1)
    with FakeTensorMode():
        model = lm.create_model(
            ModelConfig(preset=preset), vocab_size=vocab_size, control=control, context=64, seed=0
        )
    assert lm.num_parameters(model) == pytest.approx(named, rel=0.12)


def test_every_preset_can_be_chosen():
    assert get_args(ModelConfig.model_fields["preset"].annotation) == tuple(lm.PRESETS)


def test_the_scale_pages_cost_is_what_a_dry_run_says(small_config, monkeypatch):
    """docs/scale.md: Cost. The tokenizer is given 50,304 ids; nothing else of the plan looks at the data."""
    config = small_config(
        "model={preset: 1B}", "data.context=2048", "optim.batch_blocks=2048", "optim.micro_batch_blocks=8",
        "tokens=100_000_000_000", "precision=bf16",
    )  # fmt: skip
    tokenizer = type(open_data(config).tokens.tokenizer)
    monkeypatch.setattr(tokenizer, "padded_vocab_size", lambda self: 50_304)
    plan = plan_run(config, gpu="H100", num_ranks=64)
    assert plan.num_parameters == pytest.approx(1.1e9, rel=0.01)
    assert plan.flops_per_token == pytest.approx(7.7e9, rel=0.01)
    assert plan.num_tokens / plan.seconds == pytest.approx(3.3e6, rel=0.01)
    assert plan.seconds / 3600 == pytest.approx(8.4, rel=0.01)
    assert plan.num_steps == 23_842
    assert plan.parallel == "ddp"
    memory = plan.memory
    assert (memory.total - memory.activations) / GIB == pytest.approx(16.3, rel=0.01)
    assert memory.activations / GIB == pytest.approx(47, rel=0.02)


def test_the_command_writes_nothing(small_config, small_corpus, tmp_path):
    recipe = write_recipe(small_config(), tmp_path / "recipe.yaml")

    def files():
        return {
            path: path.stat().st_mtime_ns
            for root in (tmp_path, small_corpus.path)
            for path in root.rglob("*")
        }

    before = files()
    result = CliRunner().invoke(app, ["train", str(recipe), "--dry-run", "--gpu", "A100", "--processes", "2"])
    assert result.exit_code == 0, result.output
    for word in (
        "parameters  ",
        "epochs of",
        "steps       12 of 4 x 64",
        "on 2 x A100",
        "assuming 40% of 312 TFLOP/s",
    ):
        assert word in result.output
    assert files() == before


def test_what_cannot_be_planned_is_said(small_config):
    with pytest.raises(PHFError, match=r"gpu 'H1000' is not known; choose A10G"):
        plan_run(small_config(), gpu="H1000")
    with pytest.raises(PHFError, match="batch_blocks=4 does not divide among 3"):
        plan_run(small_config(), num_ranks=3)


@pytest.fixture
def own_corpus(small_corpus, tmp_path):
    """A copy, so that other tests do not meet the tokens made here."""
    shutil.copytree(small_corpus.path, tmp_path / "corpus")
    return Corpus.open(tmp_path / "corpus")


def save_own_model(family, folder):
    """A random model of 300 ids with its own byte-level tokenizer, as transformers saves them."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["all the words of a text"] * 9, vocab_size=300, special_tokens=["<|endoftext|>"]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    size = tokenizer.vocab_size
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_init_takes_a_model_of_ones_own_and_sizes_it_up_by_its_shapes(
    family, own_corpus, small_config, tmp_path
):
    folder = tmp_path / family
    save_own_model(family, folder)
    tokenize(own_corpus, str(folder), "document", workers=1)
    recipe = write_recipe(small_config("tokenizer=gpt2"), tmp_path / "recipe.yaml")
    config = load_start_config(str(recipe), [f"corpus={own_corpus.path}"], str(folder))
    assert (config.model.init, config.tokenizer, config.start) == (str(folder), str(folder), None)
    plan = plan_run(config)
    run = train(config, tmp_path / "run")
    assert plan.num_parameters == run.record["num_parameters"]
    assert plan.num_steps == run.num_steps
    assert type(run.load_model()).__name__.lower().startswith(family)


def test_a_model_that_cannot_isolate_documents_is_refused_before_its_tokens_are_asked_for(
    own_corpus, small_config, tmp_path
):
    folder = tmp_path / "opt"
    save_own_model("llama", folder)  # its tokenizer
    create_architecture("opt", num_ids=300).save_pretrained(folder)
    overrides = [f"corpus={own_corpus.path}", f"tokenizer={folder}", f"model={{init: {folder}}}"]
    isolated = small_config(*overrides)
    beside = small_config(*overrides, "data.isolate_documents=false")
    for use in (plan_run, lambda config: train(config, tmp_path / "run")):
        with pytest.raises(PHFError, match=r"OPTForCausalLM .*; give data\.isolate_documents=false"):
            use(isolated)
        with pytest.raises(PHFError, match="phf tokenize"):
            use(beside)
    tokenize(own_corpus, str(folder), "document", workers=1)
    with pytest.raises(PHFError, match="isolate_documents=false"):
        plan_run(isolated)
    assert plan_run(beside).is_probed
    assert not (tmp_path / "run").exists()


def test_a_plan_without_an_estimate_of_activations_says_so(own_corpus, small_config, tmp_path):
    folder = tmp_path / "mixtral"
    save_own_model("llama", folder)  # its tokenizer
    create_architecture("mixtral", num_ids=300).save_pretrained(folder)
    tokenize(own_corpus, str(folder), "document", workers=1)
    overrides = [f"corpus={own_corpus.path}", f"tokenizer={folder}", f"model={{init: {folder}}}"]
    plan = plan_run(small_config(*overrides))  # in float32, where its experts' products have no shapes alone
    (line,) = (line for line in plan.describe() if line.startswith("memory"))
    assert "memory      unknown a rank: weights " in line
    assert "activations about unknown" in line


def test_what_init_cannot_take_is_said(small_config, tmp_path):
    save_own_model("gpt2", tmp_path / "gpt2")
    recipe = str(write_recipe(small_config(), tmp_path / "recipe.yaml"))
    for given, place, fresh, message in (
        (
            None,
            "gpt2",
            False,
            r"gpt2 is a model, not a run, and says nothing of data; give a RECIPE, such as default",
        ),
        (recipe, "gpt2", True, r"--reset-optimizer belongs to --init RUN"),
        (recipe, "gpt3", False, r"is not a run .* nor the folder of a model .* OWNER/NAME"),
    ):
        with pytest.raises(PHFError, match=message):
            load_start_config(given, [], str(tmp_path / place), reset_optimizer=fresh)
    config = load_start_config(recipe, ["tokenizer=train:512"], str(tmp_path / "gpt2"))
    assert config.tokenizer == "train:512"
