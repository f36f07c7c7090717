"""Sampling from many architectures: what is written is what the model itself says, whatever it makes of a cache."""

import numpy as np
import pytest
import torch
from known_models import BAD, END, GOOD, NUM_IDS, TinyTokenizer, create_target
from tiny_architectures import ARCHITECTURES, create_architecture
from tiny_models import bytes_alone
from transformers import DynamicCache

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.reference_lm import load_reference
from phf.generate.cache import find_cache
from phf.generate.engine import draw_tokens, uniform_numbers
from phf.steer.drafts import Pages
from phf.steer.streams import check_streams

SAMPLING = SamplingConfig(
    num_samples=9,
    min_new_tokens=0,
    max_new_tokens=10,
    batch_size=9,
    temperature=1.0,
    top_p=1.0,
    seed=3,
    precision="fp32",
)
PROMPTS = [(), (3, 4), (5,)]
CAUSAL = [name for name in ARCHITECTURES if name != "bert-both-ways"]


def write_slowly(model, page, index, temperature):
    """A sample of mode `untagged` without a cache and alone: [ids], ended."""
    uniforms = uniform_numbers(SAMPLING.seed, index, 64)
    written = []
    while len(written) < SAMPLING.max_new_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([[*page, *written]]), use_cache=False).logits[:, -1, :12].float()
        logits[:, [GOOD, BAD]] = -torch.inf
        uniform = torch.from_numpy(uniforms[len(written) : len(written) + 1])
        token = int(draw_tokens(logits, uniform, temperature, 1.0))
        if token == END:
            return written, True
        written.append(token)
    return written, False


@pytest.mark.parametrize("name", CAUSAL)
def test_samples_are_those_of_the_model_itself(name):
    model = create_architecture(name, num_ids=NUM_IDS)
    with torch.no_grad():  # not so sure that only one token is ever drawn
        temperature = 2 * float(model(torch.arange(1, 9)[None]).logits.std())
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    samples = create_target(model, "untagged").write(PROMPTS, sampling)
    assert len({sample.num_tokens for sample in samples}) > 1, "rows must leave the batch"
    for sample in samples:
        page = [END, *PROMPTS[sample.index % 3]]
        ids, ended = write_slowly(model, page, sample.index, temperature)
        assert (sample.text, sample.ended) == (TinyTokenizer().decode(ids), ended)


def test_some_take_a_cache_under_another_name_and_some_have_none():
    found = {name: find_cache(create_architecture(name)) for name in CAUSAL}
    assert {"past_key_values", "cache_params", None} == set(found.values())


def test_a_cache_that_is_ignored_is_seen():
    """The premise: mamba takes `past_key_values`, says nothing, and reads each token as if none came before."""
    model = create_architecture("mamba")
    cache, ids = DynamicCache(config=model.config), torch.arange(2, 8)[None]
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
        blind = model(ids[:, 5:], past_key_values=cache).logits[0, -1]
        assert not torch.allclose(blind, model(ids).logits[0, -1], atol=0.1)
    assert find_cache(model) == "cache_params"


@pytest.mark.parametrize("name", ["mamba", "openai-gpt"])
def test_a_reference_writes_down_the_log_probabilities_of_its_own_model(name, tmp_path):
    tokenizer = bytes_alone()
    create_architecture(name, num_ids=tokenizer.vocab_size).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    reference = load_reference(str(tmp_path))
    reference.is_allowed[:] = False
    reference.is_allowed[[*tokenizer.encode("ab c"), tokenizer.control.end]] = True
    samples = [sample for sample in reference.write(range(8), 6, seed=0) if sample is not None]
    assert max(sample.num_tokens for sample in samples) > 3
    for sample in samples:
        page = torch.tensor([[reference.start, *sample.ids]])
        with torch.no_grad():
            logits = reference.model(page, use_cache=False).logits[0].double()
        log_probs = logits.masked_fill(~reference.is_allowed, -torch.inf).log_softmax(-1)
        targets = [*sample.ids, *([tokenizer.control.end] if sample.ended else [])]
        own = float(log_probs[torch.arange(len(targets)), targets].sum())
        assert sample.log_prob == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize("name", ["mamba", "jamba", "mpt", "openai-gpt"])
def test_steering_says_in_one_line_what_it_needs(name):
    target = create_target(create_architecture(name, num_ids=NUM_IDS), "good")
    with pytest.raises(PHFError, match="sample it without steering"):
        Pages.create(target, SAMPLING)
    check_streams(create_architecture("falcon-alibi"), 24)


@pytest.mark.parametrize("name", ["mistral", "gpt-neo", "gemma3", "gpt-oss"])
def test_a_window_that_counts_hidden_tokens_is_refused_where_a_page_is_longer(name):
    """All of these have windows of 8 tokens; hidden ones took the place of text in them."""
    model = create_architecture(name)
    check_streams(model, 8)
    with pytest.raises(PHFError, match="reaches back less far than pages of 24 tokens"):
        check_streams(model, 24)
    check_streams(model, 8)


def test_a_probe_is_not_counted_and_draws_nothing():
    model, calls = create_architecture("llama"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    state = torch.random.get_rng_state()
    find_cache(model)
    check_streams(model, 24)
    assert not calls
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_equal(model.training, False)
