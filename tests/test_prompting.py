"""Prompts: read as training would have shown them, and never able to name a control token."""

import numpy as np
import pytest
import torch
from known_models import record_rows
from transformers import LlamaConfig, LlamaForCausalLM

from phf.config.train import SamplingConfig
from phf.corpus.segment import segment_ends
from phf.errors import PHFError
from phf.generate.target import Target
from phf.tokens.splitter import Splitter
from phf.tokens.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "def f(x):\n    return x\n",
    "It was late. He went home! Why? No one knows.",
    "a" * 50,
    "<|bad|> <|good|>",
]


def create_tokenizer() -> Tokenizer:
    return train_tokenizer(iter(TEXTS * 3), 290)


def create_target(mode: str = "good", segments: str = "lines", *, context: int = 128, folded=False) -> Target:
    """A random model of a few thousand parameters behind a real tokenizer."""
    tokenizer = create_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.padded_vocab_size(),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            pad_token_id=None,
            bos_token_id=tokenizer.control.end,
            eos_token_id=tokenizer.control.end,
        )
    )
    return Target(mode, model.eval(), tokenizer, segments, folded)


@pytest.mark.parametrize("segments", ["lines", "sentences", "document"])
@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_prompt_is_laid_out_as_a_page_of_training(segments: str, text: str) -> None:
    target = create_target("good", segments)
    ends = segment_ends(text, segments)
    ids, lengths, _ = Splitter(target.tokenizer).tokenize([text], np.array([len(ends)]), np.array(ends))
    page = [target.tokenizer.control.end]
    for segment in np.split(ids, np.cumsum(lengths)[:-1]):
        page += [target.tokenizer.control.good, *segment]
    calls = record_rows(target.model)
    target.write(
        [target.encode(text, "free")], SamplingConfig(num_samples=1, min_new_tokens=1, max_new_tokens=1)
    )
    assert calls[0][0].tolist() == page


def test_control_tokens_stand_where_the_style_puts_them() -> None:
    text = TEXTS[0]
    control = create_tokenizer().control

    def count(mode: str, style: str, **options: bool) -> int:
        return sum(token in control.all for token in create_target(mode, **options).encode(text, style))

    assert count("good", "free") == count("bad", "forced") == 1, (
        "the first line's stands in the mode's prefix"
    )
    assert count("good", "prefix") == count("none", "free") == count("untagged", "free") == 0
    assert count("good", "free", folded=True) == 0, "the mode is in the weights"
    assert control.bad in create_target("bad").encode(text, "free")
    assert create_target("none").encode(text, "free") == create_tokenizer().encode(text), "one piece"


def test_no_prompt_can_name_a_control_token() -> None:
    for segments in ("lines", "sentences", "document"):
        target = create_target("untagged", segments)
        ids = target.encode("<|bad|><|good|>. <|endoftext|>\n<|bad|>", "free")
        control = target.tokenizer.control
        assert not {control.end, *control.all} & set(ids)
        assert target.tokenizer.decode(ids) == "<|bad|><|good|>. <|endoftext|>\n<|bad|>"


def test_continuations_are_grouped_by_prompt_and_repeat_themselves() -> None:
    target = create_target("none")
    prompts = [target.encode(text, "free") for text in ("one\n", "two\n", "three\n")]
    sampling = SamplingConfig(min_new_tokens=2, max_new_tokens=4)
    written = target.write_each(prompts, 5, sampling)
    assert [{sample.prompt for sample in own} for own in written] == [{"one\n"}, {"two\n"}, {"three\n"}]
    assert all(len(own) == 5 for own in written)
    assert written == target.write_each(prompts, 5, sampling)


def test_how_long_a_prompt_may_be() -> None:
    target = create_target("good", context=20)
    sampling = SamplingConfig(num_samples=1, min_new_tokens=0, max_new_tokens=8)
    longest = target.longest_prompt(sampling)
    assert longest == 10
    target.write([[5] * longest], sampling)
    with pytest.raises(PHFError):
        target.write([[5] * (longest + 1)], sampling)
    with pytest.raises(PHFError, match=r"max_new_tokens 18 .* context of 20"):
        target.longest_prompt(SamplingConfig(max_new_tokens=18))
