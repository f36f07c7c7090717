"""A base model of another make, whose texts begin with one token and end with another: every text of it is known."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from phf.config.infer import InferConfig
from phf.config.train import parse
from phf.policies.policy import Policy
from phf.policies.sources import open_source
from phf.posterior.infer import infer
from phf.reward_models import load_reward_model, score_samples

BEGIN, END, LONGEST, BETA = 0, 1, 3, 0.2
LETTERS = {"<s>": BEGIN, "</s>": END, "a": 2, "b": 3, "c": 4, "d": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backend = Tokenizer(models.WordLevel(LETTERS, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / "llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=6, max_position_embeddings=16, bos_token_id=BEGIN, eos_token_id=END, **sizes
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.6)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def enumerate_texts(folder: Path) -> dict[tuple[tuple[int, ...], bool], float]:
    """Every text and its probability, token by token by the model alone, from the token that its texts begin with."""
    model = LlamaForCausalLM.from_pretrained(folder).double()
    found = {}
    own = [token for token in LETTERS.values() if token != END]
    for size in range(LONGEST + 1):
        for text in product(own, repeat=size):
            page = torch.tensor([[BEGIN, *text, END]])
            with torch.no_grad():
                steps = model(page).logits[0]
            steps[0, END] = -torch.inf  # a text has a token at least
            log_probs = steps.log_softmax(-1)[torch.arange(size + 1), page[0, 1:]]
            if size:
                found[text, True] = float(log_probs.sum().exp()) if size < LONGEST else 0.0
            if size == LONGEST:
                found[text, False] = float(log_probs[:-1].sum().exp())
    return {text: share for text, share in found.items() if share > 0}


def test_texts_begin_behind_the_token_that_the_tokenizer_names(folder: Path, tmp_path: Path) -> None:
    exact = enumerate_texts(folder)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-9)
    given = {
        "betas": [BETA],
        "num_exact": 1500,
        "max_draws": 4000,
        "sampling": {"num_samples": 4000, "max_new_tokens": LONGEST},
    }
    (tmp_path / "words.txt").write_text("c\n")
    given["judges"] = [f"lexicon:{tmp_path / 'words.txt'}"]
    config = parse(InferConfig, given, "test")
    source = open_source(folder)
    policy = Policy("llama", source.plain, config.sampling)
    texts = [(list(ids), ended) for ids, ended in exact]
    assert np.exp(policy.log_probs(texts)) == pytest.approx(list(exact.values()), rel=1e-5)
    counts = dict.fromkeys(exact, 0)
    for ids, ended in policy.write(range(4000)):
        counts[tuple(ids), ended] += 1
    shares = np.array(list(counts.values())) / 4000
    assert 0.5 * np.abs(shares - list(exact.values())).sum() < 0.08

    judge = load_reward_model(given["judges"][0])
    scores = np.array(score_samples(judge, [policy.decode(text) for text in texts]))
    probs = np.where(np.isnan(scores), 0, list(exact.values()))
    weights = np.where(np.isnan(scores), 0, np.exp(-scores / BETA))
    log_z = np.log(probs @ weights / probs.sum())
    found = infer(folder, (), tmp_path / "out", config, say=lambda line: None).results.find("log_z", at=BETA)
    assert found.low < log_z < found.high
    assert found.high - found.low < 0.1
