"""Fifteen makes of tokenizer by 31 odd texts: ids say the whole text or the loss is counted, segments keep their ends, and no
text becomes a control token."""

from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from tokenizer_families import FAMILIES, make_gpt2, make_llama
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from phf.control import END_TOKEN
from phf.corpus.segment import segment_ends
from phf.tokens.recovery import count_lost
from phf.tokens.splitter import Splitter
from phf.tokens.tokenizer import Tokenizer, byte_letters, load_tokenizer, train_tokenizer

LEARNT = [
    f"Line {k}: the quick brown fox, then a lazy dog; fin.\r\nA second line, no. {k}.\n" for k in range(60)
]
TEXTS = [
    "a",
    " ",
    "\n",
    "\x00a\x00\n\x00",
    "one\r\ntwo\r\n\r\nthree",
    "one\rtwo\r",
    "\ufeffmarked",
    "a\u2028b\u2029c\x85d\x1ce",
    "e\u0301 \u0301\u0301 \u0327",
    "\u1100\u1161\u11a8 \uac01",
    "👩‍👩‍👧 🏳️‍🌈 👍🏽",
    "\u202eabc\u202c \u05d0\u05d1 \u0627\u0644",
    " " * 10_000,
    "\t\t \n \n\n  x",
    "日本語。中文！한국어",
    "ﬁ Å Å ½ ²",
    "İstanbul ẞ ß ς Σ",
    "no. 1234567890 3.14",
    "<|good|>",
    "<|bad|>",
    "<|endoftext|><|bad|>x<|good|>",
    "＜｜bad｜＞",
    "<|level_1|> <|Bad|> <| bad |>",
    "<s>a</s><unk><pad>",
    "[CLS] a [SEP] [MASK] [UNK]",
    "<0x41><0x00> <0xFF>",
    "▁a ▁▁ Ġb Ċ",
    "##ing un ##ing",
    "<extra_id_0> <think> </think> <|im_end|>",
    "\u200b\u200d\ufe0f\u00ad",
    "x" * 3000,
]  # fmt: skip


def make_prefixed(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE with a space put before each text."""
    backend = make_gpt2(texts)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def make_normalized(normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    """Byte-level BPE of texts that are changed before."""
    backend = make_gpt2(LEARNT)
    backend.normalizer = normalizer
    return backend


def make_digits(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE with each digit alone."""
    backend = make_gpt2(texts)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    return backend


def make_far(texts: list[str]) -> tokenizers.Tokenizer:
    """Llama 3's: special tokens far behind the words, and one that takes the blanks before it."""
    backend = make_gpt2(texts)
    backend.add_special_tokens([f"<|reserved-{k}|>" for k in range(5)])
    backend.add_tokens([AddedToken("<|wide|>", lstrip=True, rstrip=True, normalized=False)])
    return backend


def make_bare_llama(texts: list[str]) -> tokenizers.Tokenizer:
    """Llama's without its beginning."""
    backend = make_llama(texts)
    backend.post_processor = None
    return backend


def make_letters(texts: list[str]) -> tokenizers.Tokenizer:
    """One id a letter; what it knows it gives back."""
    letters = sorted({letter for text in texts for letter in text})
    vocabulary = {letter: index for index, letter in enumerate(["<unk>", END_TOKEN, *letters])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


END = {"eos_token": END_TOKEN}
MAKES = {
    **{name: (lambda make=make: make(LEARNT), special) for name, (make, special) in FAMILIES.items()},
    "prefixed": (lambda: make_prefixed(LEARNT), END),
    "nfc": (lambda: make_normalized(normalizers.NFC()), END),
    "nfkc": (lambda: make_normalized(normalizers.NFKC()), END),
    "lower": (lambda: make_normalized(normalizers.Lowercase()), END),
    "line-ends": (lambda: make_normalized(normalizers.Replace("\r\n", "\n")), END),
    "digits": (lambda: make_digits(LEARNT), END),
    "far": (lambda: make_far(LEARNT), END),
    "bare-llama": (lambda: make_bare_llama(LEARNT), FAMILIES["llama"][1]),
    "letters": (lambda: make_letters(LEARNT), END),
}
LOSSLESS = {"trained", "gpt2", "qwen", "nfc", "digits", "far"}
"""Runs of bytes, from which every text comes back; that texts are composed first (NFC) is left out."""


@pytest.fixture(scope="module", params=["trained", *MAKES])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    if request.param == "trained":
        return train_tokenizer(iter(LEARNT), 300)
    make, special = MAKES[request.param]
    folder = tmp_path_factory.mktemp("foreign") / request.param
    PreTrainedTokenizerFast(tokenizer_object=make(), **special).save_pretrained(folder)
    return load_tokenizer(str(folder))


def check(tokenizer: Tokenizer, text: str) -> None:
    """Everything that holds of a tokenizer and a text."""
    control = tokenizer.control
    forbidden = {control.end, *control.all}
    raw = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert not forbidden & set(raw), "not even by the raw backend, as another program would use it"
    letters = list(range(1, len(text) + 1))[:100] + [len(text)] * (len(text) > 100)
    for ends in (segment_ends(text, "lines"), segment_ends(text, "document"), letters):
        segments = [text[start:end] for start, end in pairwise((0, *ends))]
        ids, lengths, num_bytes = Splitter(tokenizer).tokenize([text], np.array([len(ends)]), np.array(ends))
        assert not forbidden & set(ids.tolist())
        assert lengths.sum() == len(ids)
        assert (lengths >= 0).all()
        assert num_bytes.tolist() == [len(segment.encode()) for segment in segments]
        if tokenizer.is_byte_level:
            bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
            parts = np.split(ids, np.cumsum(lengths)[:-1])
            spelled = [
                bytes(bytes_of[letter] for index in part for letter in tokenizer.pieces[index])
                for part in parts
            ]
            assert spelled == [segment.encode() for segment in segments], "each segment has its own bytes"
            assert tokenizer.decode(ids) == text
        backs = [tokenizer.backend.decode(ids.tolist(), skip_special_tokens=skip) for skip in (True, False)]
        is_whole = any(text in (back, back.removeprefix(" ")) for back in backs)
        lost = count_lost(tokenizer, [text], [ids])
        assert is_whole == (not lost), (backs, lost)


def test_ids_say_the_whole_text_or_the_loss_is_counted(tokenizer):
    for text in TEXTS:
        check(tokenizer, text)


def test_which_makes_lose_nothing(tokenizer, request):
    name = request.node.callspec.params["tokenizer"]
    assert tokenizer.is_byte_level == (name in LOSSLESS)


def test_the_grid_is_fifteen_by_thirty_one():
    assert (len(MAKES) + 1, len(set(TEXTS))) == (15, 31)
