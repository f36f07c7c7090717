"""Foreign architectures: what a block's pages show each other, what a head does to large states, each found by running it."""

import numpy as np
import pytest
import torch
from tiny_architectures import ARCHITECTURES, create_architecture
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from phf.config.train import ModelConfig
from phf.control import ControlTokens
from phf.errors import PHFError
from phf.model import lm
from phf.model.probes import check_isolation, check_model

CONTROL = ControlTokens(end=0, good=318, bad=319)


def refuses(check, model, words):
    try:
        check(model)
    except PHFError as error:
        line = str(error)
    else:
        return False
    assert words in line
    assert "\n" not in line
    return True


def first_page_moves_second(model) -> bool:
    """Whether changing a page of 9 tokens moves the next one's states, where the model reads both in one row."""
    ids = torch.randint(2, 300, (1, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    changed = ids.clone()
    changed[0, :9] = ids[0, :9].flip(0) + 1
    with torch.no_grad():
        own, other = (lm.hidden_states(model, each, positions)[0, 9:] for each in (ids, changed))
    return not torch.allclose(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_fresh", [False, True], ids=["trained", "fresh"])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "llama4"])
def test_isolation_is_exact_or_refused(name, is_fresh):
    model = create_architecture(name, is_fresh=is_fresh)
    state = torch.random.get_rng_state()
    assert refuses(check_isolation, model, "give data.isolate_documents=false") == first_page_moves_second(
        model
    )
    assert torch.equal(state, torch.random.get_rng_state()), "what is drawn next must not depend on a probe"


def test_both_kinds_are_among_the_architectures():
    kinds = [first_page_moves_second(create_architecture(name)) for name in ARCHITECTURES if name != "llama4"]
    assert kinds.count(True) >= 12
    assert kinds.count(False) >= 12


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "llama4"])
def test_a_head_is_plain_at_a_trained_models_size_or_refused_when_it_is_fresh(name):
    model = create_architecture(name, is_fresh=True)
    ids = torch.arange(2, 18)[None]
    head = model.get_output_embeddings()
    with torch.no_grad():
        # Large rows of the head are what training ends with; an own measure of it, beside the probe's scaled states.
        large = head.weight.mul(50 / head(model.base_model(ids).last_hidden_state).abs().max())
        is_causal = torch.allclose(model(ids).logits[:, :9], model(ids[:, :9]).logits, atol=1e-3)
        head.weight = nn.Parameter(large)
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
        is_plain = torch.allclose(head(hidden), model(ids, use_cache=False).logits, atol=1e-3)
    model = create_architecture(name, is_fresh=True)
    words = "plain head" if is_causal else "sees tokens that come later"
    assert refuses(check_model, model, words) != (is_plain and is_causal)


def test_what_gives_no_states_is_one_line():
    assert refuses(check_model, create_architecture("llama4"), "gives no hidden states")


def test_a_fresh_capped_model_is_refused_before_training_and_not_after(tmp_path):
    model = create_architecture("gemma2", is_fresh=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(PHFError, match=r"Gemma2ForCausalLM changes its logits .*plain head"):
        lm.create_model(ModelConfig(init=str(tmp_path)), vocab_size=320, control=CONTROL, context=64, seed=0)


class Gated(LlamaForCausalLM):
    """Reads the mean of all tokens before through a gate that starts at 0."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.gate = nn.Parameter(torch.zeros(1))
        self.model.register_forward_hook(self._add_means)

    @staticmethod
    def _add_means(trunk, inputs, output):
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden + trunk.gate * hidden.cumsum(1)
        return output


def test_a_gate_that_is_still_closed_hides_nothing():
    model = Gated(create_architecture("llama").config).eval()
    assert not first_page_moves_second(model)
    assert refuses(check_isolation, model, "isolate_documents=false")
    assert not model.model.gate.any()


def test_a_model_saved_without_its_head_is_refused(tmp_path):
    create_architecture("stablelm").model.save_pretrained(tmp_path)
    with pytest.raises(PHFError, match=r"lacks weights of StableLmForCausalLM: lm_head\.weight"):
        lm.load_model(tmp_path)


@pytest.mark.parametrize("name", ["opt", "mamba"])
def test_what_leaks_is_refused_for_isolated_documents_alone(name, tmp_path):
    create_architecture(name).save_pretrained(tmp_path)
    config, options = ModelConfig(init=str(tmp_path)), {"vocab_size": 320, "control": CONTROL, "seed": 0}
    with pytest.raises(PHFError, match="isolate_documents=false"):
        lm.create_model(config, context=64, isolate_documents=True, **options)
    model = lm.create_model(config, context=64, **options)
    ids, running = torch.arange(2, 34)[None], torch.arange(32)[None]
    nll = lm.token_nll(model, ids[:, :-1], ids[:, 1:], running[:, :-1]).detach()
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits.log_softmax(-1)
    np.testing.assert_allclose(nll, -logits.gather(-1, ids[:, 1:, None])[..., 0], rtol=1e-4)
