"""Segment ends and continuations by tokenizers of other families, whose decoders drop the space before a word."""

import itertools

import numpy as np
import pytest
from known_models import create_target
from tiny_models import tiny_llama
from tokenizer_families import FAMILIES
from transformers import PreTrainedTokenizerFast

from phf.config.train import SamplingConfig
from phf.generate.engine import TokenDrawer, decode_behind
from phf.tokens.tokenizer import load_tokenizer

TEXT = "all of it is so. then it did! what? yes all of it is so"


@pytest.fixture(params=list(FAMILIES))
def tokenizer(request, tmp_path):
    make, special = FAMILIES[request.param]
    own = make([TEXT, "so it is all", "what did it"] * 20)
    PreTrainedTokenizerFast(tokenizer_object=own, **special).save_pretrained(tmp_path)
    return load_tokenizer(str(tmp_path))


def test_forced_control_finds_the_sentence_ends_of_every_family(tokenizer):
    sampling = SamplingConfig(control="forced", seed=0)
    drawer = TokenDrawer.create(tokenizer, "good", sampling, "sentences")
    ids, found = np.array(tokenizer.encode(TEXT)), 0
    for before, token in itertools.pairwise(ids):
        forced = drawer._force_control(np.array([token]), np.array([before]))
        found += int(forced[0] == tokenizer.control.good)
    assert found == 3


def test_a_continuation_begins_with_its_space(tokenizer):
    model = tiny_llama(tokenizer, seed=1)
    prompt = tokenizer.encode("so it")
    target = create_target(model, "untagged", tokenizer=tokenizer)
    ids = tokenizer.encode("so it is all")
    start = len(prompt)
    assert ids[:start] == prompt
    assert decode_behind(tokenizer, prompt, ids[start:]) == " is all"
    assert target.sample(0, prompt, (ids[start:], False)).text == " is all"
