"""A release as one GGUF file, for llama.cpp (extra `gguf`).

The converter of llama.cpp refuses these tokenizers: it knows a tokenizer by a hash of what it makes of a text, and ours
are trained with each corpus. What it does for Llama is little, and is done here.

Two things that the other files of a release say cannot be said in a GGUF, so the file is made such that nothing is lost:

- *Suppressed tokens.* The library of llama.cpp and its Python binding ignore `tokenizer.ggml.suppress_tokens`. Control
  tokens are the last ids, so `<|bad|>` and all behind it are cut off: every other logit stays what it was.
- *A prefix of two tokens.* llama.cpp puts one token in front of a text, which here is the last of the prefix, `<|good|>`:
  a program that passes text is then in good mode, though without the `<|endoftext|>` that training had before it (cost:
  docs/lab/release.md). A program that passes ids, as examples/with_llama_cpp.py does, gets both.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError
from phf.files import replace_atomically
from phf.model import lm
from phf.release.record import RECORD_FILE, read_record
from phf.tokens.tokenizer import WORD_PATTERN, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GGUF_FILE = "model.gguf"

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_PRE_TOKENIZERS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ("gpt-2", [{**_BYTE_LEVEL, "use_regex": True}]),
    ("smollm", [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}]),
    # Ours. Of the splits that llama.cpp knows GPT-2's is the nearest: where a line that ends in white space is followed
    # by text, the white space and the line end are two pieces there and one here (measured: docs/lab/release.md).
    (
        "gpt-2",
        [
            {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False},
            {**_BYTE_LEVEL, "use_regex": False},
        ],
    ),
)  # fmt: skip
"""llama.cpp's name of a split (`tokenizer.ggml.pre`), and the steps of tokenizer.json that it stands for."""


def write_gguf(folder: Path) -> Path:
    """Write a release's model and tokenizer as DIR/model.gguf, in float32 (`llama-quantize` makes smaller ones).

    Args:
        folder: a release, or another folder with a Llama model and a tokenizer that `Tokenizer.save` wrote.

    Raises:
        PHFError: the package `gguf` is missing; the architecture is not Llama's, or the tokenizer has parts that llama.cpp
            does not have.
    """
    gguf = _import_gguf()
    model, tokenizer = lm.load_model(folder), Tokenizer.load(folder)
    config = model.config
    _check_architecture(config)
    content = json.loads(tokenizer.backend.to_str())
    prefix = tokenizer.backend.encode("").ids
    num_kept = prefix[-1] + 1 if len(prefix) > 1 else tokenizer.control.good
    path = folder / GGUF_FILE
    with replace_atomically(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_name(read_record(folder).run.name if (folder / RECORD_FILE).is_file() else folder.name)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _add_config(writer, config, num_kept)
        _add_tokenizer(writer, gguf.TokenType, tokenizer, content, num_kept)
        writer.add_bos_token_id(prefix[-1])
        writer.add_eos_token_id(tokenizer.control.end)
        writer.add_pad_token_id(tokenizer.control.end)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        for name, tensor in _list_tensors(model, num_kept):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _check_architecture(config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    facts = {
        "model_type": (config.model_type, "llama"),
        "hidden_act": (getattr(config, "hidden_act", None), "silu"),
        "attention_bias": (getattr(config, "attention_bias", False), False),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for name, (found, needed) in facts.items():
        if found != needed:
            raise PHFError(
                f"no GGUF can be written of a model with {name} {found} (only with {needed}); "
                "convert the folder with convert_hf_to_gguf.py of llama.cpp, or leave --gguf out"
            )


def _add_config(writer: Any, config: Any, num_kept: int) -> None:
    writer.add_vocab_size(num_kept)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


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
    for name, known in _PRE_TOKENIZERS:
        if plain and steps == known:
            return name
    raise PHFError(
        f"no GGUF can be written with tokenizer {tokenizer.name}: llama.cpp has no split like its own; "
        "leave --gguf out, or train with a tokenizer of 'phf tokenize --tokenizer train:N'"
    )


def _list_tensors(model: "PreTrainedModel", num_kept: int) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """Name and value of each weight, the rows of both embeddings cut to the ids that are kept.

    llama.cpp rotates neighbouring pairs of a head's dimensions and Hugging Face its two halves, so the rows of queries and
    keys change places.
    """
    config, tied = model.config, model.config.tie_word_embeddings
    num_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = []
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        array = weight.float().cpu().numpy()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            array = array[:num_kept]
        heads = num_heads.get(name.split(".")[-2])
        if heads is not None:
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        tensors.append((name, np.ascontiguousarray(array)))
    return tensors


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise PHFError("a GGUF file needs the package gguf; run: pip install 'phf[gguf]'") from None
    return gguf
