"""GGUF of a release: the weights, ids and kinds of token that llama.cpp reads. What llama.cpp itself makes of the file is
tested where its Python binding is installed.
"""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from release_runs import get_run
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from phf.errors import PHFError
from phf.files import read_json, write_json
from phf.release.folder import write_release
from phf.release.gguf import write_gguf
from phf.tokens.tokenizer import Tokenizer, train_tokenizer

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NASTY = [
    "",
    " ",
    "\n",
    "\n\n  \n\tx",
    "It's 'so, don't'VE we'll 1234 5,6 ½ Ⅷ",
    "<|good|><|bad|> a<|bad|>b <|endoftext|> <|level_1|>",
    "x = {'a': [1, 2]}\n    return x  # ok\n",
    "naïve é É ﬁ ß Straße Ελλάδα русский 日本語 한국어",
    "🙂👨‍👩‍👧 \u200b\u00a0\u3000… “x” ‘y’ —",
    "\x00\x01\x7f\x85a\u2028b\ufeff",
    "a\tb\t\tc   d",
]
EXACT = st.text(
    st.characters(exclude_categories=("Cs", "Mn", "Mc", "Me", "Cn"), exclude_characters="\n\r\x0b\x0c\x85")
    | st.sampled_from("  '.dlmrstve12\n\n"),
    max_size=30,
)


def create_tokenizer() -> Tokenizer:
    texts = [
        "the cats don't sleep 12 x = 1\n",
        "we'll run  (a, b)\n\n",
        "    return 'so'\n",
        "naïve Ελλάδα …",
    ] * 20
    return train_tokenizer(iter(texts), 259 + 50)


TRAINED = create_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with grouped queries, wide heads, an untied head and padding, that likes `<|bad|>` best."""
    tokenizer = TRAINED
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + 5,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-4,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[tokenizer.control.bad] *= -30
    folder = tmp_path_factory.mktemp("gguf") / "random"
    model.save_pretrained(folder)
    tokenizer.save(folder, start=("<|endoftext|>", "<|good|>"))
    write_gguf(folder)
    return folder


@pytest.fixture(scope="module")
def llama(folder):
    llama_cpp = pytest.importorskip("llama_cpp")
    llm = llama_cpp.Llama(
        str(folder / "model.gguf"), n_ctx=0, logits_all=True, verbose=False, type_k=0, type_v=0
    )
    yield llm
    llm.close()


def read_fields(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def next_logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def test_transformers_reads_the_same_model(folder):
    """Another reader of the format, which undoes the permutation of queries and keys by its own code."""
    control = Tokenizer.load(folder).control
    ids = [control.end, control.good, *range(20)]
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf").eval()
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    kept = control.bad
    assert found.shape == (len(ids), kept)
    np.testing.assert_allclose(found, next_logits(folder, ids)[:, :kept], atol=1e-4)


def test_vocabulary_ends_at_good(folder):
    fields, tokenizer = read_fields(folder / "model.gguf"), Tokenizer.load(folder)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    control = tokenizer.control
    assert tokens == [tokenizer.backend.id_to_token(token) for token in range(control.bad)]
    normal, special, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    assert kinds == [*[normal] * control.end, special, unused]
    assert fields["tokenizer.ggml.bos_token_id"] == control.good
    assert fields["tokenizer.ggml.eos_token_id"] == control.end
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["llama.vocab_size"] == control.bad
    assert b"<|bad|>" not in (folder / "model.gguf").read_bytes()
    assert [*folder.glob(".*")] == []


@pytest.mark.parametrize(("name", "size"), [("conditional", 1), ("mle", 0), ("tagging", 0), ("quantile", 1)])
def test_gguf_of_a_run(name, size, small_config, tmp_path):
    run = get_run(name, small_config, tmp_path)
    out = write_release(run, tmp_path / "release")
    fields, control = read_fields(write_gguf(out)), run.load_tokenizer().control
    assert len(fields["tokenizer.ggml.tokens"]) == control.good + size
    assert fields["tokenizer.ggml.bos_token_id"] == (control.good if size else control.end)
    assert fields["general.name"] == name
    found = {tensor.name for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
    assert "token_embd.weight" in found
    assert ("output.weight" in found) != read_json(out / "config.json")["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("attention_bias", True, "attention_bias True"),
        ("hidden_act", "gelu", "hidden_act gelu"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, "rope_type linear"),
    ],
)
def test_other_architectures_are_refused(folder, tmp_path, key, value, told):
    config = LlamaConfig.from_pretrained(folder)
    setattr(config, key, value)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    Tokenizer.load(folder).save(tmp_path)
    with pytest.raises(PHFError, match=told):
        write_gguf(tmp_path)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"model": {"ignore_merges": True}},
        {"model": {"byte_fallback": True}},
    ],
)
def test_other_tokenizers_are_refused(folder, tmp_path, change):
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    Tokenizer.load(folder).save(tmp_path)
    content = read_json(tmp_path / "tokenizer.json")
    for key, value in change.items():
        content[key] = {**content[key], **value} if key == "model" else value
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(PHFError, match="no split like its own"):
        write_gguf(tmp_path)


@given(EXACT)
@settings(max_examples=300, deadline=None)
def test_gpt_2_splits_as_ours_but_for_white_space_before_a_line_end(text):
    """The claim in docs/release.md, with GPT-2's split as `tokenizers` has it."""
    ours = TRAINED
    if any(line != line.rstrip() for line in text.split("\n")[:-1]):
        return
    other = Backend.from_str(ours.backend.to_str())
    other.encode_special_tokens = True
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    assert other.encode(text, add_special_tokens=False).ids == ours.encode(text)


def test_logits_of_llama_cpp(folder, llama):
    control = Tokenizer.load(folder).control
    rng = np.random.default_rng(0)
    ids = [control.end, control.good, *rng.integers(control.end, size=40).tolist(), control.good, 7]
    llama.reset()
    llama.eval(ids)
    found = np.array(llama.scores[: len(ids)])
    expected = next_logits(folder, ids)[:, : control.bad]
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_llama_cpp_never_writes_bad(folder, llama):
    """The model likes `<|bad|>` best of all, and there is nothing to write it with."""
    tokenizer = Tokenizer.load(folder)
    control = tokenizer.control
    page = [control.end, control.good, *tokenizer.encode("the cats")]
    assert next_logits(folder, page)[-1].argmax() == control.bad
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(
        torch.tensor([page]),
        attention_mask=torch.ones(1, len(page), dtype=torch.long),
        do_sample=False,
        max_new_tokens=20,
        suppress_tokens=[*range(control.bad, model.config.vocab_size)],
        eos_token_id=control.end,
        pad_token_id=control.end,
    )[0].tolist()
    written = list(itertools.islice(llama.generate(page, temp=0), len(ids) - len(page)))
    assert llama.n_vocab() == control.bad
    assert written == ids[len(page) :]
    assert len({*written}) > 3


def test_ids_of_texts_in_llama_cpp(folder, llama):
    tokenizer = Tokenizer.load(folder)
    control, rng = tokenizer.control, random.Random(0)
    pieces = [*"abc 123'.,(\n", "'ll", " the", "  ", "<|bad|>", "<|good|>", "é", "日", "🙂", "\t"]
    drawn = ["".join(rng.choices(pieces, k=12)) for _ in range(300)]
    exact = [
        text for text in [*NASTY, *drawn] if all(line == line.rstrip() for line in text.split("\n")[:-1])
    ]
    assert len(exact) > 100
    for text in exact:
        ids = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text), ascii(text)
    for text in [*NASTY, *drawn]:
        for special in (False, True):
            ids = llama.tokenize(text.encode(), add_bos=True, special=special)
            assert ids[0] == control.good
            assert control.good not in ids[1:]
            assert special or control.end not in ids
    assert llama.detokenize([control.good, *tokenizer.encode("a cat")]) == b"a cat"


@pytest.mark.parametrize("digits", [False, True])
def test_known_tokenizers_in_llama_cpp(folder, tmp_path, digits):
    """GPT-2's split, alone and with single digits (SmolLM), is exactly llama.cpp's."""
    llama_cpp = pytest.importorskip("llama_cpp")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    Tokenizer.load(folder).save(tmp_path)
    content = read_json(tmp_path / "tokenizer.json")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if digits else byte_level
    write_json(tmp_path / "tokenizer.json", content)
    assert read_fields(write_gguf(tmp_path))["tokenizer.ggml.pre"] == ("smollm" if digits else "gpt-2")
    llm = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in [*NASTY, "1 12 123", "x \ny  \n z"]:
        ids = llm.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == Tokenizer.load(tmp_path).encode(text), ascii(text)
    llm.close()
