"""Byte-level tokenizers and random models small enough that every probability can be written down by hand."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phf.tokens.tokenizer import Tokenizer, train_tokenizer


def bytes_alone() -> Tokenizer:
    """256 bytes without merges, `<|endoftext|>` (256), `<|good|>` (257), `<|bad|>` (258)."""
    return train_tokenizer(iter(["a"]), 259)


def tiny_llama(tokenizer: Tokenizer, *, seed: int, context: int = 64, padding: int = 5) -> LlamaForCausalLM:
    """A random Llama with strong opinions, an untied head and rows of padding behind the vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + padding,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.control.end,
        eos_token_id=tokenizer.control.end,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def next_logits(model: LlamaForCausalLM, ids: list[int], vocab_size: int) -> np.ndarray:
    """Logits of the ids in use behind a page, alone and without a cache: float64 [vocab_size]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits[:vocab_size].double().numpy()
