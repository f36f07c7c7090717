"""Models: isolation of documents, the two heads, control tokens put into any vocabulary, the value head on any model."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from phf.config.train import ModelConfig
from phf.control import ControlTokens
from phf.errors import PHFError
from phf.model import lm
from phf.model.probes import check_model

CONTROL = ControlTokens(end=509, good=510, bad=511)


def small_model(**changes):
    config = ModelConfig(**{"preset": "1M", "layers": 2, "width": 32, "heads": 2, **changes})
    return lm.create_model(config, vocab_size=512, control=CONTROL, context=64, seed=0).eval()


def gpt2(vocab_size=300):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).eval()


def qwen3():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [small_model, gpt2, qwen3])
def test_pages_of_a_block_do_not_see_each_other(make):
    # The leak test: change page A, and page B's hidden states do not move; without restarted positions they do.
    model = make()
    ids = torch.randint(0, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, :8] = (changed[0, :8] + 1) % 250
    isolated = torch.cat([torch.arange(8), torch.arange(12)])[None]
    running = torch.arange(20)[None]
    with torch.no_grad():
        before, after = (lm.hidden_states(model, x, isolated) for x in (ids, changed))
        assert torch.equal(before[:, 8:], after[:, 8:])
        assert not torch.equal(before[:, :8], after[:, :8])
        alone = lm.hidden_states(model, ids[:, 8:], isolated[:, 8:])
        torch.testing.assert_close(before[:, 8:], alone, atol=1e-5, rtol=1e-5)
        leaky = [lm.hidden_states(model, x, running)[:, 8:] for x in (ids, changed)]
        assert not torch.allclose(*leaky)


def test_the_chunked_head_gives_the_plain_heads_nll_and_gradients():
    model = small_model()
    ids, targets = torch.randint(0, 512, (2, 3, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(3, 16)
    results = []
    for limit in (10**9, 1):
        model.zero_grad()
        hidden = lm.hidden_states(model, ids, positions)
        nll = lm.nll_of_hidden(model, hidden, targets, chunked_vocabulary=limit, chunk_tokens=7)
        nll.sum().backward()
        results.append((nll.detach(), model.get_input_embeddings().weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_of_a_gpu_gives_the_plain_heads_nll_and_gradients(precision):
    # Run here on the CPU. benchmarks/gpu.py compares it on a GPU.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(48, 32, generator=generator)
    targets = torch.randint(0, 512, (48,), generator=generator)
    upstream = torch.randn(48, generator=generator)
    head = torch.nn.Linear(32, 512, bias=False)
    results = []
    for is_plain in (True, False):
        leaf = hidden.clone().requires_grad_()
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if is_plain:
                nll = lm.nll_of_chunk(head, leaf, targets)
            else:
                nll = lm.HeadNLL.apply(leaf, head.weight, targets, lm.slopes_of_logits, 7)
        assert nll.dtype == torch.float32
        nll.backward(upstream)
        results.append((nll.detach(), leaf.grad, head.weight.grad.clone()))
    for plain, found in zip(*results, strict=True):
        assert (found - plain).norm() / plain.norm() < (1e-6 if precision == "fp32" else 1e-2)
    torch.testing.assert_close(results[0][0], results[1][0])  # logits are rounded alike


def test_nll_is_that_of_the_models_own_logits():
    model = small_model()
    ids, targets = torch.randint(0, 512, (2, 2, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(2, 16)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(lm.token_nll(model, ids, targets, positions), expected)


def test_a_head_that_changes_logits_elsewhere_is_refused():
    class Scaled(LlamaForCausalLM):
        def forward(self, *arguments, **options):
            output = super().forward(*arguments, **options)
            output.logits = 30 * torch.tanh(output.logits * 40 / 30)
            return output

    model = Scaled(small_model().config)
    with pytest.raises(PHFError, match="Scaled changes its logits"):
        check_model(model)
    check_model(small_model())


def test_control_tokens_start_at_the_mean_embedding_plus_small_noise(tmp_path):
    source = gpt2()
    with torch.no_grad():
        source.get_input_embeddings().weight += 1.0  # so that the mean is not where noise alone would lie
    lm.save_model(source, tmp_path)
    control = ControlTokens(end=299, good=300, bad=301)
    model = lm.create_model(
        ModelConfig(init=str(tmp_path)), vocab_size=320, control=control, context=64, seed=0
    )
    weight = model.get_input_embeddings().weight
    assert weight.shape == (320, 32)
    assert torch.equal(weight[:300], source.get_input_embeddings().weight), "old rows are kept"
    mean, deviation = weight[:300].mean(0), weight[:300].std(0)
    assert ((weight[300:302] - mean).abs() < 0.2 * deviation).all()
    assert not torch.equal(weight[300], weight[301])
    assert model.get_output_embeddings().weight is weight


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    lm.save_model(gpt2(), tmp_path)
    with pytest.raises(PHFError, match="300 embeddings and the tokenizer 510 ids"):
        lm.create_model(ModelConfig(init=str(tmp_path)), vocab_size=512, control=CONTROL, context=64, seed=0)


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(PHFError, match="cannot load a causal language model from") as caught:
        lm.load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [small_model, gpt2, qwen3])
def test_the_value_head_fits_any_model_and_starts_at_zero(make):
    model = make()
    width = model.get_input_embeddings().weight.shape[1]
    ids, positions = torch.randint(0, 250, (2, 8)), torch.arange(8).expand(2, 8)
    hidden = lm.hidden_states(model, ids, positions)
    assert torch.equal(lm.ValueHead(width, sigmoid=False)(hidden), torch.zeros(2, 8))
    assert torch.equal(lm.ValueHead(width, sigmoid=True)(hidden), torch.full((2, 8), -0.5))


@pytest.mark.parametrize(
    ("preset", "vocabulary"), [("1M", 2048), ("2.5M", 4096), ("10M", 4096), ("30M", 8192), ("124M", 50304)]
)
def test_presets_have_about_the_parameters_of_their_name(preset, vocabulary):
    with torch.device("meta"):
        model = lm.create_model(
            ModelConfig(preset=preset),
            vocab_size=vocabulary,
            control=ControlTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1),
            context=256,
            seed=0,
        )
    assert math.isclose(lm.num_parameters(model), float(preset[:-1]) * 1e6, rel_tol=0.15)


def test_the_seed_decides_every_initial_weight_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = small_model(), small_model()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("make", [small_model, gpt2, qwen3])
def test_conditions_keep_pages_apart_and_none_of_them_change_nothing(make):
    model = make()
    control = ControlTokens(end=250, good=251, bad=252)
    ids = torch.randint(0, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    nothing = torch.zeros(1, 20, 2)
    changed = nothing.clone()
    changed[0, :8, 0] = 1.0
    with torch.no_grad():
        plain = lm.hidden_states(model, ids, positions)
        torch.testing.assert_close(lm.hidden_states(model, ids, positions, nothing, control), plain)
        other = lm.hidden_states(model, ids, positions, changed, control)
        assert torch.equal(other[:, 8:], lm.hidden_states(model, ids, positions, nothing, control)[:, 8:])
        assert not torch.allclose(other[:, :8], plain[:, :8])


@pytest.mark.parametrize("make", [small_model, gpt2, qwen3])
@pytest.mark.parametrize("condition", [[1.0, 0.0], [0.0, 1.0], [-0.5, 0.0]])
def test_a_folded_model_has_the_logits_of_the_conditioned_one(make, condition):
    model = make()
    control = ControlTokens(end=250, good=251, bad=252)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = lm.fold_condition(model, control, np.array(condition, np.float32))
    ids, positions = torch.randint(0, 250, (2, 9)), torch.arange(9).expand(2, 9)
    conditions = torch.tensor(condition).expand(2, 9, 2)
    with torch.no_grad():
        expected = lm.head_logits(model, lm.hidden_states(model, ids, positions, conditions, control))
        torch.testing.assert_close(folded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    check_model(folded)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert folded.get_output_embeddings().weight is not folded.get_input_embeddings().weight
    assert not folded.config.tie_word_embeddings, "else a reader of the folder may tie them again"
