"""Architectures as llama.cpp knows them: what it takes for granted, what it asks for, and how it lays out their weights.

Names of tensors are those of the package `gguf`; what llama.cpp computes from them is the same up to rounding (its GELU is the
tanh approximation, in half precision on CPUs).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from phf.errors import PHFError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        name: llama.cpp's, which is also its name in `gguf.MODEL_ARCH` in capitals.
        assumed: settings of config.json that llama.cpp does not ask for, with the only value that it computes.
        lay_out: a weight as llama.cpp wants it, from config, name and value.
        is_grouped: whether keys and values have a number of heads of their own.
        needs_head: whether the output matrix must be there even where it is the input's.
    """

    name: str
    assumed: Mapping[str, object]
    lay_out: Callable[[Any, str, Array], Array]
    is_grouped: bool = False
    needs_head: bool = False


def _keep(config: Any, name: str, array: Array) -> Array:
    return array


def _interleave_halves(config: Any, name: str, array: Array) -> Array:
    """llama.cpp rotates neighbouring pairs of a Llama head's dimensions and Hugging Face its two halves, so the rows of queries
    and keys change places."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if heads is None:
        return array
    return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def _transpose(config: Any, name: str, array: Array) -> Array:
    """GPT-2's matrices in its layers stand [inputs, outputs]."""
    return array.T if array.ndim == 2 and ".h." in name else array


def _part_heads(config: Any, name: str, array: Array) -> Array:
    """GPT-NeoX has query, key and value of a head one after the other; llama.cpp all queries first, then all keys."""
    if ".query_key_value." not in name:
        return array
    heads = config.num_attention_heads
    return array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


_ROTARY = {"rope_type": "default"}
ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, **_ROTARY},
        _interleave_halves,
        is_grouped=True,
    ),
    "qwen2": Architecture(
        "qwen2", {"hidden_act": "silu", "use_sliding_window": False, **_ROTARY}, _keep, is_grouped=True
    ),
    "qwen3": Architecture(
        "qwen3",
        {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False, **_ROTARY},
        _keep,
        is_grouped=True,
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
        _transpose,
    ),
    "gpt_neox": Architecture(
        "gptneox",
        {"hidden_act": "gelu", "attention_bias": True, **_ROTARY},
        _part_heads,
        needs_head=True,
    ),
}
"""By `model_type`."""


def find_architecture(config: Any) -> Architecture:
    """The architecture of a model's config.

    Raises:
        PHFError: llama.cpp has none that computes the same.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise _refusal("model_type", config.model_type, " or ".join(ARCHITECTURES))
    rope = getattr(config, "rope_parameters", None) or {}
    for name, needed in found.assumed.items():
        value = (
            rope.get("rope_type", "default") if name == "rope_type" else getattr(config, name, needed)
        )  # what a class has no setting for, it computes as its others do
        if value != needed:
            raise _refusal(name, value, needed)
    return found


def _refusal(name: str, found: object, needed: object) -> PHFError:
    return PHFError(
        f"no GGUF can be written of a model with {name} {found} (only with {needed}); "
        "convert the folder with convert_hf_to_gguf.py of llama.cpp, or leave --gguf out"
    )


def add_config(writer: Any, config: Any, architecture: Architecture, num_kept: int) -> None:
    """The numbers that llama.cpp asks for; `num_kept`: ids of the vocabulary."""
    width, heads = config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    writer.add_vocab_size(num_kept)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    writer.add_feed_forward_length(inner or 4 * width)
    writer.add_head_count(heads)
    if architecture.is_grouped:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
    if "rope_type" in architecture.assumed:
        rope = config.rope_parameters
        writer.add_rope_dimension_count(int(head_width * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        epsilon = getattr(config, "layer_norm_eps", None)
        writer.add_layer_norm_eps(config.layer_norm_epsilon if epsilon is None else epsilon)


def list_tensors(
    model: "PreTrainedModel", architecture: Architecture, num_kept: int
) -> Iterator[tuple[str, Array]]:
    """Name and value of each weight as llama.cpp lays it out, the rows of both embeddings cut to the ids that are kept.

    Raises:
        PHFError: `gguf` knows no name for a weight.
    """
    import gguf  # an extra, which who calls this has imported

    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.name.upper()), model.config.num_hidden_layers
    )
    tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    is_tied = len(tables) == 1
    head = f"{next(name for name, module in model.named_modules() if module is model.get_output_embeddings())}.weight"
    for name, weight in model.state_dict(keep_vars=True).items():
        if name == head and is_tied and not architecture.needs_head:
            continue
        array = weight.detach().float().cpu().numpy()
        if id(weight) in tables:
            array = array[:num_kept]
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise _refusal("weights", name, f"those of {architecture.name}")
        yield found, np.ascontiguousarray(architecture.lay_out(model.config, name, array))
