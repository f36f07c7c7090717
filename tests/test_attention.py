"""Attention inside pages: the model's own, without what is masked; other attentions are left alone."""

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from phf.config.train import ModelConfig
from phf.control import ControlTokens
from phf.model import attention, lm

CONTROL = ControlTokens(end=61, good=62, bad=63)
PAGE_LENGTHS = {
    "many": [1, 2, 31, 32, 33, 64, 5, 100, 7, 109],
    "longer than a matrix": [300, 84],
    "of one length, apart": [64, 20, 64, 236],
    "whole blocks": [192, 192],
    "one": [384],
}


def llama(heads=2, width=64):
    config = ModelConfig(preset="1M", layers=2, width=width, heads=heads)
    return lm.create_model(config, vocab_size=64, control=CONTROL, context=384, seed=0)


def qwen3():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 48,
    }
    return Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2))


def gpt2(dropout=0.0):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_positions": 384, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, attn_pdrop=dropout, embd_pdrop=0.0, resid_pdrop=0.0))


def phi():
    """Its rotary embedding leaves queries and keys in another memory order than Llama's."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    return PhiForCausalLM(PhiConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


def mistral(window):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window))


def make_positions(lengths, num_blocks=1):
    return torch.cat([torch.arange(length) for length in lengths]).view(num_blocks, -1)


def loss_and_gradients(model, ids, positions, dtype):
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        nll = lm.token_nll(model, ids, ids.roll(1), positions)
    nll.mean().backward()
    # The head's gradient is left out: it says little about attention, and is most of a norm.
    layers = {name: p.grad for name, p in model.named_parameters() if "layers" in name or ".h." in name}
    return nll.detach(), torch.cat([gradient.flatten() for gradient in layers.values()])


@pytest.mark.parametrize("lengths", PAGE_LENGTHS.values(), ids=PAGE_LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [llama, lambda: llama(heads=1), qwen3, gpt2, phi],
    ids=["narrow", "wide", "grouped", "gpt2", "phi"],
)
def test_attention_inside_pages_is_the_models_own_forwards_and_backwards(make, dtype, lengths):
    model = make().train()
    positions = make_positions(lengths, num_blocks=2 if lengths == [192, 192] else 1)
    ids = torch.randint(0, 60, positions.shape, generator=torch.Generator().manual_seed(1))
    exact = loss_and_gradients(model, ids, positions, torch.float32)
    own = loss_and_gradients(model, ids, positions, dtype)
    assert attention.use_page_attention(model)
    assert model.training
    found = loss_and_gradients(model, ids, positions, dtype)
    for right, one, other in zip(exact, own, found, strict=True):
        error, own_error = ((x - right).norm() / right.norm() for x in (other, one))
        assert error < max(1e-5, 1.3 * own_error)  # in bf16: no further from float32 than the model's own


def test_a_page_does_not_see_another_one_in_forward_or_backward():
    model = llama()
    attention.use_page_attention(model)
    positions = make_positions([40, 30])
    ids = torch.randint(0, 60, (1, 70), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, :40] = (changed[0, :40] + 1) % 60
    before, after = (lm.hidden_states(model, x, positions) for x in (ids, changed))
    assert torch.equal(before[:, 40:], after[:, 40:])
    assert not torch.equal(before[:, :40], after[:, :40])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    ends = attention.page_ends(positions)
    hidden = model.base_model(
        inputs_embeds=embedded, position_ids=positions, use_cache=False, cu_seq_lens_q=ends
    ).last_hidden_state
    hidden[:, 40:].sum().backward()
    assert embedded.grad[:, :40].abs().max() == 0
    assert embedded.grad[:, 40:].abs().min(dim=-1).values.max() > 0


def test_page_ends_are_where_positions_restart_and_where_blocks_begin():
    positions = np.array([[0, 1, 2, 0, 1], [3, 4, 0, 0, 1]])
    expected = [0, 3, 5, 7, 8, 10]
    assert attention.page_ends(positions).tolist() == expected
    assert attention.page_ends(torch.from_numpy(positions)).tolist() == expected
    assert attention.page_ends(positions).dtype == torch.int32


@pytest.mark.parametrize(
    ("make", "is_supported"),
    [
        (lambda: gpt2(dropout=0.1), False),
        (lambda: mistral(window=8), False),
        (lambda: mistral(window=None), True),
    ],
)
def test_other_attentions_are_left_alone(make, is_supported):
    model = make()
    own = model.config._attn_implementation
    assert attention.use_page_attention(model) is is_supported
    assert model.config._attn_implementation == (attention.PAGES if is_supported else own)


def test_a_saved_model_does_not_know_of_it(tmp_path):
    model = llama()
    attention.use_page_attention(model)
    lm.save_model(model, tmp_path)
    assert attention.PAGES not in (tmp_path / "config.json").read_text()
    assert not attention.uses_pages(lm.load_model(tmp_path))


def test_the_operator_keeps_torchs_rules():
    q, k, v = (torch.randn(20, 2, 16, requires_grad=True) for _ in range(3))
    ends = attention.page_ends(make_positions([12, 8]))
    torch.library.opcheck(torch.ops.phf.attend_pages, (q, k, v, ends, 0.25))
