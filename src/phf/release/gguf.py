"""A release as one GGUF file, for llama.cpp (extra `gguf`).

The converter of llama.cpp refuses these tokenizers: it knows a tokenizer by a hash of what it makes of a text, and ours
are trained with each corpus. What it does for the architectures of `gguf_models` is little, and is done there.

Two things that the other files of a release say cannot be said in a GGUF, so the file is made such that nothing is lost:

- *Suppressed tokens.* The library of llama.cpp and its Python binding ignore `tokenizer.ggml.suppress_tokens`. Control
  tokens are the last ids, so `<|bad|>` and all behind it are cut off: every other logit stays what it was.
- *A prefix of two tokens.* llama.cpp puts one token in front of a text, which here is the last of the prefix, `<|good|>`:
  a program that passes text is then in good mode, though without the `<|endoftext|>` that training had before it (cost:
  docs/lab/release.md). A program that passes ids, as examples/with_llama_cpp.py does, gets both.
"""

import json
from pathlib import Path
from typing import Any

from phf.errors import PHFError
from phf.files import replace_atomically
from phf.model import lm
from phf.release.gguf_models import add_config, find_architecture, list_tensors
from phf.release.record import RECORD_FILE, read_record
from phf.tokens.tokenizer import WORD_PATTERN, Tokenizer

GGUF_FILE = "model.gguf"

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, {**_BYTE_LEVEL, "use_regex": False}]


_PRE_TOKENIZERS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ("gpt-2", [{**_BYTE_LEVEL, "use_regex": True}]),
    ("smollm", [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}]),
    # Qwen2's and Qwen3's, as their tokenizer.json has it.
    (
        "qwen2",
        _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        ),
    ),
    # Ours. Of the splits that llama.cpp knows GPT-2's is the nearest: where a line that ends in white space is followed
    # by text, the white space and the line end are two pieces there and one here (measured: docs/lab/release.md).
    ("gpt-2", _split(WORD_PATTERN)),
)
"""llama.cpp's name of a split (`tokenizer.ggml.pre`), and the steps of tokenizer.json that it stands for (without `trim_offsets`,
which decides no id)."""


def write_gguf(folder: Path) -> Path:
    """Write a release's model and tokenizer as DIR/model.gguf, in float32 (`llama-quantize` makes smaller ones).

    Args:
        folder: a release, or another folder with a model of `ARCHITECTURES` and a tokenizer that `Tokenizer.save` wrote.

    Raises:
        PHFError: the package `gguf` is missing; llama.cpp has no such architecture, or not all parts of the tokenizer.
    """
    gguf = _import_gguf()
    model, tokenizer = lm.load_model(folder), Tokenizer.load(folder)
    config = model.config
    architecture = find_architecture(config)
    content = json.loads(tokenizer.backend.to_str())
    prefix = tokenizer.backend.encode("").ids
    num_kept = prefix[-1] + 1 if len(prefix) > 1 else tokenizer.control.good
    path = folder / GGUF_FILE
    with replace_atomically(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        writer.add_name(read_record(folder).run.name if (folder / RECORD_FILE).is_file() else folder.name)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        add_config(writer, config, architecture, num_kept)
        _add_tokenizer(writer, gguf.TokenType, tokenizer, content, num_kept)
        writer.add_bos_token_id(prefix[-1])
        writer.add_eos_token_id(tokenizer.control.end)
        writer.add_pad_token_id(tokenizer.control.end)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        for name, tensor in list_tensors(model, architecture, num_kept):
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _add_tokenizer(
    writer: Any, token_type: Any, tokenizer: Tokenizer, content: dict[str, Any], num_kept: int
) -> None:
    """Vocabulary, merges, and the kind of each token: which kinds a text can spell is llama.cpp's rule.

    `<|endoftext|>` is CONTROL: a text reaches it only where a program asks for that (`parse_special`; llama-server does).
    Our control tokens are UNUSED: no text reaches them, a program may pass their ids, and they are never printed.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_find_pre_tokenizer(tokenizer, content))
    added = {token["id"]: token for token in content["added_tokens"]}
    tokens, kinds = [], []
    for token in range(num_kept):
        name = tokenizer.backend.id_to_token(token)
        if name is None or token in tokenizer.control.all:
            kind = token_type.UNUSED
        elif token in added:
            kind = token_type.CONTROL if added[token]["special"] else token_type.USER_DEFINED
        else:
            kind = token_type.NORMAL
        tokens.append(name if name is not None else f"<|unused-{token}|>")
        kinds.append(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])


def _find_pre_tokenizer(tokenizer: Tokenizer, content: dict[str, Any]) -> str:
    model, steps = content["model"], content["pre_tokenizer"]
    plain = model["type"] == "BPE" and content["normalizer"] is None and not model.get("ignore_merges")
    plain = plain and not any(
        model.get(key) for key in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    )  # fmt: skip
    steps = steps["pretokenizers"] if steps is not None and steps["type"] == "Sequence" else [steps]
    steps = [{key: value for key, value in (step or {}).items() if key != "trim_offsets"} for step in steps]
    for name, known in _PRE_TOKENIZERS:
        if plain and steps == known:
            return name
    raise PHFError(
        f"no GGUF can be written with tokenizer {tokenizer.name}: llama.cpp has no split like its own; "
        "leave --gguf out, or train with a tokenizer of 'phf tokenize --tokenizer train:N'"
    )


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise PHFError("a GGUF file needs the package gguf; run: pip install 'phf[gguf]'") from None
    return gguf
