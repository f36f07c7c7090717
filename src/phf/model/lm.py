"""Language models: presets, loading and saving, per-token NLL, control tokens put into a vocabulary, the value head.

Models are Hugging Face classes, so that export, serving and continued pretraining come for free.
Shape suffixes: B blocks, T tokens, D width, V vocabulary.
"""

import copy
import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
import transformers  # its classes are named where they are used: they take seconds to load
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from phf.config.train import ModelConfig
from phf.control import ControlTokens
from phf.errors import PHFError
from phf.model.attention import page_ends, uses_pages
from phf.model.probes import check_isolation, check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

transformers.utils.logging.disable_progress_bar()  # more bars among ours, for files that are read in no time

CHUNKED_HEAD_VOCABULARY = 16_384
"""From this vocabulary on the NLL is computed in checkpointed chunks, which saves memory."""
HEAD_CHUNK_TOKENS = 2_048
SLOPE_CHUNK_TOKENS = 8_192
"""Logits become slopes (on CUDA) this many tokens at a time: uncompiled that takes several copies in float32."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A Llama-style architecture; its parameter count is about its name at the vocabulary it is meant for."""

    layers: int
    width: int
    heads: int
    feed_forward: int


PRESETS = {
    "1M": Preset(layers=4, width=128, heads=4, feed_forward=384),  # vocabulary 2k
    "2.5M": Preset(layers=4, width=192, heads=6, feed_forward=512),  # vocabulary 4k
    "10M": Preset(layers=7, width=320, heads=5, feed_forward=896),  # vocabulary 4k
    "30M": Preset(layers=8, width=512, heads=8, feed_forward=1408),  # vocabulary 8k
    "124M": Preset(layers=12, width=768, heads=12, feed_forward=2048),  # vocabulary 50k
    "350M": Preset(layers=24, width=1024, heads=16, feed_forward=2816),  # vocabulary 50k
    "1B": Preset(layers=22, width=2048, heads=16, feed_forward=4608),  # vocabulary 50k
}


def create_model(
    config: ModelConfig,
    *,
    vocab_size: int,
    control: ControlTokens,
    context: int,
    seed: int,
    isolate_documents: bool = False,
    has_weights: bool = True,
) -> "PreTrainedModel":
    """A model from scratch (a preset) or from `config.init`, in float32, whose vocabulary holds the control tokens.

    Args:
        vocab_size: rows of the embedding, padding of the vocabulary included.
        seed: decides every initial weight.
        isolate_documents: whether it will read blocks whose documents must not see each other.
        has_weights: whether those of `init` are read; without, it has its shapes alone, as a `FakeTensorMode` needs it.

    Raises:
        PHFError: `init` cannot be loaded or cannot isolate documents, or its vocabulary is not the tokenizer's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.init is not None:
            model = load_init(config.init, isolate_documents=isolate_documents, has_weights=has_weights)
            longest = getattr(model.config.get_text_config(), "max_position_embeddings", context)
            if longest < context:
                raise PHFError(
                    f"data.context={context} is longer than {config.init} can read ({longest}); give a shorter one"
                )
            return add_control_tokens(model, vocab_size=vocab_size, control=control)
        preset = PRESETS[config.preset]
        width = config.width or preset.width
        heads = config.heads or preset.heads
        if width % (2 * heads) != 0:  # rotary positions turn the numbers of a head in pairs
            raise PHFError(f"model.width={width} must be a multiple of 2 x model.heads={heads}")
        llama = transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=preset.feed_forward * width // preset.width,
            num_hidden_layers=config.layers or preset.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=control.end,
            eos_token_id=control.end,
            pad_token_id=None,
        )
        return transformers.LlamaForCausalLM(llama)


def load_model(source: str | Path, *, has_weights: bool = True) -> "PreTrainedModel":
    """Any causal language model of the Hugging Face library, from a folder or the Hub, in float32, safetensors only.

    Args:
        has_weights: whether its weights are read, and the model checked by them; without, it has its shapes alone.

    Raises:
        PHFError: it cannot be loaded, or it is not one that can be trained here (`check_model`).
    """
    try:
        if not has_weights:
            config = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=False)
            return transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            str(source),
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PHFError(
            f"cannot load a causal language model from '{source}': {first}; "
            "give a folder that holds config.json and model.safetensors, or a Hub id"
        ) from None
    if found["missing_keys"]:  # transformers draws them at random, with a warning
        raise PHFError(
            f"'{source}' lacks weights of {type(model).__name__}: {', '.join(sorted(found['missing_keys'])[:3])}; give a "
            "causal language model that was saved whole, its head included"
        )
    check_model(model)
    return model


def hub_revision(source: str) -> str | None:
    """The commit of the Hub's repository of which a model has just been loaded, as the cache names its folder; None of a folder."""
    if Path(source).exists():
        return None
    path = huggingface_hub.try_to_load_from_cache(source, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


def narrow(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model in half precision where that changes no weight, as of one that was stored so and loaded in float32."""
    weights = list(model.state_dict().values())
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in weights):
            return model.to(dtype)
    return model


def load_init(init: str, *, isolate_documents: bool, has_weights: bool = True) -> "PreTrainedModel":
    """The model to start from, checked to isolate documents if it is to.

    Raises:
        PHFError: see `load_model` and `check_isolation`.
    """
    model = load_model(init, has_weights=has_weights)
    if isolate_documents and has_weights:
        check_isolation(model)
    return model


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write config.json and model.safetensors, as `AutoModelForCausalLM.from_pretrained` reads them."""
    model.save_pretrained(folder, safe_serialization=True)


def add_control_tokens(
    model: "PreTrainedModel", *, vocab_size: int, control: ControlTokens
) -> "PreTrainedModel":
    """Grow the vocabulary to `vocab_size` and set the control tokens' rows to the mean embedding plus small noise.

    The paper starts new tokens there (reference: The experiment). Draws from torch's global generator. The rows of a
    model that has learned these control tokens (`config.control_tokens`, which training sets) are kept.

    Raises:
        PHFError: the model's vocabulary is smaller than the ids the tokenizer had before its control tokens.
    """
    num_old = model.get_input_embeddings().weight.shape[0]
    first_new = control.good
    if num_old < first_new:
        raise PHFError(
            f"the model has {num_old} embeddings and the tokenizer {first_new} ids; give the tokenizer that belongs to it"
        )
    if getattr(model.config, "control_tokens", None) == list(control.all) and num_old == vocab_size:
        return model
    if vocab_size > num_old:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in matrices.values():
            old = weight[:first_new]
            noise = 0.02 * old.std(dim=0) * torch.randn_like(weight[first_new:])
            weight[first_new:] = old.mean(dim=0) + noise
    return model


def num_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def hidden_states(
    model: "PreTrainedModel",
    ids: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    conditions: Float[Tensor, "B T 2"] | None = None,
    control: ControlTokens | None = None,
    ends: Int[Tensor, "E"] | None = None,
) -> Float[Tensor, "B T D"]:
    """The trunk's last hidden states, with documents isolated wherever `positions` restart at 0.

    transformers builds the block mask from restarted positions only without a cache, and attention
    inside pages builds none; the leak test guards both.

    Args:
        conditions: how much of the embeddings of `<|good|>` and of `<|bad|>` is added to each input, if any.
        control: the ids of those two.
        ends: `page_ends(positions)`, for a caller that has the positions on the host.
    """
    if conditions is None:
        inputs = {"input_ids": ids}
    else:
        assert control is not None
        embed = model.get_input_embeddings()
        pair = embed(torch.cat([ids.new_full((1,), token) for token in (control.good, control.bad)]))
        inputs = {"inputs_embeds": embed(ids) + conditions @ pair}
    if uses_pages(model):
        inputs["cu_seq_lens_q"] = page_ends(positions) if ends is None else ends
    hidden: Tensor = model.base_model(position_ids=positions, use_cache=False, **inputs).last_hidden_state
    return hidden


def fold_condition(
    model: "PreTrainedModel", control: ControlTokens, condition: Float[np.ndarray, "2"]
) -> "PreTrainedModel":
    """A copy that behaves as if every input carried a condition, and is a plain model: the condition's vector is added
    to every row of the input embedding, which is untied from the head's if it was tied.

    Args:
        control: ids of the two tokens whose embeddings are added.
        condition: how much of each.
    """
    folded = copy.deepcopy(model)
    embed = folded.get_input_embeddings()
    with torch.no_grad():
        pair = embed.weight[[control.good, control.bad]]
        # A new parameter: a head that was tied keeps the old one.
        embed.weight = nn.Parameter(embed.weight + torch.from_numpy(condition).to(pair) @ pair)
    folded.config.tie_word_embeddings = False
    return folded


def delete_control_tokens(
    model: "PreTrainedModel", control: ControlTokens, *, keep_good: bool = False
) -> "PreTrainedModel":
    """A copy without control tokens, but for `<|good|>` if it is kept: their rows, and the padding behind them, are gone
    from both embeddings.

    They are the last used ids, so no other id moves.
    """
    deleted = copy.deepcopy(model)
    deleted.resize_token_embeddings(control.bad if keep_good else control.good)
    deleted.config.control_tokens = [control.good] if keep_good else []
    return deleted


def head_logits(model: "PreTrainedModel", hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """Logits of hidden states, in the head's own precision."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits


def nll_of_hidden(
    model: "PreTrainedModel",
    hidden: Float[Tensor, "B T D"],
    targets: Int[Tensor, "B T"],
    *,
    is_exact: bool = False,
    chunked_vocabulary: int = CHUNKED_HEAD_VOCABULARY,
    chunk_tokens: int = HEAD_CHUNK_TOKENS,
) -> Float[Tensor, "B T"]:
    """-log p(target) in nats, float32. Large vocabularies (`chunked_vocabulary` and on) go through the head in checkpointed
    chunks of tokens, in training on CUDA at once.

    Args:
        is_exact: also where p rounds to 1, value and slope alike; then always in chunks.
    """
    head = model.get_output_embeddings()
    chunk_nll = getattr(model, "compiled_nll", nll_of_chunk)
    if head.weight.shape[0] < chunked_vocabulary:
        return chunk_nll(head, hidden.flatten(0, 1), targets.flatten(), is_exact).view(targets.shape)
    is_plain = type(head) is nn.Linear and head.bias is None
    if is_plain and not is_exact and hidden.is_cuda and hidden.requires_grad:
        take_slopes = getattr(model, "compiled_slopes", slopes_of_logits)
        nll: Tensor = HeadNLL.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, 1), head.weight, targets.flatten(), take_slopes, SLOPE_CHUNK_TOKENS
        )
        return nll.view(targets.shape)
    chunks = [
        checkpoint(chunk_nll, head, hidden_chunk, target_chunk, is_exact, use_reentrant=False)
        for hidden_chunk, target_chunk in zip(
            torch.split(hidden.flatten(0, 1), chunk_tokens),
            torch.split(targets.flatten(), chunk_tokens),
            strict=True,
        )
    ]
    return torch.cat(chunks).view(targets.shape)


def nll_of_chunk(head: nn.Module, hidden: Tensor, targets: Tensor, is_exact: bool = False) -> Tensor:
    """[N D], [N] -> [N]; plain types, for what is compiled cannot be checked while it runs."""
    return nll_of_logits(head(hidden), targets, is_exact)


def nll_of_logits(logits: Tensor, targets: Tensor, is_exact: bool = False) -> Tensor:
    """-log p(target) in nats, float32: [N V], [N] -> [N]; for `is_exact` see `nll_of_hidden`."""
    logits = logits.float()
    nll = F.cross_entropy(logits, targets, reduction="none")
    if not is_exact:
        return nll
    # A sum over all logits loses what the others hold beside a target near 1; elsewhere it stays, digit for digit.
    places = targets[:, None]
    others = logits.scatter(1, places, -torch.inf).logsumexp(1)
    return torch.where(nll < math.log(2), F.softplus(others - logits.gather(1, places).squeeze(1)), nll)


class HeadNLL(torch.autograd.Function):
    """NLL of a linear head where memory suffices for all logits in the head's precision; no product is computed twice.

    Forward writes the NLL's slope along each logit in the logit's place. What comes from upstream is one number a
    token, so backward it multiplies the narrow side of each product and the slopes are not touched again.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        take_slopes: Callable[..., Tensor],
        chunk_tokens: int,
    ) -> Tensor:
        """[N D], [V D], [N] -> [N]; `take_slopes` is `slopes_of_logits`, compiled or not; it takes `chunk_tokens` at a time."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        slopes = hidden @ weight.T
        chosen = slopes.gather(1, targets[:, None]).squeeze(1).float()
        chunks = (torch.split(whole, chunk_tokens) for whole in (slopes, targets))
        sums = torch.cat([take_slopes(*chunk) for chunk in zip(*chunks, strict=True)])
        ctx.save_for_backward(hidden, weight, slopes)
        return sums - chosen

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of hidden states and weight."""
        hidden, weight, slopes = ctx.saved_tensors
        upstream = upstream[:, None]
        return (slopes @ weight) * upstream, slopes.T @ (hidden * upstream).to(slopes.dtype), None, None, None


def slopes_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-sum-exp [N] of logits [N V]. In their place come their slopes: probabilities, less 1 at the targets."""
    wide = logits.float()
    top = wide.amax(1, keepdim=True)
    total = (wide - top).exp().sum(1, keepdim=True)
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    logits.copy_((wide - top).exp() / total - is_target.float())
    return (total.log() + top).squeeze(1)


def compile_model(model: "PreTrainedModel") -> None:
    """Let layers and NLL be compiled when they are first called: once for all layers, and again for another shape.

    Layer by layer, because a whole model takes its depth times as long to compile, and DDP and FSDP act between layers.
    """
    for layers in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for layer in layers:
            layer.compile(dynamic=False)
    model.compiled_nll = torch.compile(nll_of_chunk, dynamic=False)
    model.compiled_slopes = torch.compile(slopes_of_logits, dynamic=False)


def forget_compiled(model: "PreTrainedModel") -> None:
    """The opposite of `compile_model`."""
    for module in model.modules():
        module._compiled_call_impl = None
    del model.compiled_nll, model.compiled_slopes


def is_compiled(model: "PreTrainedModel") -> bool:
    """Whether `compile_model` was called."""
    return hasattr(model, "compiled_nll")


def run_eagerly(model: "PreTrainedModel") -> AbstractContextManager[object]:
    """Runs as if the model were not compiled."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def can_compile(device: torch.device) -> bool:
    """Whether what `torch.compile` needs is here: a C++ compiler, on CUDA Triton too."""
    usual = "clang++" if sys.platform == "darwin" else "g++"  # what torch looks for
    has_compiler = shutil.which(os.environ.get("CXX") or usual) is not None
    return has_compiler and (device.type == "cpu" or importlib.util.find_spec("triton") is not None)


def token_nll(
    model: "PreTrainedModel",
    ids: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """-log p(target | ids so far in the same document) in nats, float32."""
    return nll_of_hidden(model, hidden_states(model, ids, positions), targets)


class ValueHead(nn.Module):
    """AWR's prediction of a segment's normalised reward, on the shared trunk, zero-initialised (paper section 2).

    It reads the hidden state one position before the scored token, where that token is predicted. `sigmoid` is the
    paper's: minus a predicted probability, for raw rewards in [-1, 0].
    """

    def __init__(self, width: int, *, sigmoid: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.sigmoid = sigmoid
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        """Predicted reward at each position."""
        value = self.linear(hidden).squeeze(-1).float()
        return -torch.sigmoid(value) if self.sigmoid else value


def probe_bf16(size: int = 384, repeats: int = 8) -> bool:
    """Whether bf16 matrix products beat float32 here by a clear margin.

    CPUs with AVX512_BF16 or AMX gain 1.6x and more; without them bf16 can be hundreds of times slower.
    """
    fp32, bf16 = (_best_product_seconds(dtype, size, repeats) for dtype in (torch.float32, torch.bfloat16))
    return bf16 < 0.8 * fp32


def _best_product_seconds(dtype: torch.dtype, size: int, repeats: int) -> float:
    left, right = torch.ones(2, size, size, dtype=dtype)
    left @ right  # the first product of a dtype compiles its kernel
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        left @ right
        best = min(best, perf_counter() - start)
    return best
