"""Small tokenizers in the shape of the big families', each with the special tokens that its family has."""

from collections.abc import Callable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from phf.control import END_TOKEN

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _train_byte_level(
    texts: list[str], special: list[str], words: pre_tokenizers.PreTokenizer | None = None
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level]) if words else byte_level
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(special)  # behind the words
    return backend


def make_gpt2(texts: list[str]) -> tokenizers.Tokenizer:
    """GPT-2's: byte-level BPE; one token is beginning, end and unknown."""
    return _train_byte_level(texts, [END_TOKEN])


def make_qwen(texts: list[str]) -> tokenizers.Tokenizer:
    """Qwen's: byte-level BPE behind a pattern of words, composed first; tags that are added, but not special."""
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated")
    backend = _train_byte_level(texts, [END_TOKEN, "<|im_start|>", "<|im_end|>"], words)
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    backend.normalizer = normalizers.NFC()
    return backend


def make_llama(texts: list[str]) -> tokenizers.Tokenizer:
    """Llama 2's: BPE of SentencePiece's spelling, and bytes for what it does not know."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex("▁"), "merged_with_next"
    )  # to train without words is slow
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def make_bert(texts: list[str]) -> tokenizers.Tokenizer:
    """BERT's: word pieces in lower case; `[SEP]` ends a text, and no token is named its end."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def make_t5(texts: list[str]) -> tokenizers.Tokenizer:
    """T5's: a unigram model of SentencePiece's spelling, and sentinels behind it."""
    letters = sorted({letter for text in texts for letter in text.replace(" ", "▁") if letter.isprintable()})
    words = sorted({f"▁{word}" for text in texts for word in text.split() if word.isalpha()})[:300]
    pieces = [(piece, -5.0) for piece in letters] + [
        (word, -8.0) for word in words if word[1:] not in letters
    ]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    backend = tokenizers.Tokenizer(models.Unigram([*special, *pieces], unk_id=2))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([name for name, _ in special])
    backend.add_special_tokens([f"<extra_id_{k}>" for k in range(3)])
    return backend


FAMILIES: dict[str, tuple[Callable[[list[str]], tokenizers.Tokenizer], dict[str, str]]] = {
    "gpt2": (make_gpt2, dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_TOKEN)),
    "qwen": (make_qwen, {"eos_token": "<|im_end|>", "pad_token": END_TOKEN}),
    "llama": (
        make_llama,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    ),
    "bert": (
        make_bert,
        {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
    ),
    "t5": (make_t5, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}),
}
"""How each is made from texts, and its special tokens by their roles."""
